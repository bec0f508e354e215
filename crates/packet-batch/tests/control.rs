//! Metadata of received datagrams, and source addresses of sent ones.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test prints why it fails or is skipped"
)]

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::mpsc::channel;
use std::time::Duration;

use packet_batch::{
    Batch, MAX, PacketInfo, SendFlags, Transmit, send, set_recv_drop_count, set_recv_pktinfo,
};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SocketAddrAny, sockopt};

fn server_with_metadata(bind: &str) -> UdpSocket {
    let server = UdpSocket::bind(bind).unwrap();
    set_recv_pktinfo(&server).unwrap();
    set_recv_drop_count(&server).unwrap();
    server
}

/// Returns a client that receives only from this address of the server.
fn client(server: &UdpSocket, ip: &str) -> UdpSocket {
    let to: IpAddr = ip.parse().unwrap();
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let client = UdpSocket::bind(any).unwrap();
    client
        .connect((to, server.local_addr().unwrap().port()))
        .unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    client
}

fn has_ipv6() -> bool {
    let has = UdpSocket::bind("[::1]:0").is_ok();
    if !has {
        println!("SKIPPED: this machine has no IPv6");
    }
    has
}

fn assert_replies_come_from(bind: &str, addresses: &[(&str, &str)]) {
    let server = server_with_metadata(bind);
    let clients: Vec<_> = addresses
        .iter()
        .map(|(ip, _)| client(&server, ip))
        .collect();
    for client in &clients {
        client.send(b"hello").unwrap();
    }
    let mut batch = Batch::new(16).with_packet_info();
    let mut senders = Vec::new();
    while senders.len() < clients.len() {
        batch.receive(&server, MAX).unwrap();
        while let Some(packet) = batch.next() {
            senders.push((packet.from.unwrap(), packet.local));
        }
    }
    for ((_, expected), (_, local)) in addresses.iter().zip(&senders) {
        assert_eq!(local.unwrap().ip, expected.parse::<IpAddr>().unwrap());
        assert_eq!(local.unwrap().interface, 0);
    }
    // All replies in one batch, and the first one once more on its own.
    let replies: Vec<_> = senders
        .iter()
        .map(|(to, local)| Transmit::new(b"hi", to).from(*local))
        .collect();
    assert_eq!(
        send(&server, &replies, SendFlags::empty()).unwrap(),
        replies.len()
    );
    assert_eq!(send(&server, &replies[..1], SendFlags::empty()), Ok(1));
    for client in clients.iter().chain(&clients[..1]) {
        assert_eq!(client.recv(&mut [0; 9]).unwrap(), 2);
    }
}

#[test]
fn ipv4_replies_come_from_the_requested_address() {
    assert_replies_come_from(
        "0.0.0.0:0",
        &[
            ("127.0.0.1", "127.0.0.1"),
            ("127.0.0.2", "127.0.0.2"),
            ("127.1.2.3", "127.1.2.3"),
        ],
    );
}

#[test]
fn ipv6_socket_replies_from_the_requested_address_of_either_family() {
    if has_ipv6() {
        assert_replies_come_from(
            "[::]:0",
            &[
                ("::1", "::1"),
                ("127.0.0.2", "::ffff:127.0.0.2"),
                ("127.0.0.3", "::ffff:127.0.0.3"),
            ],
        );
    }
}

#[test]
fn foreign_source_address_is_rejected() {
    let server = server_with_metadata("0.0.0.0:0");
    let to: SocketAddrAny = client(&server, "127.0.0.1").local_addr().unwrap().into();
    let local = PacketInfo {
        ip: [198, 51, 100, 1].into(), // TEST-NET-2, RFC 5737
        interface: 0,
    };
    let packet = Transmit::new(b"x", &to).from(Some(local));
    let error = send(&server, &[packet], SendFlags::empty()).unwrap_err();
    assert!(
        [Errno::INVAL, Errno::NETUNREACH].contains(&error),
        "{error}"
    );
}

#[test]
fn error_in_the_middle_is_left_for_the_next_call() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let receiver = client(&server, "127.0.0.1");
    let good: SocketAddrAny = receiver.local_addr().unwrap().into();
    let bad: SocketAddrAny = SocketAddr::from(([127, 0, 0, 1], 0)).into();
    let packets = [&good, &good, &bad, &good].map(|to| Transmit::new(b"x", to));
    assert_eq!(send(&server, &packets, SendFlags::empty()), Ok(2));
    assert_eq!(
        send(&server, &packets[2..], SendFlags::empty()),
        Err(Errno::INVAL)
    );
    assert_eq!(send(&server, &packets[3..], SendFlags::empty()), Ok(1));
}

/// More datagrams than one call takes, of all lengths, from several addresses.
#[test]
fn many_datagrams_are_sent_whole_and_in_order() {
    let server = server_with_metadata("0.0.0.0:0");
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = receiver.local_addr().unwrap().into();
    let contents: Vec<_> = (0..100_u8).map(|n| vec![n; n.into()]).collect();
    let packets: Vec<_> = contents
        .iter()
        .zip(1..)
        .map(|(bytes, n)| {
            let local = PacketInfo {
                ip: [127, 0, 0, n].into(),
                interface: 0,
            };
            Transmit::new(bytes, &to).from((n % 2 == 0).then_some(local))
        })
        .collect();
    let mut rest = &packets[..];
    while !rest.is_empty() {
        let sent = send(&server, rest, SendFlags::empty()).unwrap();
        assert!(sent <= MAX);
        rest = &rest[sent..];
    }
    let mut batch = Batch::new(200).with_packet_info();
    let mut next = 0;
    while next < contents.len() {
        batch.receive(&receiver, MAX).unwrap();
        while let Some(packet) = batch.next() {
            assert_eq!(packet.bytes, contents[next]);
            // The receiver has not enabled packet info.
            assert_eq!(packet.local, None);
            let from = SocketAddr::try_from(packet.from.unwrap()).unwrap();
            // Every second datagram was sent from an address of its own.
            let expected = if next % 2 == 1 {
                u8::try_from(next).unwrap() + 1
            } else {
                1
            };
            assert_eq!(from.ip(), IpAddr::from([127, 0, 0, expected]));
            next += 1;
        }
    }
}

/// Floods a socket with a small buffer. Only the first burst arrives before the socket is read.
#[test]
fn drops_of_the_kernel_are_counted_completely() {
    let server = server_with_metadata("127.0.0.1:0");
    sockopt::set_socket_recv_buffer_size(&server, 4096).unwrap();
    let sender = client(&server, "127.0.0.1");
    let (tx, rx) = channel();
    let sending = std::thread::spawn(move || {
        for _ in 0..100 {
            for _ in 0..200 {
                sender.send(&[0; 100]).unwrap();
            }
            tx.send(()).unwrap();
        }
        (sender, 100 * 200)
    });
    let mut batch = Batch::new(100).with_packet_info();
    let mut received = 0;
    let mut drain = || {
        while batch.receive(&server, MAX).is_ok() {
            while batch.next().is_some() {
                received += 1;
            }
        }
        (received, batch.dropped())
    };
    for () in rx {
        drain();
    }
    let (sender, sent) = sending.join().unwrap();
    drain();
    // This datagram finds space, and carries the final count of the drops before it.
    sender.send(b"last").unwrap();
    let (received, dropped) = drain();
    assert!(dropped > 0 && received > 0, "{received} {dropped}");
    assert_eq!(received + dropped, sent + 1);
}

#[test]
fn received_descriptors_are_closed() {
    let (server, client) = UnixDatagram::pair().unwrap();
    let (witness, passed) = UnixDatagram::pair().unwrap();
    let passed = OwnedFd::from(passed);
    for _ in 0..10 {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [passed.as_fd(); 3];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let flags = SendFlags::empty();
        rustix::net::sendmsg(&client, &[IoSlice::new(b"x")], &mut control, flags).unwrap();
    }
    let mut batch = Batch::new(9).with_packet_info();
    assert_eq!(batch.receive(&server, MAX).unwrap(), 10);
    while let Some(packet) = batch.next() {
        assert_eq!((packet.bytes, packet.local), (&b"x"[..], None));
    }
    // Once the last descriptor of the other end is closed, a send on this end fails.
    drop(passed);
    witness.set_nonblocking(true).unwrap();
    let gone = witness.send(b"x").unwrap_err();
    assert_eq!(gone.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn packet_info_is_an_error_on_a_unix_socket() {
    let socket = UnixDatagram::unbound().unwrap();
    let error = set_recv_pktinfo(&socket).unwrap_err();
    assert_eq!(error, Errno::AFNOSUPPORT);
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(set_recv_drop_count(&file).is_err() && file.as_raw_fd() >= 0);
}

#[test]
#[should_panic(expected = "nothing to send")]
fn sending_an_empty_slice_panics() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let _ = send(&server, &[], SendFlags::empty());
}
