//! Tests of the number of log lines that clients can cause.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::TcpStream;
use std::time::Instant;

use common::{MODELS, Server, client, exchange, is_closed};

/// Returns the number of lines with this text, and the sum of the lines that were left out.
fn told(log: &[String], text: &str) -> (usize, usize) {
    let lines = log
        .iter()
        .filter(|line| line.contains(text) && !line.contains("left out"));
    let left_out = log
        .iter()
        .filter(|line| line.contains(text) && line.contains("left out"));
    let count = |line: &String| -> usize {
        let (before, _) = line.split_once(" more lines").unwrap();
        let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next();
        digits.unwrap().parse().unwrap()
    };
    (lines.count(), left_out.map(count).sum())
}

#[test]
fn clients_cannot_fill_a_disk_with_lines() {
    const CLIENTS: usize = 120;
    for model in MODELS {
        for format in ["text", "json"] {
            let args = ["upper", "-c", model, "-l", "tcp://127.0.0.1:0"];
            let log = ["--log-rate", "20", "--log-format", format];
            let mut server = Server::start(&[&args[..], &log].concat(), 1);
            let began = Instant::now();
            for _ in 0..CLIENTS {
                let mut one: TcpStream = client(&server, 0);
                assert_eq!(exchange(&mut one, b"a"), b"A");
                one.shutdown(std::net::Shutdown::Write).unwrap();
                assert!(is_closed(&mut one));
            }
            let seconds = usize::try_from(began.elapsed().as_secs()).unwrap() + 1;
            server.signal("TERM");
            assert!(server.wait().success());
            let log = server.rest_of_log();
            // The sum accounts for all lines.
            let (lines, left_out) = told(&log, "disconnected");
            assert_eq!(lines + left_out, CLIENTS, "{model} {format}: {log:#?}");
            assert!(
                lines <= 20 * (seconds + 1),
                "{model}: {lines} in {seconds} s"
            );
            assert!(left_out > 0, "{model}: {log:#?}");
        }
    }
}
