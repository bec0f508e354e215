//! Connections that each send a message, wait for it to come back, and send the next. There may be
//! others that are open, and silent.

use std::os::fd::OwnedFd;

use anyhow::ensure;
use rustix::event::epoll;

use super::message::{Messages, send};
use super::target::Target;
use super::{BUFFER, ClosedLoop, Load, Order, Outcome, receive, watch};

pub(super) struct Echo {
    epoll: OwnedFd,
    target: Target,
    streams: Vec<Stream>,
    messages: Messages,
    buf: Vec<u8>,
}

struct Stream {
    socket: OwnedFd,
    /// Which message is under way, or was the last.
    message: u32,
    /// So many bytes of it have come back.
    received: usize,
}

impl Echo {
    /// Each of the connections has had an answer already.
    pub(super) fn connect(target: Target, clients: usize, size: usize) -> anyhow::Result<Self> {
        let mut own = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            target,
            streams: Vec::new(),
            messages: Messages::new(size)?,
            buf: vec![0; BUFFER],
        };
        own.open(clients)?;
        Ok(own)
    }

    fn open(&mut self, clients: usize) -> anyhow::Result<()> {
        for number in self.streams.len()..clients {
            let socket = self.target.connect(number, &mut self.messages)?;
            watch(&self.epoll, &socket, number)?;
            self.streams.push(Stream {
                socket,
                message: 0,
                received: 0,
            });
        }
        Ok(())
    }
}

impl ClosedLoop for Echo {
    fn epoll(&self) -> &OwnedFd {
        &self.epoll
    }

    fn begin(&mut self, number: usize) -> anyhow::Result<()> {
        let stream = &mut self.streams[number];
        stream.message = stream.message.wrapping_add(1);
        stream.received = 0;
        send(&stream.socket, self.messages.of(number, stream.message))
    }

    fn hear(&mut self, number: usize) -> anyhow::Result<bool> {
        let stream = &mut self.streams[number];
        let Some(bytes) = receive(&stream.socket, &mut self.buf)? else {
            return Ok(false);
        };
        ensure!(!bytes.is_empty(), "the server closed");
        let Stream {
            message, received, ..
        } = *stream;
        self.messages.check(number, message, received, bytes)?;
        stream.received += bytes.len();
        Ok(stream.received == self.messages.size())
    }
}

impl Load for Echo {
    fn run(&mut self, order: Order) -> anyhow::Result<Outcome> {
        self.open(order.open)?;
        let all = self.streams.len();
        let active = if order.active == 0 {
            all
        } else {
            order.active.min(all)
        };
        // Those that are active lie evenly among the silent ones.
        let numbers = (0..active).map(|number| number * all / active);
        self.go_round(numbers, order.time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread::JoinHandle;
    use std::time::Duration;

    /// Serves one connection, and says how many messages were as `each` wants them.
    fn server(
        mut each: impl FnMut(&mut [u8], u32) -> bool + Send + 'static,
    ) -> (Target, JoinHandle<u32>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Target::Inet(listener.local_addr().unwrap());
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut served = 0;
            let mut message = [0; 16];
            while stream.read_exact(&mut message).is_ok() && each(&mut message, served) {
                stream.write_all(&message).unwrap();
                served += 1;
            }
            served
        });
        (target, serving)
    }

    fn short() -> Order {
        Order::of(Duration::from_millis(20))
    }

    #[test]
    fn every_message_is_counted_once() {
        let (target, serving) = server(|_, _| true);
        let mut load = Echo::connect(target, 1, 16).unwrap();
        let count = load.run(short()).unwrap().answered + load.run(short()).unwrap().answered;
        drop(load);
        // And the one of the beginning.
        assert_eq!(serving.join().unwrap(), count + 1);
    }

    #[test]
    fn a_server_that_leaves_is_an_error() {
        let (target, serving) = server(|_, served| served < 1);
        let mut load = Echo::connect(target, 1, 16).unwrap();
        assert!(load.run(short()).is_err());
        serving.join().unwrap();
    }

    #[test]
    fn a_wrong_answer_is_an_error_and_not_only_a_short_one() {
        let (target, serving) = server(|message, served| {
            message[15] ^= u8::from(served == 3);
            true
        });
        let mut load = Echo::connect(target, 1, 16).unwrap();
        let error = load.run(short()).unwrap_err().to_string();
        assert!(error.starts_with("a wrong answer"), "{error}");
        drop(load);
        assert_eq!(serving.join().unwrap(), 4);
        // Even if it is another message's.
        let (target, serving) = server(|message, served| {
            message[4] = 0;
            served < 9
        });
        let mut load = Echo::connect(target, 1, 16).unwrap();
        assert!(load.run(short()).is_err());
        drop(load);
        serving.join().unwrap();
    }
}
