//! An echo server: one coroutine for each connection, in blocking code.
//!
//! Run it with `cargo run --release --example echo -- 127.0.0.1:7777`, then `nc 127.0.0.1 7777`.

use std::io::{self, Read, Write};

use greenroom::net::{TcpListener, TcpStream};
use greenroom::{Runtime, spawn};

fn main() -> io::Result<()> {
    let address = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:0".into());
    let listener = TcpListener::bind(address)?;
    let mut out = io::stdout();
    writeln!(out, "listening {}", listener.local_addr()?)?;
    let runtime = Runtime::builder().workers(1).build()?;
    let acceptor = runtime
        .spawn(move || accept(&listener))
        .map_err(io::Error::other)?;
    acceptor
        .join()
        .unwrap_or_else(|payload| std::panic::resume_unwind(payload))
}

fn accept(listener: &TcpListener) -> io::Result<()> {
    loop {
        let (stream, peer) = listener.accept()?;
        // If no stack is free, the connection is closed; a later one may succeed.
        if let Err(error) = spawn(move || echo(stream)) {
            let _ = writeln!(io::stderr(), "{peer}: {error}");
        }
    }
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buf = [0; 1024];
    loop {
        match stream.read(&mut buf)? {
            0 => return Ok(()),
            n => stream.write_all(&buf[..n])?,
        }
    }
}
