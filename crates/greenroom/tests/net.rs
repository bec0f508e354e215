//! Sockets in coroutines, in threads, and between both.

#![allow(clippy::unwrap_used)]

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use greenroom::net::{
    PacketInfo, TcpListener, TcpStream, Transmit, UdpSocket, UnixDatagram, UnixListener,
    UnixStream, send_together, send_together_from,
};
use greenroom::{Interest, Readiness, Runtime, spawn};
use rustix::net::SocketAddrAny;

const TIMEOUT: Duration = Duration::from_secs(20);

fn echo(mut stream: impl Read + Write) -> io::Result<u64> {
    let mut buf = [0; 1024];
    let mut total = 0;
    loop {
        let n = stream.read(&mut buf)?;
        if n == 0 {
            return Ok(total);
        }
        stream.write_all(&buf[..n])?;
        total += n as u64;
    }
}

/// Starts an echo server in coroutines; returns its address.
fn serve(runtime: &Runtime) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let _ = runtime
        .spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let _ = spawn(move || echo(stream)).unwrap();
            }
        })
        .unwrap();
    address
}

fn client(address: std::net::SocketAddr) -> std::net::TcpStream {
    let client = std::net::TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    client
}

fn exchange(client: &mut (impl Read + Write), bytes: &[u8]) {
    client.write_all(bytes).unwrap();
    let mut answer = vec![0; bytes.len()];
    client.read_exact(&mut answer).unwrap();
    assert!(answer == bytes);
}

#[test]
fn one_worker_serves_many_clients() {
    let runtime = Runtime::builder().workers(1).build().unwrap();
    let address = serve(&runtime);
    let mut clients: Vec<_> = (0..300).map(|_| client(address)).collect();
    for round in 0_u8..5 {
        for client in &mut clients {
            exchange(client, &[round; 100]);
        }
    }
    assert!(
        runtime.shutdown(TIMEOUT),
        "all waits fail, and all coroutines end"
    );
    for mut client in clients {
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn coroutines_exchange_megabytes_in_both_directions() {
    let runtime = Runtime::builder().workers(2).build().unwrap();
    let address = serve(&runtime);
    let all: Vec<_> = (0..4_u8)
        .map(|n| {
            runtime
                .spawn(move || {
                    let stream = TcpStream::connect(address).unwrap();
                    let bytes = vec![n; 4 << 20];
                    std::thread::scope(|_| ());
                    // Reads and writes at the same time, from two coroutines on one socket.
                    let stream = std::rc::Rc::new(stream);
                    let writer = stream.clone();
                    let sent = bytes.clone();
                    let writing = spawn(move || {
                        (&*writer).write_all(&sent).unwrap();
                        writer.shutdown(Shutdown::Write).unwrap();
                    })
                    .unwrap();
                    let mut back = Vec::new();
                    (&*stream).read_to_end(&mut back).unwrap();
                    writing.join().unwrap();
                    back == bytes
                })
                .unwrap()
        })
        .collect();
    assert!(all.into_iter().all(|one| one.join().unwrap()));
}

#[test]
fn data_and_end_of_input_in_one_report_are_both_read() {
    // Bytes and FIN may arrive in one edge while the reader is parked. It must not miss either.
    let runtime = Runtime::builder().workers(1).build().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = runtime
        .spawn(move || {
            for _ in 0..500 {
                let (mut stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(Some(TIMEOUT)).unwrap();
                let mut all = Vec::new();
                stream.read_to_end(&mut all).unwrap();
                assert_eq!(all, b"hello world");
            }
        })
        .unwrap();
    for _ in 0..500 {
        let mut client = client(address);
        client.write_all(b"hello ").unwrap();
        client.write_all(b"world").unwrap();
        drop(client);
    }
    server.join().unwrap();
}

#[test]
fn timeouts_end_waits_and_leave_the_socket_usable() {
    let runtime = Runtime::builder().workers(1).build().unwrap();
    let (tx, rx) = mpsc::channel();
    let _ = runtime
        .spawn(move || {
            let (mut near, mut far) = UnixStream::pair().unwrap();
            near.set_read_timeout(Some(Duration::from_millis(30)))
                .unwrap();
            let before = Instant::now();
            let error = near.read(&mut [0]).unwrap_err();
            tx.send((error.kind(), before.elapsed())).unwrap();
            far.write_all(b"x").unwrap();
            assert_eq!(near.read(&mut [0; 8]).unwrap(), 1);
            near.set_write_timeout(Some(Duration::from_millis(30)))
                .unwrap();
            let error = near.write_all(&vec![0; 16 << 20]).unwrap_err();
            tx.send((error.kind(), before.elapsed())).unwrap();
            assert_eq!(
                near.set_read_timeout(Some(Duration::ZERO))
                    .unwrap_err()
                    .kind(),
                ErrorKind::InvalidInput
            );
        })
        .unwrap();
    for _ in 0..2 {
        let (kind, elapsed) = rx.recv_timeout(TIMEOUT).unwrap();
        assert_eq!(kind, ErrorKind::TimedOut);
        assert!(elapsed >= Duration::from_millis(30) && elapsed < TIMEOUT);
    }
}

#[test]
fn changed_deadlines_are_met_with_one_timer_per_coroutine() {
    let runtime = Runtime::builder().workers(1).build().unwrap();
    let done = runtime.spawn(|| {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        // A long deadline first, then a shorter one, then a longer one again.
        for ms in [200, 20, 60, 10] {
            near.set_read_timeout(Some(Duration::from_millis(200)))
                .unwrap();
            far.write_all(b"x").unwrap();
            near.read_exact(&mut [0]).unwrap();
            near.set_read_timeout(Some(Duration::from_millis(ms)))
                .unwrap();
            let before = Instant::now();
            assert_eq!(near.read(&mut [0]).unwrap_err().kind(), ErrorKind::TimedOut);
            let elapsed = before.elapsed();
            assert!(elapsed >= Duration::from_millis(ms), "{ms}: {elapsed:?}");
            assert!(
                elapsed < Duration::from_millis(ms) + TIMEOUT / 10,
                "{ms}: {elapsed:?}"
            );
        }
    });
    done.unwrap().join().unwrap();
}

#[test]
fn peer_that_is_always_ready_does_not_occupy_the_worker() {
    let runtime = Runtime::builder().workers(1).build().unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    let flood = std::thread::spawn(move || {
        let mut far = far;
        while far.write_all(&[0; 65_536]).is_ok() {}
    });
    let (stop, stopped) = mpsc::channel::<()>();
    let reader = runtime
        .spawn(move || {
            let mut near = near;
            let mut byte = [0];
            // Reads a byte at a time from a full buffer, so that it never has to wait.
            while stopped.try_recv().is_err() {
                near.read_exact(&mut byte).unwrap();
            }
        })
        .unwrap();
    for _ in 0..20 {
        let (tx, rx) = mpsc::channel();
        let _ = runtime.spawn(move || tx.send(()).unwrap()).unwrap();
        rx.recv_timeout(TIMEOUT).expect("another coroutine runs");
    }
    stop.send(()).unwrap();
    reader.join().unwrap();
    flood.join().unwrap();
}

/// All peers together run little longer between two resumptions than one peer alone.
#[test]
fn peers_that_are_always_ready_share_the_operation_budget() {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    const PEERS: usize = 100;
    let runtime = Runtime::builder().workers(1).build().unwrap();
    let (done, operations) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let busy: Vec<_> = (0..PEERS)
        .map(|_| {
            let (done, operations) = (done.clone(), operations.clone());
            runtime.spawn(move || {
                let (mut near, mut far) = UnixStream::pair().unwrap();
                let mut byte = [0];
                while !done.load(Ordering::Relaxed) {
                    near.write_all(&[1]).unwrap();
                    far.read_exact(&mut byte).unwrap();
                    operations.fetch_add(2, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let observer = runtime.spawn({
        let done = done.clone();
        move || {
            let longest = (0..50).map(|_| {
                let before = operations.load(Ordering::Relaxed);
                greenroom::yield_now();
                operations.load(Ordering::Relaxed) - before
            });
            let longest = longest.max().unwrap();
            done.store(true, Ordering::Relaxed);
            longest
        }
    });
    let longest = observer.unwrap().join().unwrap();
    for peer in busy {
        peer.unwrap().join().unwrap();
    }
    assert!(longest >= PEERS, "the peers were not busy: {longest}");
    assert!(longest <= 8 * PEERS, "{longest} operations in a round");
}

#[test]
fn udp_and_unix_sockets_exchange_data() {
    let runtime = Runtime::builder().workers(1).build().unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = udp.local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let server = runtime
        .spawn(move || {
            let udp_server = spawn(move || {
                let mut buf = [0; 100];
                let (n, from) = udp.recv_from(&mut buf).unwrap();
                udp.send_to(&buf[..n], from).unwrap();
            });
            let (stream, _) = listener.accept().unwrap();
            echo(stream).unwrap();
            udp_server.unwrap().join().unwrap();
        })
        .unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(address).unwrap();
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    client.send(b"ping").unwrap();
    let mut buf = [0; 100];
    assert_eq!(client.recv(&mut buf).unwrap(), 4);
    let mut stream = UnixStream::connect(&path).unwrap();
    exchange(&mut stream, b"over unix");
    drop(stream);
    server.join().unwrap();

    let (one, other) = UnixDatagram::pair().unwrap();
    one.send(b"").unwrap();
    assert_eq!(
        other.recv(&mut buf).unwrap(),
        0,
        "an empty datagram arrives"
    );
}

#[test]
fn connect_to_a_closed_port_is_refused() {
    let runtime = Runtime::builder().workers(1).build().unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let refused = runtime
        .spawn(move || TcpStream::connect(closed).map(drop))
        .unwrap();
    assert_eq!(
        refused.join().unwrap().unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
}

#[test]
fn read_while_panicking_fails_with_advice() {
    struct Reads(UnixStream, mpsc::Sender<io::Error>);
    impl Drop for Reads {
        fn drop(&mut self) {
            let error = self.0.read(&mut [0]).unwrap_err();
            self.1.send(error).unwrap();
        }
    }
    let runtime = Runtime::builder().workers(1).build().unwrap();
    let (tx, rx) = mpsc::channel();
    let panicking = runtime.spawn(move || {
        let (near, _far) = UnixStream::pair().unwrap();
        let _reads = Reads(near, tx);
        panic!("boom");
    });
    assert!(panicking.unwrap().join().is_err());
    let error = rx.recv_timeout(TIMEOUT).unwrap();
    assert_eq!(error.kind(), ErrorKind::ResourceBusy);
    assert!(error.to_string().contains("destructor"), "{error}");
}

#[test]
fn shutdown_returns_although_a_coroutine_ignores_all_errors() {
    let runtime = Runtime::builder().workers(1).build().unwrap();
    let (tx, rx) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let endless = runtime
        .spawn(move || {
            let (mut near, _far) = UnixStream::pair().unwrap();
            let mut failures = 0_u64;
            while released.try_recv().is_err() {
                if near.read(&mut [0]).is_err() {
                    failures += 1;
                    if failures == 1 {
                        tx.send(()).unwrap();
                    }
                    greenroom::yield_now();
                }
            }
            failures
        })
        .unwrap();
    assert!(
        !runtime.shutdown(Duration::from_millis(50)),
        "the coroutine does not end"
    );
    rx.recv_timeout(TIMEOUT).unwrap();
    release.send(()).unwrap();
    assert!(runtime.shutdown(TIMEOUT));
    assert!(endless.join().unwrap() > 0);
}

#[test]
fn socket_moves_to_another_worker_and_to_a_thread() {
    let runtime = Runtime::builder().workers(2).build().unwrap();
    let (near, mut far) = UnixStream::pair().unwrap();
    let step = |mut near: UnixStream| {
        move || {
            near.set_read_timeout(Some(TIMEOUT)).unwrap();
            let mut byte = [0];
            near.read_exact(&mut byte).unwrap();
            (near, byte[0])
        }
    };
    let mut near = near;
    for n in 0..10 {
        let waiting = runtime.spawn(step(near)).unwrap();
        // Occupies the worker that the socket does not use, so that the next coroutine runs
        // elsewhere.
        far.write_all(&[n]).unwrap();
        let (back, byte) = waiting.join().unwrap();
        assert_eq!(byte, n);
        far.write_all(&[n]).unwrap();
        let (back, byte) = step(back)();
        assert_eq!(byte, n, "in a thread");
        near = back;
    }
}

/// Echoes one message at a time, and holds no stack between messages.
fn echo_between_sleeps(stream: Watched, until: Instant, ended: mpsc::Sender<io::Result<()>>) {
    Readiness::when_ready(
        stream,
        |stream| (&stream.readiness, stream.socket.as_fd()),
        Interest::Read,
        Some(until),
        "sleeper",
        move |mut stream, result| {
            let mut buf = [0; 100];
            match result.and_then(|()| stream.socket.read(&mut buf)) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Ok(n) if n > 0 => stream.socket.write_all(&buf[..n]).unwrap(),
                other => return ended.send(other.map(drop)).unwrap(),
            }
            echo_between_sleeps(stream, until, ended);
        },
    );
}

struct Watched {
    readiness: Readiness,
    socket: std::os::unix::net::UnixStream,
}

/// Returns a connection that is watched, and its peer.
fn watched() -> (Watched, std::os::unix::net::UnixStream) {
    let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_read_timeout(Some(TIMEOUT)).unwrap();
    let watched = Watched {
        readiness: Readiness::new(),
        socket: near,
    };
    (watched, far)
}

#[test]
fn connection_between_messages_holds_no_stack() {
    let runtime = Runtime::builder()
        .workers(1)
        .max_coroutines(4)
        .build()
        .unwrap();
    let (tx, rx) = mpsc::channel();
    let begin = |until| {
        let (near, far) = watched();
        let tx = tx.clone();
        let begun = runtime.spawn(move || echo_between_sleeps(near, until, tx));
        begun.unwrap().join().unwrap();
        far
    };
    // More connections than there are stacks.
    let later = Instant::now() + 2 * TIMEOUT;
    let mut far: Vec<_> = (0..50).map(|_| begin(later)).collect();
    let end = Instant::now() + TIMEOUT;
    while runtime.counters().stacks_in_use > 0 {
        assert!(Instant::now() < end);
    }
    for round in 0..3_u8 {
        for far in &mut far {
            far.write_all(&[round; 10]).unwrap();
        }
        for far in &mut far {
            far.read_exact(&mut [0; 10]).unwrap();
        }
    }
    drop(far.split_off(25));
    for _ in 0..25 {
        let end = rx.recv_timeout(TIMEOUT).unwrap();
        assert!(end.is_ok(), "an end of input");
    }
    let _silent = begin(Instant::now() + Duration::from_millis(30));
    let late = rx.recv_timeout(TIMEOUT).unwrap();
    assert_eq!(late.unwrap_err().kind(), ErrorKind::TimedOut);
    assert!(runtime.shutdown(TIMEOUT));
    let errors: Vec<_> = rx.try_iter().map(|end| end.unwrap_err().kind()).collect();
    assert_eq!(errors, [ErrorKind::ConnectionAborted; 25]);
}

#[test]
fn datagrams_sent_together_arrive_once_and_fail_independently() {
    let runtime = Runtime::builder().workers(1).build().unwrap();
    let receiver = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    receiver.set_read_timeout(Some(TIMEOUT)).unwrap();
    let good = receiver.local_addr().unwrap();
    let socket: Arc<OwnedFd> = Arc::new(std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into());
    let failed = Arc::new(AtomicUsize::new(0));
    let start = || {
        let (socket, failed) = (socket.clone(), failed.clone());
        move |n: u32| {
            for round in 0..10_u32 {
                // Port 0 is invalid, and 100,000 bytes exceed the maximum size of a datagram.
                let (bytes, to) = match n % 8 {
                    0 => (vec![0; 4], "127.0.0.1:0".parse().unwrap()),
                    1 => (vec![0; 100_000], good),
                    _ => ((n * 10 + round).to_ne_bytes().to_vec(), good),
                };
                if send_together(&socket, &bytes, to).is_err() {
                    failed.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    };
    for n in 0..16_u32 {
        let run = start();
        let _ = runtime.spawn(move || run(n)).unwrap();
    }
    let mut seen: Vec<u32> = (0..120)
        .map(|_| {
            let mut bytes = [0; 4];
            assert_eq!(receiver.recv(&mut bytes).unwrap(), 4);
            u32::from_ne_bytes(bytes)
        })
        .collect();
    assert!(runtime.shutdown(TIMEOUT));
    assert_eq!(failed.load(Ordering::Relaxed), 40);
    seen.sort_unstable();
    let expected = (0..160).filter(|n| n / 10 % 8 > 1);
    assert!(seen.into_iter().eq(expected));
    // Outside of the runtime, the datagram is sent at once.
    send_together(&socket, b"last", good).unwrap();
    assert_eq!(receiver.recv(&mut [0; 9]).unwrap(), 4);
}

/// Each datagram has its own source address, also within one batch.
#[test]
fn datagrams_sent_together_keep_their_source_addresses() {
    let runtime = Runtime::builder().workers(1).build().unwrap();
    let receiver = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    receiver.set_read_timeout(Some(TIMEOUT)).unwrap();
    let to = receiver.local_addr().unwrap().into();
    let socket: Arc<OwnedFd> = Arc::new(std::net::UdpSocket::bind("0.0.0.0:0").unwrap().into());
    for n in 1..=40_u8 {
        let (socket, to) = (socket.clone(), SocketAddrAny::clone(&to));
        let run = move || {
            for _ in 0..5 {
                let ip = [127, 0, 0, n].into();
                let local = (n % 4 > 0).then_some(PacketInfo { ip, interface: 0 });
                let packet = Transmit::new(std::slice::from_ref(&n), &to).from(local);
                send_together_from(&socket, &packet).unwrap();
            }
            // TEST-NET-2 (RFC 5737) is not an address of this machine: only this datagram fails.
            let ip = [198, 51, 100, n].into();
            let foreign = Transmit::new(b"?", &to).from(Some(PacketInfo { ip, interface: 0 }));
            assert!(send_together_from(&socket, &foreign).is_err());
        };
        let _ = runtime.spawn(run).unwrap();
    }
    let mut seen = [0; 41];
    for _ in 0..200 {
        let mut bytes = [0; 9];
        let (length, from) = receiver.recv_from(&mut bytes).unwrap();
        assert_eq!(length, 1);
        let n = bytes[0];
        let expected = if n % 4 > 0 { n } else { 1 };
        assert_eq!(from.ip(), std::net::IpAddr::from([127, 0, 0, expected]));
        seen[usize::from(n)] += 1;
    }
    assert!(seen[1..].iter().all(|times| *times == 5), "{seen:?}");
    assert!(runtime.shutdown(TIMEOUT));
}

#[test]
fn panicking_coroutine_can_send_a_datagram() {
    struct SendOnDrop(Arc<OwnedFd>, std::net::SocketAddr);
    impl Drop for SendOnDrop {
        fn drop(&mut self) {
            send_together(&self.0, b"bye", self.1).unwrap();
        }
    }
    let runtime = Runtime::builder().workers(1).build().unwrap();
    let receiver = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    receiver.set_read_timeout(Some(TIMEOUT)).unwrap();
    let to = receiver.local_addr().unwrap();
    let socket: Arc<OwnedFd> = Arc::new(receiver.try_clone().unwrap().into());
    let panicking: Vec<_> = (0..20)
        .map(|_| {
            let send_on_drop = SendOnDrop(socket.clone(), to);
            let run = move || {
                let _send_on_drop = send_on_drop;
                panic!("on purpose");
            };
            runtime.spawn(run).unwrap()
        })
        .collect();
    for _ in &panicking {
        assert_eq!(receiver.recv(&mut [0; 9]).unwrap(), 3);
    }
    assert!(
        panicking
            .into_iter()
            .all(|panicking| panicking.join().is_err())
    );
}

/// tcp(7): a read does not go past urgent data. A short read may leave data behind.
#[test]
fn data_after_urgent_data_is_read() {
    let runtime = Runtime::builder().workers(1).build().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let client = client(listener.local_addr().unwrap());
    client.set_nodelay(true).unwrap();
    let stream: TcpStream = listener.accept().unwrap().0.try_into().unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let stream = Arc::new(stream);
    let reader_stream = stream.clone();
    let (begun_tx, begun_rx) = mpsc::channel();
    let (sent_tx, sent_rx) = mpsc::channel();
    let reader = runtime
        .spawn(move || {
            let mut stream = &*reader_stream;
            let mut first = [0; 8];
            assert_eq!(stream.read(&mut first).unwrap(), 1);
            begun_tx.send(()).unwrap();
            // The worker delivers no reports while this coroutine blocks it.
            sent_rx.recv_timeout(TIMEOUT).unwrap();
            let mut rest = [0; 2];
            let mut got = 0;
            while got < rest.len() {
                // With more space than there is data.
                let mut buf = [0; 8];
                let n = stream.read(&mut buf).unwrap();
                rest[got..got + n].copy_from_slice(&buf[..n]);
                got += n;
            }
            rest
        })
        .unwrap();
    let send = |bytes, flags| assert_eq!(rustix::net::send(&client, bytes, flags), Ok(1));
    let usual = rustix::net::SendFlags::empty();
    let end = Instant::now() + TIMEOUT;
    while !format!("{stream:?}").contains("waiting: 1") {
        assert!(Instant::now() < end, "the reader does not wait: {stream:?}");
    }
    send(b"0", usual);
    begun_rx.recv_timeout(TIMEOUT).unwrap();
    send(b"a", usual);
    send(b"!", rustix::net::SendFlags::OOB);
    send(b"b", usual);
    sent_tx.send(()).unwrap();
    // The connection stays open, because its end would be reported, too.
    assert_eq!(reader.join().unwrap(), *b"ab");
}

/// A read ends at a descriptor that was sent along (unix(7)). Such a short read leaves data behind,
/// although the kernel reported all of it at once.
#[test]
fn what_follows_a_descriptor_is_read() {
    let engine = Runtime::builder().workers(1).build().unwrap();
    let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
    let stream: UnixStream = near.try_into().unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let theirs = far.try_clone().unwrap();
    let reader = engine
        .spawn(move || {
            let mut stream = &stream;
            let mut got = Vec::new();
            // It runs when this one waits, and this one goes on when all has been sent.
            let sender = spawn(move || {
                let (read_end, write_end) = io::pipe().unwrap();
                send_with(&theirs, b"a", write_end.as_fd());
                (&theirs).write_all(b"b").unwrap();
                read_end
            });
            while got.len() < 2 {
                // With room for more than there is.
                let mut buf = [0; 8];
                let n = stream.read(&mut buf).unwrap();
                got.extend_from_slice(&buf[..n]);
            }
            // The descriptor was not taken: nothing holds the other end open.
            let mut read_end = sender.unwrap().join().unwrap();
            assert_eq!(read_end.read(&mut [0]).unwrap(), 0);
            got
        })
        .unwrap();
    assert_eq!(reader.join().unwrap(), *b"ab");
    drop(far);
}

/// Sends bytes and a descriptor along with them.
fn send_with(stream: impl AsFd, bytes: &[u8], fd: std::os::fd::BorrowedFd<'_>) {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let bytes_of = [io::IoSlice::new(bytes)];
    let sent = sendmsg(stream, &bytes_of, &mut control, SendFlags::empty());
    assert_eq!(sent, Ok(bytes.len()));
}
