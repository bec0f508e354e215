//! A name in a directory that is held open, and the file that has it.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::refused;
use crate::process::this_process;
use crate::{Address, BindError, UnixAddress};

/// Where a socket's file is. The descriptor of its directory means the same one for as long as it is
/// open, whatever becomes of the path and of the process's own directory.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) directory: OwnedFd,
    name: OsString,
    /// As it was given.
    pub(super) path: PathBuf,
}

impl Place {
    pub(super) fn of(path: &Path) -> Result<Self, BindError> {
        let Some(name) = path.file_name() else {
            return Err(BindError::NotASocket { path: path.into() });
        };
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(directory, flags, Mode::empty());
        Ok(Self {
            directory: directory.map_err(|errno| refused(path, errno))?,
            name: name.into(),
            path: path.into(),
        })
    }

    /// A descriptor of the file that has the name now. A symbolic link is not followed.
    pub(super) fn open(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.directory, &self.name, flags, Mode::empty())
    }

    /// Removes the file if it is this one. The kernel removes names, not files: another user who
    /// may write to the directory, and could remove the other one himself, can still be in between.
    pub(super) fn remove_if(&self, file: (u64, u64)) -> Result<(), Errno> {
        let no_follow = AtFlags::SYMLINK_NOFOLLOW;
        match rustix::fs::statat(&self.directory, &self.name, no_follow) {
            Ok(found) if identity(&found) == file => {
                match rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::empty()) {
                    Err(Errno::NOENT) => Ok(()),
                    done => done,
                }
            }
            _ => Ok(()),
        }
    }

    pub(super) fn replaced(&self, found: &'static str) -> BindError {
        BindError::SocketReplaced {
            path: self.path.clone(),
            found,
        }
    }

    /// Checks that a socket's file is the one that was bound here a moment ago, before more is
    /// allowed with it.
    ///
    /// No system call tells which file a socket is bound to. But it belongs to this user, has no
    /// bit beyond those that it was bound with, and leads to a socket of this name that does not
    /// listen yet: another user who can put a socket there has none that is all of this, but a dead
    /// one.
    pub(super) fn check_own(
        &self,
        file: &OwnedFd,
        found: &Stat,
        mode: u32,
        kind: SocketType,
    ) -> Result<(), BindError> {
        let me = rustix::process::geteuid().as_raw();
        if found.st_uid != me || found.st_mode & 0o7777 & !mode != 0 {
            return Err(self.replaced("another socket is in its place"));
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let failed = |errno: Errno| BindError::System {
            step: "check the socket at",
            address: self.path.display().to_string(),
            source: errno.into(),
        };
        let probe = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None);
        let probe = probe.map_err(failed)?;
        let link = SocketAddrUnix::new(link_to(file)).map_err(failed)?;
        match rustix::net::connect(&probe, &link) {
            // Bound and not listening; or nothing is known, as there is no /proc, or as the mode lets
            // not even its owner connect.
            Err(Errno::CONNREFUSED | Errno::NOENT | Errno::ACCESS) => Ok(()),
            // Datagram sockets take peers at once, and tell what they were bound to.
            Ok(()) if kind == SocketType::DGRAM => {
                let name = rustix::net::getpeername(&probe).map_err(failed)?;
                let own = Address::Unix(UnixAddress::Path(self.path.clone()));
                if Address::from_any(name) == own {
                    return Ok(());
                }
                Err(self.replaced("the socket of another service is in its place"))
            }
            _ => Err(self.replaced("the socket of another service is in its place")),
        }
    }
}

/// Leads to the file of a descriptor, without a name that could be given to another file: proc(5).
pub(super) fn link_to(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

pub(super) fn is_socket(file: &Stat) -> bool {
    FileType::from_raw_mode(file.st_mode) == FileType::Socket
}

pub(super) fn identity(file: &Stat) -> (u64, u64) {
    (file.st_dev, file.st_ino)
}

/// To whom a socket's file is to belong; `None` is left as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) user: Option<u32>,
    pub(crate) group: Option<u32>,
}

impl Owner {
    pub(super) fn give(self, file: &OwnedFd) -> Result<(), Errno> {
        if self == Self::default() {
            return Ok(());
        }
        let user = self.user.map(Uid::from_raw);
        let group = self.group.map(Gid::from_raw);
        // The descriptor's own file: chown(2), `AT_EMPTY_PATH`.
        rustix::fs::chownat(file, c"", user, group, AtFlags::EMPTY_PATH)
    }
}

/// Removes the file when it is dropped, if it is still the one that was made, and only in the
/// process that made it.
#[derive(Debug)]
pub(crate) struct PathGuard {
    pub(super) place: Place,
    file: (u64, u64),
    owner: AtomicU32,
}

impl PathGuard {
    pub(super) fn new(place: Place, file: &Stat) -> Self {
        Self {
            place,
            file: identity(file),
            owner: AtomicU32::new(this_process()),
        }
    }

    /// Makes this process the one that removes the file.
    pub(in crate::transport) fn take_over(&self) {
        self.owner.store(this_process(), Ordering::Relaxed);
    }
}

impl Drop for PathGuard {
    fn drop(&mut self) {
        if this_process() == self.owner.load(Ordering::Relaxed) {
            let _ = self.place.remove_if(self.file);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    fn check(path: &Path, mode: u32, kind: SocketType) -> Result<(), BindError> {
        let place = Place::of(path)?;
        let file = place.open().unwrap();
        let found = rustix::fs::fstat(&file).unwrap();
        place.check_own(&file, &found, mode, kind)
    }

    #[test]
    fn a_socket_that_was_just_bound_is_its_own() {
        let dir = tempfile::tempdir().unwrap();
        for kind in [SocketType::STREAM, SocketType::DGRAM] {
            let path = dir.path().join(format!("{kind:?}"));
            let socket = rustix::net::socket(AddressFamily::UNIX, kind, None).unwrap();
            rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
            check(&path, 0o777, kind).unwrap();
            let narrower = check(&path, 0, kind).unwrap_err();
            assert!(matches!(narrower, BindError::SocketReplaced { .. }));
        }
    }

    /// Moved into the place of ours by another user who may write to both directories.
    #[test]
    fn the_socket_of_another_service_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (stream, packet) = (dir.path().join("stream"), dir.path().join("packet"));
        let _listener = UnixListener::bind(&stream).unwrap();
        let _receiver = UnixDatagram::bind(&packet).unwrap();
        for service in [&stream, &packet] {
            let here = dir.path().join("here");
            std::fs::hard_link(service, &here).unwrap();
            for kind in [SocketType::STREAM, SocketType::DGRAM] {
                let refused = check(&here, 0o777, kind).unwrap_err();
                assert!(
                    matches!(refused, BindError::SocketReplaced { .. }),
                    "{refused}"
                );
            }
            std::fs::remove_file(&here).unwrap();
        }
    }
}
