//! What a server is doing, as one word for whoever looks from outside.

use std::fmt;

/// What a server is doing; see [`ServerHandle::state`](crate::ServerHandle::state).
///
/// | From | To | When |
/// |---|---|---|
/// | `New`, `Stopped` | `Serving` | [`serve_forever`](crate::Server::serve_forever) or `handle_request` begins |
/// | `Serving` | `New` | `handle_request` returns |
/// | `Serving` | `Stopped` | `serve_forever` returns after a [`shutdown`](crate::ServerHandle::shutdown) |
/// | `Serving` | `Lame` | [`set_lame(true)`](crate::ServerHandle::set_lame) |
/// | `Lame` | `Serving` | `set_lame(false)` |
/// | `Lame` | `New`, `Stopped` | as from `Serving`; it is lame again when it serves again |
/// | any but `Closed` | `Draining` | [`drain`](crate::ServerHandle::drain), or `server_close` |
/// | `Draining` | `Forced` | the drain's deadline has passed and something had to be cut |
/// | `Draining`, `Forced` | `Closed` | the drain is over |
/// | any | `Closed` | the server was dropped |
///
/// Only `Serving` is [ready](Self::is_ready).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum ServerState {
    /// It is bound and does not serve: not yet, or not between two calls of `handle_request`. Clients
    /// wait in the backlog.
    Bound,
    /// It accepts.
    Serving,
    /// It accepts, and asks not to be given more: whoever distributes clients should take others.
    /// So that none is turned away, be lame for as long as it takes to hear of it, and drain then.
    LameDuck,
    /// It comes to its end: it takes what waits in the backlog, and then waits for live requests.
    Draining,
    /// The time for that was over, what was left was cut, and has a last second to notice.
    Terminating,
    /// It was stopped, and can serve again. Clients wait in the backlog.
    Stopped,
    /// Its listeners are closed, for good.
    Closed,
}

impl ServerState {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Bound,
        Self::Serving,
        Self::LameDuck,
        Self::Draining,
        Self::Terminating,
        Self::Stopped,
        Self::Closed,
    ];

    /// Its name, in lower case.
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

    /// Whether new clients should come: it serves, and nothing is about to change that.
    #[must_use]
    pub const fn is_ready(self) -> bool {
        matches!(self, Self::Serving)
    }

    /// Whether requests may still be served.
    #[must_use]
    pub const fn is_live(self) -> bool {
        !matches!(self, Self::Stopped | Self::Closed)
    }

    /// Whether it comes to its end, or has.
    pub(crate) const fn is_ending(self) -> bool {
        matches!(self, Self::Draining | Self::Terminating | Self::Closed)
    }
}

impl fmt::Display for ServerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // With the padding that is asked for.
        f.pad(self.name())
    }
}
