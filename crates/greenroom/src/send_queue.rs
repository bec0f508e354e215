//! Datagrams that coroutines queue until the end of their worker's tick, to be sent in one batch.

use std::array;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use packet_batch::{PacketInfo, SendFlags, Transmit};
use rustix::io::Errno;
use rustix::net::SocketAddrAny;

use crate::slab::Key;

/// Maximum number of datagrams per system call.
const BATCH: usize = packet_batch::MAX;

/// Maximum number of queued datagrams. Beyond it the coroutine sends on its own, because the length
/// of a tick has no bound.
const MAX_PACKETS: usize = 256;

/// Maximum size of a queued datagram. Copying a longer one costs as much as the saved system call.
const MAX_BYTES: usize = 2048;

/// The flags of all datagrams that are sent here. The sender itself waits for buffer space.
pub(crate) const FLAGS: SendFlags = SendFlags::NOSIGNAL.union(SendFlags::DONTWAIT);

#[derive(Default)]
pub(crate) struct SendQueue {
    packets: Vec<Packet>,
    /// The payloads, one after the other: most are small.
    bytes: Vec<u8>,
}

struct Packet {
    socket: Arc<OwnedFd>,
    to: SocketAddrAny,
    from: Option<PacketInfo>,
    sender: Key,
    start: usize,
    end: usize,
}

impl SendQueue {
    pub(crate) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    pub(crate) fn has_room_for(&self, bytes: &[u8]) -> bool {
        self.packets.len() < MAX_PACKETS && bytes.len() <= MAX_BYTES
    }

    pub(crate) fn push(&mut self, socket: &Arc<OwnedFd>, packet: &Transmit<'_>, sender: Key) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(packet.bytes());
        self.packets.push(Packet {
            socket: socket.clone(),
            to: packet.to().clone(),
            from: packet.local(),
            sender,
            start,
            end: self.bytes.len(),
        });
    }

    /// Sends all queued datagrams, and calls `report` once per datagram with its result.
    pub(crate) fn send_all(&mut self, mut report: impl FnMut(Key, rustix::io::Result<()>)) {
        let same = |a: &Packet, b: &Packet| Arc::ptr_eq(&a.socket, &b.socket);
        for mut rest in self.packets.chunk_by(same) {
            while let [first, ..] = rest {
                let (done, sent) = match self.send(&rest[..rest.len().min(BATCH)]) {
                    Ok(n) => (n.max(1), Ok(())),
                    Err(Errno::INTR) => continue,
                    // There is no space for the others either.
                    Err(Errno::AGAIN) => (rest.len(), Err(Errno::AGAIN)),
                    Err(error) => (1, Err(error)),
                };
                debug_assert!(Arc::ptr_eq(&first.socket, &rest[done - 1].socket));
                rest[..done]
                    .iter()
                    .for_each(|packet| report(packet.sender, sent));
                rest = &rest[done..];
            }
        }
        self.packets.clear();
        self.bytes.clear();
    }

    /// Sends datagrams of one socket. Returns the number that was sent, which is at least one. An
    /// error is that of the first datagram.
    fn send(&self, packets: &[Packet]) -> rustix::io::Result<usize> {
        let first = &packets[0];
        let outgoing: [_; BATCH] = array::from_fn(|n| {
            let packet = packets.get(n).unwrap_or(first);
            Transmit::new(self.bytes_of(packet), &packet.to).from(packet.from)
        });
        packet_batch::send(&*first.socket, &outgoing[..packets.len()], FLAGS)
    }

    fn bytes_of(&self, packet: &Packet) -> &[u8] {
        &self.bytes[packet.start..packet.end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slab::Slab;
    use std::net::{SocketAddr, UdpSocket};

    /// Returns a key like that of the coroutine with this number.
    fn key(number: u32) -> Key {
        let mut slab = Slab::default();
        (0..=number).map(|_| slab.insert(())).last().unwrap()
    }

    #[test]
    fn each_sender_receives_the_result_of_its_own_datagram() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        receiver
            .set_read_timeout(Some(std::time::Duration::from_secs(10)))
            .unwrap();
        let good = receiver.local_addr().unwrap().into();
        let bad = SocketAddr::from(([127, 0, 0, 1], 0)).into();
        let sockets: [Arc<OwnedFd>; 2] =
            array::from_fn(|_| Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap().into()));
        let mut send_queue = SendQueue::default();
        for n in 0..200_u32 {
            let to = if n % 7 == 3 { &bad } else { &good };
            let socket = &sockets[(n / 50 % 2) as usize];
            send_queue.push(socket, &Transmit::new(&n.to_ne_bytes(), to), key(n));
        }

        let mut results = Vec::new();
        send_queue.send_all(|sender, sent| results.push((sender, sent)));

        for (n, (sender, sent)) in (0..200).zip(&results) {
            let expected = if n % 7 == 3 {
                Err(Errno::INVAL)
            } else {
                Ok(())
            };
            assert_eq!((*sender, *sent), (key(n), expected));
        }
        assert_eq!(results.len(), 200);
        assert!(send_queue.is_empty());
        for n in (0..200_u32).filter(|n| n % 7 != 3) {
            let mut bytes = [0; 5];
            assert_eq!(receiver.recv(&mut bytes).unwrap(), 4);
            assert_eq!(bytes[..4], n.to_ne_bytes());
        }
    }

    #[test]
    fn full_socket_fails_all_further_datagrams() {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net::{SocketAddr, UnixDatagram};
        let name = format!("greenroom-send-queue-{}", std::process::id());
        let receiver = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap());
        let to = rustix::net::SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
        let to = to.into();
        let sender: Arc<OwnedFd> = Arc::new(UnixDatagram::unbound().unwrap().into());
        let mut send_queue = SendQueue::default();
        // More than /proc/sys/net/unix/max_dgram_qlen has by any default.
        let sender_key = key(0);
        for _ in 0..5000 {
            send_queue.push(&sender, &Transmit::new(b"x", &to), sender_key);
        }
        let mut results = Vec::new();
        send_queue.send_all(|sender, sent| results.push((sender, sent)));
        let sent = results.iter().take_while(|(_, sent)| sent.is_ok()).count();
        assert!((1..5000).contains(&sent), "{sent}");
        assert!(
            results[sent..]
                .iter()
                .all(|(_, sent)| *sent == Err(Errno::AGAIN))
        );
        assert_eq!(results.len(), 5000);
        drop(receiver);
    }
}
