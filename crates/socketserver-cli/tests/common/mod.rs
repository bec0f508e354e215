//! Starts the binary under test as a process and collects its output.

// Each test file is a crate of its own and uses a part of this module. A skipped test prints the
// reason.
#![allow(dead_code, clippy::unwrap_used, clippy::print_stdout)]

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The deadline of each call and each wait. Only a call that hangs reaches it.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const MODELS: [&str; 5] = ["sequential", "threading", "forking", "pooled", "green"];

/// Connects to an endpoint over TCP. All reads and writes have a deadline.
pub fn client(server: &Server, index: usize) -> TcpStream {
    client_at(server.address(index))
}

/// Connects to an address over TCP, like [`client`], without a `Server`.
pub fn client_at(address: &str) -> TcpStream {
    let client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    client
}

/// Reads as many bytes as `expected` has and compares them.
#[track_caller]
pub fn hear(client: &mut impl Read, expected: &[u8]) {
    let mut heard = vec![0; expected.len()];
    if let Err(error) = client.read_exact(&mut heard) {
        panic!("{error} instead of {:?}", text(expected));
    }
    assert_eq!(text(&heard), text(expected));
}

/// Sends `bytes` and returns an answer of the same length.
#[track_caller]
pub fn exchange(client: &mut (impl Read + Write), bytes: &[u8]) -> Vec<u8> {
    client.write_all(bytes).unwrap();
    let mut answer = vec![0; bytes.len()];
    client.read_exact(&mut answer).unwrap();
    answer
}

/// Returns true if the server serves a new client. The server closes or resets a rejected
/// connection.
pub fn lets_in(server: &Server, index: usize) -> bool {
    let mut client = client(server, index);
    let _ = client.write_all(b"a");
    !is_closed(&mut client)
}

/// Waits for a byte or the end of the connection. Returns true if the server closed or reset the
/// connection.
#[track_caller]
pub fn is_closed(client: &mut impl Read) -> bool {
    loop {
        match client.read(&mut [0]) {
            Ok(n) => return n == 0,
            // The kernel does not resume a wait that has a deadline: signal(7). Children of the
            // test send SIGCHLD.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return true,
            Err(error) => panic!("neither: {error}"),
        }
    }
}

/// Waits until the condition holds.
#[track_caller]
pub fn eventually(mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "it never came to be");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn socketserver() -> Command {
    Command::new(env!("CARGO_BIN_EXE_socketserver"))
}

/// A running server, killed when the test is done with it or fails.
pub struct Server {
    child: Child,
    /// The endpoints that the server has printed.
    pub endpoints: Vec<String>,
    log: mpsc::Receiver<String>,
    told: mpsc::Receiver<String>,
    console: Option<std::process::ChildStdin>,
}

impl Server {
    /// Starts `socketserver ARGS...` and waits until the server has printed `endpoints` endpoints.
    pub fn start(args: &[&str], endpoints: usize) -> Self {
        Self::launch(socketserver().args(args).stdin(Stdio::null()), endpoints)
    }

    /// Starts a server whose console is a pipe.
    pub fn with_console(args: &[&str], endpoints: usize) -> Self {
        let mut command = socketserver();
        let mut server = Self::launch(command.args(args).stdin(Stdio::piped()), endpoints);
        server.console = server.child.stdin.take();
        server
    }

    /// Runs a command that executes the program in the same process.
    pub fn launch(command: &mut Command, endpoints: usize) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let told = lines(child.stdout.take().unwrap());
        let log = lines(child.stderr.take().unwrap());
        let mut server = Self {
            child,
            endpoints: Vec::new(),
            log,
            told,
            console: None,
        };
        for _ in 0..endpoints {
            let Ok(line) = server.told.recv_timeout(PATIENCE) else {
                panic!("the server does not listen: {:?}", server.log());
            };
            let endpoint = line.strip_prefix("listening ").unwrap().to_owned();
            server.endpoints.push(endpoint);
        }
        server
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the `HOST:PORT` of an endpoint, or its path.
    pub fn address(&self, index: usize) -> &str {
        self.endpoints[index].split_once("://").unwrap().1
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args(["-s", name, &self.pid().to_string()])
            .status();
        assert!(status.unwrap().success());
    }

    /// Sends a signal to all processes of the server. The server must have a process group of its
    /// own.
    pub fn signal_group(&self, name: &str) {
        let group = format!("-{}", self.pid());
        let status = Command::new("kill")
            .args(["-s", name, "--", &group])
            .status();
        assert!(status.unwrap().success());
    }

    /// Sends a second signal, late enough that the server does not count both signals as one.
    pub fn signal_again(&self, name: &str) {
        std::thread::sleep(Duration::from_millis(150));
        self.signal(name);
    }

    /// Writes a line into the console.
    pub fn type_in(&mut self, line: &str) {
        let console = self.console.as_mut().unwrap();
        writeln!(console, "{line}").unwrap();
    }

    /// Closes the console's pipe.
    pub fn hang_up(&mut self) {
        self.console = None;
    }

    /// Returns the next line on stdout. Panics if no line comes.
    #[track_caller]
    pub fn says(&self) -> String {
        match self.told.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(error) => panic!("nothing is said ({error}); logged: {:?}", self.log()),
        }
    }

    /// Returns the next line on stdout, or `None` at its end.
    pub fn next_line(&self) -> Option<String> {
        self.told.recv_timeout(PATIENCE).ok()
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child)
    }

    /// Waits for a line of the log that contains `text`, and returns it.
    pub fn logged(&self, text: &str) -> String {
        let end = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        while let Ok(line) = self
            .log
            .recv_timeout(end.saturating_duration_since(Instant::now()))
        {
            if line.contains(text) {
                return line;
            }
            seen.push(line);
        }
        panic!("{text:?} was not logged: {seen:#?}");
    }

    /// Returns the remaining lines of the log. The server must have ended.
    pub fn rest_of_log(&self) -> Vec<String> {
        std::iter::from_fn(|| self.log.recv_timeout(PATIENCE).ok()).collect()
    }

    /// Returns the lines that the server has logged since the last call.
    pub fn log(&self) -> Vec<String> {
        self.log.try_iter().collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A test has failed. The server's state and log may show the cause.
            let (fate, log) = (self.child.try_wait(), self.log());
            println!("the server has come to {fate:?}, and has logged {log:#?}");
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A child process, killed when the test drops it or fails.
pub struct Guarded(pub Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until a server listens at a path. The existence of the file is not enough, because bind(2)
/// creates the file before listen(2).
pub fn until_listening(path: &Path) {
    let end = Instant::now() + PATIENCE;
    while std::os::unix::net::UnixStream::connect(path).is_err() {
        assert!(Instant::now() < end, "nobody listens at {}", path.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn wait(child: &mut Child) -> ExitStatus {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < end, "the process does not end");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn lines(from: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (to, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            let Ok(line) = line else { return };
            if to.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Runs a command to its end with `input`. Returns `None` if the program is not installed.
pub fn run<I: AsRef<OsStr>>(
    command: &mut Command,
    args: impl IntoIterator<Item = I>,
    input: &[u8],
) -> Option<Output> {
    let spawned = command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            println!(
                "SKIPPED: {} is not installed",
                command.get_program().display()
            );
            return None;
        }
        spawned => spawned.unwrap(),
    };
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let pid = child.id();
    let (done, finished) = mpsc::channel();
    std::thread::spawn(move || done.send(child.wait_with_output()));
    let Ok(output) = finished.recv_timeout(PATIENCE) else {
        let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        panic!("{command:?} does not end");
    };
    let _ = writer.join().unwrap();
    Some(output.unwrap())
}

pub fn connect(args: &[&str], input: &[u8]) -> Output {
    run(socketserver().arg("connect"), args, input).unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn exists(path: impl AsRef<Path>) -> bool {
    path.as_ref().symlink_metadata().is_ok()
}
