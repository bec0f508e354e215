//! Headers of both versions, however they arrive, and what is known from then on.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream as StdUnixStream;

use socketserver::transport::UnixStream;
use socketserver::{
    Admission, BindError, Concurrency, Connection, Forking, ProxyHeader, ProxyProtocol, Rate,
    Server, Threading, ThreadingTcpServer, handler_fn,
};

use crate::common::running::Running;
use crate::common::{PATIENCE, eventually};
use crate::{Fixture, Named, block_of, line_of, serve, trusted, under_every_model};

const V4: [u8; 12] = [203, 0, 113, 9, 198, 51, 100, 1, 0x0f, 0xa0, 0, 80];

/// Headers, and what the handler says of them.
fn headers() -> Vec<(Vec<u8>, &'static str)> {
    let mut v6 = [0; 36];
    (v6[15], v6[31], v6[33], v6[35]) = (1, 2, 3, 4);
    let mut unix = [0; 216];
    unix[..6].copy_from_slice(b"/run/a");
    unix[109..113].copy_from_slice(b"name");
    let extended = [&V4[..], &[0xe0, 0x0f, 0], &[7; 0xf00]].concat();
    vec![
        (
            line_of("203.0.113.9"),
            "203.0.113.9:4000 to 198.51.100.1:80",
        ),
        (
            b"PROXY TCP6 2001:db8::1 ::1 4000 80\r\n".to_vec(),
            "[2001:db8::1]:4000 to [::1]:80",
        ),
        (
            block_of(0x21, 0x11, &V4),
            "203.0.113.9:4000 to 198.51.100.1:80",
        ),
        (
            block_of(0x21, 0x11, &extended),
            "203.0.113.9:4000 to 198.51.100.1:80",
        ),
        (block_of(0x21, 0x21, &v6), "[::1]:3 to [::2]:4"),
        (block_of(0x21, 0x31, &unix), "/run/a to @name"),
    ]
}

/// Headers that have no addresses.
fn without_addresses() -> [Vec<u8>; 5] {
    [
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN 1.2.3.4 whatever\r\n".to_vec(),
        block_of(0x20, 0, &[]),
        block_of(0x20, 0x11, &V4),
        block_of(0x21, 0, &[]),
    ]
}

fn both_versions_name_the_client<C: Concurrency>(model: C) {
    let server = serve(model, |b| b.proxy_protocol(trusted()));
    for (header, expected) in headers() {
        let mut wire = server.proxy();
        wire.send(&header);
        assert_eq!(wire.hear(), format!("{expected} by {}", wire.name()));
        // What follows is the handler's, and the connection goes on as any other.
        for line in ["one", "two", "PROXY UNKNOWN\r"] {
            assert_eq!(wire.ask(line), line.trim_end());
        }
    }
}

fn without_addresses_the_proxy_is_the_peer<C: Concurrency>(model: C) {
    let server = serve(model, |b| b.proxy_protocol(trusted()));
    let address = server.address();
    for header in without_addresses() {
        let mut wire = server.proxy();
        wire.send(&header);
        let name = wire.name();
        assert_eq!(wire.hear(), format!("{name} to {address} by {name}"));
        assert_eq!(wire.ask("hello"), "hello");
    }
}

fn requests_may_be_glued_to_it<C: Concurrency>(model: C) {
    let server = serve(model, |b| b.proxy_protocol(trusted()));
    let all = headers().into_iter().map(|(header, _)| header);
    for header in all.chain(without_addresses()) {
        let mut wire = server.proxy();
        wire.send(&[&header, &b"one\ntwo\nth"[..]].concat());
        wire.hear();
        assert_eq!((wire.hear(), wire.hear()), ("one".into(), "two".into()));
        assert_eq!(wire.ask("ree"), "three");
        drop(wire);
        // All of it, and then the end.
        let mut wire = server.proxy();
        wire.send(&[&header, &b"last"[..]].concat());
        wire.half_close();
        wire.hear();
        assert_eq!((wire.hear(), wire.hear()), ("last".into(), String::new()));
    }
}

/// Each byte is sent when the one before it has been received. (A sequential server is looked at
/// from here as well.)
fn it_may_arrive_byte_by_byte<C: Concurrency>(model: C) {
    let server = serve(model, |b| b.proxy_protocol(trusted()));
    let handle = &server.running.handle;
    for (header, expected) in headers()
        .into_iter()
        .filter(|(header, _)| header.len() < 300)
    {
        server.rests();
        server.told.try_iter().for_each(drop);
        let mut wire = server.proxy();
        for (n, byte) in header.iter().enumerate() {
            assert!(
                server
                    .told
                    .try_iter()
                    .all(|line| !line.starts_with("started"))
            );
            wire.send(&[*byte]);
            let received = u64::try_from(n + 1).unwrap();
            eventually(PATIENCE, "a byte", || {
                handle.active().iter().any(|r| r.received == received)
            });
        }
        assert!(wire.hear().starts_with(expected));
        assert_eq!(wire.ask("hello"), "hello");
    }
}

fn it_is_the_client_that_is_live<C: Concurrency>(model: C) {
    let server = serve(model, |b| b.proxy_protocol(trusted()));
    let mut wire = server.proxy();
    eventually(PATIENCE, "a connection", || {
        server.running.handle.active_count() == 1
    });
    let before = server.running.handle.active().remove(0).info;
    assert_eq!((before.peer(), before.proxy()), (&wire_name(&wire), None));
    wire.send(&line_of("203.0.113.9"));
    wire.hear();
    let after = server.running.handle.active().remove(0).info;
    assert_eq!(after.peer().to_string(), "203.0.113.9:4000");
    assert_eq!(after.proxy(), Some(&wire_name(&wire)));
    assert_eq!(after.id(), before.id());
    assert!(after.age() >= before.age().saturating_sub(PATIENCE));
    let started = format!("started {} 203.0.113.9:4000", after.id());
    assert_eq!(server.tells("started"), started);
    drop(wire);
    assert_eq!(server.tells("ended"), "ended 203.0.113.9: completed");
}

fn wire_name(wire: &crate::Wire) -> socketserver::Address {
    socketserver::Address::Inet(wire.name())
}

fn unix_sockets_are_trusted_by_a_word_of_their_own<C: Concurrency>(model: C) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let builder = Server::<UnixStream, C>::builder()
        .concurrency(model)
        .proxy_protocol(ProxyProtocol::new().trust_unix());
    let server = Fixture::of(builder, |builder, _| {
        Running::start(builder.bind(&path, || Named).unwrap())
    });
    let mut stream = StdUnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&line_of("203.0.113.9")).unwrap();
    let expected = b"203.0.113.9:4000 to 198.51.100.1:80 by unnamed\n";
    let mut greeting = vec![0; expected.len()];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(greeting, expected);
    drop(stream);
    assert_eq!(server.tells("ended"), "ended 203.0.113.9: completed");
}

under_every_model! {
    both_versions_name_the_client
    without_addresses_the_proxy_is_the_peer
    requests_may_be_glued_to_it
    it_may_arrive_byte_by_byte
    it_is_the_client_that_is_live
    unix_sockets_are_trusted_by_a_word_of_their_own
}

#[test]
fn a_handler_finds_what_the_proxy_has_added() {
    let server = ThreadingTcpServer::builder()
        .proxy_protocol(trusted())
        .bind(
            "127.0.0.1:0",
            handler_fn(|conn: &mut Connection| {
                let header = conn.proxy_header().unwrap();
                let host = header.extension(ProxyHeader::AUTHORITY).unwrap();
                let said = [host, b"\n"].concat();
                // It is about the socket, and not about the client.
                conn.set_nodelay(false)?;
                assert!(conn.peer_credentials().is_err());
                Ok(conn.write_all(&said)?)
            }),
        )
        .unwrap();
    let server = Running::start(server);
    let block = [&V4[..], &[1, 0, 2], b"h2", &[2, 0, 4], b"host"].concat();
    let mut client = server.client();
    client.send(&block_of(0x21, 0x11, &block)).unwrap();
    assert_eq!(client.hear().unwrap().unwrap(), "host");
}

#[test]
fn what_cannot_be_meant_or_kept_is_refused() {
    fn refused<C: Concurrency>(proxy: ProxyProtocol, admission: Admission) -> String {
        let bound = Server::<socketserver::transport::Tcp, C>::builder()
            .proxy_protocol(proxy)
            .admission(admission)
            .bind("127.0.0.1:0", || Named);
        match bound {
            Err(BindError::BadOption { option, reason }) => format!("{option}: {reason}"),
            other => panic!("{other:?}"),
        }
    }
    let nobody = refused::<Threading>(ProxyProtocol::new(), Admission::new());
    assert!(nobody.contains("trusts nobody"), "{nobody}");
    let no_time = trusted().timeout(std::time::Duration::ZERO);
    let zero = refused::<Threading>(no_time, Admission::new());
    assert!(zero.contains("zero"), "{zero}");
    for limits in [
        Admission::new().max_per_peer(1),
        Admission::new().rate_per_peer(Rate::per_second(1)),
    ] {
        let forking = refused::<Forking>(trusted(), limits);
        assert!(forking.contains("forking"), "{forking}");
    }
}
