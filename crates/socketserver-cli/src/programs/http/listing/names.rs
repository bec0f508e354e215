//! The names in a directory, in bounded memory and in the order of the list.

use std::cmp::Reverse;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Dir, FileType, Stat};

use crate::programs::http::document_root::{Tree, kind};
use crate::programs::http::request_path::is_hidden;

/// The maximum number of names in a list. Each costs a lookup of its file.
pub(super) const MOST: usize = 10_000;
/// The number of entries to read for each name of the maximum. Hidden entries are not shown, but
/// skipping them takes time.
const PASSED_OVER: usize = 10;

/// The names in a list, each with its metadata.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// All names, one after another.
    text: Vec<u8>,
    entries: Vec<Entry>,
    /// True if the directory contains further names.
    pub is_cut: bool,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    start: u32,
    length: u16,
    is_directory: bool,
    bytes: u64,
    modified: i64,
}

/// One name of a list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Named<'a> {
    pub name: &'a [u8],
    pub is_directory: bool,
    pub bytes: u64,
    pub modified: i64,
}

/// The directory to list.
#[derive(Debug)]
pub(super) struct Place {
    pub tree: Tree,
    pub directory: OwnedFd,
    /// The path below the root.
    pub path: Vec<u8>,
    pub shows_hidden: bool,
}

impl Names {
    /// Reads a directory from its beginning, up to `most` names.
    pub fn read(place: &Place, most: usize) -> io::Result<Self> {
        let mut names = Self::default();
        for (seen, entry) in Dir::read_from(&place.directory)?.enumerate() {
            if seen == most * PASSED_OVER {
                names.is_cut = true;
                break;
            }
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..")
                || (is_hidden(name.to_bytes()) && !place.shows_hidden)
            {
                continue;
            }
            if names.len() == most {
                names.is_cut = true;
                break;
            }
            // A list has nothing that cannot be requested: no links that lead out, pipes, sockets.
            if let Some(stat) = place.tree.look(&place.directory, &place.path, name) {
                names.push(name.to_bytes(), &stat);
            }
        }
        names.text.shrink_to_fit();
        names.entries.shrink_to_fit();
        Ok(names)
    }

    fn push(&mut self, name: &[u8], stat: &Stat) {
        let is_directory = match kind(stat) {
            FileType::Directory => true,
            FileType::RegularFile => false,
            _ => return,
        };
        // A name has at most 255 bytes, and there are at most `MOST` names.
        let (Ok(start), Ok(length)) = (self.text.len().try_into(), name.len().try_into()) else {
            return;
        };
        self.text.extend_from_slice(name);
        self.entries.push(Entry {
            start,
            length,
            is_directory,
            bytes: u64::try_from(stat.st_size).unwrap_or(0),
            modified: stat.st_mtime,
        });
    }

    /// Sorts directories before files, then by name without case, then by bytes.
    pub fn sort(&mut self) {
        let Self { text, entries, .. } = self;
        entries.sort_unstable_by_key(|entry| entry.name(text));
        // Both sorts are stable. Each folded name is computed once.
        entries
            .sort_by_cached_key(|entry| String::from_utf8_lossy(entry.name(text)).to_lowercase());
        entries.sort_by_key(|entry| Reverse(entry.is_directory));
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns the memory in use.
    pub fn size(&self) -> usize {
        self.text.capacity() + self.entries.capacity() * size_of::<Entry>()
    }

    pub fn get(&self, index: usize) -> Option<Named<'_>> {
        let entry = self.entries.get(index)?;
        Some(Named {
            name: entry.name(&self.text),
            is_directory: entry.is_directory,
            bytes: entry.bytes,
            modified: entry.modified,
        })
    }

    pub fn iter(&self) -> impl Iterator<Item = Named<'_>> {
        (0..self.len()).filter_map(|index| self.get(index))
    }
}

impl Entry {
    fn name<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        let start = self.start as usize;
        &text[start..start + usize::from(self.length)]
    }
}

#[cfg(test)]
impl Names {
    /// Creates files and directories with these names and sizes.
    pub fn of(entries: &[(&str, bool, u64)]) -> Self {
        let mut names = Self::default();
        for (name, is_directory, bytes) in entries {
            names.entries.push(Entry {
                start: names.text.len().try_into().unwrap(),
                length: name.len().try_into().unwrap(),
                is_directory: *is_directory,
                bytes: *bytes,
                modified: 0,
            });
            names.text.extend_from_slice(name.as_bytes());
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_first_and_names_are_folded() {
        let mut names = Names::of(&[
            ("b", false, 1),
            ("Ä", false, 2),
            ("B", false, 3),
            ("z", true, 4),
            ("ä", false, 5),
            ("A", true, 6),
        ]);
        names.sort();
        let order: Vec<_> = names
            .iter()
            .map(|one| String::from_utf8_lossy(one.name).into_owned())
            .collect();
        assert_eq!(order, ["A", "z", "B", "b", "Ä", "ä"]);
        assert_eq!(
            names.get(1).unwrap().bytes,
            4,
            "the metadata stays with its name"
        );
    }
}
