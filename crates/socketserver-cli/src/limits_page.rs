//! Tests that the page of limits matches the code, and contains all options.

use std::collections::BTreeSet;
use std::path::Path;

use clap::{Arg, Command};

use crate::byte_size::Size;
use crate::config::{self, Effect, built, effect};
use table::{Constant, Row, bytes, code, hold, number, rows, time};

#[path = "../../socketserver/src/limits/table.rs"]
#[allow(dead_code, reason = "the library's test looks at the rest")]
mod table;

const TABLE: &str = include_str!("../../socketserver/src/limits/limits.md");

const CONSTANTS: &[Constant] = &[
    ("a configuration", "config/file.rs LONGEST"),
    ("metrics: clients at once", "metrics.rs CLIENTS"),
    ("metrics: clients that wait", "metrics.rs QUEUE_CAPACITY"),
    ("metrics: descriptors kept for them", "metrics.rs RESERVED"),
    ("metrics: how long they wait", "metrics.rs QUEUE_TIMEOUT"),
    ("metrics: silence before a request", "metrics.rs SILENCE"),
    (
        "metrics: last answers after a drain",
        "metrics.rs FINAL_RESPONSES",
    ),
    (
        "`chat`: silence of a member before it makes room",
        "programs/chat/mod.rs LISTENING",
    ),
    ("messages after a drain has begun", "framing.rs DRAIN_GRACE"),
    ("a forced end", "signals/mod.rs FORCED"),
    ("signals that count as one", "signals/shutdown.rs TOGETHER"),
    ("a line of the console or a pipe", "terminal.rs LINE"),
    (
        "lines that a stopped terminal has not shown",
        "terminal.rs UNSEEN",
    ),
    ("showing them at the end", "terminal.rs FLUSH"),
    (
        "`http`: a request line or a header",
        "programs/http/mod.rs LONGEST",
    ),
    (
        "`http`: names in a list of files",
        "programs/http/listing/names.rs MOST",
    ),
    (
        "`http`: names in a list that is made whole",
        "programs/http/listing/mod.rs SHORT",
    ),
    (
        "`http`: longer lists that wait to be made",
        "programs/http/listing/mod.rs WAITING",
    ),
    (
        "`http`: how long these wait",
        "programs/http/listing/mod.rs WAIT",
    ),
    (
        "`http`: memory of longer lists that are not read yet",
        "programs/http/listing/unread.rs MEMORY",
    ),
    (
        "`http`: a longer list that is not read while others need its memory",
        "programs/http/listing/unread.rs EVICTION_AGE",
    ),
    (
        "`http`: what was asked for, in the log",
        "programs/http/access_log.rs LONGEST",
    ),
    (
        "lines of the log about clients turned away",
        "serve/connection_log.rs LINES_PER_WINDOW",
    ),
    ("a message in a line of the log", "escape.rs EXCERPT"),
    ("a message of `connect`", "connect.rs LINE"),
    ("`connect`: wait for datagrams", "connect.rs WAIT"),
    (
        "`connect`: wait for input after a server's end",
        "connect.rs MORE_INPUT",
    ),
    (
        "`load`: connections opened at once",
        "load/worker.rs OPENING",
    ),
    ("`load`: duration", "load/mod.rs DURATION"),
    ("`load`: a message", "load/mod.rs LONGEST_MESSAGE"),
    (
        "`load`: an answer of one line",
        "load/response.rs LONGEST_LINE",
    ),
    (
        "`command`: output kept in memory",
        "programs/command/output.rs IN_MEMORY",
    ),
    (
        "`command`: length of a command",
        "programs/command/mod.rs LONGEST",
    ),
    (
        "`command`: time for the token",
        "programs/command/session.rs ADMISSION",
    ),
    (
        "`command`: time for the rest of the token's line",
        "programs/command/session.rs LINE",
    ),
    ("`command`: shortest token", "auth_token.rs SHORTEST"),
    ("`command`: longest token", "auth_token.rs LONGEST"),
    (
        "`collect`: time between two attempts on a full disk",
        "programs/collect/writer.rs RETRY",
    ),
];

/// Returns the limits that are not constants.
fn others() -> [(&'static str, String); 2] {
    let green = socketserver::greenroom::MAX_BLOCKING_THREADS;
    [
        // The number of bytes that the library reads at once.
        ("a message with `--framing chunks`", bytes(8_u64 << 10)),
        ("`command`: connections under `green`", number(green)),
    ]
}

const NO_LIMITS: &[&str] = &[
    // The validity of certificates.
    "cert.rs VALID",
    "cert.rs AUTHORITY_VALID",
    // The window of a rate.
    "serve/connection_log.rs WINDOW",
    // The ranges of the clock and of a histogram.
    "load/connection.rs NEVER",
    "signals/shutdown.rs LONGEST",
    "load/mod.rs LONGEST_TIME",
    "load/stats.rs LONGEST",
    // Intervals of retries, checks and displays.
    "load/connection.rs REST",
    "load/progress.rs EACH",
    "load/worker.rs LOOK",
    "load/worker.rs RETRY",
    // The layout of reports.
    "load/report/chart.rs WIDTH",
    "load/report/percentiles.rs TICKS",
    "load/report/text.rs NAMES",
    // Batch sizes.
    "load/fd_limit.rs BESIDES",
    "load/worker.rs EVENTS",
    "log_rate.rs NAME",
    "log_rate.rs WINDOW",
    "nonblocking.rs WHOLE",
    "programs/http/listing/names.rs PASSED_OVER",
    "programs/collect/sink.rs BATCH",
    "programs/http/document_root.rs ATTEMPTS",
    "inet.rs ATTEMPTS",
    "programs/command/process_tree.rs LOOKS",
    "programs/command/output.rs PIECE",
    "programs/command/session.rs CHUNK",
    // Estimates of resources for limits that are set elsewhere.
    "descriptors.rs RESERVE",
    "programs/command/mod.rs DESCRIPTORS",
    "programs/command/mod.rs MANY_SLOTS",
    "serve/mod.rs BUSY",
    // Limits that another constant names.
    "serve/mod.rs IDLE",
    "programs/command/mod.rs GREEN",
    "programs/http/mod.rs POOL",
    // Exit codes.
    "main.rs WRONG_USAGE",
];

/// Options for output, display and choices, which set no limit.
const NO_LIMITING_OPTIONS: &[&str] = &[
    "ack",
    "access-log",
    "allow-remote",
    "answer",
    "auth-token-file",
    "ca",
    "cert",
    "charset",
    "check-config",
    "churn",
    "command",
    "concurrency",
    "config",
    "cut-status",
    "dir",
    "follow-symlinks",
    "framing",
    "group",
    "help",
    "hidden",
    "histogram",
    "index",
    "json",
    "key",
    "listen",
    "log-file",
    "log-format",
    "log-level",
    "message",
    "metrics",
    "no-displacement",
    "no-listing",
    "output",
    "proxy-from",
    "raw",
    "server-name",
    "size",
    "threads",
    "tls-cert",
    "tls-client-ca",
    "tls-key",
    "unix-mode",
    "user",
    "verify",
    "version",
    "warm-up",
    "web",
    "web-origin",
    // Options with defaults that depend on another option; the rows contain them by name.
    "at-limit",
    "rejection-message",
    "reject-low-ports",
];

#[test]
fn table_contains_all_constants() {
    let (all, others) = (rows(TABLE), others());
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    hold(&all, &sources, CONSTANTS, NO_LIMITS);
    for (limit, default) in &others {
        let row = all.iter().find(|row| row.limit == *limit);
        assert_eq!(row.map(|row| row.default), Some(&**default), "{limit}");
    }
    let of_others = others.iter().map(|(limit, _)| *limit);
    let known: BTreeSet<_> = of_others
        .chain(CONSTANTS.iter().map(|(limit, _)| *limit))
        .collect();
    for row in all.iter().filter(|row| row.section == "The programs") {
        // The test below checks rows with an option.
        let is_known = row.flags != "—" || known.contains(row.limit);
        assert!(is_known, "no code has {}", row.limit);
    }
}

/// Returns the programs with their options.
fn options(command: &Command) -> impl Iterator<Item = (&str, &str, &Arg)> {
    command.get_subcommands().flat_map(|program| {
        let flags = program.get_arguments();
        flags.filter_map(|arg| Some((program.get_name(), arg.get_long()?, arg)))
    })
}

/// Returns the rows for this option: of this program, or else of all programs with the option.
fn rows_of<'t>(all: &[Row<'t>], program: &str, flag: &str) -> Vec<Row<'t>> {
    let (any, own) = (format!("--{flag}"), format!("{program} --{flag}"));
    let with = |flag: &str| -> Vec<_> {
        let has_it = |row: &&Row<'t>| code(row.flags).any(|code| code == flag);
        all.iter().filter(has_it).cloned().collect()
    };
    let own = with(&own);
    if own.is_empty() { with(&any) } else { own }
}

#[test]
fn every_option_has_a_row_with_default_and_reload_effect() {
    let (command, all) = (built(), rows(TABLE));
    for (program, flag, arg) in options(&command) {
        let rows = rows_of(&all, program, flag);
        if rows.is_empty() {
            assert!(
                NO_LIMITING_OPTIONS.contains(&flag),
                "{program} --{flag} has no row"
            );
            continue;
        }
        let is_program = config::is_program(&command, program);
        for row in rows {
            let reloads = is_program && effect(flag) != Effect::Restart;
            assert_eq!(row.changed == "next request", reloads, "--{flag}: {row:?}");
            let depends = ["duration", "workers", "write-timeout", "wait"];
            if NO_LIMITING_OPTIONS.contains(&flag)
                || depends.contains(&flag) && default(arg).is_none()
            {
                continue;
            }
            let default = default(arg).unwrap_or_else(|| "none".into());
            assert_eq!(row.default, default, "{program} --{flag}: {row:?}");
        }
    }
}

#[test]
fn table_contains_only_existing_options() {
    let command = built();
    let known: BTreeSet<_> = options(&command)
        .flat_map(|(program, flag, _)| [format!("--{flag}"), format!("{program} --{flag}")])
        .collect();
    for row in rows(TABLE) {
        for flag in code(row.flags) {
            assert!(known.contains(flag), "{flag}: {row:?}");
        }
    }
}

/// Returns the default of the option in the notation of the table.
fn default(arg: &Arg) -> Option<String> {
    let text = arg.get_default_values().first()?.to_str()?;
    let kind = arg.get_value_names().and_then(|names| names.first());
    Some(match kind.map(clap::builder::Str::as_str) {
        _ if text == "none" => text.to_owned(),
        Some("DURATION") => time(humantime::parse_duration(text).ok()?),
        Some("SIZE") => bytes(text.parse::<Size>().ok()?.0),
        Some("N") => number(text.parse::<u64>().ok()?),
        Some("BYTES[:TIME]") => {
            let (rate, grace) = match text.split_once(':') {
                Some((rate, grace)) => (rate, humantime::parse_duration(grace).ok()?),
                None => return None,
            };
            format!("{rate} bytes/s after {}", time(grace))
        }
        _ => text.to_owned(),
    })
}
