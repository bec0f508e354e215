//! Metrics and readiness as a scraper sees them: over HTTP, parsed by a parser that is independent
//! of the library.

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
use common::{TIMEOUT, eventually, under_each_model};
use exposition::Exposition;
use socketserver::metrics::Metrics;
use socketserver::transport::Tcp;
use socketserver::{
    Concurrency, Connection, OverloadPolicy, Sequential, Server, TcpServer, Threading,
    ThreadingTcpServer, ThreadingUdpServer, handler_fn,
};

/// Starts a metrics server, as the programs have one.
fn endpoint(metrics: &Metrics) -> Running {
    endpoint_with(
        metrics,
        OverloadPolicy::Queue {
            patience: TIMEOUT,
            places: 8,
        },
    )
}

fn endpoint_with(metrics: &Metrics, overload_policy: OverloadPolicy) -> Running {
    let server = ThreadingTcpServer::builder()
        .concurrency(
            Threading::new()
                .max_threads(2)
                .overload_policy(overload_policy),
        )
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

/// Sends the request bytes, and reads the answer to its end.
#[track_caller]
fn exchange(endpoint: &Running, request: &[u8]) -> Answer {
    let mut client = endpoint.client();
    client.send(request).unwrap();
    answer(client)
}

#[track_caller]
fn answer(client: Client) -> Answer {
    let text = String::from_utf8(client.read_rest().unwrap()).unwrap();
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
    let answer = exchange(endpoint, request.as_bytes());
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

fn metrics_are_consistent<C: Concurrency>(model: C) {
    let server = Server::<Tcp, C>::builder()
        .concurrency(model)
        .bind("127.0.0.1:0", echo())
        .unwrap();
    let metrics = Metrics::new();
    metrics.register("echo", &server.handle());
    let running = Running::start(server);
    let monitor = endpoint(&metrics);
    let value = |name: &str, more: &[(&str, &str)]| {
        let labels = [&[("server", "echo")], more].concat();
        scrape(&monitor).value(name, &labels)
    };
    let before = scrape(&monitor);
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
    let during = scrape(&monitor);
    assert_eq!(during.value("socketserver_requests_active", &echo), 4.0);
    // Before any of the requests has ended.
    assert_eq!(
        during.value("socketserver_received_bytes_total", &echo),
        24.0
    );
    // The client may receive the bytes before the server has counted them.
    eventually(TIMEOUT, "all bytes to be counted", || {
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
        client.read_rest().unwrap();
    }
    eventually(TIMEOUT, "two requests to end", || {
        value("socketserver_requests_active", &[]) == 2.0
    });
    let after = scrape(&monitor);
    let ended = after.sum("socketserver_requests_ended_total", &echo);
    let rejected = after.sum("socketserver_requests_rejected_total", &echo);
    assert_eq!((ended, rejected), (2.0, 0.0));
    assert_eq!(
        after.value("socketserver_requests_accepted_total", &echo),
        ended + rejected + after.value("socketserver_requests_active", &echo)
    );
    assert_eq!(
        after.value("socketserver_received_bytes_total", &echo),
        24.0
    );
    let count = after.value("socketserver_request_duration_seconds_count", &echo);
    assert_eq!(count, ended);
    let sum = after.value("socketserver_request_duration_seconds_sum", &echo);
    assert!(sum > 0.0 && sum < 2.0 * TIMEOUT.as_secs_f64(), "{sum}");
}

fn drain_is_visible_until_its_end<C: Concurrency>(model: C) {
    let server = Server::<Tcp, C>::builder()
        .concurrency(model)
        .bind("127.0.0.1:0", echo())
        .unwrap();
    let metrics = Metrics::new();
    metrics.register("echo", &server.handle());
    let running = Running::start(server);
    let monitor = endpoint(&metrics);
    let mut client = running.client();
    client.ask("hello");
    assert_eq!(get(&monitor, "/readyz").status, 200);
    running.handle.drain(TIMEOUT * 3);
    let answer = get(&monitor, "/readyz");
    assert_eq!(
        (answer.status, &*answer.body),
        (503, "echo: not ready, draining\n")
    );
    assert_eq!(get(&monitor, "/livez").status, 200);
    let echo = [("server", "echo")];
    eventually(TIMEOUT, "the drain to be counted", || {
        scrape(&monitor).value("socketserver_drains_total", &echo) == 1.0
    });
    assert!(scrape(&monitor).value("socketserver_drain_duration_seconds", &echo) > 0.0);
    drop(client);
    running.wait_until_stopped().unwrap();
    let finished = [("server", "echo"), ("outcome", "finished")];
    let end = scrape(&monitor);
    assert_eq!(
        end.value("socketserver_drain_requests_total", &finished),
        1.0
    );
    let closed = [("server", "echo"), ("state", "closed")];
    assert_eq!(end.value("socketserver_state", &closed), 1.0);
    assert_eq!(get(&monitor, "/livez").status, 503);
}

under_each_model! {
    metrics_are_consistent
    drain_is_visible_until_its_end
}

#[test]
fn byte_counters_never_decrease() {
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
    eventually(TIMEOUT, "all to end", || running.handle.active_count() == 0);
    assert_eq!(received(), sent, "bytes are counted exactly once");
}

/// Every rendered metric is in the table of the manual, and every metric of the table is rendered.
#[test]
fn documented_metrics_are_the_rendered_ones() {
    let metrics = Metrics::new();
    let tcp = TcpServer::bind("127.0.0.1:0", echo()).unwrap();
    let udp = common::running::echo_datagram();
    let udp = ThreadingUdpServer::bind("127.0.0.1:0", udp).unwrap();
    metrics.register("tcp", &tcp.handle());
    metrics.register("udp", &udp.handle());
    let end = std::time::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    metrics.certificates(move || vec![("a \"b\".pem".into(), end)]);
    let name = [("certificate", "a \"b\".pem")];
    let metric = "socketserver_tls_certificate_end_timestamp_seconds";
    let value = Exposition::parse(&metrics.render()).value(metric, &name);
    assert_eq!(value, 1_800_000_000.0);
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

    // The listed values of the labels are the existing ones.
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
fn names_are_escaped_and_a_second_registration_replaces_the_first() {
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
    let monitor = endpoint(&metrics);
    assert_eq!(get(&monitor, "/readyz").body.lines().count(), 1);
}

/// A condition of the application makes the process not ready, and the response names the
/// condition.
#[test]
fn failed_condition_makes_the_process_not_ready() {
    let metrics = Metrics::new();
    let server = Running::start(TcpServer::bind("127.0.0.1:0", echo()).unwrap());
    metrics.register("echo", &server.handle);
    eventually(TIMEOUT, "serving", || server.handle.is_ready());
    let reason = Arc::new(Mutex::new(None));
    let current = reason.clone();
    metrics.ready_if("the\ndisk", move || match *current.lock().unwrap() {
        None => Ok(()),
        Some("panic") => panic!("on request"),
        Some(reason) => Err(reason.to_owned()),
    });
    let monitor = endpoint(&metrics);
    let readyz = || get(&monitor, "/readyz");
    assert_eq!(readyz().status, 200);
    for (why, line) in [
        ("it is full", "the\\ndisk: not ready, it is full\n"),
        ("panic", "the\\ndisk: not ready, panicked: on request\n"),
    ] {
        // A panic poisons the lock.
        let mut reason = reason.lock().unwrap_or_else(PoisonError::into_inner);
        *reason = Some(why);
        drop(reason);
        let answer = readyz();
        assert_eq!(answer.status, 503, "{why}");
        assert!(answer.body.ends_with(line), "{}", answer.body);
    }
    assert_eq!(get(&monitor, "/livez").status, 200);
    metrics.ready_if("the\ndisk", || Ok(()));
    assert_eq!(readyz().status, 200);
}

#[test]
fn prometheus_client_parses_the_output() {
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
    // A Python without the module exits without reading.
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
fn invalid_requests_get_the_right_status() {
    let metrics = Metrics::new();
    let monitor = endpoint(&metrics);
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
        // Without a registered server, the process is neither ready nor live.
        ("GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n", 503),
        ("GET /livez HTTP/1.1\r\nHost: a\r\n\r\n", 503),
    ] {
        let answer = exchange(&monitor, request.as_bytes());
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
fn head_equals_get_without_a_body() {
    let metrics = Metrics::new();
    let server = TcpServer::bind("127.0.0.1:0", echo()).unwrap();
    metrics.register("echo", &server.handle());
    let monitor = endpoint(&metrics);
    for path in ["/metrics", "/readyz", "/livez", "/nothing"] {
        let request = format!("HEAD {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        let head = exchange(&monitor, request.as_bytes());
        let get = get(&monitor, path);
        assert_eq!((head.status, &*head.body), (get.status, ""));
        let length: usize = head.header("Content-Length").parse().unwrap();
        assert!(length.abs_diff(get.body.len()) < 100, "{path}: {length}");
        assert_eq!(head.header("Content-Type"), get.header("Content-Type"));
    }
    let type_of = get(&monitor, "/metrics").header("Content-Type").to_owned();
    assert_eq!(type_of, "text/plain; version=0.0.4; charset=utf-8");
}

#[test]
fn too_long_header_is_rejected() {
    let metrics = Metrics::new();
    let monitor = endpoint(&metrics);
    let long = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "a".repeat(100_000));
    // The server reads only a part, and the answer arrives nevertheless.
    assert_eq!(exchange(&monitor, long.as_bytes()).status, 431);
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(100));
    assert_eq!(exchange(&monitor, many.as_bytes()).status, 431);
}

/// Single bytes do not extend the time.
#[test]
fn slow_request_ends_after_five_seconds_and_occupies_one_slot() {
    let metrics = Metrics::new();
    let server = ThreadingTcpServer::bind("127.0.0.1:0", echo()).unwrap();
    metrics.register("echo", &server.handle());
    let running = Running::start(server);
    let monitor = endpoint_with(&metrics, OverloadPolicy::Reject);
    let start = Instant::now();
    let mut slow: Vec<_> = (0..2).map(|_| monitor.client()).collect();
    for client in &mut slow {
        client.send(b"GET /metrics HTTP/1.1\r\nX: ").unwrap();
    }
    eventually(TIMEOUT, "the limit to be reached", || {
        monitor.handle.active_count() == 2
    });
    // A further client is rejected at once, and the monitored server is not affected.
    assert!(monitor.client().was_closed_by_server());
    assert_eq!(running.client().ask("hello"), "hello");
    while monitor.handle.active_count() > 0 {
        assert!(
            start.elapsed() < TIMEOUT,
            "the server does not end the slow requests"
        );
        for client in &mut slow {
            let _ = client.send(b"x");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let lasted = start.elapsed();
    assert!(lasted >= Duration::from_secs(5), "{lasted:?}");
    assert!(lasted < Duration::from_secs(9), "{lasted:?}");
    assert_eq!(get(&monitor, "/metrics").status, 200);
}

/// Durations are recorded from the registration on. Requests that ended before are not included.
#[test]
fn durations_count_from_the_registration() {
    let server = TcpServer::bind(
        "127.0.0.1:0",
        handler_fn(|conn: &mut Connection| Ok(conn.write_all(b"x")?)),
    )
    .unwrap();
    let handle = server.handle();
    let running = Running::start(server);
    let ended = |n: u64| {
        drop(running.client().read_rest());
        eventually(TIMEOUT, "the request to end", || {
            handle.counters().ended == n
        });
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

/// The endpoint is a normal handler, and also runs on a sequential server.
#[test]
fn sequential_server_can_serve_metrics() {
    let metrics = Metrics::new();
    let server = Server::<Tcp, Sequential>::builder()
        .bind("127.0.0.1:0", metrics.endpoint())
        .unwrap();
    metrics.register("itself", &server.handle());
    let monitor = Running::start(server);
    let labels = [("server", "itself")];
    assert_eq!(
        scrape(&monitor).value("socketserver_requests_active", &labels),
        1.0
    );
    // A client that sends nothing is not an error.
    monitor.client().half_close().unwrap();
    eventually(TIMEOUT, "the request to end", || {
        monitor.handle.counters().completed == 2
    });
}
