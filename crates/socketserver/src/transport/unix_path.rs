//! The file of a Unix socket: made private, never stolen from a live server, and removed again.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::SocketOptions;
use crate::process::this_process;
use crate::{BindError, UnixAddress};

/// How long two servers that find the same stale file may keep each other waiting.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest path that a socket address holds with its terminating NUL, in bytes: unix(7).
const LONGEST: usize = 107;

pub(super) fn parse(path: &Path) -> Result<Vec<UnixAddress>, BindError> {
    let address = UnixAddress::parse(path);
    let bad = |reason: &str| BindError::BadAddress {
        address: path.display().to_string(),
        reason: reason.into(),
    };
    match &address {
        UnixAddress::Path(path) if path.as_os_str().is_empty() => {
            return Err(bad("an empty path; a Unix address is a path or @NAME"));
        }
        UnixAddress::Path(path) if path.as_os_str().as_bytes().contains(&0) => {
            return Err(bad(
                "a path cannot contain a NUL byte; an abstract name is written @NAME",
            ));
        }
        UnixAddress::Abstract(name) if name.is_empty() => {
            return Err(bad("the abstract name after @ is empty"));
        }
        _ => {}
    }
    // A path of 108 bytes could be bound, but its NUL is one too many for all who ask for it.
    let is_too_long =
        matches!(&address, UnixAddress::Path(path) if path.as_os_str().len() > LONGEST);
    if is_too_long || address.to_raw().is_err() {
        return Err(bad(
            "too long; the kernel allows 107 bytes: use a shorter path or change into \
                        its directory",
        ));
    }
    Ok(vec![address])
}

/// Binds `target` and finishes the socket with `activate`; whatever fails, no descriptor and no
/// file of ours stays behind.
pub(super) fn claim<L>(
    target: &UnixAddress,
    kind: SocketType,
    options: &SocketOptions,
    activate: impl FnOnce(OwnedFd, Option<PathGuard>) -> Result<L, Errno>,
) -> Result<L, BindError> {
    let system = |step, errno: Errno| BindError::System {
        step,
        address: target.to_string(),
        source: errno.into(),
    };
    let raw = target.to_raw().map_err(|errno| system("use", errno))?;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
        .map_err(|errno| system("open a socket for", errno))?;
    let UnixAddress::Path(path) = target else {
        rustix::net::bind(&fd, &raw).map_err(|errno| match errno {
            Errno::ADDRINUSE => BindError::AddressInUse {
                address: target.to_string(),
            },
            errno => system("bind", errno),
        })?;
        return activate(fd, None).map_err(|errno| system("listen on", errno));
    };
    // Linux gives the file the mode of the socket, less the umask: nobody can connect in between.
    let mode = Mode::from_raw_mode(options.mode);
    rustix::fs::fchmod(&fd, mode).map_err(|errno| system("set the mode of", errno))?;
    // Held until the socket listens. Between the two it looks just like a stale one to others.
    let turn = lock_directory(path);
    match rustix::net::bind(&fd, &raw) {
        Ok(()) => {}
        Err(Errno::ADDRINUSE) => {
            turn.as_ref().map_err(|_| locked(path))?;
            replace_stale(&fd, &raw, path, kind)?;
        }
        Err(errno) => return Err(refused(path, errno)),
    }
    let guard = PathGuard::new(path).map_err(|e| BindError::System {
        step: "look at",
        address: target.to_string(),
        source: e,
    })?;
    if guard.mode & 0o777 != options.mode & 0o777 {
        // The umask took bits away that were asked for.
        let wider = std::fs::Permissions::from_mode(options.mode);
        std::fs::set_permissions(path, wider).map_err(|source| BindError::System {
            step: "set the mode of",
            address: target.to_string(),
            source,
        })?;
    }
    activate(fd, Some(guard)).map_err(|errno| system("listen on", errno))
}

/// Takes the place of a socket file that nobody listens on any more.
///
/// The check and the removal are not one step, so servers that start at the same time take turns,
/// by a lock on the directory that goes away with its holder. Anybody who can read the directory
/// can hold that lock; that delays a start by two seconds, and prevents it only where there is a
/// file to replace.
fn replace_stale(
    fd: &OwnedFd,
    raw: &SocketAddrUnix,
    path: &Path,
    kind: SocketType,
) -> Result<(), BindError> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(BindError::NotASocket { path: path.into() });
        }
        Ok(_) if is_live(raw, kind) => {
            return Err(BindError::AddressInUse {
                address: path.display().to_string(),
            });
        }
        Ok(_) => std::fs::remove_file(path)
            .or_else(|e| {
                if e.kind() == io::ErrorKind::NotFound {
                    Ok(())
                } else {
                    Err(e)
                }
            })
            .map_err(|e| refused(path, Errno::from_io_error(&e).unwrap_or(Errno::IO)))?,
        Err(_) => {} // gone meanwhile
    }
    rustix::net::bind(fd, raw).map_err(|errno| refused(path, errno))
}

/// Only a refused connection proves that nobody listens; every other answer may be a live server.
fn is_live(raw: &SocketAddrUnix, kind: SocketType) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let Ok(probe) = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None) else {
        return true;
    };
    !matches!(
        rustix::net::connect(&probe, raw),
        Err(Errno::CONNREFUSED | Errno::NOENT)
    )
}

fn locked(path: &Path) -> BindError {
    BindError::System {
        step: "lock the directory of",
        address: path.display().to_string(),
        source: Errno::WOULDBLOCK.into(),
    }
}

/// Fails if somebody else keeps the lock for too long.
fn lock_directory(path: &Path) -> Result<Option<File>, Errno> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // A directory that may be written but not read has no lock to offer.
    let Ok(directory) = File::open(directory) else {
        return Ok(None);
    };
    let end = Instant::now() + CLAIM_TIMEOUT;
    loop {
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(directory)),
            Err(Errno::WOULDBLOCK) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(Errno::WOULDBLOCK) => return Err(Errno::WOULDBLOCK),
            Err(_) => return Ok(None),
        }
    }
}

fn refused(path: &Path, errno: Errno) -> BindError {
    let address = path.display().to_string();
    match errno {
        Errno::ADDRINUSE => BindError::AddressInUse { address },
        Errno::ACCESS | Errno::PERM | Errno::ROFS => BindError::PermissionDenied {
            address,
            advice: "its directory must be writable for this user",
        },
        Errno::NOENT | Errno::NOTDIR => BindError::NoSuchDirectory {
            directory: path.parent().unwrap_or(Path::new("/")).into(),
            path: path.into(),
        },
        errno => BindError::System {
            step: "bind",
            address,
            source: errno.into(),
        },
    }
}

/// Removes the file when it is dropped, if it is still the one that was made, and only in the
/// process that made it.
#[derive(Debug)]
pub(crate) struct PathGuard {
    path: PathBuf,
    file: (u64, u64),
    mode: u32,
    owner: AtomicU32,
}

impl PathGuard {
    fn new(path: &Path) -> io::Result<Self> {
        let found = std::fs::symlink_metadata(path)?;
        // Kept absolute, as the process may change its directory meanwhile.
        let path = std::path::absolute(path)?;
        Ok(Self {
            path,
            file: identity(&found),
            mode: found.mode(),
            owner: AtomicU32::new(this_process()),
        })
    }

    /// Makes this process the one that removes the file.
    pub(super) fn take_over(&self) {
        self.owner.store(this_process(), Ordering::Relaxed);
    }
}

impl Drop for PathGuard {
    fn drop(&mut self) {
        let is_ours = || {
            std::fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.file)
        };
        if this_process() == self.owner.load(Ordering::Relaxed) && is_ours() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}
