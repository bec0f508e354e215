//! Write a request handler once, in plain blocking style; choose the transport and the concurrency
//! by type.
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
//! Changing `ThreadingTcpServer` to [`TcpServer`], [`ForkingTcpServer`], [`PooledTcpServer`], or
//! (with the feature `green`) `GreenTcpServer` changes how it scales and nothing else.
//!
//! # Layout
//!
//! | Concern | Where |
//! |---|---|
//! | what you write | [`RequestHandler`], [`handler_fn`] |
//! | what it is given | [`Connection`] (TCP, Unix stream), [`Datagram`] (UDP, Unix datagram) |
//! | messages, where a stream has only bytes | `framing`, with the feature of that name |
//! | requests and responses of HTTP | `http`, with the feature of that name |
//! | messages with browsers | `websocket`, with the feature of that name |
//! | the server | [`Server`] and its aliases, [`Builder`] for options and hooks, [`ServerGroup`] |
//! | stopping and looking | [`ServerHandle`]: shutdown, drain, wait, live requests, counters |
//! | sending to many connections at once | [`Room`] |
//! | what is remembered of a datagram's sender | [`Sessions`] |
//! | every limit, with its default | [`limits`], a page of this manual |
//! | limits on waiting | [`Timeouts`] |
//! | limits on numbers | [`Admission`], [`Threading`], [`Pooled`], [`Forking`], `Green`, [`OverloadPolicy`] |
//! | sleeping, locking, blocking in a handler that runs under every model | `greenroom`, re-exported with the feature `green` |
//! | encrypted connections | `Tls`, `TlsIdentity`, with the feature `tls` |
//! | clients behind a proxy | `ProxyProtocol`, with the feature `proxy` |
//! | what happened | [`Event`], [`HandlerError`], and `tracing` |
//! | how it fares | [`ServerState`], [`Counters`]; `metrics`, with the feature of that name |
//! | what went wrong | [`BoxError`], [`BindError`], [`ServeError`] |
//!
//! # Promises
//!
//! * Nothing polls: an idle server makes no system call, and a stop takes effect at once.
//! * Every wait has an end, and nothing is unbounded: see [`Timeouts`] and [`OverloadPolicy`].
//! * Errors and panics of handlers and hooks stay with the request; the server goes on.
//! * Running out of descriptors, threads or processes makes clients wait, and nothing worse.
//! * What was written before a close arrives; what was accepted before a drain is served.
//!
//! # Features
//!
//! None is on by default. `green`: coroutines, and `greenroom`. `framing`: messages out of streams.
//! `tokio-codec`: the codecs of tokio-util for that. `http`: HTTP/1.1. `websocket`: messages with browsers. `metrics`: figures for Prometheus, readiness, and an
//! endpoint that tells them. `proxy`: clients behind HAProxy and its like. `tls`: encryption, by rustls,
//! which is re-exported.
//!
//! # What a server does not do by itself
//!
//! It catches no signal: call [`ServerHandle::drain`] from whatever does. It prints nothing: errors of
//! handlers go to [`Builder::handle_error`] or, without one, to `tracing`, for which the application
//! installs a subscriber.
//!
//! # Platform
//!
//! Linux 5.11 or later (`epoll_pwait2`).

#[cfg(feature = "green")]
#[doc(no_inline)]
pub use greenroom;

#[cfg(not(target_os = "linux"))]
compile_error!("socketserver is built on epoll, eventfd and pidfd: it needs Linux");

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
