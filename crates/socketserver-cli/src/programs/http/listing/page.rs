//! The page of a list, generated as it is read.

use std::fmt::Write;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use socketserver::greenroom;

use super::names::{MOST, Named, Names};
use super::unread::Unread;
use crate::programs::http::html::{self, Escaped};
use crate::programs::http::request_path::{Target, encode};

/// Returns the whole page of a short list.
pub(super) fn whole(target: &Target, names: &Names) -> String {
    let mut out = beginning(target);
    for named in names.iter() {
        row(&mut out, named);
    }
    out + &end(names)
}

/// The page of a long list, in pieces. Only the names are kept in memory.
pub(super) struct Pieces {
    names: Arc<Unread>,
    /// The index of the next name.
    next: usize,
    piece: String,
    /// The number of bytes of the piece that were read.
    read: usize,
    is_over: bool,
}

impl Pieces {
    pub fn new(target: &Target, names: Arc<Unread>) -> Self {
        Self {
            names,
            next: 0,
            piece: beginning(target),
            read: 0,
            is_over: false,
        }
    }

    /// Generates text until there are `most` bytes, or the list ends.
    fn fill(&mut self, most: usize) -> io::Result<()> {
        self.piece.drain(..self.read);
        self.read = 0;
        let piece = &mut self.piece;
        let (next, is_over) = (&mut self.next, &mut self.is_over);
        self.names.with(|names| {
            while piece.len() < most && !*is_over {
                match names.get(*next) {
                    Some(named) => row(piece, named),
                    None => {
                        piece.push_str(&end(names));
                        *is_over = true;
                    }
                }
                *next += 1;
            }
        })
    }
}

impl Read for Pieces {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.piece.len() - self.read < buf.len() && !self.is_over {
            // The write to a client that reads fast never waits: other requests get the worker here.
            greenroom::yield_now();
            self.fill(buf.len())?;
        }
        let rest = &self.piece.as_bytes()[self.read..];
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        self.read += n;
        Ok(n)
    }
}

fn beginning(target: &Target) -> String {
    let mut out = html::beginning(&title(target));
    out += "<h1>";
    // Each parent directory is a relative link: `./` is this directory, and `../` the one above.
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
    out
}

fn title(target: &Target) -> String {
    let mut title = String::from("/");
    for name in target.names() {
        title += &String::from_utf8_lossy(name);
        title.push('/');
    }
    title
}

fn row(out: &mut String, named: Named<'_>) {
    let slash = if named.is_directory { "/" } else { "" };
    let name = String::from_utf8_lossy(named.name);
    let size = match named.is_directory {
        true => String::new(),
        false => size(named.bytes),
    };
    // The `./` keeps a name with a colon from being read as a scheme.
    let class = if named.is_directory {
        " class=\"directory\""
    } else {
        ""
    };
    let _ = writeln!(
        out,
        "<tr{class}><td><a href=\"./{}{slash}\">{}{slash}</a></td><td class=\"size\">{size}</td>\
         <td class=\"time\">{}</td></tr>",
        encode(named.name),
        Escaped(&name),
        time(named.modified),
    );
}

fn end(names: &Names) -> String {
    let summary = summary(names);
    format!("</tbody>\n</table>\n<p>{summary}</p>\n{}", html::END)
}

fn summary(names: &Names) -> String {
    if names.is_cut {
        return format!(
            "There is more: a list has {MOST} names at most, and which of them is not said by their \
             order."
        );
    }
    let (mut directories, mut files, mut bytes) = (0_usize, 0_usize, 0_u64);
    for named in names.iter() {
        if named.is_directory {
            directories += 1;
        } else {
            files += 1;
            bytes = bytes.saturating_add(named.bytes);
        }
    }
    if directories + files == 0 {
        return "There is nothing here.".into();
    }
    let counted = |count: usize, one: &str, many: &str| match count {
        0 => None,
        1 => Some(format!("1 {one}")),
        count => Some(format!("{count} {many}")),
    };
    let files = counted(files, "file", "files").map(|files| format!("{files}, {}", size(bytes)));
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

/// Formats a time to the minute, with a year of four digits.
fn time(seconds: i64) -> String {
    let seconds = u64::try_from(seconds).unwrap_or(0).min(253_402_300_799);
    let time = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds));
    time.to_string()[..16].replace('T', " ")
}

#[cfg(test)]
mod tests {
    use super::super::unread::Lists;
    use super::*;

    #[test]
    fn summary_counts_files_and_directories() {
        let (directory, file) = (("a", true, 4096), ("a", false, 1));
        for (entries, expected) in [
            (vec![], "There is nothing here."),
            (vec![directory], "1 directory"),
            (vec![("a", false, 5)], "1 file, 5 B"),
            (
                vec![directory, ("a", false, u64::MAX), file],
                "1 directory; 2 files, 15.9 EiB",
            ),
        ] {
            assert_eq!(summary(&Names::of(&entries)), expected);
        }
        let mut names = Names::of(&[file]);
        names.is_cut = true;
        assert!(summary(&names).contains("There is more"));
    }

    #[test]
    fn sizes_and_times_are_readable() {
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

    #[test]
    fn pieces_equal_the_whole_page_for_every_read_size() {
        let names = || Names::of(&[("a b", false, 1), ("c", true, 2), ("<d>", false, 3)]);
        let target = Target::of("/x/y/").unwrap();
        let expected = whole(&target, &names());
        for at_a_time in [1, 7, 100, 1 << 14] {
            let lists = Lists::default();
            let mut pieces = Pieces::new(&target, lists.keep(names()).unwrap());
            let (mut text, mut buf) = (Vec::new(), vec![0; at_a_time]);
            loop {
                match pieces.read(&mut buf).unwrap() {
                    0 => break,
                    n => text.extend_from_slice(&buf[..n]),
                }
            }
            assert_eq!(String::from_utf8(text).unwrap(), expected, "{at_a_time}");
        }
    }
}
