//! Without free descriptors or threads, clients wait and are served later.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test prints why it fails or is skipped"
)]

mod common;

use std::io::Write;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use common::client::{Client, Endpoint};
use common::process::{TestProcess, child_role, in_own_process, read_stdin_line, stat_field};
use common::running::{Running, echo, echo_datagram};
use common::{TIMEOUT, eventually};
use rustix::net::Shutdown;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socketserver::{Event, Threading, ThreadingTcpServer, ThreadingUdpServer};

/// Returns the CPU time of a process in ticks of 10 ms.
fn ticks(pid: u32) -> u64 {
    // User and system time, by their field numbers in proc(5).
    let field = |number| stat_field(pid, number).unwrap().parse::<u64>().unwrap();
    field(14) + field(15)
}

#[test]
fn clients_wait_without_descriptors_and_all_are_served() {
    const NAME: &str = "clients_wait_without_descriptors_and_all_are_served";
    if child_role().is_some() {
        return serve_with_few_descriptors();
    }
    let mut sidecar = TestProcess::start(NAME, "serve");
    let endpoint = Endpoint::Tcp(sidecar.expect_line("address ").parse().unwrap());
    let mut clients: Vec<_> = (0..100)
        .map(|_| Client::connect(&endpoint).unwrap())
        .collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.send_line(&format!("client {n}")).unwrap();
    }
    sidecar.expect_line("paused");
    // The first clients are served while the rest wait.
    let mut first = clients.remove(0);
    assert_eq!(first.receive_line().unwrap().as_deref(), Some("client 0"));

    // One second without descriptors costs almost no CPU time.
    let (before, since) = (ticks(sidecar.pid()), Instant::now());
    while since.elapsed() < Duration::from_secs(1) {
        assert_eq!(first.ask("still there?"), "still there?");
        std::thread::sleep(Duration::from_millis(100));
    }
    let used = ticks(sidecar.pid()) - before;
    assert!(used <= 20, "{used} of 100 ticks");
    drop(first);

    for (n, mut client) in clients.into_iter().enumerate() {
        assert_eq!(
            client.receive_line().unwrap(),
            Some(format!("client {}", n + 1))
        );
    }
    sidecar.send_line("report");
    let report = sidecar.expect_line("report ");
    let numbers: Vec<u64> = report
        .split(' ')
        .map(|number| number.parse().unwrap())
        .collect();
    let [pauses, errors, accepted] = numbers[..] else {
        panic!("{report}")
    };
    assert_eq!((pauses, accepted), (1, 100), "{report}");
    // One error at the beginning, a few in that second, and one for each client that left.
    assert!((1..=150).contains(&errors), "{report}");
    sidecar.assert_passed();
}

fn serve_with_few_descriptors() {
    let (sender, pauses) = channel();
    let server = ThreadingTcpServer::builder()
        .on_event(move |event| {
            if let Event::AcceptPaused { .. } = event {
                let _ = sender.send(());
                println!("paused");
            }
        })
        .bind("127.0.0.1:0", echo())
        .unwrap();
    let hard = getrlimit(Resource::Nofile).maximum;
    let few = Rlimit {
        current: Some(32),
        maximum: hard,
    };
    setrlimit(Resource::Nofile, few).unwrap();
    println!("address {}", server.local_addr());
    let running = Running::start(server);
    assert_eq!(read_stdin_line(), "report");
    eventually(TIMEOUT, "the last one to end", || {
        running.handle.active_count() == 0
    });
    let counters = running.handle.counters();
    let pauses = pauses.try_iter().count();
    println!(
        "report {pauses} {} {}",
        counters.accept_errors, counters.accepted
    );
    let _ = std::io::stdout().flush();
}

#[test]
fn request_waits_for_a_thread() {
    in_own_process("request_waits_for_a_thread", || {
        const STACK: usize = 256 << 20;
        let (sender, events) = channel();
        let server = ThreadingTcpServer::builder()
            .concurrency(Threading::new().stack_size(STACK))
            .on_event(move |event| {
                let _ = match event {
                    Event::AcceptPaused { .. } => sender.send("paused"),
                    Event::AcceptResumed { .. } => sender.send("resumed"),
                    _ => Ok(()),
                };
            })
            .bind("127.0.0.1:0", echo())
            .unwrap();
        let running = Running::start(server);
        // From here on, memory that threads map once and keep for later threads is mapped.
        let warm = Running::start(ThreadingTcpServer::bind("127.0.0.1:0", echo()).unwrap());
        let threads = || common::process::threads(std::process::id());
        let before = threads();
        assert_eq!(warm.client().ask("hello"), "hello");
        eventually(TIMEOUT, "the thread to end", || threads() == before);
        let unlimited = getrlimit(Resource::As);
        let in_use = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = in_use.split(' ').next().unwrap().parse().unwrap();
        // Enough address space for everything but such a stack.
        let current = Some(pages * 4096 + (160 << 20));
        setrlimit(
            Resource::As,
            Rlimit {
                current,
                ..unlimited
            },
        )
        .unwrap();

        let mut client = running.client();
        client.send_line("waiting").unwrap();
        assert_eq!(events.recv_timeout(TIMEOUT).unwrap(), "paused");
        assert_eq!(running.handle.active_count(), 1);
        assert_eq!(running.handle.counters().ended, 0);

        setrlimit(Resource::As, unlimited).unwrap();
        assert_eq!(client.receive_line().unwrap().as_deref(), Some("waiting"));
        assert_eq!(running.client().ask("hello"), "hello");
        // Reported when no request waits any more, which takes another check.
        assert_eq!(events.recv_timeout(TIMEOUT).unwrap(), "resumed");
    });
}

/// A socket that another descriptor has shut down is reported as ready forever, but has no data.
#[test]
fn spurious_readiness_pauses_the_accept_loop() {
    let (sender, pauses) = channel();
    let server = ThreadingUdpServer::builder()
        .on_event(move |event| {
            if let Event::AcceptPaused { error, .. } = event {
                let _ = sender.send(error.to_string());
            }
        })
        .bind("127.0.0.1:0", echo_datagram())
        .unwrap();
    // The call returns an error because there is no connection, but shuts the socket down.
    let _ = rustix::net::shutdown(&server, Shutdown::Read);
    let running = Running::start(server);
    let reason = pauses.recv_timeout(TIMEOUT).unwrap();
    assert!(reason.contains("again and again"), "{reason}");
    let attempts = || running.handle.counters().accept_errors;
    eventually(TIMEOUT, "a few more attempts", || attempts() > 3);
    // The drain detects nevertheless that the queue is empty.
    let handle = running.handle.clone();
    handle.drain(TIMEOUT);
    running.wait_until_stopped().unwrap();
    assert!(handle.drain_report().unwrap().elapsed < TIMEOUT / 2);
    assert!(pauses.try_recv().is_err(), "reported more than once");
}

/// No system has enough address space for such a stack.
#[test]
fn request_that_never_gets_a_thread_is_rejected_by_a_drain() {
    let server = ThreadingTcpServer::builder()
        .concurrency(Threading::new().stack_size(1 << 46))
        .bind("127.0.0.1:0", echo())
        .unwrap();
    let running = Running::start(server);
    let mut client = running.client();
    client.send_line("hello").unwrap();
    let handle = running.handle.clone();
    eventually(TIMEOUT, "more than one attempt", || {
        handle.counters().accept_errors > 1
    });
    assert_eq!(handle.active_count(), 1, "the request stays queued");
    handle.drain(Duration::from_millis(50));
    running.wait_until_stopped().unwrap();
    assert!(client.was_closed_by_server());
    let (report, counters) = (handle.drain_report().unwrap(), handle.counters());
    assert_eq!(
        (report.refused, counters.refused, counters.ended),
        (1, 1, 0)
    );
    assert_eq!(handle.active_count(), 0);
}
