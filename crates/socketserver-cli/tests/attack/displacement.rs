//! Attackers that take all slots and use none. The server displaces these connections to serve
//! other clients.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::attackers::connect_from;
use crate::common::{PATIENCE, Server, socketserver};
use crate::victim::{Model, Victim};
use crate::visitor::{Talk, Visitor};
use crate::{alone, withstands};

/// The slots of each server in these tests. The attackers take ten more.
const PLACES: usize = 40;
const CROWD: usize = PLACES + 10;

/// The time for which connections are safe from displacement, plus the time that the server needs
/// to act.
const LEFT_ALONE: Duration = Duration::from_millis(600);

fn victim(model: Model) -> Victim {
    let places = PLACES.to_string();
    let args = [
        ["-l", "tcp://127.0.0.1:0"],
        ["--framing", "lines"],
        ["--log-level", "warn"],
        ["--max-active", &places],
    ];
    let victim = Victim::with(model, args.as_flattened());
    Talk::with(victim.address()).ask();
    victim
}

/// Opens a connection for each slot, and some that wait for a slot. All of them connect before any
/// other client.
fn crowd(victim: &Victim, says: &[u8]) -> Vec<TcpStream> {
    let from = Ipv4Addr::new(127, 0, 0, 2);
    let mut crowd: Vec<_> = (0..CROWD)
        .filter_map(|_| connect_from(from, victim.address()))
        .collect();
    for stream in &mut crowd {
        stream.write_all(says).unwrap();
    }
    crowd
}

/// Waits until all connections of the attackers are old enough to be displaced.
fn settled(crowd: &[TcpStream]) {
    std::thread::sleep(LEFT_ALONE);
    assert_eq!(crowd.len(), CROWD);
}

fn visitor(victim: &Victim) -> Visitor {
    Visitor::by_tcp(victim.address())
}

/// Checks that the server serves a new client soon despite any number of silent clients, and that a
/// regular client never waits.
fn makes_room(model: Model, says: &[u8]) {
    let _alone = alone();
    let victim = victim(model);
    let began = Instant::now();
    let held = crowd(&victim, says);
    Talk::with(victim.address()).ask();
    let waited = began.elapsed();
    println!("the first newcomer waited {waited:?}");
    assert!(waited < 3 * LEFT_ALONE, "{waited:?}");
    settled(&held);
    // Other attackers take the slots of displaced connections, because attackers reconnect all the
    // time.
    withstands(&victim, visitor, |victim| {
        let crowd = crowd(victim, says);
        std::thread::sleep(Duration::from_secs(1));
        drop(crowd);
    });
    drop(held);
    let is_told = |line: &String| line.contains("places are short");
    let log = victim.server.log();
    assert_eq!(
        log.iter().filter(|line| is_told(line)).count(),
        1,
        "{log:?}"
    );
}

fn silent_connections(model: Model) {
    makes_room(model, b"");
}

fn half_messages(model: Model) {
    makes_room(model, b"hel");
}

/// Checks that a server without free descriptors displaces silent connections.
fn no_descriptors(model: Model) {
    let _alone = alone();
    let mut command = Command::new("sh");
    let script = "ulimit -n 64 && exec \"$@\"";
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_socketserver")]);
    let args = [
        ["-l", "tcp://127.0.0.1:0"],
        ["--framing", "lines"],
        ["--log-level", "warn"],
        ["--workers", "200"],
    ];
    let victim = Victim::launch(&mut command, model, args.as_flattened());
    Talk::with(victim.address()).ask();
    let mut held = crowd(&victim, b"");
    held.extend(crowd(&victim, b""));
    let began = Instant::now();
    for _ in 0..3 {
        Talk::with(victim.address()).ask();
    }
    let waited = began.elapsed();
    println!("waited {waited:?}");
    assert!(waited < Duration::from_secs(4), "{waited:?}");
    drop(held);
}

/// Attackers request long answers and read 300 bytes per second, more than the required rate.
fn slow_readers(model: Model) {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("much"), vec![b'x'; 8 << 20]).unwrap();
    std::fs::write(dir.path().join("little"), "hello").unwrap();
    let root = dir.path().to_str().unwrap();
    let places = PLACES.to_string();
    let mut args = vec![root, "-l", "tcp://127.0.0.1:0", "--log-level", "warn"];
    if model == Model::Pooled {
        // The value is the default. The scarce resource is threads.
        args.extend(["--workers", "32"]);
    } else {
        args.extend(["--max-active", &places]);
    }
    let victim = Victim::serving("http", model, &args);
    let _ = get(&victim, "/little");
    let from = Ipv4Addr::new(127, 0, 0, 2);
    let mut readers: Vec<_> = (0..PLACES)
        .filter_map(|_| connect_from(from, victim.address()))
        .collect();
    for stream in &mut readers {
        rustix::net::sockopt::set_socket_recv_buffer_size(&*stream, 4096).unwrap();
        stream
            .write_all(b"GET /much HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
        stream.set_nonblocking(true).unwrap();
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let seen = is_over.clone();
    let reading = std::thread::spawn(move || {
        while !seen.load(Ordering::Relaxed) {
            for stream in &mut readers {
                let _ = stream.read(&mut [0; 30]);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    std::thread::sleep(Duration::from_millis(200));
    let began = Instant::now();
    assert!(get(&victim, "/little").ends_with("hello"));
    let waited = began.elapsed();
    println!("waited {waited:?}");
    assert!(waited < Duration::from_secs(4), "{waited:?}");
    is_over.store(true, Ordering::Relaxed);
    reading.join().unwrap();
}

/// More attackers than a pool has threads send one byte of a head now and then.
fn slow_heads(model: Model) {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("little"), "hello").unwrap();
    let root = dir.path().to_str().unwrap();
    let args = [root, "-l", "tcp://127.0.0.1:0", "--log-level", "warn"];
    let victim = Victim::serving("http", model, &args);
    let _ = get(&victim, "/little");
    let from = Ipv4Addr::new(127, 0, 0, 2);
    let mut talkers: Vec<_> = (0..PLACES)
        .filter_map(|_| connect_from(from, victim.address()))
        .collect();
    for stream in &mut talkers {
        stream.write_all(b"GET /little HT").unwrap();
    }
    std::thread::sleep(Duration::from_millis(100));
    let began = Instant::now();
    for _ in 0..20 {
        assert!(get(&victim, "/little").ends_with("hello"));
    }
    let waited = began.elapsed();
    println!("20 answers in {waited:?}");
    assert!(waited < Duration::from_secs(1), "{waited:?}");
    // The slow clients hold no slot that other clients wait for, so that the server still serves
    // them.
    for stream in &mut talkers {
        stream
            .write_all(b"TP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("hello"), "{answer}");
    }
}

fn get(victim: &Victim, path: &str) -> String {
    let mut stream = TcpStream::connect(victim.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

macro_rules! displacement {
    ($($module:ident $model:ident: $($attack:ident)*;)+) => {
        $(mod $module {
            use super::Model;

            $(#[test] fn $attack() { super::$attack(Model::$model); })*
        })+
    };
}

displacement! {
    threading Threading: silent_connections no_descriptors slow_readers;
    pooled Pooled: silent_connections half_messages no_descriptors slow_readers slow_heads;
    green Green: silent_connections no_descriptors slow_readers;
}

/// Starts a server of any model that serves metrics.
fn watched(command: &mut Command, model: &str, more: &[&str]) -> Server {
    let args = [
        ["echo", "-c"],
        [model, "-l"],
        ["tcp://127.0.0.1:0", "--metrics"],
        ["tcp://127.0.0.1:0", "--log-level"],
    ];
    command.args(args.as_flattened()).args(["warn"]).args(more);
    Server::launch(command.stdin(Stdio::null()), 2)
}

fn metrics_of(server: &Server) -> SocketAddr {
    let endpoint = server.endpoints[1].strip_prefix("tcp://").unwrap();
    endpoint
        .strip_suffix(" (metrics)")
        .unwrap()
        .parse()
        .unwrap()
}

fn probe(server: &Server) -> String {
    let mut stream = TcpStream::connect(metrics_of(server)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
        .write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[track_caller]
fn is_answered(model: &str, server: &Server) {
    let began = Instant::now();
    let answer = probe(server);
    let is_good = answer.starts_with("HTTP/1.1 200 OK");
    assert!(is_good, "{model}: {answer:?} after {:?}", began.elapsed());
}

/// More clients than the metrics endpoint admits at once send requests slowly. The server still
/// answers probes within their deadline of one second.
#[test]
fn slow_scrapers_do_not_hold_up_probes() {
    let _alone = alone();
    // The forking model is left out. Processes serve its metrics endpoint, and the parent does not
    // see their waits.
    for model in ["threading", "green"] {
        let server = watched(&mut socketserver(), model, &[]);
        let at = metrics_of(&server);
        for from in [Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::LOCALHOST] {
            let mut crowd: Vec<_> = (0..100).filter_map(|_| connect_from(from, at)).collect();
            for stream in &mut crowd {
                let _ = stream.write_all(b"GET /livez HT");
            }
            let began = Instant::now();
            is_answered(model, &server);
            let waited = began.elapsed();
            println!("{model}: the first probe of {from} waited {waited:?}");
            assert!(waited < Duration::from_secs(1), "{waited:?}");
            for _ in 0..20 {
                is_answered(model, &server);
            }
            assert!(
                began.elapsed() < Duration::from_secs(2),
                "{:?}",
                began.elapsed()
            );
        }
    }
}

/// All descriptors are taken, and displacement is off.
#[test]
fn probes_are_answered_without_descriptors() {
    let _alone = alone();
    for model in ["threading", "forking", "green"] {
        let mut command = Command::new("sh");
        let script = "ulimit -n 64 && exec \"$@\"";
        command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_socketserver")]);
        let more = ["--no-displacement", "--workers", "200"];
        let server = watched(&mut command, model, &more);
        let from = Ipv4Addr::new(127, 0, 0, 2);
        let to = server.address(0).parse().unwrap();
        let crowd: Vec<_> = (0..100).filter_map(|_| connect_from(from, to)).collect();
        server.logged("Too many open files");
        for _ in 0..20 {
            is_answered(model, &server);
        }
        drop(crowd);
    }
}
