//! Servers on sockets that were created elsewhere.

#![allow(clippy::unwrap_used, reason = "a test prints why it fails")]

mod common;

use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};

use common::running::{Running, echo, echo_datagram};
use rustix::net::{AddressFamily, SocketType, bind, socket};
use socketserver::{
    BindError, ThreadingTcpServer, ThreadingUdpServer, ThreadingUnixDatagramServer,
    ThreadingUnixStreamServer,
};

#[test]
fn sockets_of_the_standard_library_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let tcp = ThreadingTcpServer::builder()
        .adopt(listener, echo())
        .unwrap();
    assert_eq!(*tcp.local_addr(), address);
    let tcp = Running::start(tcp);
    assert_eq!(tcp.client().ask("hello"), "hello");

    let socket = UdpSocket::bind("127.0.0.2:0").unwrap();
    let udp = ThreadingUdpServer::builder()
        .adopt(socket, echo_datagram())
        .unwrap();
    assert_eq!(Running::start(udp).client().ask("hello"), "hello");

    let listener = UnixListener::bind(dir.path().join("stream")).unwrap();
    let unix = ThreadingUnixStreamServer::builder()
        .adopt(listener, echo())
        .unwrap();
    assert_eq!(Running::start(unix).client().ask("hello"), "hello");

    let socket = UnixDatagram::bind(dir.path().join("packets")).unwrap();
    let packets = ThreadingUnixDatagramServer::builder()
        .adopt(socket, echo_datagram())
        .unwrap();
    assert_eq!(Running::start(packets).client().ask("hello"), "hello");

    // Three of the four servers are dropped by now. They do not own the files.
    assert!(dir.path().join("stream").exists() && dir.path().join("packets").exists());
}

#[test]
fn bound_socket_is_made_to_listen() {
    let fd = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&fd, &std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let server = ThreadingTcpServer::builder().adopt(fd, echo()).unwrap();
    assert_eq!(Running::start(server).client().ask("hello"), "hello");
}

/// The mode is a property of the socket, and so shared by all its descriptors.
#[test]
fn blocking_listener_does_not_block_the_accept_loop() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let shared = listener.try_clone().unwrap();
    let running = Running::start(
        ThreadingTcpServer::builder()
            .adopt(listener, echo())
            .unwrap(),
    );
    assert_eq!(running.client().ask("hello"), "hello");
    running.handle.shutdown();
    running.wait_until_stopped().unwrap();
    drop(shared);
}

#[test]
fn wrong_socket_type_is_rejected_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let tcp = || OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
    let udp = || OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap());
    let unix = || OwnedFd::from(UnixDatagram::unbound().unwrap());
    let file = || OwnedFd::from(std::fs::File::open(dir.path()).unwrap());

    for (fd, found) in [
        (udp(), "IPv4 datagram"),
        (unix(), "Unix datagram"),
        (file(), "no socket"),
    ] {
        let error = ThreadingTcpServer::builder().adopt(fd, echo()).unwrap_err();
        assert!(matches!(error, BindError::WrongSocket { .. }), "{error}");
        assert!(error.to_string().contains(found), "{error}");
    }
    for (fd, found) in [
        (tcp(), "IPv4 stream"),
        (unix(), "Unix datagram"),
        (file(), "no socket"),
    ] {
        let error = ThreadingUdpServer::builder()
            .adopt(fd, echo_datagram())
            .unwrap_err();
        assert!(error.to_string().contains(found), "{error}");
    }
    for (fd, found) in [(tcp(), "IPv4 stream"), (unix(), "Unix datagram")] {
        let error = ThreadingUnixStreamServer::builder()
            .adopt(fd, echo())
            .unwrap_err();
        assert!(error.to_string().contains(found), "{error}");
    }
    for (fd, found) in [(udp(), "IPv4 datagram"), (tcp(), "IPv4 stream")] {
        let builder = ThreadingUnixDatagramServer::builder();
        let error = builder.adopt(fd, echo_datagram()).unwrap_err();
        assert!(error.to_string().contains(found), "{error}");
    }
}

/// A connected socket is a stream socket, but not a listener.
#[test]
fn connected_socket_is_rejected() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let error = ThreadingTcpServer::builder()
        .adopt(client, echo())
        .unwrap_err();
    assert!(matches!(error, BindError::System { .. }), "{error}");
}
