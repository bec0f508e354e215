//! What is in a directory, as a page.

use std::cmp::Ordering;
use std::ffi::CString;
use std::fmt::Write;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{Dir, FileType, Stat};
use socketserver::Result;
use socketserver::http::Response;

use super::page::{Escaped, page};
use super::path::{Target, encode, is_hidden};
use super::root::kind;
use super::site::Site;

/// More than this nobody looks through, and each costs a look at its file.
const MOST: usize = 10_000;
const PASSED_OVER: usize = 10 * MOST;

struct Entry {
    name: CString,
    is_directory: bool,
    bytes: u64,
    modified: i64,
}

pub(super) fn of(site: &Site, target: &Target, directory: &OwnedFd) -> Result<Response> {
    let path = target.file();
    let mut entries = Vec::new();
    let mut is_cut = false;
    for (seen, entry) in Dir::read_from(directory)
        .map_err(io::Error::from)?
        .enumerate()
    {
        // Hidden names are no work to show, but some to pass over.
        if seen == PASSED_OVER {
            is_cut = true;
            break;
        }
        let entry = entry.map_err(io::Error::from)?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..")
            || (is_hidden(name.to_bytes()) && !site.shows_hidden)
        {
            continue;
        }
        if entries.len() == MOST {
            is_cut = true;
            break;
        }
        // What could not be asked for is not shown: links that lead out, pipes, sockets.
        if let Some(stat) = site.root.look(directory, &path, name) {
            entries.extend(Entry::of(name.to_owned(), &stat));
        }
    }
    entries.sort_by(Entry::order);
    Ok(page(&title(target), &body(target, &entries, is_cut)))
}

impl Entry {
    fn of(name: CString, stat: &Stat) -> Option<Self> {
        let is_directory = match kind(stat) {
            FileType::Directory => true,
            FileType::RegularFile => false,
            _ => return None,
        };
        Some(Self {
            name,
            is_directory,
            bytes: u64::try_from(stat.st_size).unwrap_or(0),
            modified: stat.st_mtime,
        })
    }

    /// Directories first; names as people sort them, and in one order in any case.
    fn order(&self, other: &Self) -> Ordering {
        let folded = |entry: &Self| entry.name.to_string_lossy().to_lowercase();
        (other.is_directory.cmp(&self.is_directory))
            .then_with(|| folded(self).cmp(&folded(other)))
            .then_with(|| self.name.cmp(&other.name))
    }
}

fn title(target: &Target) -> String {
    let mut title = String::from("/");
    for name in target.names() {
        title += &String::from_utf8_lossy(name);
        title.push('/');
    }
    title
}

fn body(target: &Target, entries: &[Entry], is_cut: bool) -> String {
    let mut out = String::from("<h1>");
    // Each directory on the way is a link, written from here: "./" is this one, "../" the one above.
    let depth = target.names().len();
    let up = |steps: usize| match steps {
        0 => "./".to_owned(),
        steps => "../".repeat(steps),
    };
    let _ = write!(out, "<a href=\"{}\">/</a>", up(depth));
    for (n, name) in target.names().iter().enumerate() {
        let name = String::from_utf8_lossy(name);
        let _ = write!(
            out,
            "<a href=\"{}\">{}/</a>",
            up(depth - n - 1),
            Escaped(&name)
        );
    }
    out += "</h1>\n<table>\n<thead><tr><th>Name</th><th class=\"size\">Size</th>\
            <th class=\"time\">Changed (UTC)</th></tr></thead>\n<tbody>\n";
    if depth > 0 {
        out += "<tr><td><a href=\"../\">..</a></td><td class=\"size\"></td><td class=\"time\"></td></tr>\n";
    }
    for entry in entries {
        let slash = if entry.is_directory { "/" } else { "" };
        let name = entry.name.to_string_lossy();
        let size = match entry.is_directory {
            true => String::new(),
            false => size(entry.bytes),
        };
        // The "./" keeps a name with a colon from being a scheme.
        let class = if entry.is_directory {
            " class=\"directory\""
        } else {
            ""
        };
        let _ = writeln!(
            out,
            "<tr{class}><td><a href=\"./{}{slash}\">{}{slash}</a></td><td class=\"size\">{size}</td>\
             <td class=\"time\">{}</td></tr>",
            encode(entry.name.to_bytes()),
            Escaped(&name),
            time(entry.modified),
        );
    }
    out += "</tbody>\n</table>\n";
    let _ = writeln!(out, "<p>{}</p>", summary(entries, is_cut));
    out
}

fn summary(entries: &[Entry], is_cut: bool) -> String {
    if entries.is_empty() {
        return "There is nothing here.".into();
    }
    if is_cut {
        return format!("There is more: only {MOST} names are shown.");
    }
    let directories = entries.iter().filter(|entry| entry.is_directory).count();
    let bytes = entries.iter().filter(|entry| !entry.is_directory);
    let bytes = bytes.fold(0, |sum: u64, entry| sum.saturating_add(entry.bytes));
    let counted = |count: usize, one: &str, many: &str| match count {
        0 => None,
        1 => Some(format!("1 {one}")),
        count => Some(format!("{count} {many}")),
    };
    let files = counted(entries.len() - directories, "file", "files")
        .map(|files| format!("{files}, {}", size(bytes)));
    let parts = [counted(directories, "directory", "directories"), files];
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    let mut tenths = u128::from(bytes) * 10;
    while tenths >= 10_240 {
        tenths /= 1024;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit]),
    }
}

/// To the minute; a year has four digits.
fn time(seconds: i64) -> String {
    let seconds = u64::try_from(seconds).unwrap_or(0).min(253_402_300_799);
    let time = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds));
    time.to_string()[..16].replace('T', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_is_counted() {
        let entry = |is_directory: bool, bytes| Entry {
            name: c"a".into(),
            is_directory,
            bytes,
            modified: 0,
        };
        for (entries, expected) in [
            (vec![], "There is nothing here."),
            (vec![entry(true, 4096)], "1 directory"),
            (vec![entry(false, 5)], "1 file, 5 B"),
            (
                vec![entry(true, 4096), entry(false, u64::MAX), entry(false, 1)],
                "1 directory; 2 files, 15.9 EiB",
            ),
        ] {
            assert_eq!(summary(&entries, false), expected);
        }
        assert!(summary(&[entry(false, 1)], true).contains("There is more"));
    }

    #[test]
    fn sizes_and_times_are_written_for_people() {
        for (bytes, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1 << 20, "1.0 MiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(size(bytes), expected);
        }
        assert_eq!(time(784_111_777), "1994-11-06 08:49");
        assert_eq!(time(-5), "1970-01-01 00:00");
        assert_eq!(time(i64::MAX), "9999-12-31 23:59");
    }
}
