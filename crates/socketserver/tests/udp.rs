//! UDP beyond the scenarios of `behaviour`: batches, inherited sockets, errors, options.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test prints why it fails or is skipped"
)]

mod common;

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::mpsc::channel;

use common::running::{Running, echo_datagram};
use common::{TIMEOUT, client::Endpoint, eventually};
use rustix::net::sockopt;
use socketserver::transport::Udp;
use socketserver::{
    AmplificationExceeded, BindError, Builder, Concurrency, Counters, Datagram, Event, Sequential,
    Server, UdpServer, UnixDatagramServer, handler_fn,
};

fn port(running: &Running) -> u16 {
    let Endpoint::Udp(server) = running.endpoint else {
        unreachable!("the transport is UDP");
    };
    server.port()
}

/// Returns a client that receives only from this address of the server.
fn connected(running: &Running, to: [u8; 4]) -> UdpSocket {
    let client = UdpSocket::bind("0.0.0.0:0").unwrap();
    client
        .connect((std::net::IpAddr::from(to), port(running)))
        .unwrap();
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    client
}

/// Datagrams from many peers to many addresses are received in batches, and replied to in batches
/// where the model does so. Each reply comes from the address that its request was sent to.
fn many_replies_in_a_batch_keep_their_addresses<C: Concurrency>(model: C) {
    let server = Server::<Udp, C>::builder().concurrency(model);
    let running = Running::start(server.bind("0.0.0.0:0", echo_datagram()).unwrap());
    let clients: Vec<_> = (1..=60)
        .map(|n| connected(&running, [127, 0, 0, n]))
        .collect();
    for round in 0..20_u8 {
        for client in &clients {
            client.send(&[round]).unwrap();
        }
        for client in &clients {
            let mut answer = [0; 9];
            assert_eq!(client.recv(&mut answer).unwrap(), 1);
            assert_eq!(answer[0], round);
        }
    }
}

common::under_each_model! {
    many_replies_in_a_batch_keep_their_addresses
}

#[test]
fn many_replies_one_by_one_keep_their_addresses() {
    many_replies_in_a_batch_keep_their_addresses(Sequential);
}

#[test]
fn inherited_socket_replies_from_the_requested_address() {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let server = UdpServer::builder().adopt(socket, echo_datagram()).unwrap();
    let running = Running::start(server);
    let client = connected(&running, [127, 0, 0, 9]);
    client.send(b"hello").unwrap();
    assert_eq!(client.recv(&mut [0; 9]).unwrap(), 5);
}

#[test]
fn local_address_of_a_bound_socket_is_known() {
    let (tx, rx) = channel();
    let tx_clone = tx.clone();
    let handler = handler_fn(move |packet: &mut Datagram| Ok(tx_clone.send(packet.local_addr())?));
    let running = Running::start(UdpServer::bind("127.0.0.3:0", handler).unwrap());
    running.client().send_line("?").unwrap();
    let expected = SocketAddr::from(([127, 0, 0, 3], port(&running)));
    assert_eq!(rx.recv_timeout(TIMEOUT).unwrap(), expected);

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server");
    let handler = handler_fn(move |packet: &mut Datagram| Ok(tx.send(packet.local_addr())?));
    let running = Running::start(UnixDatagramServer::bind(&path, handler).unwrap());
    running.client().send_line("?").unwrap();
    assert_eq!(rx.recv_timeout(TIMEOUT).unwrap().as_path(), Some(&*path));
}

/// A broadcast address is not a local address. The reply comes from a local address.
#[test]
fn broadcast_gets_a_reply() {
    for bind in ["0.0.0.0:0", "[::]:0"] {
        let Ok(server) = UdpServer::bind(bind, echo_datagram()) else {
            println!("SKIPPED: this machine has no IPv6");
            continue;
        };
        let running = Running::start(server);
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_broadcast(true).unwrap();
        client.set_read_timeout(Some(TIMEOUT)).unwrap();
        let to = ("127.255.255.255", port(&running));
        if let Err(error) = client.send_to(b"any server?", to) {
            println!("SKIPPED: no broadcast on this machine: {error}");
            return;
        }
        let (n, _) = client.recv_from(&mut [0; 99]).unwrap();
        assert_eq!(n, 11);
    }
}

#[test]
fn handler_can_detect_the_amplification_limit_and_send_less() {
    let (tx, rx) = channel();
    let handler = handler_fn(move |packet: &mut Datagram| {
        let error = packet.reply(&[b'x'; 100]).unwrap_err();
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        let exceeded: AmplificationExceeded = *inner.unwrap();
        tx.send((
            error.kind(),
            exceeded.reply,
            exceeded.received,
            exceeded.factor,
        ))?;
        Ok(packet.reply(b"brief")?)
    });
    let server = UdpServer::builder().max_amplification(Some(2));
    let running = Running::start(server.bind("127.0.0.1:0", handler).unwrap());
    assert_eq!(running.client().ask("hello"), "brief");
    let expected = (ErrorKind::QuotaExceeded, 100, 5, 2);
    assert_eq!(rx.recv_timeout(TIMEOUT).unwrap(), expected);
    assert_eq!(running.handle.counters().amplification_refused, 1);
}

/// The full length of a datagram counts, not the size of the buffer. A reply that could not be sent
/// does not count.
#[test]
fn full_length_counts_and_a_failed_reply_does_not() {
    let handler = handler_fn(|packet: &mut Datagram| {
        assert_eq!(packet.bytes().len(), 10);
        packet.reply(&[0; 70_000]).unwrap_err();
        packet.reply(&[0; 70_000]).unwrap_err();
        Ok(packet.reply(&[b'x'; 40_000])?)
    });
    let server = UdpServer::builder()
        .max_packet_size(10)
        .max_amplification(Some(2));
    let running = Running::start(server.bind("127.0.0.1:0", handler).unwrap());
    let mut client = running.client();
    client.send(&[0; 40_000]).unwrap();
    assert_eq!(client.receive_line().unwrap().unwrap().len(), 40_000);
    let Counters {
        amplification_refused,
        truncated,
        ..
    } = running.handle.counters();
    assert_eq!((amplification_refused, truncated), (0, 1));
}

#[test]
fn replies_are_unlimited_by_default() {
    let flood = handler_fn(|packet: &mut Datagram| {
        packet.mark_validated();
        (0..50).try_for_each(|_| packet.reply(b"a reply without a limit"))?;
        Ok(())
    });
    let running = Running::start(UdpServer::bind("127.0.0.1:0", flood).unwrap());
    let mut client = running.client();
    client.send(b"").unwrap();
    for _ in 0..50 {
        assert_eq!(
            client.receive_line().unwrap().as_deref(),
            Some("a reply without a limit")
        );
    }
}

/// The first drop is reported at once. Later drops are reported at most once per second, but
/// completely.
#[test]
fn drop_reports_are_rare_and_complete() {
    let (tx, rx) = channel();
    let (release, wait) = channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let handler = handler_fn(move |packet: &mut Datagram| {
        match packet.bytes() {
            b"wait" => wait.lock().unwrap().recv_timeout(TIMEOUT)?,
            b"ask" => packet.reply(b"answer")?,
            _ => {}
        }
        Ok(())
    });
    let server = UdpServer::builder()
        .receive_buffer(4096)
        .on_event(move |event| {
            if let Event::DatagramsDropped { address, count } = event {
                tx.send((address.to_string(), *count)).unwrap();
            }
        })
        .bind("127.0.0.1:0", handler)
        .unwrap();
    let running = Running::start(server);
    let mut client = running.client();
    let start = std::time::Instant::now();
    let mut sent = 0;
    for _ in 0..10 {
        client.send_line("wait").unwrap();
        eventually(TIMEOUT, "the request to be active", || {
            running.handle.active_count() == 1
        });
        for _ in 0..100 {
            client.send_line("nothing").unwrap();
        }
        release.send(()).unwrap();
        sent += 101;
        // The reply comes when there is buffer space again and all earlier datagrams were received.
        let timeout = std::time::Duration::from_millis(20);
        client.set_timeout(timeout).unwrap();
        loop {
            client.send_line("ask").unwrap();
            sent += 1;
            if client.receive_line().is_ok() {
                break;
            }
        }
        eventually(TIMEOUT, "all to end", || running.handle.active_count() == 0);
    }
    let counters = running.handle.counters();
    let dropped = counters.dropped_by_kernel;
    assert_eq!(counters.accepted + dropped, sent);
    let reports: Vec<_> = rx.try_iter().collect();
    let allowed = start.elapsed().as_secs() + 1;
    assert!(
        (1..=allowed).contains(&(reports.len() as u64)),
        "{reports:?}"
    );
    assert!(reports[0].1 > 0 && reports[0].0.starts_with("127.0.0.1:"));
    // The rest is reported with the first datagram after the second is over.
    let mut all: u64 = reports.iter().map(|(_, count)| count).sum();
    eventually(TIMEOUT, "all drops to be reported", || {
        client.send_line("nothing").unwrap();
        all += rx.try_iter().map(|(_, count)| count).sum::<u64>();
        all == dropped
    });
}

#[test]
fn buffers_have_the_requested_size_or_bind_fails() {
    let builder: Builder<Udp, Sequential> = UdpServer::builder();
    let server = builder
        .receive_buffer(100_000)
        .send_buffer(50_000)
        .bind("127.0.0.1:0", echo_datagram())
        .unwrap();
    // The kernel doubles them: socket(7).
    assert_eq!(sockopt::socket_recv_buffer_size(&server).unwrap(), 200_000);
    assert_eq!(sockopt::socket_send_buffer_size(&server).unwrap(), 100_000);

    let builder: Builder<Udp, Sequential> = UdpServer::builder();
    let error = builder
        .receive_buffer(usize::MAX)
        .bind("127.0.0.1:0", echo_datagram())
        .unwrap_err();
    assert!(
        matches!(
            error,
            BindError::BadOption {
                option: "receive_buffer",
                ..
            }
        ),
        "{error}"
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server");
    let builder = UnixDatagramServer::builder().send_buffer(usize::MAX);
    let error = builder.bind(&path, echo_datagram()).unwrap_err();
    assert!(
        matches!(
            error,
            BindError::BadOption {
                option: "send_buffer",
                ..
            }
        ),
        "{error}"
    );
    assert!(!path.exists(), "the failed bind has left its file behind");
}
