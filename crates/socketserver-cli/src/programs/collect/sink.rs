//! The output for collected messages: stdout, or a file that is rotated by size.
//!
//! A failed write leaves only whole messages in a regular file, and the caller can repeat it. No
//! function of this file waits for space on a disk.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Access, access};
use rustix::io::Errno;

use crate::reopen;

/// Bytes of pending messages at which they are written.
const BATCH: usize = 64 << 10;

/// Checks that a file can be appended to or created, without a change to the file system.
pub(super) fn check(path: &Path) -> io::Result<()> {
    if path.try_exists()? {
        if path.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        return Ok(access(path, Access::WRITE_OK)?);
    }
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    let parent = parent.unwrap_or(Path::new("."));
    Ok(access(parent, Access::WRITE_OK | Access::EXEC_OK)?)
}

/// Returns true if an error is temporary: it ends when the resource is free again.
pub(super) fn is_full(error: &io::Error) -> bool {
    let kinds = [
        io::ErrorKind::StorageFull,
        io::ErrorKind::QuotaExceeded,
        // RLIMIT_FSIZE: a new file is below the limit again.
        io::ErrorKind::FileTooLarge,
        io::ErrorKind::OutOfMemory,
    ];
    let no_descriptor = [Errno::MFILE, Errno::NFILE];
    kinds.contains(&error.kind())
        || Errno::from_io_error(error).is_some_and(|errno| no_descriptor.contains(&errno))
}

pub(super) struct Sink {
    /// The path of the file. `None` for stdout, which cannot be reopened.
    path: Option<PathBuf>,
    /// `None` between two files, while the second one could not be opened yet.
    file: Option<File>,
    /// True if each message is a line. A line end is then added to a file whose last line has none.
    lines: bool,
    /// Messages that have not been written completely.
    pending: Vec<u8>,
    /// Offsets in `pending` at which messages end.
    ends: VecDeque<usize>,
    /// Number of bytes of `pending` that are in the file already.
    written: usize,
    /// Length of the file in bytes, with the pending messages.
    len: u64,
    limit: Option<u64>,
    keep: u32,
}

impl Sink {
    pub(super) fn stdout() -> io::Result<Self> {
        let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        Ok(Self {
            path: None,
            file: Some(file),
            lines: false,
            pending: Vec::new(),
            ends: VecDeque::new(),
            written: 0,
            len: 0,
            limit: None,
            keep: 0,
        })
    }

    pub(super) fn file(
        path: &Path,
        lines: bool,
        limit: Option<u64>,
        keep: u32,
    ) -> io::Result<Self> {
        let mut sink = Self {
            path: Some(path.into()),
            file: None,
            lines,
            limit,
            keep,
            ..Self::stdout()?
        };
        sink.open()?;
        Ok(sink)
    }

    /// Returns the name of the output for log messages.
    pub(super) fn name(&self) -> String {
        match &self.path {
            Some(path) => path.display().to_string(),
            None => "stdout".into(),
        }
    }

    /// Adds a message, and writes the pending ones if they are `BATCH` bytes or more. After an
    /// error the message has not been added.
    pub(super) fn write(&mut self, message: &[u8]) -> io::Result<()> {
        if self.pending.len() >= BATCH {
            self.flush()?;
        }
        let added = self.len + message.len() as u64;
        // A message is never split. A message above the limit gets a file of its own.
        if self.limit.is_some_and(|limit| added > limit) && self.len > 0 {
            self.rotate()?;
        }
        self.put(message);
        Ok(())
    }

    fn put(&mut self, message: &[u8]) {
        self.pending.extend_from_slice(message);
        self.ends.push_back(self.pending.len());
        self.len += message.len() as u64;
    }

    /// Writes all pending messages. After an error, a regular file contains only whole messages,
    /// and the others stay pending for the next attempt.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.open()?;
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        while self.written < self.pending.len() {
            match file.write(&self.pending[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.written += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Another process has made the descriptor non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let _ = poll(&mut [PollFd::new(file, PollFlags::OUT)], None);
                }
                Err(error) => {
                    self.cut_back();
                    return Err(error);
                }
            }
        }
        self.pending.clear();
        self.ends.clear();
        self.written = 0;
        Ok(())
    }

    /// Removes an incomplete message from the end of the file.
    fn cut_back(&mut self) {
        let mut whole = 0;
        while let Some(&end) = self.ends.front()
            && end <= self.written
        {
            whole = end;
            self.ends.pop_front();
        }
        let part = self.written - whole;
        if part > 0
            && let Some(file) = &mut self.file
            && cut(file, part as u64).is_ok()
        {
            self.written = whole;
        }
        self.pending.drain(..whole);
        self.written -= whole;
        self.ends.iter_mut().for_each(|end| *end -= whole);
    }

    /// Reopens the path, because the file may have been moved. Pending messages go to the old file
    /// if the disk has space. After an error the sink keeps the old file.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let new = reopen::open(path)?;
        let _ = self.flush();
        self.file = Some(new);
        self.begin();
        Ok(())
    }

    fn open(&mut self) -> io::Result<()> {
        if let (None, Some(path)) = (&self.file, &self.path) {
            self.file = Some(reopen::open(path)?);
            self.begin();
        }
        Ok(())
    }

    /// Reads the length and the end of a file that has just been opened.
    fn begin(&mut self) {
        let (Some(file), Some(path)) = (&self.file, &self.path) else {
            return;
        };
        let Ok(found) = file.metadata() else {
            return;
        };
        let pending = (self.pending.len() - self.written) as u64;
        self.len = found.len() + pending;
        if self.lines && found.is_file() && found.len() > 0 && !ends_line(path, found.len()) {
            tracing::warn!(
                "{} does not end with a line end, as if writing it had been interrupted: the next message \
                 begins a line of its own",
                path.display()
            );
            // The line end goes before the pending messages.
            self.pending.insert(self.written, b'\n');
            self.ends.iter_mut().for_each(|end| *end += 1);
            self.ends.push_front(self.written + 1);
            self.len += 1;
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.flush()?;
        let Some(path) = &self.path else {
            return Ok(());
        };
        for n in (1..self.keep).rev() {
            found(fs::rename(self.old(path, n), self.old(path, n + 1)))?;
        }
        // The file may have been moved already.
        found(if self.keep == 0 {
            fs::remove_file(path)
        } else {
            fs::rename(path, self.old(path, 1))
        })?;
        // From here on, a repeated attempt only opens the new file.
        self.file = None;
        self.len = 0;
        self.open()
    }

    /// Returns the name of the `n`th file before the current one.
    fn old(&self, path: &Path, n: u32) -> PathBuf {
        let mut name = OsString::from(path);
        name.push(format!(".{n}"));
        name.into()
    }
}

/// Removes `bytes` bytes from the end of a regular file.
fn cut(file: &mut File, bytes: u64) -> io::Result<()> {
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    file.set_len(found.len().saturating_sub(bytes))?;
    // Without O_APPEND the next write would leave a hole.
    let back = i64::try_from(bytes).map_err(io::Error::other)?;
    file.seek(SeekFrom::Current(-back))?;
    Ok(())
}

/// Returns true if the last byte is a line end, or if the file cannot be read.
fn ends_line(path: &Path, len: u64) -> bool {
    let mut last = [b'\n'];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut last, len - 1));
    read.is_err() || last == [b'\n']
}

/// Treats a missing file as success.
fn found(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_rotated_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        fs::write(&path, "old|").unwrap();
        let mut sink = Sink::file(&path, false, Some(10), 2).unwrap();
        for message in [
            "aaaa|",
            "bbbb|",
            "c|",
            "a message that is too long|",
            "d|",
            "e|",
        ] {
            sink.write(message.as_bytes()).unwrap();
        }
        sink.flush().unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).ok();
        assert_eq!(read("out").unwrap(), "d|e|");
        assert_eq!(read("out.1").unwrap(), "a message that is too long|");
        assert_eq!(read("out.2").unwrap(), "bbbb|c|");
        assert_eq!(read("out.3"), None);
    }

    #[test]
    fn a_file_that_was_moved_away_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let mut sink = Sink::file(&path, false, Some(10), 2).unwrap();
        sink.write(b"aaaaaaaa|").unwrap();
        sink.flush().unwrap();
        fs::rename(&path, dir.path().join("elsewhere")).unwrap();
        sink.write(b"bb|").unwrap();
        sink.flush().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"bb|");
    }

    #[test]
    fn without_a_limit_it_grows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let mut sink = Sink::file(&path, false, None, 5).unwrap();
        for _ in 0..1000 {
            sink.write(&[b'x'; 1000]).unwrap();
        }
        sink.flush().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 1_000_000);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_full_disk_is_an_error_that_can_be_repeated() {
        let mut sink = Sink::file(Path::new("/dev/full"), true, None, 0).unwrap();
        sink.write(b"x\n").unwrap();
        for _ in 0..3 {
            assert!(is_full(&sink.flush().unwrap_err()));
        }
        assert_eq!(sink.pending, b"x\n");
    }

    #[test]
    fn half_a_message_is_cut_off_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        for append in [true, false] {
            // A shell opens a file this way for `>>` and `>`.
            let mut options = fs::OpenOptions::new();
            let options = match append {
                true => options.append(true),
                false => options.write(true).truncate(true),
            };
            let mut sink = Sink::stdout().unwrap();
            sink.file = Some(options.create(true).open(&path).unwrap());
            fs::write(&path, "").unwrap();
            for message in ["one|", "two|", "three|"] {
                sink.write(message.as_bytes()).unwrap();
            }
            // The part that a write has stored before the disk was full.
            sink.file
                .as_mut()
                .unwrap()
                .write_all(b"one|two|th")
                .unwrap();
            sink.written = 10;
            sink.cut_back();
            assert_eq!(fs::read(&path).unwrap(), b"one|two|");
            assert_eq!((&sink.pending[..], sink.written), (&b"three|"[..], 0));
            sink.flush().unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"one|two|three|");
        }
    }

    #[test]
    fn a_line_without_its_end_is_ended_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        for (before, lines, after) in [
            ("whole\nhal", true, "whole\nhal\nnew\n"),
            ("whole\n", true, "whole\nnew\n"),
            ("", true, "new\n"),
            // Chunks have no line ends, so none can be missing.
            ("chunk", false, "chunknew\n"),
        ] {
            fs::write(&path, before).unwrap();
            let mut sink = Sink::file(&path, lines, None, 0).unwrap();
            sink.write(b"new\n").unwrap();
            sink.flush().unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), after);
        }
    }
}
