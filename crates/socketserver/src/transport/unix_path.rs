//! The file of a Unix socket: created with restricted permissions, never taken from a running
//! server, and removed at the end.
//!
//! Another user may be able to write to its directory. Only `bind(2)` uses the path; all later
//! operations use descriptors of the directory and of the file.

mod place;

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use place::{FilePath, identity, is_socket, link_to};
pub(crate) use place::{Owner, PathGuard};

use super::SocketOptions;
use crate::{BindError, UnixAddress};

/// Maximum time for which two servers that find the same stale file can delay each other.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(2);

/// Maximum length in bytes of a path that fits into a socket address with its terminating NUL:
/// unix(7).
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
    // A path of 108 bytes could be bound, but its terminating NUL does not fit into a socket
    // address that is read back.
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

/// Binds `target` and completes the socket with `activate`. After an error, no descriptor and no
/// file of this server remain.
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
            Errno::ADDRINUSE => in_use(target.to_string()),
            errno => system("bind", errno),
        })?;
        return activate(fd, None).map_err(|errno| system("listen on", errno));
    };
    // Linux gives the file the mode of the socket minus the umask, so the file is never more
    // accessible.
    let mode = Mode::from_raw_mode(options.mode);
    rustix::fs::fchmod(&fd, mode).map_err(|errno| system("set the mode of", errno))?;
    let file_path = FilePath::of(path)?;
    // Held until the socket listens. Until then, other servers would take the file for stale.
    let lock = lock_directory(&file_path);
    match rustix::net::bind(&fd, &raw) {
        Ok(()) => {}
        Err(Errno::ADDRINUSE) => {
            lock.as_ref().map_err(|_| locked(path))?;
            replace_stale(&fd, &raw, &file_path, kind)?;
        }
        Err(errno) => return Err(refused(path, errno)),
    }
    let file = file_path.open().map_err(|errno| match errno {
        Errno::NOENT => file_path.replaced("the file no longer exists"),
        errno => system("look at", errno),
    })?;
    let found = rustix::fs::fstat(&file).map_err(|errno| system("look at", errno))?;
    if !is_socket(&found) {
        return Err(file_path.replaced("the path is now a file that is not a socket"));
    }
    // From here on, the guard removes the file after an error.
    let guard = PathGuard::new(file_path, &found);
    // The umask may have removed requested bits.
    let lacks_bits = found.st_mode & 0o777 != options.mode & 0o777;
    if lacks_bits || options.owner != Owner::default() {
        guard.path.check_own(&file, &found, options.mode, kind)?;
        options
            .owner
            .apply(&file)
            .map_err(|errno| system("change the owner of", errno))?;
    }
    if lacks_bits {
        set_mode(&file, mode, target)?;
    }
    activate(fd, Some(guard)).map_err(|errno| system("listen on", errno))
}

/// Sets the mode of exactly this file, even if its name now refers to another file. `fchmod(2)`
/// rejects `O_PATH` descriptors, and `fchmodat2(2)` is newer than most kernels. The link in /proc
/// refers to the file itself (open(2), `O_PATH`).
fn set_mode(file: &OwnedFd, mode: Mode, target: &UnixAddress) -> Result<(), BindError> {
    rustix::fs::chmod(link_to(file), mode).map_err(|errno| match errno {
        Errno::NOENT => BindError::BadOption {
            option: "mode",
            reason: format!(
                "the umask removes bits of the mode of {target}, and without /proc they cannot be \
                 restored safely: mount /proc, or start with a umask that keeps them"
            ),
        },
        errno => BindError::System {
            step: "set the mode of",
            address: target.to_string(),
            source: errno.into(),
        },
    })
}

/// Replaces a socket file on which no process listens any more.
///
/// The check and the removal are not atomic. A lock on the directory serializes servers that start
/// at the same time; the kernel releases the lock when its holder exits. Any process that can read
/// the directory can hold that lock. It can delay a start by two seconds, and can prevent the start
/// only if there is a file to replace.
fn replace_stale(
    fd: &OwnedFd,
    raw: &SocketAddrUnix,
    file_path: &FilePath,
    kind: SocketType,
) -> Result<(), BindError> {
    let path = &file_path.path;
    let foreign = |owner, state| BindError::ForeignSocket {
        path: path.clone(),
        owner,
        state,
    };
    match file_path
        .open()
        .and_then(|file| Ok((rustix::fs::fstat(&file)?, file)))
    {
        Ok((found, _)) if !is_socket(&found) => {
            return Err(BindError::NotASocket { path: path.clone() });
        }
        Ok((found, file)) => match probe(&file, raw, kind) {
            Probe::Unknown => {
                let state = "this user may not connect to it, so that it may be in use";
                return Err(foreign(found.st_uid, state));
            }
            Probe::Live => return Err(in_use(path.display().to_string())),
            Probe::Stale => match file_path.remove_if(identity(&found)) {
                Ok(()) => {}
                Err(Errno::ACCESS | Errno::PERM)
                    if found.st_uid != rustix::process::geteuid().as_raw() =>
                {
                    let state = "nothing listens on it, and this user may not remove it";
                    return Err(foreign(found.st_uid, state));
                }
                Err(errno) => return Err(refused(path, errno)),
            },
        },
        Err(_) => {} // removed in between
    }
    rustix::net::bind(fd, raw).map_err(|errno| refused(path, errno))
}

enum Probe {
    Live,
    Stale,
    /// The connection was not permitted.
    Unknown,
}

/// Checks whether a server listens on a socket file. Only a refused connection proves that no
/// process listens; any other result may be a running server.
fn probe(file: &OwnedFd, raw: &SocketAddrUnix, kind: SocketType) -> Probe {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let Ok(probe) = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None) else {
        return Probe::Live;
    };
    // Connects to the file itself; by name if /proc is missing.
    let connected = match SocketAddrUnix::new(link_to(file)) {
        Ok(link) => rustix::net::connect(&probe, &link),
        Err(errno) => Err(errno),
    };
    let connected = match connected {
        Err(Errno::NOENT | Errno::NAMETOOLONG) => rustix::net::connect(&probe, raw),
        connected => connected,
    };
    match connected {
        Err(Errno::CONNREFUSED | Errno::NOENT) => Probe::Stale,
        Err(Errno::ACCESS | Errno::PERM) => Probe::Unknown,
        _ => Probe::Live,
    }
}

fn locked(path: &Path) -> BindError {
    BindError::System {
        step: "lock the directory of",
        address: path.display().to_string(),
        source: Errno::WOULDBLOCK.into(),
    }
}

/// Locks the directory of a socket file. Fails if another process holds the lock for too long.
fn lock_directory(file_path: &FilePath) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // A directory with write but without read permission cannot be locked.
    let Ok(directory) = rustix::fs::openat(&file_path.directory, c".", flags, Mode::empty()) else {
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

fn in_use(address: String) -> BindError {
    BindError::AddressInUse {
        address,
        advice: "stop its owner or choose another path or name",
    }
}

fn refused(path: &Path, errno: Errno) -> BindError {
    let address = path.display().to_string();
    match errno {
        Errno::ADDRINUSE => in_use(address),
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
