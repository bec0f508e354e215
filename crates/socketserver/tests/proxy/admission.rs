//! Rules and limits on the clients behind one proxy.

use std::time::Instant;

use socketserver::{Admission, Concurrency, Rate};

use crate::common::{PATIENCE, comes_true};
use crate::{Fixture, PROXY, block_of, serve, trusted};

fn behind<C: Concurrency>(model: C, admission: Admission) -> Fixture {
    serve(model, |b| {
        b.proxy_protocol(trusted())
            .admission(admission)
            .rejection_message("full\n")
    })
}

/// Whether a client of this address is served.
fn is_served(server: &Fixture, ip: &str) -> bool {
    server.client(ip).hear().starts_with(ip)
}

fn rules_hold_for_clients_and_for_the_proxy<C: Concurrency>(model: C) {
    let admission = Admission::new()
        .deny("203.0.113.66".parse().unwrap())
        .allow("203.0.113.0/24".parse().unwrap())
        .allow(PROXY.parse().unwrap());
    let server = behind(model, admission);
    assert!(is_served(&server, "203.0.113.9"));
    for denied in ["203.0.113.66", "198.51.100.7"] {
        // It is told nothing.
        assert!(server.client(denied).was_closed());
        let told = server.tells("refused");
        assert_eq!(told, format!("refused {denied}: denied by a rule"));
    }
    // Its clients may pretend to be whom they want, and still are who they are.
    let from_v6 = "PROXY TCP6 ::ffff:203.0.113.66 ::1 1 1\r\n";
    let mut wire = server.proxy();
    wire.send(from_v6.as_bytes());
    assert!(wire.was_closed());
    server.rests();
    assert_eq!(server.made(), 1);
    let counters = server.running.handle.counters();
    assert_eq!(
        (counters.accepted, counters.refused, counters.ended),
        (4, 3, 1)
    );
}

fn each_client_has_so_many<C: Concurrency>(model: C) {
    let server = behind(model, Admission::new().max_per_peer(2));
    let mut live: Vec<_> = (0..2).map(|_| server.client("203.0.113.9")).collect();
    for wire in &mut live {
        assert!(wire.hear().starts_with("203.0.113.9:"));
    }
    // One more of it is told why, in vain as for any other limit; the others do not mind.
    assert_eq!(server.client("203.0.113.9").hear(), "full");
    let told = server.tells("refused");
    assert_eq!(told, "refused 203.0.113.9: too many of this peer");
    let others: Vec<_> = (1..=5)
        .map(|n| {
            let ip = format!("198.51.100.{n}");
            let mut wire = server.client(&ip);
            assert!(wire.hear().starts_with(&ip));
            wire
        })
        .collect();
    // The proxy itself has as many as it wants.
    let checks: Vec<_> = (0..5)
        .map(|_| {
            let mut wire = server.proxy();
            wire.send(&block_of(0x20, 0, &[]));
            assert!(wire.hear().starts_with(PROXY));
            wire
        })
        .collect();
    drop((others, checks));
    // A place comes back with each end, and only once: there are never more than two.
    for _ in 0..20 {
        drop(live.remove(0));
        let again = comes_true(PATIENCE, || {
            let mut wire = server.client("203.0.113.9");
            let served = wire.hear().starts_with("203.0.113.9:");
            if served {
                live.push(wire);
            }
            served
        });
        assert!(again);
        assert_eq!(server.client("203.0.113.9").hear(), "full");
    }
}

fn a_direct_client_is_counted_with_those_that_come_by_a_proxy<C: Concurrency>(model: C) {
    let server = behind(model, Admission::new().max_per_peer(1));
    let mut direct = server.connect("127.0.0.2");
    assert!(direct.hear().starts_with("127.0.0.2:"));
    assert_eq!(server.client("127.0.0.2").hear(), "full");
    assert_eq!(server.connect("127.0.0.2").hear(), "full");
    drop(direct);
    assert!(comes_true(PATIENCE, || is_served(&server, "127.0.0.2")));
}

fn each_client_has_a_rate<C: Concurrency>(model: C) {
    let rate = Rate::per_second(1).burst(3);
    let server = behind(model, Admission::new().rate_per_peer(rate));
    let began = Instant::now();
    let served = (0..6).filter(|_| is_served(&server, "203.0.113.9")).count();
    let regained = usize::try_from(began.elapsed().as_secs()).unwrap() + 1;
    assert!((3..=3 + regained).contains(&served), "{served}");
    assert!((1..=3).all(|n| is_served(&server, &format!("198.51.100.{n}"))));
}

fn the_total_rate_counts_once<C: Concurrency>(model: C) {
    // What is beyond it waits; were each counted twice, the third would, for a minute and more.
    let rate = Rate::per_second(1).burst(4);
    let server = behind(model, Admission::new().rate(rate));
    let began = Instant::now();
    assert!((0..4).all(|_| is_served(&server, "203.0.113.9")));
    assert!(began.elapsed().as_millis() < 1000, "{:?}", began.elapsed());
}

crate::common::under_each_model! {
    rules_hold_for_clients_and_for_the_proxy
    each_client_has_so_many
    a_direct_client_is_counted_with_those_that_come_by_a_proxy
    each_client_has_a_rate
    the_total_rate_counts_once
}
