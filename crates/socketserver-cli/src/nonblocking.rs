//! Output that never makes anybody wait: what is not taken at once is dropped.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};

/// Where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// What a pipe takes whole or not at all: pipe(7), `PIPE_BUF`.
const WHOLE: usize = 4096;

impl Stream {
    pub(crate) fn is_terminal(self) -> bool {
        match self {
            Self::Stdout => io::stdout().is_terminal(),
            Self::Stderr => io::stderr().is_terminal(),
        }
    }

    /// Writes as much as is taken at once, and says how much that was.
    pub(crate) fn put(self, bytes: &[u8]) -> usize {
        // The locks keep what several threads say apart.
        match self {
            Self::Stdout => self.put_locked(&mut io::stdout().lock(), bytes),
            Self::Stderr => self.put_locked(&mut io::stderr().lock(), bytes),
        }
    }

    /// Writes all of it, and waits for that. It takes no lock: what is put meanwhile waits for nothing.
    pub(crate) fn write_all(self, bytes: &[u8]) -> io::Result<()> {
        let own = match self {
            Self::Stdout => io::stdout().as_fd().try_clone_to_owned()?,
            Self::Stderr => io::stderr().as_fd().try_clone_to_owned()?,
        };
        File::from(own).write_all(bytes)
    }

    fn put_locked(self, shared: &mut (impl Write + AsFd), bytes: &[u8]) -> usize {
        // What went through the buffer before comes before this.
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

    /// A descriptor that does not block, where the other one may: a terminal or a pipe opened anew.
    /// To set `O_NONBLOCK` on the one that was inherited would set it for everybody who has it.
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

/// Whether something can be written without waiting.
fn has_room(to: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(to, PollFlags::OUT)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    matches!(poll(&mut fds, Some(&now)), Ok(1)) && fds[0].revents().contains(PollFlags::OUT)
}
