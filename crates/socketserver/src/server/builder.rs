//! The options of a server, set before it binds.

use std::fmt;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::accept::{ListenerSlot, LoopState};
use super::displacement::Displacement;
use super::handle::{HandleError, Shared};
use super::lifecycle::DEFAULT_DRAIN;
use super::poller::Poller;
use super::rejection::{NOTICE, Rejector};
use super::{Hooks, RequestInfo, Server, ServerHandle};
use crate::concurrency::Concurrency;
use crate::event::{Event, EventSink};
use crate::preamble::PreambleConfig;
use crate::transport::{
    AcceptContext, DatagramTransport, DualStack, InetTransport, SocketOptions, Tcp, TcpKeepalive,
    ToBindAddrs, Transport, Udp, UnixTransport, local_addr,
};
use crate::user_code::HandlerError;
use crate::{Admission, BindError, RequestHandler, Result, Timeouts};

/// The minimum of the default `TCP_USER_TIMEOUT`.
const UNCONFIRMED: Duration = Duration::from_secs(10);

/// Options of a server that is not bound yet; see [`Server::builder`].
///
/// Hooks run on the serving thread, except `handle_error` and `on_event`, which run on the thread
/// where the error or the event occurs. A hook may fail or panic. The server then emits
/// [`Event::HookFailed`] and continues.
pub struct Builder<T: Transport, C> {
    concurrency: C,
    timeouts: Timeouts,
    options: SocketOptions,
    admission: Admission,
    rejection_message: Box<[u8]>,
    block_on_close: Option<Duration>,
    displacement: Displacement,
    reserved_descriptors: usize,
    #[cfg(feature = "proxy")]
    proxy: Option<crate::ProxyProtocol>,
    #[cfg(feature = "tls")]
    tls: Option<crate::Tls>,
    hooks: Hooks<T::Request>,
    handle_error: Option<HandleError>,
    sink: EventSink,
    transport: PhantomData<fn() -> T>,
}

impl<T: Transport, C: Concurrency> Builder<T, C> {
    pub(crate) fn new() -> Self {
        Self {
            concurrency: C::default(),
            timeouts: T::default_timeouts(),
            options: SocketOptions::default(),
            admission: Admission::default(),
            rejection_message: Box::default(),
            block_on_close: Some(DEFAULT_DRAIN),
            displacement: Displacement::default(),
            reserved_descriptors: 0,
            #[cfg(feature = "proxy")]
            proxy: None,
            #[cfg(feature = "tls")]
            tls: None,
            hooks: Hooks {
                verify_request: None,
                handle_timeout: None,
                service_actions: None,
            },
            handle_error: None,
            sink: EventSink::default(),
            transport: PhantomData,
        }
    }

    /// Sets the concurrency model, with options of its own.
    #[must_use]
    pub fn concurrency(mut self, model: C) -> Self {
        self.concurrency = model;
        self
    }

    /// Sets the time limits that every request starts with.
    #[must_use]
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// Sets the admission rules: which networks are admitted, how many connections an address may
    /// have, and at what rate. Defaults to no limits.
    #[must_use]
    pub fn admission(mut self, admission: Admission) -> Self {
        self.admission = admission;
        self
    }

    /// Sets how long [`server_close`](Server::server_close) waits for requests to end before it
    /// cancels them. Defaults to 30 s. With `None`, `server_close` closes the listeners and does
    /// not wait.
    #[must_use]
    pub fn block_on_close(mut self, timeout: Option<Duration>) -> Self {
        self.block_on_close = timeout;
        self
    }

    /// Sets which connections are cancelled while the server is full and another client waits. By
    /// default these are connections that use nothing.
    #[must_use]
    pub fn displacement(mut self, displacement: Displacement) -> Self {
        self.displacement = displacement;
        self
    }

    /// Sets how many descriptors are held in reserve. The server releases them to accept clients
    /// when the process has no other descriptor left. Defaults to 0. A health endpoint needs this,
    /// because it has to answer when another server of the process has used up all descriptors. A
    /// request of a forking server takes three descriptors. The reserve has no effect where clients
    /// [wait](crate::OverloadPolicy::Wait).
    #[must_use]
    pub fn reserved_descriptors(mut self, count: usize) -> Self {
        self.reserved_descriptors = count;
        self
    }

    /// Sets a hook that decides about each request before its handler is made. `Ok(false)` and an
    /// error close the request. The hook must not block, because the server accepts no other
    /// request while it runs. No byte has been read yet: behind a trusted proxy (`proxy_protocol`)
    /// the peer is still the proxy.
    #[must_use]
    pub fn verify_request(
        mut self,
        hook: impl Fn(&T::Request) -> Result<bool> + Send + Sync + 'static,
    ) -> Self {
        self.hooks.verify_request = Some(Box::new(hook));
        self
    }

    /// Sets a hook for the error or panic of a handler, called once for each. By default the error
    /// is logged through `tracing`. A peer that disconnects and a connection that the server
    /// cancels are not errors. Under a forking server the hook runs in the child.
    #[must_use]
    pub fn handle_error(
        mut self,
        hook: impl Fn(&RequestInfo, &HandlerError) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.handle_error = Some(Box::new(hook));
        self
    }

    /// Sets a hook that is called when [`handle_request`](Server::handle_request) times out without
    /// a request.
    #[must_use]
    pub fn handle_timeout(mut self, hook: impl FnMut() -> Result<()> + Send + 'static) -> Self {
        self.hooks.handle_timeout = Some(Box::new(hook));
        self
    }

    /// Sets a hook that `serve_forever` calls between requests, once per `interval`. The interval
    /// is at least 1 ms.
    #[must_use]
    pub fn service_actions(
        mut self,
        interval: Duration,
        hook: impl FnMut() -> Result<()> + Send + 'static,
    ) -> Self {
        let interval = interval.max(Duration::from_millis(1));
        self.hooks.service_actions = Some((interval, Box::new(hook)));
        self
    }

    /// Adds an observer that is called for every event, on the thread where the event occurs. The
    /// observer must not block. Several observers are called in the order in which they were added.
    /// An observer that fails does not affect the others.
    #[must_use]
    pub fn on_event(mut self, observer: impl Fn(&Event<'_>) + Send + Sync + 'static) -> Self {
        self.sink.subscribe(Box::new(observer));
        self
    }

    /// Binds and listens.
    ///
    /// If the address is a name with several addresses, the server binds the first that can be
    /// bound.
    ///
    /// # Errors
    /// Returns a [`BindError`] if the address is invalid or cannot be bound. No socket stays open
    /// then.
    pub fn bind<F, H>(
        self,
        address: impl ToBindAddrs<T>,
        factory: F,
    ) -> Result<Server<T, C>, BindError>
    where
        F: Fn() -> H + Send + Sync + 'static,
        H: RequestHandler<T::Request>,
    {
        self.bind_all([address], factory)
    }

    /// Binds and listens on several addresses: one server, one limit, one stop.
    ///
    /// # Errors
    /// Returns a [`BindError`] if one address fails. No socket stays open then.
    pub fn bind_all<F, H>(
        self,
        addresses: impl IntoIterator<Item = impl ToBindAddrs<T>>,
        factory: F,
    ) -> Result<Server<T, C>, BindError>
    where
        F: Fn() -> H + Send + Sync + 'static,
        H: RequestHandler<T::Request>,
    {
        let options = self.checked_options()?;
        let listen = |address| bind_first::<T>(&address, &options);
        let listeners = addresses
            .into_iter()
            .map(listen)
            .collect::<Result<Vec<_>, _>>()?;
        self.serve(listeners, factory)
    }

    /// Serves on a socket that exists already: a standard library listener, or an inherited
    /// descriptor. A stream socket that does not listen yet is made to listen.
    ///
    /// The server keeps the options of the socket, with four exceptions: its blocking mode; for
    /// datagrams, its send timeout and the data that the kernel adds to each datagram; and buffer
    /// sizes that were [set](Self::receive_buffer). These options affect all processes that share
    /// the socket. The file of an adopted Unix socket is not removed at the end, because the server
    /// did not create it.
    ///
    /// # Errors
    /// Returns [`BindError::WrongSocket`] if the socket is of another kind.
    pub fn adopt<F, H>(
        self,
        socket: impl Into<OwnedFd>,
        factory: F,
    ) -> Result<Server<T, C>, BindError>
    where
        F: Fn() -> H + Send + Sync + 'static,
        H: RequestHandler<T::Request>,
    {
        let listener = T::adopt(socket.into(), &self.checked_options()?)?;
        self.serve(vec![listener], factory)
    }

    pub(crate) fn checked_options(&self) -> Result<SocketOptions, BindError> {
        if let Some(name) = self.timeouts.zero() {
            return Err(BindError::BadOption {
                option: "timeouts",
                reason: format!("{name} is zero, which would fail every wait; None is no limit"),
            });
        }
        if self.rejection_message.len() > NOTICE {
            return Err(BindError::BadOption {
                option: "rejection_message",
                reason: format!("it is longer than {NOTICE} bytes"),
            });
        }
        #[cfg(feature = "proxy")]
        if let Some(proxy) = &self.proxy {
            proxy.check(C::FORKS && self.admission.counts_peers())?;
        }
        let write_timeout = self.timeouts.write;
        let user_timeout = self.options.user_timeout.or_else(|| {
            // A limit shorter than a full series of keepalive probes would end a connection for one
            // lost probe: see `TCP_USER_TIMEOUT` in tcp(7).
            let probing = self.options.keepalive.map(TcpKeepalive::lasts);
            // A blocked write must reach its own limit first. It may wait for that limit twice,
            // because a partial send starts the limit again. A short write timeout needs the
            // minimum, because timers can be late.
            let unconfirmed = write_timeout?.saturating_mul(3).max(UNCONFIRMED);
            Some(probing.map_or(unconfirmed, |probing| unconfirmed.max(probing)))
        });
        Ok(SocketOptions {
            write_timeout,
            user_timeout,
            ..self.options.clone()
        })
    }

    fn serve<F, H>(self, listeners: Vec<T::Listener>, factory: F) -> Result<Server<T, C>, BindError>
    where
        F: Fn() -> H + Send + Sync + 'static,
        H: RequestHandler<T::Request>,
    {
        if listeners.is_empty() {
            return Err(BindError::BadAddress {
                address: "(none)".into(),
                reason: "a server needs at least one address".into(),
            });
        }
        let failed = |step| {
            move |source| BindError::System {
                step,
                address: "a server".into(),
                source,
            }
        };
        #[cfg(feature = "tls")]
        let speaks_plainly = self.tls.is_none();
        #[cfg(not(feature = "tls"))]
        let speaks_plainly = true;
        let rejection_message: Arc<[u8]> = if speaks_plainly {
            self.rejection_message.into()
        } else {
            Arc::default()
        };
        let preamble = PreambleConfig {
            #[cfg(feature = "proxy")]
            proxy: self.proxy,
            #[cfg(feature = "tls")]
            tls: self.tls,
            rejection_message: rejection_message.clone(),
        };
        let timeouts = self.timeouts;
        let shared = Shared::new(
            self.sink,
            self.handle_error,
            timeouts,
            preamble,
            self.concurrency.limit().0,
            self.displacement,
            C::FORKS,
        )
        .map_err(failed("make a wake-up descriptor for"))?;
        shared.admission.set(self.admission);
        let listeners = listeners
            .into_iter()
            .map(|listener| {
                local_addr(&listener).map(|address| ListenerSlot::new(listener, address))
            })
            .collect::<std::io::Result<_>>()
            .map_err(failed("look up the address of"))?;
        // Made at bind time, so that a bound server can serve even if no descriptor is left later.
        let parker = self.concurrency.loop_parker();
        let poller = Poller::new(parker.as_deref())
            .map_err(std::io::Error::other)
            .map_err(failed("make an epoll set for"))?;
        let server = ServerHandle(shared.clone());
        let accept_context = AcceptContext {
            parker: self.concurrency.parker(&server),
            server,
            timeouts: shared.timeouts(),
            room: 1,
            emptied: false,
            dropped: 0,
        };
        Ok(Server {
            shared,
            listeners,
            concurrency: self.concurrency,
            factory: Arc::new(factory),
            accept_context,
            hooks: self.hooks,
            block_on_close: self.block_on_close,
            watches: Vec::new(),
            poller: Some(poller),
            progress: LoopState::default(),
            rejections: Rejector::new(rejection_message, self.reserved_descriptors),
        })
    }
}

fn bind_first<T: Transport>(
    address: &impl ToBindAddrs<T>,
    options: &SocketOptions,
) -> Result<T::Listener, BindError> {
    let mut last = None;
    for target in address.to_bind_addrs()? {
        match T::server_bind(&target, options) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| BindError::BadAddress {
        address: "(none)".into(),
        reason: "the name has no address".into(),
    }))
}

impl<T: InetTransport, C: Concurrency> Builder<T, C> {
    /// Lets several sockets share the port, if all of them set this option (`SO_REUSEPORT`).
    #[must_use]
    pub fn reuse_port(mut self) -> Self {
        self.options.reuse_port = true;
        self
    }

    /// Sets whether a server on `[::]` also accepts IPv4 clients. By default it does.
    #[must_use]
    pub fn dual_stack(mut self, dual_stack: DualStack) -> Self {
        self.options.dual_stack = dual_stack;
        self
    }
}

impl<C: Concurrency> Builder<Tcp, C> {
    /// Leaves `SO_REUSEADDR` unset. After a restart, binding can then fail with "address in use"
    /// for a minute.
    #[must_use]
    pub fn without_reuse_address(mut self) -> Self {
        self.options.reuse_address = false;
        self
    }

    /// Enables keepalive probes on silent connections. A peer that has lost its power or its
    /// network is then detected, and the connection fails. Off by default, because the idle timeout
    /// ends such connections, too.
    ///
    /// Binding fails for values that the kernel does not accept; see [`TcpKeepalive`].
    #[must_use]
    pub fn keepalive(mut self, keepalive: TcpKeepalive) -> Self {
        self.options.keepalive = Some(keepalive);
        self
    }

    /// Sets how long sent data may stay unacknowledged before the connection fails
    /// (`TCP_USER_TIMEOUT`, [RFC 5482](https://www.rfc-editor.org/rfc/rfc5482)).
    ///
    /// Defaults to three times the [write timeout](Timeouts::write) and at least 10 s, or to the
    /// duration of a [`keepalive`](Self::keepalive) series if that is longer. Without a write
    /// timeout, the kernel's limit of about 15 minutes applies. This limit also replaces the limit
    /// of keepalive, so set it to a longer time.
    #[must_use]
    pub fn user_timeout(mut self, limit: Duration) -> Self {
        self.options.user_timeout = Some(limit);
        self
    }

    /// Leaves Nagle's algorithm on: the kernel collects small segments and may delay them.
    #[must_use]
    pub fn without_nodelay(mut self) -> Self {
        self.options.nodelay = false;
        self
    }
}

impl<T: crate::transport::StreamTransport, C: Concurrency> Builder<T, C> {
    /// Sets how many connections may wait to be accepted. The default and the maximum is the
    /// system's `net.core.somaxconn`.
    #[must_use]
    pub fn backlog(mut self, connections: u16) -> Self {
        self.options.backlog = connections.into();
        self
    }

    /// Sets the message that a rejected client receives, at most 1024 bytes. Defaults to no
    /// message. The message is sent if the socket's send buffer has room for it at once. The
    /// connection is then closed so that the client can read the message.
    ///
    /// The server sends no message to clients that a [rule denies](Admission::deny). It also sends
    /// none where TLS is used, because the client could not read it.
    #[must_use]
    pub fn rejection_message(mut self, notice: impl Into<Vec<u8>>) -> Self {
        self.rejection_message = notice.into().into();
        self
    }

    /// Serves encrypted connections only. The handshake runs after the header of a
    /// [proxy](Self::proxy_protocol) and before a handler is made. It runs on the thread, process
    /// or coroutine that serves the connection. Handlers use the same
    /// [`Connection`](crate::Connection); [`Connection::tls`](crate::Connection::tls) returns the
    /// negotiated parameters.
    ///
    /// If a peer closes without a TLS close alert, the read fails with
    /// [`io::ErrorKind::UnexpectedEof`](std::io::ErrorKind::UnexpectedEof), because an attacker may
    /// have closed the connection. After a failed write, all further writes fail. Byte counters
    /// count encrypted bytes. No [`rejection_message`](Self::rejection_message) is sent, because
    /// the client could not read it.
    ///
    /// ```no_run
    /// use socketserver::{Connection, GreenTcpServer, Tls, TlsIdentity, handler_fn};
    /// use std::io::Write;
    ///
    /// let tls = Tls::new(TlsIdentity::new("server.pem", "server.key").load()?);
    /// let server = GreenTcpServer::builder()
    ///     .tls(tls.clone())
    ///     .bind("127.0.0.1:0", handler_fn(|conn: &mut Connection| {
    ///         Ok(conn.write_all(b"nobody else can read this\n")?)
    ///     }))?;
    /// // Later, for new connections:
    /// tls.reload(TlsIdentity::new("renewed.pem", "renewed.key").load()?);
    /// # Ok::<(), socketserver::BoxError>(())
    /// ```
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, tls: crate::Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Takes client addresses from the PROXY header of trusted proxies; see
    /// [`ProxyProtocol`](crate::ProxyProtocol). By default every peer is a client.
    #[cfg(feature = "proxy")]
    #[must_use]
    pub fn proxy_protocol(mut self, proxy: crate::ProxyProtocol) -> Self {
        self.proxy = Some(proxy);
        self
    }
}

impl<T: UnixTransport, C: Concurrency> Builder<T, C> {
    /// Sets the permissions of the socket's file. Defaults to `0o600`, so that only the same user
    /// can connect.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.options.mode = mode & 0o777;
        self
    }

    /// Sets the owner of the socket's file, by user and group number. `None` keeps the current
    /// number and is the default for both. The owner is changed before the socket listens, and
    /// never on a file that replaced the socket's file. The change needs root (or `CAP_CHOWN`).
    #[must_use]
    pub fn owner(mut self, user: Option<u32>, group: Option<u32>) -> Self {
        self.options.owner.user = user;
        self.options.owner.group = group;
        self
    }
}

impl<T: DatagramTransport, C: Concurrency> Builder<T, C> {
    /// Sets the longest datagram that is received whole, in bytes. Defaults to 65,535. A longer
    /// datagram is truncated and [marked](crate::Datagram::is_truncated).
    #[must_use]
    pub fn max_packet_size(mut self, bytes: usize) -> Self {
        self.options.max_packet_size = bytes;
        self
    }

    /// Sets how many bytes of replies the kernel keeps until they are sent or, on Unix sockets,
    /// read (`SO_SNDBUF`). Defaults to the system's value. The kernel doubles the number, to cover
    /// its own overhead ([socket(7)](https://man7.org/linux/man-pages/man7/socket.7.html)).
    ///
    /// Binding fails if the kernel grants less. For a process without `CAP_NET_ADMIN` the maximum
    /// is `net.core.wmem_max`.
    #[must_use]
    pub fn send_buffer(mut self, bytes: usize) -> Self {
        self.options.send_buffer = Some(bytes);
        self
    }
}

impl<C: Concurrency> Builder<Udp, C> {
    /// Sets how many bytes the kernel keeps until they are received (`SO_RCVBUF`). Defaults to the
    /// system's value, about 200 KiB. The buffer absorbs bursts: the kernel drops datagrams that do
    /// not fit, and the server reports [`Event::DatagramsDropped`]. The kernel doubles the number
    /// and counts at least about 700 bytes for each datagram, however small
    /// ([socket(7)](https://man7.org/linux/man-pages/man7/socket.7.html)).
    ///
    /// Binding fails if the kernel grants less. For a process without `CAP_NET_ADMIN` the maximum
    /// is `net.core.rmem_max`.
    #[must_use]
    pub fn receive_buffer(mut self, bytes: usize) -> Self {
        self.options.receive_buffer = Some(bytes);
        self
    }

    /// Limits the replies to a datagram whose source address may be forged. The limit is `factor`
    /// times its payload, in at most `factor` replies, counted over all replies to it. A reply
    /// beyond the limit is not sent: [`reply`](crate::Datagram::reply) fails with
    /// [`AmplificationExceeded`](crate::AmplificationExceeded), and
    /// [`Counters::amplification_refused`](crate::Counters::amplification_refused) counts it. A
    /// handler that has validated its peer lifts the limit for one datagram with
    /// [`mark_validated`](crate::Datagram::mark_validated).
    ///
    /// Defaults to no limit, because only the protocol knows a good one. Set a limit on a server
    /// that strangers can reach. Without a limit, an attacker that forges a victim's address makes
    /// the server send its replies to the victim. [RFC 9000, section
    /// 8.1](https://www.rfc-editor.org/rfc/rfc9000#section-8.1) limits replies to three times the
    /// request and pads the first datagram of a client to 1200 bytes. If requests are short, the
    /// limit prevents ordinary replies: pad the requests, send a cookie first, or choose a larger
    /// factor. With 0, the server sends no reply before a validation.
    ///
    /// ```
    /// use socketserver::{Datagram, UdpServer, handler_fn};
    ///
    /// let server = UdpServer::builder()
    ///     .max_amplification(Some(3))
    ///     .reject_low_ports()
    ///     .bind("127.0.0.1:0", handler_fn(|packet: &mut Datagram| {
    ///         Ok(packet.reply(packet.bytes())?)
    ///     }))?;
    /// # Ok::<(), socketserver::BoxError>(())
    /// ```
    #[must_use]
    pub fn max_amplification(mut self, factor: Option<u32>) -> Self {
        self.options.max_amplification = factor;
        self
    }

    /// Rejects datagrams whose source port is below 1024, before a handler is made for them
    /// ([`Rejection::LowPort`](crate::Rejection::LowPort)).
    ///
    /// These ports belong to services that reply to any datagram: echo (7), chargen (19), DNS (53),
    /// NTP (123). A datagram with such a source is forged. The attacker wants two services to reply
    /// to each other without end (CERT advisory CA-1996-01), or to flood that port of a victim. Two
    /// kinds of sources are always rejected: port 0, which cannot receive a reply, and the
    /// addresses of this process's own servers.
    /// [`Admission::rate_per_peer`](crate::Admission::rate_per_peer) limits reply loops between
    /// servers of two processes, which can use any port.
    ///
    /// Off by default, because some protocols send from a low port: syslog (514, recommended by
    /// [RFC 3164, section 2](https://www.rfc-editor.org/rfc/rfc3164#section-2)), NTP between
    /// servers, DHCP, IKE.
    #[must_use]
    pub fn reject_low_ports(mut self) -> Self {
        self.options.reject_low_ports = true;
        self
    }
}

impl<T: Transport, C: fmt::Debug> fmt::Debug for Builder<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("transport", &T::NAME)
            .field("concurrency", &self.concurrency)
            .field("timeouts", &self.timeouts)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
