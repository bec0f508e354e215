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

/// Options of a server that is about to be made; see [`Server::builder`].
///
/// The least time by which what is sent has to be confirmed, unless it is said.
const UNCONFIRMED: Duration = Duration::from_secs(10);

/// Hooks run on the serving thread, except `handle_error` and `on_event`, which run wherever the
/// thing happened. Each may fail or panic; that is told as
/// [`Event::HookFailed`], and the server goes on.
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

    /// The concurrency model with options of its own.
    #[must_use]
    pub fn concurrency(mut self, model: C) -> Self {
        self.concurrency = model;
        self
    }

    /// The limits on waiting that every request starts with.
    #[must_use]
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// Who may come in, how many from one address, and how fast; no limits by default.
    #[must_use]
    pub fn admission(mut self, admission: Admission) -> Self {
        self.admission = admission;
        self
    }

    /// How long [`server_close`](Server::server_close) waits for requests to end before it cuts
    /// them: 30 s by default. With `None` it closes the listeners and waits for nothing.
    #[must_use]
    pub fn block_on_close(mut self, timeout: Option<Duration>) -> Self {
        self.block_on_close = timeout;
        self
    }

    /// Which connections are cut while places are short and other clients wait; by default those that
    /// use nothing.
    #[must_use]
    pub fn displacement(mut self, displacement: Displacement) -> Self {
        self.displacement = displacement;
        self
    }

    /// Keeps so many descriptors open that are given up for clients when the process has no others: 0 by
    /// default. It is for a server that has to answer when another one of the process has taken all that
    /// there are, as a probe of its health does. A request of a forking server takes three. It has no
    /// effect where clients [wait](crate::OverloadPolicy::Wait).
    #[must_use]
    pub fn reserved_descriptors(mut self, count: usize) -> Self {
        self.reserved_descriptors = count;
        self
    }

    /// Decides about each request before a handler is made for it. `Ok(false)` and a failure close
    /// it. It must not wait: nothing else is accepted meanwhile. Nothing has been read by then: behind
    /// a trusted proxy (`proxy_protocol`) the peer is the proxy still.
    #[must_use]
    pub fn verify_request(
        mut self,
        hook: impl Fn(&T::Request) -> Result<bool> + Send + Sync + 'static,
    ) -> Self {
        self.hooks.verify_request = Some(Box::new(hook));
        self
    }

    /// Replaces what is done with a handler's error or panic, once for each: by default it is
    /// logged through `tracing`. A peer that went away and a connection that the server cut are
    /// not errors. Under a forking server it runs in the child.
    #[must_use]
    pub fn handle_error(
        mut self,
        hook: impl Fn(&RequestInfo, &HandlerError) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.handle_error = Some(Box::new(hook));
        self
    }

    /// Called when [`handle_request`](Server::handle_request) has waited in vain.
    #[must_use]
    pub fn handle_timeout(mut self, hook: impl FnMut() -> Result<()> + Send + 'static) -> Self {
        self.hooks.handle_timeout = Some(Box::new(hook));
        self
    }

    /// Called by `serve_forever`, between requests, once per `interval` (at least a millisecond).
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

    /// Called for everything that happens, where it happens. It must not wait. Several observers are
    /// called in the order in which they were added; one that fails keeps nothing from the others.
    #[must_use]
    pub fn on_event(mut self, observer: impl Fn(&Event<'_>) + Send + Sync + 'static) -> Self {
        self.sink.subscribe(Box::new(observer));
        self
    }

    /// Binds and listens.
    ///
    /// If the address is a name with several addresses, the first that can be bound is taken.
    ///
    /// # Errors
    /// See [`BindError`]; nothing stays open after one.
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
    /// See [`BindError`]; if one address fails, nothing stays open.
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

    /// Serves on a socket that exists already: a standard library listener, or a descriptor that
    /// was inherited. A stream socket that does not listen yet is made to.
    ///
    /// The socket's options are left as they are, but for its blocking mode and, for datagrams, its
    /// send timeout, what the kernel tells with each datagram, and buffers that were
    /// [asked for](Self::receive_buffer), which belong to all who share it. The file of an adopted Unix socket is not
    /// removed at the end: it is somebody else's.
    ///
    /// # Errors
    /// [`BindError::WrongSocket`] if it is of another kind.
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
            // Before the last probe of a keepalive is due, it would end the connection for one that
            // was lost: tcp(7), `TCP_USER_TIMEOUT`.
            let probing = self.options.keepalive.map(TcpKeepalive::lasts);
            // A write that waits is to reach its own limit first, and it may wait twice: once it has sent
            // a part. Whoever has little patience may be late himself.
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
        // Made now, so that a server which is bound can serve, however few descriptors are left.
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
    /// Lets several sockets share the port, if all of them ask for it (`SO_REUSEPORT`).
    #[must_use]
    pub fn reuse_port(mut self) -> Self {
        self.options.reuse_port = true;
        self
    }

    /// Whether a server on `[::]` takes IPv4 clients as well. It does by default.
    #[must_use]
    pub fn dual_stack(mut self, dual_stack: DualStack) -> Self {
        self.options.dual_stack = dual_stack;
        self
    }
}

impl<C: Concurrency> Builder<Tcp, C> {
    /// Meets "address in use" for a minute after a restart, as `SO_REUSEADDR` is left off.
    #[must_use]
    pub fn without_reuse_address(mut self) -> Self {
        self.options.reuse_address = false;
        self
    }

    /// Probes connections that are silent, so that a peer which has vanished without a word (its
    /// power, or its network) is noticed and the connection fails. Off by default: the idle timeout
    /// ends such connections, too.
    ///
    /// Binding fails for values that the system does not take, see [`TcpKeepalive`].
    #[must_use]
    pub fn keepalive(mut self, keepalive: TcpKeepalive) -> Self {
        self.options.keepalive = Some(keepalive);
        self
    }

    /// How long what was sent may stay unconfirmed by the peer before the connection fails
    /// (`TCP_USER_TIMEOUT`, [RFC 5482](https://www.rfc-editor.org/rfc/rfc5482)). The default is
    /// three times the [write timeout](Timeouts::write) and at least 10 s, or what a [`keepalive`](Self::keepalive) takes if
    /// that is more; without a write timeout, the system's some 15 minutes hold. It also takes the
    /// place of keepalive's own limit, so set it beyond that.
    #[must_use]
    pub fn user_timeout(mut self, limit: Duration) -> Self {
        self.options.user_timeout = Some(limit);
        self
    }

    /// Leaves Nagle's algorithm on: small segments are gathered, and may wait.
    #[must_use]
    pub fn without_nodelay(mut self) -> Self {
        self.options.nodelay = false;
        self
    }
}

impl<T: crate::transport::StreamTransport, C: Concurrency> Builder<T, C> {
    /// How many connections may wait to be accepted. The default, and the most, is the system's
    /// `net.core.somaxconn`.
    #[must_use]
    pub fn backlog(mut self, connections: u16) -> Self {
        self.options.backlog = connections.into();
        self
    }

    /// What a client is told that is turned away, at most 1024 bytes; nothing by default. It is
    /// sent if there is room for it at once, and the connection is then closed in such a way that
    /// the client can read it.
    ///
    /// Clients that a [rule denies](Admission::deny) are told nothing, nor is anybody where TLS is spoken,
    /// who could not read it.
    #[must_use]
    pub fn rejection_message(mut self, notice: impl Into<Vec<u8>>) -> Self {
        self.rejection_message = notice.into().into();
        self
    }

    /// Serves encrypted connections only. The handshake is done by whoever serves the connection,
    /// after the header of a [proxy](Self::proxy_protocol), and before a handler is made. Handlers see
    /// the same [`Connection`](crate::Connection), and what was agreed upon by
    /// [`Connection::tls`](crate::Connection::tls).
    ///
    /// A peer that closes without saying so in TLS fails a read with
    /// [`io::ErrorKind::UnexpectedEof`](std::io::ErrorKind::UnexpectedEof): somebody else may have cut
    /// the connection. After a write that failed, no other one succeeds. Bytes are counted as they are
    /// on the wire. There is no [`rejection_message`](Self::rejection_message), as nobody could read it.
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

    /// Takes the addresses of clients from the proxies that they come by, if these are trusted; see
    /// [`ProxyProtocol`](crate::ProxyProtocol). By default every peer is a client.
    #[cfg(feature = "proxy")]
    #[must_use]
    pub fn proxy_protocol(mut self, proxy: crate::ProxyProtocol) -> Self {
        self.proxy = Some(proxy);
        self
    }
}

impl<T: UnixTransport, C: Concurrency> Builder<T, C> {
    /// The permissions of the socket's file: `0o600` by default, so that only this user connects.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.options.mode = mode & 0o777;
        self
    }

    /// Gives the socket's file to another user and group, by their numbers; `None` leaves one as it
    /// is, which is the default for both. It is done before the socket listens, and never to another
    /// file that was put into its place. Giving a file away takes root (or `CAP_CHOWN`).
    #[must_use]
    pub fn owner(mut self, user: Option<u32>, group: Option<u32>) -> Self {
        self.options.owner.user = user;
        self.options.owner.group = group;
        self
    }
}

impl<T: DatagramTransport, C: Concurrency> Builder<T, C> {
    /// The longest datagram that is received whole, in bytes: 65,535 by default. Of a longer one
    /// the beginning is kept, and [marked](crate::Datagram::is_truncated).
    #[must_use]
    pub fn max_packet_size(mut self, bytes: usize) -> Self {
        self.options.max_packet_size = bytes;
        self
    }

    /// How many bytes of replies the kernel keeps until they are sent, or, over Unix sockets, read
    /// (`SO_SNDBUF`); the system's default otherwise. It doubles the number, to have room for its
    /// own needs as well ([socket(7)](https://man7.org/linux/man-pages/man7/socket.7.html)).
    ///
    /// Binding fails if the system gives less, which is more than `net.core.wmem_max` for a process
    /// without `CAP_NET_ADMIN`.
    #[must_use]
    pub fn send_buffer(mut self, bytes: usize) -> Self {
        self.options.send_buffer = Some(bytes);
        self
    }
}

impl<C: Concurrency> Builder<Udp, C> {
    /// How many bytes the kernel keeps until they are received (`SO_RCVBUF`); the system's default
    /// otherwise, which is some 200 KiB. It is the room for bursts: what finds none is dropped, and
    /// told as [`Event::DatagramsDropped`]. The kernel doubles the number and counts at least some
    /// 700 bytes for each datagram, however small
    /// ([socket(7)](https://man7.org/linux/man-pages/man7/socket.7.html)).
    ///
    /// Binding fails if the system gives less, which is more than `net.core.rmem_max` for a process
    /// without `CAP_NET_ADMIN`.
    #[must_use]
    pub fn receive_buffer(mut self, bytes: usize) -> Self {
        self.options.receive_buffer = Some(bytes);
        self
    }

    /// How much may be sent in answer to a datagram whose sender may not be who he says: `factor`
    /// times its payload, in no more than `factor` replies, counted over all replies to it. What
    /// would be more is not sent: [`reply`](crate::Datagram::reply) fails with
    /// [`AmplificationExceeded`](crate::AmplificationExceeded), and
    /// [`Counters::amplification_refused`](crate::Counters::amplification_refused) counts it. A
    /// handler that knows its peer lifts the limit for one datagram by
    /// [`mark_validated`](crate::Datagram::mark_validated).
    ///
    /// There is no limit by default, as only the protocol knows a good one. A server that strangers
    /// reach should have one: without it, whoever writes a victim's address on his datagrams can
    /// have the server send to the victim whatever it answers. The example to follow is
    /// [RFC 9000, section 8.1](https://www.rfc-editor.org/rfc/rfc9000#section-8.1): three times, and
    /// clients whose first datagram is padded to 1200 bytes. Where questions may be short, the limit
    /// would forbid every ordinary answer: there pad them, answer first with a cookie, or choose a
    /// greater factor. With 0, nothing is answered before a validation.
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

    /// Refuses datagrams whose source port is below 1024, before a handler is made for them
    /// ([`Rejection::LowPort`](crate::Rejection::LowPort)).
    ///
    /// There are the services that answer anything: echo (7), chargen (19), DNS (53), NTP (123). A
    /// datagram with such a source is a forged one, made to let two services answer each other for
    /// ever (CERT advisory CA-1996-01), or to hit that port of a victim. Two kinds of sources are
    /// refused always: port 0, which cannot be answered, and the addresses of this process's own
    /// servers. Against an answer that goes back and forth between servers of two processes, whose
    /// ports may be any, there is [`Admission::rate_per_peer`](crate::Admission::rate_per_peer).
    ///
    /// Off by default, as some protocols do send from their own low port: syslog (514, recommended
    /// by [RFC 3164, section 2](https://www.rfc-editor.org/rfc/rfc3164#section-2)), NTP between
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
