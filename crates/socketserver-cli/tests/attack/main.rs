//! Attacks from outside, on every model that serves many at once. While one lasts, whoever behaves
//! is served soon; when it is over, nothing is left of it.

#![allow(clippy::unwrap_used)]

mod attackers;
#[path = "../common/mod.rs"]
mod common;
mod drain;
mod victim;
mod visitor;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use victim::{Model, Victim};
use visitor::{Talk, Visitor};

/// Promised to clients that behave.
const SOON: Duration = Duration::from_millis(50);

/// Times are taken: one attack at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn withstands(model: Model, changed: &[[&str; 2]], attack: impl Fn(&Victim)) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let victim = Victim::start(model, changed);
    Talk::with(victim.address).ask();
    let before = victim.figures();
    let mut resident = Vec::new();
    for _ in 0..2 {
        let visitor = Visitor::send(victim.address);
        attack(&victim);
        // An attack may be over very soon.
        std::thread::sleep(Duration::from_millis(300));
        let p99 = visitor.p99();
        assert!(p99 < SOON, "who behaves waited for {p99:?}");
        resident.push(victim.recovers(&before).resident_kib);
    }
    // What the first has made the process keep is enough for the second.
    assert!(resident[1] < resident[0] + 4096, "{resident:?} KiB");
}

macro_rules! attacks {
    ($($name:ident: [$($changed:expr),*],)+) => {
        attacks! { @model threading Threading $($name: [$($changed),*],)+ }
        attacks! { @model forking Forking $($name: [$($changed),*],)+ }
        attacks! { @model pooled Pooled $($name: [$($changed),*],)+ }
        attacks! { @model green Green $($name: [$($changed),*],)+ }
    };
    (@model $module:ident $model:ident $($name:ident: [$($changed:expr),*],)+) => {
        mod $module {
            use super::{Model, attackers, withstands};
            $(#[test] fn $name() {
                withstands(Model::$model, &[$($changed),*], attackers::$name);
            })+
        }
    };
}

attacks! {
    silence: [],
    trickling: [],
    not_reading: [],
    flood: [["--rate-per-peer", "500"]],
    resets: [],
    half_closes: [],
    everywhere: [["--rate-per-peer", "1000"]],
}

#[test]
fn children_that_are_killed_take_nobody_with_them() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let victim = Victim::start(Model::Forking, &[]);
    Talk::with(victim.address).ask();
    let before = victim.figures();
    for _ in 0..50 {
        common::eventually(|| victim.children().is_empty());
        let mut talks: Vec<_> = (0..10).map(|_| Talk::with(victim.address)).collect();
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
        Talk::with(victim.address).ask();
    }
    victim.recovers(&before);
}
