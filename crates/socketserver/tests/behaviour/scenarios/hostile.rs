//! Clients that do what clients ought not to.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::client::Client;
use crate::matrix::Combination;
use crate::serving::Serving;
use crate::stage::Options;

pub fn a_peer_that_goes_away_is_no_error(cell: Combination) {
    let serving = Serving::start(cell, Options::default());
    if cell.is_datagram() {
        serving.hold("gate").desert();
    } else {
        let mut client = serving.client();
        client.say("pour 50000000").unwrap();
        assert_ne!(client.read(&mut [0]).unwrap(), 0);
        client.reset();
    }
    // A child that met it has nothing to complain of.
    let reason = if cell.is_forking() {
        "completed"
    } else {
        "disconnected"
    };
    serving.tells(&format!("ended 1 {reason}"));
    assert_eq!(serving.count("handle_error"), 0, "{}", serving.journal());
    serving.serves();
}

pub fn five_hundred_clients_that_misbehave(cell: Combination) {
    const CLIENTS: usize = 500;
    let serving = Serving::start(cell, Options::default().with("limit", 8));
    serving.serves();
    let descriptors = serving.is_idle();
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= CLIENTS {
                        return;
                    }
                    // A connect may fail, and so may all that follows: that is the client's lot.
                    if let Ok(client) = Client::connect(&serving.endpoint) {
                        misbehave(client, number);
                    }
                }
            });
        }
    });
    serving.serves();
    serving.waits_for("its descriptors to be what they were", || {
        serving.is_idle() == descriptors
    });
    let accepted = serving.count("accepted");
    // Of datagrams, the kernel drops what finds no room.
    assert!(accepted > CLIENTS || cell.is_datagram(), "{accepted}");
    assert!(
        serving.count("handle_error") > 0,
        "no handler failed: {}",
        serving.journal()
    );
    serving.stop();
    serving.tells("served");
    serving.quits();
}

/// Reset, close or half-close, at some stage of a request; a quarter of the handlers panic.
fn misbehave(mut client: Client, number: usize) {
    // A datagram may be lost, and its answer is not worth waiting for.
    let _ = client.set_patience(Duration::from_millis(500));
    // Scattered, and the same in each run.
    let dice = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    let _ = match dice % 8 {
        0 => Ok(()),
        1 => client.send(b"half a li"),
        2 | 3 => client.say("panic"),
        4 => client.say("fail"),
        5 => client.say("pour 3000000"),
        6 => client.say("hello").and_then(|()| client.hear().map(drop)),
        _ => client
            .say("leave")
            .and_then(|()| client.send(&[b'x'; 10_000])),
    };
    match (dice >> 8) % 3 {
        0 => client.reset(),
        1 => drop(client),
        _ => {
            let _ = client.half_close();
        }
    }
}
