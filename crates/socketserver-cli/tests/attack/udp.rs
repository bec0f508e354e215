//! Attacks by datagrams, over UDP and Unix sockets, on every model.
//!
//! These tests check the promise for the server as a whole. They do not detect a single stuck
//! request, because a caller repeats its datagram. The attacks over TCP detect stuck requests.
//!
//! The kernel drops the datagrams that a server does not read in time. The kernel does not tell the
//! senders, so that a visitor must ask again. Up to the rates below, the kernel drops no datagram.
//! The models reach these rates on two cores, one of which the attackers use. A sequential, a
//! pooled and a green server admit or reject a datagram in microseconds. A thread takes some ten
//! microseconds to start, and a process takes a millisecond. These two models cannot serve more
//! datagrams than they can start threads or processes.

use std::fs;
use std::time::Duration;

use crate::bystander::Watch;
use crate::callers::{Caller, unix_address};
use crate::packets::{self, FULL};
use crate::victim::{Model, Victim};
use crate::visitor::Visitor;
use crate::{alone, withstands};

fn victim(model: Model) -> Victim {
    let args = [
        ["-l", "udp://127.0.0.1:0"],
        ["--log-level", "off"],
        // A visitor stays below this rate, and the server can still start a process for each
        // datagram.
        ["--rate-per-peer", "500:100"],
    ];
    let victim = Victim::with(
        model,
        &[args.as_flattened(), &["--reject-low-ports"]].concat(),
    );
    Caller::by_udp(victim.address()).ask();
    victim
}

fn visitor(victim: &Victim) -> Visitor {
    let to = victim.address();
    let mut regular = Caller::by_udp(to);
    Visitor::asking(2, move |is_new| {
        if is_new {
            Caller::by_udp(to).ask()
        } else {
            regular.ask()
        }
    })
}

fn unix_victim(model: Model) -> Victim {
    let name = format!("unixgram://@attack-{}", std::process::id());
    let args = [
        ["-l", &name],
        ["--log-level", "off"],
        // A reply to a full queue holds its worker for this time.
        ["--write-timeout", "10ms"],
    ];
    let victim = Victim::with(model, args.as_flattened());
    Caller::by_unix(&unix_address(victim.server.address(0))).ask();
    victim
}

fn unix_visitor(victim: &Victim) -> Visitor {
    let to = unix_address(victim.server.address(0));
    let mut regular = Caller::by_unix(&to);
    Visitor::asking(2, move |is_new| {
        if is_new {
            Caller::by_unix(&to).ask()
        } else {
            regular.ask()
        }
    })
}

/// Sends as many datagrams as one core can, so that the kernel's buffer for the socket overflows.
/// The server still serves a visitor, but the visitor may have to ask more than once. The flood has
/// no other effect.
fn survives(model: Model) {
    let _alone = alone();
    let victim = victim(model);
    let before = victim.figures();
    let watch = Watch::of(&victim, visitor(&victim));
    packets::flood(&victim, FULL);
    let (dropped, seen) = (dropped(victim.address().port()), watch.ends());
    println!("dropped {dropped}; {:?}", seen.judged());
    // A visitor does not wait if the kernel has dropped no datagram.
    assert!(dropped > 0 || seen.is_machine_busy() || seen.judged().is_ok());
    victim.recovers(&before);
    // The server serves as it did before the flood.
    withstands(&victim, visitor, |_| {
        std::thread::sleep(Duration::from_millis(50));
    });
}

/// Returns the kernel's count of dropped datagrams for this port: proc_net_udp(5).
fn dropped(port: u16) -> u64 {
    let table = fs::read_to_string("/proc/net/udp").unwrap();
    let address = format!("0100007F:{port:04X}");
    let mut lines = table.lines().map(str::split_whitespace);
    let mut line = lines.find(|line| line.clone().nth(1) == Some(&*address));
    line.as_mut().unwrap().next_back().unwrap().parse().unwrap()
}

macro_rules! attacks {
    ($($module:ident $model:ident: $flood:literal, $everywhere:literal, $unread:literal;)+) => {
        $(mod $module {
            use super::{Model, alone, packets, survives, unix_victim, unix_visitor, victim, visitor, withstands};
            const MODEL: Model = Model::$model;

            #[test]
            fn flood() {
                let _alone = alone();
                withstands(&victim(MODEL), visitor, |it| packets::flood(it, $flood));
            }

            #[test]
            fn everywhere() {
                let _alone = alone();
                withstands(&victim(MODEL), visitor, |it| packets::everywhere(it, $everywhere));
            }

            #[test]
            fn low_ports() {
                let _alone = alone();
                withstands(&victim(MODEL), visitor, |it| packets::low_ports(it, $flood));
            }

            #[test]
            fn huge_and_empty() {
                let _alone = alone();
                withstands(&victim(MODEL), visitor, |it| packets::huge_and_empty(it, $flood));
            }

            #[test]
            fn full_speed() {
                survives(MODEL);
            }

            #[test]
            fn not_reading() {
                let _alone = alone();
                withstands(&unix_victim(MODEL), unix_visitor, |it| packets::not_reading(it, $unread));
            }
        })+
    };
}

// The rates of a flood, of a flood from everywhere, and of clients that do not read. A client that
// does not read holds a sequential server for as long as the write timeout.
attacks! {
    sequential Sequential: 20_000, 20_000, 20;
    threading Threading: 20_000, 3_000, 1_000;
    forking Forking: 20_000, 300, 1_000;
    pooled Pooled: 20_000, 20_000, 1_000;
    green Green: 20_000, 20_000, 1_000;
}
