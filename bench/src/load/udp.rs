//! Datagrams: each client has its own socket and as many datagrams in flight as its window allows.
//! A datagram without an echo in time counts as lost, and another one is sent in its place.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::{Load, NO_EVENTS, Outcome, RunSpec, client_index, register, wait_ready};

pub(super) struct Udp {
    epoll: OwnedFd,
    clients: Vec<Client>,
    /// Time limit for an echo.
    timeout: Duration,
}

struct Client {
    socket: OwnedFd,
    window: Vec<Slot>,
    message: Vec<u8>,
    /// One byte longer than a message, so that an echo that is too long is noticed.
    answer: Vec<u8>,
}

/// A slot of the window, with or without a datagram in flight.
#[derive(Clone, Copy)]
struct Slot {
    /// Number of datagrams sent from this slot. The message contains it, so that an echo that
    /// arrives after its time limit is not taken for a later one.
    generation: u32,
    sent_at: Instant,
    in_flight: bool,
}

impl Udp {
    pub(super) fn new(
        server: SocketAddr,
        clients: usize,
        size: usize,
        window: usize,
        timeout: Duration,
    ) -> anyhow::Result<Self> {
        ensure!(size >= 8, "the datagram size must be at least 8 bytes");
        ensure!(window > 0, "the window must be at least 1 datagram");
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let slot = Slot {
            generation: 0,
            sent_at: Instant::now(),
            in_flight: false,
        };
        let mut all = Vec::new();
        for number in 0..clients {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            socket.connect(server)?;
            let socket = OwnedFd::from(socket);
            register(&epoll, &socket, number)?;
            all.push(Client {
                socket,
                window: vec![slot; window],
                message: vec![b'x'; size],
                answer: vec![0; size + 1],
            });
        }
        Ok(Self {
            epoll,
            clients: all,
            timeout,
        })
    }
}

impl Load for Udp {
    fn run(&mut self, spec: RunSpec) -> anyhow::Result<Outcome> {
        let begin = Instant::now();
        let end = begin + spec.time;
        let mut count = Outcome::default();
        let mut events = NO_EVENTS;
        for client in &mut self.clients {
            for slot in 0..client.window.len() {
                client.send(slot, begin)?;
            }
        }
        let windows = self.clients.iter().map(|client| client.window.len());
        let mut outstanding: usize = windows.sum();
        let mut last_check = begin;
        while outstanding > 0 {
            let ready = wait_ready(&self.epoll, &mut events, self.timeout / 4)?;
            let now = Instant::now();
            let mut complete = |client: &mut Client, slot| {
                if now >= end {
                    outstanding -= 1;
                    return Ok(());
                }
                client.send(slot, now)
            };
            for event in ready {
                let client = &mut self.clients[client_index(event)?];
                while let Some(slot) = client.receive()? {
                    count.answered += 1;
                    complete(client, slot)?;
                }
            }
            if now - last_check > self.timeout / 4 {
                last_check = now;
                for client in &mut self.clients {
                    while let Some(slot) = client.expire(now, self.timeout) {
                        count.lost += 1;
                        complete(client, slot)?;
                    }
                }
            }
        }
        Ok(count)
    }
}

impl Client {
    fn send(&mut self, index: usize, now: Instant) -> anyhow::Result<()> {
        let slot = &mut self.window[index];
        slot.generation += 1;
        (slot.sent_at, slot.in_flight) = (now, true);
        self.message[..4].copy_from_slice(&u32::try_from(index)?.to_ne_bytes());
        self.message[4..8].copy_from_slice(&slot.generation.to_ne_bytes());
        match rustix::net::send(&self.socket, &self.message, SendFlags::DONTWAIT) {
            // The datagram is lost, as it could be on the network.
            Ok(_) | Err(Errno::AGAIN | Errno::NOBUFS) => Ok(()),
            Err(errno) => Err(errno).context("cannot send"),
        }
    }

    /// Returns the slot of the next echo.
    fn receive(&mut self) -> anyhow::Result<Option<usize>> {
        // Skip the receive if no echo is expected.
        while self.window.iter().any(|slot| slot.in_flight) {
            let buf = self.answer.as_mut_slice();
            let n = match rustix::net::recv(&self.socket, &mut *buf, RecvFlags::DONTWAIT) {
                Ok((n, _)) => n,
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(errno).context("cannot receive"),
            };
            ensure!(n == self.message.len(), "the echo has {n} bytes");
            ensure!(
                buf[8..n] == self.message[8..],
                "wrong answer: the echo differs from the datagram"
            );
            let index = usize::try_from(number(&buf[..4]))?;
            let slot = self
                .window
                .get_mut(index)
                .context("wrong answer: no such slot")?;
            if slot.in_flight && slot.generation == number(&buf[4..8]) {
                slot.in_flight = false;
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// Expires one datagram past its time limit, and returns its slot.
    fn expire(&mut self, now: Instant, timeout: Duration) -> Option<usize> {
        let is_lost = |slot: &Slot| slot.in_flight && now - slot.sent_at > timeout;
        let index = self.window.iter().position(is_lost)?;
        self.window[index].in_flight = false;
        Some(index)
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(200);

    /// Echoes all datagrams but each `nth`, which is echoed late or not at all. Returns how many
    /// arrived, and how many of these were kept back.
    fn echo(nth: u32, late: bool) -> (SocketAddr, std::thread::JoinHandle<(u32, u32)>) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(800)))
            .unwrap();
        let serving = std::thread::spawn(move || {
            let (mut received, mut kept) = (0, Vec::new());
            let mut buf = [0; 1024];
            while let Ok((n, from)) = socket.recv_from(&mut buf) {
                received += 1;
                if received % nth == 0 {
                    kept.push((Instant::now(), buf[..n].to_vec(), from));
                } else {
                    socket.send_to(&buf[..n], from).unwrap();
                }
                for (sent_at, bytes, from) in &kept {
                    if late && sent_at.elapsed() > 2 * TIMEOUT {
                        socket.send_to(bytes, from).unwrap();
                    }
                }
            }
            (received, u32::try_from(kept.len()).unwrap())
        });
        (address, serving)
    }

    #[test]
    fn every_datagram_is_counted_once() {
        let (address, serving) = echo(u32::MAX, false);
        let mut load = Udp::new(address, 5, 64, 3, TIMEOUT).unwrap();
        let count = load.run(RunSpec::of(Duration::from_millis(50))).unwrap();
        assert!(count.answered >= 15, "{count}");
        let (received, _) = serving.join().unwrap();
        assert_eq!(received, count.answered + count.lost);
    }

    #[test]
    fn missing_and_late_echoes_are_counted_as_lost() {
        for late in [false, true] {
            // The load only continues after this many losses if each lost datagram is replaced.
            let (address, serving) = echo(100, late);
            let mut load = Udp::new(address, 2, 64, 8, TIMEOUT).unwrap();
            let (mut count, mut most) = (Outcome::default(), 0);
            // Other work on the machine can leave too little time in a single run.
            for _ in 0..10 {
                let run = load.run(RunSpec::of(Duration::from_millis(500))).unwrap();
                count.answered += run.answered;
                count.lost += run.lost;
                most = most.max(run.lost);
                if most > 16 {
                    break;
                }
            }
            assert!(most > 16, "{count}");
            let (received, kept) = serving.join().unwrap();
            assert_eq!(received, count.answered + count.lost);
            // `lost` exceeds `kept` only if other work delayed this machine for a fifth of a
            // second.
            assert!(count.lost >= kept, "{count}, {kept} kept");
        }
    }
}
