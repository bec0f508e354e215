//! Clients that trickle, and clients that only look as if they did: on every model.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use common::PATIENCE;
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
    let (told, ends) = channel();
    let server = Server::<Tcp, C>::builder()
        .concurrency(model)
        .timeouts(timeouts)
        .on_event(move |event| {
            if let Event::Ended(_, end) = event {
                let _ = told.send(end.reason);
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
            unreachable!("it is TCP");
        };
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    #[track_caller]
    fn ends_as(&self, reason: EndReason) {
        assert_eq!(self.ends.recv_timeout(PATIENCE).unwrap(), reason);
    }
}

/// Sends a byte now and then until the server has cut the connection; how long that took.
#[track_caller]
fn trickle(stream: &mut TcpStream) -> Duration {
    let started = Instant::now();
    stream
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    loop {
        assert!(started.elapsed() < PATIENCE, "it may trickle for ever");
        let _ = stream.write_all(b"x");
        match stream.read(&mut [0; 64]) {
            Ok(0) => return started.elapsed(),
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return started.elapsed(),
        }
    }
}

fn pace(timeouts: Timeouts) -> Timeouts {
    // No trickle is this fast.
    timeouts.receive_rate(Some(MinRate::bytes_per_second(10_000).grace(SHORT)))
}

fn who_says_nothing_is_cut<C: Concurrency>(model: C) {
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
    server.ends_as(EndReason::TimedOut);
    // Who has spoken may be silent afterwards.
    let mut polite = server.connect();
    polite.write_all(b"1").unwrap();
    polite.read_exact(&mut [0]).unwrap();
    std::thread::sleep(2 * SHORT);
    polite.write_all(b"2").unwrap();
    polite.read_exact(&mut [0]).unwrap();
    drop(polite);
    server.ends_as(EndReason::Completed);
}

fn a_line_must_not_trickle<C: Concurrency>(model: C) {
    let server = serve(model, pace(Timeouts::unlimited()), |conn| {
        let mut line = String::new();
        while conn.read_line(&mut line)? > 0 {
            conn.write_all(line.as_bytes())?;
            line.clear();
        }
        Ok(())
    });
    let took = trickle(&mut server.connect());
    assert!(took >= SHORT, "{took:?}");
    server.ends_as(EndReason::TimedOut);
    // Silence between lines is nobody's fault.
    let mut typing = server.connect();
    for _ in 0..2 {
        typing.write_all(b"a line\n").unwrap();
        typing.read_exact(&mut [0; 7]).unwrap();
        std::thread::sleep(2 * SHORT);
    }
    typing.write_all(b"last\n").unwrap();
    typing.read_exact(&mut [0; 5]).unwrap();
}

fn a_block_must_not_trickle<C: Concurrency>(model: C) {
    let server = serve(model, pace(Timeouts::unlimited()), |conn| {
        let mut block = vec![0; 1 << 16];
        conn.read_exact(&mut block)?;
        conn.write_all(b"whole")?;
        Ok(())
    });
    trickle(&mut server.connect());
    server.ends_as(EndReason::TimedOut);
    let mut quick = server.connect();
    quick.write_all(&vec![1; 1 << 16]).unwrap();
    let mut answer = String::new();
    quick.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "whole");
}

fn the_handlers_own_time_is_not_the_peers<C: Concurrency>(model: C) {
    let server = serve(model, pace(Timeouts::unlimited()), |conn| {
        let mut some = [0; 4];
        conn.read_exact(&mut some)?;
        conn.begin_message();
        // On this thread, whoever else may wait for it: the test has one client.
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
    server.ends_as(EndReason::Completed);
}

fn who_reads_in_sips_is_cut<C: Concurrency>(model: C) {
    let rate = MinRate::bytes_per_second(u32::MAX).grace(SHORT);
    // Each single write would have its time.
    let timeouts = Timeouts::unlimited()
        .write(Some(LONG))
        .send_rate(Some(rate));
    let server = serve(model, timeouts, |conn| {
        let piece = vec![7; 64 << 10];
        for _ in 0..4096 {
            conn.write_all(&piece)?;
        }
        Ok(())
    });
    let mut client = server.connect();
    let started = Instant::now();
    let mut sip = vec![0; 32 << 10];
    // So much at a time that every write gets on, in the end.
    while started.elapsed() < PATIENCE {
        match client.read(&mut sip) {
            Ok(1..) => std::thread::sleep(Duration::from_millis(2)),
            Ok(0) | Err(_) => break,
        }
    }
    server.ends_as(EndReason::TimedOut);
}

fn who_does_not_read_at_all_is_cut<C: Concurrency>(model: C) {
    // By the rate alone.
    let rate = MinRate::bytes_per_second(1).grace(SHORT);
    let timeouts = Timeouts::unlimited().send_rate(Some(rate));
    let server = serve(model, timeouts, |conn| {
        conn.write_all(&vec![7; 64 << 20])?;
        Ok(())
    });
    let _client = server.connect();
    server.ends_as(EndReason::TimedOut);
}

fn limits_of_new_requests_are_changed_while_serving<C: Concurrency>(model: C) {
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
    server.ends_as(EndReason::TimedOut);
}

common::under_each_model! {
    who_says_nothing_is_cut
    a_line_must_not_trickle
    a_block_must_not_trickle
    the_handlers_own_time_is_not_the_peers
    who_reads_in_sips_is_cut
    who_does_not_read_at_all_is_cut
    limits_of_new_requests_are_changed_while_serving
}

mod sequential {
    use super::Sequential;

    #[test]
    fn who_says_nothing_is_cut() {
        super::who_says_nothing_is_cut(Sequential);
    }

    #[test]
    fn a_line_must_not_trickle() {
        super::a_line_must_not_trickle(Sequential);
    }

    #[test]
    fn who_reads_in_sips_is_cut() {
        super::who_reads_in_sips_is_cut(Sequential);
    }
}

#[cfg(feature = "framing")]
#[test]
fn a_frame_must_not_trickle() {
    use socketserver::Threading;
    use socketserver::framing::{Framed, LengthPrefix};

    let server = serve(Threading::new(), pace(Timeouts::unlimited()), |conn| {
        let mut frames = Framed::new(conn, LengthPrefix::u32_be()).with_receive_rate();
        while let Some(frame) = frames.read()? {
            frames.write(frame)?;
        }
        Ok(())
    });
    // The length is complete soon; it is the body that trickles.
    let mut slow = server.connect();
    slow.write_all(&[0, 1, 0, 0]).unwrap();
    trickle(&mut slow);
    server.ends_as(EndReason::TimedOut);
    let mut polite = server.connect();
    for _ in 0..2 {
        polite.write_all(&[0, 0, 0, 1, 9]).unwrap();
        polite.read_exact(&mut [0; 5]).unwrap();
        std::thread::sleep(2 * SHORT);
    }
    polite.write_all(&[0, 0, 0, 1, 9]).unwrap();
    polite.read_exact(&mut [0; 5]).unwrap();
}
