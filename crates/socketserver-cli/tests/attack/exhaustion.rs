//! Attackers who take all descriptors that the server may have, from many addresses.

use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::attackers::{connect_from, until_cut};
use crate::victim::{Model, Victim};
use crate::visitor::{Talk, Visitor};
use crate::{alone, withstands};

/// What the server may have open, as a shell has it: ulimit(1p).
const DESCRIPTORS: &str = "64";

fn victim(model: Model, limits: &[&str]) -> Victim {
    let args = [
        ["-l", "tcp://127.0.0.1:0"],
        ["--framing", "lines"],
        ["--first-byte-timeout", "250ms"],
        ["--log-level", "warn"],
        // More than there are descriptors for: the model's own limit is not what is tried here.
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

/// Ten connections from each of ten addresses, none of which says anything.
fn crowd(victim: &Victim) -> Vec<TcpStream> {
    let addresses = (1..=10).map(|n| Ipv4Addr::new(127, 0, 1, n));
    let each = addresses.flat_map(|from| (0..10).map(move |_| from));
    each.filter_map(|from| connect_from(from, victim.address()))
        .collect()
}

/// As the README advises: no address can have all of them, and few have not enough together.
fn a_share_for_each(model: Model) {
    let _alone = alone();
    let victim = victim(model, &["--max-per-peer", "3"]);
    let visit = |victim: &Victim| Visitor::by_tcp(victim.address());
    withstands(&victim, visit, |victim| until_cut(&mut crowd(victim)));
    assert_eq!(warnings(&victim), [""; 0]);
}

/// Fewer than there are descriptors for: who comes then waits, until the silent ones are cut. The
/// server never runs out.
fn fewer_than_there_is_room_for(model: Model) {
    let _alone = alone();
    let victim = victim(model, &["--max-active", "30"]);
    is_served_after(&victim);
    assert_eq!(warnings(&victim), [""; 0]);
}

/// All that the log has, but for what the start says of the hard limit.
fn warnings(victim: &Victim) -> Vec<String> {
    let mut log = victim.server.log();
    log.retain(|line| !line.contains("connections at once may need"));
    log
}

/// Without a limit, the server runs out, says so, and does not spin; all is well when the silent
/// ones are cut.
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
    // A hundred connections in shares of some fifty or thirty, each of which has a quarter of a second.
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
