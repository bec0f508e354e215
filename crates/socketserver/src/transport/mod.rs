//! Sources of requests: four transports with the same interface.
//!
//! A transport binds, accepts or receives, and returns errors. It does not decide how to handle an
//! error, and it never runs application code.

mod buffer_sizes;
mod datagram_socket;
mod inet;
mod own;
mod stream_listener;
mod tcp;
mod udp;
mod unix_datagram;
mod unix_path;
mod unix_stream;

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

pub use tcp::Tcp;
pub use udp::Udp;
pub use unix_datagram::UnixDatagram;
pub use unix_stream::UnixStream;

use crate::admission::PeerPermit;
use crate::park::Parker;
use crate::server::{Request, ServerHandle};
use crate::{Address, BindError, Rejection, Timeouts};

/// A transport of requests: [`Tcp`], [`Udp`], [`UnixStream`] or [`UnixDatagram`].
pub trait Transport: sealed::Sealed + Sized + Send + Sync + 'static {
    /// The request type of a handler: a [`Connection`](crate::Connection) or a
    /// [`Datagram`](crate::Datagram).
    type Request: Request;

    /// A resolved address to bind.
    type Target: fmt::Display + Clone + Send;

    #[doc(hidden)]
    type Listener: AsFd + Send + Sync + 'static;

    /// The name of the transport in endpoints: `tcp`, `udp`, `unix`, `unixgram`.
    const NAME: &'static str;

    #[doc(hidden)]
    const IS_DATAGRAM: bool;

    /// Returns the default timeouts of a server with this transport.
    fn default_timeouts() -> Timeouts;

    #[doc(hidden)]
    fn server_bind(
        target: &Self::Target,
        options: &SocketOptions,
    ) -> Result<Self::Listener, BindError>;

    #[doc(hidden)]
    fn adopt(fd: OwnedFd, options: &SocketOptions) -> Result<Self::Listener, BindError>;

    /// Makes this process the one that cleans up after the listener.
    #[doc(hidden)]
    fn take_over(listener: &Self::Listener) {
        let _ = listener;
    }

    /// Stops the kernel from adding connections, before the listener is closed for good.
    #[doc(hidden)]
    fn ignore_newcomers(listener: &Self::Listener) {
        let _ = listener;
    }

    #[doc(hidden)]
    fn get_request(
        listener: &mut Self::Listener,
        accept_context: &mut AcceptContext,
    ) -> rustix::io::Result<Accepted<Self::Request>>;

    /// Returns true if a received request is buffered in this process.
    #[doc(hidden)]
    fn has_received(listener: &Self::Listener) -> bool {
        let _ = listener;
        false
    }
}

/// The result of accepting or receiving.
#[doc(hidden)]
#[derive(Debug)]
pub enum Accepted<R> {
    /// A request, with the permit of its peer's limit.
    Request(R, Option<PeerPermit>),
    /// A rejected client with its connection; no handler state was created.
    Rejected(Address, Option<OwnedFd>, Rejection),
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Tcp {}
    impl Sealed for super::Udp {}
    impl Sealed for super::UnixStream {}
    impl Sealed for super::UnixDatagram {}
}

/// The transports over IP: [`Tcp`] and [`Udp`].
pub trait InetTransport: Transport {}
impl InetTransport for Tcp {}
impl InetTransport for Udp {}

/// The transports over Unix sockets: [`UnixStream`] and [`UnixDatagram`].
pub trait UnixTransport: Transport {}
impl UnixTransport for UnixStream {}
impl UnixTransport for UnixDatagram {}

/// The transports that accept connections: [`Tcp`] and [`UnixStream`].
pub trait StreamTransport: Transport {}
impl StreamTransport for Tcp {}
impl StreamTransport for UnixStream {}

/// The transports that receive datagrams: [`Udp`] and [`UnixDatagram`].
pub trait DatagramTransport: Transport {}
impl DatagramTransport for Udp {}
impl DatagramTransport for UnixDatagram {}

/// A value that a transport can bind. [`Tcp`] and [`Udp`] bind IP addresses. [`UnixStream`] and
/// [`UnixDatagram`] bind paths, where a leading `@` marks an abstract name.
pub trait ToBindAddrs<T: Transport> {
    /// Returns the addresses, in the order in which to try them.
    ///
    /// # Errors
    /// Returns [`BindError::BadAddress`] if there are none.
    fn to_bind_addrs(&self) -> Result<Vec<T::Target>, BindError>;
}

/// The choice of whether a socket bound to `[::]` also accepts IPv4 clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DualStack {
    /// IPv4 clients are accepted; their addresses have the form `[::ffff:a.b.c.d]`.
    #[default]
    Enabled,
    /// IPv6 only: another socket can bind the same port for IPv4.
    Disabled,
}

/// Maximum length of a datagram over IP, header included.
const MAX_PACKET: usize = 65_535;

/// The options of a listening socket, for all transports. The builder offers only the options that
/// apply to its transport.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub struct SocketOptions {
    pub(crate) reuse_address: bool,
    pub(crate) reuse_port: bool,
    pub(crate) dual_stack: DualStack,
    pub(crate) backlog: i32,
    pub(crate) mode: u32,
    pub(crate) owner: unix_path::Owner,
    pub(crate) write_timeout: Option<std::time::Duration>,
    /// Maximum length of a received datagram.
    pub(crate) max_packet_size: usize,
    /// Maximum ratio of reply bytes to received bytes.
    pub(crate) max_amplification: Option<u32>,
    pub(crate) reject_low_ports: bool,
    pub(crate) receive_buffer: Option<usize>,
    pub(crate) send_buffer: Option<usize>,
    pub(crate) nodelay: bool,
    pub(crate) keepalive: Option<TcpKeepalive>,
    pub(crate) user_timeout: Option<std::time::Duration>,
}

/// TCP keep-alive probes of silent connections, which detect a vanished peer; see
/// [`Builder::keepalive`](crate::Builder::keepalive).
///
/// The default settings detect a vanished peer within two minutes. The kernel sends the first probe
/// after 60 s and then one every 10 s, and closes the connection after six unanswered probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpKeepalive {
    pub(crate) idle: std::time::Duration,
    pub(crate) interval: std::time::Duration,
    pub(crate) probes: u32,
}

impl Default for TcpKeepalive {
    fn default() -> Self {
        Self {
            idle: std::time::Duration::from_secs(60),
            interval: std::time::Duration::from_secs(10),
            probes: 6,
        }
    }
}

impl TcpKeepalive {
    /// Sets the idle time before the first probe, in whole seconds from 1 to 32,767
    /// (`TCP_KEEPIDLE`). Defaults to 60 s.
    #[must_use]
    pub const fn idle(mut self, idle: std::time::Duration) -> Self {
        self.idle = idle;
        self
    }

    /// Sets the interval between probes, in whole seconds from 1 to 32,767 (`TCP_KEEPINTVL`).
    /// Defaults to 10 s.
    #[must_use]
    pub const fn interval(mut self, interval: std::time::Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Returns the time after which a vanished peer is detected.
    pub(crate) fn lasts(self) -> std::time::Duration {
        self.idle
            .saturating_add(self.interval.saturating_mul(self.probes))
    }

    /// Sets the maximum number of consecutive unanswered probes, from 1 to 127 (`TCP_KEEPCNT`).
    /// Defaults to 6.
    #[must_use]
    pub const fn probes(mut self, probes: u32) -> Self {
        self.probes = probes;
        self
    }
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            reuse_address: true,
            reuse_port: false,
            dual_stack: DualStack::Enabled,
            // The kernel limits the backlog to net.core.somaxconn.
            backlog: i32::MAX,
            mode: 0o600,
            owner: unix_path::Owner::default(),
            write_timeout: None,
            max_packet_size: MAX_PACKET,
            max_amplification: None,
            reject_low_ports: false,
            receive_buffer: None,
            send_buffer: None,
            nodelay: true,
            keepalive: None,
            user_timeout: None,
        }
    }
}

/// The context in which a transport creates a request.
#[doc(hidden)]
pub struct AcceptContext {
    pub(crate) server: ServerHandle,
    /// Timeouts of new requests, as of the start of this iteration of the accept loop.
    pub(crate) timeouts: std::sync::Arc<Timeouts>,
    /// Maximum number of requests to take from the kernel at once.
    pub(crate) room: usize,
    /// True if the socket had no further datagram at the last receive of this iteration. Datagrams
    /// that arrive later are reported again, because listeners are watched level-triggered.
    pub(crate) emptied: bool,
    /// Number of datagrams dropped by the kernel that are not reported yet.
    pub(crate) dropped: u64,
    pub(crate) parker: Option<std::sync::Arc<dyn Parker>>,
}

impl fmt::Debug for AcceptContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcceptContext")
            .field("timeouts", &self.timeouts)
            .finish_non_exhaustive()
    }
}

/// Returns the address to which a listener is bound.
pub(crate) fn local_addr(listener: &impl AsFd) -> std::io::Result<Address> {
    Ok(Address::from_any(Some(rustix::net::getsockname(listener)?)))
}
