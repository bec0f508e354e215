//! Lists of a long directory. A request of 40 bytes for such a list costs much processor time and
//! memory.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::attackers::connect_from;
use crate::bystander::{Seen, Watch};
use crate::common::{PATIENCE, Server, client_at, socketserver};
use crate::victim::{Model, Victim};
use crate::visitor::Visitor;
use crate::{ANSWERS, TRIES, TRIES_IF_BUSY, alone, attackers};

const NAMES: usize = 10_000;
/// The number of clients that request the list and do not read it.
const UNREAD: usize = 300;
/// The number of clients that pipeline requests for the list, and the number of requests of each.
const PIPELINING: (usize, usize) = (4, 50);
const LASTING: Duration = Duration::from_millis(1200);
/// The memory that the server and its children may take in this attack: 32 MiB of lists, and the
/// needs of a debug build and its allocator.
const MOST_MEMORY_KIB: usize = 160 << 10;

/// Creates a directory of many names, and a file in its parent directory.
fn site() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("many")).unwrap();
    for n in 0..NAMES {
        std::fs::write(dir.path().join(format!("many/file-{n:05}.txt")), "").unwrap();
    }
    std::fs::write(dir.path().join("small.txt"), "small\n").unwrap();
    dir
}

fn start(model: Model, root: &Path) -> Victim {
    // Attackers have another address than visitors. If slots are few, the attackers get only a
    // share.
    let share = match model {
        Model::Forking | Model::Pooled => "16",
        _ => "2000",
    };
    let root = root.to_str().unwrap();
    let args = ["http", root, "-c", name(model), "-l", "tcp://127.0.0.1:0"];
    let more = ["--max-per-peer", share, "--log-level", "off"];
    let mut command = socketserver();
    command.args(args).args(more).args(["--access-log", "off"]);
    let server = Server::launch(command.stdin(Stdio::null()), 1);
    Victim { server, model }
}

fn name(model: Model) -> &'static str {
    match model {
        Model::Sequential => "sequential",
        Model::Threading => "threading",
        Model::Forking => "forking",
        Model::Pooled => "pooled",
        Model::Green => "green",
    }
}

/// Starts a visitor that requests a file on a connection that stays open, and now and then on a new
/// connection.
fn visit(to: SocketAddr) -> Visitor {
    let open = move || client_at(&to.to_string());
    let mut regular = open();
    Visitor::asking(5, move |is_new| {
        if is_new {
            return is_served(&mut open());
        }
        let is_answered = is_served(&mut regular);
        if !is_answered {
            regular = open();
        }
        is_answered
    })
}

fn is_served(client: &mut TcpStream) -> bool {
    let request = b"GET /small.txt HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut answer = Vec::new();
    let mut some = [0; 1024];
    if client.write_all(request).is_err() {
        return false;
    }
    while !answer.ends_with(b"\r\n\r\nsmall\n") {
        match client.read(&mut some) {
            Ok(n @ 1..) => answer.extend_from_slice(&some[..n]),
            _ => return false,
        }
    }
    answer.starts_with(b"HTTP/1.1 200 ")
}

fn attack(victim: &Victim) {
    let end = Instant::now() + LASTING;
    let request = b"GET /many/ HTTP/1.1\r\nHost: a\r\n\r\n";
    let (clients, each) = PIPELINING;
    let mut attackers = Vec::new();
    for n in 0..UNREAD + clients {
        let Some(mut one) = connect_from(attackers::ELSEWHERE, victim.address()) else {
            continue;
        };
        let times = if n < clients { each } else { 1 };
        let _ = one.write_all(&request.repeat(times));
        one.set_nonblocking(true).unwrap();
        attackers.push(one);
    }
    let mut scratch = vec![0; 1 << 16];
    while Instant::now() < end {
        // Clients that pipeline read the answers, so that the server continues.
        for one in attackers.iter_mut().take(clients) {
            let _ = one.read(&mut scratch);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn resident_kib(victim: &Victim) -> usize {
    let of = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
        number.map_or(0, |number| number.parse().unwrap())
    };
    let children: usize = victim.children().into_iter().map(of).sum();
    of(victim.server.pid()) + children
}

fn withstands_lists(model: Model) {
    let _alone = alone();
    let site = site();
    let victim = start(model, site.path());
    assert!(is_served(&mut client_at(&victim.address().to_string())));
    let mut tries = 0;
    loop {
        let mut seen = Seen::default();
        while seen.visitor.len() < ANSWERS {
            let watch = Watch::of(&victim, visit(victim.address()));
            attack(&victim);
            let resident = resident_kib(&victim);
            assert!(resident < MOST_MEMORY_KIB, "{resident} KiB");
            seen.add(watch.ends());
        }
        tries += 1;
        let most = if seen.is_machine_busy() {
            TRIES_IF_BUSY
        } else {
            TRIES
        };
        match seen.judged() {
            Ok(told) => return println!("{told}"),
            Err(told) if tries < most => println!("again: {told}"),
            Err(told) => panic!("{told}"),
        }
    }
}

#[test]
fn threading_withstands_lists_of_a_long_directory() {
    withstands_lists(Model::Threading);
}

#[test]
fn forking_withstands_lists_of_a_long_directory() {
    withstands_lists(Model::Forking);
}

#[test]
fn pooled_withstands_lists_of_a_long_directory() {
    withstands_lists(Model::Pooled);
}

#[test]
fn green_withstands_lists_of_a_long_directory() {
    withstands_lists(Model::Green);
}

/// A long list arrives whole, in chunks, in order and with its note.
#[test]
fn a_long_list_arrives_whole() {
    let site = site();
    std::fs::write(site.path().join("many/one more.txt"), "").unwrap();
    std::fs::create_dir(site.path().join("many/below")).unwrap();
    let victim = start(Model::Threading, site.path());
    let list = |request: &str| {
        let mut client = client_at(&victim.address().to_string());
        client.write_all(request.as_bytes()).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    };
    let answer = list("GET /many/ HTTP/1.0\r\n\r\n");
    let (head, page) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(page.ends_with("</body>\n</html>\n"));
    assert_eq!(
        page.matches("<tr>").count() + page.matches("<tr class").count(),
        2 + NAMES
    );
    assert!(page.contains("There is more: a list has 10000 names at most"));
    let rows: Vec<_> = page
        .split("href=\"./file-")
        .skip(1)
        .map(|row| &row[..5])
        .collect();
    assert!(rows.is_sorted(), "names are in order");
    let head = list("HEAD /many/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(
        head.contains("\r\nTransfer-Encoding: chunked\r\n"),
        "{head}"
    );
    assert!(head.ends_with("\r\n\r\n"));
}
