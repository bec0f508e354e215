//! Tests of forged sources in UDP datagrams, and of the source address of the programs' answers.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says why it fails, or is skipped"
)]

mod common;

use std::net::UdpSocket;

use common::{MODELS, PATIENCE, Server, text};

fn client(server: &Server, from: (&str, u16), to: &str) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(from)?;
    let port = server.address(0).rsplit_once(':').unwrap().1;
    socket.connect((to, port.parse().unwrap()))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn ask(client: &UdpSocket, question: &str) -> String {
    let mut answer = [0; 200];
    client.send(question.as_bytes()).unwrap();
    let n = client.recv(&mut answer).unwrap();
    text(&answer[..n])
}

const LONG: &str = "a message that is long enough";

#[test]
fn answers_come_from_the_address_that_was_asked_and_are_not_too_long() {
    for model in MODELS {
        let limit = ["--max-amplification", "3", "--log-level", "debug"];
        let args = ["echo", "-c", model, "-l", "udp://0.0.0.0:0"];
        let server = Server::start(&[&args[..], &limit[..]].concat(), 1);
        for to in ["127.0.0.1", "127.0.0.2"] {
            let client = client(&server, ("127.0.0.1", 0), to).unwrap();
            let name = client.local_addr().unwrap();
            // An answer to the short datagram would come before the other answer.
            client.send(b"hi").unwrap();
            server.logged("a reply of");
            assert_eq!(ask(&client, LONG), format!("{name} {LONG}"), "{model}");
        }
    }
}

#[test]
fn without_the_options_everybody_is_answered() {
    let server = Server::start(&["echo", "-l", "udp://127.0.0.1:0"], 1);
    let client = client(&server, ("127.0.0.1", 0), "127.0.0.1").unwrap();
    let name = client.local_addr().unwrap();
    assert_eq!(ask(&client, "hi"), format!("{name} hi"));
}

#[test]
fn what_was_not_sent_is_in_the_totals() {
    let args = ["upper", "-l", "udp://127.0.0.1:0", "--max-amplification=0"];
    let mut server = Server::with_console(&[&args[..], &["--log-level=debug"]].concat(), 1);
    let client = client(&server, ("127.0.0.1", 0), "127.0.0.1").unwrap();
    client.send(b"nothing may be answered").unwrap();
    server.logged("a reply of 23 bytes was not sent");
    server.type_in("stats");
    while !server.says().contains("replies over --max-amplification 1") {}
}

#[test]
fn low_ports_are_refused() {
    let args = ["upper", "-l", "udp://127.0.0.1:0", "--reject-low-ports"];
    let server = Server::start(&args, 1);
    let low = (600..1024).find_map(|port| client(&server, ("127.0.0.1", port), "127.0.0.1").ok());
    match low {
        Some(low) => {
            low.send(b"hello").unwrap();
            let high = client(&server, ("127.0.0.1", 0), "127.0.0.1").unwrap();
            assert_eq!(ask(&high, "hello"), "HELLO");
            low.set_nonblocking(true).unwrap();
            assert!(low.recv(&mut [0; 9]).is_err());
        }
        None => println!("SKIPPED: no port below 1024 can be bound"),
    }
}
