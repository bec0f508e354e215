//! Details of datagrams and their senders.

#![allow(clippy::unwrap_used, reason = "a test prints why it fails")]

mod common;

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::mpsc::{Receiver, channel};

use common::client::Endpoint;
use common::running::{Running, echo, echo_datagram};
use common::{TIMEOUT, eventually};
use socketserver::{
    Datagram, EndReason, Event, ThreadingUdpServer, ThreadingUnixDatagramServer,
    ThreadingUnixStreamServer, UdpServer, UnixDatagramServer, handler_fn,
};

fn unix_pair() -> (tempfile::TempDir, UnixDatagram) {
    let dir = tempfile::tempdir().unwrap();
    let client = UnixDatagram::bind(dir.path().join("client")).unwrap();
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    (dir, client)
}

/// Returns an observer, and the reasons of the ended requests that it reports.
fn end_reasons() -> (
    impl Fn(&Event<'_>) + Send + Sync + 'static,
    Receiver<EndReason>,
) {
    let (sender, receiver) = channel();
    let observe = move |event: &Event<'_>| {
        if let Event::Ended(_, end) = event {
            sender.send(end.reason).unwrap();
        }
    };
    (observe, receiver)
}

#[test]
fn peer_with_a_path_is_named_and_gets_a_reply() {
    let (dir, client) = unix_pair();
    let path = dir.path().join("server");
    let whoami = handler_fn(|packet: &mut Datagram| {
        let peer = packet.peer_addr().to_string();
        Ok(packet.reply(peer.as_bytes())?)
    });
    let _running = Running::start(UnixDatagramServer::bind(&path, whoami).unwrap());
    client.send_to(b"who am I?", &path).unwrap();
    let mut answer = [0; 200];
    let (n, from) = client.recv_from(&mut answer).unwrap();
    assert_eq!(
        &answer[..n],
        dir.path().join("client").to_str().unwrap().as_bytes()
    );
    assert_eq!(from.as_pathname(), Some(&*path));
}

/// The kernel reports such a name with one byte more than an address holds.
#[test]
fn peer_with_the_longest_path_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let longest = "x".repeat(108 - dir.path().as_os_str().len() - 1);
    let hostile = dir.path().join(longest);
    let bind = |kind| {
        let socket = rustix::net::socket(rustix::net::AddressFamily::UNIX, kind, None).unwrap();
        let address = rustix::net::SocketAddrUnix::new(&hostile).unwrap();
        rustix::net::bind(&socket, &address).unwrap();
        std::fs::remove_file(&hostile).unwrap();
        socket
    };

    let path = dir.path().join("packets");
    let packets = Running::start(UnixDatagramServer::bind(&path, echo_datagram()).unwrap());
    let client = UnixDatagram::from(bind(rustix::net::SocketType::DGRAM));
    client.send_to(b"hello", &path).unwrap();
    assert_eq!(packets.client().ask("still there?"), "still there?");

    let path = dir.path().join("stream");
    let streams = Running::start(ThreadingUnixStreamServer::bind(&path, echo()).unwrap());
    let client = bind(rustix::net::SocketType::STREAM);
    let address = rustix::net::SocketAddrUnix::new(&path).unwrap();
    rustix::net::connect(&client, &address).unwrap();
    let mut client = UnixStream::from(client);
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    std::io::Write::write_all(&mut client, b"hello\n").unwrap();
    let mut answer = [0; 6];
    std::io::Read::read_exact(&mut client, &mut answer).unwrap();
    assert_eq!(&answer, b"hello\n");
    assert_eq!(streams.client().ask("still there?"), "still there?");
}

#[test]
fn handler_may_reply_more_than_once() {
    let thrice = handler_fn(|packet: &mut Datagram| {
        let bytes = packet.take_bytes();
        assert!(packet.bytes().is_empty() && packet.full_len() == bytes.len());
        (0..3).try_for_each(|_| packet.reply(&bytes))?;
        Ok(())
    });
    let running = Running::start(UdpServer::bind("127.0.0.1:0", thrice).unwrap());
    let mut client = running.client();
    client.send_line("again").unwrap();
    for _ in 0..3 {
        assert_eq!(client.receive_line().unwrap().as_deref(), Some("again"));
    }
}

#[test]
fn too_long_reply_is_an_error_and_the_next_reply_works() {
    let (tx, rx) = channel();
    let too_long = handler_fn(move |packet: &mut Datagram| {
        let error = packet.reply(&[0; 70_000]).unwrap_err();
        tx.send(error.raw_os_error())?;
        Ok(packet.reply(b"short")?)
    });
    let running = Running::start(UdpServer::bind("127.0.0.1:0", too_long).unwrap());
    assert_eq!(running.client().ask("go on"), "short");
    assert_eq!(rx.recv_timeout(TIMEOUT).unwrap(), Some(libc::EMSGSIZE));
}

#[test]
fn closed_sender_is_not_a_handler_error() {
    let (dir, client) = unix_pair();
    let (observe, ended) = end_reasons();
    let (released, wait) = channel();
    let wait = std::sync::Mutex::new(wait);
    let late = handler_fn(move |packet: &mut Datagram| {
        wait.lock().unwrap().recv_timeout(TIMEOUT)?;
        Ok(packet.reply(b"too late")?)
    });
    let path = dir.path().join("server");
    let server = ThreadingUnixDatagramServer::builder()
        .on_event(observe)
        .handle_error(|_, failure| panic!("{failure}"))
        .bind(&path, late)
        .unwrap();
    let running = Running::start(server);
    client.send_to(b"hello", &path).unwrap();
    eventually(TIMEOUT, "the request to be active", || {
        running.handle.active_count() == 1
    });
    drop(client);
    released.send(()).unwrap();
    assert_eq!(
        ended.recv_timeout(TIMEOUT).unwrap(),
        EndReason::Disconnected
    );
    assert_eq!(running.handle.counters().hook_failures, 0);
}

/// A reply to a closed port returns as an error of the server's own socket.
#[test]
fn closed_senders_do_not_stop_a_udp_server() {
    let running = Running::start(ThreadingUdpServer::bind("127.0.0.2:0", echo_datagram()).unwrap());
    // Bound first, so that it does not get the port of a closed sender, to which replies are in
    // flight.
    let mut open_client = running.client();
    for _ in 0..100 {
        running.client().send_line("closed sender").unwrap();
    }
    assert_eq!(open_client.ask("still there?"), "still there?");
}

#[test]
fn unnamed_sender_is_reported_to_the_handler() {
    let (_dir, path) = {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server");
        (dir, path)
    };
    let (tx, rx) = channel();
    let answer = handler_fn(move |packet: &mut Datagram| {
        let error = packet.reply(b"no receiver").unwrap_err();
        tx.send((
            packet.peer_addr().is_unnamed(),
            error.kind(),
            error.to_string(),
        ))?;
        Ok(())
    });
    let _running = Running::start(UnixDatagramServer::bind(&path, answer).unwrap());
    UnixDatagram::unbound()
        .unwrap()
        .send_to(b"hello", &path)
        .unwrap();
    let (unnamed, kind, text) = rx.recv_timeout(TIMEOUT).unwrap();
    assert!(unnamed && kind == ErrorKind::NotConnected);
    assert!(
        text.contains("bind"),
        "the message lacks the remedy: {text}"
    );
}

/// The socket stays open for replies to the last datagrams, and is closed after them.
#[test]
fn reply_after_the_close_arrives() {
    let (release, wait) = channel();
    let wait = std::sync::Mutex::new(wait);
    let late = handler_fn(move |packet: &mut Datagram| {
        wait.lock().unwrap().recv_timeout(TIMEOUT)?;
        Ok(packet.reply(b"at last")?)
    });
    let mut server = ThreadingUdpServer::bind("127.0.0.2:0", late).unwrap();
    let address = server.local_addr().as_inet().unwrap();
    let mut client = common::client::Client::connect(&Endpoint::Udp(address)).unwrap();
    client.send_line("hello").unwrap();
    server.handle_request(Some(TIMEOUT)).unwrap();
    drop(server);
    release.send(()).unwrap();
    assert_eq!(client.receive_line().unwrap().as_deref(), Some("at last"));
    eventually(TIMEOUT, "the port to be free", || {
        UdpSocket::bind(address).is_ok()
    });
}

/// A copy of the server's own socket sends from its address. A server that replied would reply to
/// itself without end.
#[test]
fn datagram_from_the_own_address_is_rejected_over_udp() {
    let sockets = [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::1", "::1"),
    ];
    let dual_stack = [("::", "::1"), ("::", "::ffff:127.0.0.1")];
    for (bound, to) in sockets.into_iter().chain(dual_stack) {
        let Ok(socket) = UdpSocket::bind((bound, 0)) else {
            println!("SKIPPED: {bound} is not an address of this machine");
            continue;
        };
        let to = SocketAddr::new(to.parse().unwrap(), socket.local_addr().unwrap().port());
        let copy = socket.try_clone().unwrap();
        let running = Running::start(UdpServer::builder().adopt(copy, echo_datagram()).unwrap());
        assert_rejected(&running, || {
            assert_eq!(socket.send_to(b"again", to).unwrap(), 5);
        });
        let client = UdpSocket::bind((to.ip(), 0)).unwrap();
        client.set_read_timeout(Some(TIMEOUT)).unwrap();
        client.send_to(b"hello", to).unwrap();
        assert_eq!(
            client.recv(&mut [0; 9]).unwrap(),
            5,
            "another sender gets a reply"
        );
    }
}

#[test]
fn datagram_from_the_own_address_is_rejected_over_unix_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server");
    let socket = UnixDatagram::bind(&path).unwrap();
    let copy = socket.try_clone().unwrap();
    let server = UnixDatagramServer::builder().adopt(copy, echo_datagram());
    let running = Running::start(server.unwrap());
    assert_rejected(&running, || {
        assert_eq!(socket.send_to(b"again", &path).unwrap(), 5);
    });
    assert_eq!(running.client().ask("others?"), "others?");
}

/// Two servers of one process would reply to each other.
#[test]
fn datagram_from_another_server_of_the_process_is_rejected() {
    let first = UdpSocket::bind("0.0.0.0:0").unwrap();
    let copy = first.try_clone().unwrap();
    let _other = UdpServer::builder().adopt(copy, echo_datagram()).unwrap();
    let running = Running::start(UdpServer::bind("127.0.0.1:0", echo_datagram()).unwrap());
    let Endpoint::Udp(to) = running.endpoint else {
        unreachable!("the transport is UDP");
    };
    assert_rejected(&running, || {
        assert_eq!(first.send_to(b"again", to).unwrap(), 5);
    });
    assert_eq!(running.client().ask("others?"), "others?");
}

#[track_caller]
fn assert_rejected(running: &Running, mut send: impl FnMut()) {
    let counters = || running.handle.counters();
    for sent in 1..=3 {
        send();
        eventually(TIMEOUT, "the rejection", || counters().own_address == sent);
    }
    assert_eq!((counters().refused, counters().ended), (3, 0));
}
