//! Datagrams and their senders, where the details matter.

#![allow(clippy::unwrap_used, reason = "a test says why it fails")]

mod common;

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::mpsc::{Receiver, channel};

use common::client::Endpoint;
use common::running::{Running, echo, echo_datagram};
use common::{PATIENCE, eventually};
use socketserver::{
    Datagram, EndReason, Event, ThreadingUdpServer, ThreadingUnixDatagramServer,
    ThreadingUnixStreamServer, UdpServer, UnixDatagramServer, handler_fn,
};

fn unix_pair() -> (tempfile::TempDir, UnixDatagram) {
    let dir = tempfile::tempdir().unwrap();
    let client = UnixDatagram::bind(dir.path().join("client")).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    (dir, client)
}

/// What the handler of a server is given, and each end of a request.
fn ends() -> (
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
fn a_peer_with_a_path_is_named_and_answered() {
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

/// The kernel gives such a name one byte more than an address holds.
#[test]
fn a_peer_with_the_longest_path_of_all_does_no_harm() {
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
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    std::io::Write::write_all(&mut client, b"hello\n").unwrap();
    let mut answer = [0; 6];
    std::io::Read::read_exact(&mut client, &mut answer).unwrap();
    assert_eq!(&answer, b"hello\n");
    assert_eq!(streams.client().ask("still there?"), "still there?");
}

#[test]
fn a_handler_may_answer_more_than_once() {
    let thrice = handler_fn(|packet: &mut Datagram| {
        let bytes = packet.take_bytes();
        assert!(packet.bytes().is_empty() && packet.full_len() == bytes.len());
        (0..3).try_for_each(|_| packet.reply(&bytes))?;
        Ok(())
    });
    let running = Running::start(UdpServer::bind("127.0.0.1:0", thrice).unwrap());
    let mut client = running.client();
    client.say("again").unwrap();
    for _ in 0..3 {
        assert_eq!(client.hear().unwrap().as_deref(), Some("again"));
    }
}

#[test]
fn an_answer_that_is_too_long_is_an_error_of_its_own() {
    let (tell, told) = channel();
    let boast = handler_fn(move |packet: &mut Datagram| {
        let refused = packet.reply(&[0; 70_000]).unwrap_err();
        tell.send(refused.raw_os_error())?;
        Ok(packet.reply(b"short")?)
    });
    let running = Running::start(UdpServer::bind("127.0.0.1:0", boast).unwrap());
    assert_eq!(running.client().ask("go on"), "short");
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Some(libc::EMSGSIZE));
}

#[test]
fn a_sender_that_is_gone_is_no_failure() {
    let (dir, client) = unix_pair();
    let (observe, ended) = ends();
    let (released, gate) = channel();
    let gate = std::sync::Mutex::new(gate);
    let late = handler_fn(move |packet: &mut Datagram| {
        gate.lock().unwrap().recv_timeout(PATIENCE)?;
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
    eventually(PATIENCE, "the request to be live", || {
        running.handle.active_count() == 1
    });
    drop(client);
    released.send(()).unwrap();
    assert_eq!(
        ended.recv_timeout(PATIENCE).unwrap(),
        EndReason::Disconnected
    );
    assert_eq!(running.handle.counters().hook_failures, 0);
}

/// A reply to a port that nobody has comes back as an error of the server's own socket.
#[test]
fn senders_that_are_gone_do_not_stop_a_udp_server() {
    let running = Running::start(ThreadingUdpServer::bind("127.0.0.2:0", echo_datagram()).unwrap());
    // Bound first, so that its port is not one of those who have gone, for whom answers are under way.
    let mut stays = running.client();
    for _ in 0..100 {
        running.client().say("and gone").unwrap();
    }
    assert_eq!(stays.ask("still there?"), "still there?");
}

#[test]
fn an_unnamed_sender_is_told_to_the_handler() {
    let (_dir, path) = {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server");
        (dir, path)
    };
    let (tell, told) = channel();
    let answer = handler_fn(move |packet: &mut Datagram| {
        let refused = packet.reply(b"to nobody").unwrap_err();
        tell.send((
            packet.peer_addr().is_unnamed(),
            refused.kind(),
            refused.to_string(),
        ))?;
        Ok(())
    });
    let _running = Running::start(UnixDatagramServer::bind(&path, answer).unwrap());
    UnixDatagram::unbound()
        .unwrap()
        .send_to(b"hello", &path)
        .unwrap();
    let (unnamed, kind, text) = told.recv_timeout(PATIENCE).unwrap();
    assert!(unnamed && kind == ErrorKind::NotConnected);
    assert!(text.contains("bind"), "says what to do: {text}");
}

/// The socket belongs to the last datagram that may be answered, and to nobody after it.
#[test]
fn a_reply_after_the_close_still_arrives() {
    let (go, gate) = channel();
    let gate = std::sync::Mutex::new(gate);
    let late = handler_fn(move |packet: &mut Datagram| {
        gate.lock().unwrap().recv_timeout(PATIENCE)?;
        Ok(packet.reply(b"at last")?)
    });
    let mut server = ThreadingUdpServer::bind("127.0.0.2:0", late).unwrap();
    let address = server.local_addr().as_inet().unwrap();
    let mut client = common::client::Client::connect(&Endpoint::Udp(address)).unwrap();
    client.say("hello").unwrap();
    server.handle_request(Some(PATIENCE)).unwrap();
    drop(server);
    go.send(()).unwrap();
    assert_eq!(client.hear().unwrap().as_deref(), Some("at last"));
    eventually(PATIENCE, "the port to be free", || {
        UdpSocket::bind(address).is_ok()
    });
}

/// A copy of the server's own socket sends from its address. A server that answers would answer
/// itself for ever.
#[test]
fn a_datagram_from_an_own_address_is_refused_over_udp() {
    let sockets = [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::1", "::1"),
    ];
    let dual_stack = [("::", "::1"), ("::", "::ffff:127.0.0.1")];
    for (bound, to) in sockets.into_iter().chain(dual_stack) {
        let Ok(socket) = UdpSocket::bind((bound, 0)) else {
            println!("SKIPPED: {bound} is no address of this machine");
            continue;
        };
        let to = SocketAddr::new(to.parse().unwrap(), socket.local_addr().unwrap().port());
        let copy = socket.try_clone().unwrap();
        let running = Running::start(UdpServer::builder().adopt(copy, echo_datagram()).unwrap());
        refuses(&running, || {
            assert_eq!(socket.send_to(b"again", to).unwrap(), 5);
        });
        let client = UdpSocket::bind((to.ip(), 0)).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.send_to(b"hello", to).unwrap();
        assert_eq!(client.recv(&mut [0; 9]).unwrap(), 5, "others are served");
    }
}

#[test]
fn a_datagram_from_an_own_address_is_refused_over_unix_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server");
    let socket = UnixDatagram::bind(&path).unwrap();
    let copy = socket.try_clone().unwrap();
    let server = UnixDatagramServer::builder().adopt(copy, echo_datagram());
    let running = Running::start(server.unwrap());
    refuses(&running, || {
        assert_eq!(socket.send_to(b"again", &path).unwrap(), 5);
    });
    assert_eq!(running.client().ask("others?"), "others?");
}

/// Two servers of one process would answer each other.
#[test]
fn a_datagram_from_another_server_of_the_process_is_refused() {
    let first = UdpSocket::bind("0.0.0.0:0").unwrap();
    let copy = first.try_clone().unwrap();
    let _other = UdpServer::builder().adopt(copy, echo_datagram()).unwrap();
    let running = Running::start(UdpServer::bind("127.0.0.1:0", echo_datagram()).unwrap());
    let Endpoint::Udp(to) = running.endpoint else {
        unreachable!("it is UDP");
    };
    refuses(&running, || {
        assert_eq!(first.send_to(b"again", to).unwrap(), 5);
    });
    assert_eq!(running.client().ask("others?"), "others?");
}

#[track_caller]
fn refuses(running: &Running, mut send: impl FnMut()) {
    let counters = || running.handle.counters();
    for sent in 1..=3 {
        send();
        eventually(PATIENCE, "refused", || counters().own_address == sent);
    }
    assert_eq!((counters().refused, counters().ended), (3, 0));
}
