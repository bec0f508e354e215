//! WebSockets under the two models that need a process of their own: a forking server must have one
//! thread, and a sequential server has only one client at a time.
//!
//! The server is this program, started again as a child process.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test prints why it fails"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use socketserver::http::{Http, Request};
use socketserver::transport::Tcp;
use socketserver::websocket::{Message, WebSocket, WebSocketUpgrade};
use socketserver::{Concurrency, Forking, Sequential, Server};
use tungstenite::Message as Frame;

const MODEL: &str = "SOCKETSERVER_TEST_MODEL";
const IDLE: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(20);

fn main() {
    match std::env::var(MODEL).as_deref() {
        Ok("forking") => return serve(Forking::new()),
        Ok("sequential") => return serve(Sequential),
        _ => {}
    }
    for model in ["forking", "sequential"] {
        check_model(model);
        println!("test {model} ... ok");
    }
}

fn serve<C: Concurrency>(model: C) {
    let sockets = WebSocketUpgrade::new().ping_interval(Some(IDLE / 4));
    let site = Http::new().handler_fn(move |request: &mut Request<'_>| {
        sockets.upgrade(request, |socket: &mut WebSocket<'_>, message: Message| {
            if message.as_text() == Some("drain") {
                socket.connection().server().drain(TIMEOUT);
            }
            Ok(socket.send(message)?)
        })
    });
    let mut server = Server::<Tcp, C>::builder()
        .concurrency(model)
        .timeouts(socketserver::Timeouts::default().idle(Some(IDLE)))
        .bind("127.0.0.1:0", site)
        .unwrap();
    println!("{}", server.local_addr());
    std::io::stdout().flush().unwrap();
    server.serve_forever().unwrap();
}

/// A child process that is killed if the test fails.
struct Guarded(Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn check_model(model: &str) {
    let mut server = Command::new(std::env::current_exe().unwrap());
    let server = server.env(MODEL, model).stdout(Stdio::piped()).spawn();
    let mut server = Guarded(server.unwrap());
    let mut address = String::new();
    let stdout = server.0.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut address).unwrap();
    let address = address.trim_end();

    // Several clients at once, or one after the other, for longer than the idle timeout, because
    // they answer the pings.
    let mut client = open(address);
    for n in 0..6 {
        let ping = client.read().unwrap();
        assert_eq!(ping, Frame::Ping("".into()), "{model}");
        client.flush().unwrap();
        client.send(Frame::text(n.to_string())).unwrap();
        assert_eq!(client.read().unwrap(), Frame::text(n.to_string()));
    }
    client.close(None).unwrap();
    while client.read().is_ok() {}

    // A client that does not answer the ping receives the close code, and is disconnected.
    let mut silent = open(address);
    assert!(matches!(silent.read().unwrap(), Frame::Ping(_)));
    // tungstenite would answer by itself.
    let mut rest = Vec::new();
    silent.get_mut().read_to_end(&mut rest).unwrap();
    assert_eq!(rest[2..4], 1008_u16.to_be_bytes(), "{model}: {rest:?}");

    let mut last = open(address);
    last.send(Frame::text("drain")).unwrap();
    assert_eq!(last.read().unwrap(), Frame::text("drain"));
    assert_eq!(close_code(&mut last), 1001, "{model}");
    assert!(server.0.wait().unwrap().success());
}

fn open(address: &str) -> tungstenite::WebSocket<TcpStream> {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let (socket, _) = tungstenite::client(format!("ws://{address}/"), stream).unwrap();
    socket
}

fn close_code(socket: &mut tungstenite::WebSocket<TcpStream>) -> u16 {
    match socket.read().unwrap() {
        Frame::Close(Some(close)) => close.code.into(),
        other => panic!("not a close frame: {other}"),
    }
}
