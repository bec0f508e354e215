//! Tests of `--metrics` under every model, while servers serve, are lame and drain.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{MODELS, PATIENCE, Server, client, connect, eventually, hear, socketserver, text};

/// Starts `echo` with a console and metrics.
fn start(model: &str, more: &[&str]) -> Server {
    let args = [
        &["echo", "-c", model, "-l", "tcp://127.0.0.1:0"][..],
        &["--metrics", "tcp://127.0.0.1:0"],
        more,
    ];
    Server::with_console(&args.concat(), 2)
}

/// Returns the `HOST:PORT` of the metrics. The server prints this endpoint last and marks it.
fn metrics(server: &Server) -> &str {
    let endpoint = server.endpoints.last().unwrap();
    let endpoint = endpoint.strip_suffix(" (metrics)").unwrap();
    endpoint.strip_prefix("tcp://").unwrap()
}

fn get(address: &str, path: &str) -> (u16, String) {
    try_get(address, path).unwrap()
}

fn try_get(address: &str, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.is_empty() {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(split(&answer))
}

#[track_caller]
fn split(answer: &str) -> (u16, String) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.into())
}

/// Returns the sum over all series of a name whose labels contain this text.
fn figure(metrics: &str, name: &str, labels: &str) -> f64 {
    metrics
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.split_once("} "))
        .filter(|(found, _)| found.contains(labels))
        .map(|(_, value)| value.parse::<f64>().unwrap())
        .sum()
}

#[test]
fn figures_add_up_before_during_and_after_load() {
    for model in MODELS {
        let server = start(model, &[]);
        let scrape = || get(metrics(&server), "/metrics").1;
        let total = |text: &str, what: &str| {
            figure(text, &format!("socketserver_requests_{what}"), "server=")
        };
        let before = scrape();
        assert_eq!(total(&before, "accepted_total"), 0.0, "{model}");
        assert_eq!(total(&before, "active"), 0.0);
        let count = if model == "sequential" { 1 } else { 6 };
        let mut clients: Vec<_> = (0..count).map(|_| client(&server, 0)).collect();
        for one in &mut clients {
            one.write_all(b"hello").unwrap();
            let name = one.local_addr().unwrap();
            hear(one, format!("{name} hello").as_bytes());
        }
        let mut during = scrape();
        assert_eq!(total(&during, "active"), f64::from(count), "{model}");
        if model != "forking" {
            let received = figure(&during, "socketserver_received_bytes_total", "");
            assert_eq!(received, 5.0 * f64::from(count), "{model}");
        }
        clients.truncate(clients.len() / 2);
        let half = u32::try_from(clients.len()).unwrap();
        eventually(|| {
            during = scrape();
            total(&during, "active") == f64::from(half)
        });
        assert_eq!(
            total(&during, "accepted_total"),
            total(&during, "rejected_total") + total(&during, "ended_total") + f64::from(half),
            "{model}"
        );
        let seen = figure(&during, "socketserver_request_duration_seconds_count", "");
        assert_eq!(seen, total(&during, "ended_total"), "{model}");
        // The figures are those of the server, even if a child answers.
        let pid = server.pid();
        let threads = during
            .lines()
            .find_map(|line| line.strip_prefix("process_threads "))
            .unwrap();
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let now = tasks.count();
        assert!(
            model != "forking" || (threads == "1" && now == 1),
            "{threads}"
        );
        server.signal("TERM");
        drop(clients);
    }
}

#[test]
fn lame_is_not_ready_and_serves() {
    for model in MODELS {
        let mut server = start(model, &[]);
        let ready = |server: &Server| get(metrics(server), "/readyz");
        let endpoint = server.endpoints[0].clone();
        // A client can connect shortly before the server serves.
        eventually(|| ready(&server).0 == 200);
        assert_eq!(
            ready(&server),
            (200, format!("{endpoint}: ready, serving\n")),
            "{model}"
        );
        server.type_in("lame");
        assert_eq!(server.says(), format!("{endpoint}: lame_duck"));
        assert_eq!(
            ready(&server),
            (503, format!("{endpoint}: not ready, lame_duck\n"))
        );
        assert_eq!(get(metrics(&server), "/livez"), (200, "alive\n".into()));
        let mut one = client(&server, 0);
        one.write_all(b"on").unwrap();
        let name = one.local_addr().unwrap();
        hear(&mut one, format!("{name} on").as_bytes());
        server.type_in("list");
        assert!(server.says().contains(", lame_duck, 1 of "), "{model}");
        while !server.says().contains(&name.to_string()) {}
        server.type_in("ready");
        assert_eq!(server.says(), format!("{endpoint}: serving"));
        assert_eq!(ready(&server).0, 200);
        server.type_in("quit");
        assert_eq!(server.says(), "stopping");
        assert!(server.wait().success(), "{model}");
    }
}

#[test]
fn a_drain_is_told_to_its_end() {
    for model in MODELS {
        // The drain waits for a handler that is within a message.
        let args = [
            &["upper", "-c", model, "-l", "tcp://127.0.0.1:0"][..],
            &["--metrics", "tcp://127.0.0.1:0"],
        ];
        let mut server = Server::start(&args.concat(), 2);
        let mut one = client(&server, 0);
        one.write_all(b"a").unwrap();
        hear(&mut one, b"A");
        server.signal("TERM");
        let told = metrics(&server).to_owned();
        eventually(|| get(&told, "/readyz").0 == 503);
        let (_, reason) = get(&told, "/readyz");
        assert!(reason.ends_with(": not ready, draining\n"), "{reason}");
        assert_eq!(get(&told, "/livez").0, 200);
        one.write_all(b"b").unwrap();
        hear(&mut one, b"B");
        let during = get(&told, "/metrics").1;
        let draining = figure(&during, "socketserver_state", "state=\"draining\"");
        assert_eq!(draining, 1.0, "{model}");
        assert_eq!(figure(&during, "socketserver_requests_active", ""), 1.0);
        drop(one);
        assert!(server.wait().success(), "{model}");
        assert!(try_get(&told, "/livez").is_err(), "it has ended with them");
    }
}

#[test]
fn a_signal_makes_it_lame_for_a_time() {
    for model in MODELS {
        let mut server = start(model, &["--lame-duck-time", "1h", "--drain-timeout", "0s"]);
        let told = metrics(&server).to_owned();
        eventually(|| get(&told, "/readyz").0 == 200);
        server.signal("TERM");
        eventually(|| get(&told, "/readyz").0 == 503);
        let (_, reason) = get(&told, "/readyz");
        assert!(
            reason.ends_with(": not ready, lame_duck\n"),
            "{model}: {reason}"
        );
        let mut new = client(&server, 0);
        new.write_all(b"hi").unwrap();
        assert!(new.read(&mut [0; 64]).unwrap() > 0, "{model}");
        // The console command ends the lame-duck time that the signal began.
        server.type_in("drain");
        server.says();
        drop(new);
        assert!(server.wait().success(), "{model}");
    }
}

/// A client of the metrics endpoint that sends slowly, or never, takes no slot of the servers and
/// does not delay their end.
#[test]
fn hostile_collectors_hold_only_their_places() {
    for model in MODELS {
        let mut server = start(model, &["--drain-timeout", "10s"]);
        let address = metrics(&server).to_owned();
        let mut hostile: Vec<_> = (0..100)
            .map(|_| {
                let mut stream = TcpStream::connect(&address).unwrap();
                // The server has closed some of the connections already.
                let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nX: ");
                stream
            })
            .collect();
        let mut one = client(&server, 0);
        one.write_all(b"x").unwrap();
        let name = one.local_addr().unwrap();
        hear(&mut one, format!("{name} x").as_bytes());
        drop(one);
        if model != "sequential" {
            // The hostile clients have 5 seconds, and then the endpoint serves another client.
            eventually(|| {
                for stream in &mut hostile {
                    let _ = stream.write_all(b"x");
                }
                try_get(&address, "/livez").is_ok_and(|(status, _)| status == 200)
            });
        }
        let more = TcpStream::connect(&address).unwrap();
        let start = Instant::now();
        server.signal("TERM");
        assert!(server.wait().success(), "{model}");
        let lasted = start.elapsed();
        assert!(lasted < Duration::from_secs(5), "{model}: {lasted:?}");
        drop((more, hostile));
    }
}

#[test]
fn a_unix_socket_is_private_and_curl_reads_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metrics.sock");
    let endpoint = format!("unix://{}", path.display());
    let args = ["upper", "-l", "tcp://127.0.0.1:0", "--metrics", &endpoint];
    let server = Server::start(&args, 2);
    assert_eq!(server.endpoints[1], format!("{endpoint} (metrics)"));
    let mode = path.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "HEAD /readyz HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(split(&answer), (200, String::new()));

    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "20", "--unix-socket"])
        .arg(&path);
    for (args, expected) in [
        (&["http://localhost/livez"][..], "alive\n"),
        (
            &["-o", "/dev/null", "-w", "%{http_code}", "http://h/no"],
            "404",
        ),
        (
            &[
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                "-d",
                "x",
                "http://h/readyz",
            ],
            "405",
        ),
        (
            &[
                "-I",
                "-o",
                "/dev/null",
                "-w",
                "%{size_header}",
                "http://h/metrics",
            ],
            "",
        ),
    ] {
        let mut command = Command::new("curl");
        command.args(curl.get_args());
        let Some(output) = common::run(&mut command, args, b"") else {
            return;
        };
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(text(&output.stdout).starts_with(expected), "{args:?}");
    }
}

#[test]
fn what_cannot_be_watched_is_said() {
    let fails = |args: &[&str]| {
        let output = common::run(&mut socketserver(), args, b"").unwrap();
        assert!(!output.status.success());
        text(&output.stderr)
    };
    let error = fails(&["upper", "--metrics", "udp://127.0.0.1:0"]);
    assert!(error.contains("HTTP needs connections"), "{error}");
    let error = fails(&["upper", "--metrics", "9100"]);
    assert!(error.contains("tcp://HOST:PORT"), "{error}");
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("tcp://{}", busy.local_addr().unwrap());
    let listen = ["upper", "-l", "tcp://127.0.0.1:0", "--metrics", &endpoint];
    let error = fails(&listen);
    assert!(error.contains("for metrics"), "{error}");
    assert!(error.contains("address in use"), "{error}");
}

#[test]
fn who_shows_figures_to_all_is_warned() {
    let listen = ["upper", "-l", "tcp://127.0.0.1:0"];
    let server = Server::start(
        &[&listen[..], &["--metrics", "tcp://0.0.0.0:0"]].concat(),
        2,
    );
    let warning = server.logged("can read the statistics");
    assert!(warning.contains("127.0.0.1 or unix:///path"), "{warning}");
    // The server serves the client.
    assert!(!connect(&[&server.endpoints[0]], b"a\n").stdout.is_empty());
}
