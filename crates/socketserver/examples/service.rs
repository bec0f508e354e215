//! A server for production: limits, metrics, and a graceful shutdown that loses no request.
//!
//! Run it with `cargo run -p socketserver --example service --features metrics`, then `nc 127.0.0.1
//! 8888` and `curl http://127.0.0.1:9100/metrics`. Press Ctrl-C while the client is connected.

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

/// The time in which load balancers notice that they must send no further clients.
const LAME_DUCK_TIME: Duration = Duration::from_secs(2);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// Replies to each line. Between two lines a client does not occupy a thread of the pool.
fn upper(conn: &mut Connection) -> Result<()> {
    let mut line = String::new();
    if conn.read_line(&mut line)? > 0 {
        conn.write_all(line.to_uppercase().as_bytes())?;
        conn.suspend_until_readable();
    }
    Ok(())
}

fn main() -> Result<()> {
    // Installed before any thread is started, so that no signal meets the default action.
    let mut signals = Signals::new([SIGINT, SIGTERM])?;

    let limit = OverloadPolicy::Queue {
        patience: Duration::from_secs(1),
        places: 8,
    };
    let mut server = PooledTcpServer::builder()
        .concurrency(Pooled::new().workers(8))
        .admission(Admission::new().max_active(1000).max_per_peer(100))
        .bind("127.0.0.1:8888", handler_fn(upper))?;
    let handle = server.handle();

    // A server of its own, with a small limit: it answers while the other one drains.
    let metrics = Metrics::new();
    metrics.register("upper", &handle);
    let mut metrics_server = ThreadingTcpServer::builder()
        .concurrency(Threading::new().max_threads(4).overload_policy(limit))
        .bind("127.0.0.1:9100", metrics.endpoint())?;
    let metrics_handle = metrics_server.handle();
    let metrics_server = thread::spawn(move || metrics_server.serve_forever());

    let signal_handle = handle.clone();
    thread::spawn(move || {
        let mut signals = signals.forever();
        if signals.next().is_some() {
            // `/readyz` reports not ready, and all clients are still served.
            signal_handle.set_lame(true);
            thread::sleep(LAME_DUCK_TIME);
            signal_handle.drain(DRAIN_TIMEOUT);
        }
        if signals.next().is_some() {
            signal_handle.drain(Duration::ZERO);
        }
    });

    server.serve_forever()?;

    let mut out = std::io::stdout();
    if let Some(report) = handle.drain_report() {
        writeln!(
            out,
            "{} finished, {} cancelled",
            report.finished, report.cancelled
        )?;
    }
    metrics_handle.drain(Duration::from_secs(1));
    metrics_server
        .join()
        .expect("the accept loop does not panic")?;
    Ok(())
}
