//! Attacks from outside, on every model that serves many at once. While one lasts, whoever behaves
//! is served soon; when it is over, nothing is left of it.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says why it fails, what it has measured, or that it is skipped"
)]

mod attackers;
mod bystander;
mod callers;
#[path = "../common/mod.rs"]
mod common;
mod drain;
mod exhaustion;
mod packets;
mod udp;
mod victim;
mod visitor;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bystander::{Bystander, judge};
use victim::{Crowd, Model, Victim};
use visitor::{Talk, Visitor};

/// Times are taken: one attack at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Attacks a server twice, while somebody visits it.
fn withstands(victim: &Victim, visit: impl Fn(&Victim) -> Visitor, attack: impl Fn(&Victim)) {
    let before = victim.figures();
    let (mut seen, mut usual, mut resident) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        let (visitor, bystander) = (visit(victim), Bystander::watch());
        attack(victim);
        // An attack may be over very soon.
        std::thread::sleep(Duration::from_millis(100));
        seen.extend(visitor.times());
        usual.extend(bystander.times());
        resident.push(victim.recovers(&before).resident_kib);
        // What one has made the process keep is enough for the next. By chance the first may have
        // taken little; what is lost each time grows each time.
        match resident[..] {
            [.., one, next] if next < one + 4096 => break,
            [_, _, _, _] => panic!("memory grows with each attack: {resident:?} KiB"),
            _ => {}
        }
    }
    judge(seen, usual);
}

/// The same over TCP.
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
    flood: Idle [["--rate-per-peer", "500"]],
    resets: Idle [],
    half_closes: Idle [],
    everywhere: Idle [["--rate-per-peer", "1000"]],
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
