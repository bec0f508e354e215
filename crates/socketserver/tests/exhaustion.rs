//! Out of descriptors, out of threads: clients wait, and nothing worse.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says why it fails, or is skipped"
)]

mod common;

use std::io::Write;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use common::client::{Client, Endpoint};
use common::process::{Companion, alone, errand, stat_field, told};
use common::running::{Running, echo, echo_datagram};
use common::{PATIENCE, eventually};
use rustix::net::Shutdown;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socketserver::{Event, Threading, ThreadingTcpServer, ThreadingUdpServer};

/// Processor time that a process has used, in ticks of ten milliseconds.
fn ticks(pid: u32) -> u64 {
    // Of user and of system, by their numbers in proc(5).
    let field = |number| stat_field(pid, number).unwrap().parse::<u64>().unwrap();
    field(14) + field(15)
}

#[test]
fn out_of_descriptors_clients_wait_and_all_are_served() {
    const NAME: &str = "out_of_descriptors_clients_wait_and_all_are_served";
    if errand().is_some() {
        return serve_with_few_descriptors();
    }
    let mut sidecar = Companion::start(NAME, "serve");
    let endpoint = Endpoint::Tcp(sidecar.hears("address ").parse().unwrap());
    let mut clients: Vec<_> = (0..100)
        .map(|_| Client::connect(&endpoint).unwrap())
        .collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.say(&format!("client {n}")).unwrap();
    }
    sidecar.hears("paused");
    // The first are served while the rest wait: for them nothing is lost.
    let mut first = clients.remove(0);
    assert_eq!(first.hear().unwrap().as_deref(), Some("client 0"));

    // A second of having no room costs next to nothing.
    let (before, since) = (ticks(sidecar.pid()), Instant::now());
    while since.elapsed() < Duration::from_secs(1) {
        assert_eq!(first.ask("are you busy?"), "are you busy?");
        std::thread::sleep(Duration::from_millis(100));
    }
    let used = ticks(sidecar.pid()) - before;
    assert!(used <= 20, "{used} ticks of a hundred");
    drop(first);

    for (n, mut client) in clients.into_iter().enumerate() {
        assert_eq!(client.hear().unwrap(), Some(format!("client {}", n + 1)));
    }
    sidecar.tell("report");
    let report = sidecar.hears("report ");
    let figures: Vec<u64> = report
        .split(' ')
        .map(|figure| figure.parse().unwrap())
        .collect();
    let [pauses, errors, accepted] = figures[..] else {
        panic!("{report}")
    };
    assert_eq!((pauses, accepted), (1, 100), "{report}");
    // One at the beginning, a handful in that second, and one for each that left.
    assert!((1..=150).contains(&errors), "{report}");
    sidecar.passes();
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
    assert_eq!(told(), "report");
    eventually(PATIENCE, "the last one to end", || {
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
fn a_request_without_a_thread_waits_for_one() {
    alone("a_request_without_a_thread_waits_for_one", || {
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
        // What threads map for themselves, and keep for the next one, is there from now on.
        let warm = Running::start(ThreadingTcpServer::bind("127.0.0.1:0", echo()).unwrap());
        let threads = || common::process::threads(std::process::id());
        let before = threads();
        assert_eq!(warm.client().ask("hello"), "hello");
        eventually(PATIENCE, "its thread to end", || threads() == before);
        let unlimited = getrlimit(Resource::As);
        let in_use = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = in_use.split(' ').next().unwrap().parse().unwrap();
        // Room for everything but such a stack.
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
        client.say("I can wait").unwrap();
        assert_eq!(events.recv_timeout(PATIENCE).unwrap(), "paused");
        assert_eq!(running.handle.active_count(), 1);
        assert_eq!(running.handle.counters().ended, 0);

        setrlimit(Resource::As, unlimited).unwrap();
        assert_eq!(client.hear().unwrap().as_deref(), Some("I can wait"));
        assert_eq!(running.client().ask("hello"), "hello");
        // Told when nobody is found waiting any more, which takes another look.
        assert_eq!(events.recv_timeout(PATIENCE).unwrap(), "resumed");
    });
}

/// A socket that was shut down from elsewhere is reported as ready for ever, and has nothing.
#[test]
fn a_socket_that_never_has_what_it_promises_is_left_alone() {
    let (sender, pauses) = channel();
    let server = ThreadingUdpServer::builder()
        .on_event(move |event| {
            if let Event::AcceptPaused { error, .. } = event {
                let _ = sender.send(error.to_string());
            }
        })
        .bind("127.0.0.1:0", echo_datagram())
        .unwrap();
    // It says that there is no connection, and does it all the same.
    let _ = rustix::net::shutdown(&server, Shutdown::Read);
    let running = Running::start(server);
    let reason = pauses.recv_timeout(PATIENCE).unwrap();
    assert!(reason.contains("again and again"), "{reason}");
    let attempts = || running.handle.counters().accept_errors;
    eventually(PATIENCE, "a few more attempts", || attempts() > 3);
    // Nothing is left in the queue: that is seen even so.
    let handle = running.handle.clone();
    handle.drain(PATIENCE);
    running.ends().unwrap();
    assert!(handle.drain_report().unwrap().elapsed < PATIENCE / 2);
    assert!(pauses.try_recv().is_err(), "told once");
}

/// No system has room for such a stack.
#[test]
fn a_request_that_never_gets_a_thread_is_refused_in_the_end() {
    let server = ThreadingTcpServer::builder()
        .concurrency(Threading::new().stack_size(1 << 46))
        .bind("127.0.0.1:0", echo())
        .unwrap();
    let running = Running::start(server);
    let mut client = running.client();
    client.say("hello").unwrap();
    let handle = running.handle.clone();
    eventually(PATIENCE, "more than one attempt", || {
        handle.counters().accept_errors > 1
    });
    assert_eq!(handle.active_count(), 1, "it is kept");
    handle.drain(Duration::from_millis(50));
    running.ends().unwrap();
    assert!(client.was_cut());
    let (report, counters) = (handle.drain_report().unwrap(), handle.counters());
    assert_eq!(
        (report.refused, counters.refused, counters.ended),
        (1, 1, 0)
    );
    assert_eq!(handle.active_count(), 0);
}
