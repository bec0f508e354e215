//! `socketserver collect`, from outside.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, UdpSocket};
use std::process::Stdio;
use std::time::Instant;

use common::{PATIENCE, Server, client, run, socketserver, text, wait};

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
                    // The server closes when everything has been written.
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
        // The signal comes in the middle.
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
            // Of the very last one, only a part may have arrived.
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
    let mut one = std::net::TcpStream::connect(address).unwrap();
    // Nobody reads its output yet: sooner or later it takes no more.
    one.set_write_timeout(Some(std::time::Duration::from_millis(300)))
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
    let stopped = std::process::Command::new("kill")
        .arg(child.id().to_string())
        .status();
    assert!(stopped.unwrap().success());
    assert!(wait(&mut child).success());
    let all = reading.join().unwrap();
    assert_eq!(all.len(), sent);
    assert!(all.iter().all(|&byte| byte == b'x'));
}

#[test]
fn a_full_disk_is_told_and_nothing_is_confirmed() {
    let args = [
        "collect",
        "-o",
        "/dev/full",
        "--ack",
        "-l",
        "tcp://127.0.0.1:0",
    ];
    let mut server = Server::start(&args, 1);
    let mut one = client(&server, 0);
    one.write_all(b"lost").unwrap();
    let mut answer = Vec::new();
    let _ = one.read_to_end(&mut answer);
    assert_eq!(text(&answer), "");
    assert_eq!(server.wait().code(), Some(1));
    server.logged("No space left on device");
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
