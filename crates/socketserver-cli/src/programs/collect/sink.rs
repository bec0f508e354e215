//! Where collected messages are written: stdout, or a file that is rotated by size.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

/// Whether a file can be appended to, or made; nothing is touched.
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

pub(super) enum Sink {
    Stdout(BufWriter<io::Stdout>),
    File(Rotated),
}

pub(super) struct Rotated {
    path: PathBuf,
    file: BufWriter<File>,
    /// How long the file is with what is still buffered.
    len: u64,
    limit: Option<u64>,
    keep: u32,
}

impl Sink {
    pub(super) fn stdout() -> Self {
        Self::Stdout(BufWriter::with_capacity(64 << 10, io::stdout()))
    }

    pub(super) fn file(path: &Path, limit: Option<u64>, keep: u32) -> io::Result<Self> {
        let file = open(path)?;
        let len = file.metadata()?.len();
        Ok(Self::File(Rotated {
            path: path.into(),
            file: buffered(file),
            len,
            limit,
            keep,
        }))
    }

    pub(super) fn write(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout(stdout) => stdout.write_all(message),
            Self::File(file) => file.write(message),
        }
    }

    /// Hands everything to the kernel.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(stdout) => stdout.flush(),
            Self::File(file) => file.file.flush(),
        }
    }
}

impl Rotated {
    fn write(&mut self, message: &[u8]) -> io::Result<()> {
        let added = self.len + message.len() as u64;
        // A message is never split; one that is too long has a file for itself.
        if self.limit.is_some_and(|limit| added > limit) && self.len > 0 {
            self.rotate()?;
        }
        self.file.write_all(message)?;
        self.len += message.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file.flush()?;
        for n in (1..self.keep).rev() {
            found(fs::rename(self.old(n), self.old(n + 1)))?;
        }
        // Somebody may have moved it away already.
        found(if self.keep == 0 {
            fs::remove_file(&self.path)
        } else {
            fs::rename(&self.path, self.old(1))
        })?;
        self.file = buffered(open(&self.path)?);
        self.len = 0;
        Ok(())
    }

    /// The name of the `n`th file before the present one.
    fn old(&self, n: u32) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(format!(".{n}"));
        name.into()
    }
}

/// A file that is not there needs no further care.
fn found(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// What clients send is nobody else's business.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

fn buffered(file: File) -> BufWriter<File> {
    BufWriter::with_capacity(64 << 10, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_rotated_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        fs::write(&path, "old|").unwrap();
        let mut sink = Sink::file(&path, Some(10), 2).unwrap();
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
        let mut sink = Sink::file(&path, Some(10), 2).unwrap();
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
        let mut sink = Sink::file(&path, None, 5).unwrap();
        for _ in 0..1000 {
            sink.write(&[b'x'; 1000]).unwrap();
        }
        sink.flush().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 1_000_000);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let mut sink = Sink::file(Path::new("/dev/full"), None, 0).unwrap();
        let written = sink.write(b"x").and_then(|()| sink.flush());
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
