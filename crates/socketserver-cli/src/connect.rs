//! `connect`: a line client for every endpoint. One thread waits for the input and the peer at
//! once, so that neither delays the other.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketAddrUnix};

use crate::endpoint::Endpoint;
use crate::escape::Escaped;
use crate::inet;
use crate::tls::{self, ClientTls};

/// Send lines from stdin to a server and print its replies
///
/// Over TCP and Unix stream sockets, the client passes the end of its input to the server and
/// prints until the server closes. If the server closes its side first, it still gets the input
/// that is available. Over UDP and Unix datagram sockets, each line is one datagram, with its line
/// end. After the last line, the client waits for replies until none has arrived for the time of
/// --wait.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Address of the server: tcp://HOST:PORT, tls://HOST:PORT, udp://HOST:PORT, unix:///path,
    /// unix://@abstract, unixgram:///path or unixgram://@abstract
    #[arg(value_name = "ENDPOINT")]
    endpoint: Endpoint,

    /// Maximum time without a reply once the input has ended [default: 1s for datagrams, unlimited
    /// for connections]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    wait: Option<Duration>,

    /// Print control characters unchanged to a terminal. By default they are escaped, because text
    /// of other clients could contain commands to the terminal
    #[arg(long)]
    raw: bool,

    #[command(flatten)]
    tls: ClientTls,
}

/// The maximum length of a line. A longer line is sent in pieces over a stream, and is an error as
/// a datagram. The number is the maximum payload of a UDP datagram over IPv4.
const LINE: usize = 65_507;

/// The time to wait for more input after the server has ended its side. Only a write can show
/// whether the server still reads.
const MORE_INPUT: Duration = Duration::from_secs(1);

/// The time to wait for replies where no end of the replies is signalled.
const WAIT: Duration = Duration::from_secs(1);

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let endpoint = &options.endpoint;
    let (socket, is_stream) =
        open(endpoint, &options.tls).with_context(|| format!("cannot connect to {endpoint}"))?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    let limit = options.wait.or_else(|| (!is_stream).then_some(WAIT));
    let done = Pump {
        socket,
        is_stream,
        limit,
        input: Vec::new(),
        input_ended: false,
        outgoing: Vec::new(),
        unsent: false,
        peer_ended: false,
        escaped: (io::stdout().is_terminal() && !options.raw).then(Escaped::default),
    }
    .run();
    done.map_err(|error| match error.is::<Stdout>() {
        // An error of stdout does not concern the server.
        true => error,
        false => error.context(format!("talking to {endpoint}")),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// An error in writing received data to stdout.
#[derive(Debug)]
struct Stdout(io::Error);

impl fmt::Display for Stdout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot write to stdout: {}", self.0)
    }
}

impl std::error::Error for Stdout {}

fn open(endpoint: &Endpoint, tls: &ClientTls) -> anyhow::Result<(OwnedFd, bool)> {
    Ok(match endpoint {
        Endpoint::Tcp(address) => {
            let stream = TcpStream::connect(&*inet::look_up(address)?)?;
            stream.set_nodelay(true)?;
            (stream.into(), true)
        }
        Endpoint::Tls(address) => {
            let stream = TcpStream::connect(&*inet::look_up(address)?)?;
            stream.set_nodelay(true)?;
            let encrypted = tls.encrypt(stream, address)?;
            (tls::plain_end(encrypted)?.into(), true)
        }
        Endpoint::Unix(path) => (UnixStream::connect_addr(&unix_address(path)?)?.into(), true),
        Endpoint::Udp(address) => (connected_udp(address)?.into(), false),
        Endpoint::Unixgram(path) => {
            let socket = UnixDatagram::unbound()?;
            // The server cannot reply to a client without an address. The kernel chooses an
            // abstract name for this socket (unix(7), "Autobind feature").
            rustix::net::bind(&socket, &SocketAddrUnix::new_unnamed())?;
            socket.connect_addr(&unix_address(path)?)?;
            (socket.into(), false)
        }
        Endpoint::Http(_) | Endpoint::Https(_) => bail!("{endpoint} is for browsers"),
        Endpoint::Inherited(_) => {
            bail!("only a server can use inherited sockets; give the address on which it listens")
        }
    })
}

fn connected_udp(address: &str) -> io::Result<UdpSocket> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in inet::look_up(address)? {
        let any = if address.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let connected = UdpSocket::bind(any).and_then(|socket| {
            socket.connect(address)?;
            Ok(socket)
        });
        match connected {
            Ok(socket) => return Ok(socket),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

pub(crate) fn unix_address(path: &Path) -> io::Result<SocketAddr> {
    match path.as_os_str().as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(path),
    }
}

/// The transfer of stdin to the socket and of the socket to stdout.
struct Pump {
    socket: OwnedFd,
    is_stream: bool,
    limit: Option<Duration>,
    /// Bytes that were read from stdin and are not sent yet.
    input: Vec<u8>,
    input_ended: bool,
    /// The line that is being sent.
    outgoing: Vec<u8>,
    /// True if the server did not accept all input.
    unsent: bool,
    /// True if the server has ended its side.
    peer_ended: bool,
    /// The escaping state, if stdout is a terminal.
    escaped: Option<Escaped>,
}

impl Pump {
    fn run(mut self) -> anyhow::Result<()> {
        let mut half_closed = false;
        let mut quiet_since = Instant::now();
        loop {
            if self.outgoing.is_empty() {
                self.next_line()?;
            }
            let sent_all = self.input_ended && self.outgoing.is_empty();
            if sent_all && !std::mem::replace(&mut half_closed, true) {
                quiet_since = Instant::now();
                if self.is_stream {
                    // The next read reports a peer that has already closed.
                    let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
                }
            }
            if self.peer_ended && (sent_all || self.unsent) {
                return self.end();
            }
            // The loop does not wait for a line that is still being written.
            let waits = self.outgoing.is_empty() && (self.peer_ended || sent_all);
            let limit = match self.peer_ended {
                true if io::stdin().is_terminal() => Some(Duration::ZERO),
                true => Some(self.limit.unwrap_or(MORE_INPUT)),
                false => self.limit,
            };
            let until = limit
                .filter(|_| waits)
                .and_then(|limit| quiet_since.checked_add(limit));
            if until.is_some_and(|until| until <= Instant::now()) {
                return self.end();
            }
            let ready = self.wait(until)?;
            if ready.gone && self.outgoing.is_empty() && !ready.input {
                return self.end();
            }
            if ready.peer {
                match self.receive()? {
                    Received::Bytes => quiet_since = Instant::now(),
                    Received::Nothing => {}
                    // The server may still read.
                    Received::End => (self.peer_ended, quiet_since) = (true, Instant::now()),
                }
            }
            if !self.outgoing.is_empty() {
                self.send()?;
            }
            if ready.input {
                self.read_input()?;
                quiet_since = Instant::now();
            }
        }
    }

    fn end(mut self) -> anyhow::Result<()> {
        if let Some(escaped) = &mut self.escaped {
            let rest = escaped.rest();
            print(rest.as_bytes())?;
        }
        // A server that has closed answers further data with a reset.
        let is_refused = || {
            let error = rustix::net::sockopt::socket_error(&self.socket);
            matches!(error, Ok(Err(Errno::PIPE | Errno::CONNRESET)))
        };
        if self.unsent || self.peer_ended && is_refused() {
            bail!("the server closed before all input was sent");
        }
        Ok(())
    }

    /// Sleeps until a descriptor is ready.
    fn wait(&self, until: Option<Instant>) -> anyhow::Result<Ready> {
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::IN, !self.peer_ended);
        interest.set(PollFlags::OUT, !self.outgoing.is_empty());
        let stdin = io::stdin();
        let mut fds = vec![PollFd::new(&self.socket, interest)];
        if self.outgoing.is_empty() && !self.input_ended {
            fds.push(PollFd::new(&stdin, PollFlags::IN));
        }
        let left = until
            .map(|until| Timespec::try_from(until.saturating_duration_since(Instant::now())))
            .transpose()?;
        match poll(&mut fds, left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context("cannot wait"),
        }
        let writable_only = fds[0].revents() == PollFlags::OUT;
        let gone = PollFlags::HUP | PollFlags::ERR;
        Ok(Ready {
            gone: self.peer_ended && fds[0].revents().intersects(gone),
            peer: !self.peer_ended && !fds[0].revents().is_empty() && !writable_only,
            input: fds.get(1).is_some_and(|fd| !fd.revents().is_empty()),
        })
    }

    fn read_input(&mut self) -> anyhow::Result<()> {
        let mut piece = [0; 8192];
        match rustix::io::read(io::stdin().as_fd(), &mut piece) {
            Ok(0) => self.input_ended = true,
            Ok(n) => self.input.extend_from_slice(&piece[..n]),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(errno).context("cannot read stdin"),
        }
        Ok(())
    }

    /// Prepares the next whole line for sending. At the end of the input, a partial line counts as
    /// a line.
    fn next_line(&mut self) -> anyhow::Result<()> {
        let end = match self.input.iter().position(|&byte| byte == b'\n') {
            Some(newline) => newline + 1,
            None if self.input_ended || self.input.len() > LINE => self.input.len(),
            None => return Ok(()),
        };
        if end > LINE && !self.is_stream {
            bail!("a line of more than {LINE} bytes does not fit into a datagram");
        }
        self.outgoing.extend(self.input.drain(..end));
        Ok(())
    }

    fn send(&mut self) -> anyhow::Result<()> {
        match rustix::net::send(&self.socket, &self.outgoing, SendFlags::NOSIGNAL) {
            Ok(n) if self.is_stream => drop(self.outgoing.drain(..n)),
            Ok(_) => self.outgoing.clear(),
            Err(Errno::INTR | Errno::AGAIN) => {}
            // The data that the server sent earlier is still to be printed and may give the reason.
            Err(Errno::PIPE | Errno::CONNRESET) if self.is_stream => self.stop_sending(),
            Err(errno) => return Err(refused(errno)).context("cannot send"),
        }
        Ok(())
    }

    /// Stops sending. From now on the client waits only for the server to close.
    fn stop_sending(&mut self) {
        self.unsent = true;
        self.outgoing.clear();
        self.input.clear();
        self.input_ended = true;
    }

    fn receive(&mut self) -> anyhow::Result<Received> {
        let mut answer = [0; 65_536];
        let n = match rustix::net::recv(&self.socket, &mut answer, RecvFlags::empty()) {
            Ok((0, _)) if self.is_stream => return Ok(Received::End),
            Ok((n, _)) => n,
            Err(Errno::INTR | Errno::AGAIN) => return Ok(Received::Nothing),
            Err(errno) => return Err(refused(errno)).context("cannot receive"),
        };
        let mut text;
        let mut shown = &answer[..n];
        if let Some(escaped) = &mut self.escaped {
            text = escaped.text(shown);
            if !self.is_stream {
                text += &escaped.rest();
            }
            shown = text.as_bytes();
        }
        print(shown)?;
        if !self.is_stream && !shown.ends_with(b"\n") {
            // Each datagram begins on a line of its own.
            print(b"\n")?;
        }
        Ok(Received::Bytes)
    }
}

fn print(bytes: &[u8]) -> Result<(), Stdout> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .map_err(Stdout)
}

struct Ready {
    /// True if the server has closed both directions.
    gone: bool,
    peer: bool,
    input: bool,
}

enum Received {
    Bytes,
    Nothing,
    End,
}

fn refused(errno: Errno) -> io::Error {
    if errno == Errno::CONNREFUSED {
        return io::Error::new(
            io::ErrorKind::ConnectionRefused,
            "connection refused: no server listens there",
        );
    }
    errno.into()
}
