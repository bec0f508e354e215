//! A `Connection` in detail: reads, writes, limits, and its description in `active`.

#![allow(clippy::unwrap_used, reason = "a test prints why it fails")]

mod common;

use std::io::{BufRead, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use common::running::{Running, echo};
use common::{TIMEOUT, eventually};
use rustix::net::sockopt;
use socketserver::transport::Tcp;
use socketserver::{
    Connection, EndReason, Event, RequestId, Result, Server, TcpKeepalive, Threading,
    ThreadingTcpServer, ThreadingUnixStreamServer, Timeouts, handler_fn,
};

/// Starts a server with the handler `handle`. The receiver gets the reason of each request's end,
/// which depends on the result or panic of `handle`.
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
fn expect_completed(ends: &Receiver<EndReason>) {
    assert_eq!(ends.recv_timeout(TIMEOUT).unwrap(), EndReason::Completed);
}

#[test]
fn buffered_and_plain_reads_can_be_mixed() {
    let (running, ends) = serve(|conn| {
        let mut line = String::new();
        conn.read_line(&mut line)?;
        assert_eq!(line, "a line\n");
        // These bytes are in the buffer already, and come first.
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
        // More than the buffer holds.
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
    assert_eq!(client.receive_line().unwrap().as_deref(), Some("go on"));
    client.send(b"the rest").unwrap();
    client.half_close().unwrap();
    expect_completed(&ends);
}

#[test]
fn lines_are_the_same_at_every_split() {
    let running = Running::start(ThreadingTcpServer::bind("127.0.0.1:0", echo()).unwrap());
    let text = "first\n\nthird line\n";
    for split in 0..=text.len() {
        let mut client = running.client();
        let (head, tail) = text.split_at(split);
        client.send(head.as_bytes()).unwrap();
        // The second part is sent after the first was read.
        let moved =
            |live: &[socketserver::ActiveRequest]| live.iter().any(|r| r.received == split as u64);
        eventually(TIMEOUT, "the head to be read", || {
            split == 0 || moved(&running.handle.active())
        });
        client.send(tail.as_bytes()).unwrap();
        client.half_close().unwrap();
        assert_eq!(
            client.read_rest().unwrap(),
            text.as_bytes(),
            "split at {split}"
        );
        eventually(TIMEOUT, "the request to end", || {
            running.handle.active_count() == 0
        });
    }
}

#[test]
fn take_limits_a_line_without_end() {
    let (running, ends) = serve(|conn| {
        let mut line = String::new();
        assert_eq!(conn.take(1000).read_line(&mut line)?, 1000);
        conn.write_all(b"enough\n")?;
        Ok(())
    });
    let mut client = running.client();
    client.send(&[b'x'; 100_000]).unwrap();
    assert_eq!(client.receive_line().unwrap().as_deref(), Some("enough"));
    client.half_close().unwrap();
    expect_completed(&ends);
}

#[test]
fn writer_writes_from_another_thread() {
    let (running, ends) = serve(|conn| {
        let mut writer = conn.writer();
        let ticking = std::thread::spawn(move || {
            (0..1000).try_for_each(|n| writeln!(writer, "{n}"))?;
            writer.flush()
        });
        // This thread reads at the same time.
        let mut command = String::new();
        conn.read_line(&mut command)?;
        ticking.join().unwrap()?;
        conn.write_all(command.as_bytes())?;
        Ok(())
    });
    let mut client = running.client();
    for n in 0..1000 {
        assert_eq!(client.receive_line().unwrap(), Some(n.to_string()));
    }
    assert_eq!(client.ask("stop"), "stop");
    expect_completed(&ends);
}

#[test]
fn write_after_the_end_of_the_request_fails() {
    let (sender, writers) = channel();
    let (running, ends) = serve(move |conn| Ok(sender.send(conn.writer())?));
    let client = running.client();
    client.half_close().unwrap();
    expect_completed(&ends);
    // Otherwise the client would not read an end of input while a thread keeps a writer.
    assert!(client.read_rest().unwrap().is_empty());
    let mut writer = writers.recv_timeout(TIMEOUT).unwrap();
    assert_eq!(
        writer.write(b"late").unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
}

#[test]
fn cancelled_connection_fails_reads_and_writes() {
    let (sender, kinds) = channel();
    let (running, ends) = serve(move |conn| {
        let read = conn.read(&mut [0; 8]).unwrap_err();
        let write = conn.write(b"x").unwrap_err();
        sender.send((read.kind(), write.kind()))?;
        Err(read.into())
    });
    let client = running.client();
    let id = active_id(&running);
    assert!(running.handle.cancel(id));
    let aborted = ErrorKind::ConnectionAborted;
    assert_eq!(kinds.recv_timeout(TIMEOUT).unwrap(), (aborted, aborted));
    assert_eq!(ends.recv_timeout(TIMEOUT).unwrap(), EndReason::Cancelled);
    assert!(client.was_closed_by_server());
    eventually(TIMEOUT, "the request to be removed", || {
        running.handle.active_count() == 0
    });
    assert!(
        !running.handle.cancel(id),
        "the request does not exist any more"
    );
    assert!(!running.handle.cancel(RequestId::from(12_345)));
    assert_eq!(running.handle.counters().cancelled, 1);
}

#[test]
fn cancel_ends_a_blocked_write() {
    let (running, ends) = serve(|conn| Ok(conn.write_all(&vec![0; 64 << 20])?));
    let mut client = running.client();
    let id = active_id(&running);
    assert_ne!(client.read(&mut [0]).unwrap(), 0);
    assert!(running.handle.cancel(id));
    assert_eq!(ends.recv_timeout(TIMEOUT).unwrap(), EndReason::Cancelled);
    drop(client);
}

#[track_caller]
fn active_id(running: &Running) -> RequestId {
    let handle = &running.handle;
    eventually(TIMEOUT, "a request to be active", || {
        handle.active_count() == 1
    });
    handle.active()[0].info.id()
}

#[test]
fn active_requests_are_listed_with_byte_counts() {
    let running = Running::start(ThreadingTcpServer::bind("127.0.0.1:0", echo()).unwrap());
    let mut one = running.client();
    assert_eq!(one.ask("12345"), "12345");
    let mut two = running.client();
    assert_eq!(two.ask("1"), "1");
    // A byte is counted a moment after it was sent.
    let mut seen = Vec::new();
    eventually(TIMEOUT, "every byte to be counted", || {
        seen = running.handle.active();
        seen.iter().map(|r| r.received + r.sent).sum::<u64>() == 16
    });
    let counts: Vec<_> = seen
        .iter()
        .map(|r| (r.info.id().get(), r.received, r.sent))
        .collect();
    assert_eq!(counts, [(1, 6, 6), (2, 2, 2)]);
    let common::client::Endpoint::Tcp(address) = running.endpoint else {
        panic!("no TCP")
    };
    assert!(seen.iter().all(|r| *r.info.listener() == address));
    assert_ne!(seen[0].info.peer(), seen[1].info.peer());
    assert!(seen[0].info.age() >= seen[1].info.age());
    drop((one, two));
    eventually(TIMEOUT, "both to end", || {
        running.handle.active().is_empty()
    });
    let counters = running.handle.counters();
    assert_eq!((counters.accepted, counters.ended), (2, 2));
    assert_eq!((counters.bytes_received, counters.bytes_sent), (8, 8));
}

#[test]
fn zero_timeout_is_invalid_and_changes_nothing() {
    let (running, ends) = serve(|conn| {
        let before = conn.timeouts();
        let zero = Some(Duration::ZERO);
        for result in [
            conn.set_idle_timeout(zero),
            conn.set_read_timeout(zero),
            conn.set_write_timeout(zero),
        ] {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        assert_eq!(conn.timeouts(), before);
        conn.set_read_timeout(None)?;
        Ok(())
    });
    let _client = running.client();
    expect_completed(&ends);
}

#[test]
fn timeouts_can_be_set_for_one_connection() {
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
        // A deadline in the past fails a read even if there is input, and a write.
        conn.set_deadline(Some(Instant::now()));
        assert_eq!(conn.write(b"x").unwrap_err().kind(), ErrorKind::TimedOut);
        conn.set_deadline(None);
        conn.write_all(b"still usable\n")?;
        Ok(())
    });
    let mut client = running.client();
    assert_eq!(
        client.receive_line().unwrap().as_deref(),
        Some("still usable")
    );
    expect_completed(&ends);
}

/// The idle timeout covers both directions: writes from another thread keep the connection active.
#[test]
fn connection_with_writes_is_not_idle() {
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
    expect_completed(&ends);
}

#[test]
fn vectored_write_is_one_write() {
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
    assert_eq!(running.client().read_rest().unwrap(), b"head and tail\n");
    expect_completed(&ends);
}

#[test]
fn peer_and_local_address_are_known() {
    let (running, ends) = serve(|conn| {
        let (peer, local) = (conn.peer_addr().clone(), conn.local_addr()?);
        assert!(
            sockopt::tcp_nodelay(conn.as_fd())?,
            "TCP_NODELAY is set by default"
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
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut line = String::new();
    std::io::BufReader::new(&client)
        .read_line(&mut line)
        .unwrap();
    assert_eq!(
        line,
        format!("{} {address}\n", client.local_addr().unwrap())
    );
    expect_completed(&ends);
}

#[test]
fn connections_inherit_the_options_of_the_listener() {
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
        let answer = running.client().read_rest().unwrap();
        assert_eq!(
            String::from_utf8(answer).unwrap(),
            "true 7s 3s 2 14500 false\n"
        );
    }
    let plain = Running::start(builder().bind("127.0.0.1:0", seen.clone()).unwrap());
    assert!(plain.client().read_rest().unwrap().starts_with(b"false "));
    let invalid = builder().keepalive(keepalive.probes(1000));
    let error = invalid.bind("127.0.0.1:0", seen).unwrap_err();
    assert!(error.to_string().contains("set the options"), "{error}");
}

#[test]
fn unix_connection_has_peer_credentials() {
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
    assert_eq!(running.client().receive_line().unwrap(), Some(expected));
}

/// A peer that never stops sending must not keep a finished request open.
#[test]
fn peer_that_never_stops_sending_is_closed() {
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
        assert!(since.elapsed() < TIMEOUT, "the server reads without end");
    }
    eventually(TIMEOUT, "the request to end", || {
        running.handle.active_count() == 0
    });
}
