//! A server whose process did not run for a while (SIGSTOP, a container that was paused): what has
//! arrived in time is served, however long it did not run.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use common::{PATIENCE, Server, socketserver};

/// More than are reported by one call of epoll_wait(2).
const CLIENTS: usize = 300;

fn serves_what_has_arrived(model: &str, clients: usize) {
    let mut command = socketserver();
    command
        .args([
            "echo",
            "-c",
            model,
            "-l",
            "tcp://127.0.0.1:0",
            "--framing",
            "lines",
        ])
        .args([
            "--idle-timeout",
            "1s",
            "--workers",
            "1000",
            "--log-level",
            "off",
        ]);
    let server = Server::launch(command.stdin(Stdio::null()), 1);
    let mut all: Vec<_> = (0..clients)
        .map(|_| {
            let stream = TcpStream::connect(server.address(0)).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            BufReader::new(stream)
        })
        .collect();
    let mut line = String::new();
    for round in 0..2 {
        if round == 1 {
            server.signal("STOP");
        }
        for client in &mut all {
            client.get_mut().write_all(b"hello\n").unwrap();
        }
        if round == 1 {
            // Longer than a connection may be idle.
            thread::sleep(Duration::from_millis(1300));
            server.signal("CONT");
        }
        for client in &mut all {
            line.clear();
            client.read_line(&mut line).unwrap();
            assert!(line.ends_with(" hello\n"), "round {round}: {line:?}");
        }
    }
}

#[test]
fn by_threads() {
    serves_what_has_arrived("threading", 50);
}

#[test]
fn by_a_pool() {
    serves_what_has_arrived("pooled", CLIENTS);
}

#[test]
fn by_coroutines() {
    serves_what_has_arrived("green", CLIENTS);
}
