//! UDP's own matters, beyond what `behaviour` proves on every model: batches, adopted sockets,
//! errors, options.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says why it fails, or is skipped"
)]

mod common;

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::mpsc::channel;

use common::running::{Running, echo_datagram};
use common::{PATIENCE, client::Endpoint, eventually};
use rustix::net::sockopt;
use socketserver::transport::Udp;
use socketserver::{
    AmplificationExceeded, BindError, Builder, Concurrency, Counters, Datagram, Event, Sequential,
    Server, UdpServer, UnixDatagramServer, handler_fn,
};

fn port(running: &Running) -> u16 {
    let Endpoint::Udp(server) = running.endpoint else {
        unreachable!("it is UDP");
    };
    server.port()
}

/// A client that hears nobody but this address of the server.
fn connected(running: &Running, to: [u8; 4]) -> UdpSocket {
    let client = UdpSocket::bind("0.0.0.0:0").unwrap();
    client
        .connect((std::net::IpAddr::from(to), port(running)))
        .unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

/// Datagrams from many peers to many addresses are received together, and answered together where
/// the model does so: each answer has the address of its own question.
fn many_answers_at_once_keep_their_addresses<C: Concurrency>(model: C) {
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
    many_answers_at_once_keep_their_addresses
}

#[test]
fn many_answers_one_by_one_do() {
    many_answers_at_once_keep_their_addresses(Sequential);
}

#[test]
fn an_adopted_socket_answers_from_the_address_that_was_asked() {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let server = UdpServer::builder().adopt(socket, echo_datagram()).unwrap();
    let running = Running::start(server);
    let client = connected(&running, [127, 0, 0, 9]);
    client.send(b"hello").unwrap();
    assert_eq!(client.recv(&mut [0; 9]).unwrap(), 5);
}

#[test]
fn a_socket_of_one_address_says_which() {
    let (tell, told) = channel();
    let tell_both = tell.clone();
    let handler = handler_fn(move |packet: &mut Datagram| Ok(tell_both.send(packet.local_addr())?));
    let running = Running::start(UdpServer::bind("127.0.0.3:0", handler).unwrap());
    running.client().say("?").unwrap();
    let expected = SocketAddr::from(([127, 0, 0, 3], port(&running)));
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), expected);

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server");
    let handler = handler_fn(move |packet: &mut Datagram| Ok(tell.send(packet.local_addr())?));
    let running = Running::start(UnixDatagramServer::bind(&path, handler).unwrap());
    running.client().say("?").unwrap();
    assert_eq!(told.recv_timeout(PATIENCE).unwrap().as_path(), Some(&*path));
}

/// A broadcast has no address of this machine on it, and is answered from one all the same.
#[test]
fn a_broadcast_is_answered() {
    for bind in ["0.0.0.0:0", "[::]:0"] {
        let Ok(server) = UdpServer::bind(bind, echo_datagram()) else {
            println!("SKIPPED: this machine has no IPv6");
            continue;
        };
        let running = Running::start(server);
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_broadcast(true).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let to = ("127.255.255.255", port(&running));
        if let Err(error) = client.send_to(b"anybody there?", to) {
            println!("SKIPPED: no broadcast on this machine: {error}");
            return;
        }
        let (n, _) = client.recv_from(&mut [0; 99]).unwrap();
        assert_eq!(n, 14);
    }
}

#[test]
fn a_handler_can_tell_the_limit_from_other_errors_and_send_less() {
    let (tell, told) = channel();
    let handler = handler_fn(move |packet: &mut Datagram| {
        let error = packet.reply(&[b'x'; 100]).unwrap_err();
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        let exceeded: AmplificationExceeded = *inner.unwrap();
        tell.send((
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
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), expected);
    assert_eq!(running.handle.counters().amplification_refused, 1);
}

/// What a datagram brought counts, not what there was room for; what could not be sent does not.
#[test]
fn the_whole_datagram_counts_and_a_reply_that_fails_does_not() {
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
    assert_eq!(client.hear().unwrap().unwrap().len(), 40_000);
    let Counters {
        amplification_refused,
        truncated,
        ..
    } = running.handle.counters();
    assert_eq!((amplification_refused, truncated), (0, 1));
}

#[test]
fn without_a_limit_there_is_none() {
    let flood = handler_fn(|packet: &mut Datagram| {
        packet.mark_validated();
        (0..50).try_for_each(|_| packet.reply(b"more than was asked for"))?;
        Ok(())
    });
    let running = Running::start(UdpServer::bind("127.0.0.1:0", flood).unwrap());
    let mut client = running.client();
    client.send(b"").unwrap();
    for _ in 0..50 {
        assert_eq!(
            client.hear().unwrap().as_deref(),
            Some("more than was asked for")
        );
    }
}

/// Told at once, and then no more often than once per second, but completely.
#[test]
fn drops_are_told_seldom_and_completely() {
    let (tell, told) = channel();
    let (release, gate) = channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let handler = handler_fn(move |packet: &mut Datagram| {
        match packet.bytes() {
            b"wait" => gate.lock().unwrap().recv_timeout(PATIENCE)?,
            b"ask" => packet.reply(b"answer")?,
            _ => {}
        }
        Ok(())
    });
    let server = UdpServer::builder()
        .receive_buffer(4096)
        .on_event(move |event| {
            if let Event::DatagramsDropped { address, count } = event {
                tell.send((address.to_string(), *count)).unwrap();
            }
        })
        .bind("127.0.0.1:0", handler)
        .unwrap();
    let running = Running::start(server);
    let mut client = running.client();
    let began = std::time::Instant::now();
    let mut sent = 0;
    for _ in 0..10 {
        client.say("wait").unwrap();
        eventually(PATIENCE, "it to be served", || {
            running.handle.active_count() == 1
        });
        for _ in 0..100 {
            client.say("nothing").unwrap();
        }
        release.send(()).unwrap();
        sent += 101;
        // Answered when there is room again, and all before it was taken out.
        let patience = std::time::Duration::from_millis(20);
        client.set_patience(patience).unwrap();
        loop {
            client.say("ask").unwrap();
            sent += 1;
            if client.hear().is_ok() {
                break;
            }
        }
        eventually(PATIENCE, "rest", || running.handle.active_count() == 0);
    }
    let counters = running.handle.counters();
    let dropped = counters.dropped_by_kernel;
    assert_eq!(counters.accepted + dropped, sent);
    let early: Vec<_> = told.try_iter().collect();
    let allowed = began.elapsed().as_secs() + 1;
    assert!((1..=allowed).contains(&(early.len() as u64)), "{early:?}");
    assert!(early[0].1 > 0 && early[0].0.starts_with("127.0.0.1:"));
    // The rest, with the first datagram that comes when a second is over.
    let mut all: u64 = early.iter().map(|(_, count)| count).sum();
    eventually(PATIENCE, "all to be told", || {
        client.say("nothing").unwrap();
        all += told.try_iter().map(|(_, count)| count).sum::<u64>();
        all == dropped
    });
}

#[test]
fn buffers_have_the_size_that_was_asked_for_or_binding_fails() {
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
    let refused = builder
        .receive_buffer(usize::MAX)
        .bind("127.0.0.1:0", echo_datagram())
        .unwrap_err();
    assert!(
        matches!(
            refused,
            BindError::BadOption {
                option: "receive_buffer",
                ..
            }
        ),
        "{refused}"
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server");
    let builder = UnixDatagramServer::builder().send_buffer(usize::MAX);
    let refused = builder.bind(&path, echo_datagram()).unwrap_err();
    assert!(
        matches!(
            refused,
            BindError::BadOption {
                option: "send_buffer",
                ..
            }
        ),
        "{refused}"
    );
    assert!(!path.exists(), "nothing is left of it");
}
