//! Tests of signals to the process and to its whole group.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{
    MODELS, Server, client, eventually, exchange, exists, is_closed, lets_in, socketserver,
};

const TCP: &str = "tcp://127.0.0.1:0";

/// Starts a server in a process group of its own.
fn in_group(args: &[&str]) -> Server {
    let mut command = socketserver();
    let command = command.args(args).process_group(0);
    Server::launch(command.stdin(std::process::Stdio::null()), 1)
}

/// After the first signal, the server serves all clients for the lame-duck time. Then it drains by
/// itself.
#[test]
fn a_lame_server_serves_for_its_time_and_drains() {
    for model in MODELS {
        let args = ["upper", "-c", model, "-l", TCP, "--lame-duck-time", "1s"];
        let mut server = in_group(&args);
        // A sequential server serves no new client beside the connected client.
        let old = (model != "sequential").then(|| client(&server, 0));
        let asked = Instant::now();
        server.signal_group("TERM");
        server.logged("stop asked for");
        let mut new = client(&server, 0);
        assert_eq!(exchange(&mut new, b"served"), b"SERVED", "{model}");
        assert!(asked.elapsed() < Duration::from_secs(1), "too slow to tell");
        // The signal comes again during the drain.
        server.logged("stop asked for");
        assert!(asked.elapsed() >= Duration::from_secs(1), "{model}");
        assert_eq!(exchange(&mut new, b"still"), b"STILL", "{model}");
        drop((old, new));
        assert_eq!(server.wait().code(), Some(0), "{model}");
    }
}

#[test]
fn a_second_one_forces_a_lame_server() {
    // The second time is longer than the clock can represent.
    for (model, time) in MODELS
        .into_iter()
        .zip(["1h", "400000000000y"].into_iter().cycle())
    {
        let args = ["upper", "-c", model, "-l", TCP, "--lame-duck-time", time];
        let mut server = Server::start(&args, 1);
        let mut silent = client(&server, 0);
        exchange(&mut silent, b"here");
        server.signal("TERM");
        server.logged("stop asked for");
        let before = Instant::now();
        server.signal_again("TERM");
        assert_eq!(server.wait().code(), Some(1), "{model}");
        assert!(before.elapsed() < Duration::from_secs(5), "{model}");
    }
}

/// Checks that the server drains and ends after the connected client has left.
#[track_caller]
fn drains(server: &mut Server, active: &mut TcpStream, what: &str) {
    server.logged("stop asked for");
    assert_eq!(exchange(active, b"after"), b"AFTER", "{what}");
    if !what.starts_with("sequential") {
        // A sequential server drains its backlog after the connection that it is busy with.
        eventually(|| TcpStream::connect(server.address(0)).is_err());
    }
    active.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.wait().code(), Some(0), "{what}");
}

#[test]
fn each_of_them_drains_under_every_model() {
    for model in MODELS {
        for signal in ["TERM", "INT", "QUIT", "HUP"] {
            let mut server = Server::start(&["upper", "-c", model, "-l", TCP], 1);
            let mut active = client(&server, 0);
            assert_eq!(exchange(&mut active, b"before"), b"BEFORE");
            server.signal(signal);
            drains(&mut server, &mut active, &format!("{model} {signal}"));
        }
    }
}

#[test]
fn who_is_between_two_messages_is_let_go_at_once() {
    for model in MODELS {
        let mut server = in_group(&["echo", "-c", model, "-l", TCP, "--drain-timeout", "1m"]);
        // A sequential server has one client.
        let size = if model == "sequential" { 1 } else { 5 };
        let mut idle: Vec<_> = (0..size).map(|_| client(&server, 0)).collect();
        for one in &mut idle {
            one.write_all(b"hello").unwrap();
            assert!(one.read(&mut [0; 64]).unwrap() > 0);
        }
        let started = Instant::now();
        // Children get the signal, too, and ignore it.
        server.signal_group("TERM");
        assert!(server.wait().success(), "{model}");
        assert!(started.elapsed() < Duration::from_secs(10), "{model}");
        for mut one in idle {
            assert!(is_closed(&mut one), "{model}");
        }
    }
}

#[test]
fn each_of_them_drains_when_the_whole_group_has_it() {
    for model in ["threading", "forking"] {
        for signal in ["TERM", "INT", "QUIT", "HUP"] {
            let mut server = in_group(&["upper", "-c", model, "-l", TCP]);
            let mut active = client(&server, 0);
            assert_eq!(exchange(&mut active, b"before"), b"BEFORE");
            server.signal_group(signal);
            drains(&mut server, &mut active, &format!("{model} {signal}"));
        }
    }
}

#[test]
fn with_a_configuration_sighup_reloads_and_the_others_drain() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.toml");
    let config = path.to_str().unwrap();
    for model in MODELS {
        for signal in ["TERM", "INT", "QUIT"] {
            std::fs::write(&path, "").unwrap();
            let args = ["upper", "-c", model, "-l", TCP, "--config", config];
            let mut server = in_group(&args);
            let mut active = client(&server, 0);
            assert_eq!(exchange(&mut active, b"before"), b"BEFORE");
            // Forked children get the signal, too, and continue.
            std::fs::write(&path, "deny = 'all'").unwrap();
            server.signal_group("HUP");
            server.logged("reloaded; changed: deny");
            assert_eq!(exchange(&mut active, b"still"), b"STILL", "{model}");
            if model != "sequential" {
                assert!(!lets_in(&server, 0), "{model}");
            }
            server.signal(signal);
            drains(&mut server, &mut active, &format!("{model} {signal}"));
        }
    }
}

/// Other processes send these signals for other purposes than to end a server.
#[test]
fn signals_of_others_end_nothing() {
    for model in MODELS {
        let mut server = in_group(&["upper", "-c", model, "-l", TCP]);
        let mut active = client(&server, 0);
        for signal in [
            "USR1", "USR2", "PIPE", "ALRM", "IO", "PROF", "XFSZ", "WINCH", "URG",
        ] {
            server.signal_group(signal);
            assert_eq!(
                exchange(&mut active, b"still"),
                b"STILL",
                "{model} {signal}"
            );
        }
        server.signal("TERM");
        drains(&mut server, &mut active, model);
    }
}

/// Before the server serves, it handles no signals. Signals then end the process by their default
/// action.
#[test]
fn a_start_that_takes_long_can_be_ended() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("config");
    let made = Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    // The program waits until the test writes the file.
    let mut child = common::Guarded(
        socketserver()
            .args(["upper", "-l", "tls://127.0.0.1:0", "--tls-cert"])
            .arg(&fifo)
            .arg("--tls-key")
            .arg(&fifo)
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap(),
    );
    let state = || std::fs::read_to_string(format!("/proc/{}/wchan", child.0.id()));
    eventually(|| !state().is_ok_and(|at| at == "0" || at.is_empty()));
    std::thread::sleep(Duration::from_millis(100));
    let killed = Command::new("kill").arg(child.0.id().to_string()).status();
    assert!(killed.unwrap().success());
    assert_eq!(common::wait(&mut child.0).code(), None);
}

/// The server serves clients and handles signals, even if no process reads its output.
#[test]
fn a_full_pipe_for_output_holds_up_nothing() {
    for model in MODELS {
        for stderr in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("s");
            let endpoint = format!("unix://{}", path.display());
            let (_unread, full) = full_pipe();
            let mut command = socketserver();
            command
                .args(["upper", "-c", model, "-l", &endpoint])
                .stdin(std::process::Stdio::null());
            match stderr {
                true => command.stdout(std::process::Stdio::null()).stderr(full),
                false => command.stdout(full).stderr(std::process::Stdio::null()),
            };
            let mut server = common::Guarded(command.spawn().unwrap());
            common::until_listening(&path);
            let mut client = std::os::unix::net::UnixStream::connect(&path).unwrap();
            client.set_read_timeout(Some(common::PATIENCE)).unwrap();
            assert_eq!(exchange(&mut client, b"here"), b"HERE", "{model}");
            drop(client);
            let killed = Command::new("kill").arg(server.0.id().to_string()).status();
            assert!(killed.unwrap().success());
            assert_eq!(common::wait(&mut server.0).code(), Some(0), "{model}");
        }
    }
}

/// The server writes an error at its end if the write does not block.
#[test]
fn a_failure_ends_with_a_full_pipe_for_errors() {
    let (_unread, full) = full_pipe();
    let mut server = common::Guarded(
        socketserver()
            .args(["upper", "-l", "unix:///nonexistent/s"])
            .stderr(full)
            .spawn()
            .unwrap(),
    );
    assert_eq!(common::wait(&mut server.0).code(), Some(1));
}

/// Returns a full pipe.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
    rustix::fs::fcntl_setfl(&writer, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
    while writer.write(&[b'x'; 4096]).is_ok() {}
    rustix::fs::fcntl_setfl(&writer, flags).unwrap();
    (reader, writer)
}

/// The server announces its endpoint as soon as the pipe has room.
#[test]
fn where_it_listens_is_told_once_a_full_pipe_is_read() {
    let (unread, full) = full_pipe();
    let mut server = common::Guarded(
        socketserver()
            .args(["upper", "-l", TCP])
            .stdin(std::process::Stdio::null())
            .stdout(full)
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let told = BufReader::new(unread).lines().find_map(|line| {
        let line = line.unwrap();
        line.find("listening tcp://")
            .map(|at| line[at..].to_owned())
    });
    let address = told.unwrap().replace("listening tcp://", "");
    assert_eq!(exchange(&mut common::client_at(&address), b"a"), b"A");
    let killed = Command::new("kill").arg(server.0.id().to_string()).status();
    assert!(killed.unwrap().success());
    assert!(common::wait(&mut server.0).success());
}

#[test]
fn a_drain_that_had_to_cut_has_its_own_status() {
    for model in MODELS {
        for (options, idle, status) in [
            (&["--cut-status", "7"][..], false, 7),
            (&["--cut-status", "7"], true, 0),
            (&[], false, 0),
        ] {
            let args = ["upper", "-c", model, "-l", TCP, "--drain-timeout", "50ms"];
            let mut server = in_group(&[&args[..], options].concat());
            let mut held = client(&server, 0);
            assert_eq!(exchange(&mut held, b"a"), b"A");
            if idle {
                held.shutdown(Shutdown::Write).unwrap();
                assert!(is_closed(&mut held));
                server.logged("disconnected");
            }
            server.signal("TERM");
            assert_eq!(server.wait().code(), Some(status), "{model} {idle}");
        }
    }
}

#[test]
fn a_second_one_forces() {
    for model in MODELS {
        for (first, second) in [("TERM", "INT"), ("QUIT", "QUIT")] {
            let dir = tempfile::tempdir().unwrap();
            let path = format!("unix://{}/s", dir.path().display());
            let args = ["upper", "-c", model, "-l", TCP, "-l", &path];
            let mut server = Server::start(&args, 2);
            let mut silent = client(&server, 0);
            exchange(&mut silent, b"here");
            server.signal(first);
            server.logged("stop asked for");
            // Two signals at the same time count as one, so that the server still serves the
            // client.
            server.signal(first);
            assert_eq!(exchange(&mut silent, b"still"), b"STILL", "{model}");
            let before = Instant::now();
            server.signal_again(second);
            assert_eq!(server.wait().code(), Some(1), "{model}");
            assert!(before.elapsed() < Duration::from_secs(5), "{model}");
            assert!(
                !exists(dir.path().join("s")),
                "{model}: the socket file is gone"
            );
        }
    }
}

#[test]
fn a_reload_is_no_first_signal() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.toml");
    std::fs::write(&path, "").unwrap();
    for model in MODELS {
        let config = path.to_str().unwrap();
        let args = ["upper", "-c", model, "-l", TCP, "--config", config];
        let mut server = Server::start(&args, 1);
        let mut active = client(&server, 0);
        assert_eq!(exchange(&mut active, b"before"), b"BEFORE");
        server.signal("HUP");
        server.logged("reloaded");
        server.signal_again("TERM");
        drains(&mut server, &mut active, model);
    }
}

#[test]
fn nohup_is_respected_where_there_is_nothing_to_reload() {
    for model in ["threading", "forking"] {
        let script = format!(
            "trap '' HUP; exec {} upper -c {model} -l {TCP}",
            socketserver().get_program().display()
        );
        let mut command = Command::new("sh");
        let mut server = Server::launch(command.args(["-c", &script]).process_group(0), 1);
        let mut active = client(&server, 0);
        assert_eq!(exchange(&mut active, b"one"), b"ONE");
        server.signal_group("HUP");
        assert_eq!(exchange(&mut active, b"on"), b"ON");
        assert!(lets_in(&server, 0));
        server.signal("TERM");
        drains(&mut server, &mut active, model);
    }
}

/// Under nohup, the server ignores SIGHUP, and commands of a client inherit that.
#[test]
fn what_a_forked_child_executes_goes_on_under_nohup() {
    let ignored = |before: &str| {
        let program = socketserver().get_program().display().to_string();
        let script = format!("{before} exec {program} command -c forking -l {TCP}");
        let server = Server::launch(Command::new("sh").args(["-c", &script]), 1);
        let mut client = client(&server, 0);
        client.write_all(b"grep SigIgn: /proc/self/status").unwrap();
        let mut reply = String::new();
        let mut lines = BufReader::new(client);
        lines.read_line(&mut reply).unwrap();
        let mask = reply.rsplit(char::is_whitespace).nth(1).unwrap();
        u64::from_str_radix(mask, 16).unwrap() & 1 == 1
    };
    assert!(ignored("trap '' HUP;"));
    assert!(!ignored(""));
}

/// The end of a child by the console does not end the other children.
#[test]
fn a_kicked_child_ends_alone() {
    let mut server = Server::with_console(&["upper", "-c", "forking", "-l", TCP], 1);
    let mut kicked = client(&server, 0);
    assert_eq!(exchange(&mut kicked, b"one"), b"ONE");
    let mut spared = client(&server, 0);
    assert_eq!(exchange(&mut spared, b"two"), b"TWO");
    server.type_in("kick 1");
    assert_eq!(server.says(), "1 is cancelled");
    assert!(is_closed(&mut kicked));
    assert_eq!(exchange(&mut spared, b"three"), b"THREE");
    spared.shutdown(Shutdown::Both).unwrap();
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
}
