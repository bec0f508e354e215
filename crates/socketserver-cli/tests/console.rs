//! Tests of a server's console on a pipe and on a terminal.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::io::{Read, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use common::{Guarded, MODELS, Server, client, eventually, hear, socketserver, wait};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

#[test]
fn it_lists_kicks_counts_and_quits_under_every_model() {
    for model in MODELS {
        let args = [
            "echo",
            "-c",
            model,
            "-l",
            "tcp://127.0.0.1:0",
            "-l",
            "udp://127.0.0.1:0",
        ];
        let mut server = Server::with_console(&args, 2);
        let mut one = client(&server, 0);
        one.write_all(b"hello").unwrap();
        let name = one.local_addr().unwrap().to_string();
        hear(&mut one, format!("{name} hello").as_bytes());

        server.type_in("list");
        assert!(server.says().ends_with("1 of 1 busy") || model != "sequential");
        assert!(
            server
                .says()
                .split_whitespace()
                .eq(["ID", "PEER", "AGE", "IN", "OUT", "STATE"])
        );
        let row = server.says();
        let cells: Vec<_> = row.split_whitespace().collect();
        assert_eq!(cells[..2], ["1.1", &name], "{model}");
        if model != "forking" {
            assert_eq!(cells[3], "5", "{row}");
        }
        assert!(server.says().starts_with("udp://"));

        server.type_in("kick 1.1");
        assert_eq!(server.says(), "1.1 is cancelled");
        assert_eq!(one.read(&mut [0; 9]).unwrap_or(0), 0, "{model}");
        eventually(|| {
            server.type_in("kick 1.1");
            server.says() == "1.1 is not being served"
        });
        eventually(|| {
            server.type_in("stats");
            assert!(server.says().starts_with("up "));
            let tcp = server.says();
            assert!(server.says().starts_with("udp://"));
            tcp.contains("accepted 1, rejected 0, active 0, ended 1")
        });
        server.type_in("\x1b[2J");
        assert_eq!(
            server.says(),
            "\\x1b[2J is not a command. The commands are:"
        );
        while !server.says().starts_with("udp://") {}
        server.type_in("quit");
        assert_eq!(server.says(), "stopping");
        assert!(server.wait().success());
    }
}

#[test]
fn a_console_that_is_closed_or_floods_leaves_the_server_alone() {
    for model in MODELS {
        let mut server = Server::with_console(&["echo", "-c", model, "-l", "tcp://127.0.0.1:0"], 1);
        // The console gets far more answers than the test reads.
        for _ in 0..2000 {
            server.type_in("help");
        }
        server.type_in(&"x".repeat(200_000));
        server.hang_up();
        let mut one = client(&server, 0);
        one.write_all(b"on").unwrap();
        let expected = format!("{} on", one.local_addr().unwrap());
        hear(&mut one, expected.as_bytes());
        drop(one);
        server.signal("TERM");
        assert!(server.wait().success(), "{model}");
    }
}

/// A server does not wait for the readers of its answers and its log.
#[test]
fn a_console_that_nobody_reads_makes_nobody_wait() {
    for model in MODELS {
        let mut child = Guarded(
            socketserver()
                .args(["echo", "-c", model, "-l", "tcp://127.0.0.1:0"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        // The test reads the first line and no more.
        let stdout = child.0.stdout.as_mut().unwrap();
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            let mut byte = [0];
            stdout.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        let line = String::from_utf8(line).unwrap();
        let address = line
            .trim()
            .strip_prefix("listening tcp://")
            .unwrap()
            .to_owned();
        let mut stdin = child.0.stdin.take().unwrap();
        for _ in 0..1000 {
            writeln!(stdin, "help").unwrap();
        }
        // Each line has its own entry in the log, and the entries are longer than a pipe holds.
        for n in 0..400 {
            let mut one = std::net::TcpStream::connect(&address).unwrap();
            one.set_read_timeout(Some(common::PATIENCE)).unwrap();
            let message = format!("{n} {}", "x".repeat(300));
            one.write_all(message.as_bytes()).unwrap();
            let expected = format!("{} {message}", one.local_addr().unwrap());
            hear(&mut one, expected.as_bytes());
        }
        drop(stdin);
        let stopped = Command::new("kill").arg(child.0.id().to_string()).status();
        assert!(stopped.unwrap().success());
        assert!(wait(&mut child.0).success(), "{model}");
    }
}

#[test]
fn drain_lets_connections_end() {
    let mut server = Server::with_console(&["upper", "-l", "tcp://127.0.0.1:0"], 1);
    let mut one = client(&server, 0);
    one.write_all(b"a").unwrap();
    hear(&mut one, b"A");
    server.type_in("drain");
    assert!(server.says().starts_with("draining"));
    one.write_all(b"b").unwrap();
    hear(&mut one, b"B");
    drop(one);
    assert!(server.wait().success());
}

/// A terminal that `script` creates.
struct Terminal {
    script: Guarded,
    keys: ChildStdin,
    screen: ChildStdout,
    seen: String,
}

impl Terminal {
    fn run(shell: &str) -> Option<Self> {
        let spawned = Command::new("script")
            .args(["-qec", shell, "/dev/null"])
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut script) = spawned else {
            println!("SKIPPED: script is not installed");
            return None;
        };
        Some(Self {
            keys: script.stdin.take().unwrap(),
            screen: script.stdout.take().unwrap(),
            script: Guarded(script),
            seen: String::new(),
        })
    }

    /// Reads until the terminal has shown the text since the last call.
    #[track_caller]
    fn shows(&mut self, text: &str) {
        self.seen.clear();
        let mut bytes = [0; 4096];
        while !self.seen.contains(text) {
            let mut fds = [PollFd::new(&self.screen, PollFlags::IN)];
            let patience = Timespec {
                tv_sec: 20,
                tv_nsec: 0,
            };
            let ready = poll(&mut fds, Some(&patience)).unwrap() > 0;
            let n = if ready {
                self.screen.read(&mut bytes).unwrap()
            } else {
                0
            };
            assert!(n > 0, "no {text:?} in {:?}", self.seen);
            self.seen.push_str(&String::from_utf8_lossy(&bytes[..n]));
        }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }
}

#[test]
fn on_a_terminal_lines_are_edited_and_the_terminal_is_given_back() {
    // Ctrl-C goes to the whole foreground group. The shell must survive the signal. bash does so by
    // itself, and dash does not.
    let server = format!(
        "trap : INT; {} echo -l tcp://127.0.0.1:0; echo exit $?; stty -a | tr ' ' '\\n' | grep icanon; echo end",
        socketserver().get_program().display()
    );
    // The prompt comes after the greeting.
    let Some(mut terminal) = Terminal::run(&server) else {
        return;
    };
    terminal.shows("> ");
    // The test types a typing error and corrects it, and then recalls the previous line.
    terminal.press("lisx\x7ft\r");
    terminal.shows("0 of 1024 busy");
    terminal.press("\x1b[A\r");
    terminal.shows("0 of 1024 busy");
    terminal.press("quit\r");
    terminal.shows("end");
    assert!(terminal.seen.contains("exit 0"), "{}", terminal.seen);
    assert!(terminal.seen.contains("\nicanon"), "{}", terminal.seen);

    // Ctrl-C begins a drain within a line that is not complete.
    let mut terminal = Terminal::run(&server).unwrap();
    terminal.shows("> ");
    terminal.press("some words\x03");
    terminal.shows("end");
    assert!(terminal.seen.contains("exit 0"), "{}", terminal.seen);
    assert!(terminal.seen.contains("drained"), "{}", terminal.seen);
    assert!(terminal.seen.contains("\nicanon"), "{}", terminal.seen);

    // Ctrl-D closes only the console. After that, Ctrl-C is a signal.
    let mut terminal = Terminal::run(&server).unwrap();
    terminal.shows("> ");
    terminal.press("\x04");
    terminal.shows("the server continues");
    terminal.press("\x03");
    terminal.shows("end");
    assert!(terminal.seen.contains("exit 0"), "{}", terminal.seen);
    assert!(wait(&mut terminal.script.0).success());
}
