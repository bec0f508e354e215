//! `limits.md` as data, and what stands in it as text. The programs' test has this file, too.

use std::fs;
use std::path::Path;
use std::time::Duration;

/// A row of the table.
#[derive(Clone, Debug)]
pub(crate) struct Row<'t> {
    /// The heading that it stands under.
    pub(crate) section: &'t str,
    pub(crate) limit: &'t str,
    pub(crate) flags: &'t str,
    pub(crate) default: &'t str,
    pub(crate) reached: &'t str,
    pub(crate) counted: &'t str,
    pub(crate) changed: &'t str,
}

/// All rows. A line that looks like one and has not as many cells is a mistake.
pub(crate) fn rows(text: &str) -> Vec<Row<'_>> {
    let (mut section, mut rows) = ("", Vec::new());
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading;
        }
        let Some(cells) = line.strip_prefix("| ").and_then(|l| l.strip_suffix(" |")) else {
            assert!(!line.starts_with("| "), "no row: {line}");
            continue;
        };
        let cells: Vec<_> = cells.split(" | ").map(str::trim).collect();
        let [limit, flags, default, reached, counted, changed] = cells[..] else {
            panic!("{} cells: {line}", cells.len());
        };
        if limit != "Limit" {
            rows.push(Row {
                section,
                limit,
                flags,
                default,
                reached,
                counted,
                changed,
            });
        }
    }
    rows
}

/// What stands in backticks.
pub(crate) fn code(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The numbers and times among the constants of a crate, as `file.rs NAME`, without those of tests.
pub(crate) fn constants(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    walk(dir, &mut |path| {
        let name = path.strip_prefix(dir).expect("it is below").display();
        let text = fs::read_to_string(path).expect("it can be read");
        let code = text
            .split("#[cfg(test)]\nmod tests")
            .next()
            .unwrap_or_default();
        for line in code.lines().map(str::trim) {
            let Some((before, after)) = line.split_once("const ") else {
                continue;
            };
            let Some((constant, rest)) = after.split_once(": ") else {
                continue;
            };
            let kinds = [
                "usize",
                "u8",
                "u16",
                "u32",
                "u64",
                "Duration",
                "std::ops::Range",
            ];
            let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
            let is_constant =
                (before.is_empty() || before.starts_with("pub")) && constant.chars().all(is_name);
            if is_constant && kinds.iter().any(|kind| rest.starts_with(kind)) {
                found.push(format!("{name} {constant}"));
            }
        }
    });
    found.sort_unstable();
    found
}

fn walk(dir: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(dir).expect("the sources are here") {
        let path = entry.expect("it can be read").path();
        if path.is_dir() {
            walk(&path, visit);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            visit(&path);
        }
    }
}

/// `16,384`
pub(crate) fn number(n: impl TryInto<u64>) -> String {
    let Ok(n) = n.try_into() else {
        unreachable!("no limit is below zero");
    };
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `64 KiB`, or `1,000 bytes`
pub(crate) fn bytes(n: impl TryInto<u64>) -> String {
    let Ok(n) = n.try_into() else {
        unreachable!("no limit is below zero");
    };
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let whole = |(_, shift): &&(&str, u32)| n >> shift > 0 && n.is_multiple_of(1 << shift);
    match units.iter().find(whole) {
        Some((unit, shift)) => format!("{} {unit}", number(n >> shift)),
        None => format!("{} bytes", number(n)),
    }
}

/// `5 min`, `30 s` or `500 ms`
pub(crate) fn time(time: Duration) -> String {
    let millis = time.as_millis();
    match millis {
        _ if millis % 1000 > 0 => format!("{millis} ms"),
        // A minute is written in seconds.
        _ if millis % 60_000 == 0 && millis > 60_000 => format!("{} min", millis / 60_000),
        _ => format!("{} s", millis / 1000),
    }
}
