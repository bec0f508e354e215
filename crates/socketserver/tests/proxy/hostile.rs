//! Invalid, late and missing headers, and headers from untrusted peers.

use std::time::{Duration, Instant};

use socketserver::{Admission, Concurrency, Pooled};

use crate::common::{TIMEOUT, eventually};
use crate::{PROXY, SHORT, block_of, line_of, serve, trusted, under_every_model};

fn invalid_header_is_rejected_and_reported<C: Concurrency>(model: C) {
    let server = serve(model, |b| b.proxy_protocol(trusted()));
    let endless = [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 500]].concat();
    let wrong_sum = [
        &[127, 0, 0, 1, 127, 0, 0, 1, 0, 1, 0, 1, 3, 0, 4][..],
        &[9; 4],
    ]
    .concat();
    let cases = [
        (
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            "it begins with something else",
        ),
        (b"\n".to_vec(), "it begins with something else"),
        (
            b"PROXY TCP4 1.1.1.1 1.1.1.1 1 x\r\n".to_vec(),
            "it does not follow the specification",
        ),
        (
            b"PROXY UNKNOWN\n".to_vec(),
            "it does not follow the specification",
        ),
        (
            block_of(0x21, 0x11, &[1; 11]),
            "it does not follow the specification",
        ),
        (endless, "it is too long"),
        (block_of(0x21, 0x11, &[0; 4097]), "it is too long"),
        (block_of(0x21, 0x11, &wrong_sum), "its checksum is wrong"),
    ];
    let count = cases.len() as u64;
    for (bytes, why) in cases {
        let mut client = server.proxy();
        client.send(&bytes);
        assert!(client.was_closed(), "{why}");
        let event = server.expect_event("rejected");
        assert_eq!(event, format!("rejected {PROXY}: no PROXY header: {why}"));
    }
    server.wait_until_idle();
    let counters = server.running.handle.counters();
    assert_eq!((counters.accepted, counters.refused), (count, count));
    assert_eq!((counters.ended, server.created()), (0, 0));
}

fn end_within_the_header_is_rejected_and_end_before_it_is_a_disconnect<C: Concurrency>(model: C) {
    let server = serve(model, |b| b.proxy_protocol(trusted()));
    for header in [line_of("203.0.113.9"), block_of(0x21, 0x11, &[1; 12])] {
        for sent in [1, 5, header.len() / 2, header.len() - 1] {
            let mut client = server.proxy();
            client.send(&header[..sent]);
            client.half_close();
            assert!(client.was_closed());
            let why = "no PROXY header: the connection ended within it";
            assert_eq!(
                server.expect_event("rejected"),
                format!("rejected {PROXY}: {why}")
            );
        }
    }
    // Many load balancers check a port with such a connection.
    drop(server.proxy());
    assert_eq!(
        server.expect_event("ended"),
        format!("ended {PROXY}: disconnected")
    );
    assert_eq!(server.created(), 0);
    let counters = server.running.handle.counters();
    assert_eq!((counters.refused, counters.disconnected), (8, 1));
}

fn missing_and_slow_header_end_at_the_timeout<C: Concurrency>(model: C) {
    let server = serve(model, |b| b.proxy_protocol(trusted().timeout(SHORT)));
    let late = format!("rejected {PROXY}: no PROXY header: it was not complete in time");
    let start = Instant::now();
    assert!(server.proxy().was_closed());
    assert!(start.elapsed() >= SHORT);
    assert_eq!(server.expect_event("rejected"), late);

    // Byte by byte: each one as soon as the previous one has arrived, and then more slowly.
    let start = Instant::now();
    let mut client = server.proxy();
    let stop = start + TIMEOUT;
    let mut line = b"PROXY UNKNOWN ".iter().chain(std::iter::repeat(&b'x'));
    let event = loop {
        use std::io::Write;
        let byte = line.next().unwrap();
        let _ = client.0.get_mut().write_all(&[*byte]);
        match server.events.recv_timeout(SHORT / 10) {
            Ok(event) => break event,
            Err(_) => assert!(Instant::now() < stop, "a slow header has no timeout"),
        }
    };
    assert_eq!(event, late);
    assert!(start.elapsed() >= SHORT);
    assert_eq!(server.created(), 0);
    // The timeout applies to the header only.
    let mut client = server.client("203.0.113.9");
    client.receive_line();
    std::thread::sleep(SHORT + Duration::from_millis(100));
    assert_eq!(client.ask("still there"), "still there");
}

fn header_of_an_untrusted_peer_is_data<C: Concurrency>(model: C) {
    let server = serve(model, |b| b.proxy_protocol(trusted()));
    for header in [line_of("203.0.113.9"), block_of(0x21, 0x11, &[10; 12])] {
        let mut client = server.connect("127.0.0.2");
        let (name, address) = (client.name(), server.address());
        // The server greets the peer first: it does not wait for a header.
        assert_eq!(client.receive_line(), format!("{name} to {address} by -"));
        client.send(&header);
        client.half_close();
        // The header is data for the handler, byte by byte.
        let mut received = Vec::new();
        std::io::Read::read_to_end(&mut client.0, &mut received).unwrap();
        assert_eq!(received, header);
    }
    server.wait_until_idle();
    // Bytes after the header of a trusted proxy are data as well.
    let mut client = server.client("203.0.113.9");
    assert!(client.receive_line().starts_with("203.0.113.9:4000 "));
    client.send(&line_of("203.0.113.66"));
    assert_eq!(
        client.receive_line(),
        "PROXY TCP4 203.0.113.66 198.51.100.1 4000 80"
    );
    let live = server.running.handle.active().remove(0);
    assert_eq!(live.info.peer().to_string(), "203.0.113.9:4000");
}

fn drain_cancels_a_connection_with_a_partial_header<C: Concurrency>(model: C) {
    let proxies = trusted().timeout(TIMEOUT);
    let server = serve(model, |b| b.proxy_protocol(proxies));
    let handle = server.running.handle.clone();
    let mut client = server.proxy();
    client.send(b"PROXY ");
    eventually(TIMEOUT, "a part of the header", || {
        handle.active().iter().any(|r| r.received == 6)
    });
    handle.drain(SHORT);
    assert!(client.was_closed());
    assert_eq!(
        server.expect_event("ended"),
        format!("ended {PROXY}: cancelled")
    );
    eventually(TIMEOUT, "the report", || handle.drain_report().is_some());
    let report = handle.drain_report().unwrap();
    assert_eq!(
        (report.cancelled, report.abandoned, report.refused),
        (1, 0, 0)
    );
    assert_eq!(server.created(), 0);
}

fn drain_waits_for_a_partial_header<C: Concurrency>(model: C) {
    let server = serve(model, |b| b.proxy_protocol(trusted().timeout(TIMEOUT)));
    let handle = server.running.handle.clone();
    let mut client = server.proxy();
    client.send(b"PROXY ");
    eventually(TIMEOUT, "a part of the header", || {
        handle.active().iter().any(|r| r.received == 6)
    });
    handle.drain(TIMEOUT);
    client.send(b"TCP4 203.0.113.9 198.51.100.1 4000 80\r\nlast line\n");
    assert!(client.receive_line().starts_with("203.0.113.9:4000 "));
    assert_eq!(client.receive_line(), "last line");
    assert!(client.was_closed());
    assert_eq!(server.expect_event("ended"), "ended 203.0.113.9: completed");
}

#[test]
fn pool_of_one_serves_next_to_incomplete_headers() {
    let server = serve(Pooled::new().workers(1), |b| b.proxy_protocol(trusted()));
    let mut held: Vec<_> = (0..20).map(|_| server.proxy()).collect();
    for client in held.iter_mut().step_by(2) {
        client.send(b"PROXY ");
    }
    let mut served = server.client("203.0.113.9");
    assert!(served.receive_line().starts_with("203.0.113.9:"));
    assert_eq!(served.ask("hello"), "hello");
}

fn request_timeout_includes_the_header<C: Concurrency>(model: C) {
    let timeouts = socketserver::Timeouts::default().request(Some(SHORT));
    let server = serve(model, |b| {
        b.proxy_protocol(trusted().timeout(2 * TIMEOUT))
            .timeouts(timeouts)
    });
    let mut client = server.proxy();
    client.send(b"PROXY ");
    assert!(client.was_closed());
    assert!(
        server
            .expect_event("rejected")
            .ends_with("not complete in time")
    );
}

/// A denied peer is rejected at once, whether or not it is a proxy.
fn denied_proxy_is_rejected_without_a_header<C: Concurrency>(model: C) {
    let nobody = Admission::new().deny("127.0.0.0/8".parse().unwrap());
    let server = serve(model, |b| b.proxy_protocol(trusted()).admission(nobody));
    // The server does not wait for a header.
    assert!(server.proxy().was_closed());
    let denied = format!("rejected {PROXY}: denied by a rule");
    assert_eq!(server.expect_event("rejected"), denied);
}

under_every_model! {
    invalid_header_is_rejected_and_reported
    end_within_the_header_is_rejected_and_end_before_it_is_a_disconnect
    missing_and_slow_header_end_at_the_timeout
    header_of_an_untrusted_peer_is_data
    drain_cancels_a_connection_with_a_partial_header
    drain_waits_for_a_partial_header
    request_timeout_includes_the_header
    denied_proxy_is_rejected_without_a_header
}
