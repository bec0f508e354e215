//! Handlers that have messages, on real connections.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::channel;
use std::time::Duration;

use socketserver::framing::{FrameError, Framed, FramedParts, JsonHeader, LengthPrefix, Lines};
use socketserver::transport::Tcp;
use socketserver::{
    Concurrency, Connection, EndReason, Event, Pooled, RequestHandler, Result, Sequential, Server,
    Threading, ThreadingTcpServer, Timeouts, handler_fn,
};

use crate::common::PATIENCE;
use crate::common::client::Endpoint;
use crate::common::running::Running;

fn connect(running: &Running) -> TcpStream {
    let Endpoint::Tcp(address) = running.endpoint else {
        panic!("{:?}", running.endpoint);
    };
    let client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

fn upper(conn: &mut Connection) -> Result<()> {
    let mut frames = Framed::new(conn, LengthPrefix::u16_be());
    while let Some(frame) = frames.read()? {
        frames.write(frame.to_ascii_uppercase())?;
    }
    Ok(())
}

#[test]
fn messages_over_a_connection() {
    let running =
        Running::start(ThreadingTcpServer::bind("127.0.0.1:0", handler_fn(upper)).unwrap());
    let mut client = connect(&running);
    // One and a half frames, and then the other half.
    client.write_all(b"\0\x05hello\0\x05wo").unwrap();
    let mut answer = [0; 7];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"\0\x05HELLO");
    client.write_all(b"rld").unwrap();
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"\0\x05WORLD");
    let mut frames = Framed::new(client, LengthPrefix::u16_be());
    let long = "x".repeat(60_000);
    frames.write(&long).unwrap();
    assert_eq!(frames.read().unwrap().unwrap(), long.to_uppercase());
    frames.stream().shutdown(Shutdown::Write).unwrap();
    assert!(frames.read().unwrap().is_none());
}

#[test]
fn how_a_request_ends() {
    let (sender, ends) = channel();
    let (errors, failures) = channel();
    let server = ThreadingTcpServer::builder()
        .timeouts(Timeouts::default().read(Some(Duration::from_millis(50))))
        .on_event(move |event| {
            if let Event::Ended(_, end) = event {
                let _ = sender.send(end.reason);
            }
        })
        .handle_error(move |_, failure| {
            let error = failure.error().unwrap();
            let _ = errors.send(matches!(
                error.downcast_ref(),
                Some(FrameError::TooLong { .. } | FrameError::UnexpectedEnd)
            ));
            Ok(())
        })
        .bind(
            "127.0.0.1:0",
            handler_fn(|conn: &mut Connection| {
                let mut frames = Framed::new(conn, LengthPrefix::u16_be().max_len(5));
                while let Some(frame) = frames.read()? {
                    frames.write(frame)?;
                }
                Ok(())
            }),
        )
        .unwrap();
    let running = Running::start(server);
    for (sent, reason, is_ours) in [
        (&b"\0\x05hello"[..], EndReason::Completed, None),
        (b"\0\x06hello!", EndReason::Failed, Some(true)),
        (b"\0\x05hell", EndReason::Failed, Some(true)),
    ] {
        let mut client = connect(&running);
        client.write_all(sent).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(ends.recv_timeout(PATIENCE).unwrap(), reason, "{sent:?}");
        assert_eq!(failures.try_recv().ok(), is_ours);
    }
    // Silence in the middle of a frame.
    let mut client = connect(&running);
    client.write_all(b"\0\x05he").unwrap();
    assert_eq!(ends.recv_timeout(PATIENCE).unwrap(), EndReason::TimedOut);
}

/// Answers each line with its number, and holds nothing but what it needs between them.
#[derive(Default)]
struct Numbers {
    parts: FramedParts<Lines>,
    calls: usize,
    lines: usize,
}

impl RequestHandler<Connection> for Numbers {
    fn handle(&mut self, conn: &mut Connection) -> Result<()> {
        self.calls += 1;
        let mut lines = Framed::from_parts(conn, std::mem::take(&mut self.parts));
        let mut next = lines.read()?;
        if next.is_some() {
            lines.stream_mut().suspend_until_readable();
        }
        while let Some(line) = next {
            self.lines += 1;
            let line = String::from_utf8_lossy(&line);
            lines.write(format!("{} {} {line}", self.calls, self.lines))?;
            next = lines.read_buffered()?;
        }
        (_, self.parts) = lines.into_parts();
        Ok(())
    }
}

fn kept_alive<C: Concurrency>(model: C) {
    let server = Server::<Tcp, C>::builder()
        .concurrency(model)
        .bind("127.0.0.1:0", Numbers::default)
        .unwrap();
    let running = Running::start(server);
    let client = connect(&running);
    let mut lines = Framed::new(client, Lines::default().utf8());
    let mut answer = |sent: &str| {
        lines.stream_mut().write_all(sent.as_bytes()).unwrap();
        lines.read().unwrap()
    };
    assert_eq!(answer("a\n").unwrap(), "1 1 a");
    // Glued: the last is not complete, and is not lost.
    assert_eq!(answer("b\nc\nd").unwrap(), "2 2 b");
    assert_eq!(answer("").unwrap(), "2 3 c");
    assert_eq!(answer("d\n").unwrap(), "3 4 dd");
}

#[test]
fn kept_alive_on_a_pool() {
    kept_alive(Pooled::default());
}

#[test]
fn kept_alive_one_at_a_time() {
    kept_alive(Sequential);
}

#[test]
fn kept_alive_on_threads() {
    kept_alive(Threading::default());
}

#[cfg(feature = "green")]
#[test]
fn kept_alive_in_coroutines() {
    kept_alive(socketserver::Green::new());
}

#[test]
fn requests_and_replies_in_different_formats() {
    let command = handler_fn(|conn: &mut Connection| {
        let mut replies = Framed::new(conn.writer(), JsonHeader::default());
        let mut commands = Framed::new(conn, Lines::default().utf8());
        while let Some(command) = commands.read()? {
            replies.write(command.repeat(3))?;
        }
        Ok(())
    });
    let running = Running::start(ThreadingTcpServer::bind("127.0.0.1:0", command).unwrap());
    let client = connect(&running);
    let mut commands = Framed::new(client.try_clone().unwrap(), Lines::default());
    let mut replies = Framed::new(client, JsonHeader::default());
    for command in ["ls", "date"] {
        commands.write(command).unwrap();
        assert_eq!(replies.read().unwrap().unwrap(), command.repeat(3));
    }
}
