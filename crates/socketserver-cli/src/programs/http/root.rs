//! The directory that is served, and the only way to a file in it.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, bail};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, open, openat, openat2, statat,
};
use rustix::io::Errno;

/// What happens to symbolic links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Symlinks {
    /// They are followed as long as they stay below the root: the kernel looks at each step, so that
    /// nobody can change a link between a check and the opening.
    Confined,
    /// They lead where they lead.
    Followed,
}

/// An open directory; renaming it changes nothing.
#[derive(Debug)]
pub(super) struct Root {
    directory: OwnedFd,
    symlinks: Symlinks,
}

/// What a path led to.
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
    pub fn open(path: &Path, symlinks: Symlinks) -> anyhow::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = open(path, flags, Mode::empty()).map_err(io::Error::from)?;
        let root = Self {
            directory,
            symlinks,
        };
        match root.open_at(c".", OFlags::empty()) {
            Ok(_) => Ok(root),
            // Since Linux 5.6; some sandboxes do not know it.
            Err(Errno::NOSYS | Errno::PERM) if symlinks == Symlinks::Confined => bail!(
                "there is no openat2(2) here, without which symbolic links cannot be confined: \
                 leave the sandbox that forbids it, or give --follow-symlinks if there are no \
                 links that could do harm"
            ),
            Err(errno) => Err(io::Error::from(errno)).context("it cannot be opened"),
        }
    }

    /// Opens what is there at a relative path that has no `..`. It never waits for somebody at the
    /// other end of a pipe.
    pub fn find(&self, path: &[u8]) -> Result<Found, Errno> {
        let path = CString::new(path).map_err(|_| Errno::INVAL)?;
        let fd = self.open_at(&path, OFlags::NONBLOCK | OFlags::NOCTTY)?;
        Ok(match kind(&fstat(&fd)?) {
            FileType::RegularFile => Found::File(fd.into()),
            FileType::Directory => Found::Directory(fd),
            _ => Found::Other,
        })
    }

    /// What can be told of an entry of a directory below the root, if it may be told.
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

pub(super) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}
