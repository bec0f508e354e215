//! `connect`: a line client for every endpoint. One thread waits for the input and the peer at
//! once, so neither can hold the other up.

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

/// Send lines from stdin to a server, and print what comes back
///
/// Over TCP and Unix stream sockets the end of the input is passed on to the server, and what it
/// sends is printed until it closes. A server that closes first still gets the input that there is. Over UDP and Unix datagram sockets each line is a datagram,
/// its line end included; after the last one, answers are waited for until none has come for a
/// while.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// tcp://HOST:PORT, tls://HOST:PORT, udp://HOST:PORT, unix:///path, unix://@abstract,
    /// unixgram:///path or unixgram://@abstract
    #[arg(value_name = "ENDPOINT")]
    endpoint: Endpoint,

    /// How long to wait in vain for an answer once the input has ended [default: 1s for datagrams,
    /// any time for connections]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    wait: Option<Duration>,

    /// Pass on to a terminal as it is what is no text; otherwise it is escaped, as it could be a command to
    /// the terminal from another client of the server
    #[arg(long)]
    raw: bool,

    #[command(flatten)]
    tls: ClientTls,
}

/// No line is longer than this: a longer one is sent in pieces over a stream, and refused as a
/// datagram. It is what fits into a UDP datagram over IPv4.
const LINE: usize = 65_507;

/// How long more input is waited for once a server has said that it sends nothing more: whether it still
/// reads shows itself only when something is sent.
const MORE_INPUT: Duration = Duration::from_secs(1);

/// How long answers are waited for where nobody says that there will be no more.
const WAIT: Duration = Duration::from_secs(1);

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let endpoint = &options.endpoint;
    let (socket, is_stream) =
        open(endpoint, &options.tls).with_context(|| format!("cannot connect to {endpoint}"))?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    let patience = options.wait.or_else(|| (!is_stream).then_some(WAIT));
    let done = Pump {
        socket,
        is_stream,
        patience,
        input: Vec::new(),
        input_ended: false,
        outgoing: Vec::new(),
        unsent: false,
        peer_ended: false,
        escaped: (io::stdout().is_terminal() && !options.raw).then(Escaped::default),
    }
    .run();
    done.map_err(|error| match error.is::<Stdout>() {
        // That is no matter of the server's.
        true => error,
        false => error.context(format!("talking to {endpoint}")),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What was received cannot be printed.
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
            // A nameless client cannot be answered; the kernel chooses an abstract name for this
            // one (unix(7), "Autobind feature").
            rustix::net::bind(&socket, &SocketAddrUnix::new_unnamed())?;
            socket.connect_addr(&unix_address(path)?)?;
            (socket.into(), false)
        }
        Endpoint::Http(_) | Endpoint::Https(_) => bail!("{endpoint} is for browsers"),
        Endpoint::Inherited(_) => {
            bail!("only a server is given sockets: write where it listens")
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

/// Input to socket, socket to stdout.
struct Pump {
    socket: OwnedFd,
    is_stream: bool,
    patience: Option<Duration>,
    /// What was read from stdin and is not sent yet.
    input: Vec<u8>,
    input_ended: bool,
    /// The line on its way out.
    outgoing: Vec<u8>,
    /// The server did not take everything.
    unsent: bool,
    /// The server sends nothing more.
    peer_ended: bool,
    /// Stdout is a terminal.
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
                    // A peer that has closed already shows itself to the next read.
                    let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
                }
            }
            if self.peer_ended && (sent_all || self.unsent) {
                return self.end();
            }
            // What is written out is not waited for.
            let waits = self.outgoing.is_empty() && (self.peer_ended || sent_all);
            let patience = match self.peer_ended {
                true if io::stdin().is_terminal() => Some(Duration::ZERO),
                true => Some(self.patience.unwrap_or(MORE_INPUT)),
                false => self.patience,
            };
            let until = patience
                .filter(|_| waits)
                .and_then(|patience| quiet_since.checked_add(patience));
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
                    // It may still read.
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
        // A server that has closed answers what still comes with a reset.
        let is_refused = || {
            let error = rustix::net::sockopt::socket_error(&self.socket);
            matches!(error, Ok(Err(Errno::PIPE | Errno::CONNRESET)))
        };
        if self.unsent || self.peer_ended && is_refused() {
            bail!("the server closed before all input was sent");
        }
        Ok(())
    }

    /// Sleeps until there is something to do.
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

    /// Puts the next whole line on its way: at the end of the input, what there is of one.
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
            // What the server sent before is still to be printed, and tells more.
            Err(Errno::PIPE | Errno::CONNRESET) if self.is_stream => self.stop_sending(),
            Err(errno) => return Err(refused(errno)).context("cannot send"),
        }
        Ok(())
    }

    /// The server takes no more: from now on there is only its own end to wait for.
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
            // Two datagrams never share a line.
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
    /// The server has closed both directions.
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
            "nobody listens there (connection refused)",
        );
    }
    errno.into()
}
