//! A client that has sent many requests at once keeps its worker to itself for a moment only: other
//! clients of the same worker are served in between, whether or not anything is read or written.

#![cfg(all(feature = "green", feature = "framing", feature = "http"))]
#![allow(clippy::unwrap_used)]

mod common;

use std::io::BufRead;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use common::running::Running;
use common::{PATIENCE, eventually};
use socketserver::framing::{FrameError, Framed, Lines};
use socketserver::http::{Http, Request, Response};
use socketserver::transport::Tcp;
use socketserver::{Connection, Green, RequestHandler, Result, Server, handler_fn};

const PIPELINED: usize = 200;
/// A request takes this long, without giving way.
const EACH: Duration = Duration::from_millis(2);
/// Of these so many at most are served before the next one's turn comes.
const FEW: usize = 40;

/// Serves what a request asks for: work, or to be told how much work was done so far.
#[derive(Clone, Default)]
struct Work(Arc<AtomicUsize>);

impl Work {
    fn done(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    /// `None` for work.
    fn serve(&self, request: &str) -> Option<usize> {
        if request.contains("count") {
            return Some(self.done());
        }
        // It computes: nothing else runs on the worker.
        thread::sleep(EACH);
        self.0.fetch_add(1, Ordering::SeqCst);
        None
    }
}

fn others_are_served_between<F, H>(work: &Work, factory: F, work_please: &str, count_please: &str)
where
    F: Fn() -> H + Send + Sync + 'static,
    H: RequestHandler<Connection> + 'static,
{
    let server = Server::<Tcp, Green>::builder()
        .concurrency(Green::new().workers(1))
        .bind("127.0.0.1:0", factory)
        .unwrap();
    let running = Running::start(server);
    let mut bystander = running.client();
    bystander.send(count_please.as_bytes()).unwrap();
    let mut some = [0; 512];
    assert!(bystander.read(&mut some).unwrap() > 0);
    let mut greedy = running.client();
    greedy
        .send(work_please.repeat(PIPELINED).as_bytes())
        .unwrap();
    eventually(PATIENCE, "the work to begin", || work.done() > 0);
    let before = work.done();
    bystander.send(count_please.as_bytes()).unwrap();
    let n = bystander.read(&mut some).unwrap();
    let text = String::from_utf8_lossy(&some[..n]).into_owned();
    let count = text.trim_end().rsplit(['\n', ' ']).next().unwrap();
    let count: usize = count.parse().unwrap();
    assert!(
        count < before + FEW && count < PIPELINED,
        "served after {count} of {PIPELINED}, asked after {before}"
    );
}

#[test]
fn of_a_connection_that_is_kept_alive() {
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
    others_are_served_between(&work, factory, "work\n", "count\n");
}

#[test]
fn of_a_handler_that_reads_lines() {
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
    others_are_served_between(&work, factory, "work\n", "count\n");
}

#[test]
fn of_a_handler_that_reads_frames() {
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
    others_are_served_between(&work, factory, "work\n", "count\n");
}

#[test]
fn of_a_client_that_pipelines_http() {
    let work = Work::default();
    let own = work.clone();
    let factory = Http::new().handler_fn(move |request: &mut Request<'_>| -> Result<Response> {
        let count = own.serve(request.path());
        Ok(Response::text(
            count.map_or(String::new(), |n| format!("{n}\n")),
        ))
    });
    let ask = |path: &str| format!("GET /{path} HTTP/1.1\r\nHost: x\r\n\r\n");
    others_are_served_between(&work, factory, &ask("work"), &ask("count"));
}

/// What a worker cannot begin soon stays in the kernel's queue, and is accepted when it can.
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
    eventually(PATIENCE, "as many as may wait", || accepted() >= 32);
    thread::sleep(Duration::from_millis(100));
    let taken = accepted();
    assert!(
        taken <= 40,
        "{taken} were accepted that no worker can begin"
    );
    drop(blocked);
    for client in clients {
        assert_eq!(client.rest().unwrap(), b"!");
    }
    assert_eq!(accepted(), CLIENTS as u64);
}
