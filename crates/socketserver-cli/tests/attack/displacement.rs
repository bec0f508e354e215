//! Attackers who take all places and use nothing: others are served in their stead.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::attackers::connect_from;
use crate::common::PATIENCE;
use crate::victim::{Model, Victim};
use crate::visitor::{Talk, Visitor};
use crate::{alone, withstands};

/// Places of each server here, and what attackers take.
const PLACES: usize = 40;
const CROWD: usize = PLACES + 10;

/// How long connections are left alone while places are short, and time for the server to act on it.
const LEFT_ALONE: Duration = Duration::from_millis(1500);

fn victim(model: Model) -> Victim {
    let places = PLACES.to_string();
    let args = [
        ["-l", "tcp://127.0.0.1:0"],
        ["--framing", "lines"],
        ["--log-level", "warn"],
        ["--max-live", &places],
    ];
    let victim = Victim::with(model, args.as_flattened());
    Talk::with(victim.address()).ask();
    victim
}

/// As many as there are places, and some who wait for one. They are there before anybody else comes.
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

/// All that the attackers have are old enough to be cut.
fn settled(crowd: &[TcpStream]) {
    std::thread::sleep(LEFT_ALONE);
    assert_eq!(crowd.len(), CROWD);
}

fn visitor(victim: &Victim) -> Visitor {
    Visitor::by_tcp(victim.address())
}

/// A newcomer is served soon, be there ever so many who are silent, and one who visits regularly never
/// waits.
fn makes_room(model: Model, says: &[u8]) {
    let _alone = alone();
    let victim = victim(model);
    let began = Instant::now();
    let held = crowd(&victim, says);
    Talk::with(victim.address()).ask();
    let waited = began.elapsed();
    assert!(waited < 2 * LEFT_ALONE, "{waited:?}");
    settled(&held);
    // Others took the places of those that were cut: they come again and again.
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

/// The program runs out of descriptors: those who are silent have to give theirs.
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

/// They ask for much, and read 300 bytes of it per second, more than they have to.
fn slow_readers(model: Model) {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("much"), vec![b'x'; 8 << 20]).unwrap();
    std::fs::write(dir.path().join("little"), "hello").unwrap();
    let root = dir.path().to_str().unwrap();
    let places = PLACES.to_string();
    let mut args = vec![root, "-l", "tcp://127.0.0.1:0", "--log-level", "warn"];
    if model == Model::Pooled {
        // As it is by default: what is short are threads.
        args.extend(["--workers", "32"]);
    } else {
        args.extend(["--max-live", &places]);
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
    let reading = std::thread::spawn(move || {
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end {
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
    reading.join().unwrap();
}

/// One byte of a head now and then, more than a pool has threads.
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
    // They hold nothing that others wait for, and may go on.
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
    threading Threading: silent_connections half_messages no_descriptors slow_readers slow_heads;
    pooled Pooled: silent_connections half_messages no_descriptors slow_readers slow_heads;
    green Green: silent_connections half_messages no_descriptors slow_readers slow_heads;
}
