//! Clients that misbehave.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::client::Client;
use crate::matrix::Combination;
use crate::server_driver::ServerDriver;
use crate::server_process::Options;

pub fn disconnected_peer_is_not_a_handler_error(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default());
    if cell.is_datagram() {
        server.hold("held").disconnect_and_release();
    } else {
        let mut client = server.client();
        client.send_line("pour 50000000").unwrap();
        assert_ne!(client.read(&mut [0]).unwrap(), 0);
        client.reset();
    }
    // A child's exit code does not show that its peer disconnected.
    let reason = if cell.is_forking() {
        "completed"
    } else {
        "disconnected"
    };
    server.expect_event(&format!("ended 1 {reason}"));
    assert_eq!(server.count("handle_error"), 0, "{}", server.journal());
    server.assert_serves();
}

pub fn server_survives_five_hundred_misbehaving_clients(cell: Combination) {
    const CLIENTS: usize = 500;
    let server = ServerDriver::start(cell, Options::default().with("limit", 8));
    server.assert_serves();
    let descriptors = server.assert_idle();
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= CLIENTS {
                        return;
                    }
                    // A connect may fail, and so may all later calls. The test ignores these
                    // errors.
                    if let Ok(client) = Client::connect(&server.endpoint) {
                        misbehave(client, number);
                    }
                }
            });
        }
    });
    server.assert_serves();
    server.wait_for("the descriptors to be closed", || {
        server.assert_idle() == descriptors
    });
    let accepted = server.count("accepted");
    // The kernel may drop datagrams.
    assert!(accepted > CLIENTS || cell.is_datagram(), "{accepted}");
    assert!(
        server.count("handle_error") > 0,
        "no handler failed: {}",
        server.journal()
    );
    server.stop();
    server.expect_event("served");
    server.assert_quits();
}

/// Resets, closes or half-closes at some point of a request; a quarter of the handlers panic.
fn misbehave(mut client: Client, number: usize) {
    // A datagram may be lost, so the client waits only briefly for its reply.
    let _ = client.set_timeout(Duration::from_millis(500));
    // Pseudo-random, and the same in each run.
    let random = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    let _ = match random % 8 {
        0 => Ok(()),
        1 => client.send(b"half a li"),
        2 | 3 => client.send_line("panic"),
        4 => client.send_line("fail"),
        5 => client.send_line("pour 3000000"),
        6 => client
            .send_line("hello")
            .and_then(|()| client.receive_line().map(drop)),
        _ => client
            .send_line("leave")
            .and_then(|()| client.send(&[b'x'; 10_000])),
    };
    match (random >> 8) % 3 {
        0 => client.reset(),
        1 => drop(client),
        _ => {
            let _ = client.half_close();
        }
    }
}
