//! The seam of `park.rs`, proven with something that is no kernel wait: a model whose handlers and
//! accept loop wait in `poll(2)`, on non-blocking sockets.

use std::any::Any;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec, poll};

use super::*;
use crate::concurrency::{Dispatch, OverloadPolicy};
use crate::park::{Interest, Park, Parker};
use crate::transport::Tcp;
use crate::{Connection, Threading, Timeouts, handler_fn};

#[derive(Default)]
pub(crate) struct Parked {
    threads: Threading,
    parks: Arc<Poll>,
}

#[derive(Default)]
struct Poll(AtomicUsize);

impl Parker for Arc<Poll> {
    fn attach(&self, _: BorrowedFd<'_>) -> io::Result<Box<dyn Park>> {
        Ok(Box::new(self.clone()))
    }
}

impl Park for Arc<Poll> {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn wait(
        &self,
        fd: BorrowedFd<'_>,
        interest: Interest,
        until: Option<Instant>,
    ) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec::try_from(left).unwrap());
        let mut fds = [PollFd::from_borrowed_fd(fd, interest.poll_flags())];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }
}

impl Concurrency for Parked {
    const NAME: &'static str = "parked";

    fn limit(&self) -> (usize, OverloadPolicy) {
        self.threads.limit()
    }

    fn process_request<J: Task>(&mut self, task: J, children: &ChildWatcher<'_>) -> Dispatch<J> {
        self.threads.process_request(task, children)
    }

    fn parker(&self, _: &ServerHandle) -> Option<Arc<dyn Parker>> {
        Some(Arc::new(self.parks.clone()))
    }

    fn loop_parker(&self) -> Option<Arc<dyn Parker>> {
        self.parker_of_loop()
    }
}

impl Parked {
    fn parker_of_loop(&self) -> Option<Arc<dyn Parker>> {
        Some(Arc::new(self.parks.clone()))
    }
}

#[test]
fn handlers_and_the_accept_loop_can_be_parked_by_something_else() {
    let model = Parked::default();
    let parks = model.parks.clone();
    let timeouts = Timeouts::unlimited().read(Some(Duration::from_millis(50)));
    let (ended, end) = std::sync::mpsc::channel();
    let echo = handler_fn(move |conn: &mut Connection| {
        let mut buf = vec![0; 1 << 16];
        loop {
            match conn.read(&mut buf) {
                Ok(0) => return Ok(()),
                Ok(n) => conn.write_all(&buf[..n])?,
                Err(e) => {
                    ended.send(e.kind())?;
                    return Ok(());
                }
            }
        }
    });
    let builder = Server::<Tcp, Parked>::builder()
        .concurrency(model)
        .timeouts(timeouts);
    let mut server = builder.bind("127.0.0.1:0", echo).unwrap();
    let (address, handle) = (server.local_addr().as_inet().unwrap(), server.handle());
    let serving = std::thread::spawn(move || server.serve_forever());

    // More than the buffers hold, so that both directions have to park.
    let sent: Vec<u8> = (0..4_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let mut client = TcpStream::connect(address).unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut writer = client.try_clone().unwrap();
    let copy = sent.clone();
    let writing = std::thread::spawn(move || writer.write_all(&copy));
    let mut received = vec![0; sent.len()];
    client.read_exact(&mut received).unwrap();
    writing.join().unwrap().unwrap();
    assert!(received == sent);

    // Then silence: the read timeout comes through the same seam.
    assert_eq!(
        end.recv_timeout(Duration::from_secs(10)).unwrap(),
        io::ErrorKind::TimedOut
    );
    // And a cut wakes whoever is parked.
    let _second = TcpStream::connect(address).unwrap();
    handle.drain(Duration::ZERO);
    serving.join().unwrap().unwrap();
    assert!(parks.0.load(Ordering::Relaxed) > 2, "reads, and the loop");
    assert_eq!(handle.active_count(), 0);
}
