//! Tests of a room with one member that sends as fast as possible. The server keeps members that
//! read more slowly than this member sends, and delivers their messages soon.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::panic::AssertUnwindSafe;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::{PATIENCE, Server, socketserver};
use crate::victim::{Model, Victim};
use crate::visitor::Visitor;
use crate::{alone, withstands};

/// The time for which each of two talkers sends.
const TALK: Duration = Duration::from_millis(400);

/// The reading rates, in bytes per second, of members that the server must keep. The last rate is
/// the default of `--byte-rate`.
const READERS: [usize; 3] = [10_000_000, 1_000_000, 512 << 10];

fn chat(model: &'static str, kind: Model, rates: &[&str]) -> Victim {
    let tcp = "tcp://127.0.0.1:0";
    let args = ["-c", model, "-l", tcp, "--web", "http://127.0.0.1:0"];
    let lines = ["--framing", "lines", "--log-level", "warn"];
    let mut command = socketserver();
    command
        .arg("chat")
        .args(args)
        .args(lines)
        .args(rates)
        .stdin(Stdio::null());
    let server = Server::launch(&mut command, 2);
    let victim = Victim {
        server,
        model: kind,
    };
    // Serves one client of each kind, so that later figures include the memory that the server
    // keeps.
    let web = victim.server.address(1).parse().unwrap();
    let (mut terminal, mut browser) = (connect(victim.address()), browser(web));
    terminal.write_all(b"here\n").unwrap();
    terminal.read_exact(&mut [0; 10]).unwrap();
    browser.write_all(&frame(&[b'x'; 200])).unwrap();
    browser.read_exact(&mut [0; 200]).unwrap();
    victim
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Joins the room by a WebSocket and reads the greeting.
fn browser(to: SocketAddr) -> TcpStream {
    let mut stream = connect(to);
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: {to}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "));
    let mut header = [0; 2];
    stream.read_exact(&mut header).unwrap();
    let mut greeting = vec![0; usize::from(header[1])];
    stream.read_exact(&mut greeting).unwrap();
    stream
}

/// A member that reads a fixed number of bytes per second.
struct Reader {
    stream: TcpStream,
    total: Arc<AtomicU64>,
    reading: JoinHandle<()>,
}

impl Reader {
    fn start(stream: TcpStream, rate: usize) -> Self {
        let total = Arc::<AtomicU64>::default();
        let (mut from, counted) = (stream.try_clone().unwrap(), total.clone());
        let reading = std::thread::spawn(move || {
            let mut piece = vec![0; rate / 50];
            let mut due = Instant::now();
            // The loop makes up for up to 100 ms of delay on a busy machine.
            while let Ok(n @ 1..) = from.read(&mut piece) {
                counted.fetch_add(n as u64, Ordering::Relaxed);
                due = due.max(Instant::now() - Duration::from_millis(100))
                    + Duration::from_secs_f64(n as f64 / rate as f64);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        });
        Self {
            stream,
            total,
            reading,
        }
    }

    /// Returns true if the member still receives messages.
    fn hears_more(&self) -> bool {
        let before = self.total.load(Ordering::Relaxed);
        let end = Instant::now() + Duration::from_secs(2);
        while self.total.load(Ordering::Relaxed) == before {
            if self.reading.is_finished() || Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    fn leave(self) {
        let _ = self.stream.shutdown(Shutdown::Both);
        self.reading.join().unwrap();
    }
}

/// Sends as fast as possible, and reads the echo at the same rate.
fn talks(mut stream: TcpStream, message: &[u8], meanwhile: impl FnOnce()) {
    let mut echo = stream.try_clone().unwrap();
    let reading = std::thread::spawn(move || {
        let mut scratch = vec![0; 1 << 20];
        while let Ok(1..) = echo.read(&mut scratch) {}
    });
    let over = AtomicBool::new(false);
    stream
        .set_write_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let many = message.repeat(8);
            let mut left = &many[..];
            while !over.load(Ordering::Relaxed) {
                match stream.write(left) {
                    Ok(n) => left = &left[n..],
                    // The server delays the sender.
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(_) => return,
                }
                if left.is_empty() {
                    left = &many;
                }
            }
        });
        // A panic must end the other thread, too.
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(meanwhile));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    let _ = stream.shutdown(Shutdown::Both);
    reading.join().unwrap();
}

/// Returns one frame whose mask of zeros changes no byte.
fn frame(payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&[0x81, 0xfe], &length[..], &[0; 4], payload].concat()
}

fn attack(victim: &Victim) {
    let (tcp, web): (SocketAddr, SocketAddr) =
        (victim.address(), victim.server.address(1).parse().unwrap());
    let mut readers: Vec<_> = READERS
        .iter()
        .map(|&rate| Reader::start(connect(tcp), rate))
        .collect();
    readers.push(Reader::start(browser(web), READERS[1]));
    let line = [&[b'x'; 8000][..], b"\n"].concat();
    let check = || {
        std::thread::sleep(TALK);
        for (n, reader) in readers.iter().enumerate() {
            assert!(reader.hears_more(), "reader {n} was cut");
        }
    };
    talks(connect(tcp), &line, check);
    talks(browser(web), &frame(&line), check);
    readers.into_iter().for_each(Reader::leave);
    // At the start, the server may warn that descriptors could run short.
    let log = victim.server.log();
    assert!(
        log.iter().all(|line| line.contains("descriptors")),
        "{log:#?}"
    );
}

/// Starts a member that sends a message now and then and waits for its echo.
fn member(to: SocketAddr) -> Visitor {
    let mut member = None;
    Visitor::asking(5, move |is_new| {
        if is_new {
            member = None;
        }
        let (stream, name) = member.get_or_insert_with(|| {
            let stream = connect(to);
            let name = stream.local_addr().unwrap().to_string();
            (BufReader::new(stream), name)
        });
        let wanted = format!("{name} hello\n");
        if stream.get_mut().write_all(b"hello\n").is_err() {
            return false;
        }
        let mut line = String::new();
        while line != wanted {
            line.clear();
            if !matches!(stream.read_line(&mut line), Ok(1..)) {
                return false;
            }
        }
        true
    })
}

macro_rules! models {
    ($($name:ident $kind:ident,)+) => {
        $(#[test] fn $name() {
            let _alone = alone();
            let victim = chat(stringify!($name), Model::$kind, &[]);
            withstands(&victim, |victim| member(victim.address()), attack);
        })+
    };
}

models! {
    threading Threading,
    pooled Pooled,
    green Green,
}

/// Without the rate limits, the server cancels members that read too slowly.
#[test]
fn without_rates_slower_members_are_cut() {
    let _alone = alone();
    let rates = ["--byte-rate", "none", "--message-rate", "none"];
    let victim = chat("threading", Model::Threading, &rates);
    let slow = Reader::start(connect(victim.address()), READERS[0]);
    let line = [&[b'x'; 8000][..], b"\n"].concat();
    talks(connect(victim.address()), &line, || {
        crate::common::eventually(|| !slow.hears_more());
    });
    slow.leave();
}
