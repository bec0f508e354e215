//! An attacker that connects, sends one byte and closes, one connection after the other, as fast as
//! it can. The server must close connections as fast as it accepts them.

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use crate::attackers::{ELSEWHERE, connect_from};
use crate::victim::{Crowd, Model, Victim};
use crate::visitor::{Talk, Visitor};
use crate::{alone, withstands};

/// More descriptors than a server needs that closes connections in time. An attacker that is served
/// has one connection.
const DESCRIPTORS: usize = 1000;

/// Attacks for 700 ms, until connections that have piled up would disturb other clients.
fn churn(victim: &Victim) {
    let end = Instant::now() + Duration::from_millis(700);
    let descriptors = format!("/proc/{}/fd", victim.server.pid());
    let (mut rounds, mut most) = (0, 0);
    while Instant::now() < end {
        if let Some(mut stream) = connect_from(ELSEWHERE, victim.address()) {
            let _ = stream.write_all(b"x");
        }
        rounds += 1;
        if rounds % 100 == 0 {
            most = most.max(fs::read_dir(&descriptors).unwrap().count());
        }
    }
    println!("{rounds} connections, {most} descriptors at once");
    assert!(most < DESCRIPTORS, "{most} descriptors at once");
}

/// Asks on one connection that stays open. A new connection would wait in the kernel's backlog
/// behind those of the attacker.
fn visits_echo(victim: &Victim) -> Visitor {
    let address = victim.address();
    let mut regular = Talk::with(address);
    Visitor::asking(5, move |_| {
        let is_answered = regular.is_answered();
        if !is_answered {
            regular = Talk::with(address);
        }
        is_answered
    })
}

fn echo(model: Model) {
    let _alone = alone();
    let victim = Victim::start(model, Crowd::Idle, &[]);
    Talk::with(victim.address()).ask();
    withstands(&victim, visits_echo, churn);
}

#[test]
fn by_threads() {
    echo(Model::Threading);
}

#[test]
fn by_processes() {
    echo(Model::Forking);
}

#[test]
fn by_a_pool() {
    echo(Model::Pooled);
}

#[test]
fn by_coroutines() {
    echo(Model::Green);
}
