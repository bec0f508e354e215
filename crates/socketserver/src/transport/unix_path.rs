//! The file of a Unix socket: made private, never stolen from a live server, and removed again.
//!
//! Another user may be able to write to its directory. Only `bind(2)` goes by the path; everything
//! after it goes by descriptors of the directory and of the file.

mod place;

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

pub(crate) use place::{Owner, PathGuard};
use place::{Place, identity, is_socket, link_to};

use super::SocketOptions;
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
            Errno::ADDRINUSE => in_use(target.to_string()),
            errno => system("bind", errno),
        })?;
        return activate(fd, None).map_err(|errno| system("listen on", errno));
    };
    // Linux gives the file the mode of the socket, less the umask: nobody can connect in between.
    let mode = Mode::from_raw_mode(options.mode);
    rustix::fs::fchmod(&fd, mode).map_err(|errno| system("set the mode of", errno))?;
    let place = Place::of(path)?;
    // Held until the socket listens. Between the two it looks just like a stale one to others.
    let turn = lock_directory(&place);
    match rustix::net::bind(&fd, &raw) {
        Ok(()) => {}
        Err(Errno::ADDRINUSE) => {
            turn.as_ref().map_err(|_| locked(path))?;
            replace_stale(&fd, &raw, &place, kind)?;
        }
        Err(errno) => return Err(refused(path, errno)),
    }
    let file = place.open().map_err(|errno| match errno {
        Errno::NOENT => place.replaced("it is gone"),
        errno => system("look at", errno),
    })?;
    let found = rustix::fs::fstat(&file).map_err(|errno| system("look at", errno))?;
    if !is_socket(&found) {
        return Err(place.replaced("something that is not a socket is in its place"));
    }
    // From here on the file is removed again if anything fails.
    let guard = PathGuard::new(place, &found);
    // The umask may have taken bits away that were asked for.
    let lacks_bits = found.st_mode & 0o777 != options.mode & 0o777;
    if lacks_bits || options.owner != Owner::default() {
        guard.place.check_own(&file, &found, options.mode, kind)?;
        options
            .owner
            .give(&file)
            .map_err(|errno| system("change the owner of", errno))?;
    }
    if lacks_bits {
        set_mode(&file, mode, target)?;
    }
    activate(fd, Some(guard)).map_err(|errno| system("listen on", errno))
}

/// Sets the mode of exactly this file, whatever has its name by now. `fchmod(2)` takes no descriptor
/// of `O_PATH`, and `fchmodat2(2)` is younger than most kernels: the link in /proc leads to the file
/// itself (open(2), `O_PATH`).
fn set_mode(file: &OwnedFd, mode: Mode, target: &UnixAddress) -> Result<(), BindError> {
    rustix::fs::chmod(link_to(file), mode).map_err(|errno| match errno {
        Errno::NOENT => BindError::BadOption {
            option: "mode",
            reason: format!(
                "the umask takes bits of the mode of {target} away, and without /proc they cannot be \
                 set safely: mount /proc, or start with a umask that leaves them"
            ),
        },
        errno => BindError::System {
            step: "set the mode of",
            address: target.to_string(),
            source: errno.into(),
        },
    })
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
    place: &Place,
    kind: SocketType,
) -> Result<(), BindError> {
    let path = &place.path;
    let foreign = |owner, state| BindError::ForeignSocket {
        path: path.clone(),
        owner,
        state,
    };
    match place
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
            Probe::Stale => match place.remove_if(identity(&found)) {
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
        Err(_) => {} // gone meanwhile
    }
    rustix::net::bind(fd, raw).map_err(|errno| refused(path, errno))
}

enum Probe {
    Live,
    Stale,
    /// It may not be asked.
    Unknown,
}

/// Only a refused connection proves that nobody listens; every other answer may be a live server.
fn probe(file: &OwnedFd, raw: &SocketAddrUnix, kind: SocketType) -> Probe {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let Ok(probe) = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None) else {
        return Probe::Live;
    };
    // The file itself; by its name where /proc is missing.
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

/// Fails if somebody else keeps the lock for too long.
fn lock_directory(place: &Place) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // A directory that may be written but not read has no lock to offer.
    let Ok(directory) = rustix::fs::openat(&place.directory, c".", flags, Mode::empty()) else {
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
