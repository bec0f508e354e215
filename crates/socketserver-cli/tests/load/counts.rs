//! Tests of the counts, with our own servers and with special servers. No request is lost or
//! counted twice.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::common::{Server, eventually, socketserver, text};
use super::servers::{echo, serve, stalling};
use super::{load, number, report, slower_than, success};

/// Returns `-l` options for every kind of endpoint that needs no certificate.
fn listening(dir: &tempfile::TempDir) -> Vec<String> {
    let dir = dir.path().display();
    vec![
        "tcp://127.0.0.1:0".into(),
        "udp://127.0.0.1:0".into(),
        format!("unix://{dir}/s"),
        format!("unixgram://{dir}/g"),
    ]
}

fn start(program: &[&str], listen: &[String]) -> Server {
    let mut args = program.to_vec();
    for endpoint in listen {
        args.extend(["-l", endpoint]);
    }
    Server::start(&args, listen.len())
}

/// Starts a server that counts the requests that it serves.
fn counting() -> (String, Arc<AtomicU64>) {
    let served = Arc::new(AtomicU64::new(0));
    let counted = served.clone();
    let count = move || {
        counted.fetch_add(1, Ordering::Relaxed);
    };
    (echo(64, count), served)
}

#[test]
fn every_endpoint_is_answered_and_every_answer_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&["upper", "-c", "green"], &listening(&dir));
    for endpoint in &server.endpoints {
        for more in [&[][..], &["--churn"], &["-t", "3"], &["-r", "5000"]] {
            let args = [&["-n", "300", "-C", "5", "--verify", "upper"], more].concat();
            let report = success(endpoint, &args);
            assert_eq!(number(&report, "requests_answered"), 300, "{report:#}");
            assert_eq!(number(&report, "latency.count"), 300);
            assert_eq!(number(&report, "sent_bytes"), 300 * 64);
            assert_eq!(number(&report, "received_bytes"), 300 * 64);
            let opened = number(&report, "connect.count");
            let expected = if more == ["--churn"] { 300 } else { 5 };
            assert_eq!(opened, expected, "{endpoint} {more:?}");
            assert!(number(&report, "latency.min_ns") > 0);
            assert!(number(&report, "latency.p50_ns") <= number(&report, "latency.max_ns"));
        }
    }
}

#[test]
fn encrypted_ones_too() {
    let dir = tempfile::tempdir().unwrap();
    let of = |name: &str| dir.path().join(name).display().to_string();
    let mut cert = socketserver();
    cert.args(["cert", "127.0.0.1", "somebody", "--dir", &of("")]);
    assert!(cert.output().unwrap().status.success());
    let (cert, key, ca) = (of("127.0.0.1.pem"), of("127.0.0.1.key"), of("ca.pem"));
    let mut args = vec!["upper", "-l", "tls://127.0.0.1:0", "--tls-client-ca", &ca];
    args.extend(["--tls-cert", &cert, "--tls-key", &key]);
    let server = Server::start(&args, 1);
    let (cert, key) = (of("somebody.pem"), of("somebody.key"));
    let client = ["--ca", &ca, "--cert", &cert, "--key", &key];
    for more in [
        &["-C", "4"][..],
        &["-C", "4", "--churn"],
        &["-s", "1MiB", "-C", "2"],
    ] {
        let args = [&["-n", "40", "--verify", "upper"], &client[..], more].concat();
        let report = success(&server.endpoints[0], &args);
        assert_eq!(number(&report, "requests_answered"), 40, "{report:#}");
    }
    // The server rejects a client without a certificate.
    let output = load(&server.endpoints[0], &["-n", "4", "-C", "2", "--ca", &ca]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stdout) + &text(&output.stderr);
    assert!(told.contains("ertificate"), "{told}");
}

#[test]
fn answers_that_are_longer_are_recognised_by_their_end() {
    let dir = tempfile::tempdir().unwrap();
    let echo = ["echo", "--framing", "lines", "--log-level", "off"];
    let server = start(&echo, &listening(&dir));
    for endpoint in &server.endpoints {
        let args = ["-n", "200", "-C", "4", "--answer", "lines", "-m", "hello"];
        let report = success(endpoint, &args);
        assert_eq!(number(&report, "requests_answered"), 200);
        assert_eq!(number(&report, "message_bytes"), 6);
        assert!(number(&report, "received_bytes") > 200 * 6, "with a name");
    }
}

#[test]
fn what_is_collected_is_what_was_sent() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("collected").display().to_string();
    let collect = ["collect", "--framing", "lines", "-o", &output];
    let listen = listening(&dir);
    let mut server = start(&collect, &listen);
    // Over UDP, some requests may be lost.
    let certain = server.endpoints.iter().filter(|e| !e.starts_with("udp"));
    let mut sent = 0;
    for endpoint in certain {
        for more in [&[][..], &["--churn"], &["-t", "2"]] {
            let args = ["-n", "500", "-C", "4", "--answer", "none", "-m", "line\n"];
            let report = success(endpoint, &[&args[..], more].concat());
            assert_eq!(number(&report, "sent_bytes"), 500 * 5);
            sent += 500;
        }
    }
    let udp = &server.endpoints[1];
    let report = success(
        udp,
        &["-n", "50", "-C", "1", "-r", "500", "--answer", "none"],
    );
    assert_eq!(number(&report, "requests_answered"), 50);
    server.signal("TERM");
    assert!(server.wait().success());
    let collected = fs::read_to_string(&output).unwrap();
    let lines = collected.lines().filter(|line| *line == "line").count();
    assert_eq!(lines, sent);
}

#[test]
fn a_stall_is_seen_by_all_who_would_have_asked_meanwhile() {
    let stall = Duration::from_millis(300);
    let args = ["-C", "10", "-d", "1500ms"];
    let open = success(
        &stalling(500, stall),
        &[&args[..], &["-r", "1000"]].concat(),
    );
    let not_sent = number(&open, "requests_not_sent");
    assert_eq!(number(&open, "requests_answered") + not_sent, 1500);
    // Requests that were due in the first two thirds of the stall waited for more than the last
    // third.
    let slow = slower_than(&open, 100_000_000);
    assert!(slow >= 190, "{slow}: {open:#}");
    assert!(number(&open, "latency.p95_ns") > 100_000_000);
    assert!(number(&open, "latency.max_ns") > 290_000_000);
    // In a closed loop, only one request for each connection waited.
    let closed = success(&stalling(500, stall), &args);
    assert!(number(&closed, "latency.max_ns") > 290_000_000);
    let slow = slower_than(&closed, 200_000_000);
    assert!((1..=20).contains(&slow), "{slow}: {closed:#}");
}

#[test]
fn a_rate_is_kept_to_the_request() {
    let endpoint = echo(64, || {});
    for threads in ["1", "3"] {
        // Each request has a connection, even on a busy machine.
        let args = ["-r", "400", "-d", "500ms", "-C", "200", "-t", threads];
        let report = success(&endpoint, &args);
        assert_eq!(number(&report, "requests_answered"), 200);
        assert_eq!(number(&report, "requests_not_sent"), 0);
    }
}

#[test]
fn the_warm_up_is_served_and_not_counted() {
    let (endpoint, served) = counting();
    let args = ["-r", "500", "-n", "100", "--warm-up", "200ms"];
    let report = success(&endpoint, &args);
    assert_eq!(number(&report, "requests_answered"), 100);
    assert_eq!(number(&report, "latency.count"), 100);
    assert_eq!(served.load(Ordering::Relaxed), 200);
}

#[test]
fn a_server_that_closes_between_requests_is_connected_to_anew() {
    use std::io::{Read, Write};
    let endpoint = serve(|mut stream| {
        stream.read_exact(&mut [0; 64])?;
        stream.write_all(&[b'x'; 64])
    });
    let (report, _) = report(&endpoint, &["-C", "1", "-r", "5", "-n", "5"]);
    // On a busy machine, a late request may meet the end of the run and fail.
    let answered = number(&report, "requests_answered");
    assert_eq!(answered + number(&report, "requests_failed"), 5);
    assert!(answered > 1, "{report:#}");
    assert!(number(&report, "connections_closed_while_idle") > 0);
    // Each connection got one answer.
    assert_eq!(number(&report, "connect.count"), answered);
}

#[test]
fn a_thousand_connections_are_one_thread_s_work() {
    let server = Server::start(&["upper", "-c", "green", "-l", "tcp://127.0.0.1:0"], 1);
    let args = ["-C", "1000", "-n", "5000", "--timeout", "15s"];
    let report = success(&server.endpoints[0], &args);
    assert_eq!(number(&report, "connections_at_start"), 1000);
    assert_eq!(number(&report, "requests_answered"), 5000);
    assert_eq!(number(&report, "connect.count"), 1000);
}

#[test]
fn it_ends_early_when_asked_to_and_tells_what_there_is() {
    let (endpoint, served) = counting();
    for json in [false, true] {
        let before = served.load(Ordering::Relaxed);
        let mut command = socketserver();
        command.args(["load", &endpoint, "-r", "200", "-d", "1h"]);
        command.args(json.then_some("--json"));
        let mut child = Server::launch(command.stdin(std::process::Stdio::null()), 0);
        eventually(|| served.load(Ordering::Relaxed) > before + 20);
        child.signal("INT");
        assert!(child.wait().success());
        let told: Vec<_> = std::iter::from_fn(|| child.next_line()).collect();
        let told = told.join("\n");
        let word = if json {
            "\"interrupted\": true"
        } else {
            "it was interrupted"
        };
        assert!(told.contains(word), "{told}");
        assert!(child.log().is_empty(), "no progress but on a terminal");
    }
}

#[test]
fn the_report_has_a_histogram_for_people_and_one_for_plots() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("all.hgrm").display().to_string();
    let endpoint = echo(100, || {});
    let args = ["-n", "1000", "-s", "100", "--histogram", &path];
    let told = text(&load(&endpoint, &args).stdout);
    for part in [
        "1,000 answered, 0 failed",
        "p99.9",
        "own CPU",
        " µs per request",
        "###",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let plot = fs::read_to_string(&path).unwrap();
    assert!(
        plot.trim_start()
            .starts_with("Value     Percentile TotalCount"),
        "{plot}"
    );
    assert!(plot.contains("Total count    =         1000]"), "{plot}");
    // Without measurements, the latency count is zero.
    let (nothing, code) = report(
        &endpoint,
        &["-d", "1ms", "-r", "1", "-s", "100", "--warm-up", "1ms"],
    );
    assert_eq!((number(&nothing, "latency.count"), code), (0, Some(1)));
}
