//! Headers of both versions, in parts and glued, and the addresses that they set.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream as StdUnixStream;

use socketserver::transport::UnixStream;
use socketserver::{
    Admission, BindError, Concurrency, Connection, Forking, ProxyHeader, ProxyProtocol, Rate,
    Server, Threading, ThreadingTcpServer, handler_fn,
};

use crate::common::running::Running;
use crate::common::{TIMEOUT, eventually};
use crate::{Fixture, Named, block_of, line_of, serve, trusted, under_every_model};

const V4: [u8; 12] = [203, 0, 113, 9, 198, 51, 100, 1, 0x0f, 0xa0, 0, 80];

/// Returns headers, and the addresses that the handler reports for them.
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

/// Returns headers without addresses.
fn without_addresses() -> [Vec<u8>; 5] {
    [
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN 1.2.3.4 whatever\r\n".to_vec(),
        block_of(0x20, 0, &[]),
        block_of(0x20, 0x11, &V4),
        block_of(0x21, 0, &[]),
    ]
}

fn both_versions_set_the_address_of_the_client<C: Concurrency>(model: C) {
    let server = serve(model, |b| b.proxy_protocol(trusted()));
    for (header, expected) in headers() {
        let mut client = server.proxy();
        client.send(&header);
        assert_eq!(
            client.receive_line(),
            format!("{expected} by {}", client.name())
        );
        // Bytes after the header belong to the handler, and the connection continues as usual.
        for line in ["one", "two", "PROXY UNKNOWN\r"] {
            assert_eq!(client.ask(line), line.trim_end());
        }
    }
}

fn header_without_addresses_keeps_the_proxy_as_peer<C: Concurrency>(model: C) {
    let server = serve(model, |b| b.proxy_protocol(trusted()));
    let address = server.address();
    for header in without_addresses() {
        let mut client = server.proxy();
        client.send(&header);
        let name = client.name();
        assert_eq!(
            client.receive_line(),
            format!("{name} to {address} by {name}")
        );
        assert_eq!(client.ask("hello"), "hello");
    }
}

fn requests_may_follow_the_header_at_once<C: Concurrency>(model: C) {
    let server = serve(model, |b| b.proxy_protocol(trusted()));
    let all = headers().into_iter().map(|(header, _)| header);
    for header in all.chain(without_addresses()) {
        let mut client = server.proxy();
        client.send(&[&header, &b"one\ntwo\nth"[..]].concat());
        client.receive_line();
        assert_eq!(
            (client.receive_line(), client.receive_line()),
            ("one".into(), "two".into())
        );
        assert_eq!(client.ask("ree"), "three");
        drop(client);
        // Data and the end of input in the same segment as the header.
        let mut client = server.proxy();
        client.send(&[&header, &b"last"[..]].concat());
        client.half_close();
        client.receive_line();
        assert_eq!(
            (client.receive_line(), client.receive_line()),
            ("last".into(), String::new())
        );
    }
}

/// Each byte is sent after the previous one was received. (The test reads the state of a sequential
/// server, too, from outside.)
fn header_may_arrive_byte_by_byte<C: Concurrency>(model: C) {
    let server = serve(model, |b| b.proxy_protocol(trusted()));
    let handle = &server.running.handle;
    for (header, expected) in headers()
        .into_iter()
        .filter(|(header, _)| header.len() < 300)
    {
        server.wait_until_idle();
        server.events.try_iter().for_each(drop);
        let mut client = server.proxy();
        for (n, byte) in header.iter().enumerate() {
            assert!(
                server
                    .events
                    .try_iter()
                    .all(|line| !line.starts_with("started"))
            );
            client.send(&[*byte]);
            let received = u64::try_from(n + 1).unwrap();
            eventually(TIMEOUT, "the byte to be received", || {
                handle.active().iter().any(|r| r.received == received)
            });
        }
        assert!(client.receive_line().starts_with(expected));
        assert_eq!(client.ask("hello"), "hello");
    }
}

fn active_request_has_the_address_of_the_client<C: Concurrency>(model: C) {
    let server = serve(model, |b| b.proxy_protocol(trusted()));
    let mut client = server.proxy();
    eventually(TIMEOUT, "the connection to be accepted", || {
        server.running.handle.active_count() == 1
    });
    let before = server.running.handle.active().remove(0).info;
    assert_eq!(
        (before.peer(), before.proxy()),
        (&client_name(&client), None)
    );
    client.send(&line_of("203.0.113.9"));
    client.receive_line();
    let after = server.running.handle.active().remove(0).info;
    assert_eq!(after.peer().to_string(), "203.0.113.9:4000");
    assert_eq!(after.proxy(), Some(&client_name(&client)));
    assert_eq!(after.id(), before.id());
    assert!(after.age() >= before.age().saturating_sub(TIMEOUT));
    let started = format!("started {} 203.0.113.9:4000", after.id());
    assert_eq!(server.expect_event("started"), started);
    drop(client);
    assert_eq!(server.expect_event("ended"), "ended 203.0.113.9: completed");
}

fn client_name(client: &crate::TestClient) -> socketserver::Address {
    socketserver::Address::Inet(client.name())
}

fn unix_proxies_are_trusted_by_an_option<C: Concurrency>(model: C) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let builder = Server::<UnixStream, C>::builder()
        .concurrency(model)
        .proxy_protocol(ProxyProtocol::new().trust_unix());
    let server = Fixture::of(builder, |builder, _| {
        Running::start(builder.bind(&path, || Named).unwrap())
    });
    let mut stream = StdUnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(&line_of("203.0.113.9")).unwrap();
    let expected = b"203.0.113.9:4000 to 198.51.100.1:80 by unnamed\n";
    let mut greeting = vec![0; expected.len()];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(greeting, expected);
    drop(stream);
    assert_eq!(server.expect_event("ended"), "ended 203.0.113.9: completed");
}

under_every_model! {
    both_versions_set_the_address_of_the_client
    header_without_addresses_keeps_the_proxy_as_peer
    requests_may_follow_the_header_at_once
    header_may_arrive_byte_by_byte
    active_request_has_the_address_of_the_client
    unix_proxies_are_trusted_by_an_option
}

#[test]
fn handler_reads_extensions_of_the_header() {
    let server = ThreadingTcpServer::builder()
        .proxy_protocol(trusted())
        .bind(
            "127.0.0.1:0",
            handler_fn(|conn: &mut Connection| {
                let header = conn.proxy_header().unwrap();
                let host = header.extension(ProxyHeader::AUTHORITY).unwrap();
                let reply = [host, b"\n"].concat();
                // The option applies to the socket to the proxy, and not to the client.
                conn.set_nodelay(false)?;
                assert!(conn.peer_credentials().is_err());
                Ok(conn.write_all(&reply)?)
            }),
        )
        .unwrap();
    let server = Running::start(server);
    let block = [&V4[..], &[1, 0, 2], b"h2", &[2, 0, 4], b"host"].concat();
    let mut client = server.client();
    client.send(&block_of(0x21, 0x11, &block)).unwrap();
    assert_eq!(client.receive_line().unwrap().unwrap(), "host");
}

#[test]
fn invalid_options_are_rejected() {
    fn bind_error<C: Concurrency>(proxy: ProxyProtocol, admission: Admission) -> String {
        let bound = Server::<socketserver::transport::Tcp, C>::builder()
            .proxy_protocol(proxy)
            .admission(admission)
            .bind("127.0.0.1:0", || Named);
        match bound {
            Err(BindError::BadOption { option, reason }) => format!("{option}: {reason}"),
            other => panic!("{other:?}"),
        }
    }
    let error = bind_error::<Threading>(ProxyProtocol::new(), Admission::new());
    assert!(error.contains("trusts nobody"), "{error}");
    let no_time = trusted().timeout(std::time::Duration::ZERO);
    let zero = bind_error::<Threading>(no_time, Admission::new());
    assert!(zero.contains("zero"), "{zero}");
    for limits in [
        Admission::new().max_per_peer(1),
        Admission::new().rate_per_peer(Rate::per_second(1)),
    ] {
        let forking = bind_error::<Forking>(trusted(), limits);
        assert!(forking.contains("forking"), "{forking}");
    }
}
