//! Reports of a server about itself: its state, the events of its life cycle, and totals by reason.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::running::{Running, echo};
use common::{TIMEOUT, eventually, under_each_model};
use socketserver::transport::Tcp;
use socketserver::{
    Admission, Concurrency, Connection, Event, OverloadPolicy, Sequential, Server, ServerGroup,
    ServerState, TcpServer, Threading, ThreadingTcpServer, handler_fn,
};

/// Describes the events of a server's life cycle.
fn describe(event: &Event<'_>) -> Option<String> {
    Some(match event {
        Event::StateChanged { from, to } => format!("{from} -> {to}"),
        Event::DrainStarted { live, .. } => format!("drain started, live {live}"),
        Event::DrainBacklogTaken { queued, refused } => {
            format!("backlog taken, queued {queued}, rejected {refused}")
        }
        Event::ListenerClosed { address } => {
            // The address is free by now.
            let address = address.as_inet().unwrap();
            drop(std::net::TcpListener::bind(address).unwrap());
            "listener closed".into()
        }
        Event::DrainDeadlineReached { live } => format!("cancelling {live}"),
        Event::DrainKilled { live } => format!("killed {live}"),
        Event::DrainEnded(report) => format!("drain ended, cancelled {}", report.cancelled),
        _ => return None,
    })
}

fn with_events<C: Concurrency>(model: C) -> (socketserver::Builder<Tcp, C>, Receiver<String>) {
    let (sender, events) = mpsc::channel();
    let builder = Server::<Tcp, C>::builder()
        .concurrency(model)
        .on_event(move |event| {
            if let Some(text) = describe(event) {
                let _ = sender.send(text);
            }
        });
    (builder, events)
}

#[track_caller]
fn expect_events(events: &Receiver<String>, expected: &[&str]) {
    for expected in expected {
        assert_eq!(events.recv_timeout(TIMEOUT).as_deref(), Ok(*expected));
    }
}

fn lame_duck_serves_and_is_not_ready<C: Concurrency>(model: C) {
    let (builder, events) = with_events(model);
    let server = builder.bind("127.0.0.1:0", echo()).unwrap();
    let handle = server.handle();
    assert_eq!(handle.state(), ServerState::Bound);
    assert!(!handle.is_ready());
    // A state that is set before the start applies when serving begins.
    handle.set_lame(true);
    let running = Running::start(server);
    expect_events(&events, &["bound -> lame_duck"]);
    let mut client = running.client();
    assert_eq!(client.ask("while lame"), "while lame");
    assert!(!handle.is_ready());
    handle.set_lame(false);
    expect_events(&events, &["lame_duck -> serving"]);
    assert!(handle.is_ready());
    // An idle server reacts at once, from any thread.
    std::thread::spawn({
        let handle = handle.clone();
        move || handle.set_lame(true)
    });
    expect_events(&events, &["serving -> lame_duck"]);
    assert_eq!(client.ask("again"), "again");
    client.half_close().unwrap();
    client.read_rest().unwrap();
    eventually(TIMEOUT, "the request to end", || handle.active_count() == 0);
    handle.drain(TIMEOUT);
    expect_events(
        &events,
        &[
            "lame_duck -> draining",
            "drain started, live 0",
            "backlog taken, queued 0, rejected 0",
            "listener closed",
            "drain ended, cancelled 0",
            "draining -> closed",
        ],
    );
    running.wait_until_stopped().unwrap();
    assert_eq!(handle.state(), ServerState::Closed);
    assert_eq!(handle.counters().drains, 1);
    assert!(events.try_recv().is_err());
}

fn forced_drain_reports_each_step<C: Concurrency>(model: C) {
    let (builder, events) = with_events(model);
    let running = Running::start(builder.bind("127.0.0.1:0", echo()).unwrap());
    expect_events(&events, &["bound -> serving"]);
    let mut client = running.client();
    client.ask("hello");
    let handle = running.handle.clone();
    assert_eq!(handle.drain_progress(), None);
    handle.drain(Duration::from_millis(100));
    expect_events(
        &events,
        &[
            "serving -> draining",
            "drain started, live 1",
            "backlog taken, queued 0, rejected 0",
            "listener closed",
            "draining -> terminating",
            "cancelling 1",
            "drain ended, cancelled 1",
            "terminating -> closed",
        ],
    );
    running.wait_until_stopped().unwrap();
    assert_eq!(handle.drain_progress(), handle.drain_report());
    assert_eq!(handle.counters().cancelled, 1);
}

fn drain_progress_is_reported<C: Concurrency>(model: C) {
    let running = Running::start(
        Server::<Tcp, C>::builder()
            .concurrency(model)
            .bind("127.0.0.1:0", echo())
            .unwrap(),
    );
    let mut clients: Vec<_> = (0..3).map(|_| running.client()).collect();
    for client in &mut clients {
        client.ask("hello");
    }
    let handle = running.handle.clone();
    handle.drain(TIMEOUT * 3);
    assert_eq!(handle.state(), ServerState::Draining);
    let progress = || handle.drain_progress().unwrap();
    assert_eq!(handle.drain_report(), None);
    clients.pop().unwrap().half_close().unwrap();
    eventually(TIMEOUT, "one request to be counted", || {
        progress().finished == 1
    });
    assert_eq!(handle.drain_report(), None);
    drop(clients);
    running.wait_until_stopped().unwrap();
    assert_eq!((progress().finished, progress().cancelled), (3, 0));
}

under_each_model! {
    lame_duck_serves_and_is_not_ready
    forced_drain_reports_each_step
    drain_progress_is_reported
}

#[test]
fn sequential_server_reports_states_between_requests() {
    let (builder, events) = with_events(Sequential);
    let running = Running::start(builder.bind("127.0.0.1:0", echo()).unwrap());
    expect_events(&events, &["bound -> serving"]);
    let mut client = running.client();
    client.ask("hello");
    running.handle.set_lame(true);
    assert_eq!(running.handle.state(), ServerState::LameDuck, "set at once");
    client.half_close().unwrap();
    expect_events(&events, &["serving -> lame_duck"]);
    running.handle.shutdown();
    expect_events(&events, &["lame_duck -> stopped"]);
    drop(running);
}

#[test]
fn dropped_server_is_closed() {
    let (builder, events) = with_events(Threading::new());
    let server = builder.bind("127.0.0.1:0", echo()).unwrap();
    let handle = server.handle();
    drop(server);
    assert_eq!(handle.state(), ServerState::Closed);
    expect_events(&events, &["bound -> closed"]);
    handle.set_lame(true);
    handle.set_lame(false);
    handle.drain(TIMEOUT);
    assert_eq!(handle.state(), ServerState::Closed, "the state is final");
}

#[test]
fn handle_request_returns_to_the_bound_state() {
    let (builder, events) = with_events(Sequential);
    let mut server = builder.bind("127.0.0.1:0", echo()).unwrap();
    server.handle_request(Some(Duration::ZERO)).unwrap();
    assert_eq!(server.handle().state(), ServerState::Bound);
    expect_events(&events, &["bound -> serving", "serving -> bound"]);
}

#[test]
fn group_is_ready_when_all_members_are() {
    let one = TcpServer::bind("127.0.0.1:0", echo()).unwrap();
    let two = TcpServer::bind("127.0.0.1:0", echo()).unwrap();
    let mut group = ServerGroup::new().with(one).with(two);
    let handle = group.handle();
    let serving = std::thread::spawn(move || group.serve_forever());
    eventually(TIMEOUT, "both to serve", || handle.is_ready());
    handle.handles()[1].set_lame(true);
    assert!(!handle.is_ready());
    handle.set_lame(false);
    assert!(handle.is_ready());
    handle.drain(TIMEOUT);
    assert!(!handle.is_ready(), "not ready at once");
    serving.join().unwrap().unwrap();
}

#[test]
fn each_observer_receives_each_event_in_registration_order() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let received = Arc::new(AtomicUsize::new(0));
    let observer = |name: &'static str, fails: bool| {
        let (order, received) = (order.clone(), received.clone());
        move |event: &Event<'_>| {
            if let Event::Accepted(_) = event {
                order.lock().unwrap().push(name);
                received.fetch_add(1, Ordering::SeqCst);
                assert!(!fails, "a failing observer");
            }
        }
    };
    let server = ThreadingTcpServer::builder()
        .on_event(observer("first", false))
        .on_event(observer("second", true))
        .on_event(observer("third", false))
        .bind("127.0.0.1:0", echo())
        .unwrap();
    let running = Running::start(server);
    assert_eq!(running.client().ask("hello"), "hello");
    assert_eq!(*order.lock().unwrap(), ["first", "second", "third"]);
    let counters = running.handle.counters();
    assert_eq!(counters.hook_failures, 1);
    let failed: Vec<_> = counters
        .hook_failures_by_hook()
        .filter(|(_, count)| *count > 0)
        .collect();
    assert_eq!(failed, [("on_event", 1)]);
}

#[test]
fn rejections_are_counted_by_reason() {
    let server = ThreadingTcpServer::builder()
        .concurrency(
            Threading::new()
                .max_threads(1)
                .overload_policy(OverloadPolicy::Reject),
        )
        .verify_request(|conn: &Connection| Ok(conn.id().get() > 1))
        .bind("127.0.0.1:0", echo())
        .unwrap();
    let running = Running::start(server);
    assert!(
        running.client().was_closed_by_server(),
        "the first client is not verified"
    );
    let mut held = running.client();
    held.ask("hello");
    assert!(
        running.client().was_closed_by_server(),
        "one client is the limit"
    );
    running
        .handle
        .set_admission(Admission::new().deny("all".parse().unwrap()));
    assert!(
        running.client().was_closed_by_server(),
        "all addresses are denied"
    );
    // The client sees the close before the rejection is counted.
    eventually(TIMEOUT, "all to be counted", || {
        running.handle.counters().refused == 3
    });
    let refused: Vec<_> = running
        .handle
        .counters()
        .rejections()
        .filter(|(_, count)| *count > 0)
        .collect();
    assert_eq!(refused, [("verify", 1), ("at_limit", 1), ("denied", 1)]);
}

#[test]
fn ends_are_counted_by_reason_and_add_up() {
    let handler = handler_fn(|conn: &mut Connection| {
        let mut what = [0];
        conn.read_exact(&mut what)?;
        match &what {
            b"f" => Err(std::io::Error::other("failed").into()),
            b"p" => panic!("panicked"),
            _ => Ok(()),
        }
    });
    let running = Running::start(ThreadingTcpServer::bind("127.0.0.1:0", handler).unwrap());
    for what in ["c", "f", "p", "c"] {
        let mut client = running.client();
        client.send(what.as_bytes()).unwrap();
        assert!(client.was_closed_by_server());
    }
    let counters = || running.handle.counters();
    eventually(TIMEOUT, "all to end", || counters().ended == 4);
    let ends: Vec<_> = counters().ends().filter(|(_, count)| *count > 0).collect();
    assert_eq!(ends, [("completed", 2), ("failed", 1), ("panicked", 1)]);
    let sum: u64 = counters().ends().map(|(_, count)| count).sum();
    assert_eq!(sum, counters().ended);
}
