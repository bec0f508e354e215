//! Slow clients on every model: clients that send or read too slowly, and clients that only pause.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use common::TIMEOUT;
use common::client::Endpoint;
use common::running::Running;
use socketserver::transport::Tcp;
use socketserver::{
    Concurrency, Connection, EndReason, Event, MinRate, Result, Sequential, Server, Timeouts,
    handler_fn,
};

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(60);

struct Watched {
    running: Running,
    ends: Receiver<EndReason>,
}

fn serve<C: Concurrency>(
    model: C,
    timeouts: Timeouts,
    handle: impl Fn(&mut Connection) -> Result<()> + Send + Sync + 'static,
) -> Watched {
    let (tx, ends) = channel();
    let server = Server::<Tcp, C>::builder()
        .concurrency(model)
        .timeouts(timeouts)
        .on_event(move |event| {
            if let Event::Ended(_, end) = event {
                let _ = tx.send(end.reason);
            }
        })
        .bind("127.0.0.1:0", handler_fn(handle))
        .unwrap();
    Watched {
        running: Running::start(server),
        ends,
    }
}

impl Watched {
    fn connect(&self) -> TcpStream {
        let Endpoint::Tcp(address) = self.running.endpoint else {
            unreachable!("the transport is TCP");
        };
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream
    }

    #[track_caller]
    fn expect_end(&self, reason: EndReason) {
        assert_eq!(self.ends.recv_timeout(TIMEOUT).unwrap(), reason);
    }
}

/// Sends a byte every 20 ms until the server closes the connection. Returns the elapsed time.
#[track_caller]
fn send_slowly(stream: &mut TcpStream) -> Duration {
    let started = Instant::now();
    stream
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    loop {
        assert!(
            started.elapsed() < TIMEOUT,
            "the server never closes a slow connection"
        );
        let _ = stream.write_all(b"x");
        match stream.read(&mut [0; 64]) {
            Ok(0) => return started.elapsed(),
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return started.elapsed(),
        }
    }
}

fn with_receive_rate(timeouts: Timeouts) -> Timeouts {
    // Faster than any slow client of these tests.
    timeouts.receive_rate(Some(MinRate::bytes_per_second(10_000).grace(SHORT)))
}

fn silent_client_ends_at_the_first_byte_timeout<C: Concurrency>(model: C) {
    let timeouts = Timeouts::unlimited().first_byte(Some(SHORT));
    let server = serve(model, timeouts, |conn| {
        let mut byte = [0];
        while conn.read(&mut byte)? > 0 {
            conn.write_all(&byte)?;
        }
        Ok(())
    });
    let (mut silent, started) = (server.connect(), Instant::now());
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    assert!(started.elapsed() >= SHORT, "{:?}", started.elapsed());
    server.expect_end(EndReason::TimedOut);
    // A client that has sent its first byte may be silent afterwards.
    let mut pausing = server.connect();
    pausing.write_all(b"1").unwrap();
    pausing.read_exact(&mut [0]).unwrap();
    std::thread::sleep(2 * SHORT);
    pausing.write_all(b"2").unwrap();
    pausing.read_exact(&mut [0]).unwrap();
    drop(pausing);
    server.expect_end(EndReason::Completed);
}

fn slow_line_ends_at_the_receive_rate<C: Concurrency>(model: C) {
    let server = serve(model, with_receive_rate(Timeouts::unlimited()), |conn| {
        let mut line = String::new();
        while conn.read_line(&mut line)? > 0 {
            conn.write_all(line.as_bytes())?;
            line.clear();
        }
        Ok(())
    });
    let took = send_slowly(&mut server.connect());
    assert!(took >= SHORT, "{took:?}");
    server.expect_end(EndReason::TimedOut);
    // Silence between lines does not count.
    let mut typing = server.connect();
    for _ in 0..2 {
        typing.write_all(b"a line\n").unwrap();
        typing.read_exact(&mut [0; 7]).unwrap();
        std::thread::sleep(2 * SHORT);
    }
    typing.write_all(b"last\n").unwrap();
    typing.read_exact(&mut [0; 5]).unwrap();
}

fn slow_block_ends_at_the_receive_rate<C: Concurrency>(model: C) {
    let server = serve(model, with_receive_rate(Timeouts::unlimited()), |conn| {
        let mut block = vec![0; 1 << 16];
        conn.read_exact(&mut block)?;
        conn.write_all(b"whole")?;
        Ok(())
    });
    send_slowly(&mut server.connect());
    server.expect_end(EndReason::TimedOut);
    let mut quick = server.connect();
    quick.write_all(&vec![1; 1 << 16]).unwrap();
    let mut answer = String::new();
    quick.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "whole");
}

fn time_of_the_handler_does_not_count<C: Concurrency>(model: C) {
    let server = serve(model, with_receive_rate(Timeouts::unlimited()), |conn| {
        let mut some = [0; 4];
        conn.read_exact(&mut some)?;
        conn.begin_message();
        // The sleep blocks the thread; the test has only one client.
        std::thread::sleep(2 * SHORT);
        conn.read_exact(&mut some)?;
        conn.end_message();
        conn.write_all(&some)?;
        Ok(())
    });
    let mut client = server.connect();
    client.write_all(b"12345678").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "5678");
    server.expect_end(EndReason::Completed);
}

fn slow_reader_ends_at_the_send_rate<C: Concurrency>(model: C) {
    let rate = MinRate::bytes_per_second(u32::MAX).grace(SHORT);
    // The timeout of a single write would not end the request.
    let timeouts = Timeouts::unlimited()
        .write(Some(LONG))
        .send_rate(Some(rate));
    let server = serve(model, timeouts, |conn| {
        let chunk = vec![7; 64 << 10];
        for _ in 0..4096 {
            conn.write_all(&chunk)?;
        }
        Ok(())
    });
    let mut client = server.connect();
    let started = Instant::now();
    let mut buffer = vec![0; 32 << 10];
    // So much per read that every write progresses.
    while started.elapsed() < TIMEOUT {
        match client.read(&mut buffer) {
            Ok(1..) => std::thread::sleep(Duration::from_millis(2)),
            Ok(0) | Err(_) => break,
        }
    }
    server.expect_end(EndReason::TimedOut);
}

fn client_that_does_not_read_ends_at_the_send_rate<C: Concurrency>(model: C) {
    // Only the rate ends the request.
    let rate = MinRate::bytes_per_second(1).grace(SHORT);
    let timeouts = Timeouts::unlimited().send_rate(Some(rate));
    let server = serve(model, timeouts, |conn| {
        conn.write_all(&vec![7; 64 << 20])?;
        Ok(())
    });
    let _client = server.connect();
    server.expect_end(EndReason::TimedOut);
}

fn timeouts_of_new_requests_change_while_serving<C: Concurrency>(model: C) {
    let server = serve(model, Timeouts::unlimited().idle(Some(LONG)), |conn| {
        let mut line = String::new();
        while conn.read_line(&mut line)? > 0 {
            conn.write_all(line.as_bytes())?;
            line.clear();
        }
        Ok(())
    });
    let handle = &server.running.handle;
    let zero = Timeouts::unlimited().idle(Some(Duration::ZERO));
    assert_eq!(
        handle.set_timeouts(zero).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    assert_eq!(handle.timeouts(), Timeouts::unlimited().idle(Some(LONG)));
    handle
        .set_timeouts(Timeouts::unlimited().idle(Some(SHORT)))
        .unwrap();
    let mut later = server.connect();
    assert_eq!(later.read(&mut [0]).unwrap(), 0);
    server.expect_end(EndReason::TimedOut);
}

common::under_each_model! {
    silent_client_ends_at_the_first_byte_timeout
    slow_line_ends_at_the_receive_rate
    slow_block_ends_at_the_receive_rate
    time_of_the_handler_does_not_count
    slow_reader_ends_at_the_send_rate
    client_that_does_not_read_ends_at_the_send_rate
    timeouts_of_new_requests_change_while_serving
}

mod sequential {
    use super::Sequential;

    #[test]
    fn silent_client_ends_at_the_first_byte_timeout() {
        super::silent_client_ends_at_the_first_byte_timeout(Sequential);
    }

    #[test]
    fn slow_line_ends_at_the_receive_rate() {
        super::slow_line_ends_at_the_receive_rate(Sequential);
    }

    #[test]
    fn slow_reader_ends_at_the_send_rate() {
        super::slow_reader_ends_at_the_send_rate(Sequential);
    }
}

#[cfg(feature = "framing")]
#[test]
fn slow_frame_ends_at_the_receive_rate() {
    use socketserver::Threading;
    use socketserver::framing::{Framed, LengthPrefix};

    let server = serve(
        Threading::new(),
        with_receive_rate(Timeouts::unlimited()),
        |conn| {
            let mut frames = Framed::new(conn, LengthPrefix::u32_be()).with_receive_rate();
            while let Some(frame) = frames.read()? {
                frames.write(frame)?;
            }
            Ok(())
        },
    );
    // The length arrives at once, and the body arrives slowly.
    let mut slow = server.connect();
    slow.write_all(&[0, 1, 0, 0]).unwrap();
    send_slowly(&mut slow);
    server.expect_end(EndReason::TimedOut);
    let mut pausing = server.connect();
    for _ in 0..2 {
        pausing.write_all(&[0, 0, 0, 1, 9]).unwrap();
        pausing.read_exact(&mut [0; 5]).unwrap();
        std::thread::sleep(2 * SHORT);
    }
    pausing.write_all(&[0, 0, 0, 1, 9]).unwrap();
    pausing.read_exact(&mut [0; 5]).unwrap();
}
