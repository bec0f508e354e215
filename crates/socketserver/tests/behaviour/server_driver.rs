//! The process of a server, as a trial sees it: its address, journal and commands, and the
//! resources that it holds.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tempfile::TempDir;

use crate::common::client::{Client, Endpoint};
use crate::common::{TIMEOUT, becomes_true, process};
use crate::matrix::Combination;
use crate::scripted_handler::FAULTS;
use crate::server_process::{Options, Role, STOP};

pub struct ServerDriver {
    pub cell: Combination,
    pub endpoint: Endpoint,
    limit: Option<usize>,
    process: Child,
    input: ChildStdin,
    directory: TempDir,
}

impl ServerDriver {
    /// Starts a server that serves.
    #[track_caller]
    pub fn start(cell: Combination, options: Options) -> Self {
        let mut server = Self::bind(cell, options);
        server.command("serve");
        server
    }

    /// Starts a server that is bound and waits for commands.
    #[track_caller]
    pub fn bind(cell: Combination, options: Options) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let limit = options.count("limit");
        let role = Role {
            transport: cell.transport.into(),
            model: cell.model.into(),
            directory: directory.path().into(),
            options,
        };
        let mut command = Command::new(std::env::current_exe().unwrap());
        role.assign(&mut command);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // In a process group of its own, so that its children can be killed even after it has
            // ended.
            .process_group(0);
        let mut process = process::start(&mut command);
        let input = process.stdin.take().unwrap();
        let mut address = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut address)
            .unwrap();
        let address = address.trim_end();
        let endpoint = match cell.transport {
            "tcp" => address.parse().map(Endpoint::Tcp).ok(),
            "udp" => address.parse().map(Endpoint::Udp).ok(),
            "unix" => Some(Endpoint::Unix(address.into())),
            _ => Some(Endpoint::UnixDatagram(address.into())),
        };
        // From here on, the drop of the driver kills the process.
        let found = endpoint.is_some() && !address.is_empty();
        let server = Self {
            cell,
            endpoint: endpoint.unwrap_or(Endpoint::Unix(PathBuf::new())),
            limit,
            process,
            input,
            directory,
        };
        assert!(found, "the server did not start: {}", server.journal());
        server
    }

    /// Sends a command to the standard input of the server.
    #[track_caller]
    pub fn command(&mut self, command: &str) {
        self.input
            .write_all(format!("{command}\n").as_bytes())
            .unwrap();
    }

    /// Stops the server by a signal, which reaches a server whose only thread runs a handler.
    #[track_caller]
    pub fn stop(&self) {
        self.signal(STOP);
    }

    /// Drains the server by a signal.
    #[track_caller]
    pub fn drain(&self, millis: u16) {
        self.signal(isize::try_from(millis).unwrap());
    }

    /// Sends the signal, and waits until the server has handled it.
    #[track_caller]
    fn signal(&self, value: isize) {
        let before = self.count("signalled");
        let value = libc::sigval {
            sival_ptr: value as *mut libc::c_void,
        };
        // SAFETY: a system call without memory of this process. The target is a child that was not
        // waited for, so its id is still its own.
        let sent = unsafe { libc::sigqueue(self.raw_pid(), libc::SIGUSR2, value) };
        assert_eq!(sent, 0);
        self.wait_for("the signal to be handled", || {
            self.count("signalled") > before
        });
    }

    #[track_caller]
    pub fn client(&self) -> Client {
        Client::connect(&self.endpoint)
            .unwrap_or_else(|error| panic!("cannot connect: {error}\n{}", self.journal()))
    }

    /// Asserts that the server serves: a new client gets a reply.
    #[track_caller]
    pub fn assert_serves(&self) {
        let mut client = self.client();
        client.send_line("still there?").unwrap();
        self.expect_reply(&mut client, "still there?");
    }

    /// Asserts that the client receives this reply.
    #[track_caller]
    pub fn expect_reply(&self, client: &mut Client, expected: &str) {
        let reply = client.receive_line();
        let is_expected = matches!(&reply, Ok(Some(reply)) if reply == expected);
        assert!(
            is_expected,
            "{reply:?}, not {expected:?}\n{}",
            self.journal()
        );
    }

    /// Starts a request whose handler waits until it is released.
    #[track_caller]
    pub fn hold(&self, name: &str) -> HeldRequest {
        self.hold_with("hold", name)
    }

    #[track_caller]
    pub fn hold_with(&self, command: &str, name: &str) -> HeldRequest {
        let mut client = self.request_hold(command, name);
        client.expect_reply("holding");
        client
    }

    /// Sends such a request without waiting for its handler.
    #[track_caller]
    pub fn request_hold(&self, command: &str, name: &str) -> HeldRequest {
        let fifo = self.directory.path().join(name);
        let mode = Mode::from_raw_mode(0o600);
        mknodat(CWD, &fifo, FileType::Fifo, mode, 0).unwrap();
        let mut client = self.client();
        client.send_line(&format!("{command} {name}")).unwrap();
        HeldRequest { client, fifo }
    }

    /// Sets the faults for the next requests: `setup panic`, `verify_request reject`, ...
    #[track_caller]
    pub fn set_faults(&self, faults: &[&str]) {
        self.wait_for_requests();
        self.set_faults_now(faults);
    }

    /// Sets the faults for active requests as well.
    #[track_caller]
    pub fn set_faults_now(&self, faults: &[&str]) {
        // Renamed into place atomically, so that the server never reads a partial file.
        let draft = self.directory.path().join("draft");
        fs::write(&draft, faults.join("\n")).unwrap();
        fs::rename(draft, self.directory.path().join(FAULTS)).unwrap();
    }

    pub fn journal(&self) -> String {
        fs::read_to_string(self.directory.path().join("journal")).unwrap_or_default()
    }

    /// Returns the lines of the journal that begin with these words.
    pub fn lines(&self, prefix: &str) -> Vec<String> {
        let begins = |line: &&str| {
            line.strip_prefix(prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        };
        self.journal()
            .lines()
            .filter(begins)
            .map(str::to_owned)
            .collect()
    }

    /// Stops the server and returns one of its counters.
    #[track_caller]
    pub fn counter(&mut self, name: &str) -> u64 {
        self.wait_for_requests();
        self.stop();
        self.expect_event("served");
        self.command("counters");
        self.expect_event("counters");
        let line = self.lines("counters").pop().unwrap();
        let (_, value) = line.split_once(&format!(" {name}: ")).unwrap();
        let end = value.find([',', ' ']).unwrap();
        value[..end].parse().unwrap()
    }

    pub fn count(&self, prefix: &str) -> usize {
        self.lines(prefix).len()
    }

    /// Returns the number of the first line of the journal that begins with these words.
    #[track_caller]
    pub fn position(&self, prefix: &str) -> usize {
        let journal = self.journal();
        let position = journal.lines().position(|line| {
            line.strip_prefix(prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        });
        position.unwrap_or_else(|| panic!("no {prefix:?} in\n{journal}"))
    }

    /// Waits until the journal has exactly one line that begins with these words, and returns it.
    #[track_caller]
    pub fn expect_event(&self, prefix: &str) -> String {
        self.expect_events(prefix, 1).swap_remove(0)
    }

    #[track_caller]
    pub fn expect_events(&self, prefix: &str, times: usize) -> Vec<String> {
        let mut lines = Vec::new();
        self.wait_for(&format!("{times} times {prefix:?}"), || {
            lines = self.lines(prefix);
            lines.len() >= times
        });
        assert_eq!(lines.len(), times, "{prefix}\n{}", self.journal());
        lines
    }

    /// Waits for a condition. Panics with the journal if it does not become true.
    #[track_caller]
    pub fn wait_for(&self, what: &str, condition: impl FnMut() -> bool) {
        let is_true = becomes_true(TIMEOUT, condition);
        assert!(
            is_true,
            "not within {TIMEOUT:?}: {what}\n{}",
            self.journal()
        );
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    fn raw_pid(&self) -> i32 {
        self.pid().try_into().unwrap()
    }

    pub fn children(&self) -> Vec<u32> {
        process::children(self.pid())
    }

    /// Waits until the server has exactly one child, and returns it.
    #[track_caller]
    pub fn child(&self) -> u32 {
        let mut children = Vec::new();
        self.wait_for("one child", || {
            children = self.children();
            children.len() == 1
        });
        children[0]
    }

    /// Waits until every accepted request has ended.
    #[track_caller]
    pub fn wait_for_requests(&self) {
        self.wait_for("every request to end", || {
            self.count("accepted") == self.count("ended") + self.count("rejected")
        });
    }

    /// Asserts that the server returns to idle: no child, and no more threads than an idle server
    /// has. Returns its number of descriptors.
    #[track_caller]
    pub fn assert_idle(&self) -> usize {
        self.wait_for_requests();
        let (pid, most) = (self.pid(), self.idle_threads());
        self.wait_for(&format!("no child, and at most {most} threads"), || {
            self.children().is_empty() && process::threads(pid) <= most
        });
        // A child's descriptor is closed a moment after the child was reaped.
        self.wait_for("no descriptor of a child", || {
            !process::open_files(pid)
                .iter()
                .any(|file| file.contains("pidfd"))
        });
        process::descriptors(pid)
    }

    fn idle_threads(&self) -> usize {
        match self.cell.model {
            "pooled" => 1 + self.limit.unwrap_or(32),
            // One worker per core, and the helper threads.
            "green" => 64,
            _ => 1,
        }
    }

    #[track_caller]
    pub fn kill(&self, pid: u32, signal: Signal) {
        kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
    }

    /// The file of the server's socket.
    pub fn path(&self) -> Option<&Path> {
        match &self.endpoint {
            Endpoint::Unix(path) | Endpoint::UnixDatagram(path) => Some(path),
            Endpoint::Tcp(_) | Endpoint::Udp(_) => None,
        }
    }

    /// Waits until another socket can bind the address.
    #[track_caller]
    pub fn wait_until_address_free(&self) {
        self.wait_for("the address to be free", || match &self.endpoint {
            Endpoint::Tcp(address) => std::net::TcpListener::bind(address).is_ok(),
            Endpoint::Udp(address) => std::net::UdpSocket::bind(address).is_ok(),
            Endpoint::Unix(path) | Endpoint::UnixDatagram(path) => {
                fs::symlink_metadata(path).is_err()
            }
        });
    }

    /// Asserts that the process exits with success and leaves no child.
    #[track_caller]
    pub fn assert_quits(mut self) {
        self.command("quit");
        let status = process::exit_status(&mut self.process, TIMEOUT);
        let journal = self.journal();
        assert!(status.is_some_and(|s| s.success()), "{status:?}\n{journal}");
        // Its first process is reaped, so the group has a member only if a child is left.
        let group = Pid::from_raw(self.raw_pid()).unwrap();
        assert!(
            rustix::process::test_kill_process_group(group).is_err(),
            "a child\n{journal}"
        );
    }

    /// Kills the server without its children, as a crash would.
    #[track_caller]
    pub fn kill_server(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Kills every process that the trial has started, however the trial ends.
impl Drop for ServerDriver {
    fn drop(&mut self) {
        if let Some(group) = Pid::from_raw(self.raw_pid()) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.process.wait();
    }
}

/// A client whose request is held until its named pipe is opened.
pub struct HeldRequest {
    pub client: Client,
    fifo: PathBuf,
}

impl HeldRequest {
    #[track_caller]
    pub fn expect_reply(&mut self, answer: &str) {
        assert_eq!(self.client.receive_line().unwrap().as_deref(), Some(answer));
    }

    /// Lets the handler continue, as soon as it waits.
    #[track_caller]
    pub fn open(&self) {
        open(&self.fifo);
    }

    /// Disconnects, and then lets the handler continue.
    #[track_caller]
    pub fn disconnect_and_release(self) {
        let no_starts = process::block_process_starts();
        drop(self.client);
        drop(no_starts);
        open(&self.fifo);
    }

    /// Lets the handler continue, and expects its reply.
    #[track_caller]
    pub fn release(mut self) {
        self.open();
        self.expect_reply("released");
    }
}

#[track_caller]
fn open(fifo: &Path) {
    let opened = becomes_true(TIMEOUT, || {
        // Without a reader, open fails instead of waiting: fifo(7).
        let mut options = OpenOptions::new();
        options
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(fifo)
            .is_ok()
    });
    assert!(opened, "no handler waits at {}", fifo.display());
}
