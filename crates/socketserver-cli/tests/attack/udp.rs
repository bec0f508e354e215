//! Attacks by datagrams, over UDP and Unix sockets, on every model.
//!
//! Here the server as a whole is held to its promise. A single request that is stuck is not seen: who
//! asks by datagrams asks again. That is what the attacks over TCP are for.
//!
//! What a server cannot take out of its socket in time, the kernel drops, and nobody says to whom it
//! belonged: then a visitor has to ask again. Up to the rates below that does not happen. They are
//! what the models can do on two cores, one of which the attackers have: a sequential, a pooled and a
//! green server admit or refuse a datagram in microseconds; a thread takes some ten of them, and a
//! process a millisecond, so that more than these can start is more than they can serve.

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
        // A visitor asks less than that, and a process each can still be started.
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
        // A reply that finds no room holds its worker for so long.
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

/// A flood of as much as one core can send: the kernel's buffer for the socket overflows. A visitor
/// is served all the same, but may have to ask more than once; nothing else suffers.
fn survives(model: Model) {
    let _alone = alone();
    let victim = victim(model);
    let before = victim.figures();
    let watch = Watch::of(&victim, visitor(&victim));
    packets::flood(&victim, FULL);
    let (dropped, seen) = (dropped(victim.address().port()), watch.ends());
    println!("dropped {dropped}; {:?}", seen.judged());
    // Who has lost nothing does not wait.
    assert!(dropped > 0 || seen.is_machine_busy() || seen.judged().is_ok());
    victim.recovers(&before);
    // It is as before.
    withstands(&victim, visitor, |_| {
        std::thread::sleep(Duration::from_millis(50));
    });
}

/// What the kernel has dropped of what was sent to this port: its own count, proc_net_udp(5).
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

// The rates of a flood, of one from everywhere, and of clients that do not read; these hold a
// sequential server for as long as a write may take.
attacks! {
    sequential Sequential: 20_000, 20_000, 20;
    threading Threading: 20_000, 3_000, 1_000;
    forking Forking: 20_000, 300, 1_000;
    pooled Pooled: 20_000, 20_000, 1_000;
    green Green: 20_000, 20_000, 1_000;
}
