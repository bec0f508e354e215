//! One descriptor, used by coroutines of several workers and by threads at once.

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

const PATIENCE: Duration = Duration::from_secs(20);

/// What nobody tells of within this time is lost.
const LOST: Duration = Duration::from_secs(5);

fn two_workers() -> Runtime {
    Runtime::builder().workers(2).build().unwrap()
}

/// A stream without waits of its own, and what waits for it.
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
    /// As the sockets of this crate read: it waits first where it is better to.
    fn read(&self, buf: &mut [u8], mut waits: impl FnMut()) -> std::io::Result<usize> {
        let mut is_exhausted = self.readiness.is_exhausted();
        loop {
            if !std::mem::take(&mut is_exhausted) {
                match (&self.stream).read(buf) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    result => return result,
                }
            }
            waits();
            let deadline = Some(Instant::now() + LOST);
            self.readiness
                .wait(self.stream.as_fd(), Interest::Read, deadline)?;
        }
    }
}

/// Comes back once so many wait for it.
fn await_waiting(readiness: &impl Debug, many: usize) {
    let wanted = format!("waiting: {many}");
    let end = Instant::now() + PATIENCE;
    while !format!("{readiness:?}").contains(&wanted) {
        assert!(Instant::now() < end, "nobody waits: {readiness:?}");
        thread::yield_now();
    }
}

/// Starts a coroutine on each of two workers: first the one that watches, as it waits first.
fn on_both<T: Send + 'static>(
    engine: &Runtime,
    watching: impl FnOnce() -> T + Send + 'static,
    other: impl FnOnce() -> T + Send + 'static,
) -> [JoinHandle<T>; 2] {
    // Reserved together, they are on different workers.
    let reservations = [engine.reserve().unwrap(), engine.reserve().unwrap()];
    let [first, second] = reservations;
    [
        first.spawn("watching", watching),
        second.spawn("other", other),
    ]
}

/// `WouldBlock`, then a report that somebody else is woken up by, and only then the wait.
#[test]
fn a_report_between_the_attempt_and_the_wait_is_not_lost() {
    let engine = two_workers();
    let (shared, mut peer) = shared();
    let (waits, is_waiting) = mpsc::channel();
    let (reads, has_read) = mpsc::channel();
    let theirs = shared.clone();
    let [watching, other] = on_both(
        &engine,
        move || {
            let mut byte = [0];
            theirs.read(&mut byte, || waits.send(()).unwrap()).unwrap();
            reads.send(()).unwrap();
        },
        move || {
            is_waiting.recv_timeout(PATIENCE).unwrap();
            let nothing = (&shared.stream).read(&mut [0]).unwrap_err();
            assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
            peer.write_all(b"ab").unwrap();
            has_read.recv_timeout(PATIENCE).unwrap();
            let deadline = Some(Instant::now() + LOST);
            let fd = shared.stream.as_fd();
            shared.readiness.wait(fd, Interest::Read, deadline).unwrap();
        },
    );
    watching.join().unwrap();
    other.join().unwrap();
}

/// A read that comes back short, then a report for somebody else, and only then the hint that there
/// is nothing more.
#[test]
fn a_hint_that_comes_late_makes_nobody_wait_for_what_is_there() {
    let engine = two_workers();
    let (shared, peer) = shared();
    let mut writes = peer.try_clone().unwrap();
    let (waits, is_waiting) = mpsc::channel();
    let (reads, has_read) = mpsc::channel();
    let (hints, has_hinted) = mpsc::channel();
    let theirs = shared.clone();
    let [watching, other] = on_both(
        &engine,
        move || {
            let mut byte = [0];
            theirs.read(&mut byte, || waits.send(()).unwrap()).unwrap();
            reads.send(()).unwrap();
            has_hinted.recv_timeout(PATIENCE).unwrap();
            theirs.read(&mut byte, || {}).unwrap();
        },
        move || {
            is_waiting.recv_timeout(PATIENCE).unwrap();
            // As if this had come back short already.
            writes.write_all(b"ab").unwrap();
            has_read.recv_timeout(PATIENCE).unwrap();
            shared.readiness.record_progress(true);
            hints.send(()).unwrap();
        },
    );
    watching.join().unwrap();
    other.join().unwrap();
    // Until here, as an end of input is told for good.
    drop(peer);
}

#[test]
fn a_thread_reads_what_comes_after_its_engine_has_ended() {
    let engine = Runtime::builder().workers(1).build().unwrap();
    let (stream, peer) = UnixStream::pair().unwrap();
    let stream = Arc::new(stream);
    let theirs = stream.clone();
    let (reads, has_read) = mpsc::channel();
    let reader = engine
        .spawn(move || {
            let n = (&*theirs).read(&mut [0; 8]).unwrap();
            reads.send(n).unwrap();
        })
        .unwrap();
    await_waiting(&stream, 1);
    (&peer).write_all(b"abc").unwrap();
    assert_eq!(has_read.recv_timeout(PATIENCE).unwrap(), 3);
    reader.join().unwrap();
    assert!(engine.shutdown(PATIENCE));
    (&peer).write_all(b"d").unwrap();
    let (reads, has_read) = mpsc::channel();
    thread::spawn(move || reads.send((&*stream).read(&mut [0; 8]).unwrap()));
    assert_eq!(has_read.recv_timeout(PATIENCE), Ok(1));
}

#[test]
fn who_waits_for_what_another_engine_watches_is_woken_by_the_end_of_his_own() {
    let (here, there) = (two_workers(), two_workers());
    let (shared, _peer) = shared();
    let wait = |engine: &Runtime| {
        let theirs = shared.clone();
        let wait = move || {
            let fd = theirs.stream.as_fd();
            theirs.readiness.wait(fd, Interest::Read, None)
        };
        engine.spawn(wait).unwrap()
    };
    let watching = wait(&there);
    await_waiting(&shared.readiness, 1);
    let waiting = wait(&here);
    await_waiting(&shared.readiness, 2);
    assert!(here.shutdown(LOST), "nobody has woken it up");
    let cancelled = waiting.join().unwrap().unwrap_err();
    assert_eq!(cancelled.kind(), ErrorKind::ConnectionAborted);
    assert!(there.shutdown(LOST));
    assert!(watching.join().unwrap().is_err());
}

/// Those who share a stream read with small buffers and answer each byte with one; a round is over
/// when all of its bytes have come back.
fn rounds(with_thread: bool) {
    const ROUNDS: usize = 3000;
    let engine = two_workers();
    let (near, far) = UnixStream::pair().unwrap();
    let near = Arc::new(near);
    let served = Arc::new(AtomicUsize::new(0));
    let serve = |room: usize| {
        let (near, served) = (near.clone(), served.clone());
        move || {
            let mut buf = vec![0; room];
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
    let coroutines = on_both(&engine, serve(3), serve(16));
    let thread = with_thread.then(|| thread::spawn(serve(5)));
    let far = Arc::new(far);
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut sum = 0;
    for round in 0..ROUNDS {
        // In two pieces, of which the second may meet whoever reads the first; sometimes it is more
        // than fits into the sockets.
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
