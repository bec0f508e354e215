//! Figures and readiness, as who collects them sees them: over HTTP, read by a parser that is none of
//! the library's.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "../common/mod.rs"]
mod common;
mod exposition;

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::client::Client;
use common::running::{Running, echo};
use common::{PATIENCE, eventually, under_each_model};
use exposition::Exposition;
use socketserver::metrics::Metrics;
use socketserver::transport::Tcp;
use socketserver::{
    Concurrency, Connection, OverloadPolicy, Sequential, Server, TcpServer, Threading,
    ThreadingTcpServer, ThreadingUdpServer, handler_fn,
};

/// A server that answers those who watch, as the programs have one.
fn endpoint(metrics: &Metrics) -> Running {
    let patience = PATIENCE;
    endpoint_with(
        metrics,
        OverloadPolicy::Queue {
            patience,
            places: 8,
        },
    )
}

fn endpoint_with(metrics: &Metrics, at_limit: OverloadPolicy) -> Running {
    let server = ThreadingTcpServer::builder()
        .concurrency(Threading::new().max_threads(2).overload_policy(at_limit))
        .bind("127.0.0.1:0", metrics.endpoint())
        .unwrap();
    Running::start(server)
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        let line = self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        });
        line.unwrap_or_else(|| panic!("no {name} in {}", self.head))
    }
}

/// Sends a request as it is, and reads the answer to its end.
#[track_caller]
fn say(endpoint: &Running, request: &[u8]) -> Answer {
    let mut client = endpoint.client();
    client.send(request).unwrap();
    answer(client)
}

#[track_caller]
fn answer(client: Client) -> Answer {
    let text = String::from_utf8(client.rest().unwrap()).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").expect("an end of the header");
    let status = head.strip_prefix("HTTP/1.1 ").unwrap()[..3]
        .parse()
        .unwrap();
    Answer {
        status,
        head: head.into(),
        body: body.into(),
    }
}

#[track_caller]
fn get(endpoint: &Running, path: &str) -> Answer {
    let request = format!("GET {path} HTTP/1.1\r\nHost: here\r\n\r\n");
    let answer = say(endpoint, request.as_bytes());
    assert_eq!(
        answer.header("Content-Length"),
        answer.body.len().to_string()
    );
    assert_eq!(answer.header("Connection"), "close");
    answer
}

#[track_caller]
fn scrape(endpoint: &Running) -> Exposition {
    let answer = get(endpoint, "/metrics");
    assert_eq!(answer.status, 200);
    Exposition::parse(&answer.body)
}

fn figures_add_up<C: Concurrency>(model: C) {
    let server = Server::<Tcp, C>::builder()
        .concurrency(model)
        .bind("127.0.0.1:0", echo())
        .unwrap();
    let metrics = Metrics::new();
    metrics.register("echo", &server.handle());
    let running = Running::start(server);
    let watching = endpoint(&metrics);
    let value = |name: &str, more: &[(&str, &str)]| {
        let labels = [&[("server", "echo")], more].concat();
        scrape(&watching).value(name, &labels)
    };
    let before = scrape(&watching);
    let echo = [("server", "echo")];
    assert_eq!(
        before.value("socketserver_requests_accepted_total", &echo),
        0.0
    );
    assert_eq!(before.value("socketserver_requests_active", &echo), 0.0);

    let mut clients: Vec<_> = (0..4).map(|_| running.client()).collect();
    for client in &mut clients {
        client.ask("hello");
    }
    let during = scrape(&watching);
    assert_eq!(during.value("socketserver_requests_active", &echo), 4.0);
    // Before any of them has ended.
    assert_eq!(
        during.value("socketserver_received_bytes_total", &echo),
        24.0
    );
    // The client may have them before the server has counted them.
    eventually(PATIENCE, "all that was sent", || {
        value("socketserver_sent_bytes_total", &[]) == 24.0
    });
    assert!(during.value("socketserver_requests_limit", &echo) >= 4.0);
    assert_eq!(
        during.value(
            "socketserver_state",
            &[("server", "echo"), ("state", "serving")]
        ),
        1.0
    );

    for client in clients.drain(..2) {
        client.half_close().unwrap();
        client.rest().unwrap();
    }
    eventually(PATIENCE, "two to end", || {
        value("socketserver_requests_active", &[]) == 2.0
    });
    let after = scrape(&watching);
    let ended = after.sum("socketserver_requests_ended_total", &echo);
    let refused = after.sum("socketserver_requests_rejected_total", &echo);
    assert_eq!((ended, refused), (2.0, 0.0));
    assert_eq!(
        after.value("socketserver_requests_accepted_total", &echo),
        ended + refused + after.value("socketserver_requests_active", &echo)
    );
    assert_eq!(
        after.value("socketserver_received_bytes_total", &echo),
        24.0
    );
    let count = after.value("socketserver_request_duration_seconds_count", &echo);
    assert_eq!(count, ended);
    let sum = after.value("socketserver_request_duration_seconds_sum", &echo);
    assert!(sum > 0.0 && sum < 2.0 * PATIENCE.as_secs_f64(), "{sum}");
}

fn a_drain_is_seen_to_its_end<C: Concurrency>(model: C) {
    let server = Server::<Tcp, C>::builder()
        .concurrency(model)
        .bind("127.0.0.1:0", echo())
        .unwrap();
    let metrics = Metrics::new();
    metrics.register("echo", &server.handle());
    let running = Running::start(server);
    let watching = endpoint(&metrics);
    let mut client = running.client();
    client.ask("hello");
    assert_eq!(get(&watching, "/readyz").status, 200);
    running.handle.drain(PATIENCE * 3);
    let answer = get(&watching, "/readyz");
    assert_eq!(
        (answer.status, &*answer.body),
        (503, "echo: not ready, draining\n")
    );
    assert_eq!(get(&watching, "/livez").status, 200);
    let echo = [("server", "echo")];
    eventually(PATIENCE, "the drain to be counted", || {
        scrape(&watching).value("socketserver_drains_total", &echo) == 1.0
    });
    assert!(scrape(&watching).value("socketserver_drain_duration_seconds", &echo) > 0.0);
    drop(client);
    running.ends().unwrap();
    let finished = [("server", "echo"), ("outcome", "finished")];
    let end = scrape(&watching);
    assert_eq!(
        end.value("socketserver_drain_requests_total", &finished),
        1.0
    );
    let closed = [("server", "echo"), ("state", "closed")];
    assert_eq!(end.value("socketserver_state", &closed), 1.0);
    assert_eq!(get(&watching, "/livez").status, 503);
}

under_each_model! {
    figures_add_up
    a_drain_is_seen_to_its_end
}

#[test]
fn bytes_never_go_back_while_connections_come_and_go() {
    let server = ThreadingTcpServer::bind("127.0.0.1:0", echo()).unwrap();
    let metrics = Metrics::new();
    metrics.register("echo", &server.handle());
    let running = Running::start(server);
    let (endpoint, mut sent) = (running.endpoint.clone(), 0);
    let load = std::thread::spawn(move || {
        for _ in 0..300 {
            let mut client = Client::connect(&endpoint).unwrap();
            client.ask("hello");
            sent += 6;
        }
        sent
    });
    let echo = [("server", "echo")];
    let received = || {
        let text = metrics.render();
        Exposition::parse(&text).value("socketserver_received_bytes_total", &echo)
    };
    let mut last = 0.0;
    while !load.is_finished() {
        let now = received();
        assert!(now >= last, "{now} after {last}");
        last = now;
    }
    let sent = f64::from(load.join().unwrap());
    eventually(PATIENCE, "all to end", || {
        running.handle.active_count() == 0
    });
    assert_eq!(received(), sent, "none is counted twice");
}

/// Whatever is told is in the table of the manual, and the other way round.
#[test]
fn the_table_of_names_is_what_is_rendered() {
    let metrics = Metrics::new();
    let tcp = TcpServer::bind("127.0.0.1:0", echo()).unwrap();
    let udp = common::running::echo_datagram();
    let udp = ThreadingUdpServer::bind("127.0.0.1:0", udp).unwrap();
    metrics.register("tcp", &tcp.handle());
    metrics.register("udp", &udp.handle());
    let end = std::time::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    metrics.certificates(move || vec![("a \"b\".pem".into(), end)]);
    let name = [("certificate", "a \"b\".pem")];
    let told = "socketserver_tls_certificate_end_timestamp_seconds";
    let told = Exposition::parse(&metrics.render()).value(told, &name);
    assert_eq!(told, 1_800_000_000.0);
    let rendered: BTreeSet<_> = Exposition::parse(&metrics.render())
        .families
        .into_iter()
        .map(|family| {
            let labels: BTreeSet<_> = family
                .samples
                .iter()
                .flat_map(|sample| sample.labels.iter().map(|(label, _)| label.clone()))
                .collect();
            assert!(!family.samples.is_empty(), "{} is empty", family.name);
            (family.name, family.kind, labels)
        })
        .collect();
    let table = include_str!("../../src/metrics/names.md");
    let documented: BTreeSet<_> = table
        .lines()
        .skip(2)
        .map(|row| {
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            let name = cells[1].trim_matches('`').to_owned();
            let labels = cells[3].split(", ").filter(|label| !label.is_empty());
            let labels: BTreeSet<_> = labels.map(|l| l.trim_matches('`').to_owned()).collect();
            (name, cells[2].to_owned(), labels)
        })
        .collect();
    assert_eq!(rendered, documented);

    // The values of labels that are listed are those that there are.
    let exposition = Exposition::parse(&metrics.render());
    for (name, label) in [
        ("socketserver_requests_rejected_total", "reason"),
        ("socketserver_requests_ended_total", "reason"),
        ("socketserver_state", "state"),
        ("socketserver_drain_requests_total", "outcome"),
    ] {
        let row = table.lines().find(|row| row.contains(&format!("`{name}`")));
        let meaning = row.unwrap().split('|').nth(4).unwrap();
        let listed: BTreeSet<_> = meaning.split('`').skip(1).step_by(2).collect();
        let values = exposition.values_of(name, label);
        assert_eq!(
            values.iter().map(String::as_str).collect::<BTreeSet<_>>(),
            listed
        );
    }
}

#[test]
fn names_are_escaped_and_a_second_of_a_name_replaces_the_first() {
    let metrics = Metrics::new();
    let one = TcpServer::bind("127.0.0.1:0", echo()).unwrap();
    let two = TcpServer::bind("127.0.0.1:0", echo()).unwrap();
    let name = "a \"name\" with a \\ and\na line";
    metrics.register(name, &one.handle());
    metrics.register(name, &two.handle());
    let exposition = Exposition::parse(&metrics.render());
    assert_eq!(
        exposition.value("socketserver_requests_active", &[("server", name)]),
        0.0
    );
    assert_eq!(metrics.states().len(), 1);
    let watching = endpoint(&metrics);
    assert_eq!(get(&watching, "/readyz").body.lines().count(), 1);
}

/// A condition of the application makes the process not ready, and its name is told.
#[test]
fn a_condition_that_does_not_hold_makes_it_not_ready() {
    let metrics = Metrics::new();
    let server = Running::start(TcpServer::bind("127.0.0.1:0", echo()).unwrap());
    metrics.register("echo", &server.handle);
    eventually(PATIENCE, "serving", || server.handle.is_ready());
    let reason = Arc::new(Mutex::new(None));
    let told = reason.clone();
    metrics.ready_if("the\ndisk", move || match *told.lock().unwrap() {
        None => Ok(()),
        Some("panic") => panic!("as told"),
        Some(reason) => Err(reason.to_owned()),
    });
    let watching = endpoint(&metrics);
    let readyz = || get(&watching, "/readyz");
    assert_eq!(readyz().status, 200);
    for (why, line) in [
        ("it is full", "the\\ndisk: not ready, it is full\n"),
        ("panic", "the\\ndisk: not ready, panicked: as told\n"),
    ] {
        // A panic poisons it.
        let mut reason = reason.lock().unwrap_or_else(PoisonError::into_inner);
        *reason = Some(why);
        drop(reason);
        let answer = readyz();
        assert_eq!(answer.status, 503, "{why}");
        assert!(answer.body.ends_with(line), "{}", answer.body);
    }
    assert_eq!(get(&watching, "/livez").status, 200);
    metrics.ready_if("the\ndisk", || Ok(()));
    assert_eq!(readyz().status, 200);
}

#[test]
fn the_format_is_what_prometheus_reads() {
    let metrics = Metrics::new();
    let server = TcpServer::bind("127.0.0.1:0", echo()).unwrap();
    metrics.register("an \"odd\\name\"", &server.handle());
    let script = "import sys\n\
         try: from prometheus_client.parser import text_string_to_metric_families as parse\n\
         except ImportError: sys.exit(77)\n\
         print(sum(len(f.samples) for f in parse(sys.stdin.read())))";
    let spawned = Command::new("python3")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut python) = spawned else {
        println!("SKIPPED: python3 is not installed");
        return;
    };
    let text = metrics.render();
    // One that lacks the parser leaves without reading.
    let _ = python.stdin.take().unwrap().write_all(text.as_bytes());
    let output = python.wait_with_output().unwrap();
    if output.status.code() == Some(77) {
        println!("SKIPPED: the Python module prometheus_client is not installed");
        return;
    }
    let families = Exposition::parse(&text).families;
    let samples: usize = families.iter().map(|family| family.samples.len()).sum();
    let read = String::from_utf8(output.stdout).unwrap();
    assert_eq!(read.trim(), samples.to_string());
}

#[test]
fn what_is_asked_wrongly_is_answered_so() {
    let metrics = Metrics::new();
    let watching = endpoint(&metrics);
    for (request, status) in [
        ("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", 200),
        ("GET http://a/metrics?b=c HTTP/1.1\r\nHost: a\r\n\r\n", 200),
        ("GET /metrics HTTP/1.0\r\n\r\n", 200),
        ("GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n", 404),
        ("GET /metrics/ HTTP/1.1\r\nHost: a\r\n\r\n", 404),
        (
            "POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
            405,
        ),
        ("DELETE /readyz HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        ("get /readyz HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        ("GET /metrics HTTP/1.1\r\n\r\n", 400),
        ("hello\r\n\r\n", 400),
        ("\u{16}\u{3}\u{1}", 400),
        // No server is none that is ready, or live.
        ("GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n", 503),
        ("GET /livez HTTP/1.1\r\nHost: a\r\n\r\n", 503),
    ] {
        let answer = say(&watching, request.as_bytes());
        assert_eq!(answer.status, status, "{request}");
        assert_eq!(
            answer.header("Content-Length"),
            answer.body.len().to_string()
        );
        if status == 405 {
            assert_eq!(answer.header("Allow"), "GET, HEAD");
        }
    }
}

#[test]
fn head_is_get_without_a_body() {
    let metrics = Metrics::new();
    let server = TcpServer::bind("127.0.0.1:0", echo()).unwrap();
    metrics.register("echo", &server.handle());
    let watching = endpoint(&metrics);
    for path in ["/metrics", "/readyz", "/livez", "/nothing"] {
        let request = format!("HEAD {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        let head = say(&watching, request.as_bytes());
        let get = get(&watching, path);
        assert_eq!((head.status, &*head.body), (get.status, ""));
        let length: usize = head.header("Content-Length").parse().unwrap();
        assert!(length.abs_diff(get.body.len()) < 100, "{path}: {length}");
        assert_eq!(head.header("Content-Type"), get.header("Content-Type"));
    }
    let type_of = get(&watching, "/metrics").header("Content-Type").to_owned();
    assert_eq!(type_of, "text/plain; version=0.0.4; charset=utf-8");
}

#[test]
fn a_header_that_is_too_long_is_refused() {
    let metrics = Metrics::new();
    let watching = endpoint(&metrics);
    let long = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "a".repeat(100_000));
    // It has read a part only, and the answer arrives all the same.
    assert_eq!(say(&watching, long.as_bytes()).status, 431);
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(100));
    assert_eq!(say(&watching, many.as_bytes()).status, 431);
}

/// A byte now and then does not extend the time.
#[test]
fn who_trickles_is_cut_after_five_seconds_and_holds_only_his_place() {
    let metrics = Metrics::new();
    let server = ThreadingTcpServer::bind("127.0.0.1:0", echo()).unwrap();
    metrics.register("echo", &server.handle());
    let running = Running::start(server);
    let watching = endpoint_with(&metrics, OverloadPolicy::Reject);
    let start = Instant::now();
    let mut trickling: Vec<_> = (0..2).map(|_| watching.client()).collect();
    for client in &mut trickling {
        client.send(b"GET /metrics HTTP/1.1\r\nX: ").unwrap();
    }
    eventually(PATIENCE, "all places to be taken", || {
        watching.handle.active_count() == 2
    });
    // One more is turned away, at once, and the server that is watched does not notice.
    assert!(watching.client().was_cut());
    assert_eq!(running.client().ask("hello"), "hello");
    while watching.handle.active_count() > 0 {
        assert!(start.elapsed() < PATIENCE, "it goes on");
        for client in &mut trickling {
            let _ = client.send(b"x");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let lasted = start.elapsed();
    assert!(lasted >= Duration::from_secs(5), "{lasted:?}");
    assert!(lasted < Duration::from_secs(9), "{lasted:?}");
    assert_eq!(get(&watching, "/metrics").status, 200);
}

/// Durations are kept from when they are asked for: what ended before is not among them.
#[test]
fn durations_count_from_when_the_server_was_added() {
    let server = TcpServer::bind(
        "127.0.0.1:0",
        handler_fn(|conn: &mut Connection| Ok(conn.write_all(b"x")?)),
    )
    .unwrap();
    let handle = server.handle();
    let running = Running::start(server);
    let ended = |n: u64| {
        drop(running.client().rest());
        eventually(PATIENCE, "it to end", || handle.counters().ended == n);
    };
    ended(1);
    let metrics = Metrics::new();
    metrics.register("one", &handle);
    ended(2);
    let exposition = Exposition::parse(&metrics.render());
    let one = [("server", "one")];
    let count = exposition.value("socketserver_request_duration_seconds_count", &one);
    assert_eq!(count, 1.0);
    assert_eq!(
        exposition.sum("socketserver_requests_ended_total", &one),
        2.0
    );
}

/// The endpoint is a handler like any other: one at a time does as well.
#[test]
fn a_sequential_server_can_answer_too() {
    let metrics = Metrics::new();
    let server = Server::<Tcp, Sequential>::builder()
        .bind("127.0.0.1:0", metrics.endpoint())
        .unwrap();
    metrics.register("itself", &server.handle());
    let watching = Running::start(server);
    let live = [("server", "itself")];
    assert_eq!(
        scrape(&watching).value("socketserver_requests_active", &live),
        1.0
    );
    // Who says nothing is no error.
    watching.client().half_close().unwrap();
    eventually(PATIENCE, "it to end", || {
        watching.handle.counters().completed == 2
    });
}
