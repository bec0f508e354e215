//! The errors of the library: what a handler returns, why a bind failed, why serving ended.
//!
//! What happened to one request is not here but in [`crate::HandlerError`].

use std::error::Error as StdError;
use std::path::PathBuf;
use std::{fmt, io};

/// What handlers and hooks return; `Result` alone is `Result<(), Error>`.
pub type Result<T = (), E = Error> = std::result::Result<T, E>;

/// Any error a handler may meet, boxed, so that `?` works on all of them.
///
/// Like the error types of application code, it does not implement [`std::error::Error`] itself:
/// that is what allows the conversion from every type that does. `{}` prints the outermost
/// message, `{:#}` the whole chain on one line, and `{:?}` the chain on several, which is what
/// `fn main() -> socketserver::Result` shows.
///
/// ```
/// fn parse(text: &str) -> socketserver::Result<u16> {
///     Ok(text.trim().parse()?)
/// }
/// let error = parse("no number").unwrap_err();
/// assert!(error.downcast_ref::<std::num::ParseIntError>().is_some());
/// ```
pub struct Error(Box<dyn StdError + Send + Sync>);

impl Error {
    /// An error that is only a message.
    pub fn msg(message: impl Into<String>) -> Self {
        Self(message.into().into())
    }

    /// Takes over an error that is boxed already.
    #[must_use]
    pub fn from_boxed(error: Box<dyn StdError + Send + Sync>) -> Self {
        Self(error)
    }

    /// The error inside, if it is an `E`.
    #[must_use]
    pub fn downcast_ref<E: StdError + 'static>(&self) -> Option<&E> {
        self.0.downcast_ref()
    }

    /// The error itself and then its causes, outermost first.
    pub fn chain(&self) -> impl Iterator<Item = &(dyn StdError + 'static)> {
        let first: &(dyn StdError + 'static) = &*self.0;
        std::iter::successors(Some(first), |&error| error.source())
    }

    /// The kind of the first [`io::Error`] in the chain: `TimedOut` for a wait that reached its
    /// limit, `ConnectionReset` for a peer that went away.
    #[must_use]
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        self.chain()
            .find_map(|error| error.downcast_ref::<io::Error>())
            .map(io::Error::kind)
    }
}

impl<E: StdError + Send + Sync + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        Self(Box::new(error))
    }
}

impl From<Error> for Box<dyn StdError + Send + Sync> {
    fn from(error: Error) -> Self {
        error.0
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            for (depth, error) in self.chain().enumerate() {
                write!(f, "{}{error}", if depth == 0 { "" } else { ": " })?;
            }
            return Ok(());
        }
        self.0.fmt(f)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            return fmt::Debug::fmt(&self.0, f);
        }
        write!(f, "{}", self.0)?;
        for cause in self.chain().skip(1) {
            write!(f, "\n  caused by: {cause}")?;
        }
        Ok(())
    }
}

/// Why a server could not be made. Nothing stays open after one of these.
#[derive(Debug, thiserror::Error)]
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
#[derive(Debug, thiserror::Error)]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_is_shown_whole_in_alternate_and_debug_form() {
        let error = Error::from(BindError::System {
            step: "bind",
            address: "127.0.0.1:1".into(),
            source: io::Error::from(io::ErrorKind::TimedOut),
        });
        assert_eq!(error.to_string(), "cannot bind 127.0.0.1:1");
        assert_eq!(format!("{error:#}"), "cannot bind 127.0.0.1:1: timed out");
        assert_eq!(
            format!("{error:?}"),
            "cannot bind 127.0.0.1:1\n  caused by: timed out"
        );
        assert_eq!(error.io_kind(), Some(io::ErrorKind::TimedOut));
    }

    #[test]
    fn question_mark_takes_any_error() {
        fn fails() -> Result {
            String::from_utf8(vec![0xff])?;
            Ok(())
        }
        let error = fails().unwrap_err();
        assert!(error.downcast_ref::<std::string::FromUtf8Error>().is_some());
        assert_eq!(error.io_kind(), None);
        assert_eq!(Error::msg("plain").to_string(), "plain");
    }
}
