//! Tests of a server whose process was stopped for a while, by SIGSTOP or a paused container. The
//! server serves all data that arrived in time, after a stop of any length.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use common::{PATIENCE, Server, socketserver};

/// The number of clients is higher than one call of epoll_wait(2) reports.
const CLIENTS: usize = 300;

/// Its handler is called again for each message.
const PAUSES: &[&str] = &["echo", "--framing", "lines"];
/// Its handler waits for the next message itself.
const READS: &[&str] = &["upper"];

fn serves_what_has_arrived(program: &[&str], model: &str, clients: usize) {
    let mut command = socketserver();
    command
        .args(program)
        .args(["-c", model, "-l", "tcp://127.0.0.1:0"])
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
            // The stop is longer than the idle timeout.
            thread::sleep(Duration::from_millis(1300));
            server.signal("CONT");
        }
        for client in &mut all {
            line.clear();
            client.read_line(&mut line).unwrap();
            assert!(
                line.to_lowercase().ends_with("hello\n"),
                "round {round}: {line:?}"
            );
        }
    }
}

macro_rules! models {
    ($($name:ident: $model:literal, $clients:expr;)*) => {
        $(mod $name {
            #[test]
            fn between_two_calls_of_the_handler() {
                super::serves_what_has_arrived(super::PAUSES, $model, $clients);
            }

            #[test]
            fn in_a_read_of_the_handler() {
                super::serves_what_has_arrived(super::READS, $model, $clients);
            }
        })*
    };
}

models! {
    by_threads: "threading", 50;
    by_processes: "forking", 10;
    by_a_pool: "pooled", super::CLIENTS;
    by_coroutines: "green", super::CLIENTS;
}
