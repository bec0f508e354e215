//! A client that has pipelined many requests does not occupy its worker: other clients of the same
//! worker are served in between, whether or not bytes are read or written.

#![cfg(all(feature = "green", feature = "framing", feature = "http"))]
#![allow(clippy::unwrap_used)]

mod common;

use std::io::BufRead;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use common::running::Running;
use common::{TIMEOUT, eventually};
use socketserver::framing::{FrameError, Framed, Lines};
use socketserver::http::{Http, Request, Response};
use socketserver::transport::Tcp;
use socketserver::{Connection, Green, RequestHandler, Result, Server, handler_fn};

const PIPELINED: usize = 200;
/// The duration of a request, which does not yield.
const REQUEST_TIME: Duration = Duration::from_millis(2);
/// The maximum number of these requests that are served before the request of another client.
const MAX_IN_A_ROW: usize = 40;

/// Serves a request: either work, or the number of work requests so far.
#[derive(Clone, Default)]
struct Work(Arc<AtomicUsize>);

impl Work {
    fn done(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    /// Serves a request. Returns `None` for work.
    fn serve(&self, request: &str) -> Option<usize> {
        if request.contains("count") {
            return Some(self.done());
        }
        // A computation: nothing else runs on the worker.
        thread::sleep(REQUEST_TIME);
        self.0.fetch_add(1, Ordering::SeqCst);
        None
    }
}

fn assert_others_are_served_between<F, H>(
    work: &Work,
    factory: F,
    work_request: &str,
    count_request: &str,
) where
    F: Fn() -> H + Send + Sync + 'static,
    H: RequestHandler<Connection> + 'static,
{
    let server = Server::<Tcp, Green>::builder()
        .concurrency(Green::new().workers(1))
        .bind("127.0.0.1:0", factory)
        .unwrap();
    let running = Running::start(server);
    let mut other = running.client();
    other.send(count_request.as_bytes()).unwrap();
    let mut some = [0; 512];
    assert!(other.read(&mut some).unwrap() > 0);
    let mut pipelining = running.client();
    pipelining
        .send(work_request.repeat(PIPELINED).as_bytes())
        .unwrap();
    eventually(TIMEOUT, "the work to begin", || work.done() > 0);
    let before = work.done();
    other.send(count_request.as_bytes()).unwrap();
    let n = other.read(&mut some).unwrap();
    let text = String::from_utf8_lossy(&some[..n]).into_owned();
    let count = text.trim_end().rsplit(['\n', ' ']).next().unwrap();
    let count: usize = count.parse().unwrap();
    assert!(
        count < before + MAX_IN_A_ROW && count < PIPELINED,
        "served after {count} of {PIPELINED}, requested after {before}"
    );
}

#[test]
fn suspending_connection_does_not_occupy_its_worker() {
    let work = Work::default();
    let own = work.clone();
    let factory = handler_fn(move |conn: &mut Connection| {
        let mut line = String::new();
        if conn.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if let Some(count) = own.serve(&line) {
            std::io::Write::write_all(conn, format!("{count}\n").as_bytes())?;
        }
        conn.suspend_until_readable();
        Ok(())
    });
    assert_others_are_served_between(&work, factory, "work\n", "count\n");
}

#[test]
fn line_handler_does_not_occupy_its_worker() {
    let work = Work::default();
    let own = work.clone();
    let factory = handler_fn(move |conn: &mut Connection| {
        let mut line = String::new();
        while conn.read_line(&mut line)? > 0 {
            if let Some(count) = own.serve(&line) {
                std::io::Write::write_all(conn, format!("{count}\n").as_bytes())?;
            }
            line.clear();
        }
        Ok(())
    });
    assert_others_are_served_between(&work, factory, "work\n", "count\n");
}

#[test]
fn frame_handler_does_not_occupy_its_worker() {
    let work = Work::default();
    let own = work.clone();
    let factory = handler_fn(move |conn: &mut Connection| {
        let mut frames = Framed::new(conn, Lines::default());
        while let Some(line) = frames.read().map_err(|error: FrameError| error)? {
            let line = String::from_utf8_lossy(&line).into_owned();
            if let Some(count) = own.serve(&line) {
                frames.write(count.to_string())?;
            }
        }
        Ok(())
    });
    assert_others_are_served_between(&work, factory, "work\n", "count\n");
}

#[test]
fn http_pipelining_does_not_occupy_the_worker() {
    let work = Work::default();
    let own = work.clone();
    let factory = Http::new().handler_fn(move |request: &mut Request<'_>| -> Result<Response> {
        let count = own.serve(request.path());
        Ok(Response::text(
            count.map_or(String::new(), |n| format!("{n}\n")),
        ))
    });
    let ask = |path: &str| format!("GET /{path} HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_others_are_served_between(&work, factory, &ask("work"), &ask("count"));
}

/// Requests that a worker cannot begin soon stay in the kernel's queue until it can.
#[test]
fn clients_wait_in_the_queue_of_the_kernel_while_a_worker_is_busy() {
    const CLIENTS: usize = 100;
    let is_busy = Arc::new(std::sync::Mutex::new(()));
    let busy = is_busy.clone();
    let factory = handler_fn(move |conn: &mut Connection| {
        // It blocks the worker.
        drop(busy.lock().unwrap());
        Ok(std::io::Write::write_all(conn, b"!")?)
    });
    let server = Server::<Tcp, Green>::builder()
        .concurrency(Green::new().workers(1).stall_threshold(None))
        .bind("127.0.0.1:0", factory)
        .unwrap();
    let running = Running::start(server);
    let blocked = is_busy.lock().unwrap();
    let clients: Vec<_> = (0..CLIENTS).map(|_| running.client()).collect();
    let accepted = || running.handle.counters().accepted;
    eventually(TIMEOUT, "as many as may wait", || accepted() >= 32);
    thread::sleep(Duration::from_millis(100));
    let taken = accepted();
    assert!(
        taken <= 40,
        "{taken} were accepted that no worker can begin"
    );
    drop(blocked);
    for client in clients {
        assert_eq!(client.read_rest().unwrap(), b"!");
    }
    assert_eq!(accepted(), CLIENTS as u64);
}
