//! Connections whose handler returns after each message and is called again for the next one.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use common::client::{Client, Endpoint};
use common::running::Running;
use common::{TIMEOUT, eventually};
use socketserver::transport::Tcp;
use socketserver::{
    Concurrency, Connection, EndReason, Event, Pooled, RequestHandler, Result, Sequential, Server,
    Threading, Timeouts, handler_fn,
};

/// Replies to each line with its number, which the handler counts.
struct Numbers {
    lines: usize,
    finished: Arc<AtomicUsize>,
}

impl RequestHandler<Connection> for Numbers {
    fn handle(&mut self, conn: &mut Connection) -> Result<()> {
        let mut line = String::new();
        if conn.read_line(&mut line)? > 0 {
            self.lines += 1;
            writeln!(conn, "{} {}", self.lines, line.trim())?;
        }
        conn.suspend_until_readable();
        Ok(())
    }

    fn finish(&mut self, _: &mut Connection) -> Result<()> {
        self.finished.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// A server of such handlers, with the number of handlers that have finished.
struct Counted {
    running: Running,
    finished: Arc<AtomicUsize>,
}

fn serve<C: Concurrency>(model: C, timeouts: Timeouts) -> Counted {
    let finished = Arc::new(AtomicUsize::new(0));
    let count = finished.clone();
    let server = Server::<Tcp, C>::builder()
        .concurrency(model)
        .timeouts(timeouts)
        .bind("127.0.0.1:0", move || Numbers {
            lines: 0,
            finished: count.clone(),
        })
        .unwrap();
    Counted {
        running: Running::start(server),
        finished,
    }
}

impl Counted {
    #[track_caller]
    fn wait_until_finished(&self, count: usize) {
        let finished = || self.finished.load(Ordering::SeqCst);
        eventually(TIMEOUT, "all to finish", || {
            finished() >= count && self.running.handle.active_count() == 0
        });
        assert_eq!(finished(), count);
    }
}

fn receive(client: &mut Client) -> Option<String> {
    client.receive_line().unwrap()
}

fn one_handler_serves_all_messages<C: Concurrency>(model: C) {
    let counted = serve(model, Timeouts::default());
    let mut client = counted.running.client();
    for n in 1..=5 {
        assert_eq!(client.ask(&format!("line{n}")), format!("{n} line{n}"));
    }
    // Several messages at once: buffered ones are handled without waiting for input.
    assert_eq!(client.ask("a\nb\nc"), "6 a");
    assert_eq!(receive(&mut client).as_deref(), Some("7 b"));
    assert_eq!(receive(&mut client).as_deref(), Some("8 c"));
    assert_eq!(counted.finished.load(Ordering::SeqCst), 0);
    // A message in parts.
    client.send(b"two ").unwrap();
    assert_eq!(client.ask("parts"), "9 two parts");
    client.half_close().unwrap();
    assert_eq!(receive(&mut client), None);
    counted.wait_until_finished(1);
    let counters = counted.running.handle.counters();
    assert_eq!((counters.ended, counters.failed), (1, 0));
}

fn idle_timeout_ends_a_suspended_connection<C: Concurrency>(model: C) {
    let limit = Duration::from_millis(300);
    let counted = serve(model, Timeouts::default().idle(Some(limit)));
    let mut client = counted.running.client();
    let before = Instant::now();
    assert_eq!(client.ask("x"), "1 x");
    assert_eq!(receive(&mut client), None);
    assert!(before.elapsed() >= limit);
    counted.wait_until_finished(1);
    assert_eq!(counted.running.handle.counters().timed_out, 1);
}

/// Another thread may write to a client that only reads.
fn suspended_connection_with_writes_is_not_idle<C: Concurrency>(model: C) {
    let limit = Duration::from_secs(2);
    let listen = handler_fn(move |conn: &mut Connection| {
        let mut writer = conn.writer();
        if conn.byte_counts() == (0, 0) {
            std::thread::spawn(move || {
                let start = Instant::now();
                while start.elapsed() < 2 * limit && writeln!(writer, "news").is_ok() {
                    std::thread::sleep(limit / 20);
                }
            });
        }
        conn.suspend_until_readable();
        Ok(())
    });
    let server = Server::<Tcp, C>::builder()
        .concurrency(model)
        .timeouts(Timeouts::default().idle(Some(limit)))
        .bind("127.0.0.1:0", listen)
        .unwrap();
    let running = Running::start(server);
    let mut client = running.client();
    let before = Instant::now();
    while receive(&mut client).is_some() {}
    // For the duration of the writes, and about one idle timeout.
    assert!(before.elapsed() >= limit / 2 * 5, "{:?}", before.elapsed());
    eventually(TIMEOUT, "the timeout", || {
        running.handle.counters().timed_out == 1
    });
}

fn drain_closes_suspended_connections_at_once<C: Concurrency>(model: C, count: usize) {
    let Counted { running, .. } = serve(model, Timeouts::default());
    let mut clients: Vec<_> = (0..count).map(|_| running.client()).collect();
    for client in &mut clients {
        assert_eq!(client.ask("x"), "1 x");
    }
    let handle = running.handle.clone();
    let before = Instant::now();
    handle.drain(TIMEOUT);
    running.wait_until_stopped().unwrap();
    assert!(
        before.elapsed() < TIMEOUT / 2,
        "not long before its deadline"
    );
    let report = handle.drain_report().unwrap();
    assert_eq!((report.finished, report.cancelled), (count as u64, 0));
    for client in &mut clients {
        assert_eq!(receive(client), None);
    }
}

fn reset_ends_a_suspended_connection<C: Concurrency>(model: C) {
    let counted = serve(model, Timeouts::default());
    let mut client = counted.running.client();
    assert_eq!(client.ask("x"), "1 x");
    client.reset();
    counted.wait_until_finished(1);
    assert_eq!(counted.running.handle.counters().failed, 0);
    assert_eq!(counted.running.client().ask("y"), "1 y");
}

/// The reset has arrived before the pause begins, so that a look at what was left meets it.
fn a_reset_before_a_pause_is_a_peer_that_is_gone<C: Concurrency>(model: C) {
    let (ends, ended) = mpsc::channel();
    let (answers, has_answered) = mpsc::channel();
    let (resets, has_reset) = mpsc::channel();
    let has_reset = Mutex::new(has_reset);
    let server = Server::<Tcp, C>::builder()
        .concurrency(model)
        .on_event(move |event| {
            if let Event::Ended(_, end) = event {
                ends.send(end.reason).unwrap();
            }
        })
        .bind(
            "127.0.0.1:0",
            handler_fn(move |conn: &mut Connection| {
                let mut line = String::new();
                if conn.read_line(&mut line)? > 0 {
                    answers.send(()).unwrap();
                    let has_reset = has_reset.lock().unwrap();
                    has_reset.recv_timeout(TIMEOUT).unwrap();
                    conn.suspend_until_readable();
                }
                Ok(())
            }),
        )
        .unwrap();
    let running = Running::start(server);
    let mut client = running.client();
    client.send(b"x\n").unwrap();
    has_answered.recv_timeout(TIMEOUT).unwrap();
    client.reset();
    resets.send(()).unwrap();
    assert_eq!(
        ended.recv_timeout(TIMEOUT).unwrap(),
        EndReason::Disconnected
    );
}

/// A handler that takes two bytes at a time leaves the others in the kernel.
fn unread_input_is_for_the_next_call<C: Concurrency>(model: C) {
    let server = Server::<Tcp, C>::builder()
        .concurrency(model)
        .bind(
            "127.0.0.1:0",
            handler_fn(|conn: &mut Connection| {
                let mut two = [0; 2];
                conn.read_exact(&mut two)?;
                conn.write_all(&two)?;
                conn.suspend_until_readable();
                Ok(())
            }),
        )
        .unwrap();
    let running = Running::start(server);
    let mut client = running.client();
    assert_eq!(client.ask("1"), "1");
    assert_eq!(client.ask("2\n3\n4"), "2");
    assert_eq!(receive(&mut client).as_deref(), Some("3"));
    assert_eq!(receive(&mut client).as_deref(), Some("4"));
}

macro_rules! under_every_model {
    ($($model:ident: $make:expr;)*) => {
        $(mod $model {
            #[allow(unused_imports)]
            use super::*;

            #[test]
            fn one_handler_serves_all_messages() {
                super::one_handler_serves_all_messages($make);
            }

            #[test]
            fn suspended_connection_with_writes_is_not_idle() {
                super::suspended_connection_with_writes_is_not_idle($make);
            }

            #[test]
            fn idle_timeout_ends_a_suspended_connection() {
                super::idle_timeout_ends_a_suspended_connection($make);
            }

            #[test]
            fn drain_closes_suspended_connections_at_once() {
                // One connection, because some models serve only one at a time.
                super::drain_closes_suspended_connections_at_once($make, 1);
            }

            #[test]
            fn unread_input_is_for_the_next_call() {
                super::unread_input_is_for_the_next_call($make);
            }

            #[test]
            fn a_reset_before_a_pause_is_a_peer_that_is_gone() {
                super::a_reset_before_a_pause_is_a_peer_that_is_gone($make);
            }

            #[test]
            fn reset_ends_a_suspended_connection() {
                super::reset_ends_a_suspended_connection($make);
            }
        })*
    };
}

under_every_model! {
    sequential: Sequential;
    threading: Threading::new();
    pooled: Pooled::new().workers(2);
    pooled_without_idle_slots: Pooled::new().workers(2).max_idle(0);
}

#[cfg(feature = "green")]
under_every_model! {
    green: socketserver::Green::new().workers(1);
    green_on_two: socketserver::Green::new().workers(2);
}

/// More active connections than there are threads or stacks.
fn assert_many_connections_share_few_threads<C: Concurrency>(model: C) {
    let counted = serve(model, Timeouts::default());
    let mut clients: Vec<_> = (0..100).map(|_| counted.running.client()).collect();
    for round in 1..=3 {
        for client in &mut clients {
            assert_eq!(client.ask("x"), format!("{round} x"));
        }
    }
    drop(clients);
    counted.wait_until_finished(100);
}

#[test]
fn hundred_connections_share_two_threads() {
    assert_many_connections_share_few_threads(Pooled::new().workers(2).queue(1));
}

#[test]
fn drain_closes_many_suspended_connections_at_once() {
    drain_closes_suspended_connections_at_once(Pooled::new().workers(2), 50);
    drain_closes_suspended_connections_at_once(Threading::new(), 50);
    #[cfg(feature = "green")]
    drain_closes_suspended_connections_at_once(socketserver::Green::new(), 50);
}

#[cfg(feature = "green")]
#[test]
fn hundred_connections_share_a_worker() {
    assert_many_connections_share_few_threads(socketserver::Green::new().workers(1));
}

#[test]
fn connections_are_served_after_the_server_is_dropped() {
    let finished = Arc::new(AtomicUsize::new(0));
    let count = finished.clone();
    let mut server = Server::<Tcp, Pooled>::builder()
        .concurrency(Pooled::new().workers(1))
        .bind("127.0.0.1:0", move || Numbers {
            lines: 0,
            finished: count.clone(),
        })
        .unwrap();
    let endpoint = Endpoint::Tcp(server.local_addr().as_inet().unwrap());
    let handle = server.handle();
    let mut clients: Vec<_> = (0..2)
        .map(|_| Client::connect(&endpoint).unwrap())
        .collect();
    for _ in 0..2 {
        server.handle_request(Some(TIMEOUT)).unwrap();
    }
    assert_eq!(clients[0].ask("x"), "1 x");
    drop(server);
    // One connection is suspended. The other one has the only thread, and has not begun.
    for client in clients.iter_mut().rev() {
        let reply = client.ask("y");
        assert!(reply.ends_with('y'), "{reply}");
    }
    drop(clients);
    eventually(TIMEOUT, "both to end", || {
        finished.load(Ordering::SeqCst) == 2 && handle.active_count() == 0
    });
    assert_eq!(handle.counters().ended, 2);
}
