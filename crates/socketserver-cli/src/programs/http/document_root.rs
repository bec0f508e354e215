//! The directory that is served, and the only way to a file in it.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, open, openat, openat2, statat,
};
use rustix::io::Errno;

/// How symbolic links are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Symlinks {
    /// They are followed as long as they stay below the root: the kernel looks at each step, so that
    /// no link can be changed between a check and the opening.
    Confined,
    /// They lead where they lead.
    Followed,
}

/// The user whose rights apply to later lookups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rights {
    /// Those of the start.
    Kept,
    /// Those of another user, who may have fewer.
    GivenUp,
}

/// A directory by its path, which is looked up for each request: it may be a link that is flipped to
/// the next release, or be made anew.
///
/// One lookup with `open(2)` takes 0.7 microseconds; comparing by `stat(2)` whether it is still the
/// same directory takes 0.5, and a lock.
#[derive(Debug)]
pub(super) struct Root {
    /// Absolute: what `.` was at the start may be replaced, too.
    path: PathBuf,
    symlinks: Symlinks,
    /// The directory of the start, for a user that may not search the directories above it.
    fallback: Option<OwnedFd>,
    /// Readable while it was not told that the directory is missing. A descriptor, because forked
    /// children share it with each other: it is told once, whichever of them sees it first.
    untold: OwnedFd,
}

/// The directory as one request has found it. Renaming it changes nothing for that request.
#[derive(Debug)]
pub(super) struct Tree {
    directory: OwnedFd,
    symlinks: Symlinks,
}

/// The target of a path.
#[derive(Debug)]
pub(super) enum Found {
    File(File),
    Directory(OwnedFd),
    /// A pipe, a device, a socket: nothing to be read.
    Other,
}

/// `openat2(2)` gives up with `EAGAIN` if something is renamed meanwhile.
const ATTEMPTS: usize = 8;

impl Root {
    /// Looks it up once.
    pub fn open(path: &Path, symlinks: Symlinks, rights: Rights) -> anyhow::Result<Self> {
        let path = std::path::absolute(path)?;
        let directory = look_up(&path).map_err(io::Error::from)?;
        // A token that is taken by the first to tell.
        let untold = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let root = Self {
            symlinks,
            fallback: None,
            untold: untold.map_err(io::Error::from)?,
            path,
        };
        let tree = root.tree(directory);
        match tree.open_at(c".", OFlags::RDONLY) {
            Ok(_) => {}
            // Since Linux 5.6; some sandboxes do not know it.
            Err(Errno::NOSYS | Errno::PERM) if symlinks == Symlinks::Confined => bail!(
                "there is no openat2(2) here, without which symbolic links cannot be confined: \
                 leave the sandbox that forbids it, or give --follow-symlinks if there are no \
                 links that could do harm"
            ),
            Err(errno) => {
                return Err(io::Error::from(errno)).context("it cannot be opened");
            }
        }
        Ok(Self {
            fallback: (rights == Rights::GivenUp).then_some(tree.directory),
            ..root
        })
    }

    /// Looks the directory up, and tells when it goes missing and when it is there again.
    ///
    /// # Errors
    /// A sentence if it is missing; [`Missing::Busy`] if the process is short of something.
    pub fn visit(&self) -> Result<Tree, Missing> {
        let error = match (look_up(&self.path), &self.fallback) {
            (Ok(directory), _) => {
                self.found();
                return Ok(self.tree(directory));
            }
            (Err(Errno::ACCESS), Some(directory)) => {
                let directory = rustix::io::fcntl_dupfd_cloexec(directory, 0);
                return directory.map(|fd| self.tree(fd)).map_err(Missing::Busy);
            }
            (Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN)), _) => {
                return Err(Missing::Busy(errno));
            }
            (Err(errno), _) => io::Error::from(errno),
        };
        let why = format!("cannot open {}: {error}", self.path.display());
        if rustix::io::read(&self.untold, &mut [0; 8]).is_ok() {
            tracing::warn!("{why}; requests are answered with 503 until it is there again");
        }
        Err(Missing::Gone(why))
    }

    fn found(&self) {
        let mut untold = [PollFd::new(&self.untold, PollFlags::IN)];
        if matches!(poll(&mut untold, Some(&Timespec::default())), Ok(0)) {
            // If several tell, the token is one all the same: a read takes all of the count.
            let _ = rustix::io::write(&self.untold, &1_u64.to_ne_bytes());
            tracing::info!("{} is there again", self.path.display());
        }
    }

    fn tree(&self, directory: OwnedFd) -> Tree {
        Tree {
            directory,
            symlinks: self.symlinks,
        }
    }
}

/// Why there is nothing to serve at the moment.
#[derive(Debug)]
pub(super) enum Missing {
    /// The directory, in a sentence for the operator.
    Gone(String),
    /// The process has no descriptor left, or no memory.
    Busy(Errno),
}

impl Tree {
    /// Opens what is there at a relative path that has no `..`. It never waits for the other end of
    /// a pipe.
    pub fn find(&self, path: &[u8]) -> Result<Found, Errno> {
        let path = CString::new(path).map_err(|_| Errno::INVAL)?;
        let fd = self.open_at(&path, OFlags::NONBLOCK | OFlags::NOCTTY)?;
        Ok(match kind(&fstat(&fd)?) {
            FileType::RegularFile => Found::File(fd.into()),
            FileType::Directory => Found::Directory(fd),
            _ => Found::Other,
        })
    }

    /// Returns the metadata of an entry of a directory below the root, if the entry may be served.
    pub fn look(&self, directory: &OwnedFd, path: &[u8], name: &std::ffi::CStr) -> Option<Stat> {
        let own = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        if kind(&own) != FileType::Symlink {
            return Some(own);
        }
        let path = [path, b"/", name.to_bytes()].concat();
        let path = CString::new(path).ok()?;
        fstat(self.open_at(&path, OFlags::PATH).ok()?).ok()
    }

    fn open_at(&self, path: &std::ffi::CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC;
        if self.symlinks == Symlinks::Followed {
            return openat(&self.directory, path, flags, Mode::empty());
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let mut attempt = 1;
        loop {
            match openat2(&self.directory, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) if attempt < ATTEMPTS => attempt += 1,
                opened => return opened,
            }
        }
    }
}

fn look_up(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty())
}

pub(super) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}
