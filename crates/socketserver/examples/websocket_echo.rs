//! WebSocket: sends back each message.
//!
//! Run it with `cargo run -p socketserver --features websocket --example websocket_echo --
//! 127.0.0.1:8000`. Then open a page of the same origin, and enter in the browser's console: `s =
//! new WebSocket("ws://127.0.0.1:8000/"); s.onmessage = m => console.log(m.data); s.onopen = () =>
//! s.send("hello")`.
//!
//! The second argument is the concurrency model, and the third one the maximum message length in
//! MiB. The Autobahn test suite runs against it in this way.

use socketserver::http::{Http, Request};
use socketserver::websocket::{Message, WebSocket, WebSocketLimits, WebSocketUpgrade};
use socketserver::{Concurrency, Forking, Pooled, Result, Sequential, Server, Threading};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |n: usize, default: &'static str| args.get(n).map_or(default, String::as_str);
    let max_length = arg(2, "1").parse::<usize>()? << 20;
    let limits = WebSocketLimits::default()
        .message(max_length)
        .frame(max_length);
    let sockets = WebSocketUpgrade::new().limits(limits.frames(max_length / 64 + 8));
    let address = arg(0, "127.0.0.1:8000");
    match arg(1, "threading") {
        "sequential" => serve(Sequential, address, sockets),
        "threading" => serve(Threading::new(), address, sockets),
        "forking" => serve(Forking::new(), address, sockets),
        "pooled" => serve(Pooled::new(), address, sockets),
        #[cfg(feature = "green")]
        "green" => serve(socketserver::Green::new(), address, sockets),
        other => Err(std::io::Error::other(format!(
            "unknown model {other}: use sequential, threading, forking, pooled or green"
        ))
        .into()),
    }
}

fn serve<C: Concurrency>(model: C, address: &str, sockets: WebSocketUpgrade) -> Result<()> {
    let site = Http::new().handler_fn(move |request: &mut Request<'_>| {
        sockets.upgrade(request, |socket: &mut WebSocket<'_>, message: Message| {
            Ok(socket.send(message)?)
        })
    });
    let mut server = Server::<socketserver::transport::Tcp, C>::builder()
        .concurrency(model)
        .bind(address, site)?;
    server.serve_forever()?;
    Ok(())
}
