//! Connections whose handler returns after each message and is called again for the next.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use socketserver::transport::Tcp;
use socketserver::{
    Concurrency, Connection, Controller, Pooled, RequestHandler, Result, Sequential, Server,
    Threading, Timeouts,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Answers each line with its number, counted by the handler itself.
struct Numbers {
    lines: usize,
    finished: Arc<AtomicUsize>,
}

impl RequestHandler<Connection> for Numbers {
    fn handle(&mut self, conn: &mut Connection) -> Result {
        let mut line = String::new();
        if conn.read_line(&mut line)? > 0 {
            self.lines += 1;
            writeln!(conn, "{} {}", self.lines, line.trim())?;
        }
        conn.keep_alive();
        Ok(())
    }

    fn finish(&mut self, _: &mut Connection) -> Result {
        self.finished.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

struct Running {
    address: SocketAddr,
    controller: Controller,
    finished: Arc<AtomicUsize>,
    serving: Option<std::thread::JoinHandle<Result>>,
}

fn serve<C: Concurrency>(model: C, timeouts: Timeouts) -> Running {
    let finished = Arc::new(AtomicUsize::new(0));
    let count = finished.clone();
    let mut server = Server::<Tcp, C, ()>::builder()
        .concurrency(model)
        .timeouts(timeouts)
        .bind("127.0.0.1:0", move || Numbers {
            lines: 0,
            finished: count.clone(),
        })
        .unwrap();
    Running {
        address: server.local_addr().as_inet().unwrap(),
        controller: server.controller(),
        finished,
        serving: Some(std::thread::spawn(move || server.serve_forever())),
    }
}

impl Running {
    fn client(&self) -> TcpStream {
        let client = TcpStream::connect(self.address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client
    }

    fn until_finished(&self, count: usize) {
        let end = Instant::now() + PATIENCE;
        while self.finished.load(Ordering::SeqCst) < count || self.controller.live_count() > 0 {
            assert!(Instant::now() < end, "{:?}", self.controller);
            std::thread::yield_now();
        }
        assert_eq!(self.finished.load(Ordering::SeqCst), count);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.controller.drain(Duration::ZERO);
        let _ = self.serving.take().unwrap().join();
    }
}

fn ask(client: &mut TcpStream, line: &str) -> String {
    client.write_all(line.as_bytes()).unwrap();
    answer(client)
}

fn answer(client: &mut TcpStream) -> String {
    let mut answer = String::new();
    let mut byte = [0];
    while !answer.ends_with('\n') {
        assert_eq!(client.read(&mut byte).unwrap(), 1, "after {answer:?}");
        answer.push(char::from(byte[0]));
    }
    answer.trim().into()
}

fn one_handler_for_all_messages<C: Concurrency>(model: C) {
    let running = serve(model, Timeouts::default());
    let mut client = running.client();
    for n in 1..=5 {
        assert_eq!(
            ask(&mut client, &format!("line{n}\n")),
            format!("{n} line{n}")
        );
    }
    // Several at once: what is buffered is handled without waiting for more.
    assert_eq!(ask(&mut client, "a\nb\nc\n"), "6 a");
    assert_eq!(answer(&mut client), "7 b");
    assert_eq!(answer(&mut client), "8 c");
    assert_eq!(running.finished.load(Ordering::SeqCst), 0);
    // In pieces.
    client.write_all(b"in ").unwrap();
    assert_eq!(ask(&mut client, "pieces\n"), "9 in pieces");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    running.until_finished(1);
    let counters = running.controller.counters();
    assert_eq!((counters.ended, counters.failed), (1, 0));
}

fn silence_ends_it<C: Concurrency>(model: C) {
    let limit = Duration::from_millis(100);
    let running = serve(model, Timeouts::default().idle(Some(limit)));
    let mut client = running.client();
    assert_eq!(ask(&mut client, "x\n"), "1 x");
    let before = Instant::now();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    assert!(before.elapsed() >= limit - Duration::from_millis(20));
    running.until_finished(1);
    assert_eq!(running.controller.counters().timed_out, 1);
}

fn a_drain_ends_pauses_at_once<C: Concurrency>(model: C, count: usize) {
    let mut running = serve(model, Timeouts::default());
    let mut clients: Vec<_> = (0..count).map(|_| running.client()).collect();
    for client in &mut clients {
        assert_eq!(ask(client, "x\n"), "1 x");
    }
    let before = Instant::now();
    running.controller.drain(PATIENCE);
    running.serving.take().unwrap().join().unwrap().unwrap();
    running.serving = Some(std::thread::spawn(|| Ok(())));
    assert!(before.elapsed() < PATIENCE / 2, "long before its deadline");
    let report = running.controller.drain_report().unwrap();
    assert_eq!((report.finished, report.cut), (count as u64, 0));
    for client in &mut clients {
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
}

fn a_reset_in_a_pause_ends_it<C: Concurrency>(model: C) {
    let running = serve(model, Timeouts::default());
    let mut client = running.client();
    assert_eq!(ask(&mut client, "x\n"), "1 x");
    rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
    drop(client);
    running.until_finished(1);
    assert_eq!(running.controller.counters().failed, 0);
    assert_eq!(ask(&mut running.client(), "y\n"), "1 y");
}

macro_rules! under_every_model {
    ($($model:ident: $make:expr;)*) => {
        $(mod $model {
            #[allow(unused_imports)]
            use super::*;

            #[test]
            fn one_handler_for_all_messages() {
                super::one_handler_for_all_messages($make);
            }

            #[test]
            fn silence_ends_it() {
                super::silence_ends_it($make);
            }

            #[test]
            fn a_drain_ends_pauses_at_once() {
                // One, for those who serve no more at a time.
                super::a_drain_ends_pauses_at_once($make, 1);
            }

            #[test]
            fn a_reset_in_a_pause_ends_it() {
                super::a_reset_in_a_pause_ends_it($make);
            }
        })*
    };
}

under_every_model! {
    sequential: Sequential;
    threading: Threading::new();
    pooled: Pooled::new().workers(2);
    pooled_without_lobby: Pooled::new().workers(2).max_idle(0);
}

#[cfg(feature = "green")]
under_every_model! {
    green: socketserver::Green::new().workers(1);
    green_on_two: socketserver::Green::new().workers(2);
}

/// More connections than there are threads or stacks, all of them alive and taking turns.
fn many_share_few<C: Concurrency>(model: C) {
    let running = serve(model, Timeouts::default());
    let mut clients: Vec<_> = (0..100).map(|_| running.client()).collect();
    for round in 1..=3 {
        for client in &mut clients {
            assert_eq!(ask(client, "x\n"), format!("{round} x"));
        }
    }
    drop(clients);
    running.until_finished(100);
}

#[test]
fn a_hundred_connections_share_two_threads() {
    many_share_few(Pooled::new().workers(2).queue(1));
}

#[test]
fn many_end_at_once_when_a_drain_begins() {
    a_drain_ends_pauses_at_once(Pooled::new().workers(2), 50);
    a_drain_ends_pauses_at_once(Threading::new(), 50);
    #[cfg(feature = "green")]
    a_drain_ends_pauses_at_once(socketserver::Green::new(), 50);
}

#[cfg(feature = "green")]
#[test]
fn a_hundred_connections_share_a_worker() {
    many_share_few(socketserver::Green::new().workers(1));
}

#[test]
fn what_is_alive_when_the_server_is_dropped_comes_to_its_end() {
    let finished = Arc::new(AtomicUsize::new(0));
    let count = finished.clone();
    let mut server = Server::<Tcp, Pooled, ()>::builder()
        .concurrency(Pooled::new().workers(1))
        .bind("127.0.0.1:0", move || Numbers {
            lines: 0,
            finished: count.clone(),
        })
        .unwrap();
    let address = server.local_addr().as_inet().unwrap();
    let controller = server.controller();
    let mut clients: Vec<_> = (0..2)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    for _ in 0..2 {
        server.handle_request(Some(PATIENCE)).unwrap();
    }
    assert_eq!(ask(&mut clients[0], "x\n"), "1 x");
    drop(server);
    // One is between messages; the other has the only thread, and has not begun.
    for client in clients.iter_mut().rev() {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let reply = ask(client, "y\n");
        assert!(reply.ends_with('y'), "{reply}");
    }
    drop(clients);
    let end = Instant::now() + PATIENCE;
    while finished.load(Ordering::SeqCst) < 2 {
        assert!(Instant::now() < end);
        std::thread::yield_now();
    }
    while controller.live_count() > 0 {
        assert!(Instant::now() < end);
    }
    assert_eq!(controller.counters().ended, 2);
}
