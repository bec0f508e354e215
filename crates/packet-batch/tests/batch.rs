//! Compares a batch with the system calls that it replaces.

#![allow(clippy::unwrap_used)]

use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;

use packet_batch::{Batch, MAX};
use rustix::io::Errno;

fn pair() -> (UdpSocket, UdpSocket) {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(server.local_addr().unwrap()).unwrap();
    (server, client)
}

/// Receives all queued datagrams in calls of up to `limit`. Returns them and the number of calls.
fn drain(batch: &mut Batch, server: &UdpSocket, limit: usize) -> (Vec<Vec<u8>>, usize) {
    let (mut all, mut calls) = (Vec::new(), 0);
    loop {
        match batch.receive(server, limit) {
            Ok(n) => {
                assert!(n <= limit.clamp(1, MAX));
                assert_eq!(batch.len(), n);
            }
            Err(error) => {
                assert_eq!(error, Errno::AGAIN);
                return (all, calls);
            }
        }
        calls += 1;
        while let Some(packet) = batch.next() {
            all.push(packet.bytes.to_vec());
        }
    }
}

#[test]
fn each_datagram_arrives_once_and_in_order() {
    let (server, client) = pair();
    let mut batch = Batch::new(64);
    for limit in [0, 1, 3, MAX, usize::MAX] {
        let sent: Vec<_> = (0..100_u8).map(|n| vec![n; n as usize % 50]).collect();
        for packet in &sent {
            client.send(packet).unwrap();
        }
        assert_eq!(drain(&mut batch, &server, limit).0, sent, "limit {limit}");
    }
}

#[test]
fn ninety_six_datagrams_take_three_calls() {
    let (server, client) = pair();
    for _ in 0..96 {
        client.send(b"x").unwrap();
    }
    assert_eq!(drain(&mut Batch::new(8), &server, MAX).1, 3);
}

#[test]
fn long_datagram_is_truncated_and_reports_its_full_length() {
    let (server, client) = pair();
    client.send(&[7; 1000]).unwrap();
    client.send(b"").unwrap();
    let mut batch = Batch::new(10);
    let mut seen = Vec::new();
    while batch.receive(&server, MAX).is_ok() {
        while let Some(packet) = batch.next() {
            assert_eq!(packet.from, Some(client.local_addr().unwrap().into()));
            seen.push((packet.bytes.to_vec(), packet.full_len));
        }
    }
    assert_eq!(seen, [(vec![7; 10], 1000), (vec![], 0)]);
}

#[test]
fn unix_sender_has_its_name_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let server = UnixDatagram::bind(dir.path().join("server")).unwrap();
    let path = dir.path().join("client");
    let named = UnixDatagram::bind(&path).unwrap();
    named.send_to(b"a", dir.path().join("server")).unwrap();
    let unnamed = UnixDatagram::unbound().unwrap();
    unnamed.send_to(b"b", dir.path().join("server")).unwrap();

    let mut batch = Batch::new(10);
    batch.receive(&server, 1).unwrap();
    let from: rustix::net::SocketAddrUnix = batch.next().unwrap().from.unwrap().try_into().unwrap();
    assert_eq!(from.path_bytes(), Some(path.as_os_str().as_encoded_bytes()));
    batch.receive(&server, 1).unwrap();
    assert_eq!(batch.next().unwrap().from, None);
}

#[test]
#[should_panic(expected = "before receiving more")]
fn receive_panics_if_datagrams_are_left() {
    let (server, client) = pair();
    client.send(b"x").unwrap();
    let mut batch = Batch::new(10);
    batch.receive(&server, 1).unwrap();
    let _ = batch.receive(&server, 1);
}

#[test]
fn errors_of_the_socket_are_returned() {
    let (server, client) = pair();
    drop(server);
    // The ICMP reply to this datagram is an error, which the next call reports: udp(7).
    client.send(b"x").unwrap();
    assert_eq!(Batch::new(10).receive(&client, 1), Err(Errno::CONNREFUSED));
    assert_eq!(
        Batch::new(10).receive(std::fs::File::open("/dev/null").unwrap(), 1),
        Err(Errno::NOTSOCK)
    );
}
