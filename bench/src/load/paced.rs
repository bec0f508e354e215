//! Messages at times that are fixed beforehand, whatever became of those before: how late each
//! answer is, counted from when its message was due, and not from when it could be sent. So a server
//! that stands still for a moment is late for all that was due meanwhile, and no message waits
//! unseen for another's answer ("coordinated omission").

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::ensure;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::message::Messages;
use super::target::Target;
use super::{BUFFER, Delays, Load, NO_EVENTS, Order, Outcome, PATIENCE, client, receive, watch};

pub(super) struct Paced {
    epoll: OwnedFd,
    streams: Vec<Stream>,
    messages: Messages,
    /// Between one message and the next, of all connections together.
    interval: Duration,
    buf: Vec<u8>,
}

struct Stream {
    socket: OwnedFd,
    /// The bytes that were sent, and those that came back, since this run began.
    sent: usize,
    received: usize,
}

impl Paced {
    pub(super) fn connect(
        target: &Target,
        clients: usize,
        size: usize,
        rate: u32,
    ) -> anyhow::Result<Self> {
        ensure!(rate > 0, "at a rate of 0 nothing is sent");
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut messages = Messages::new(size)?;
        let mut streams = Vec::new();
        for number in 0..clients {
            let socket = target.connect(number, &mut messages)?;
            watch(&epoll, &socket, number)?;
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

/// Messages go to the connections in turn; the first one has the number 0.
struct Schedule {
    begin: Instant,
    interval: Duration,
    clients: usize,
    /// How many there are in all.
    count: u32,
}

impl Schedule {
    /// When a connection's message is due, by its number among those of this connection.
    fn due(&self, client: usize, number: usize) -> Instant {
        let place = u32::try_from(number * self.clients + client).unwrap_or(u32::MAX);
        self.begin + self.interval * place
    }

    /// How many were due before `now`, of all connections together.
    fn due_before(&self, now: Instant) -> u32 {
        let elapsed = now.saturating_duration_since(self.begin).as_nanos();
        let due = u32::try_from(elapsed / self.interval.as_nanos() + 1).unwrap_or(u32::MAX);
        due.min(self.count)
    }
}

impl Load for Paced {
    fn run(&mut self, order: Order) -> anyhow::Result<Outcome> {
        let interval = self.interval;
        let count = u32::try_from(order.time.as_nanos() / interval.as_nanos())?.max(1);
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
        let (mut begun, mut events) = (0, NO_EVENTS);
        let mut heard = Instant::now();
        // Connections whose socket had no room for all that was due.
        let mut behind: Vec<usize> = Vec::new();
        while delays.len() < count as usize {
            let now = Instant::now();
            for place in begun..schedule.due_before(now) {
                let number = place as usize % self.streams.len();
                lateness.push(now - (schedule.begin + interval * place));
                if !behind.contains(&number) && !self.send_due(number, &schedule, now)? {
                    behind.push(number);
                }
            }
            begun = schedule.due_before(now);
            let mut still_behind = Vec::new();
            for number in behind.drain(..) {
                if !self.send_due(number, &schedule, now)? {
                    still_behind.push(number);
                }
            }
            behind = still_behind;
            // It never sleeps, so that neither its own waking up is measured nor the server's cost
            // of waking it.
            let at_once = Some(&Timespec::default());
            let ready = match epoll::wait(&self.epoll, &mut events, at_once) {
                Err(Errno::INTR) => continue,
                ready => ready?.0,
            };
            for event in ready {
                heard = now;
                self.receive(client(event)?, &schedule, &mut delays)?;
            }
            ensure!(
                begun < count || now - heard < PATIENCE,
                "no answer for ten seconds"
            );
        }
        Ok(Outcome {
            answered: count,
            lost: 0,
            delays: Delays::of(&mut delays, &mut lateness),
        })
    }
}

impl Paced {
    /// Sends what is due on a connection; whether that was all.
    fn send_due(
        &mut self,
        client: usize,
        schedule: &Schedule,
        now: Instant,
    ) -> anyhow::Result<bool> {
        let size = self.messages.size();
        let due = schedule.due_before(now) as usize;
        // Of which every one whose place leaves this connection's number is its own.
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
        ensure!(!answer.is_empty(), "the server closed");
        ensure!(
            stream.received + answer.len() <= stream.sent,
            "the server sent too much"
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

    /// Echoes on one connection, and stands still once, for as long.
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
    fn a_server_that_stands_still_is_late_for_all_that_was_due() {
        let pause = Duration::from_millis(200);
        let (target, serving) = server(pause);
        let mut load = Paced::connect(&target, 1, SIZE, 1000).unwrap();
        let outcome = load.run(Order::of(Duration::from_millis(500))).unwrap();
        drop(load);
        assert_eq!(outcome.answered, 500);
        // And the one of the beginning.
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
