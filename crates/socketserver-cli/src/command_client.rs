//! `command-client`: sends commands to a server that runs them, and prints the replies.
//!
//! The client blocks: it waits for one thing at a time, and Ctrl-C ends it.

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

/// Send commands to a command server and print their output
///
/// At a terminal, the client shows a prompt with line editing and a history. From a pipe, each line
/// is a command. Empty lines are skipped. `exit` or the end of the input ends the client. A failed
/// command is reported on stderr as `[exit status 1]`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Address of the server: tcp://HOST:PORT, tls://HOST:PORT, unix:///path or unix://@abstract
    #[arg(value_name = "ENDPOINT")]
    endpoint: Endpoint,

    /// Run one command and exit with its exit status (128 plus the signal number if a signal ended
    /// it)
    #[arg(short = 'c', long = "command", value_name = "COMMAND")]
    command: Option<String>,

    /// Charset of the output of the server's host, such as gbk, shift_jis or windows-1252
    #[arg(long, value_name = "LABEL", default_value = "utf-8", value_parser = charset)]
    charset: &'static Encoding,

    /// Framing of commands; use lines for a server that runs with --framing lines
    #[arg(long, value_enum, default_value_t)]
    framing: Framing,

    /// File with the server's secret in its first line; only you may have permission to read the
    /// file
    #[arg(long, value_name = "FILE")]
    auth_token_file: Option<PathBuf>,

    /// Maximum size of a reply
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    max_body: Size,

    /// Maximum time to connect
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    connect_timeout: Duration,

    /// Maximum time to wait for the next piece of a reply [default: unlimited]
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
        Some(command) => Ok(ExitCode::from(client.execute(command.as_bytes())?.code())),
        None if terminal::is_interactive() => client.prompt(),
        None => client.execute_lines(),
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
    /// True if the output goes to a terminal, where a prompt follows it.
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
                        Ok(()) => drop(self.execute(command)?),
                        Err(error) => print_error(&error.to_string()),
                    },
                },
                // The user discarded the line with Ctrl-C.
                Err(ReadlineError::Interrupted) => {}
                Err(ReadlineError::Eof) => break,
                Err(error) => return Err(error).context("cannot read from the terminal"),
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn execute_lines(mut self) -> anyhow::Result<ExitCode> {
        let mut input = io::stdin().lock();
        let mut line = Vec::new();
        loop {
            line.clear();
            // The extra bytes reveal a line that is too long.
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
                Input::Command(command) => drop(self.execute(command)?),
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Returns an error if the server would not take the command as a single one.
    fn check(&self, command: &[u8]) -> anyhow::Result<()> {
        ensure!(
            command.len() <= LONGEST,
            "a command of more than {} is not sent, because the server would read it as several; put it into a script",
            Size(LONGEST as u64)
        );
        ensure!(
            self.framing == Framing::Chunks || !command.contains(&b'\n'),
            "a command that contains a line end is several commands to a server with --framing lines"
        );
        Ok(())
    }

    /// Sends a command and prints the reply.
    fn execute(&mut self, command: &[u8]) -> anyhow::Result<End> {
        self.check(command)?;
        let mut sent = command.to_vec();
        if self.framing == Framing::Lines {
            sent.push(b'\n');
        }
        // Sends the command in one write, because the server takes the bytes of one read as a
        // command.
        let lost = self.server.stream_mut().write_all(&sent).err();
        let body = match (self.server.read_body(), lost) {
            (Ok(Some(body)), _) => body,
            (Ok(None), _) => {
                bail!("the server has closed the connection, and did not reply to this command")
            }
            (_, Some(error)) => {
                return Err(describe_timeout(error)).context("cannot send the command");
            }
            (Err(error), _) => return Err(explain(error, self.max_body)),
        };
        let end = End::of(&body)?;
        let ends_line = print(body, self.charset)?;
        if self.at_terminal && !ends_line {
            io::stdout().write_all(b"\n")?;
        }
        if let Some(report) = end.report() {
            print_error(&report);
        }
        Ok(end)
    }
}

/// The meaning of a line of input.
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

/// The end of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Exited(u8),
    Killed(u8),
}

impl End {
    /// Reads the end from a reply. A reply without a status means success.
    fn of<S>(body: &JsonBody<'_, S>) -> anyhow::Result<Self> {
        let number = |name| match body.header().get(name).map(Value::as_u64) {
            None => Ok(None),
            Some(number) => number
                .and_then(|number| u8::try_from(number).ok())
                .map(Some)
                .ok_or_else(|| anyhow!("malformed reply: {name} is not a number from 0 to 255")),
        };
        Ok(match (number("signal")?, number("exitStatus")?) {
            (Some(signal), _) => Self::Killed(signal),
            (None, status) => Self::Exited(status.unwrap_or(0)),
        })
    }

    /// Returns the exit code that a shell would give.
    fn code(self) -> u8 {
        match self {
            Self::Exited(status) => status,
            Self::Killed(signal) => signal.saturating_add(128),
        }
    }

    fn report(self) -> Option<String> {
        match self {
            Self::Exited(0) => None,
            Self::Exited(status) => Some(format!("[exit status {status}]")),
            Self::Killed(signal) => Some(format!("[killed by signal {signal}]")),
        }
    }
}

/// Prints a body as it arrives. Returns true if the body ends with a line end.
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
                let received = whole - body.remaining();
                return Err(describe_timeout(error)).with_context(|| {
                    format!("only {received} of {whole} bytes of the reply arrived")
                });
            }
        }
    }
}

fn print_error(text: &str) {
    // An error on a closed stderr cannot be reported anywhere.
    let _ = writeln!(io::stderr(), "{text}");
}

fn explain(error: FrameError, max_body: u64) -> anyhow::Error {
    match error {
        FrameError::TooLong { limit, claimed } if limit == max_body => anyhow!(
            "the server announces a reply of {claimed} bytes, and the limit is {limit}: raise it \
             with --max-body"
        ),
        FrameError::TooLong { .. } => {
            anyhow!("malformed reply: the header is too long; this may be another kind of server")
        }
        FrameError::UnexpectedEnd => {
            anyhow!("the server has closed the connection in the middle of a reply's header")
        }
        FrameError::Io(error) => {
            anyhow::Error::new(describe_timeout(error)).context("cannot read the reply")
        }
        error => anyhow::Error::new(error),
    }
}

/// Translates a timeout, which the kernel reports as "try again".
fn describe_timeout(error: io::Error) -> io::Error {
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
