//! The table says what the code does, and nothing is missing in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::Told;
use super::table::{Row, code, constants, rows};
use crate::metrics::Metrics;
use crate::{Counters, ThreadingTcpServer, ThreadingUdpServer};

const TABLE: &str = include_str!("limits.md");

/// The programs' own, which their test looks at.
const PROGRAMS: &str = "The programs";

/// What is not the code's to say.
fn others() -> Told {
    vec![
        ("`Builder::verify_request`", "none".into()),
        ("descriptors", "`ulimit -n`".into()),
        // No defaults of the library: the programs' test has their flags'.
        ("`AtLimit::Queue`: patience", "10 s".into()),
        ("`AtLimit::Queue`: places", "128".into()),
        ("`Controller::drain`", "30 s".into()),
    ]
}

#[test]
fn the_table_has_the_defaults_of_the_code() {
    let told = [
        crate::timeouts::limits(),
        crate::admission::limits(),
        crate::preamble::proxy::limits(),
        crate::concurrency::limits(),
        crate::transport::limits(),
        crate::sessions::limits(),
        crate::framing::limits(),
        crate::room::limits(),
        crate::server::limits(),
        crate::metrics::limits(),
        others(),
    ]
    .concat();
    let mut expected = BTreeMap::new();
    for (limit, default) in told {
        assert_eq!(expected.insert(limit, default), None, "{limit} twice");
    }
    let all = rows(TABLE);
    let own = all.iter().filter(|row| row.section != PROGRAMS);
    let mut table = BTreeMap::new();
    for row in own {
        let before = table.insert(row.limit, row.default.to_owned());
        assert_eq!(before, None, "{} has two rows", row.limit);
    }
    for (limit, default) in &expected {
        assert_eq!(table.get(limit), Some(default), "the row of {limit}");
    }
    for limit in table.keys() {
        assert!(expected.contains_key(limit), "no code has {limit}");
    }
}

#[test]
fn what_counts_a_limit_exists_and_every_reason_has_a_row() {
    let all = rows(TABLE);
    let metrics = Metrics::new();
    let tcp = ThreadingTcpServer::bind("127.0.0.1:0", crate::handler_fn(|_| Ok(()))).unwrap();
    let udp = ThreadingUdpServer::bind("127.0.0.1:0", crate::handler_fn(|_| Ok(()))).unwrap();
    metrics.add("tcp", &tcp.controller());
    metrics.add("udp", &udp.controller());
    let rendered = metrics.render();
    let counters = Counters::default();
    let refusals: BTreeSet<_> = counters.refusals().map(|(reason, _)| reason).collect();
    let ends: BTreeSet<_> = counters.ends().map(|(reason, _)| reason).collect();
    let (mut refused, mut ended) = (BTreeSet::new(), BTreeSet::new());
    for Row { limit, counted, .. } in &all {
        for cell in counted.split(", ").filter(|cell| *cell != "—") {
            let label = code(cell).next().unwrap_or(cell);
            match cell.split_once(": ") {
                Some(("refused", _)) => assert!(refusals.contains(label), "{limit}: {label}"),
                Some(("ended", _)) => assert!(ends.contains(label), "{limit}: {label}"),
                _ => {
                    let known = format!("# TYPE socketserver_{label} ");
                    assert!(rendered.contains(&known), "{limit}: {label} is no metric");
                }
            }
            match cell.split_once(": ") {
                Some(("refused", _)) => refused.insert(label),
                Some(("ended", _)) => ended.insert(label),
                _ => false,
            };
        }
    }
    assert_eq!(refused, refusals, "every reason to refuse is a limit");
    // What a handler does by itself is none.
    ended.extend(["completed", "panicked"]);
    assert_eq!(ended, ends);
}

#[test]
fn every_row_is_whole_and_says_what_changes_it() {
    let ways = ["next request", "restart", "handler", "call", "fixed"];
    for row in rows(TABLE) {
        assert!(ways.contains(&row.changed), "{row:?}");
        assert!(!row.limit.is_empty() && !row.default.is_empty(), "{row:?}");
        assert!(row.reached.len() > 3 && !row.counted.is_empty(), "{row:?}");
        // A constant cannot be set; `--workers` of `command` has one behind it.
        let may_have_flag = row.changed != "fixed" || row.section == PROGRAMS;
        assert!(may_have_flag || row.flags == "—", "{row:?}");
        assert_eq!(row.flags.contains("--"), row.flags != "—", "{row:?}");
    }
}

/// Whoever adds a number or a time decides whether it is a limit.
#[test]
fn every_constant_is_in_the_table_or_no_limit() {
    let limits = [
        "admission/peers.rs TOLD_APART",
        "concurrency/mod.rs STD_STACK",
        "framing/json_header.rs DEFAULT_MAX_HEADER",
        "framing/lines.rs DEFAULT_MAX_LEN",
        "framing/mod.rs DEFAULT_MAX_LEN",
        "metrics/endpoint.rs TIME",
        "metrics/http.rs MAX_HEAD",
        "metrics/http.rs MAX_HEADERS",
        "preamble/proxy/extent.rs FIXED",
        "preamble/proxy/extent.rs LONGEST_BLOCK",
        "preamble/proxy/extent.rs LONGEST_LINE",
        "room/mod.rs PACE",
        "server/back_off.rs FIRST",
        "server/back_off.rs LONGEST",
        "server/drain.rs BACKLOG",
        "server/drain.rs GRACE",
        "server/lifecycle.rs DEFAULT_DRAIN",
        "server/refusal.rs LINGER",
        "server/refusal.rs LINGERING",
        "server/refusal.rs NOTICE",
        "server/request.rs LINGER",
        "server/request.rs LINGER_BYTES",
        "transport/mod.rs MAX_PACKET",
        "transport/unix_path.rs CLAIM_TIMEOUT",
        "transport/unix_path.rs LONGEST",
    ];
    let no_limits = [
        // How often something is looked at or told.
        "admission/peers.rs SWEEP",
        "server/back_off.rs EPISODE",
        "server/drops.rs INTERVAL",
        // How much is done at once before others have their turn: nothing is refused or lost.
        "framing/buffer.rs CHUNK",
        "preamble/proxy/read.rs USUAL",
        "room/outbox.rs BATCH",
        "server/service.rs BUDGET",
        "server/service.rs BARREN",
        // What is told apart by it is behaviour of the peer, and not allowed or forbidden.
        "room/outbox.rs STUCK",
        "server/request.rs LINGER_SENT",
        // Half a second for a thread that has nothing left to do.
        "server/accept_loop.rs DISMISSAL",
        // As many digits as the longest number has.
        "framing/netstring.rs MAX_DIGITS",
        // Bits, codes and names.
        "concurrency/pooled/lobby.rs WAKER",
        "preamble/proxy/header.rs ALPN",
        "preamble/proxy/header.rs AUTHORITY",
        "preamble/proxy/header.rs CRC32C",
        "preamble/proxy/header.rs SSL",
        "preamble/proxy/header.rs UNIQUE_ID",
        "server/accept_loop.rs KIND",
    ];
    let known: BTreeSet<_> = limits
        .iter()
        .chain(&no_limits)
        .map(|c| (*c).to_owned())
        .collect();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let found: BTreeSet<_> = constants(&sources)
        .into_iter()
        // The bits of its word.
        .filter(|constant| {
            !constant.starts_with("server/lifecycle.rs") || constant.ends_with("DEFAULT_DRAIN")
        })
        .collect();
    let unknown: Vec<_> = found.difference(&known).collect();
    assert!(
        unknown.is_empty(),
        "a limit needs a row in limits.md and a place in the room's `limits()`; what is none is listed here: {unknown:?}"
    );
    let gone: Vec<_> = known.difference(&found).collect();
    assert!(gone.is_empty(), "there are no such constants: {gone:?}");
}
