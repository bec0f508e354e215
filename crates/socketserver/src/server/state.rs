//! The state of a server, as one word for observers.

use std::fmt;

/// The state of a server; see [`ServerHandle::state`](crate::ServerHandle::state).
///
/// | From | To | When |
/// |---|---|---|
/// | `Bound`, `Stopped` | `Serving` | [`serve_forever`](crate::Server::serve_forever) or `handle_request` begins |
/// | `Serving` | `Bound` | `handle_request` returns |
/// | `Serving` | `Stopped` | `serve_forever` returns after a [`shutdown`](crate::ServerHandle::shutdown) |
/// | `Serving` | `LameDuck` | [`set_lame(true)`](crate::ServerHandle::set_lame) |
/// | `LameDuck` | `Serving` | `set_lame(false)` |
/// | `LameDuck` | `Bound`, `Stopped` | as from `Serving`; the server is a lame duck again when it serves again |
/// | any but `Closed` | `Draining` | [`drain`](crate::ServerHandle::drain), or `server_close` |
/// | `Draining` | `Terminating` | the drain's deadline has passed and requests were cancelled |
/// | `Draining`, `Terminating` | `Closed` | the drain is over |
/// | any | `Closed` | the server was dropped |
///
/// Only `Serving` is [ready](Self::is_ready).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum ServerState {
    /// The server is bound and does not serve: not yet, or not between two calls of
    /// `handle_request`. Clients wait in the backlog.
    Bound,
    /// The server accepts.
    Serving,
    /// The server accepts, but asks for no further clients: a load balancer should choose another
    /// server. To avoid rejecting clients, stay a lame duck until the load balancer has noticed,
    /// and then drain.
    LameDuck,
    /// The server drains: it accepts the backlog, and then waits for active requests.
    Draining,
    /// The drain's deadline has passed. The remaining requests are cancelled and have one second to
    /// end.
    Terminating,
    /// The server was stopped, and can serve again. Clients wait in the backlog.
    Stopped,
    /// The listeners are closed. The server cannot serve again.
    Closed,
}

impl ServerState {
    /// All states.
    pub const ALL: [Self; 7] = [
        Self::Bound,
        Self::Serving,
        Self::LameDuck,
        Self::Draining,
        Self::Terminating,
        Self::Stopped,
        Self::Closed,
    ];

    /// Returns the name of the state, in lower case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bound => "bound",
            Self::Serving => "serving",
            Self::LameDuck => "lame_duck",
            Self::Draining => "draining",
            Self::Terminating => "terminating",
            Self::Stopped => "stopped",
            Self::Closed => "closed",
        }
    }

    /// Returns true if new clients should connect: the server serves, and will continue to.
    #[must_use]
    pub const fn is_ready(self) -> bool {
        matches!(self, Self::Serving)
    }

    /// Returns true if requests may still be served.
    #[must_use]
    pub const fn is_live(self) -> bool {
        !matches!(self, Self::Stopped | Self::Closed)
    }

    /// Returns true if the server drains or is closed.
    pub(crate) const fn is_ending(self) -> bool {
        matches!(self, Self::Draining | Self::Terminating | Self::Closed)
    }
}

impl fmt::Display for ServerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `pad` applies the width of the format string.
        f.pad(self.name())
    }
}
