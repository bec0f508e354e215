//! A server's process, as a trial sees it: its address, its journal, its commands, and what it
//! holds.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tempfile::TempDir;

use crate::actor::FAULTS;
use crate::common::client::{Client, Endpoint};
use crate::common::{PATIENCE, comes_true, process};
use crate::matrix::Combination;
use crate::stage::{Options, Role, STOP};

pub struct Serving {
    pub cell: Combination,
    pub endpoint: Endpoint,
    limit: Option<usize>,
    process: Child,
    input: ChildStdin,
    directory: TempDir,
}

impl Serving {
    /// A server that serves.
    #[track_caller]
    pub fn start(cell: Combination, options: Options) -> Self {
        let mut serving = Self::bound(cell, options);
        serving.tell("serve");
        serving
    }

    /// A server that is bound and waits to be told what to do.
    #[track_caller]
    pub fn bound(cell: Combination, options: Options) -> Self {
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
            // A group of its own, so that its children are in reach even when it is gone.
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
        // From here on the guard is in force.
        let found = endpoint.is_some() && !address.is_empty();
        let serving = Self {
            cell,
            endpoint: endpoint.unwrap_or(Endpoint::Unix(PathBuf::new())),
            limit,
            process,
            input,
            directory,
        };
        assert!(found, "the server did not start: {}", serving.journal());
        serving
    }

    /// Gives the server a command by its standard input.
    #[track_caller]
    pub fn tell(&mut self, command: &str) {
        self.input
            .write_all(format!("{command}\n").as_bytes())
            .unwrap();
    }

    /// Asks for a stop by a signal, which reaches even a server that is busy with a handler.
    #[track_caller]
    pub fn stop(&self) {
        self.signal(STOP);
    }

    /// Asks for a drain in the same way.
    #[track_caller]
    pub fn drain(&self, millis: u16) {
        self.signal(isize::try_from(millis).unwrap());
    }

    /// Returns once the command was given.
    #[track_caller]
    fn signal(&self, value: isize) {
        let before = self.count("signalled");
        let value = libc::sigval {
            sival_ptr: value as *mut libc::c_void,
        };
        // SAFETY: a system call without memory of ours; the process is a child that was not waited
        // for, so the number is still its own.
        let sent = unsafe { libc::sigqueue(self.raw_pid(), libc::SIGUSR2, value) };
        assert_eq!(sent, 0);
        self.waits_for("the signal to be handled", || {
            self.count("signalled") > before
        });
    }

    #[track_caller]
    pub fn client(&self) -> Client {
        Client::connect(&self.endpoint)
            .unwrap_or_else(|error| panic!("cannot connect: {error}\n{}", self.journal()))
    }

    /// Makes sure that the server serves: a new client gets an answer.
    #[track_caller]
    pub fn serves(&self) {
        let mut client = self.client();
        client.say("still there?").unwrap();
        self.answers(&mut client, "still there?");
    }

    /// The client is given this answer.
    #[track_caller]
    pub fn answers(&self, client: &mut Client, expected: &str) {
        let answer = client.hear();
        let answered = matches!(&answer, Ok(Some(answer)) if answer == expected);
        assert!(answered, "{answer:?}, not {expected:?}\n{}", self.journal());
    }

    /// A request that is being served until it is released.
    #[track_caller]
    pub fn hold(&self, name: &str) -> Held {
        self.hold_by("hold", name)
    }

    #[track_caller]
    pub fn hold_by(&self, command: &str, name: &str) -> Held {
        let mut client = self.knock_and_hold(command, name);
        client.hears("holding");
        client
    }

    /// The same, whether it is served now or later.
    #[track_caller]
    pub fn knock_and_hold(&self, command: &str, name: &str) -> Held {
        let gate = self.directory.path().join(name);
        let mode = Mode::from_raw_mode(0o600);
        mknodat(CWD, &gate, FileType::Fifo, mode, 0).unwrap();
        let mut client = self.client();
        client.say(&format!("{command} {name}")).unwrap();
        Held { client, gate }
    }

    /// What is to go wrong from the next request on: `setup panic`, `verify_request refuse`, ...
    #[track_caller]
    pub fn faults(&self, faults: &[&str]) {
        self.rests();
        self.faults_now(faults);
    }

    /// The same, for those that are being served as well.
    #[track_caller]
    pub fn faults_now(&self, faults: &[&str]) {
        // Put in its place at once: half a file would be half a fault.
        let draft = self.directory.path().join("draft");
        fs::write(&draft, faults.join("\n")).unwrap();
        fs::rename(draft, self.directory.path().join(FAULTS)).unwrap();
    }

    pub fn journal(&self) -> String {
        fs::read_to_string(self.directory.path().join("journal")).unwrap_or_default()
    }

    /// The lines that begin with these words.
    pub fn lines(&self, words: &str) -> Vec<String> {
        let begins = |line: &&str| {
            line.strip_prefix(words)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        };
        self.journal()
            .lines()
            .filter(begins)
            .map(str::to_owned)
            .collect()
    }

    /// One of the server's counters, for which it is stopped.
    #[track_caller]
    pub fn counter(&mut self, name: &str) -> u64 {
        self.rests();
        self.stop();
        self.tells("served");
        self.tell("counters");
        self.tells("counters");
        let line = self.lines("counters").pop().unwrap();
        let (_, value) = line.split_once(&format!(" {name}: ")).unwrap();
        let end = value.find([',', ' ']).unwrap();
        value[..end].parse().unwrap()
    }

    pub fn count(&self, words: &str) -> usize {
        self.lines(words).len()
    }

    /// At which line of the journal something is told for the first time.
    #[track_caller]
    pub fn position(&self, words: &str) -> usize {
        let journal = self.journal();
        let position = journal.lines().position(|line| {
            line.strip_prefix(words)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        });
        position.unwrap_or_else(|| panic!("no {words:?} in\n{journal}"))
    }

    /// Waits until the journal has a line that begins with these words, and returns it.
    #[track_caller]
    pub fn tells(&self, words: &str) -> String {
        self.tells_times(words, 1).swap_remove(0)
    }

    #[track_caller]
    pub fn tells_times(&self, words: &str, times: usize) -> Vec<String> {
        let mut lines = Vec::new();
        self.waits_for(&format!("{times} times {words:?}"), || {
            lines = self.lines(words);
            lines.len() >= times
        });
        assert_eq!(lines.len(), times, "{words}\n{}", self.journal());
        lines
    }

    /// Waits for a condition; shows the journal if it does not come true.
    #[track_caller]
    pub fn waits_for(&self, what: &str, condition: impl FnMut() -> bool) {
        let came = comes_true(PATIENCE, condition);
        assert!(came, "not within {PATIENCE:?}: {what}\n{}", self.journal());
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

    /// The only child, once there is one.
    #[track_caller]
    pub fn child(&self) -> u32 {
        let mut children = Vec::new();
        self.waits_for("one child", || {
            children = self.children();
            children.len() == 1
        });
        children[0]
    }

    /// Waits until every request has ended that was accepted.
    #[track_caller]
    pub fn rests(&self) {
        self.waits_for("every request to end", || {
            self.count("accepted") == self.count("ended") + self.count("refused")
        });
    }

    /// Waits until the server holds no child and no more threads than it has when it is idle;
    /// returns how many descriptors it has then.
    #[track_caller]
    pub fn is_idle(&self) -> usize {
        self.rests();
        let (pid, most) = (self.pid(), self.idle_threads());
        self.waits_for(&format!("no child, and at most {most} threads"), || {
            self.children().is_empty() && process::threads(pid) <= most
        });
        // A child's descriptor is closed a moment after the child was collected.
        self.waits_for("no descriptor of a child", || {
            !process::open_files(pid)
                .iter()
                .any(|file| file.contains("pidfd"))
        });
        process::descriptors(pid)
    }

    fn idle_threads(&self) -> usize {
        match self.cell.model {
            "pooled" => 1 + self.limit.unwrap_or(32),
            // One for each core, and those that look after them.
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

    /// Waits until the address is free for somebody else.
    #[track_caller]
    pub fn frees_its_address(&self) {
        self.waits_for("the address to be free", || match &self.endpoint {
            Endpoint::Tcp(address) => std::net::TcpListener::bind(address).is_ok(),
            Endpoint::Udp(address) => std::net::UdpSocket::bind(address).is_ok(),
            Endpoint::Unix(path) | Endpoint::UnixDatagram(path) => {
                fs::symlink_metadata(path).is_err()
            }
        });
    }

    /// The process ends by itself, orderly, and leaves no child.
    #[track_caller]
    pub fn quits(mut self) {
        self.tell("quit");
        let status = process::exit_status(&mut self.process, PATIENCE);
        let journal = self.journal();
        assert!(status.is_some_and(|s| s.success()), "{status:?}\n{journal}");
        // With its first process waited for, the group has a member only if a child is left.
        let group = Pid::from_raw(self.raw_pid()).unwrap();
        assert!(
            rustix::process::test_kill_process_group(group).is_err(),
            "a child\n{journal}"
        );
    }

    /// Kills the server alone, as a crash would.
    #[track_caller]
    pub fn crashes(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Nothing that a trial started outlives it, however it ends.
impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(group) = Pid::from_raw(self.raw_pid()) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.process.wait();
    }
}

/// A client whose request waits at a gate.
pub struct Held {
    pub client: Client,
    gate: PathBuf,
}

impl Held {
    #[track_caller]
    pub fn hears(&mut self, answer: &str) {
        assert_eq!(self.client.hear().unwrap().as_deref(), Some(answer));
    }

    /// Opens the gate, as soon as the handler waits at it.
    #[track_caller]
    pub fn open(&self) {
        open(&self.gate);
    }

    /// Goes away, and then opens the gate.
    #[track_caller]
    pub fn desert(self) {
        let quiet = process::nobody_starts();
        drop(self.client);
        drop(quiet);
        open(&self.gate);
    }

    /// Lets the request come to its end.
    #[track_caller]
    pub fn release(mut self) {
        self.open();
        self.hears("released");
    }
}

#[track_caller]
fn open(gate: &Path) {
    let opened = comes_true(PATIENCE, || {
        // Without a reader, this fails instead of waiting: fifo(7).
        let mut options = OpenOptions::new();
        options
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(gate)
            .is_ok()
    });
    assert!(opened, "nobody waits at {}", gate.display());
}
