//! Connections that each send a message, wait for the echo, and send the next message. Further
//! connections may be open and idle.

use std::os::fd::OwnedFd;

use anyhow::ensure;
use rustix::event::epoll;

use super::message::{Messages, send};
use super::target::Target;
use super::{BUFFER, ClosedLoop, Load, Outcome, RunSpec, receive, register};

pub(super) struct Echo {
    epoll: OwnedFd,
    target: Target,
    streams: Vec<Stream>,
    messages: Messages,
    buf: Vec<u8>,
}

struct Stream {
    socket: OwnedFd,
    /// Number of the message in flight, or of the last one.
    message: u32,
    /// Received bytes of its echo.
    received: usize,
}

impl Echo {
    /// Opens connections; each one has had an answer when this returns.
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
            register(&self.epoll, &socket, number)?;
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

    fn start_request(&mut self, number: usize) -> anyhow::Result<()> {
        let stream = &mut self.streams[number];
        stream.message = stream.message.wrapping_add(1);
        stream.received = 0;
        send(&stream.socket, self.messages.of(number, stream.message))
    }

    fn on_readable(&mut self, number: usize) -> anyhow::Result<bool> {
        let stream = &mut self.streams[number];
        let Some(bytes) = receive(&stream.socket, &mut self.buf)? else {
            return Ok(false);
        };
        ensure!(!bytes.is_empty(), "the server closed the connection");
        let Stream {
            message, received, ..
        } = *stream;
        self.messages.check(number, message, received, bytes)?;
        stream.received += bytes.len();
        Ok(stream.received == self.messages.size())
    }
}

impl Load for Echo {
    fn run(&mut self, spec: RunSpec) -> anyhow::Result<Outcome> {
        self.open(spec.open)?;
        let all = self.streams.len();
        let active = if spec.active == 0 {
            all
        } else {
            spec.active.min(all)
        };
        // The active connections are spread evenly among the idle ones.
        let numbers = (0..active).map(|number| number * all / active);
        self.run_clients(numbers, spec.time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread::JoinHandle;
    use std::time::Duration;

    /// Serves one connection while `each` accepts the messages; returns their number.
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

    fn short() -> RunSpec {
        RunSpec::of(Duration::from_millis(20))
    }

    #[test]
    fn every_message_is_counted_once() {
        let (target, serving) = server(|_, _| true);
        let mut load = Echo::connect(target, 1, 16).unwrap();
        let count = load.run(short()).unwrap().answered + load.run(short()).unwrap().answered;
        drop(load);
        // One more: the message that each new connection sends.
        assert_eq!(serving.join().unwrap(), count + 1);
    }

    #[test]
    fn server_that_closes_is_an_error() {
        let (target, serving) = server(|_, served| served < 1);
        let mut load = Echo::connect(target, 1, 16).unwrap();
        assert!(load.run(short()).is_err());
        serving.join().unwrap();
    }

    #[test]
    fn wrong_answer_is_an_error() {
        let (target, serving) = server(|message, served| {
            message[15] ^= u8::from(served == 3);
            true
        });
        let mut load = Echo::connect(target, 1, 16).unwrap();
        let error = load.run(short()).unwrap_err().to_string();
        assert!(error.starts_with("wrong answer"), "{error}");
        drop(load);
        assert_eq!(serving.join().unwrap(), 4);
        // The answer to an earlier message is wrong, too.
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
