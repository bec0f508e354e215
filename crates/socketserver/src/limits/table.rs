//! A parser of `limits.md` for tests. The tests of the programs include this file, too.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// A row of a table in `limits.md`.
#[derive(Clone, Debug)]
pub(crate) struct Row<'t> {
    /// The heading above the row.
    pub(crate) section: &'t str,
    pub(crate) limit: &'t str,
    pub(crate) flags: &'t str,
    pub(crate) default: &'t str,
    pub(crate) reached: &'t str,
    pub(crate) counted: &'t str,
    pub(crate) changed: &'t str,
}

/// Returns all rows. A row with a wrong number of cells is a mistake.
pub(crate) fn rows(text: &str) -> Vec<Row<'_>> {
    let (mut section, mut rows) = ("", Vec::new());
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading;
        }
        let Some(cells) = line.strip_prefix("| ").and_then(|l| l.strip_suffix(" |")) else {
            assert!(!line.starts_with("| "), "not a complete row: {line}");
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

/// Returns the parts of a cell in backticks.
pub(crate) fn code(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// A pair of the name of a limit and the constant that is its default: `file.rs NAME`.
pub(crate) type Constant = (&'static str, &'static str);

/// Checks the rows against the constants in the sources of a crate. Every constant with a number or
/// a duration must be listed as a limit or as no limit.
pub(crate) fn hold(rows: &[Row<'_>], sources: &Path, limits: &[Constant], no_limits: &[&str]) {
    let found = constants(sources);
    for (limit, constant) in limits {
        let Some(written) = found.get(*constant) else {
            panic!("constant {constant} of the limit {limit} does not exist");
        };
        let row = rows.iter().find(|row| row.limit == *limit);
        let default = row.map_or("no row", |row| row.default);
        let forms = forms(written);
        assert!(
            forms.iter().any(|way| way == default),
            "{limit}: the table has {default}, but {constant} is {written}, written {forms:?}"
        );
    }
    for constant in no_limits {
        assert!(
            found.contains_key(*constant),
            "constant {constant} does not exist"
        );
    }
    for constant in found.keys() {
        let is_limit = limits.iter().any(|(_, limit)| limit == constant);
        let is_none = no_limits.contains(&&**constant);
        assert!(
            is_limit || is_none,
            "{constant} is not classified: if it is a limit, add a row to limits.md and list both in this \
             test; otherwise list it among the constants that are not limits"
        );
        assert!(!is_limit || !is_none, "{constant} is listed twice");
    }
}

/// Returns the constants with a number or a duration as written in the sources, without constants
/// of tests.
fn constants(sources: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    walk(sources, &mut |path| {
        let name = path
            .strip_prefix(sources)
            .expect("the path is inside the sources")
            .display();
        let text = fs::read_to_string(path).expect("the file is readable");
        let code = text.split("#[cfg(test)]\nmod tests {").next();
        for line in code.unwrap_or_default().lines() {
            if let Some((constant, value)) = constant(line.trim()) {
                found.insert(format!("{name} {constant}"), value.to_owned());
            }
        }
    });
    found
}

fn walk(dir: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(dir).expect("the directory is readable") {
        let path = entry.expect("the entry is readable").path();
        if path.is_dir() {
            walk(&path, visit);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            visit(&path);
        }
    }
}

/// Returns the name and the value in a line like `pub const NAME: usize = 1 << 20;`.
fn constant(line: &str) -> Option<(&str, &str)> {
    let (before, rest) = line.split_once("const ")?;
    let (name, rest) = rest.split_once(": ")?;
    let (kind, value) = rest.split_once(" = ")?;
    let kinds = ["u8", "u16", "u32", "u64", "usize", "Duration"];
    let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let is_constant = before.is_empty() || before.starts_with("pub");
    let is_constant = is_constant && name.chars().all(is_name) && kinds.contains(&kind);
    is_constant.then_some((name, value.strip_suffix(';').unwrap_or(value)))
}

/// Returns the forms in which the table may write a value from the code.
fn forms(value: &str) -> Vec<String> {
    let call = value
        .strip_suffix(')')
        .and_then(|call| call.split_once('('));
    match call.unwrap_or(("", value)) {
        ("Duration::from_secs", n) => count(n)
            .map(Duration::from_secs)
            .map(time)
            .into_iter()
            .collect(),
        ("Duration::from_millis", n) => count(n)
            .map(Duration::from_millis)
            .map(time)
            .into_iter()
            .collect(),
        ("", n) => count(n).map_or(Vec::new(), |n| vec![number(n), bytes(n)]),
        _ => Vec::new(),
    }
}

/// Evaluates a number like `65_507`, `8 * 1024` or `1 << 20`.
fn count(value: &str) -> Option<u64> {
    if let Some((n, shift)) = value.split_once(" << ") {
        return Some(count(n)? << count(shift)?);
    }
    let factors = value.split(" * ");
    factors
        .map(|n| n.replace('_', "").parse::<u64>().ok())
        .product()
}

/// Formats a number: `16,384`.
pub(crate) fn number(n: impl TryInto<u64>) -> String {
    let Ok(n) = n.try_into() else {
        unreachable!("limits are not negative");
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

/// Formats a size: `64 KiB` or `1,000 bytes`.
pub(crate) fn bytes(n: impl TryInto<u64>) -> String {
    let Ok(n) = n.try_into() else {
        unreachable!("limits are not negative");
    };
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let whole = |(_, shift): &&(&str, u32)| n >> shift > 0 && n.is_multiple_of(1 << shift);
    match units.iter().find(whole) {
        Some((unit, shift)) => format!("{} {unit}", number(n >> shift)),
        None => format!("{} bytes", number(n)),
    }
}

/// Formats a duration: `5 min`, `30 s` or `500 ms`.
pub(crate) fn time(time: Duration) -> String {
    let millis = time.as_millis();
    match millis {
        _ if !millis.is_multiple_of(1000) => format!("{millis} ms"),
        // One minute is written as `60 s`.
        _ if millis.is_multiple_of(60_000) && millis > 60_000 => format!("{} min", millis / 60_000),
        _ => format!("{} s", millis / 1000),
    }
}
