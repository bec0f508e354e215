//! What is no header, comes too late or never, and who is not trusted.

use std::time::{Duration, Instant};

use socketserver::{Admission, Concurrency, Pooled};

use crate::common::{PATIENCE, eventually};
use crate::{PROXY, SHORT, block_of, line_of, serve, trusted, under_every_model};

fn what_is_no_header_was_closed_and_told<C: Concurrency>(model: C) {
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
        let mut wire = server.proxy();
        wire.send(&bytes);
        assert!(wire.was_closed(), "{why}");
        let told = server.tells("refused");
        assert_eq!(told, format!("refused {PROXY}: no PROXY header: {why}"));
    }
    server.rests();
    let counters = server.running.handle.counters();
    assert_eq!((counters.accepted, counters.refused), (count, count));
    assert_eq!((counters.ended, server.made()), (0, 0));
}

fn an_end_within_it_is_told_and_one_before_it_is_a_peer_that_is_gone<C: Concurrency>(model: C) {
    let server = serve(model, |b| b.proxy_protocol(trusted()));
    for header in [line_of("203.0.113.9"), block_of(0x21, 0x11, &[1; 12])] {
        for sent in [1, 5, header.len() / 2, header.len() - 1] {
            let mut wire = server.proxy();
            wire.send(&header[..sent]);
            wire.half_close();
            assert!(wire.was_closed());
            let why = "no PROXY header: the connection ended within it";
            assert_eq!(server.tells("refused"), format!("refused {PROXY}: {why}"));
        }
    }
    // As many load balancers look whether somebody listens.
    drop(server.proxy());
    assert_eq!(
        server.tells("ended"),
        format!("ended {PROXY}: disconnected")
    );
    assert_eq!(server.made(), 0);
    let counters = server.running.handle.counters();
    assert_eq!((counters.refused, counters.disconnected), (8, 1));
}

fn silence_and_trickling_end_at_the_deadline<C: Concurrency>(model: C) {
    let server = serve(model, |b| b.proxy_protocol(trusted().timeout(SHORT)));
    let late = format!("refused {PROXY}: no PROXY header: it was not complete in time");
    let began = Instant::now();
    assert!(server.proxy().was_closed());
    assert!(began.elapsed() >= SHORT);
    assert_eq!(server.tells("refused"), late);

    // One byte after the other, each as soon as the one before has arrived, and then more slowly.
    let began = Instant::now();
    let mut wire = server.proxy();
    let stop = began + PATIENCE;
    let mut line = b"PROXY UNKNOWN ".iter().chain(std::iter::repeat(&b'x'));
    let refused = loop {
        use std::io::Write;
        let byte = line.next().unwrap();
        let _ = wire.0.get_mut().write_all(&[*byte]);
        match server.told.recv_timeout(SHORT / 10) {
            Ok(told) => break told,
            Err(_) => assert!(Instant::now() < stop, "a trickle is read for ever"),
        }
    };
    assert_eq!(refused, late);
    assert!(began.elapsed() >= SHORT);
    assert_eq!(server.made(), 0);
    // It is a limit on the header only.
    let mut wire = server.client("203.0.113.9");
    wire.hear();
    std::thread::sleep(SHORT + Duration::from_millis(100));
    assert_eq!(wire.ask("still there"), "still there");
}

fn who_is_not_trusted_is_not_believed<C: Concurrency>(model: C) {
    let server = serve(model, |b| b.proxy_protocol(trusted()));
    for header in [line_of("203.0.113.9"), block_of(0x21, 0x11, &[10; 12])] {
        let mut wire = server.connect("127.0.0.2");
        let (name, address) = (wire.name(), server.address());
        // Served before it has said anything: nothing is waited for.
        assert_eq!(wire.hear(), format!("{name} to {address} by -"));
        wire.send(&header);
        wire.half_close();
        // Every byte of it, and nothing else.
        let mut heard = Vec::new();
        std::io::Read::read_to_end(&mut wire.0, &mut heard).unwrap();
        assert_eq!(heard, header);
    }
    server.rests();
    // And behind a proxy, what follows its header is nothing but data.
    let mut wire = server.client("203.0.113.9");
    assert!(wire.hear().starts_with("203.0.113.9:4000 "));
    wire.send(&line_of("203.0.113.66"));
    assert_eq!(wire.hear(), "PROXY TCP4 203.0.113.66 198.51.100.1 4000 80");
    let live = server.running.handle.active().remove(0);
    assert_eq!(live.info.peer().to_string(), "203.0.113.9:4000");
}

fn a_drain_cuts_who_has_not_sent_it<C: Concurrency>(model: C) {
    let proxies = trusted().timeout(PATIENCE);
    let server = serve(model, |b| b.proxy_protocol(proxies));
    let handle = server.running.handle.clone();
    let mut wire = server.proxy();
    wire.send(b"PROXY ");
    eventually(PATIENCE, "a part of it", || {
        handle.active().iter().any(|r| r.received == 6)
    });
    handle.drain(SHORT);
    assert!(wire.was_closed());
    assert_eq!(server.tells("ended"), format!("ended {PROXY}: cancelled"));
    eventually(PATIENCE, "the report", || handle.drain_report().is_some());
    let report = handle.drain_report().unwrap();
    assert_eq!(
        (report.cancelled, report.abandoned, report.refused),
        (1, 0, 0)
    );
    assert_eq!(server.made(), 0);
}

fn a_drain_lets_it_come<C: Concurrency>(model: C) {
    let server = serve(model, |b| b.proxy_protocol(trusted().timeout(PATIENCE)));
    let handle = server.running.handle.clone();
    let mut wire = server.proxy();
    wire.send(b"PROXY ");
    eventually(PATIENCE, "a part of it", || {
        handle.active().iter().any(|r| r.received == 6)
    });
    handle.drain(PATIENCE);
    wire.send(b"TCP4 203.0.113.9 198.51.100.1 4000 80\r\nlast words\n");
    assert!(wire.hear().starts_with("203.0.113.9:4000 "));
    assert_eq!(wire.hear(), "last words");
    assert!(wire.was_closed());
    assert_eq!(server.tells("ended"), "ended 203.0.113.9: completed");
}

#[test]
fn a_pool_of_one_serves_beside_those_who_dally() {
    let server = serve(Pooled::new().workers(1), |b| b.proxy_protocol(trusted()));
    let mut held: Vec<_> = (0..20).map(|_| server.proxy()).collect();
    for wire in held.iter_mut().step_by(2) {
        wire.send(b"PROXY ");
    }
    let mut served = server.client("203.0.113.9");
    assert!(served.hear().starts_with("203.0.113.9:"));
    assert_eq!(served.ask("hello"), "hello");
}

fn the_limit_on_the_whole_request_holds_for_it<C: Concurrency>(model: C) {
    let timeouts = socketserver::Timeouts::default().request(Some(SHORT));
    let server = serve(model, |b| {
        b.proxy_protocol(trusted().timeout(2 * PATIENCE))
            .timeouts(timeouts)
    });
    let mut wire = server.proxy();
    wire.send(b"PROXY ");
    assert!(wire.was_closed());
    assert!(server.tells("refused").ends_with("not complete in time"));
}

/// Whoever is denied, by whom or as whom ever, gets nothing and holds nothing.
fn a_proxy_that_is_denied_is_not_heard<C: Concurrency>(model: C) {
    let nobody = Admission::new().deny("127.0.0.0/8".parse().unwrap());
    let server = serve(model, |b| b.proxy_protocol(trusted()).admission(nobody));
    // It does not wait for a header.
    assert!(server.proxy().was_closed());
    let denied = format!("refused {PROXY}: denied by a rule");
    assert_eq!(server.tells("refused"), denied);
}

under_every_model! {
    what_is_no_header_was_closed_and_told
    an_end_within_it_is_told_and_one_before_it_is_a_peer_that_is_gone
    silence_and_trickling_end_at_the_deadline
    who_is_not_trusted_is_not_believed
    a_drain_cuts_who_has_not_sent_it
    a_drain_lets_it_come
    the_limit_on_the_whole_request_holds_for_it
    a_proxy_that_is_denied_is_not_heard
}
