//! The table of limits says what the programs do, and no option of theirs is missing in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use clap::{Arg, Command};
use socketserver::AtLimit;

use crate::config::{self, Effect, built, effect};
use crate::programs::command;
use crate::size::Size;
use crate::{connect, messages, metrics, signals, terminal, token};
use table::{Row, bytes, code, constants, number, rows, time};

#[allow(dead_code, reason = "the library's test looks at the rest")]
#[path = "../../socketserver/src/limits/table.rs"]
mod table;

const TABLE: &str = include_str!("../../socketserver/src/limits/limits.md");

/// Those that are no options.
fn fixed() -> BTreeMap<&'static str, String> {
    let AtLimit::Queue { patience, places } = metrics::AT_LIMIT else {
        panic!("another policy");
    };
    let (in_memory, admission, green) = command::LIMITS;
    BTreeMap::from([
        ("a configuration", bytes(config::LONGEST)),
        ("metrics: clients at once", number(metrics::CLIENTS)),
        ("metrics: clients that wait", number(places)),
        ("metrics: how long they wait", time(patience)),
        ("metrics: silence before a request", time(metrics::SILENCE)),
        (
            "metrics: last answers after a drain",
            time(metrics::LAST_ANSWERS),
        ),
        // What the library reads at once.
        ("a message with `--framing chunks`", bytes(8_u64 << 10)),
        (
            "messages after a drain has begun",
            time(messages::LAST_WORDS),
        ),
        ("a forced end", time(signals::FORCED)),
        ("signals that count as one", time(signals::TOGETHER)),
        ("a line of the console or a pipe", bytes(terminal::LINE)),
        (
            "lines that a stopped terminal has not shown",
            number(terminal::UNSEEN),
        ),
        ("showing them at the end", time(terminal::FLUSH)),
        ("a message of `connect`", bytes(connect::LINE)),
        ("`connect`: wait for datagrams", time(connect::WAIT)),
        ("`command`: output kept in memory", bytes(in_memory)),
        ("`command`: length of a command", bytes(command::LONGEST)),
        ("`command`: time for the token", time(admission)),
        ("`command`: shortest token", bytes(*token::LENGTH.start())),
        ("`command`: longest token", bytes(*token::LENGTH.end())),
        ("`command`: connections under `green`", number(green)),
    ])
}

/// What is said, shown or chosen by them is not limited.
const NO_LIMITS: [&str; 22] = [
    "ack",
    "auth-token-file",
    "charset",
    "check-config",
    "command",
    "concurrency",
    "config",
    "framing",
    "group",
    "help",
    "listen",
    "log-format",
    "log-level",
    "metrics",
    "output",
    "proxy-from",
    "unix-mode",
    "user",
    "version",
    // Defaults that depend on something else; the rows have them by name.
    "at-limit",
    "refusal-notice",
    "refuse-low-ports",
];

#[test]
fn the_table_has_what_cannot_be_set() {
    let fixed = fixed();
    let all = rows(TABLE);
    for (limit, default) in &fixed {
        let row = all.iter().find(|row| row.limit == *limit);
        assert_eq!(row.map(|row| row.default), Some(&**default), "{limit}");
    }
    for row in &all {
        let has_flag = row.flags != "—";
        let is_known = row.section != "The programs" || has_flag || fixed.contains_key(row.limit);
        assert!(is_known, "no code has {}", row.limit);
    }
}

/// The programs, with their options.
fn options(command: &Command) -> impl Iterator<Item = (&str, &str, &Arg)> {
    command.get_subcommands().flat_map(|program| {
        let flags = program.get_arguments();
        flags.filter_map(|arg| Some((program.get_name(), arg.get_long()?, arg)))
    })
}

/// Rows whose cell has this option, of this program or of all that have it.
fn rows_of<'t>(all: &[Row<'t>], program: &str, flag: &str) -> Vec<Row<'t>> {
    let (any, own) = (format!("--{flag}"), format!("{program} --{flag}"));
    let has_it = |row: &&Row<'_>| code(row.flags).any(|code| code == any || code == own);
    all.iter().filter(has_it).cloned().collect()
}

#[test]
fn every_option_has_a_row_with_its_default_and_what_a_reload_does() {
    let (command, all) = (built(), rows(TABLE));
    for (program, flag, arg) in options(&command) {
        let rows = rows_of(&all, program, flag);
        if rows.is_empty() {
            assert!(NO_LIMITS.contains(&flag), "{program} --{flag} has no row");
            continue;
        }
        let is_program = config::is_program(&command, program);
        for row in rows {
            let reloads = is_program && effect(flag) != Effect::Restart;
            assert_eq!(row.changed == "next request", reloads, "--{flag}: {row:?}");
            let depends = ["workers", "write-timeout", "wait"];
            if NO_LIMITS.contains(&flag) || depends.contains(&flag) && default(arg).is_none() {
                continue;
            }
            let default = default(arg).unwrap_or_else(|| "none".into());
            assert_eq!(row.default, default, "{program} --{flag}: {row:?}");
        }
    }
}

#[test]
fn every_option_in_the_table_exists() {
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

/// What the option is without being given, as the table writes it.
fn default(arg: &Arg) -> Option<String> {
    let text = arg.get_default_values().first()?.to_str()?;
    let kind = arg.get_value_names().and_then(|names| names.first());
    Some(match kind.map(|kind| kind.as_str()) {
        _ if text == "none" => text.to_owned(),
        Some("DURATION") => time(humantime::parse_duration(text).ok()?),
        Some("SIZE") => bytes(text.parse::<Size>().ok()?.0),
        Some("N") => number(text.parse::<u64>().ok()?),
        Some("BYTES[:TIME]") => {
            let (rate, grace): (_, Duration) = match text.split_once(':') {
                Some((rate, grace)) => (rate, humantime::parse_duration(grace).ok()?),
                None => return None,
            };
            format!("{rate} bytes/s after {}", time(grace))
        }
        _ => text.to_owned(),
    })
}

/// Whoever adds a number or a time decides whether it is a limit.
#[test]
fn every_constant_is_in_the_table_or_no_limit() {
    let limits = [
        "config/file.rs LONGEST",
        "connect.rs LINE",
        "connect.rs WAIT",
        "messages.rs LAST_WORDS",
        "metrics.rs CLIENTS",
        "metrics.rs LAST_ANSWERS",
        "metrics.rs SILENCE",
        "programs/command/mod.rs GREEN",
        "programs/command/mod.rs LONGEST",
        "programs/command/output.rs IN_MEMORY",
        "programs/command/session.rs ADMISSION",
        "signals.rs FORCED",
        "signals.rs TOGETHER",
        "terminal.rs FLUSH",
        "terminal.rs LINE",
        "terminal.rs UNSEEN",
        "token.rs LENGTH",
    ];
    let no_limits = [
        // How much is done or looked at at once.
        "lossy.rs WHOLE",
        "programs/command/descendants.rs LOOKS",
        "programs/command/output.rs PIECE",
        "programs/command/session.rs CHUNK",
        "programs/command/session.rs LENGTH",
        // Codes.
        "main.rs WRONG_USAGE",
    ];
    let all = limits.iter().chain(&no_limits);
    let known: BTreeSet<_> = all.map(|constant| (*constant).to_owned()).collect();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let found: BTreeSet<_> = constants(&sources).into_iter().collect();
    assert_eq!(
        found, known,
        "limits need a row in limits.md, others a place here"
    );
}
