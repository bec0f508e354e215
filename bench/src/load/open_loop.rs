//! An open-loop load: messages are due at fixed times, whether or not earlier answers have arrived.
//! The delay of an answer is counted from when its message was due, not from when it was sent. A
//! server that pauses is late for every message that was due during the pause. This avoids
//! "coordinated omission", in which a message waits unnoticed for an earlier answer.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::ensure;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::message::Messages;
use super::target::Target;
use super::{
    ANSWER_TIMEOUT, BUFFER, Delays, Load, NO_EVENTS, Outcome, RunSpec, client_index, receive,
    register,
};

pub(super) struct OpenLoop {
    epoll: OwnedFd,
    streams: Vec<Stream>,
    messages: Messages,
    /// Time between two messages, over all connections.
    interval: Duration,
    buf: Vec<u8>,
}

struct Stream {
    socket: OwnedFd,
    /// Bytes that were sent and received since this run began.
    sent: usize,
    received: usize,
}

impl OpenLoop {
    pub(super) fn connect(
        target: &Target,
        clients: usize,
        size: usize,
        rate: u32,
    ) -> anyhow::Result<Self> {
        ensure!(rate > 0, "the rate must be at least 1 message per second");
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut messages = Messages::new(size)?;
        let mut streams = Vec::new();
        for number in 0..clients {
            let socket = target.connect(number, &mut messages)?;
            register(&epoll, &socket, number)?;
            streams.push(Stream {
                socket,
                sent: 0,
                received: 0,
            });
        }
        Ok(Self {
            epoll,
            streams,
            messages,
            interval: Duration::from_secs(1) / rate,
            buf: vec![0; BUFFER],
        })
    }
}

/// The due times. Messages go to the connections in turn; the first message has number 0.
struct Schedule {
    begin: Instant,
    interval: Duration,
    clients: usize,
    /// Number of messages in this run.
    count: u32,
}

impl Schedule {
    /// Returns when a connection's message is due. `number` counts the messages of this connection.
    fn due(&self, client: usize, number: usize) -> Instant {
        let index = u32::try_from(number * self.clients + client).unwrap_or(u32::MAX);
        self.begin + self.interval * index
    }

    /// Returns the number of messages of all connections that were due before `now`.
    fn due_before(&self, now: Instant) -> u32 {
        let elapsed = now.saturating_duration_since(self.begin).as_nanos();
        let due = u32::try_from(elapsed / self.interval.as_nanos() + 1).unwrap_or(u32::MAX);
        due.min(self.count)
    }
}

impl Load for OpenLoop {
    fn run(&mut self, spec: RunSpec) -> anyhow::Result<Outcome> {
        let interval = self.interval;
        let count = u32::try_from(spec.time.as_nanos() / interval.as_nanos())?.max(1);
        let schedule = Schedule {
            begin: Instant::now(),
            interval,
            clients: self.streams.len(),
            count,
        };
        for stream in &mut self.streams {
            (stream.sent, stream.received) = (0, 0);
        }
        let mut delays = Vec::with_capacity(count as usize);
        let mut lateness = Vec::with_capacity(count as usize);
        let (mut sent_count, mut events) = (0, NO_EVENTS);
        let mut last_answer = Instant::now();
        // Connections whose socket buffer had no room for all due messages.
        let mut blocked: Vec<usize> = Vec::new();
        while delays.len() < count as usize {
            let now = Instant::now();
            for index in sent_count..schedule.due_before(now) {
                let number = index as usize % self.streams.len();
                lateness.push(now - (schedule.begin + interval * index));
                if !blocked.contains(&number) && !self.send_due(number, &schedule, now)? {
                    blocked.push(number);
                }
            }
            sent_count = schedule.due_before(now);
            let mut still_blocked = Vec::new();
            for number in blocked.drain(..) {
                if !self.send_due(number, &schedule, now)? {
                    still_blocked.push(number);
                }
            }
            blocked = still_blocked;
            // Poll without sleeping, so that neither the load's own wake-up is measured nor the
            // server's cost of waking the load.
            let at_once = Some(&Timespec::default());
            let ready = match epoll::wait(&self.epoll, &mut events, at_once) {
                Err(Errno::INTR) => continue,
                ready => ready?.0,
            };
            for event in ready {
                last_answer = now;
                self.receive(client_index(event)?, &schedule, &mut delays)?;
            }
            ensure!(
                sent_count < count || now - last_answer < ANSWER_TIMEOUT,
                "no answer within ten seconds"
            );
        }
        Ok(Outcome {
            answered: count,
            lost: 0,
            delays: Delays::of(&mut delays, &mut lateness),
        })
    }
}

impl OpenLoop {
    /// Sends the due messages of a connection. Returns true if all were sent.
    fn send_due(
        &mut self,
        client: usize,
        schedule: &Schedule,
        now: Instant,
    ) -> anyhow::Result<bool> {
        let size = self.messages.size();
        let due = schedule.due_before(now) as usize;
        // Every n-th of the due messages belongs to this connection, with n connections.
        let own = (due + self.streams.len() - 1 - client) / self.streams.len();
        let stream = &mut self.streams[client];
        while stream.sent < own * size {
            let number = u32::try_from(stream.sent / size)?;
            let message = self.messages.of(client, number);
            let rest = &message[stream.sent % size..];
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::send(&stream.socket, rest, flags) {
                Ok(n) => stream.sent += n,
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(true)
    }

    fn receive(
        &mut self,
        client: usize,
        schedule: &Schedule,
        delays: &mut Vec<Duration>,
    ) -> anyhow::Result<()> {
        let stream = &mut self.streams[client];
        let Some(mut answer) = receive(&stream.socket, &mut self.buf)? else {
            return Ok(());
        };
        let now = Instant::now();
        ensure!(!answer.is_empty(), "the server closed the connection");
        ensure!(
            stream.received + answer.len() <= stream.sent,
            "the server sent too many bytes"
        );
        let size = self.messages.size();
        while !answer.is_empty() {
            let (number, offset) = (stream.received / size, stream.received % size);
            let (part, rest) = answer.split_at(answer.len().min(size - offset));
            self.messages
                .check(client, u32::try_from(number)?, offset, part)?;
            stream.received += part.len();
            if offset + part.len() == size {
                delays.push(now - schedule.due(client, number));
            }
            answer = rest;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    const SIZE: usize = 64;

    /// Echoes on one connection, and pauses once.
    fn server(pause: Duration) -> (Target, JoinHandle<usize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Target::Inet(listener.local_addr().unwrap());
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut buf, mut all) = ([0; 1000], 0);
            while let Ok(n @ 1..) = stream.read(&mut buf) {
                let paused = all > 50 * SIZE;
                all += n;
                if !paused && all > 50 * SIZE {
                    std::thread::sleep(pause);
                }
                stream.write_all(&buf[..n]).unwrap();
            }
            all
        });
        (target, serving)
    }

    #[test]
    fn server_that_pauses_is_late_for_all_due_messages() {
        let pause = Duration::from_millis(200);
        let (target, serving) = server(pause);
        let mut load = OpenLoop::connect(&target, 1, SIZE, 1000).unwrap();
        let outcome = load.run(RunSpec::of(Duration::from_millis(500))).unwrap();
        drop(load);
        assert_eq!(outcome.answered, 500);
        // One more: the message that each new connection sends.
        assert_eq!(serving.join().unwrap(), 501 * SIZE);
        // A load that waits for its answers would have seen one late answer, and not 200 of 500.
        let Delays { p50, p99, p999, .. } = outcome.delays;
        assert!(p99 > pause * 9 / 10, "{p99:?}");
        assert!(p50 <= p99 && p99 <= p999, "{p50:?} {p999:?}");
    }

    #[test]
    fn messages_are_due_in_turn() {
        let schedule = Schedule {
            begin: Instant::now(),
            interval: Duration::from_millis(10),
            clients: 3,
            count: 7,
        };
        let at = |ms| schedule.begin + Duration::from_millis(ms);
        assert_eq!(schedule.due(0, 0), at(0));
        assert_eq!(schedule.due(2, 0), at(20));
        assert_eq!(schedule.due(1, 2), at(70));
        assert_eq!(schedule.due_before(at(0)), 1);
        assert_eq!(schedule.due_before(at(29)), 3);
        assert_eq!(schedule.due_before(at(1000)), 7);
    }
}
