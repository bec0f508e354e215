//! The errors of the library: what a handler returns, why a bind failed, why serving ended.
//!
//! What happened to one request is not here but in [`crate::HandlerError`].

use std::error::Error as StdError;
use std::path::PathBuf;
use std::{fmt, io};

/// Any error of a handler or a hook, boxed.
///
/// The question mark turns every error into it that is `Send`, `Sync` and `'static`, those of
/// `anyhow` and `eyre` included. A text is an error as well: `Err("too many".into())`.
///
/// ```
/// fn parse(text: &str) -> socketserver::Result<u16> {
///     if text.is_empty() {
///         return Err("a port is missing".into());
///     }
///     Ok(text.trim().parse()?)
/// }
/// let error = parse("no number").unwrap_err();
/// assert!(error.is::<std::num::ParseIntError>());
/// ```
pub type BoxError = Box<dyn StdError + Send + Sync + 'static>;

/// The result of a handler or a hook.
pub type Result<T, E = BoxError> = std::result::Result<T, E>;

/// The error itself and then its causes, outermost first.
pub(crate) fn chain<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// The kind of the first [`io::Error`] among an error and its causes.
pub(crate) fn io_kind(error: &(dyn StdError + 'static)) -> Option<io::ErrorKind> {
    chain(error)
        .find_map(|error| error.downcast_ref::<io::Error>())
        .map(io::Error::kind)
}

/// Writes an error and all its causes, on one line.
pub(crate) fn write_chain(
    f: &mut fmt::Formatter<'_>,
    error: &(dyn StdError + 'static),
) -> fmt::Result {
    for (depth, error) in chain(error).enumerate() {
        write!(f, "{}{error}", if depth == 0 { "" } else { ": " })?;
    }
    Ok(())
}

/// Writes an error and then each cause on a line of its own, as `fn main` shows the error that it
/// returns.
fn write_causes(f: &mut fmt::Formatter<'_>, error: &(dyn StdError + 'static)) -> fmt::Result {
    for (depth, error) in chain(error).enumerate() {
        write!(
            f,
            "{}{error}",
            if depth == 0 { "" } else { "\n  caused by: " }
        )?;
    }
    Ok(())
}

/// Why a server could not be made. Nothing stays open after one of these.
///
/// `{:?}` shows the message and its causes, as `fn main` prints the error that it returns.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Somebody listens there (`EADDRINUSE`), or a live server answered on the Unix path.
    #[error("address in use: another socket is bound to {address}; {advice}")]
    AddressInUse {
        /// The address asked for.
        address: String,
        /// What would help.
        advice: &'static str,
    },
    /// The system refused the address (`EACCES`, `EPERM`).
    #[error("permission denied: cannot bind {address}; {advice}")]
    PermissionDenied {
        /// The address asked for.
        address: String,
        /// What would help.
        advice: &'static str,
    },
    /// The address is none of this machine's (`EADDRNOTAVAIL`).
    #[error(
        "address not available: {address} is no address of this machine; use one that `ip address` \
         shows, 127.0.0.1 for this machine only, or 0.0.0.0 for all interfaces"
    )]
    AddressNotAvailable {
        /// The address asked for.
        address: String,
    },
    /// The directory of a Unix socket does not exist.
    #[error(
        "no such directory: {} cannot hold the socket {}; create it first",
        .directory.display(),
        .path.display()
    )]
    NoSuchDirectory {
        /// The missing directory.
        directory: PathBuf,
        /// The path of the socket.
        path: PathBuf,
    },
    /// Something that is not a socket stands at the path of a Unix socket. It was left alone.
    #[error(
        "{} exists and is not a socket; it was left as it is: remove it or choose another path",
        .path.display()
    )]
    NotASocket {
        /// The path of the socket.
        path: PathBuf,
    },
    /// A Unix socket of another user stands at the path, and this one may not connect to it or may
    /// not remove it.
    #[error(
        "{} is a socket of the user with the number {owner}: {state}; remove it as that user or as \
         root, or choose another path",
        .path.display()
    )]
    ForeignSocket {
        /// The path of the socket.
        path: PathBuf,
        /// The user id of its owner.
        owner: u32,
        /// What is known of it.
        state: &'static str,
    },
    /// The file of a Unix socket was replaced while it was being bound. What is there now was left
    /// alone.
    #[error(
        "the socket {} was replaced while it was being bound: {found}; use a directory that no other \
         user may write to",
        .path.display()
    )]
    SocketReplaced {
        /// The path of the socket.
        path: PathBuf,
        /// What is there now.
        found: &'static str,
    },
    /// The text is no address of this transport.
    #[error("bad address {address}: {reason}")]
    BadAddress {
        /// The address as it was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An option has a value that cannot be meant.
    #[error("bad option {option}: {reason}")]
    BadOption {
        /// The name of the builder's method.
        option: &'static str,
        /// What is wrong with the value.
        reason: String,
    },
    /// A socket was handed over that is of another kind.
    #[error("wrong socket: expected {expected}, the descriptor is {found}")]
    WrongSocket {
        /// What the transport needs.
        expected: &'static str,
        /// What the descriptor is.
        found: String,
    },
    /// Any other rejection by the system.
    #[error("cannot {step} {address}")]
    System {
        /// The step that failed: `bind`, `listen on`, ...
        step: &'static str,
        /// The address asked for.
        address: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Why serving ended with an error. A stop that was asked for is not one.
///
/// `{:?}` shows the message and its causes, as `fn main` prints the error that it returns.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The server was drained or closed, and its listener with it.
    #[error("the server is closed: bind a new one to serve again")]
    Closed,
    /// A forking server was asked to serve in a process that has other threads.
    #[error(
        "refusing to fork: the process has {threads} threads, and a child would inherit the locks \
         that the others hold; serve from the main thread before any thread is started, or choose \
         another concurrency model"
    )]
    ThreadsRunning {
        /// How many threads the process has, the calling one included.
        threads: usize,
    },
    /// A forking server needs pidfds, and the system has none or refuses them.
    #[error(
        "cannot watch child processes: {call}(2) is refused; it takes Linux 5.4 or later, and a seccomp \
         profile that allows pidfd_open, pidfd_send_signal and waitid, which that of an older container \
         engine may not: update the engine or change its profile, or use a concurrency model other \
         than forking"
    )]
    NoPidfds {
        /// The system call.
        call: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A group has a forking server and one that has threads.
    #[error(
        "refusing to serve: a forking server cannot fork beside the threads of a {model} one; put \
         them into processes of their own, or choose another concurrency model for one of them"
    )]
    ForkingBesideThreads {
        /// The name of the other model.
        model: &'static str,
    },
    /// Accepting failed in a way that no retry mends (a descriptor that is no listener any more).
    #[error("cannot accept on {address}")]
    Accept {
        /// The listening address.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused what the loop itself needs.
    #[error("cannot {step}")]
    Resources {
        /// What was being set up.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl fmt::Debug for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_causes(f, self)
    }
}

impl fmt::Debug for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_causes(f, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_form_shows_the_causes() {
        let error = BindError::System {
            step: "bind",
            address: "127.0.0.1:1".into(),
            source: io::Error::from(io::ErrorKind::TimedOut),
        };
        assert_eq!(error.to_string(), "cannot bind 127.0.0.1:1");
        assert_eq!(
            format!("{error:?}"),
            "cannot bind 127.0.0.1:1\n  caused by: timed out"
        );
        assert_eq!(io_kind(&error), Some(io::ErrorKind::TimedOut));
    }

    #[test]
    fn question_mark_takes_any_error() {
        fn fails() -> Result<()> {
            String::from_utf8(vec![0xff])?;
            Ok(())
        }
        let error = fails().unwrap_err();
        assert!(error.is::<std::string::FromUtf8Error>());
        assert_eq!(io_kind(&*error), None);
    }
}
