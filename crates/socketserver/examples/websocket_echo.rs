//! WebSocket: each message is sent back.
//!
//! `cargo run -p socketserver --features websocket --example websocket_echo -- 127.0.0.1:8000`, then in
//! a browser's console: `s = new WebSocket("ws://127.0.0.1:8000/"); s.onmessage = m =>
//! console.log(m.data); s.onopen = () => s.send("hello")`, on a page of the same origin.
//!
//! A second argument is the concurrency model, and a third the longest message in MiB: that is how
//! the Autobahn testsuite is run against it (CONTRIBUTING.md).

use socketserver::http::{Http, Request};
use socketserver::websocket::{Message, WebSocket, WebSocketLimits, WebSocketUpgrade};
use socketserver::{Concurrency, Forking, Pooled, Result, Sequential, Server, Threading};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |n: usize, default: &'static str| args.get(n).map_or(default, String::as_str);
    let longest = arg(2, "1").parse::<usize>()? << 20;
    let limits = WebSocketLimits::default().message(longest).frame(longest);
    let sockets = WebSocketUpgrade::new().limits(limits.frames(longest / 64 + 8));
    let address = arg(0, "127.0.0.1:8000");
    match arg(1, "threading") {
        "sequential" => serve(Sequential, address, sockets),
        "threading" => serve(Threading::new(), address, sockets),
        "forking" => serve(Forking::new(), address, sockets),
        "pooled" => serve(Pooled::new(), address, sockets),
        #[cfg(feature = "green")]
        "green" => serve(socketserver::Green::new(), address, sockets),
        other => Err(std::io::Error::other(format!("there is no model {other}")).into()),
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
