//! What a stream handler is given, in detail: reading, writing, limits, and being looked at.

#![allow(clippy::unwrap_used, reason = "a test says why it fails")]

mod common;

use std::io::{BufRead, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use common::running::{Running, echo};
use common::{PATIENCE, eventually};
use rustix::net::sockopt;
use socketserver::transport::Tcp;
use socketserver::{
    Connection, EndReason, Event, RequestId, Result, Server, TcpKeepalive, Threading,
    ThreadingTcpServer, ThreadingUnixStreamServer, Timeouts, handler_fn,
};

/// A server whose handler is `handle`; what that returns, or panics with, reaches the test as the
/// reason of each request's end.
fn serve(
    handle: impl Fn(&mut Connection) -> Result<()> + Send + Sync + 'static,
) -> (Running, Receiver<EndReason>) {
    let (sender, ends) = channel();
    let server = ThreadingTcpServer::builder()
        .on_event(move |event| {
            if let Event::Ended(_, end) = event {
                let _ = sender.send(end.reason);
            }
        })
        .bind("127.0.0.1:0", handler_fn(handle))
        .unwrap();
    (Running::start(server), ends)
}

#[track_caller]
fn completes(ends: &Receiver<EndReason>) {
    assert_eq!(ends.recv_timeout(PATIENCE).unwrap(), EndReason::Completed);
}

#[test]
fn buffered_and_plain_reads_can_be_mixed() {
    let (running, ends) = serve(|conn| {
        let mut line = String::new();
        conn.read_line(&mut line)?;
        assert_eq!(line, "a line\n");
        // These are in the buffer already, and come first.
        let mut two = [0; 2];
        conn.read_exact(&mut two)?;
        assert_eq!(&two, b"ab");
        let mut scattered = [[0; 1], [0; 1]];
        let [one, other] = &mut scattered;
        let bufs = &mut [
            IoSliceMut::new(&mut []),
            IoSliceMut::new(one),
            IoSliceMut::new(other),
        ];
        assert_eq!(conn.read_vectored(bufs)?, 1);
        assert_eq!(scattered[0], *b"c");
        assert_eq!(conn.fill_buf()?.first(), Some(&b'd'));
        // More than there is to consume.
        conn.consume(1 << 20);
        conn.write_all(b"go on\n")?;
        let mut rest = String::new();
        conn.read_to_string(&mut rest)?;
        assert_eq!(rest, "the rest");
        assert_eq!(conn.read(&mut [])?, 0);
        Ok(())
    });
    let mut client = running.client();
    client.send(b"a line\nabcd").unwrap();
    assert_eq!(client.hear().unwrap().as_deref(), Some("go on"));
    client.send(b"the rest").unwrap();
    client.half_close().unwrap();
    completes(&ends);
}

#[test]
fn lines_are_the_same_wherever_they_are_split() {
    let running = Running::start(ThreadingTcpServer::bind("127.0.0.1:0", echo()).unwrap());
    let text = "first\n\nthird line\n";
    for split in 0..=text.len() {
        let mut client = running.client();
        let (head, tail) = text.split_at(split);
        client.send(head.as_bytes()).unwrap();
        // The first part has been taken before the second is sent.
        let moved =
            |live: &[socketserver::ActiveRequest]| live.iter().any(|r| r.received == split as u64);
        eventually(PATIENCE, "the head to be read", || {
            split == 0 || moved(&running.handle.active())
        });
        client.send(tail.as_bytes()).unwrap();
        client.half_close().unwrap();
        assert_eq!(client.rest().unwrap(), text.as_bytes(), "split at {split}");
        eventually(PATIENCE, "the request to end", || {
            running.handle.active_count() == 0
        });
    }
}

#[test]
fn a_line_without_end_is_bounded_by_take() {
    let (running, ends) = serve(|conn| {
        let mut line = String::new();
        assert_eq!(conn.take(1000).read_line(&mut line)?, 1000);
        conn.write_all(b"enough\n")?;
        Ok(())
    });
    let mut client = running.client();
    client.send(&[b'x'; 100_000]).unwrap();
    assert_eq!(client.hear().unwrap().as_deref(), Some("enough"));
    client.half_close().unwrap();
    completes(&ends);
}

#[test]
fn a_writer_writes_from_another_thread() {
    let (running, ends) = serve(|conn| {
        let mut writer = conn.writer();
        let ticking = std::thread::spawn(move || {
            (0..1000).try_for_each(|n| writeln!(writer, "{n}"))?;
            writer.flush()
        });
        // While this one reads.
        let mut command = String::new();
        conn.read_line(&mut command)?;
        ticking.join().unwrap()?;
        conn.write_all(command.as_bytes())?;
        Ok(())
    });
    let mut client = running.client();
    for n in 0..1000 {
        assert_eq!(client.hear().unwrap(), Some(n.to_string()));
    }
    assert_eq!(client.ask("stop"), "stop");
    completes(&ends);
}

#[test]
fn a_writer_outlives_its_connection_harmlessly() {
    let (sender, writers) = channel();
    let (running, ends) = serve(move |conn| Ok(sender.send(conn.writer())?));
    let client = running.client();
    client.half_close().unwrap();
    completes(&ends);
    // Otherwise nobody would ever read an end of input while some thread keeps a writer.
    assert!(client.rest().unwrap().is_empty());
    let mut writer = writers.recv_timeout(PATIENCE).unwrap();
    assert_eq!(
        writer.write(b"late").unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
}

#[test]
fn a_cut_connection_fails_reads_and_writes_alike() {
    let (sender, kinds) = channel();
    let (running, ends) = serve(move |conn| {
        let read = conn.read(&mut [0; 8]).unwrap_err();
        let write = conn.write(b"x").unwrap_err();
        sender.send((read.kind(), write.kind()))?;
        Err(read.into())
    });
    let client = running.client();
    let id = live_id(&running);
    assert!(running.handle.cancel(id));
    let aborted = ErrorKind::ConnectionAborted;
    assert_eq!(kinds.recv_timeout(PATIENCE).unwrap(), (aborted, aborted));
    assert_eq!(ends.recv_timeout(PATIENCE).unwrap(), EndReason::Cancelled);
    assert!(client.was_cut());
    eventually(PATIENCE, "its place to be free", || {
        running.handle.active_count() == 0
    });
    assert!(
        !running.handle.cancel(id),
        "there is no such request any more"
    );
    assert!(!running.handle.cancel(RequestId::from(12_345)));
    assert_eq!(running.handle.counters().cancelled, 1);
}

#[test]
fn a_cut_ends_a_write_that_waits_for_room() {
    let (running, ends) = serve(|conn| Ok(conn.write_all(&vec![0; 64 << 20])?));
    let mut client = running.client();
    let id = live_id(&running);
    assert_ne!(client.read(&mut [0]).unwrap(), 0);
    assert!(running.handle.cancel(id));
    assert_eq!(ends.recv_timeout(PATIENCE).unwrap(), EndReason::Cancelled);
    drop(client);
}

#[track_caller]
fn live_id(running: &Running) -> RequestId {
    let handle = &running.handle;
    eventually(PATIENCE, "a request to be live", || {
        handle.active_count() == 1
    });
    handle.active()[0].info.id()
}

#[test]
fn live_requests_can_be_looked_at() {
    let running = Running::start(ThreadingTcpServer::bind("127.0.0.1:0", echo()).unwrap());
    let mut one = running.client();
    assert_eq!(one.ask("12345"), "12345");
    let mut two = running.client();
    assert_eq!(two.ask("1"), "1");
    // A byte is counted a moment after it was sent.
    let mut seen = Vec::new();
    eventually(PATIENCE, "every byte to be counted", || {
        seen = running.handle.active();
        seen.iter().map(|r| r.received + r.sent).sum::<u64>() == 16
    });
    let figures: Vec<_> = seen
        .iter()
        .map(|r| (r.info.id().get(), r.received, r.sent))
        .collect();
    assert_eq!(figures, [(1, 6, 6), (2, 2, 2)]);
    let common::client::Endpoint::Tcp(address) = running.endpoint else {
        panic!("no TCP")
    };
    assert!(seen.iter().all(|r| *r.info.listener() == address));
    assert_ne!(seen[0].info.peer(), seen[1].info.peer());
    assert!(seen[0].info.age() >= seen[1].info.age());
    drop((one, two));
    eventually(PATIENCE, "both to end", || {
        running.handle.active().is_empty()
    });
    let counters = running.handle.counters();
    assert_eq!((counters.accepted, counters.ended), (2, 2));
    assert_eq!((counters.bytes_received, counters.bytes_sent), (8, 8));
}

#[test]
fn a_limit_of_zero_is_invalid_and_changes_nothing() {
    let (running, ends) = serve(|conn| {
        let before = conn.timeouts();
        let zero = Some(Duration::ZERO);
        for refused in [
            conn.set_idle_timeout(zero),
            conn.set_read_timeout(zero),
            conn.set_write_timeout(zero),
        ] {
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        assert_eq!(conn.timeouts(), before);
        conn.set_read_timeout(None)?;
        Ok(())
    });
    let _client = running.client();
    completes(&ends);
}

#[test]
fn limits_can_be_set_for_one_connection() {
    let limit = Duration::from_millis(50);
    let (running, ends) = serve(move |conn| {
        let times_out = |conn: &mut Connection| {
            let start = Instant::now();
            let error = conn.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut);
            assert!(start.elapsed() >= limit, "{:?}", start.elapsed());
        };
        conn.set_read_timeout(Some(limit))?;
        times_out(conn);
        conn.set_read_timeout(None)?;
        conn.set_idle_timeout(Some(limit))?;
        times_out(conn);
        conn.set_idle_timeout(None)?;
        conn.set_deadline(Some(Instant::now() + limit));
        times_out(conn);
        // One that has passed fails a read even if there is something to read, and a write.
        conn.set_deadline(Some(Instant::now()));
        assert_eq!(conn.write(b"x").unwrap_err().kind(), ErrorKind::TimedOut);
        conn.set_deadline(None);
        conn.write_all(b"still usable\n")?;
        Ok(())
    });
    let mut client = running.client();
    assert_eq!(client.hear().unwrap().as_deref(), Some("still usable"));
    completes(&ends);
}

/// Two directions, one silence: what a writer sends from elsewhere keeps the connection alive.
#[test]
fn a_connection_that_is_written_to_is_not_idle() {
    let (running, ends) = serve(|conn| {
        conn.set_idle_timeout(Some(Duration::from_millis(100)))?;
        let mut writer = conn.writer();
        let start = Instant::now();
        let ticking = std::thread::spawn(move || {
            for _ in 0..25 {
                writer.write_all(b"tick\n").unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let error = conn.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(
            start.elapsed() >= Duration::from_millis(500),
            "{:?}",
            start.elapsed()
        );
        ticking.join().unwrap();
        Ok(())
    });
    let _client = running.client();
    completes(&ends);
}

#[test]
fn a_gathered_write_is_one_write() {
    let (running, ends) = serve(|conn| {
        let parts = [
            IoSlice::new(b"head "),
            IoSlice::new(b""),
            IoSlice::new(b"and tail\n"),
        ];
        assert_eq!(conn.write_vectored(&parts)?, 14);
        conn.shutdown(Shutdown::Write)?;
        conn.shutdown(Shutdown::Write)?;
        assert_eq!(conn.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert_eq!(conn.byte_counts(), (0, 14));
        Ok(())
    });
    assert_eq!(running.client().rest().unwrap(), b"head and tail\n");
    completes(&ends);
}

#[test]
fn both_addresses_are_known() {
    let (running, ends) = serve(|conn| {
        let (peer, local) = (conn.peer_addr().clone(), conn.local_addr()?);
        assert!(
            sockopt::tcp_nodelay(conn.as_fd())?,
            "small answers do not wait"
        );
        conn.set_nodelay(false)?;
        assert!(!sockopt::tcp_nodelay(conn.as_fd())?);
        let unsupported = conn.peer_credentials().unwrap_err();
        assert_eq!(unsupported.kind(), ErrorKind::Unsupported);
        writeln!(conn, "{peer} {local}")?;
        Ok(())
    });
    let common::client::Endpoint::Tcp(address) = running.endpoint else {
        panic!("no TCP")
    };
    let client = std::net::TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut line = String::new();
    std::io::BufReader::new(&client)
        .read_line(&mut line)
        .unwrap();
    assert_eq!(
        line,
        format!("{} {address}\n", client.local_addr().unwrap())
    );
    completes(&ends);
}

#[test]
fn options_of_the_listener_are_those_of_its_connections() {
    let keepalive = TcpKeepalive::default()
        .idle(Duration::from_secs(7))
        .interval(Duration::from_secs(3))
        .probes(2);
    let seen = handler_fn(|conn: &mut Connection| {
        let fd = conn.as_fd();
        Ok(writeln!(
            &mut conn.writer(),
            "{} {:?} {:?} {} {} {}",
            sockopt::socket_keepalive(fd)?,
            sockopt::tcp_keepidle(fd)?,
            sockopt::tcp_keepintvl(fd)?,
            sockopt::tcp_keepcnt(fd)?,
            sockopt::tcp_user_timeout(fd)?,
            sockopt::tcp_nodelay(fd)?,
        )?)
    });
    let builder = || Server::<Tcp, Threading>::builder().without_nodelay();
    let tuned = || {
        builder()
            .keepalive(keepalive)
            .user_timeout(Duration::from_millis(14_500))
    };
    let foreign = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for server in [
        tuned().bind("127.0.0.1:0", seen.clone()).unwrap(),
        tuned().adopt(foreign, seen.clone()).unwrap(),
    ] {
        let running = Running::start(server);
        let answer = running.client().rest().unwrap();
        assert_eq!(
            String::from_utf8(answer).unwrap(),
            "true 7s 3s 2 14500 false\n"
        );
    }
    let plain = Running::start(builder().bind("127.0.0.1:0", seen.clone()).unwrap());
    assert!(plain.client().rest().unwrap().starts_with(b"false "));
    let absurd = builder().keepalive(keepalive.probes(1000));
    let error = absurd.bind("127.0.0.1:0", seen).unwrap_err();
    assert!(error.to_string().contains("set the options"), "{error}");
}

#[test]
fn the_peer_of_a_unix_connection_is_known_by_the_kernel() {
    let dir = tempfile::tempdir().unwrap();
    let whoami = handler_fn(|conn: &mut Connection| {
        let peer = conn.peer_credentials()?;
        conn.set_nodelay(true)?;
        let unnamed = conn.peer_addr().is_unnamed();
        Ok(writeln!(
            conn,
            "{} {} {} {unnamed}",
            peer.pid, peer.uid, peer.gid
        )?)
    });
    let server = ThreadingUnixStreamServer::bind(dir.path().join("socket"), whoami).unwrap();
    let running = Running::start(server);
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let expected = format!("{} {uid} {gid} true", std::process::id());
    assert_eq!(running.client().hear().unwrap(), Some(expected));
}

/// A peer that sends for as long as it likes must not keep a finished request open.
#[test]
fn a_peer_that_never_stops_sending_is_closed_on() {
    let timeouts = Timeouts::default().write(Some(Duration::from_secs(5)));
    let leave = handler_fn(|conn: &mut Connection| {
        conn.read_exact(&mut [0])?;
        Ok(conn.write_all(b"bye\n")?)
    });
    let server = ThreadingTcpServer::builder()
        .timeouts(timeouts)
        .bind("127.0.0.1:0", leave);
    let running = Running::start(server.unwrap());
    let mut client = running.client();
    let since = Instant::now();
    while client.send(&[b'x'; 4096]).is_ok() {
        assert!(since.elapsed() < PATIENCE, "the server reads for ever");
    }
    eventually(PATIENCE, "the request to end", || {
        running.handle.active_count() == 0
    });
}
