//! A client that behaves, and wants to be served meanwhile.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::PATIENCE;

/// Asks all the time, by a connection that stays and by new ones, and takes the time.
pub struct Visitor {
    over: Arc<AtomicBool>,
    asking: JoinHandle<Vec<Duration>>,
}

impl Visitor {
    pub fn send(to: SocketAddr) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let seen = over.clone();
        let asking = std::thread::spawn(move || {
            let mut times = Vec::new();
            let mut regular = Talk::with(to);
            while !seen.load(Ordering::Relaxed) {
                for _ in 0..4 {
                    let start = Instant::now();
                    regular.ask();
                    times.push(start.elapsed());
                }
                let start = Instant::now();
                Talk::with(to).ask();
                times.push(start.elapsed());
                // Some hundred questions a second, and not a flood of its own.
                std::thread::sleep(Duration::from_millis(5));
            }
            times
        });
        Self { over, asking }
    }

    /// How long 99 of 100 answers took at most.
    pub fn p99(self) -> Duration {
        self.over.store(true, Ordering::Relaxed);
        let mut times = self.asking.join().expect("a visitor was not served");
        assert!(times.len() >= 100, "{} questions only", times.len());
        times.sort_unstable();
        times[times.len() * 99 / 100]
    }
}

/// One connection on which lines are asked and answered.
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
        self.hear().expect("it is not answered");
    }

    /// Says half of something.
    pub fn begin(&mut self) {
        self.stream.get_mut().write_all(b"hel").unwrap();
    }

    pub fn say(&mut self) -> std::io::Result<()> {
        self.stream.get_mut().write_all(b"hello\n")
    }

    /// `false` at the end of input.
    pub fn hear(&mut self) -> std::io::Result<bool> {
        let mut answer = String::new();
        if self.stream.read_line(&mut answer)? == 0 {
            return Ok(false);
        }
        assert_eq!(answer, format!("{} hello\n", self.name));
        Ok(true)
    }
}
