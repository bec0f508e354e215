//! Rules and limits on the clients behind one proxy.

use std::time::Instant;

use socketserver::{Admission, Concurrency, Rate};

use crate::common::{TIMEOUT, becomes_true};
use crate::{Fixture, PROXY, block_of, serve, trusted};

fn serve_behind_proxy<C: Concurrency>(model: C, admission: Admission) -> Fixture {
    serve(model, |b| {
        b.proxy_protocol(trusted())
            .admission(admission)
            .rejection_message("full\n")
    })
}

/// Returns true if a client with this address is served.
fn is_served(server: &Fixture, ip: &str) -> bool {
    server.client(ip).receive_line().starts_with(ip)
}

fn rules_apply_to_clients_and_to_the_proxy<C: Concurrency>(model: C) {
    let admission = Admission::new()
        .deny("203.0.113.66".parse().unwrap())
        .allow("203.0.113.0/24".parse().unwrap())
        .allow(PROXY.parse().unwrap());
    let server = serve_behind_proxy(model, admission);
    assert!(is_served(&server, "203.0.113.9"));
    for denied in ["203.0.113.66", "198.51.100.7"] {
        // The client receives no message.
        assert!(server.client(denied).was_closed());
        let event = server.expect_event("rejected");
        assert_eq!(event, format!("rejected {denied}: denied by a rule"));
    }
    // A client cannot evade a rule by another notation of its address.
    let from_v6 = "PROXY TCP6 ::ffff:203.0.113.66 ::1 1 1\r\n";
    let mut client = server.proxy();
    client.send(from_v6.as_bytes());
    assert!(client.was_closed());
    server.wait_until_idle();
    assert_eq!(server.created(), 1);
    let counters = server.running.handle.counters();
    assert_eq!(
        (counters.accepted, counters.refused, counters.ended),
        (4, 3, 1)
    );
}

fn client_has_a_maximum_of_connections<C: Concurrency>(model: C) {
    let server = serve_behind_proxy(model, Admission::new().max_per_peer(2));
    let mut active: Vec<_> = (0..2).map(|_| server.client("203.0.113.9")).collect();
    for client in &mut active {
        assert!(client.receive_line().starts_with("203.0.113.9:"));
    }
    // A further connection of the client is rejected with a message, and other clients are served.
    assert_eq!(server.client("203.0.113.9").receive_line(), "full");
    let event = server.expect_event("rejected");
    assert_eq!(event, "rejected 203.0.113.9: too many of this peer");
    let others: Vec<_> = (1..=5)
        .map(|n| {
            let ip = format!("198.51.100.{n}");
            let mut client = server.client(&ip);
            assert!(client.receive_line().starts_with(&ip));
            client
        })
        .collect();
    // Connections of the proxy itself are not limited.
    let checks: Vec<_> = (0..5)
        .map(|_| {
            let mut client = server.proxy();
            client.send(&block_of(0x20, 0, &[]));
            assert!(client.receive_line().starts_with(PROXY));
            client
        })
        .collect();
    drop((others, checks));
    // Each ended connection frees one slot, and no more than two connections exist at a time.
    for _ in 0..20 {
        drop(active.remove(0));
        let is_served_again = becomes_true(TIMEOUT, || {
            let mut client = server.client("203.0.113.9");
            let served = client.receive_line().starts_with("203.0.113.9:");
            if served {
                active.push(client);
            }
            served
        });
        assert!(is_served_again);
        assert_eq!(server.client("203.0.113.9").receive_line(), "full");
    }
}

fn direct_and_proxied_connections_count_together<C: Concurrency>(model: C) {
    let server = serve_behind_proxy(model, Admission::new().max_per_peer(1));
    let mut direct = server.connect("127.0.0.2");
    assert!(direct.receive_line().starts_with("127.0.0.2:"));
    assert_eq!(server.client("127.0.0.2").receive_line(), "full");
    assert_eq!(server.connect("127.0.0.2").receive_line(), "full");
    drop(direct);
    assert!(becomes_true(TIMEOUT, || is_served(&server, "127.0.0.2")));
}

fn rate_applies_to_each_client<C: Concurrency>(model: C) {
    let rate = Rate::per_second(1).burst(3);
    let server = serve_behind_proxy(model, Admission::new().rate_per_peer(rate));
    let start = Instant::now();
    let served = (0..6).filter(|_| is_served(&server, "203.0.113.9")).count();
    let regained = usize::try_from(start.elapsed().as_secs()).unwrap() + 1;
    assert!((3..=3 + regained).contains(&served), "{served}");
    assert!((1..=3).all(|n| is_served(&server, &format!("198.51.100.{n}"))));
}

fn total_rate_counts_each_client_once<C: Concurrency>(model: C) {
    // Further clients wait. If each client counted twice, the third would wait for a minute.
    let rate = Rate::per_second(1).burst(4);
    let server = serve_behind_proxy(model, Admission::new().rate(rate));
    let start = Instant::now();
    assert!((0..4).all(|_| is_served(&server, "203.0.113.9")));
    assert!(start.elapsed().as_millis() < 1000, "{:?}", start.elapsed());
}

crate::common::under_each_model! {
    rules_apply_to_clients_and_to_the_proxy
    client_has_a_maximum_of_connections
    direct_and_proxied_connections_count_together
    rate_applies_to_each_client
    total_rate_counts_each_client_once
}
