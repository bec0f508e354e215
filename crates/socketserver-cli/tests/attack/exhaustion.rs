//! Attackers from many addresses that take all descriptors of the server.

use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::attackers::{connect_from, until_cut};
use crate::victim::{Model, Victim};
use crate::visitor::{Talk, Visitor};
use crate::{alone, withstands};

/// The limit of open files of the server, for the shell's `ulimit`: ulimit(1p).
const DESCRIPTORS: &str = "64";

fn victim(model: Model, limits: &[&str]) -> Victim {
    let args = [
        ["-l", "tcp://127.0.0.1:0"],
        ["--framing", "lines"],
        ["--first-byte-timeout", "250ms"],
        ["--log-level", "warn"],
        // The number is higher than the limit of descriptors, because the test is not about the
        // model's own limit.
        [
            "--workers",
            if model == Model::Pooled { "32" } else { "1000" },
        ],
    ];
    let script = format!("ulimit -n {DESCRIPTORS} && exec \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_socketserver")]);
    let victim = Victim::launch(&mut command, model, &[args.as_flattened(), limits].concat());
    Talk::with(victim.address()).ask();
    victim
}

/// Opens ten silent connections from each of ten addresses.
fn crowd(victim: &Victim) -> Vec<TcpStream> {
    let addresses = (1..=10).map(|n| Ipv4Addr::new(127, 0, 1, n));
    let each = addresses.flat_map(|from| (0..10).map(move |_| from));
    each.filter_map(|from| connect_from(from, victim.address()))
        .collect()
}

/// Sets a limit per peer, as the README advises. No address can take all descriptors, and a few
/// addresses together cannot either.
fn a_share_for_each(model: Model) {
    let _alone = alone();
    let victim = victim(model, &["--max-per-peer", "3"]);
    let visit = |victim: &Victim| Visitor::by_tcp(victim.address());
    withstands(&victim, visit, |victim| until_cut(&mut crowd(victim)));
    assert_eq!(warnings(&victim), [""; 0]);
}

/// Sets a limit of connections below the limit of descriptors. A new client waits until the server
/// cancels the silent connections. The server never runs out of descriptors.
fn fewer_than_there_is_room_for(model: Model) {
    let _alone = alone();
    let victim = victim(model, &["--max-active", "30"]);
    is_served_after(&victim);
    assert_eq!(warnings(&victim), [""; 0]);
}

/// Returns the lines of the log, except the line about the hard limit at the start.
fn warnings(victim: &Victim) -> Vec<String> {
    let mut log = victim.server.log();
    log.retain(|line| !line.contains("connections at once may need"));
    log
}

/// Checks that a server without a limit runs out of descriptors, logs the error and does not spin.
/// The server recovers when it cancels the silent connections.
fn no_limit(model: Model) {
    let _alone = alone();
    let victim = victim(model, &[]);
    is_served_after(&victim);
    victim.server.logged("Too many open files");
}

fn is_served_after(victim: &Victim) {
    let before = victim.figures();
    let mut crowd = crowd(victim);
    let (start, used) = (Instant::now(), victim.processor_time());
    Talk::with(victim.address()).ask();
    let waited = start.elapsed();
    until_cut(&mut crowd);
    let (lasted, used) = (start.elapsed(), victim.processor_time() - used);
    println!("waited {waited:?}; {used:?} of processor time in {lasted:?}");
    // The server serves a hundred connections in groups of some fifty or thirty. Each group has 250
    // ms.
    assert!(waited < Duration::from_secs(3), "{waited:?}");
    assert!(
        used < lasted / 5,
        "{used:?} of processor time in {lasted:?}"
    );
    victim.recovers(&before);
    Talk::with(victim.address()).ask();
}

macro_rules! exhaustion {
    ($($module:ident $model:ident,)+) => {
        $(mod $module {
            use super::Model;

            #[test]
            fn a_share_for_each() {
                super::a_share_for_each(Model::$model);
            }

            #[test]
            fn fewer_than_there_is_room_for() {
                super::fewer_than_there_is_room_for(Model::$model);
            }

            #[test]
            fn no_limit() {
                super::no_limit(Model::$model);
            }
        })+
    };
}

exhaustion! {
    threading Threading,
    forking Forking,
    pooled Pooled,
    green Green,
}
