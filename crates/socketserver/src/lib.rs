//! Write a network server's handler once, in plain blocking style. Choose the transport and the
//! concurrency model by type.
//!
//! ```no_run
//! use socketserver::{Connection, RequestHandler, Result, ThreadingTcpServer};
//! use std::io::{Read, Write};
//!
//! #[derive(Default)]
//! struct Upper;
//!
//! impl RequestHandler<Connection> for Upper {
//!     fn handle(&mut self, conn: &mut Connection) -> Result<()> {
//!         let mut buf = [0; 1024];
//!         loop {
//!             match conn.read(&mut buf)? {
//!                 0 => return Ok(()),
//!                 n => { buf[..n].make_ascii_uppercase(); conn.write_all(&buf[..n])?; }
//!             }
//!         }
//!     }
//! }
//!
//! fn main() -> Result<()> {
//!     ThreadingTcpServer::bind("127.0.0.1:8888", Upper::default)?.serve_forever()?;
//!     Ok(())
//! }
//! ```
//!
//! Replace `ThreadingTcpServer` with [`TcpServer`], [`ForkingTcpServer`], [`PooledTcpServer`], or
//! (with the feature `green`) `GreenTcpServer`, and only the concurrency model changes.
//!
//! # Layout
//!
//! | Concern | Where |
//! |---|---|
//! | handlers | [`RequestHandler`], [`handler_fn`] |
//! | the request that a handler serves | [`Connection`] (TCP, Unix stream), [`Datagram`] (UDP, Unix datagram) |
//! | messages in a byte stream | `framing`, with the feature of that name |
//! | HTTP requests and responses | `http`, with the feature of that name |
//! | WebSocket messages | `websocket`, with the feature of that name |
//! | servers | [`Server`] and its aliases, [`Builder`] for options and hooks, [`ServerGroup`] |
//! | stop, drain, wait, active requests, counters | [`ServerHandle`] |
//! | broadcasts to many connections | [`Room`] |
//! | state for each sender of datagrams | [`Sessions`] |
//! | every limit, with its default | [`limits`], a page of this manual |
//! | time limits | [`Timeouts`] |
//! | limits on numbers | [`Admission`], [`Threading`], [`Pooled`], [`Forking`], `Green`, [`OverloadPolicy`] |
//! | which connections make room when the server is full | [`Displacement`] |
//! | sleep, locks and blocking calls in a handler that runs under every model | `greenroom`, re-exported with the feature `green` |
//! | encrypted connections | `Tls`, `TlsIdentity`, with the feature `tls` |
//! | clients behind a proxy | `ProxyProtocol`, with the feature `proxy` |
//! | events | [`Event`], [`HandlerError`], and `tracing` |
//! | health and statistics | [`ServerState`], [`Counters`]; `metrics`, with the feature of that name |
//! | errors | [`BoxError`], [`BindError`], [`ServeError`] |
//!
//! # Guarantees
//!
//! * An idle server does not poll: it makes no system call. A stop takes effect at once.
//! * Every wait has a time limit, and every queue has a bound: see [`Timeouts`] and
//!   [`OverloadPolicy`].
//! * An error or a panic in a handler or a hook ends one request. The server continues.
//! * When descriptors, threads or processes run out, clients wait until some are free.
//! * Data written before a close arrives. Connections accepted before a drain are served.
//!
//! # Features
//!
//! No feature is on by default. A feature adds; it never changes what another feature does.
//!
//! | Feature | Adds |
//! |---|---|
//! | `green` | the coroutine model, and the crate `greenroom` with its sockets, locks, `sleep` and `unblock` |
//! | `framing` | messages from byte streams: lines, length prefixes, netstrings, JSON headers |
//! | `tokio-codec` | the codecs of `tokio-util` for `framing` |
//! | `http` | HTTP/1.1: a handler trait, streamed bodies, files with ranges and conditions |
//! | `websocket` | WebSocket (RFC 6455) on top of `http` |
//! | `tls` | TLS 1.2 and 1.3 by `rustls`, which is re-exported |
//! | `proxy` | the client's address from the PROXY protocol, versions 1 and 2 |
//! | `metrics` | counters in the format of Prometheus, and an endpoint for them and for health probes |
//!
//! # The application's part
//!
//! A server catches no signal: call [`ServerHandle::drain`] from your signal handler. A server prints
//! nothing: errors of handlers go to [`Builder::handle_error`] or, without that hook, to `tracing`.
//! Install a `tracing` subscriber to see them.
//!
//! # Platform
//!
//! Linux 5.11 or later (`epoll_pwait2`).

#[cfg(feature = "green")]
#[doc(no_inline)]
pub use greenroom;

#[cfg(not(target_os = "linux"))]
compile_error!("socketserver is built on epoll, eventfd and pidfd: it runs on Linux only");

mod address;
mod admission;
mod concurrency;
mod connection;
mod datagram;
mod error;
mod event;
#[cfg(feature = "framing")]
pub mod framing;
mod handler;
#[cfg(feature = "http")]
pub mod http;
pub mod limits;
#[cfg(feature = "metrics")]
pub mod metrics;
mod notify;
mod park;
mod preamble;
mod process;
mod room;
#[cfg(any(feature = "tls", feature = "websocket"))]
mod send_lock;
mod server;
mod sessions;
mod socket;
mod timeouts;
#[cfg(feature = "tls")]
mod tls;
pub mod transport;
mod user_code;
mod waiting;
#[cfg(feature = "websocket")]
pub mod websocket;

pub use address::{Address, Credentials, UnixAddress};
pub use admission::{Admission, Network, ParseNetworkError, ParseRateError, Rate};
#[cfg(feature = "green")]
pub use concurrency::Green;
pub use concurrency::{Concurrency, Forking, OverloadPolicy, Pooled, Sequential, Threading};
pub use connection::{Connection, WriteHalf};
pub use datagram::{AmplificationExceeded, Datagram};
pub use error::{BindError, BoxError, Result, ServeError};
pub use event::{Counters, EndReason, Event, Rejection, RequestSummary};
pub use handler::{HandlerFn, RequestHandler, handler_fn};
#[cfg(feature = "tls")]
pub use preamble::TlsHandshakeError;
#[cfg(feature = "proxy")]
pub use preamble::{ProxyHeader, ProxyHeaderError, ProxyProtocol};
pub use room::{Member, Room, RoomCounters, RoomLimits};
#[cfg(feature = "tls")]
pub use rustls;
pub use server::{
    ActiveRequest, Builder, Displacement, DrainReport, GroupHandle, Request, RequestId,
    RequestInfo, RequestOutcome, RequestState, Server, ServerGroup, ServerHandle, ServerState,
    Watched,
};
pub use sessions::{SessionError, SessionLimits, Sessions};
pub use timeouts::{MinRate, Timeouts};
#[cfg(feature = "tls")]
pub use tls::{CertificateDates, Tls, TlsConfigError, TlsIdentity, TlsInfo};
pub use transport::{DualStack, TcpKeepalive, Transport};
pub use user_code::{HandlerError, HandlerErrorKind, Phase};

use transport::{Tcp, Udp, UnixDatagram, UnixStream};

/// TCP, one request at a time.
pub type TcpServer = Server<Tcp, Sequential>;
/// UDP, one request at a time.
pub type UdpServer = Server<Udp, Sequential>;
/// Unix stream, one request at a time.
pub type UnixStreamServer = Server<UnixStream, Sequential>;
/// Unix datagram, one request at a time.
pub type UnixDatagramServer = Server<UnixDatagram, Sequential>;

/// TCP, a thread per connection.
pub type ThreadingTcpServer = Server<Tcp, Threading>;
/// UDP, a thread per datagram.
pub type ThreadingUdpServer = Server<Udp, Threading>;
/// Unix stream, a thread per connection.
pub type ThreadingUnixStreamServer = Server<UnixStream, Threading>;
/// Unix datagram, a thread per datagram.
pub type ThreadingUnixDatagramServer = Server<UnixDatagram, Threading>;

/// TCP, a process per connection.
pub type ForkingTcpServer = Server<Tcp, Forking>;
/// UDP, a process per datagram.
pub type ForkingUdpServer = Server<Udp, Forking>;
/// Unix stream, a process per connection.
pub type ForkingUnixStreamServer = Server<UnixStream, Forking>;
/// Unix datagram, a process per datagram.
pub type ForkingUnixDatagramServer = Server<UnixDatagram, Forking>;

/// TCP, on a bounded pool of threads.
pub type PooledTcpServer = Server<Tcp, Pooled>;
/// UDP, on a bounded pool of threads.
pub type PooledUdpServer = Server<Udp, Pooled>;
/// Unix stream, on a bounded pool of threads.
pub type PooledUnixStreamServer = Server<UnixStream, Pooled>;
/// Unix datagram, on a bounded pool of threads.
pub type PooledUnixDatagramServer = Server<UnixDatagram, Pooled>;

/// TCP, a coroutine per connection.
#[cfg(feature = "green")]
pub type GreenTcpServer = Server<Tcp, Green>;
/// UDP, a coroutine per datagram.
#[cfg(feature = "green")]
pub type GreenUdpServer = Server<Udp, Green>;
/// Unix stream, a coroutine per connection.
#[cfg(feature = "green")]
pub type GreenUnixStreamServer = Server<UnixStream, Green>;
/// Unix datagram, a coroutine per datagram.
#[cfg(feature = "green")]
pub type GreenUnixDatagramServer = Server<UnixDatagram, Green>;
