//! A name in a directory that is held open, and the file of that name.

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

/// The path of a socket file, with a descriptor of its directory. The descriptor always refers to
/// the same directory, even if the path or the working directory changes.
#[derive(Debug)]
pub(super) struct FilePath {
    pub(super) directory: OwnedFd,
    name: OsString,
    /// The path as configured.
    pub(super) path: PathBuf,
}

impl FilePath {
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

    /// Opens the file that currently has the name. Does not follow a symbolic link.
    pub(super) fn open(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.directory, &self.name, flags, Mode::empty())
    }

    /// Removes the file if its identity is `file`. The kernel removes names, not files: another
    /// user with write permission in the directory can replace the file in between. That user could
    /// also remove the other file directly.
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

    /// Checks that a socket's file is the file just bound here, before its permissions are
    /// extended.
    ///
    /// No system call returns the file that a socket is bound to. But the file belongs to this user
    /// and has no bits beyond those of the bind. It refers to a socket of this name that does not
    /// listen yet. A file that another user can put here satisfies all of these conditions only if
    /// its socket is dead.
    pub(super) fn check_own(
        &self,
        file: &OwnedFd,
        found: &Stat,
        mode: u32,
        kind: SocketType,
    ) -> Result<(), BindError> {
        let me = rustix::process::geteuid().as_raw();
        if found.st_uid != me || found.st_mode & 0o7777 & !mode != 0 {
            return Err(self.replaced("the path is now another socket"));
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
            // Bound and not listening. Or the state is unknown, because /proc is missing or the
            // mode does not permit even the owner to connect.
            Err(Errno::CONNREFUSED | Errno::NOENT | Errno::ACCESS) => Ok(()),
            // Datagram sockets accept a peer at once, and report the address they are bound to.
            Ok(()) if kind == SocketType::DGRAM => {
                let name = rustix::net::getpeername(&probe).map_err(failed)?;
                let own = Address::Unix(UnixAddress::Path(self.path.clone()));
                if Address::from_any(name) == own {
                    return Ok(());
                }
                Err(self.replaced("the path is now the socket of another service"))
            }
            _ => Err(self.replaced("the path is now the socket of another service")),
        }
    }
}

/// Returns a path to the file of a descriptor that cannot be redirected to another file: proc(5).
pub(super) fn link_to(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

pub(super) fn is_socket(file: &Stat) -> bool {
    FileType::from_raw_mode(file.st_mode) == FileType::Socket
}

pub(super) fn identity(file: &Stat) -> (u64, u64) {
    (file.st_dev, file.st_ino)
}

/// The owner of a socket file; `None` keeps the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) user: Option<u32>,
    pub(crate) group: Option<u32>,
}

impl Owner {
    pub(super) fn apply(self, file: &OwnedFd) -> Result<(), Errno> {
        if self == Self::default() {
            return Ok(());
        }
        let user = self.user.map(Uid::from_raw);
        let group = self.group.map(Gid::from_raw);
        // The file of the descriptor itself: chown(2), `AT_EMPTY_PATH`.
        rustix::fs::chownat(file, c"", user, group, AtFlags::EMPTY_PATH)
    }
}

/// Removes the socket file on drop if the file is still the same, and only in the process that
/// created it.
#[derive(Debug)]
pub(crate) struct PathGuard {
    pub(super) path: FilePath,
    file: (u64, u64),
    owner: AtomicU32,
}

impl PathGuard {
    pub(super) fn new(path: FilePath, file: &Stat) -> Self {
        Self {
            path,
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
            let _ = self.path.remove_if(self.file);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    fn check(path: &Path, mode: u32, kind: SocketType) -> Result<(), BindError> {
        let file_path = FilePath::of(path)?;
        let file = file_path.open().unwrap();
        let found = rustix::fs::fstat(&file).unwrap();
        file_path.check_own(&file, &found, mode, kind)
    }

    #[test]
    fn just_bound_socket_is_recognised() {
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

    /// The socket was moved to the path by another user who can write to both directories.
    #[test]
    fn socket_of_another_service_is_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let (stream, packet) = (dir.path().join("stream"), dir.path().join("packet"));
        let _listener = UnixListener::bind(&stream).unwrap();
        let _receiver = UnixDatagram::bind(&packet).unwrap();
        for service in [&stream, &packet] {
            let here = dir.path().join("here");
            std::fs::hard_link(service, &here).unwrap();
            for kind in [SocketType::STREAM, SocketType::DGRAM] {
                let error = check(&here, 0o777, kind).unwrap_err();
                assert!(matches!(error, BindError::SocketReplaced { .. }), "{error}");
            }
            std::fs::remove_file(&here).unwrap();
        }
    }
}
