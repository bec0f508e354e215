//! Handlers with framed messages, on real connections.

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

use crate::common::TIMEOUT;
use crate::common::client::Endpoint;
use crate::common::running::Running;

fn connect(running: &Running) -> TcpStream {
    let Endpoint::Tcp(address) = running.endpoint else {
        panic!("{:?}", running.endpoint);
    };
    let client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
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
fn messages_are_exchanged_over_a_connection() {
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
fn request_ends_with_the_error_of_the_codec() {
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
    for (sent, reason, is_frame_error) in [
        (&b"\0\x05hello"[..], EndReason::Completed, None),
        (b"\0\x06hello!", EndReason::Failed, Some(true)),
        (b"\0\x05hell", EndReason::Failed, Some(true)),
    ] {
        let mut client = connect(&running);
        client.write_all(sent).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(ends.recv_timeout(TIMEOUT).unwrap(), reason, "{sent:?}");
        assert_eq!(failures.try_recv().ok(), is_frame_error);
    }
    // Silence in the middle of a frame.
    let mut client = connect(&running);
    client.write_all(b"\0\x05he").unwrap();
    assert_eq!(ends.recv_timeout(TIMEOUT).unwrap(), EndReason::TimedOut);
}

/// Replies to each line with its number. Between two calls it keeps only the state of the codec.
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

fn assert_unread_bytes_survive_suspension<C: Concurrency>(model: C) {
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
    // Glued lines: the last one is incomplete, and is not lost.
    assert_eq!(answer("b\nc\nd").unwrap(), "2 2 b");
    assert_eq!(answer("").unwrap(), "2 3 c");
    assert_eq!(answer("d\n").unwrap(), "3 4 dd");
}

#[test]
fn unread_bytes_survive_suspension_on_a_pool() {
    assert_unread_bytes_survive_suspension(Pooled::default());
}

#[test]
fn unread_bytes_survive_suspension_on_a_sequential_server() {
    assert_unread_bytes_survive_suspension(Sequential);
}

#[test]
fn unread_bytes_survive_suspension_on_threads() {
    assert_unread_bytes_survive_suspension(Threading::default());
}

#[cfg(feature = "green")]
#[test]
fn unread_bytes_survive_suspension_in_coroutines() {
    assert_unread_bytes_survive_suspension(socketserver::Green::new());
}

#[test]
fn requests_and_replies_may_have_different_formats() {
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
