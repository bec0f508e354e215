//! What a server tells of itself: its state, the events of its life, and totals by reason.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::running::{Running, echo};
use common::{PATIENCE, eventually, under_each_model};
use socketserver::transport::Tcp;
use socketserver::{
    Admission, Concurrency, Connection, Event, OverloadPolicy, Sequential, Server, ServerGroup,
    ServerState, TcpServer, Threading, ThreadingTcpServer, handler_fn,
};

/// The events that concern a server's life, in words.
fn told(event: &Event<'_>) -> Option<String> {
    Some(match event {
        Event::StateChanged { from, to } => format!("{from} -> {to}"),
        Event::DrainStarted { live, .. } => format!("drain started, live {live}"),
        Event::DrainBacklogTaken { queued, refused } => {
            format!("backlog taken, queued {queued}, refused {refused}")
        }
        Event::ListenerClosed { address } => {
            // By now it is free.
            let address = address.as_inet().unwrap();
            drop(std::net::TcpListener::bind(address).unwrap());
            "listener closed".into()
        }
        Event::DrainDeadlineReached { live } => format!("cutting {live}"),
        Event::DrainKilled { live } => format!("killed {live}"),
        Event::DrainEnded(report) => format!("drain ended, cancelled {}", report.cancelled),
        _ => return None,
    })
}

fn with_life<C: Concurrency>(model: C) -> (socketserver::Builder<Tcp, C>, Receiver<String>) {
    let (sender, life) = mpsc::channel();
    let builder = Server::<Tcp, C>::builder()
        .concurrency(model)
        .on_event(move |event| {
            if let Some(text) = told(event) {
                let _ = sender.send(text);
            }
        });
    (builder, life)
}

#[track_caller]
fn tells(life: &Receiver<String>, expected: &[&str]) {
    for expected in expected {
        assert_eq!(life.recv_timeout(PATIENCE).as_deref(), Ok(*expected));
    }
}

fn lame_serves_and_is_not_ready<C: Concurrency>(model: C) {
    let (builder, life) = with_life(model);
    let server = builder.bind("127.0.0.1:0", echo()).unwrap();
    let handle = server.handle();
    assert_eq!(handle.state(), ServerState::Bound);
    assert!(!handle.is_ready());
    // Said before, it holds when serving begins.
    handle.set_lame(true);
    let running = Running::start(server);
    tells(&life, &["bound -> lame_duck"]);
    let mut client = running.client();
    assert_eq!(client.ask("while lame"), "while lame");
    assert!(!handle.is_ready());
    handle.set_lame(false);
    tells(&life, &["lame_duck -> serving"]);
    assert!(handle.is_ready());
    // An idle server hears of it at once, from any thread.
    std::thread::spawn({
        let handle = handle.clone();
        move || handle.set_lame(true)
    });
    tells(&life, &["serving -> lame_duck"]);
    assert_eq!(client.ask("again"), "again");
    client.half_close().unwrap();
    client.rest().unwrap();
    eventually(PATIENCE, "it to end", || handle.active_count() == 0);
    handle.drain(PATIENCE);
    tells(
        &life,
        &[
            "lame_duck -> draining",
            "drain started, live 0",
            "backlog taken, queued 0, refused 0",
            "listener closed",
            "drain ended, cancelled 0",
            "draining -> closed",
        ],
    );
    running.ends().unwrap();
    assert_eq!(handle.state(), ServerState::Closed);
    assert_eq!(handle.counters().drains, 1);
    assert!(life.try_recv().is_err());
}

fn a_drain_that_is_forced_tells_each_step<C: Concurrency>(model: C) {
    let (builder, life) = with_life(model);
    let running = Running::start(builder.bind("127.0.0.1:0", echo()).unwrap());
    tells(&life, &["bound -> serving"]);
    let mut client = running.client();
    client.ask("hello");
    let handle = running.handle.clone();
    assert_eq!(handle.drain_progress(), None);
    handle.drain(Duration::from_millis(100));
    tells(
        &life,
        &[
            "serving -> draining",
            "drain started, live 1",
            "backlog taken, queued 0, refused 0",
            "listener closed",
            "draining -> terminating",
            "cutting 1",
            "drain ended, cancelled 1",
            "terminating -> closed",
        ],
    );
    running.ends().unwrap();
    assert_eq!(handle.drain_progress(), handle.drain_report());
    assert_eq!(handle.counters().cancelled, 1);
}

fn the_progress_of_a_drain_is_seen<C: Concurrency>(model: C) {
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
    handle.drain(PATIENCE * 3);
    assert_eq!(handle.state(), ServerState::Draining);
    let progress = || handle.drain_progress().unwrap();
    assert_eq!(handle.drain_report(), None);
    clients.pop().unwrap().half_close().unwrap();
    eventually(PATIENCE, "one to be counted", || progress().finished == 1);
    assert_eq!(handle.drain_report(), None);
    drop(clients);
    running.ends().unwrap();
    assert_eq!((progress().finished, progress().cancelled), (3, 0));
}

under_each_model! {
    lame_serves_and_is_not_ready
    a_drain_that_is_forced_tells_each_step
    the_progress_of_a_drain_is_seen
}

#[test]
fn a_sequential_server_tells_its_life_between_requests() {
    let (builder, life) = with_life(Sequential);
    let running = Running::start(builder.bind("127.0.0.1:0", echo()).unwrap());
    tells(&life, &["bound -> serving"]);
    let mut client = running.client();
    client.ask("hello");
    running.handle.set_lame(true);
    assert_eq!(running.handle.state(), ServerState::LameDuck, "at once");
    client.half_close().unwrap();
    tells(&life, &["serving -> lame_duck"]);
    running.handle.shutdown();
    tells(&life, &["lame_duck -> stopped"]);
    drop(running);
}

#[test]
fn a_server_that_is_dropped_is_closed() {
    let (builder, life) = with_life(Threading::new());
    let server = builder.bind("127.0.0.1:0", echo()).unwrap();
    let handle = server.handle();
    drop(server);
    assert_eq!(handle.state(), ServerState::Closed);
    tells(&life, &["bound -> closed"]);
    handle.set_lame(true);
    handle.set_lame(false);
    handle.drain(PATIENCE);
    assert_eq!(handle.state(), ServerState::Closed, "for good");
}

#[test]
fn handle_request_leaves_it_new() {
    let (builder, life) = with_life(Sequential);
    let mut server = builder.bind("127.0.0.1:0", echo()).unwrap();
    server.handle_request(Some(Duration::ZERO)).unwrap();
    assert_eq!(server.handle().state(), ServerState::Bound);
    tells(&life, &["bound -> serving", "serving -> new"]);
}

#[test]
fn a_group_is_ready_when_all_are() {
    let one = TcpServer::bind("127.0.0.1:0", echo()).unwrap();
    let two = TcpServer::bind("127.0.0.1:0", echo()).unwrap();
    let mut group = ServerGroup::new().with(one).with(two);
    let handle = group.handle();
    let serving = std::thread::spawn(move || group.serve_forever());
    eventually(PATIENCE, "both to serve", || handle.is_ready());
    handle.handles()[1].set_lame(true);
    assert!(!handle.is_ready());
    handle.set_lame(false);
    assert!(handle.is_ready());
    handle.drain(PATIENCE);
    assert!(!handle.is_ready(), "at once");
    serving.join().unwrap().unwrap();
}

#[test]
fn every_observer_hears_everything_in_the_order_of_their_coming() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::new(AtomicUsize::new(0));
    let observer = |name: &'static str, fails: bool| {
        let (order, heard) = (order.clone(), heard.clone());
        move |event: &Event<'_>| {
            if let Event::Accepted(_) = event {
                order.lock().unwrap().push(name);
                heard.fetch_add(1, Ordering::SeqCst);
                assert!(!fails, "an observer that fails");
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
fn refusals_are_counted_by_reason() {
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
    assert!(running.client().was_cut(), "the first is not verified");
    let mut held = running.client();
    held.ask("hello");
    assert!(running.client().was_cut(), "there is room for one");
    running
        .handle
        .set_admission(Admission::new().deny("all".parse().unwrap()));
    assert!(running.client().was_cut(), "nobody is let in");
    // The peer finds the end before it is counted.
    eventually(PATIENCE, "all to be counted", || {
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
        assert!(client.was_cut());
    }
    let counters = || running.handle.counters();
    eventually(PATIENCE, "all to end", || counters().ended == 4);
    let ends: Vec<_> = counters().ends().filter(|(_, count)| *count > 0).collect();
    assert_eq!(ends, [("completed", 2), ("failed", 1), ("panicked", 1)]);
    let sum: u64 = counters().ends().map(|(_, count)| count).sum();
    assert_eq!(sum, counters().ended);
}
