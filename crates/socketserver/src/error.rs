//! Error types: errors of handlers, of binding ([`BindError`]) and of serving ([`ServeError`]).
//!
//! The error of a single request is a [`crate::HandlerError`].

use std::error::Error as StdError;
use std::path::PathBuf;
use std::{fmt, io};

/// The boxed error of a handler or a hook.
///
/// The `?` operator converts every error that is `Send`, `Sync` and `'static` into a `BoxError`,
/// including errors of `anyhow` and `eyre`. A string converts as well: `Err("too many".into())`.
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

/// Returns the error and its causes, outermost first.
pub(crate) fn chain<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// Returns the kind of the first [`io::Error`] in the chain of an error and its causes.
pub(crate) fn io_kind(error: &(dyn StdError + 'static)) -> Option<io::ErrorKind> {
    chain(error)
        .find_map(|error| error.downcast_ref::<io::Error>())
        .map(io::Error::kind)
}

/// Writes an error and its causes on one line.
pub(crate) fn write_chain(
    f: &mut fmt::Formatter<'_>,
    error: &(dyn StdError + 'static),
) -> fmt::Result {
    for (depth, error) in chain(error).enumerate() {
        write!(f, "{}{error}", if depth == 0 { "" } else { ": " })?;
    }
    Ok(())
}

/// Writes an error, and each cause on its own line. `fn main` prints a returned error in this form.
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

/// The reason why a server could not be bound. All sockets of the attempt are closed.
///
/// `{:?}` prints the message and its causes, because `fn main` prints a returned error with `{:?}`.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another socket is bound to the address (`EADDRINUSE`), or a running server answered on the
    /// Unix path.
    #[error("address in use: another socket is bound to {address}; {advice}")]
    AddressInUse {
        /// The requested address.
        address: String,
        /// A suggestion for the operator.
        advice: &'static str,
    },
    /// The system denied the address (`EACCES`, `EPERM`).
    #[error("permission denied: cannot bind {address}; {advice}")]
    PermissionDenied {
        /// The requested address.
        address: String,
        /// A suggestion for the operator.
        advice: &'static str,
    },
    /// The address does not belong to this machine (`EADDRNOTAVAIL`).
    #[error(
        "address not available: {address} is not an address of this machine; use one that `ip address` \
         shows, 127.0.0.1 for this machine only, or 0.0.0.0 for all interfaces"
    )]
    AddressNotAvailable {
        /// The requested address.
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
    /// The path of a Unix socket is taken by a file that is not a socket. The file is left
    /// unchanged.
    #[error(
        "{} exists and is not a socket; remove it or choose another path",
        .path.display()
    )]
    NotASocket {
        /// The path of the socket.
        path: PathBuf,
    },
    /// The path is taken by a Unix socket of another user. This process has no permission to
    /// connect to that socket or to remove it.
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
        /// The state of that socket, as far as known.
        state: &'static str,
    },
    /// The file of a Unix socket was replaced while it was being bound. The new file is left
    /// unchanged.
    #[error(
        "the socket {} was replaced while it was being bound: {found}; use a directory that no other \
         user may write to",
        .path.display()
    )]
    SocketReplaced {
        /// The path of the socket.
        path: PathBuf,
        /// The file that is now at the path.
        found: &'static str,
    },
    /// The text is not an address of this transport.
    #[error("bad address {address}: {reason}")]
    BadAddress {
        /// The address as given by the caller.
        address: String,
        /// The reason why the address is invalid.
        reason: String,
    },
    /// An option has an invalid value.
    #[error("bad option {option}: {reason}")]
    BadOption {
        /// The name of the builder's method.
        option: &'static str,
        /// The reason why the value is invalid.
        reason: String,
    },
    /// The given socket is of the wrong kind.
    #[error("wrong socket: expected {expected}, the descriptor is {found}")]
    WrongSocket {
        /// The kind of socket that the transport needs.
        expected: &'static str,
        /// The kind of the given descriptor.
        found: String,
    },
    /// Any other error of the system.
    #[error("cannot {step} {address}")]
    System {
        /// The step that failed: `bind`, `listen on`, ...
        step: &'static str,
        /// The requested address.
        address: String,
        /// The error of the system.
        source: io::Error,
    },
}

/// The reason why serving ended with an error. A requested shutdown is not an error.
///
/// `{:?}` prints the message and its causes, because `fn main` prints a returned error with `{:?}`.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The server was drained or closed, so its listener is closed, too.
    #[error("the server is closed; bind a new server to serve again")]
    Closed,
    /// A forking server was started in a process with more than one thread.
    #[error(
        "refusing to fork: the process has {threads} threads, and a child would inherit locks \
         that the other threads hold; serve from the main thread before starting any thread, or choose \
         another concurrency model"
    )]
    ThreadsRunning {
        /// The number of threads of the process, including the calling thread.
        threads: usize,
    },
    /// A forking server needs pidfds, and the system lacks or denies them.
    #[error(
        "cannot watch child processes: {call}(2) is not permitted; forking needs Linux 5.4 or \
         later and a seccomp profile that allows pidfd_open, pidfd_send_signal and waitid; \
         update the container engine, change its profile, or use a concurrency model other than \
         forking"
    )]
    NoPidfds {
        /// The system call that failed.
        call: &'static str,
        /// The error of the system.
        source: io::Error,
    },
    /// A group contains a forking server and a server with threads.
    #[error(
        "refusing to serve: a forking server cannot fork beside the threads of a {model} \
         server; run each server in its own process, or choose another concurrency model for one of them"
    )]
    ForkingBesideThreads {
        /// The name of the other concurrency model.
        model: &'static str,
    },
    /// Accepting failed with an error that a retry cannot fix, for example because the descriptor
    /// is no longer a listener.
    #[error("cannot accept on {address}")]
    Accept {
        /// The listening address.
        address: String,
        /// The error of the system.
        source: io::Error,
    },
    /// The system denied a resource that the accept loop needs.
    #[error("cannot {step}")]
    Resources {
        /// The step that failed.
        step: &'static str,
        /// The error of the system.
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
    fn debug_prints_the_causes() {
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
    fn question_mark_converts_any_error() {
        fn fails() -> Result<()> {
            String::from_utf8(vec![0xff])?;
            Ok(())
        }
        let error = fails().unwrap_err();
        assert!(error.is::<std::string::FromUtf8Error>());
        assert_eq!(io_kind(&*error), None);
    }
}
