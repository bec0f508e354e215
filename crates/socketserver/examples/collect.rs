//! All input of the clients goes through one bounded queue to the application, which is the main
//! function. When the application is slow, the clients wait; no input is dropped.
//!
//! Run it with `cargo run -p socketserver --example collect`, then `printf 'hello' | nc -N
//! 127.0.0.1 8888`. It ends after ten chunks.

use std::io::{Read, Write};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use socketserver::{Address, Connection, Result, ThreadingTcpServer, handler_fn};

struct Chunk {
    from: Address,
    bytes: Vec<u8>,
}

fn main() -> Result<()> {
    let (queue, chunks) = sync_channel(16);
    // The factory gives each handler a clone of the queue.
    let collect = handler_fn(move |conn: &mut Connection| {
        let mut buffer = [0; 4096];
        loop {
            let n = conn.read(&mut buffer)?;
            if n == 0 {
                return Ok(());
            }
            let chunk = Chunk {
                from: conn.peer_addr().clone(),
                bytes: buffer[..n].to_vec(),
            };
            // Waits while the queue is full. Returns an error if the application has ended.
            queue.send(chunk)?;
        }
    });
    let mut server = ThreadingTcpServer::bind("127.0.0.1:8888", collect)?;
    let handle = server.handle();
    let serving = std::thread::spawn(move || server.serve_forever());

    let mut out = std::io::stdout();
    for chunk in chunks.iter().take(10) {
        writeln!(
            out,
            "{}: {:?}",
            chunk.from,
            String::from_utf8_lossy(&chunk.bytes)
        )?;
    }
    drop(chunks);
    handle.drain(Duration::from_secs(5));
    serving.join().expect("the accept loop does not panic")?;
    Ok(())
}
