//! Datagrams: each client has a socket of its own, and as many datagrams under way as its window
//! allows. One that does not come back in time is lost, and another takes its place.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::{Load, NO_EVENTS, Order, Outcome, client, ready, watch};

pub(super) struct Udp {
    epoll: OwnedFd,
    clients: Vec<Client>,
    /// How long a datagram may take.
    patience: Duration,
}

struct Client {
    socket: OwnedFd,
    window: Vec<Place>,
    message: Vec<u8>,
    /// With room for one byte too many.
    answer: Vec<u8>,
}

/// A datagram that is under way, or may be.
#[derive(Clone, Copy)]
struct Place {
    /// How many were sent from this place. It is in the message, so that one that comes when it
    /// was given up is not taken for another.
    generation: u32,
    since: Instant,
    is_under_way: bool,
}

impl Udp {
    pub(super) fn new(
        server: SocketAddr,
        clients: usize,
        size: usize,
        window: usize,
        patience: Duration,
    ) -> anyhow::Result<Self> {
        ensure!(size >= 8, "a datagram has at least 8 bytes");
        ensure!(window > 0, "a window of nothing sends nothing");
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let place = Place {
            generation: 0,
            since: Instant::now(),
            is_under_way: false,
        };
        let mut all = Vec::new();
        for number in 0..clients {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            socket.connect(server)?;
            let socket = OwnedFd::from(socket);
            watch(&epoll, &socket, number)?;
            all.push(Client {
                socket,
                window: vec![place; window],
                message: vec![b'x'; size],
                answer: vec![0; size + 1],
            });
        }
        Ok(Self {
            epoll,
            clients: all,
            patience,
        })
    }
}

impl Load for Udp {
    fn run(&mut self, order: Order) -> anyhow::Result<Outcome> {
        let begin = Instant::now();
        let end = begin + order.time;
        let mut count = Outcome::default();
        let mut events = NO_EVENTS;
        for client in &mut self.clients {
            for place in 0..client.window.len() {
                client.send(place, begin)?;
            }
        }
        let windows = self.clients.iter().map(|client| client.window.len());
        let mut outstanding: usize = windows.sum();
        let mut looked = begin;
        while outstanding > 0 {
            let ready = ready(&self.epoll, &mut events, self.patience / 4)?;
            let now = Instant::now();
            let mut settled = |client: &mut Client, place| {
                if now >= end {
                    outstanding -= 1;
                    return Ok(());
                }
                client.send(place, now)
            };
            for event in ready {
                let client = &mut self.clients[client(event)?];
                while let Some(place) = client.receive()? {
                    count.answered += 1;
                    settled(client, place)?;
                }
            }
            if now - looked > self.patience / 4 {
                looked = now;
                for client in &mut self.clients {
                    while let Some(place) = client.give_up(now, self.patience) {
                        count.lost += 1;
                        settled(client, place)?;
                    }
                }
            }
        }
        Ok(count)
    }
}

impl Client {
    fn send(&mut self, index: usize, now: Instant) -> anyhow::Result<()> {
        let place = &mut self.window[index];
        place.generation += 1;
        (place.since, place.is_under_way) = (now, true);
        self.message[..4].copy_from_slice(&u32::try_from(index)?.to_ne_bytes());
        self.message[4..8].copy_from_slice(&place.generation.to_ne_bytes());
        match rustix::net::send(&self.socket, &self.message, SendFlags::DONTWAIT) {
            // As good as lost on the way.
            Ok(_) | Err(Errno::AGAIN | Errno::NOBUFS) => Ok(()),
            Err(errno) => Err(errno).context("cannot send"),
        }
    }

    /// The place of a datagram that has come back.
    fn receive(&mut self) -> anyhow::Result<Option<usize>> {
        // Without another look into a socket that has nothing more to be expected.
        while self.window.iter().any(|place| place.is_under_way) {
            let buf = self.answer.as_mut_slice();
            let n = match rustix::net::recv(&self.socket, &mut *buf, RecvFlags::DONTWAIT) {
                Ok((n, _)) => n,
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(errno).context("cannot receive"),
            };
            ensure!(n == self.message.len(), "{n} bytes came back");
            ensure!(
                buf[8..n] == self.message[8..],
                "not what was sent came back"
            );
            let index = usize::try_from(number(&buf[..4]))?;
            let place = self.window.get_mut(index).context("not what was sent")?;
            if place.is_under_way && place.generation == number(&buf[4..8]) {
                place.is_under_way = false;
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// The place of a datagram that will not come back any more.
    fn give_up(&mut self, now: Instant, patience: Duration) -> Option<usize> {
        let is_lost = |place: &Place| place.is_under_way && now - place.since > patience;
        let index = self.window.iter().position(is_lost)?;
        self.window[index].is_under_way = false;
        Some(index)
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(200);

    /// Echoes all but each `nth`, and that late or not at all; says how many have come, and how many
    /// of them it kept.
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
                for (since, bytes, from) in &kept {
                    if late && since.elapsed() > 2 * PATIENCE {
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
        let mut load = Udp::new(address, 5, 64, 3, PATIENCE).unwrap();
        let count = load.run(Order::of(Duration::from_millis(50))).unwrap();
        assert!(count.answered >= 15, "{count}");
        let (received, _) = serving.join().unwrap();
        assert_eq!(received, count.answered + count.lost);
    }

    #[test]
    fn what_does_not_come_back_is_counted_as_lost() {
        for late in [false, true] {
            // So many that the load is kept up only if others take their places.
            let (address, serving) = echo(100, late);
            let mut load = Udp::new(address, 2, 64, 8, PATIENCE).unwrap();
            let (mut count, mut most) = (Outcome::default(), 0);
            // A machine that is busy with others leaves no time for that now and then.
            for _ in 0..10 {
                let run = load.run(Order::of(Duration::from_millis(500))).unwrap();
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
            // More only if this machine was busy with others for a fifth of a second.
            assert!(count.lost >= kept, "{count}, {kept} kept");
        }
    }
}
