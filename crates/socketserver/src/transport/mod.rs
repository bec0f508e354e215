//! Where requests come from: four transports with one surface.
//!
//! A transport binds, accepts or receives, and says what went wrong; it does not decide what to do
//! about it, and it never runs application code.

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

/// A way for requests to come in: [`Tcp`], [`Udp`], [`UnixStream`] or [`UnixDatagram`].
pub trait Transport: sealed::Sealed + Sized + Send + Sync + 'static {
    /// What a handler is given: a [`Connection`](crate::Connection) or a
    /// [`Datagram`](crate::Datagram).
    type Request: Request;

    /// An address to bind, resolved.
    type Target: fmt::Display + Clone + Send;

    #[doc(hidden)]
    type Listener: AsFd + Send + Sync + 'static;

    /// The transport's name, as endpoints have it: `tcp`, `udp`, `unix`, `unixgram`.
    const NAME: &'static str;

    #[doc(hidden)]
    const IS_DATAGRAM: bool;

    /// The limits on waiting that a server has unless it is told otherwise.
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

    /// Whether a request has left the kernel already, and waits to be got.
    #[doc(hidden)]
    fn has_received(listener: &Self::Listener) -> bool {
        let _ = listener;
        false
    }
}

/// What came in.
#[doc(hidden)]
#[derive(Debug)]
pub enum Accepted<R> {
    /// A request, and its share of its peer's limit.
    Request(R, Option<PeerPermit>),
    /// Somebody who was turned away before anything was made for him, and his connection.
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

/// What can be bound by a transport: anything with IP addresses for [`Tcp`] and [`Udp`], anything
/// like a path for [`UnixStream`] and [`UnixDatagram`] (a leading `@` is an abstract name).
pub trait ToBindAddrs<T: Transport> {
    /// The addresses meant, in the order to try them.
    ///
    /// # Errors
    /// [`BindError::BadAddress`] if there are none.
    fn to_bind_addrs(&self) -> Result<Vec<T::Target>, BindError>;
}

/// Whether a socket bound to `[::]` takes IPv4 clients as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DualStack {
    /// It does; they appear as `[::ffff:a.b.c.d]`.
    #[default]
    Enabled,
    /// IPv6 only: another socket may have the same port for IPv4.
    Disabled,
}

/// The longest datagram there is over IP, header included.
const MAX_PACKET: usize = 65_535;

/// The options of a listening socket, for all transports; the builder shows to each what applies.
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
    /// For datagrams: the longest one that is wanted.
    pub(crate) max_packet_size: usize,
    /// For datagrams: how many times as much may be answered.
    pub(crate) max_amplification: Option<u32>,
    pub(crate) reject_low_ports: bool,
    pub(crate) receive_buffer: Option<usize>,
    pub(crate) send_buffer: Option<usize>,
    pub(crate) nodelay: bool,
    pub(crate) keepalive: Option<TcpKeepalive>,
    pub(crate) user_timeout: Option<std::time::Duration>,
}

/// How a silent TCP connection is probed, so that a peer which has vanished without a word is
/// noticed; see [`Builder::keepalive`](crate::Builder::keepalive).
///
/// The defaults find it out within two minutes: a probe after 60 s, then one every 10 s, and the
/// end when six in a row were not answered.
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
    /// The silence before the first probe, in whole seconds from 1 to 32,767 (`TCP_KEEPIDLE`).
    #[must_use]
    pub const fn idle(mut self, idle: std::time::Duration) -> Self {
        self.idle = idle;
        self
    }

    /// The time between probes, in whole seconds from 1 to 32,767 (`TCP_KEEPINTVL`).
    #[must_use]
    pub const fn interval(mut self, interval: std::time::Duration) -> Self {
        self.interval = interval;
        self
    }

    /// How long it takes to give a peer up.
    pub(crate) fn lasts(self) -> std::time::Duration {
        self.idle
            .saturating_add(self.interval.saturating_mul(self.probes))
    }

    /// How many probes in a row may stay without an answer, from 1 to 127 (`TCP_KEEPCNT`).
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
            // The kernel cuts it down to net.core.somaxconn.
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

/// What a new request is made with.
#[doc(hidden)]
pub struct AcceptContext {
    pub(crate) server: ServerHandle,
    /// Those of new requests, as they were when this turn of the loop began.
    pub(crate) timeouts: std::sync::Arc<Timeouts>,
    /// How many requests may be taken from the kernel at once.
    pub(crate) room: usize,
    /// Nothing more was there when datagrams were received in this turn. What has come since is
    /// reported anew, as listeners are watched level-triggered.
    pub(crate) emptied: bool,
    /// Datagrams that the kernel has dropped, and of which nobody was told yet.
    pub(crate) dropped: u64,
    pub(crate) parker: Option<std::sync::Arc<dyn Parker>>,
}

impl fmt::Debug for AcceptContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intake")
            .field("timeouts", &self.timeouts)
            .finish_non_exhaustive()
    }
}

/// The address a listener is bound to.
pub(crate) fn local_addr(listener: &impl AsFd) -> std::io::Result<Address> {
    Ok(Address::from_any(Some(rustix::net::getsockname(listener)?)))
}
