//! Datagrams with forged sources: the server's own address, the address of another server of the
//! process, and port 0. No such datagram gets a handler, and none starts a loop.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, Protocol, RawProtocol, SendFlags, SocketFlags, SocketType, sendto, socket_with,
};

use crate::callers::{Caller, tried};
use crate::common::{Server, client_at, eventually, socketserver, text};
use crate::victim::{Model, Victim};
use crate::visitor::Visitor;
use crate::{alone, withstands};

/// raw(7): IPPROTO_RAW, the sender writes the IP header, too.
const RAW: u32 = 255;

/// Opens a raw socket. Returns `None` if the user has no permission for raw sockets.
fn forger() -> Option<OwnedFd> {
    let protocol = Protocol::from_raw(RawProtocol::new(RAW).unwrap());
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    match socket_with(AddressFamily::INET, SocketType::RAW, flags, Some(protocol)) {
        Ok(socket) => Some(socket),
        Err(errno) => {
            println!("SKIPPED: this user may not forge sources: {errno}");
            None
        }
    }
}

/// Returns a UDP datagram with its headers. The kernel fills in the IP checksum. The UDP checksum
/// is optional.
fn datagram(from: SocketAddrV4, to: SocketAddrV4, bytes: &[u8]) -> Vec<u8> {
    let length = |headers: usize| u16::try_from(headers + bytes.len()).unwrap().to_be_bytes();
    let mut packet = vec![0x45, 0];
    packet.extend(length(28));
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend(length(8));
    packet.extend([0, 0]);
    packet.extend(bytes);
    packet
}

fn forge(socket: &OwnedFd, from: SocketAddrV4, to: SocketAddrV4) {
    let sent = sendto(
        socket,
        &datagram(from, to, b"hello"),
        SendFlags::empty(),
        &to,
    );
    tried(sent.map_err(std::io::Error::from));
}

/// Sends datagrams with three forged sources: the server itself, another address of its machine
/// with its port, and port 0.
fn flood(socket: &OwnedFd, to: SocketAddrV4) {
    let start = Instant::now();
    let sources = [
        to,
        SocketAddrV4::new(Ipv4Addr::new(127, 3, 2, 1), to.port()),
        SocketAddrV4::new(*to.ip(), 0),
    ];
    while start.elapsed() < Duration::from_millis(200) {
        for _ in 0..20 {
            sources.iter().for_each(|from| forge(socket, *from, to));
        }
        std::thread::sleep(Duration::from_millis(3));
    }
}

fn withstands_forged_sources(model: Model) {
    let _alone = alone();
    let Some(socket) = forger() else { return };
    let args = ["-l", "udp://0.0.0.0:0", "--log-level", "off"];
    let victim = Victim::with(model, &args);
    let port = victim.address().port();
    let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    Caller::by_udp(to.into()).ask();
    let visitor = |_: &Victim| {
        let mut regular = Caller::by_udp(to.into());
        Visitor::asking(2, move |is_new| {
            if is_new {
                Caller::by_udp(to.into()).ask()
            } else {
                regular.ask()
            }
        })
    };
    withstands(&victim, visitor, |_| flood(&socket, to));
}

#[test]
fn own_addresses_and_no_port_threading() {
    withstands_forged_sources(Model::Threading);
}

#[test]
fn own_addresses_and_no_port_forking() {
    withstands_forged_sources(Model::Forking);
}

#[test]
fn own_addresses_and_no_port_green() {
    withstands_forged_sources(Model::Green);
}

/// Returns a value from the server's metrics.
fn figure(metrics: &str, reason: &str) -> u64 {
    use std::io::{Read, Write};
    let mut client = client_at(metrics);
    client.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut page = Vec::new();
    client.read_to_end(&mut page).unwrap();
    let page = text(&page);
    let line = page.lines().find(|line| line.contains(reason)).unwrap();
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

/// The datagram starts no handler and adds no line to the log.
#[test]
fn a_datagram_from_port_0_is_dropped_and_counted() {
    let _alone = alone();
    let Some(socket) = forger() else { return };
    for program in ["upper", "echo", "reply"] {
        let args = [
            program,
            "-l",
            "udp://127.0.0.1:0",
            "--metrics",
            "tcp://127.0.0.1:0",
        ];
        let mut command = socketserver();
        let mut server = Server::launch(command.args(args).stdin(std::process::Stdio::null()), 2);
        let to: SocketAddrV4 = server.address(0).parse().unwrap();
        let metrics = server.address(1).trim_end_matches(" (metrics)").to_owned();
        for _ in 0..5 {
            forge(&socket, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0), to);
        }
        eventually(|| figure(&metrics, "reason=\"no_port\"") == 5);
        server.signal("TERM");
        server.wait();
        let log = server.rest_of_log();
        assert!(
            !log.iter()
                .any(|line| line.contains("hello") || line.contains("ERROR")),
            "{log:?}"
        );
    }
}

/// Two servers in two processes answer each other without end, unless one of the servers has a rate
/// limit per address.
#[test]
fn a_loop_through_another_server_is_slowed_down_by_a_rate() {
    let _alone = alone();
    let Some(socket) = forger() else { return };
    let start = |args: &[&str]| {
        let common = ["upper", "-l", "udp://127.0.0.1:0", "--log-level", "off"];
        let mut command = socketserver();
        command
            .args(common)
            .args(args)
            .stdin(std::process::Stdio::null());
        Server::launch(&mut command, 1 + usize::from(!args.is_empty()))
    };
    let other = start(&[]);
    let server = start(&["--rate-per-peer", "20:5", "--metrics", "tcp://127.0.0.1:0"]);
    let at = |server: &Server| server.address(0).parse::<SocketAddrV4>().unwrap();
    let metrics = server.address(1).trim_end_matches(" (metrics)").to_owned();
    forge(&socket, at(&other), at(&server));
    // The first datagram above the rate ends the loop, because the server does not answer it.
    eventually(|| figure(&metrics, "reason=\"peer_rate\"") == 1);
    let ended = || figure(&metrics, "requests_ended_total{");
    let before = ended();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(ended(), before, "it is over");
}
