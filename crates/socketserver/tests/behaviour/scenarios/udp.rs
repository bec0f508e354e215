//! Properties of UDP only: peers with forged addresses, several local addresses, and a kernel that
//! drops datagrams without buffer space.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::common::TIMEOUT;
use crate::common::client::Endpoint;
use crate::matrix::Combination;
use crate::server_driver::ServerDriver;
use crate::server_process::Options;

/// Returns a client that is connected to one address of the server, and so receives from no other.
fn client(server: &ServerDriver, to: &str) -> UdpSocket {
    let Endpoint::Udp(server) = server.endpoint else {
        unreachable!("the transport is UDP");
    };
    let to = SocketAddr::new(to.parse().unwrap(), server.port());
    let any: IpAddr = if to.is_ipv4() { "0.0.0.0" } else { "::" }.parse().unwrap();
    let client = UdpSocket::bind((any, 0)).unwrap();
    client.connect(to).unwrap();
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    client
}

fn assert_replies_from(server: &ServerDriver, addresses: &[(&str, &str)]) {
    let clients: Vec<_> = addresses
        .iter()
        .map(|(to, expected)| (client(server, to), expected))
        .collect();
    // In flight at the same time, so that replies in one batch must keep their addresses apart.
    for _ in 0..5 {
        for (client, _) in &clients {
            client.send(b"local-address").unwrap();
        }
        for (client, expected) in &clients {
            let mut answer = [0; 100];
            let n = client.recv(&mut answer).unwrap_or_else(|error| {
                panic!("{expected} does not answer: {error}\n{}", server.journal())
            });
            let port = client.peer_addr().unwrap().port();
            let answer = std::str::from_utf8(&answer[..n]).unwrap();
            assert_eq!(answer, format!("{expected}:{port}"));
        }
    }
}

pub fn replies_come_from_the_requested_address(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default().set("everywhere"));
    let addresses: Vec<_> = (1..=20).map(|n| format!("127.0.0.{n}")).collect();
    let pairs: Vec<_> = addresses.iter().map(|ip| (&**ip, &**ip)).collect();
    assert_replies_from(&server, &pairs);
}

pub fn ipv6_replies_come_from_the_requested_address(cell: Combination) {
    if UdpSocket::bind("[::1]:0").is_err() {
        println!("SKIPPED: this machine has no IPv6");
        return;
    }
    let server = ServerDriver::start(cell, Options::default().set("everywhere_in_ipv6"));
    assert_replies_from(
        &server,
        &[
            ("::1", "[::1]"),
            ("127.0.0.2", "[::ffff:127.0.0.2]"),
            ("127.0.0.3", "[::ffff:127.0.0.3]"),
        ],
    );
}

pub fn replies_are_limited_until_the_peer_is_validated(cell: Combination) {
    let mut server = ServerDriver::start(cell, Options::default().with("max_amplification", 3));
    let mut client = server.client();

    // 9 bytes permit replies of 27 bytes in total. 100 replies need more; only three are checked.
    client.send_line("flood 100").unwrap();
    for n in 0..3 {
        server.expect_reply(&mut client, &n.to_string());
    }
    server.expect_event("ended 1 failed");
    assert!(server.lines("failed 1")[0].contains("mark_validated"));

    // 8 bytes, which 25 exceed by one. The whole reply is rejected.
    client.send_line("pour  25").unwrap();
    server.expect_event("ended 2 failed");
    client.send_line("pour  24").unwrap();
    assert_eq!(client.read(&mut [0; 99]).unwrap(), 24);

    client.send_line("validate-and-flood 100").unwrap();
    for n in 0..100 {
        server.expect_reply(&mut client, &n.to_string());
    }
    // The limit applies to each datagram separately.
    client.send_line("pour 99").unwrap();
    server.expect_event("ended 5 failed");
    server.assert_serves();
    let counted = if cell.is_forking() { 0 } else { 3 };
    assert_eq!(server.counter("amplification_refused"), counted);
}

/// Binds a port below 1024, which a client does not use normally.
fn with_low_port() -> Option<UdpSocket> {
    for port in (600..1024).rev() {
        match UdpSocket::bind(("127.0.0.1", port)) {
            Ok(socket) => return Some(socket),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(_) => break,
        }
    }
    println!("SKIPPED: no port below 1024 can be bound");
    None
}

pub fn low_source_ports_are_rejected_without_a_handler(cell: Combination) {
    let Some(low) = with_low_port() else { return };
    low.set_read_timeout(Some(TIMEOUT)).unwrap();
    let address = |server: &ServerDriver| client(server, "127.0.0.2").peer_addr().unwrap();

    let server = ServerDriver::start(cell, Options::default());
    low.send_to(b"hello", address(&server)).unwrap();
    assert_eq!(low.recv(&mut [0; 9]).unwrap(), 5, "admitted by default");

    let server = ServerDriver::start(cell, Options::default().set("reject_low_ports"));
    low.send_to(b"hello", address(&server)).unwrap();
    server.expect_event("rejected 1 source port below 1024");
    server.assert_serves();
    // Only the second request has created a handler.
    server.expect_events("factory", 1);
}

pub fn kernel_drops_are_counted(cell: Combination) {
    let options = Options::default().with("receive_buffer", 4096);
    let mut server = ServerDriver::bind(cell, options);
    let mut client = server.client();
    let mut sent = 200;
    for _ in 0..sent {
        client.send_line("nothing").unwrap();
    }
    server.command("serve");
    // The first datagram that finds buffer space reports those that were dropped.
    client.set_timeout(Duration::from_millis(100)).unwrap();
    server.wait_for("an answer", || {
        client.send_line("the last").unwrap();
        sent += 1;
        client.receive_line().is_ok()
    });
    server.wait_for_requests();
    let accepted = server.count("accepted") as u64;
    let events = server.lines("event DatagramsDropped");
    let [event] = &events[..] else {
        panic!("{events:?}");
    };
    let (_, count) = event.split_once("count: ").unwrap();
    let count: u64 = count.trim_end_matches([' ', '}']).parse().unwrap();
    assert!(count > 0);
    assert_eq!(accepted + count, sent, "{event}");
    assert_eq!(server.counter("dropped_by_kernel"), count);
}
