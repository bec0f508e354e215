//! Tests `socketserver collect` from outside.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{PATIENCE, Server, client, client_at, eventually, run, socketserver, text, wait};

const MODELS: [&str; 3] = ["threading", "pooled", "green"];

#[test]
fn everything_ends_up_in_one_file() {
    for model in MODELS {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let out = path.to_str().unwrap();
        let server = Server::start(
            &[
                "collect",
                "-c",
                model,
                "-o",
                out,
                "--framing",
                "lines",
                "-l",
                "tcp://127.0.0.1:0",
            ],
            1,
        );
        let writers: Vec<_> = (0..5)
            .map(|who| {
                let mut one = client(&server, 0);
                std::thread::spawn(move || {
                    for n in 0..200 {
                        writeln!(one, "{who} {n}").unwrap();
                    }
                    one.shutdown(Shutdown::Write).unwrap();
                    // The server closes the connection after it has written all lines.
                    assert_eq!(one.read(&mut [0; 9]).unwrap(), 0);
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        let all = fs::read_to_string(&path).unwrap();
        for who in 0..5 {
            let own = all
                .lines()
                .filter(|line| line.starts_with(&format!("{who} ")));
            assert!(
                own.map(str::to_owned)
                    .eq((0..200).map(|n| format!("{who} {n}"))),
                "{model}"
            );
        }
        assert_eq!(all.lines().count(), 1000);
    }
}

#[test]
fn what_was_confirmed_survives_a_stop() {
    for model in MODELS {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let out = path.to_str().unwrap();
        let args = [
            "collect",
            "-c",
            model,
            "-o",
            out,
            "--ack",
            "--framing",
            "lines",
            "-l",
            "tcp://127.0.0.1:0",
            "-l",
            "udp://127.0.0.1:0",
        ];
        let mut server = Server::start(&args, 2);
        let mut one = client(&server, 0);
        let mut reader = BufReader::new(one.try_clone().unwrap());
        let writing = std::thread::spawn(move || {
            (0..)
                .find(|n| writeln!(one, "message {n}").is_err())
                .unwrap()
        });
        let mut line = String::new();
        let mut confirmed = 0;
        // The signal comes while lines arrive.
        while reader.read_line(&mut line).unwrap_or(0) > 0 {
            assert_eq!(line, "ok\n");
            line.clear();
            confirmed += 1;
            if confirmed == 500 {
                server.signal("TERM");
            }
        }
        let _ = reader.get_ref().shutdown(Shutdown::Both);
        writing.join().unwrap();
        assert!(server.wait().success(), "{model}");
        assert!(confirmed >= 500);
        let all = fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = all.lines().collect();
        assert!(
            lines.len() >= confirmed,
            "{model}: {} of {confirmed}",
            lines.len()
        );
        for (n, line) in lines.iter().enumerate() {
            // Of the last line, only a part may have arrived.
            let whole = n + 1 < lines.len() || n < confirmed;
            let message = format!("message {n}");
            assert!(
                *line == message || !whole && message.starts_with(line),
                "{line}"
            );
        }
    }
}

#[test]
fn a_drain_without_time_still_writes_what_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    let out = path.to_str().unwrap();
    let args = [
        "collect",
        "-o",
        out,
        "--drain-timeout",
        "0s",
        "--ack",
        "-l",
        "tcp://127.0.0.1:0",
    ];
    let mut server = Server::start(&args, 1);
    let mut one = client(&server, 0);
    one.write_all(b"all").unwrap();
    one.read_exact(&mut [0; 3]).unwrap();
    server.signal("TERM");
    assert!(server.wait().success());
    assert_eq!(fs::read(&path).unwrap(), b"all");
}

#[test]
fn datagrams_are_confirmed_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    let out = path.to_str().unwrap();
    let server = Server::start(
        &["collect", "-o", out, "--ack", "-l", "udp://127.0.0.1:0"],
        1,
    );
    let packet = UdpSocket::bind("127.0.0.1:0").unwrap();
    packet.set_read_timeout(Some(PATIENCE)).unwrap();
    packet.send_to(b"one|", server.address(0)).unwrap();
    let mut answer = [0; 10];
    let n = packet.recv(&mut answer).unwrap();
    assert_eq!(&answer[..n], b"ok\n");
    assert_eq!(fs::read(&path).unwrap(), b"one|");
}

#[test]
fn stdout_has_nothing_but_messages_and_makes_clients_wait_when_it_is_full() {
    let mut child = socketserver()
        .args([
            "collect",
            "--queue",
            "4",
            "-l",
            "tcp://127.0.0.1:0",
            "--drain-timeout",
            "20s",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("listening ") {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0);
    }
    let address = line.trim().strip_prefix("listening tcp://").unwrap();
    let mut one = TcpStream::connect(address).unwrap();
    // No process reads the output yet, so that the server stops reading input when its buffers are
    // full.
    one.set_write_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let mut sent = 0_usize;
    let started = Instant::now();
    loop {
        match one.write(&[b'x'; 65_536]) {
            Ok(n) => sent += n,
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                break;
            }
        }
        assert!(started.elapsed() < PATIENCE);
    }
    let mut stdout = child.stdout.take().unwrap();
    let reading = std::thread::spawn(move || {
        let mut all = Vec::new();
        stdout.read_to_end(&mut all).unwrap();
        all
    });
    one.shutdown(Shutdown::Write).unwrap();
    one.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(one.read(&mut [0; 9]).unwrap(), 0);
    let stopped = Command::new("kill").arg(child.id().to_string()).status();
    assert!(stopped.unwrap().success());
    assert!(wait(&mut child).success());
    let all = reading.join().unwrap();
    assert_eq!(all.len(), sent);
    assert!(all.iter().all(|&byte| byte == b'x'));
}

/// Returns the status of `/readyz` and its text.
fn readiness(server: &Server) -> String {
    let address = server.address(1).split(' ').next().unwrap();
    let mut probe = client_at(address);
    probe
        .write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    probe.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_full_disk_is_told_and_nothing_is_confirmed() {
    // The tests below cover all models.
    for model in ["threading", "green"] {
        let args = [
            "collect",
            "-c",
            model,
            "-o",
            "/dev/full",
            "--ack",
            "--drain-timeout",
            "100ms",
            "-l",
            "tcp://127.0.0.1:0",
            "--metrics",
            "tcp://127.0.0.1:0",
        ];
        let mut server = Server::start(&args, 2);
        eventually(|| readiness(&server).starts_with("HTTP/1.1 200 "));
        let mut one = client(&server, 0);
        one.write_all(b"lost").unwrap();
        server.logged("No space left on device");
        let answer = readiness(&server);
        assert!(answer.starts_with("HTTP/1.1 503 "), "{model}: {answer}");
        assert!(answer.contains("output") && answer.contains("No space left"));
        // The wait is longer than the time until the next attempt, which the server does not log
        // again.
        one.set_read_timeout(Some(Duration::from_millis(1200)))
            .unwrap();
        let error = one.read(&mut [0; 9]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{model}");
        assert!(!server.log().iter().any(|line| line.contains("No space")));
        server.signal("TERM");
        assert_eq!(server.wait().code(), Some(1), "{model}");
        server.logged("messages that were not confirmed are lost");
    }
}

/// Starts a server with lines, acknowledgements and this output file.
fn with_lines(model: &str, out: &Path, before: &str) -> Server {
    let program = socketserver().get_program().display().to_string();
    let script = format!(
        "{before} exec {program} collect -c {model} --framing lines --ack -l tcp://127.0.0.1:0 \
         --metrics tcp://127.0.0.1:0 -o {}",
        out.display()
    );
    let mut command = Command::new("sh");
    Server::launch(command.args(["-c", &script]).stdin(Stdio::null()), 2)
}

/// Sends lines until the server does not confirm a line in time. Returns the number of confirmed
/// lines.
fn until_full(one: &mut TcpStream, server: &Server) -> usize {
    let line = [&[b'x'; 98][..], b"\n"].concat();
    let mut confirmed = 0;
    one.set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    loop {
        one.write_all(&line).unwrap();
        match one.read_exact(&mut [0; 3]) {
            Ok(()) => confirmed += 1,
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                break;
            }
        }
        assert!(confirmed < 100_000, "it is never full");
    }
    server.logged("nothing is confirmed");
    one.set_read_timeout(Some(PATIENCE)).unwrap();
    confirmed
}

fn waits_for_room(server: &mut Server, out: &Path, give_room: impl FnOnce(&Server)) {
    let mut one = client(server, 0);
    let confirmed = until_full(&mut one, server);
    assert!(confirmed > 0);
    // The file has only whole lines, and all confirmed lines.
    assert_eq!(fs::metadata(out).unwrap().len(), confirmed as u64 * 99);
    assert!(readiness(server).starts_with("HTTP/1.1 503 "));
    give_room(server);
    // The server confirms the line that waited.
    one.read_exact(&mut [0; 3]).unwrap();
    server.logged("is written to again");
    assert!(readiness(server).starts_with("HTTP/1.1 200 "));
    one.write_all(b"more\n").unwrap();
    one.read_exact(&mut [0; 3]).unwrap();
    let all = fs::read_to_string(out).unwrap();
    assert!(all.ends_with("x\nmore\n"), "{all}");
    drop(one);
    server.signal("TERM");
    assert!(server.wait().success());
}

/// The server handles the system's limit on a file's length like a full disk, and no signal ends
/// the server.
#[test]
fn it_waits_for_room_in_a_file_and_leaves_no_half_line() {
    for model in MODELS {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let mut server = with_lines(model, &out, "ulimit -f 8;");
        waits_for_room(&mut server, &out, |server| {
            fs::rename(&out, dir.path().join("moved")).unwrap();
            server.signal("USR1");
        });
    }
}

/// A temporary file system, unmounted on drop.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    /// Mounts a tmpfs. Returns `None` without the permission to mount.
    fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={size}");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(dir.path())
            .output();
        if !mount.is_ok_and(|output| output.status.success()) {
            println!("SKIPPED: a tmpfs cannot be mounted here");
            return None;
        }
        Some(Self(dir))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn it_waits_for_room_on_a_disk_and_leaves_no_half_line() {
    let Some(disk) = Tmpfs::mount("64k") else {
        return;
    };
    for model in MODELS {
        let (out, ballast) = (disk.0.path().join("out"), disk.0.path().join("ballast"));
        fs::write(&ballast, [0; 32 << 10]).unwrap();
        let mut server = with_lines(model, &out, "");
        waits_for_room(&mut server, &out, |_| fs::remove_file(&ballast).unwrap());
        fs::remove_file(&out).unwrap();
    }
}

#[test]
fn a_line_that_an_earlier_run_has_not_ended_stays_alone() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    fs::write(&out, "whole\nhal").unwrap();
    let server = with_lines("threading", &out, "");
    server.logged("does not end with a line end");
    let mut one = client(&server, 0);
    one.write_all(b"new\n").unwrap();
    one.read_exact(&mut [0; 3]).unwrap();
    assert_eq!(fs::read_to_string(&out).unwrap(), "whole\nhal\nnew\n");
}

#[test]
fn output_and_log_are_opened_anew_by_signals() {
    for model in MODELS {
        let dir = tempfile::tempdir().unwrap();
        let (out, log) = (dir.path().join("out"), dir.path().join("log"));
        let before = format!("set -- --log-file {};", log.display());
        let program = socketserver().get_program().display().to_string();
        let script = format!(
            "{before} exec {program} collect -c {model} --ack -l tcp://127.0.0.1:0 -o {} \"$@\"",
            out.display()
        );
        let mut command = Command::new("sh");
        let mut server = Server::launch(command.args(["-c", &script]).stdin(Stdio::null()), 1);
        let mut one = client(&server, 0);
        let mut say = |text: &str| {
            one.write_all(text.as_bytes()).unwrap();
            one.read_exact(&mut [0; 3]).unwrap();
        };
        say("one");
        for (signal, text) in [("HUP", "two"), ("USR1", "three")] {
            let moved = |name: &Path| name.with_extension(signal);
            fs::rename(&out, moved(&out)).unwrap();
            fs::rename(&log, moved(&log)).unwrap();
            server.signal(signal);
            eventually(|| out.exists() && log.exists());
            say(text);
            assert_eq!(fs::read_to_string(&out).unwrap(), text, "{model}");
        }
        assert_eq!(
            fs::read_to_string(out.with_extension("HUP")).unwrap(),
            "one"
        );
        assert_eq!(
            fs::read_to_string(out.with_extension("USR1")).unwrap(),
            "two"
        );
        server.signal("TERM");
        assert!(server.wait().success(), "{model}");
        let rest = fs::read_to_string(&log).unwrap();
        assert!(rest.contains("disconnected"), "{rest}");
        assert!(!rest.contains(" connected id"), "{rest}");
        assert_eq!(server.rest_of_log(), [""; 0]);
    }
}

#[test]
fn bad_options_are_told() {
    for (args, reason, code) in [
        (&["-c", "forking"][..], "one queue", 2),
        (&["-c", "sequential"], "wait for the output", 2),
        (&["-o", "/nonexistent/out"], "/nonexistent/out", 1),
    ] {
        let all = [&["collect", "-l", "tcp://127.0.0.1:0"][..], args].concat();
        let output = run(&mut socketserver(), all, b"").unwrap();
        assert_eq!(output.status.code(), Some(code));
        assert!(
            text(&output.stderr).contains(reason),
            "{}",
            text(&output.stderr)
        );
    }
    let output = run(&mut socketserver(), ["collect", "--rotate", "5"], b"").unwrap();
    assert_eq!(output.status.code(), Some(2));
}
