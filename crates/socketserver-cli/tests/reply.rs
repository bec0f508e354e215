//! Tests `socketserver reply` from outside.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::UdpSocket;

use common::{PATIENCE, Server, client, hear};

#[test]
fn each_waits_for_its_answer_and_none_is_lost() {
    for model in ["threading", "pooled", "green"] {
        let args = [
            "reply",
            "-c",
            model,
            "-l",
            "tcp://127.0.0.1:0",
            "-l",
            "udp://127.0.0.1:0",
        ];
        let mut server = Server::with_console(&args, 2);
        let mut first = client(&server, 0);
        first.write_all(b"first\x1b[2J\n").unwrap();
        let shown = server.says();
        assert_eq!(
            shown,
            format!("{}: first\\x1b[2J", first.local_addr().unwrap())
        );
        // These clients wait behind the first, and the server does not show them yet.
        let mut others: Vec<_> = (0..5)
            .map(|n| {
                let mut other = client(&server, 0);
                other.write_all(format!("other {n}").as_bytes()).unwrap();
                other
            })
            .collect();
        let packet = UdpSocket::bind("127.0.0.1:0").unwrap();
        packet.set_read_timeout(Some(PATIENCE)).unwrap();
        packet.send_to(b"packet", server.address(1)).unwrap();
        common::eventually(|| {
            server.type_in("/stats");
            loop {
                let line = server.says();
                if let Some(n) = line.strip_prefix("messages that wait for an answer: ") {
                    return n == "7";
                }
            }
        });
        server.type_in("yes, first");
        hear(&mut first, b"yes, first");
        for _ in 0..6 {
            let line = server.says();
            let (peer, question) = line.split_once(": ").unwrap();
            let answer = format!("/{question} is answered");
            server.type_in(&format!("/{answer}"));
            if question == "packet" {
                let mut got = [0; 100];
                let n = packet.recv(&mut got).unwrap();
                assert_eq!(got[..n], *answer.as_bytes());
            } else {
                let named =
                    |one: &&mut std::net::TcpStream| one.local_addr().unwrap().to_string() == peer;
                let other = others.iter_mut().find(named).unwrap();
                hear(other, answer.as_bytes());
            }
        }
        server.type_in("nobody hears this");
        assert_eq!(server.says(), "nobody waits, and nothing was sent");
        // The test sends a second message over the same connection.
        first.write_all(b"again").unwrap();
        server.says();
        server.type_in("");
        assert!(server.says().ends_with(": again"));
        server.type_in("and again");
        hear(&mut first, b"and again");
        first.write_all(b"quit").unwrap();
        assert_eq!(first.read(&mut [0; 9]).unwrap(), 0);
        server.type_in("/quit");
        assert!(server.wait().success(), "{model}");
    }
}

#[test]
fn who_waits_too_long_is_let_go_and_makes_room() {
    let args = [
        "reply",
        "--answer-timeout",
        "300ms",
        "-l",
        "tcp://127.0.0.1:0",
    ];
    let mut server = Server::with_console(&args, 1);
    let mut impatient = client(&server, 0);
    impatient.write_all(b"quick").unwrap();
    assert!(server.says().ends_with(": quick"));
    assert_eq!(impatient.read(&mut [0; 9]).unwrap(), 0);
    server.logged("nobody has answered");
    server.type_in("too late");
    assert_eq!(server.says(), "nobody waits, and nothing was sent");
}

#[test]
fn a_client_that_is_kicked_waits_for_no_answer() {
    for model in ["threading", "pooled", "green"] {
        let args = ["reply", "-c", model, "-l", "tcp://127.0.0.1:0"];
        let mut server = Server::with_console(&args, 1);
        let mut kicked = client(&server, 0);
        kicked.write_all(b"kick me").unwrap();
        assert!(server.says().ends_with(": kick me"));
        let mut other = client(&server, 0);
        other.write_all(b"and I").unwrap();
        common::eventually(|| {
            server.type_in("/stats");
            loop {
                let line = server.says();
                if let Some(n) = line.strip_prefix("messages that wait for an answer: ") {
                    return n == "2";
                }
            }
        });
        server.type_in("/kick 1");
        let said = [server.says(), server.says()];
        assert!(said.iter().any(|line| line == "1 is cancelled"), "{said:?}");
        assert!(
            said.iter().any(|line| line.ends_with(": and I")),
            "{said:?}"
        );
        assert!(common::is_closed(&mut kicked));
        server.type_in("to the other");
        hear(&mut other, b"to the other");
        server.logged("reason=cancelled");
        drop(other);
        server.type_in("/drain");
        assert!(server.wait().success(), "{model}");
    }
}

#[test]
fn an_answer_goes_to_the_message_that_was_shown() {
    let args = [
        "reply",
        "--answer-timeout",
        "400ms",
        "-l",
        "udp://127.0.0.1:0",
    ];
    let mut server = Server::with_console(&args, 1);
    let packet = UdpSocket::bind("127.0.0.1:0").unwrap();
    packet.set_read_timeout(Some(PATIENCE)).unwrap();
    packet.send_to(b"first", server.address(0)).unwrap();
    assert!(server.says().ends_with(": first"));
    std::thread::sleep(std::time::Duration::from_millis(250));
    packet.send_to(b"second", server.address(0)).unwrap();
    // When the first message has waited too long, the server shows the second message of the same
    // peer.
    assert!(server.says().ends_with(": second"));
    server.type_in("to the second");
    let mut got = [0; 20];
    let n = packet.recv(&mut got).unwrap();
    assert_eq!(&got[..n], b"to the second");
}
