//! `command-client`: sends commands to a server that runs them, and prints what comes back.
//!
//! It blocks where it waits: there is one thing at a time to wait for, and Ctrl-C ends it.

use std::io::{self, BufRead, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;
use encoding_rs::Encoding;
use rustyline::error::ReadlineError;
use socketserver::framing::{FrameError, Framed, JsonBody, JsonHeader, Value};

use crate::auth_token::Token;
use crate::byte_size::Size;
use crate::connect::unix_address;
use crate::decode::Printer;
use crate::endpoint::Endpoint;
use crate::programs::command::{Framing, LONGEST};
use crate::terminal;
use crate::tls::ClientTls;

/// Send commands to a command server, and print what they have written
///
/// At a terminal it is a prompt with line editing and a history; from a pipe, each line is a
/// command. An empty line is skipped; `exit`, or the end of the input, ends it. A command that
/// fails is told on stderr, as `[exit status 1]`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// tcp://HOST:PORT, tls://HOST:PORT, unix:///path or unix://@abstract
    #[arg(value_name = "ENDPOINT")]
    endpoint: Endpoint,

    /// Run one command, and exit with its exit status (128 and the number of the signal, if one has
    /// ended it)
    #[arg(short = 'c', long = "command", value_name = "COMMAND")]
    command: Option<String>,

    /// In which charset the server's host writes, such as gbk, shift_jis or windows-1252
    #[arg(long, value_name = "LABEL", default_value = "utf-8", value_parser = charset)]
    charset: &'static Encoding,

    /// How the server finds the end of a command; lines if it is started with that
    #[arg(long, value_enum, default_value_t)]
    framing: Framing,

    /// The server's secret: the first line of a file that only you can read
    #[arg(long, value_name = "FILE")]
    auth_token_file: Option<PathBuf>,

    /// The longest reply that is taken
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    max_body: Size,

    /// How long to try to connect
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    connect_timeout: Duration,

    /// How long to wait in vain for the next piece of a reply [default: any time]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    wait: Option<Duration>,

    #[command(flatten)]
    tls: ClientTls,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let endpoint = &options.endpoint;
    let token = options
        .auth_token_file
        .as_deref()
        .map(Token::load)
        .transpose()?;
    let mut stream =
        open(endpoint, options).with_context(|| format!("cannot connect to {endpoint}"))?;
    if let Some(token) = token {
        stream
            .write_all(token.line())
            .context("cannot send the token")?;
    }
    let codec = JsonHeader::default().max_body(options.max_body.0);
    let mut client = Client {
        server: Framed::new(stream, codec),
        framing: options.framing,
        charset: options.charset,
        max_body: options.max_body.0,
        at_terminal: false,
    };
    match &options.command {
        Some(command) if command.trim_ascii().is_empty() => Ok(ExitCode::SUCCESS),
        Some(command) => Ok(ExitCode::from(client.obey(command.as_bytes())?.code())),
        None if terminal::is_interactive() => client.prompt(),
        None => client.obey_lines(),
    }
}

fn charset(label: &str) -> Result<&'static Encoding, &'static str> {
    Encoding::for_label_no_replacement(label.as_bytes()).ok_or(
        "unknown; the labels are those of https://encoding.spec.whatwg.org/#names-and-labels",
    )
}

trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

fn open(endpoint: &Endpoint, options: &Options) -> anyhow::Result<Box<dyn Stream>> {
    match endpoint {
        Endpoint::Tcp(address) => {
            let stream = connect_tcp(address, options.connect_timeout)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(options.wait)?;
            stream.set_write_timeout(options.wait)?;
            Ok(Box::new(stream))
        }
        Endpoint::Tls(address) => {
            let stream = connect_tcp(address, options.connect_timeout)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(options.wait)?;
            stream.set_write_timeout(options.wait)?;
            Ok(Box::new(options.tls.encrypt(stream, address)?))
        }
        Endpoint::Unix(path) => {
            let stream = UnixStream::connect_addr(&unix_address(path)?)?;
            stream.set_read_timeout(options.wait)?;
            stream.set_write_timeout(options.wait)?;
            Ok(Box::new(stream))
        }
        _ => bail!("commands need a connection: use tcp://, tls:// or unix://"),
    }
}

fn connect_tcp(address: &str, timeout: Duration) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in crate::inet::look_up(address)? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

struct Client {
    server: Framed<Box<dyn Stream>, JsonHeader>,
    framing: Framing,
    charset: &'static Encoding,
    max_body: u64,
    /// A person reads the output, and a prompt follows it.
    at_terminal: bool,
}

impl Client {
    fn prompt(mut self) -> anyhow::Result<ExitCode> {
        self.at_terminal = true;
        let mut editor = terminal::editor()?;
        loop {
            match editor.readline(">>> ") {
                Ok(line) => match Input::from(line.as_bytes()) {
                    Input::Nothing => {}
                    Input::Exit => break,
                    Input::Command(command) => match self.check(command) {
                        Ok(()) => drop(self.obey(command)?),
                        Err(error) => complain(&error.to_string()),
                    },
                },
                // A line that is given up.
                Err(ReadlineError::Interrupted) => {}
                Err(ReadlineError::Eof) => break,
                Err(error) => return Err(error).context("cannot read from the terminal"),
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn obey_lines(mut self) -> anyhow::Result<ExitCode> {
        let mut input = io::stdin().lock();
        let mut line = Vec::new();
        loop {
            line.clear();
            // Some bytes more, so that a line that is too long is noticed.
            let most = LONGEST as u64 + 3;
            let n = input
                .by_ref()
                .take(most)
                .read_until(b'\n', &mut line)
                .context("cannot read stdin")?;
            if n == 0 {
                break;
            }
            match Input::from(&line[..]) {
                Input::Nothing => {}
                Input::Exit => break,
                Input::Command(command) => drop(self.obey(command)?),
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Whether a command can be sent at all.
    fn check(&self, command: &[u8]) -> anyhow::Result<()> {
        ensure!(
            command.len() <= LONGEST,
            "a command of more than {} is not sent: the server would take it for several; put it into a script",
            Size(LONGEST as u64)
        );
        ensure!(
            self.framing == Framing::Chunks || !command.contains(&b'\n'),
            "a command with a line end in it is several to a server with --framing lines"
        );
        Ok(())
    }

    /// Sends a command and prints the reply.
    fn obey(&mut self, command: &[u8]) -> anyhow::Result<End> {
        self.check(command)?;
        let mut sent = command.to_vec();
        if self.framing == Framing::Lines {
            sent.push(b'\n');
        }
        // In one piece: what one read of the server returns is a command.
        let lost = self.server.stream_mut().write_all(&sent).err();
        let body = match (self.server.read_body(), lost) {
            (Ok(Some(body)), _) => body,
            (Ok(None), _) => {
                bail!("the server has closed the connection, and did not reply to this command")
            }
            (_, Some(error)) => return Err(silence(error)).context("cannot send the command"),
            (Err(error), _) => return Err(explain(error, self.max_body)),
        };
        let end = End::of(&body)?;
        let ends_line = print(body, self.charset)?;
        if self.at_terminal && !ends_line {
            io::stdout().write_all(b"\n")?;
        }
        if let Some(told) = end.told() {
            complain(&told);
        }
        Ok(end)
    }
}

/// What a line of input means.
enum Input<'a> {
    Nothing,
    Exit,
    Command(&'a [u8]),
}

impl<'a> From<&'a [u8]> for Input<'a> {
    fn from(line: &'a [u8]) -> Self {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match line.trim_ascii() {
            b"" => Self::Nothing,
            b"exit" => Self::Exit,
            _ => Self::Command(line),
        }
    }
}

/// How a command has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Exited(u8),
    Killed(u8),
}

impl End {
    /// Servers that do not tell are believed that all went well.
    fn of<S>(body: &JsonBody<'_, S>) -> anyhow::Result<Self> {
        let number = |name| match body.header().get(name).map(Value::as_u64) {
            None => Ok(None),
            Some(number) => number
                .and_then(|number| u8::try_from(number).ok())
                .map(Some)
                .ok_or_else(|| anyhow!("malformed reply: {name} is no number from 0 to 255")),
        };
        Ok(match (number("signal")?, number("exitStatus")?) {
            (Some(signal), _) => Self::Killed(signal),
            (None, status) => Self::Exited(status.unwrap_or(0)),
        })
    }

    /// As a shell says it.
    fn code(self) -> u8 {
        match self {
            Self::Exited(status) => status,
            Self::Killed(signal) => signal.saturating_add(128),
        }
    }

    fn told(self) -> Option<String> {
        match self {
            Self::Exited(0) => None,
            Self::Exited(status) => Some(format!("[exit status {status}]")),
            Self::Killed(signal) => Some(format!("[killed by signal {signal}]")),
        }
    }
}

/// Prints a body as it arrives; returns whether it ends a line.
fn print<S: Read>(mut body: JsonBody<'_, S>, charset: &'static Encoding) -> anyhow::Result<bool> {
    let whole = body.remaining();
    let mut printer = Printer::new(charset);
    let mut piece = vec![0; 64 << 10];
    loop {
        match body.read(&mut piece) {
            Ok(0) => return printer.finish(),
            Ok(n) => printer.print(&piece[..n])?,
            Err(error) => {
                let _ = printer.finish();
                let came = whole - body.remaining();
                return Err(silence(error))
                    .with_context(|| format!("only {came} of {whole} bytes of the reply came"));
            }
        }
    }
}

fn complain(text: &str) {
    // A closed stderr leaves nobody to tell.
    let _ = writeln!(io::stderr(), "{text}");
}

fn explain(error: FrameError, max_body: u64) -> anyhow::Error {
    match error {
        FrameError::TooLong { limit, claimed } if limit == max_body => anyhow!(
            "the server announces a reply of {claimed} bytes, and {limit} are taken: --max-body \
             raises that"
        ),
        FrameError::TooLong { .. } => {
            anyhow!("malformed reply: no header is that long; is it another kind of server?")
        }
        FrameError::UnexpectedEnd => {
            anyhow!("the server has closed the connection in the middle of a reply's header")
        }
        FrameError::Io(error) => {
            anyhow::Error::new(silence(error)).context("cannot read the reply")
        }
        error => anyhow::Error::new(error),
    }
}

/// The kernel calls a timeout "try again".
fn silence(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => io::Error::new(
            io::ErrorKind::TimedOut,
            "the server was silent for longer than --wait",
        ),
        io::ErrorKind::UnexpectedEof => {
            io::Error::new(error.kind(), "the server has closed the connection")
        }
        _ => error,
    }
}
