//! The served directory, and the only code that opens files in it.

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
    /// Links are followed within the root. The kernel checks each step, so that no link can change
    /// no link can be changed between a check and the opening.
    Confined,
    /// Links are followed to any target.
    Followed,
}

/// The user whose rights apply to later lookups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rights {
    /// The rights at the start.
    Kept,
    /// The rights of another user, which may be fewer.
    GivenUp,
}

/// A directory, looked up by its path for each request. The path may be a link that switches to the
/// next release, or the directory may be replaced.
///
/// One lookup with `open(2)` takes 0.7 microseconds. A comparison by `stat(2)` with the earlier
/// directory takes 0.5, and a lock.
/// same directory takes 0.5, and a lock.
#[derive(Debug)]
pub(super) struct Root {
    /// The absolute path, because `.` may later be another directory.
    path: PathBuf,
    symlinks: Symlinks,
    /// The directory of the start, for a user that may not search the directories above it.
    fallback: Option<OwnedFd>,
    /// An eventfd that is readable until a missing directory is reported. Forked children share the
    /// descriptor, so that only the first one to notice reports it.
    unreported: OwnedFd,
}

/// The directory as one request has found it. A rename does not affect that request.
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
    /// A pipe, a device or a socket, which cannot be read as a file.
    Other,
}

/// The number of attempts of `openat2(2)`, which fails with `EAGAIN` if a file is renamed at the
/// same time.
const ATTEMPTS: usize = 8;

impl Root {
    /// Opens the directory once to check it.
    pub fn open(path: &Path, symlinks: Symlinks, rights: Rights) -> anyhow::Result<Self> {
        let path = std::path::absolute(path)?;
        let directory = look_up(&path).map_err(io::Error::from)?;
        // The first process that reports takes the token.
        let unreported = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let root = Self {
            symlinks,
            fallback: None,
            unreported: unreported.map_err(io::Error::from)?,
            path,
        };
        let tree = root.tree(directory);
        match tree.open_at(c".", OFlags::RDONLY) {
            Ok(_) => {}
            // `openat2(2)` exists since Linux 5.6; some sandboxes do not support it.
            Err(Errno::NOSYS | Errno::PERM) if symlinks == Symlinks::Confined => bail!(
                "openat2(2) is not available, without which symbolic links cannot be confined: \
                 leave the sandbox that forbids it, or give --follow-symlinks if no link \
                 could do harm"
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

    /// Looks the directory up, and logs when it disappears and when it is back.
    ///
    /// # Errors
    /// Returns [`Missing::Gone`] if the directory is missing, and [`Missing::Busy`] if the process
    /// lacks descriptors or memory.
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
        if rustix::io::read(&self.unreported, &mut [0; 8]).is_ok() {
            tracing::warn!("{why}; requests are answered with 503 until it is there again");
        }
        Err(Missing::Gone(why))
    }

    fn found(&self) {
        let mut unreported = [PollFd::new(&self.unreported, PollFlags::IN)];
        if matches!(poll(&mut unreported, Some(&Timespec::default())), Ok(0)) {
            // If several processes report, there is still one token: a read takes the whole count.
            let _ = rustix::io::write(&self.unreported, &1_u64.to_ne_bytes());
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

/// The reason why no file can be served at the moment.
#[derive(Debug)]
pub(super) enum Missing {
    /// The directory is missing; the text is a sentence for the operator.
    Gone(String),
    /// The process has no descriptor or no memory left.
    Busy(Errno),
}

impl Tree {
    /// Opens the file at a relative path without `..`. A pipe does not block the call.
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
