//! Servers that misbehave.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Serves each connection on a thread of its own, for as long as the test runs.
pub fn serve(each: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    let each = Arc::new(each);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let each = each.clone();
            // The client sees the end of the connection, after an error or not.
            thread::spawn(move || drop(each(stream)));
        }
    });
    endpoint
}

/// Sends back each message of `size` bytes, after a call of `before`.
pub fn echo(size: usize, before: impl Fn() + Send + Sync + 'static) -> String {
    serve(move |mut stream| {
        stream.set_nodelay(true)?;
        let mut message = vec![0; size];
        loop {
            stream.read_exact(&mut message)?;
            before();
            stream.write_all(&message)?;
        }
    })
}

/// Starts a server that stalls all connections once, for `time`, after `after` requests.
pub fn stalling(after: u64, time: Duration) -> String {
    let served = AtomicU64::new(0);
    let turn = Mutex::new(());
    echo(64, move || {
        let _turn = turn.lock().unwrap();
        if served.fetch_add(1, Ordering::Relaxed) == after {
            thread::sleep(time);
        }
    })
}

/// Closes the connection so that the client gets a reset.
pub fn reset(stream: TcpStream) -> std::io::Result<()> {
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
    drop(stream);
    Ok(())
}

/// Returns an endpoint at which no server listens any more.
pub fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("tcp://{}", listener.local_addr().unwrap())
}
