//! Tests of servers behind proxies: simulated proxies, and HAProxy.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use common::{
    Guarded, MODELS, PATIENCE, Server, client, eventually, hear, run, socketserver, text,
};

fn line_of(ip: &str) -> Vec<u8> {
    format!("PROXY TCP4 {ip} 198.51.100.1 4000 80\r\n").into_bytes()
}

/// Returns true if the server closes without a reply.
fn is_closed(client: &mut impl Read) -> bool {
    !matches!(client.read(&mut [0]), Ok(1..))
}

#[test]
fn the_client_is_known_under_every_model() {
    for model in MODELS {
        let args = [
            &["echo", "-c", model, "-l", "tcp://127.0.0.1:0"][..],
            &["--proxy-from", "127.0.0.1", "--deny", "203.0.113.66"],
        ];
        let mut server = Server::with_console(&args.concat(), 1);
        let mut one = client(&server, 0);
        one.write_all(&[&line_of("203.0.113.9")[..], b"hello"].concat())
            .unwrap();
        hear(&mut one, b"203.0.113.9:4000 hello");
        let log = server.logged("forwarded");
        let name = one.local_addr().unwrap();
        assert!(log.contains("peer=203.0.113.9:4000"), "{model}: {log}");
        assert!(log.contains(&format!("proxy={name}")), "{model}: {log}");
        one.write_all(b"again").unwrap();
        hear(&mut one, b"203.0.113.9:4000 again");
        drop(one);
        server.logged("disconnected");

        // The test sends a header of version 2 byte by byte.
        let mut two = client(&server, 0);
        let block =
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc6\x33\x64\x07\x01\x02\x03\x04\x10\x00\0\x50";
        two.set_nodelay(true).unwrap();
        for byte in block {
            two.write_all(&[*byte]).unwrap();
        }
        two.write_all(b"hello").unwrap();
        hear(&mut two, b"198.51.100.7:4096 hello");
        drop(two);
        server.logged("disconnected");

        let mut denied = client(&server, 0);
        denied.write_all(&line_of("203.0.113.66")).unwrap();
        assert!(is_closed(&mut denied), "{model}");
        let log = server.logged("rejected");
        assert!(log.contains("peer=203.0.113.66:4000"), "{model}: {log}");
        assert!(log.contains("denied by a rule"), "{model}: {log}");
        if model == "forking" {
            // The parent logs the rejection, too, with the proxy's address.
            let log = server.logged("rejected");
            assert!(log.contains("denied by a rule"), "{log}");
        }

        let mut junk = client(&server, 0);
        junk.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert!(is_closed(&mut junk), "{model}");
        let log = server.logged("no PROXY header");
        assert!(log.contains("it begins with something else"), "{log}");

        // The counts of the console include all of these connections.
        eventually(|| {
            server.type_in("stats");
            let stats = server.says();
            stats.contains("accepted 4")
                && stats.contains("rejected 2")
                && stats.contains("ended 2")
        });
        server.signal("TERM");
        assert!(server.wait().success(), "{model}");
    }
}

#[test]
fn a_silent_proxy_and_one_that_is_not_trusted() {
    for model in MODELS {
        let args = [
            &[
                "echo",
                "-c",
                model,
                "-l",
                "tcp://127.0.0.1:0",
                "-l",
                "tcp://127.0.0.1:0",
            ][..],
            &["--proxy-from", "127.0.0.1", "--proxy-timeout", "300ms"],
        ];
        let server = Server::start(&args.concat(), 2);
        let mut silent = client(&server, 0);
        assert!(is_closed(&mut silent), "{model}");
        server.logged("it was not complete in time");
    }
    let server = Server::start(
        &[
            "echo",
            "-l",
            "tcp://127.0.0.1:0",
            "--proxy-from",
            "10.0.0.0/8",
        ],
        1,
    );
    let mut one = client(&server, 0);
    let name = one.local_addr().unwrap().to_string();
    let line = line_of("203.0.113.9");
    one.write_all(&line).unwrap();
    hear(&mut one, &[name.as_bytes(), b" ", &line].concat());
}

#[test]
fn a_child_that_waits_for_its_header_is_cut_by_a_drain() {
    let args = [
        &["echo", "-c", "forking", "-l", "tcp://127.0.0.1:0"][..],
        &[
            "--proxy-from",
            "all",
            "--proxy-timeout",
            "1h",
            "--drain-timeout",
            "300ms",
        ],
    ];
    let mut server = Server::start(&args.concat(), 1);
    let (mut silent, mut begun) = (client(&server, 0), client(&server, 0));
    begun.write_all(b"PROXY ").unwrap();
    server.logged("connected");
    server.logged("connected");
    server.signal("TERM");
    // A client that has sent nothing loses nothing, so that the drain closes its connection at
    // once.
    assert!(is_closed(&mut silent));
    server.logged("disconnected");
    // A client that has begun has time until the deadline.
    assert!(is_closed(&mut begun));
    let log = server.logged("disconnected");
    assert!(log.contains("killed by signal"), "{log}");
    server.wait();
}

#[test]
fn unix_sockets_have_a_word_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let endpoint = format!("unix://{}", directory.path().join("socket").display());
    for model in MODELS {
        let server = Server::start(
            &["echo", "-c", model, "-l", &endpoint, "--proxy-from", "unix"],
            1,
        );
        let mut one = UnixStream::connect(server.address(0)).unwrap();
        one.set_read_timeout(Some(PATIENCE)).unwrap();
        one.write_all(&[&line_of("203.0.113.9")[..], b"hello"].concat())
            .unwrap();
        hear(&mut one, b"203.0.113.9:4000 hello");
        drop(one);
        drop(server);
        let _ = fs::remove_file(directory.path().join("socket"));
    }
}

#[test]
fn a_shell_for_everybody_behind_the_proxy_is_refused() {
    let out = run(
        &mut socketserver(),
        [
            "command",
            "-l",
            "tcp://127.0.0.1:0",
            "--proxy-from",
            "127.0.0.1",
        ],
        b"",
    )
    .unwrap();
    assert_eq!(out.status.code(), Some(1));
    let said = text(&out.stderr);
    assert!(said.contains("--auth-token-file"), "{said}");
    let wrong = run(
        &mut socketserver(),
        ["echo", "--proxy-from", "somewhere"],
        b"",
    )
    .unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    let said = text(&wrong.stderr);
    assert!(
        said.contains("10.0.0.0/8") && said.contains("unix"),
        "{said}"
    );
}

/// Starts HAProxy in front of a server. Returns HAProxy and its address, or `None` if HAProxy is
/// not installed.
fn haproxy(
    server: &Server,
    directory: &std::path::Path,
    options: &str,
) -> Option<(Guarded, TcpListener)> {
    let front = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = server.address(0);
    // The listener is its standard input, so that the test need not guess a free port.
    let config = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 20s\n timeout server 20s\n\
         frontend front\n bind fd@0\n default_backend back\n\
         backend back\n server one {server} {options}\n"
    );
    let file = directory.join("haproxy.cfg");
    fs::write(&file, config).unwrap();
    let started = Command::new("haproxy")
        .args(["-db", "-f"])
        .arg(file)
        .stdin(Stdio::from(OwnedFd::from(front.try_clone().unwrap())))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    match started {
        Ok(process) => Some((Guarded(process), front)),
        Err(error) => {
            println!("SKIPPED: haproxy cannot be started: {error}");
            None
        }
    }
}

#[test]
fn haproxy_names_its_clients() {
    let directory = tempfile::tempdir().unwrap();
    for (model, options) in [
        ("threading", "send-proxy"),
        ("threading", "send-proxy-v2"),
        (
            "green",
            "send-proxy-v2 proxy-v2-options crc32c,unique-id,authority",
        ),
        ("pooled", "send-proxy-v2-ssl"),
        ("forking", "send-proxy-v2 check inter 100ms"),
        ("sequential", "send-proxy"),
    ] {
        let server = Server::start(
            &[
                "echo",
                "-c",
                model,
                "-l",
                "tcp://127.0.0.1:0",
                "--proxy-from",
                "127.0.0.1",
            ],
            1,
        );
        let Some((_haproxy, front)) = haproxy(&server, directory.path(), options) else {
            return;
        };
        for _ in 0..3 {
            let mut one = TcpStream::connect(front.local_addr().unwrap()).unwrap();
            one.set_read_timeout(Some(PATIENCE)).unwrap();
            let name = one.local_addr().unwrap();
            one.write_all(b"hello").unwrap();
            hear(&mut one, format!("{name} hello").as_bytes());
            one.shutdown(Shutdown::Write).unwrap();
            let mut rest = String::new();
            one.read_to_string(&mut rest).unwrap();
            assert_eq!(rest, "", "{model} {options}");
        }
        let log = server.log();
        let rejected = log.iter().any(|line| line.contains("rejected"));
        assert!(!rejected, "{model} {options}: {log:#?}");
    }
}
