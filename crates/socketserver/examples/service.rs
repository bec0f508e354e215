//! A server as it runs in production: limits, figures for whoever watches it, and an end that loses
//! nothing.
//!
//! `cargo run -p socketserver --example service --features metrics`, then `nc 127.0.0.1 8888`,
//! `curl http://127.0.0.1:9100/metrics`, and Ctrl-C while the client is there.

use std::io::{BufRead, Write};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use socketserver::metrics::Metrics;
use socketserver::{
    Admission, Connection, OverloadPolicy, Pooled, PooledTcpServer, Result, Threading,
    ThreadingTcpServer, handler_fn,
};

/// How long load balancers have to notice that no more should come.
const LAME: Duration = Duration::from_secs(2);
const DRAIN: Duration = Duration::from_secs(20);

/// One line in, one line out. Between two lines a client holds no thread of the pool.
fn upper(conn: &mut Connection) -> Result<()> {
    let mut line = String::new();
    if conn.read_line(&mut line)? > 0 {
        conn.write_all(line.to_uppercase().as_bytes())?;
        conn.suspend_until_readable();
    }
    Ok(())
}

fn main() -> Result<()> {
    // Before there are threads, so that no signal finds the default action.
    let mut signals = Signals::new([SIGINT, SIGTERM])?;

    let few = OverloadPolicy::Queue {
        patience: Duration::from_secs(1),
        places: 8,
    };
    let mut server = PooledTcpServer::builder()
        .concurrency(Pooled::new().workers(8))
        .admission(Admission::new().max_active(1000).max_per_peer(100))
        .bind("127.0.0.1:8888", handler_fn(upper))?;
    let handle = server.handle();

    // A server of its own, with few places: it answers while the other one drains.
    let metrics = Metrics::new();
    metrics.register("upper", &handle);
    let mut watching = ThreadingTcpServer::builder()
        .concurrency(Threading::new().max_threads(4).overload_policy(few))
        .bind("127.0.0.1:9100", metrics.endpoint())?;
    let watched = watching.handle();
    let watching = thread::spawn(move || watching.serve_forever());

    let stopped = handle.clone();
    thread::spawn(move || {
        let mut signals = signals.forever();
        if signals.next().is_some() {
            // `/readyz` says no, and everybody is served.
            stopped.set_lame(true);
            thread::sleep(LAME);
            stopped.drain(DRAIN);
        }
        if signals.next().is_some() {
            stopped.drain(Duration::ZERO);
        }
    });

    server.serve_forever()?;

    let mut out = std::io::stdout();
    if let Some(report) = handle.drain_report() {
        writeln!(
            out,
            "{} finished, {} cut",
            report.finished, report.cancelled
        )?;
    }
    watched.drain(Duration::from_secs(1));
    watching
        .join()
        .expect("handlers that panic do not end it")?;
    Ok(())
}
