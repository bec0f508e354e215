//! Attacks from outside on every model that serves many clients at once. During an attack, the
//! server answers well-behaved clients soon. After an attack, the server has released all that the
//! attack took.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says why it fails, what it has measured, or that it is skipped"
)]

mod attackers;
mod bystander;
mod callers;
mod churn;
#[path = "../common/mod.rs"]
mod common;
mod displacement;
mod drain;
mod exhaustion;
mod forged;
mod listings;
mod packets;
mod talker;
mod udp;
mod victim;
mod visitor;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};

use bystander::{Seen, Watch};
use victim::{Crowd, Model, Victim};
use visitor::{Talk, Visitor};

/// Runs one attack at a time, because the tests measure times. Raises the limit of open files, so
/// that the test and its server have a descriptor for each of a thousand connections.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum.map_or(Some(4096), |max| Some(max.min(4096)));
    setrlimit(Resource::Nofile, limit).unwrap();
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number of attempts. One attempt proves little while other processes use the machine. The
/// test does not see all of that use: a host around a virtual machine, or work shorter than the
/// kernel's ticks. A server that breaks the promise does so in each attempt.
const TRIES: u32 = 3;
const TRIES_IF_BUSY: u32 = 6;

/// The number of answers whose p99 is not the longest answer.
const ANSWERS: usize = 200;

/// Attacks a server while a visitor uses it.
fn withstands(victim: &Victim, visit: impl Fn(&Victim) -> Visitor, attack: impl Fn(&Victim)) {
    let mut tries = 0;
    loop {
        let seen = attacked(victim, &visit, &attack);
        tries += 1;
        let most = if seen.is_machine_busy() {
            TRIES_IF_BUSY
        } else {
            TRIES
        };
        match seen.judged() {
            Ok(told) => return println!("{told}"),
            Err(told) if tries < most => println!("again: {told}"),
            Err(told) => panic!("{told}"),
        }
    }
}

/// Attacks at least twice, and until the visitor has enough answers. The server releases its
/// resources after each attack.
fn attacked(victim: &Victim, visit: impl Fn(&Victim) -> Visitor, attack: impl Fn(&Victim)) -> Seen {
    let before = victim.figures();
    let (mut seen, mut resident) = (Seen::default(), Vec::new());
    loop {
        let watch = Watch::of(victim, visit(victim));
        attack(victim);
        // The remains of the attack may disturb the visitor, too.
        std::thread::sleep(Duration::from_millis(30));
        seen.add(watch.ends());
        resident.push(victim.recovers(&before).resident_kib);
        // The memory that the process keeps after one attack is enough for the next attack. The
        // first attack may have taken little by chance. A leak grows with each attack.
        let grows = |pair: &[usize]| pair[1] >= pair[0] + 4096;
        let pairs = resident.windows(2);
        if resident.len() >= 4 && pairs.clone().all(grows) {
            panic!("memory grows with each attack: {resident:?} KiB");
        }
        let is_steady = pairs.last().is_some_and(|pair| !grows(pair));
        if is_steady && seen.visitor.len() >= ANSWERS {
            return seen;
        }
        assert!(resident.len() < 30, "{} answers only", seen.visitor.len());
    }
}

/// Attacks a server over TCP, like [`withstands`].
fn withstands_over_tcp(
    (model, crowd): (Model, Crowd),
    changed: &[[&str; 2]],
    attack: impl Fn(&Victim),
) {
    let _alone = alone();
    let victim = Victim::start(model, crowd, changed);
    Talk::with(victim.address()).ask();
    withstands(&victim, |victim| Visitor::by_tcp(victim.address()), attack);
}

macro_rules! attacks {
    ($($name:ident: $crowd:ident [$($changed:expr),*],)+) => {
        attacks! { @model threading Threading $($name: $crowd [$($changed),*],)+ }
        attacks! { @model forking Forking $($name: $crowd [$($changed),*],)+ }
        attacks! { @model pooled Pooled $($name: $crowd [$($changed),*],)+ }
        attacks! { @model green Green $($name: $crowd [$($changed),*],)+ }
    };
    (@model $module:ident $model:ident $($name:ident: $crowd:ident [$($changed:expr),*],)+) => {
        mod $module {
            use super::{Crowd, Model, attackers, withstands_over_tcp};
            $(#[test] fn $name() {
                let who = (Model::$model, Crowd::$crowd);
                withstands_over_tcp(who, &[$($changed),*], attackers::$name);
            })+
        }
    };
}

attacks! {
    silence: Idle [],
    trickling: Active [],
    not_reading: Active [],
    flood: Idle [["--rate-per-peer", "300"]],
    resets: Idle [],
    half_closes: Idle [],
    everywhere: Idle [["--rate-per-peer", "1000"]],
}

/// The test detects a server that the kernel stops for a while, on a busy machine and on an idle
/// machine.
#[test]
fn a_stall_is_seen() {
    let _alone = alone();
    let victim = Victim::start(Model::Threading, Crowd::Idle, &[]);
    Talk::with(victim.address()).ask();
    let visit = |victim: &Victim| Visitor::by_tcp(victim.address());
    let seen = attacked(&victim, visit, |victim| {
        for _ in 0..2 {
            victim.server.signal("STOP");
            std::thread::sleep(Duration::from_millis(400));
            victim.server.signal("CONT");
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    println!("{}", seen.judged().unwrap_err());
}

#[test]
fn children_that_are_killed_take_nobody_with_them() {
    let _alone = alone();
    let victim = Victim::start(Model::Forking, Crowd::Active, &[]);
    Talk::with(victim.address()).ask();
    let before = victim.figures();
    for _ in 0..50 {
        common::eventually(|| victim.children().is_empty());
        let mut talks: Vec<_> = (0..10).map(|_| Talk::with(victim.address())).collect();
        talks.iter_mut().for_each(Talk::ask);
        let children = victim.children();
        assert_eq!(children.len(), talks.len());
        let kill = std::process::Command::new("kill")
            .arg("-9")
            .args(children.iter().map(ToString::to_string))
            .status();
        assert!(kill.unwrap().success());
        for mut talk in talks {
            assert!(
                matches!(talk.hear(), Ok(false) | Err(_)),
                "its child is dead"
            );
        }
        Talk::with(victim.address()).ask();
    }
    victim.recovers(&before);
}
