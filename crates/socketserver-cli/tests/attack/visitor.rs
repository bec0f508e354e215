//! Well-behaved clients that use the server during an attack.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::PATIENCE;

/// A client that sends requests all the time and measures the time of each answer.
pub struct Visitor {
    over: Arc<AtomicBool>,
    asking: JoinHandle<Vec<Duration>>,
}

impl Visitor {
    /// Starts a visitor that asks on a connection that stays open, and now and then on a new
    /// connection.
    pub fn by_tcp(to: SocketAddr) -> Self {
        let mut regular = Talk::with(to);
        Self::asking(5, move |is_new| {
            if is_new {
                return Talk::with(to).is_answered();
            }
            let is_answered = regular.is_answered();
            if !is_answered {
                regular = Talk::with(to);
            }
            is_answered
        })
    }

    /// Starts a visitor that calls `ask` `in_a_row` times between pauses of 5 ms. The first call of
    /// each row gets `true`, for a new client. The visitor sends some hundred questions per second,
    /// which is no flood. A rejected question counts as the longest possible wait.
    pub fn asking(in_a_row: u32, mut ask: impl FnMut(bool) -> bool + Send + 'static) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let seen = over.clone();
        let asking = std::thread::spawn(move || {
            let mut times = Vec::new();
            while !seen.load(Ordering::Relaxed) {
                for nth in 0..in_a_row {
                    let start = Instant::now();
                    let is_answered = ask(nth == 0);
                    times.push(if is_answered {
                        start.elapsed()
                    } else {
                        PATIENCE
                    });
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            times
        });
        Self { over, asking }
    }

    /// Stops the visitor and returns the times of its answers.
    pub fn times(self) -> Vec<Duration> {
        self.over.store(true, Ordering::Relaxed);
        self.asking.join().expect("a visitor was not served")
    }
}

/// Returns the time within which 99 of 100 answers arrived.
pub fn p99(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

/// A connection on which the client sends lines and the server answers each line.
pub struct Talk {
    stream: BufReader<TcpStream>,
    name: String,
}

impl Talk {
    pub fn with(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let name = stream.local_addr().unwrap().to_string();
        let stream = BufReader::new(stream);
        Self { stream, name }
    }

    pub fn ask(&mut self) {
        self.say().expect("it is not served");
        assert!(self.hear().expect("it is not answered"), "it is closed");
    }

    /// Asks, and returns false if the server rejects the client.
    pub fn is_answered(&mut self) -> bool {
        self.say().is_ok() && self.hear().unwrap_or(false)
    }

    /// Sends half of a message.
    pub fn begin(&mut self) {
        self.stream.get_mut().write_all(b"hel").unwrap();
    }

    pub fn say(&mut self) -> std::io::Result<()> {
        self.stream.get_mut().write_all(b"hello\n")
    }

    /// Reads an answer. Returns `false` at the end of input.
    pub fn hear(&mut self) -> std::io::Result<bool> {
        let mut answer = String::new();
        if self.stream.read_line(&mut answer)? == 0 {
            return Ok(false);
        }
        assert_eq!(answer, format!("{} hello\n", self.name));
        Ok(true)
    }
}
