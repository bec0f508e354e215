//! What only UDP has: peers that may be anybody, several addresses of one's own, and a kernel that
//! drops what it has no room for.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::common::PATIENCE;
use crate::common::client::Endpoint;
use crate::matrix::Combination;
use crate::serving::Serving;
use crate::stage::Options;

/// A client that is connected to one address of the server, and so hears no other.
fn client(serving: &Serving, to: &str) -> UdpSocket {
    let Endpoint::Udp(server) = serving.endpoint else {
        unreachable!("it is UDP");
    };
    let to = SocketAddr::new(to.parse().unwrap(), server.port());
    let any: IpAddr = if to.is_ipv4() { "0.0.0.0" } else { "::" }.parse().unwrap();
    let client = UdpSocket::bind((any, 0)).unwrap();
    client.connect(to).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

fn answers_from(serving: &Serving, addresses: &[(&str, &str)]) {
    let clients: Vec<_> = addresses
        .iter()
        .map(|(to, shown)| (client(serving, to), shown))
        .collect();
    // Under way at the same time, so that what goes out together has to be told apart.
    for _ in 0..5 {
        for (client, _) in &clients {
            client.send(b"where-are-you").unwrap();
        }
        for (client, shown) in &clients {
            let mut answer = [0; 100];
            let n = client.recv(&mut answer).unwrap_or_else(|error| {
                panic!("{shown} does not answer: {error}\n{}", serving.journal())
            });
            let port = client.peer_addr().unwrap().port();
            let answer = std::str::from_utf8(&answer[..n]).unwrap();
            assert_eq!(answer, format!("{shown}:{port}"));
        }
    }
}

pub fn answers_come_from_the_address_that_was_asked(cell: Combination) {
    let serving = Serving::start(cell, Options::default().set("everywhere"));
    let addresses: Vec<_> = (1..=20).map(|n| format!("127.0.0.{n}")).collect();
    let pairs: Vec<_> = addresses.iter().map(|ip| (&**ip, &**ip)).collect();
    answers_from(&serving, &pairs);
}

pub fn ipv6_answers_do_as_well(cell: Combination) {
    if UdpSocket::bind("[::1]:0").is_err() {
        println!("SKIPPED: this machine has no IPv6");
        return;
    }
    let serving = Serving::start(cell, Options::default().set("everywhere_in_ipv6"));
    answers_from(
        &serving,
        &[
            ("::1", "[::1]"),
            ("127.0.0.2", "[::ffff:127.0.0.2]"),
            ("127.0.0.3", "[::ffff:127.0.0.3]"),
        ],
    );
}

pub fn replies_are_limited_until_the_peer_is_validated(cell: Combination) {
    let mut serving = Serving::start(cell, Options::default().with("max_amplification", 3));
    let mut client = serving.client();

    // 9 bytes, which may be answered with 27: ten times 2 are less, but more than three replies.
    client.say("flood 100").unwrap();
    for n in 0..3 {
        serving.answers(&mut client, &n.to_string());
    }
    serving.tells("ended 1 failed");
    assert!(serving.lines("failed 1")[0].contains("mark_validated"));

    // 8 bytes, to which 25 are one too many. It is refused whole.
    client.say("pour  25").unwrap();
    serving.tells("ended 2 failed");
    client.say("pour  24").unwrap();
    assert_eq!(client.read(&mut [0; 99]).unwrap(), 24);

    client.say("validate-and-flood 100").unwrap();
    for n in 0..100 {
        serving.answers(&mut client, &n.to_string());
    }
    // Each datagram is judged by itself.
    client.say("pour 99").unwrap();
    serving.tells("ended 5 failed");
    serving.serves();
    let counted = if cell.is_forking() { 0 } else { 3 };
    assert_eq!(serving.counter("amplification_refused"), counted);
}

/// A socket with one of the ports that a client usually has not.
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

pub fn low_ports_are_refused_before_a_handler_is_made(cell: Combination) {
    let Some(low) = with_low_port() else { return };
    low.set_read_timeout(Some(PATIENCE)).unwrap();
    let address = |serving: &Serving| client(serving, "127.0.0.2").peer_addr().unwrap();

    let serving = Serving::start(cell, Options::default());
    low.send_to(b"hello", address(&serving)).unwrap();
    assert_eq!(low.recv(&mut [0; 9]).unwrap(), 5, "welcome by default");

    let serving = Serving::start(cell, Options::default().set("reject_low_ports"));
    low.send_to(b"hello", address(&serving)).unwrap();
    serving.tells("refused 1 source port below 1024");
    serving.serves();
    // Of the second request only.
    serving.tells_times("factory", 1);
}

pub fn what_the_kernel_drops_is_counted(cell: Combination) {
    let options = Options::default().with("receive_buffer", 4096);
    let mut serving = Serving::bound(cell, options);
    let mut client = serving.client();
    let mut sent = 200;
    for _ in 0..sent {
        client.say("nothing").unwrap();
    }
    serving.tell("serve");
    // The first that finds room brings the word about those which found none.
    client.set_patience(Duration::from_millis(100)).unwrap();
    serving.waits_for("an answer", || {
        client.say("the last").unwrap();
        sent += 1;
        client.hear().is_ok()
    });
    serving.rests();
    let accepted = serving.count("accepted") as u64;
    let told = serving.lines("event DatagramsDropped");
    let [told] = &told[..] else {
        panic!("told {told:?}");
    };
    let (_, count) = told.split_once("count: ").unwrap();
    let count: u64 = count.trim_end_matches([' ', '}']).parse().unwrap();
    assert!(count > 0);
    assert_eq!(accepted + count, sent, "{told}");
    assert_eq!(serving.counter("dropped_by_kernel"), count);
}
