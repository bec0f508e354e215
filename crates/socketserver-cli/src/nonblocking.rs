//! Output that never blocks: bytes that cannot be written at once are dropped.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};

/// A standard output stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// The number of bytes that a pipe takes whole or not at all: pipe(7), `PIPE_BUF`.
const WHOLE: usize = 4096;

impl Stream {
    pub(crate) fn is_terminal(self) -> bool {
        match self {
            Self::Stdout => io::stdout().is_terminal(),
            Self::Stderr => io::stderr().is_terminal(),
        }
    }

    /// Writes the bytes that can be written at once, and returns their number.
    pub(crate) fn put(self, bytes: &[u8]) -> usize {
        // The locks separate the output of several threads.
        match self {
            Self::Stdout => self.put_locked(&mut io::stdout().lock(), bytes),
            Self::Stderr => self.put_locked(&mut io::stderr().lock(), bytes),
        }
    }

    /// Writes all bytes and blocks until they are written. Takes no lock, so that `put` of other
    /// threads does not wait.
    pub(crate) fn write_all(self, bytes: &[u8]) -> io::Result<()> {
        let own = match self {
            Self::Stdout => io::stdout().as_fd().try_clone_to_owned()?,
            Self::Stderr => io::stderr().as_fd().try_clone_to_owned()?,
        };
        File::from(own).write_all(bytes)
    }

    fn put_locked(self, shared: &mut (impl Write + AsFd), bytes: &[u8]) -> usize {
        // Buffered bytes are written first.
        let _ = shared.flush();
        let mut taken = 0;
        for piece in bytes.chunks(WHOLE) {
            let n = match self.own(shared.as_fd()) {
                Some(mut own) => own.write(piece).unwrap_or(0),
                None if has_room(shared) => {
                    let written = shared.write_all(piece).and_then(|()| shared.flush());
                    written.map_or(0, |()| piece.len())
                }
                None => 0,
            };
            taken += n;
            if n < piece.len() {
                break;
            }
        }
        taken
    }

    /// Returns a descriptor of its own that does not block, for a terminal or a pipe that can be
    /// reopened. `O_NONBLOCK` on the inherited descriptor would affect every process that shares
    /// it.
    fn own(self, shared: BorrowedFd<'_>) -> Option<&'static File> {
        static OWN: [OnceLock<Option<File>>; 2] = [const { OnceLock::new() }; 2];
        let reopen = || {
            let kind = FileType::from_raw_mode(fstat(shared).ok()?.st_mode);
            if kind != FileType::Fifo && !self.is_terminal() {
                return None;
            }
            let path = format!("/proc/self/fd/{}", self as i32 + 1);
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            Some(open(path, flags, Mode::empty()).ok()?.into())
        };
        OWN[self as usize].get_or_init(reopen).as_ref()
    }
}

/// Returns true if a write would not block.
fn has_room(to: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(to, PollFlags::OUT)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    matches!(poll(&mut fds, Some(&now)), Ok(1)) && fds[0].revents().contains(PollFlags::OUT)
}
