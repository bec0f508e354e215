//! One descriptor, used by coroutines of several workers and by threads at the same time.

#![allow(clippy::unwrap_used)]

use std::fmt::Debug;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use greenroom::net::UnixStream;
use greenroom::{Interest, JoinHandle, Readiness, Runtime};

const TIMEOUT: Duration = Duration::from_secs(20);

/// The time after which a missing wake-up counts as lost.
const LOST: Duration = Duration::from_secs(5);

fn two_workers() -> Runtime {
    Runtime::builder().workers(2).build().unwrap()
}

/// A stream without waits of its own, and its readiness.
struct Shared {
    readiness: Readiness,
    stream: net::UnixStream,
}

fn shared() -> (Arc<Shared>, net::UnixStream) {
    let (stream, peer) = net::UnixStream::pair().unwrap();
    stream.set_nonblocking(true).unwrap();
    let readiness = Readiness::new();
    (Arc::new(Shared { readiness, stream }), peer)
}

impl Shared {
    /// Reads as the sockets of this crate do: waits first if the socket is known to be empty.
    fn read(&self, buf: &mut [u8], mut waiting_tx: impl FnMut()) -> std::io::Result<usize> {
        let mut is_exhausted = self.readiness.is_exhausted();
        loop {
            if !std::mem::take(&mut is_exhausted) {
                match (&self.stream).read(buf) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    result => return result,
                }
            }
            waiting_tx();
            let deadline = Some(Instant::now() + LOST);
            self.readiness
                .wait(self.stream.as_fd(), Interest::Read, deadline)?;
        }
    }
}

/// Waits until `many` waiters are in the list.
fn wait_for_waiters(readiness: &impl Debug, many: usize) {
    let wanted = format!("waiting: {many}");
    let end = Instant::now() + TIMEOUT;
    while !format!("{readiness:?}").contains(&wanted) {
        assert!(
            Instant::now() < end,
            "there are no {many} waiters: {readiness:?}"
        );
        thread::yield_now();
    }
}

/// Starts a coroutine on each of two workers. The first one watches, because it waits first.
fn on_both<T: Send + 'static>(
    runtime: &Runtime,
    watching: impl FnOnce() -> T + Send + 'static,
    other: impl FnOnce() -> T + Send + 'static,
) -> [JoinHandle<T>; 2] {
    // Permits that are reserved together are on different workers.
    let permits = [runtime.reserve().unwrap(), runtime.reserve().unwrap()];
    let [first, second] = permits;
    [
        first.spawn("watching", watching),
        second.spawn("other", other),
    ]
}

/// The read fails with `WouldBlock`, then a report wakes another waiter, and only then the wait
/// begins.
#[test]
fn report_between_the_attempt_and_the_wait_is_not_lost() {
    let runtime = two_workers();
    let (shared, mut peer) = shared();
    let (waiting_tx, waiting_rx) = mpsc::channel();
    let (read_tx, read_rx) = mpsc::channel();
    let watched = shared.clone();
    let [watching, other] = on_both(
        &runtime,
        move || {
            let mut byte = [0];
            watched
                .read(&mut byte, || waiting_tx.send(()).unwrap())
                .unwrap();
            read_tx.send(()).unwrap();
        },
        move || {
            waiting_rx.recv_timeout(TIMEOUT).unwrap();
            let nothing = (&shared.stream).read(&mut [0]).unwrap_err();
            assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
            peer.write_all(b"ab").unwrap();
            read_rx.recv_timeout(TIMEOUT).unwrap();
            let deadline = Some(Instant::now() + LOST);
            let fd = shared.stream.as_fd();
            shared.readiness.wait(fd, Interest::Read, deadline).unwrap();
        },
    );
    watching.join().unwrap();
    other.join().unwrap();
}

/// A short read, then a report for another waiter, and only then the hint that nothing is left.
#[test]
fn late_hint_does_not_delay_a_reader() {
    let runtime = two_workers();
    let (shared, peer) = shared();
    let mut writes = peer.try_clone().unwrap();
    let (waiting_tx, waiting_rx) = mpsc::channel();
    let (read_tx, read_rx) = mpsc::channel();
    let (hint_tx, hint_rx) = mpsc::channel();
    let watched = shared.clone();
    let [watching, other] = on_both(
        &runtime,
        move || {
            let mut byte = [0];
            watched
                .read(&mut byte, || waiting_tx.send(()).unwrap())
                .unwrap();
            read_tx.send(()).unwrap();
            hint_rx.recv_timeout(TIMEOUT).unwrap();
            watched.read(&mut byte, || {}).unwrap();
        },
        move || {
            waiting_rx.recv_timeout(TIMEOUT).unwrap();
            // As if a previous read had been short.
            writes.write_all(b"ab").unwrap();
            read_rx.recv_timeout(TIMEOUT).unwrap();
            shared.readiness.record_progress(true);
            hint_tx.send(()).unwrap();
        },
    );
    watching.join().unwrap();
    other.join().unwrap();
    // The peer stays open until here, because an end of input is reported for good.
    drop(peer);
}

#[test]
fn thread_reads_after_its_runtime_has_ended() {
    let runtime = Runtime::builder().workers(1).build().unwrap();
    let (stream, peer) = UnixStream::pair().unwrap();
    let stream = Arc::new(stream);
    let watched = stream.clone();
    let (read_tx, read_rx) = mpsc::channel();
    let reader = runtime
        .spawn(move || {
            let n = (&*watched).read(&mut [0; 8]).unwrap();
            read_tx.send(n).unwrap();
        })
        .unwrap();
    wait_for_waiters(&stream, 1);
    (&peer).write_all(b"abc").unwrap();
    assert_eq!(read_rx.recv_timeout(TIMEOUT).unwrap(), 3);
    reader.join().unwrap();
    assert!(runtime.shutdown(TIMEOUT));
    (&peer).write_all(b"d").unwrap();
    let (read_tx, read_rx) = mpsc::channel();
    thread::spawn(move || read_tx.send((&*stream).read(&mut [0; 8]).unwrap()));
    assert_eq!(read_rx.recv_timeout(TIMEOUT), Ok(1));
}

#[test]
fn waiter_on_a_descriptor_of_another_runtime_is_woken_by_shutdown_of_its_own() {
    let (here, there) = (two_workers(), two_workers());
    let (shared, _peer) = shared();
    let wait = |runtime: &Runtime| {
        let watched = shared.clone();
        let wait = move || {
            let fd = watched.stream.as_fd();
            watched.readiness.wait(fd, Interest::Read, None)
        };
        runtime.spawn(wait).unwrap()
    };
    let watching = wait(&there);
    wait_for_waiters(&shared.readiness, 1);
    let waiting = wait(&here);
    wait_for_waiters(&shared.readiness, 2);
    assert!(here.shutdown(LOST), "the shutdown has not woken the waiter");
    let cancelled = waiting.join().unwrap().unwrap_err();
    assert_eq!(cancelled.kind(), ErrorKind::ConnectionAborted);
    assert!(there.shutdown(LOST));
    assert!(watching.join().unwrap().is_err());
}

/// Several readers share a stream, read with small buffers and echo each byte. A round ends when
/// all of its bytes have come back.
fn rounds(with_thread: bool) {
    const ROUNDS: usize = 3000;
    let runtime = two_workers();
    let (near, far) = UnixStream::pair().unwrap();
    let near = Arc::new(near);
    let served = Arc::new(AtomicUsize::new(0));
    let serve = |capacity: usize| {
        let (near, served) = (near.clone(), served.clone());
        move || {
            let mut buf = vec![0; capacity];
            loop {
                let n = (&*near).read(&mut buf).unwrap();
                if n == 0 {
                    return;
                }
                served.fetch_add(n, Ordering::Relaxed);
                (&*near).write_all(&buf[..n]).unwrap();
            }
        }
    };
    let coroutines = on_both(&runtime, serve(3), serve(16));
    let thread = with_thread.then(|| thread::spawn(serve(5)));
    let far = Arc::new(far);
    far.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut sum = 0;
    for round in 0..ROUNDS {
        // In two parts: the second may arrive while a reader handles the first. Every 500th round
        // is larger than the socket buffers.
        let size = if round % 500 == 0 {
            1 << 18
        } else {
            round % 40 + 2
        };
        let bytes: Vec<u8> = (0..=u8::MAX).cycle().skip(round % 256).take(size).collect();
        let writes = far.clone();
        let first = size / 2;
        let mut expected = [0_usize; 256];
        bytes.iter().for_each(|byte| expected[*byte as usize] += 1);
        let writer = move || {
            (&*writes).write_all(&bytes[..first]).unwrap();
            (&*writes).write_all(&bytes[first..]).unwrap();
        };
        let writer = if size > 1000 {
            Some(thread::spawn(writer))
        } else {
            writer();
            None
        };
        let mut answer = vec![0; size];
        if let Err(error) = (&*far).read_exact(&mut answer) {
            panic!("{error} in round {round}; {near:?}");
        }
        for byte in answer {
            expected[byte as usize] -= 1;
        }
        sum += size;
        if let Some(writer) = writer {
            writer.join().unwrap();
        }
    }
    assert_eq!(served.load(Ordering::Relaxed), sum);
    far.shutdown(std::net::Shutdown::Write).unwrap();
    coroutines.into_iter().for_each(|one| one.join().unwrap());
    if let Some(thread) = thread {
        thread.join().unwrap();
    }
}

#[test]
fn coroutines_of_two_workers_share_a_stream() {
    rounds(false);
}

#[test]
fn coroutines_of_two_workers_and_a_thread_share_a_stream() {
    rounds(true);
}
