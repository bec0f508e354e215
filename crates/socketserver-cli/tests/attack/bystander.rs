//! What the machine itself has to give meanwhile: an echo that nobody attacks and that has no line
//! of the server's code, asked as the server is.
//!
//! Fifty milliseconds are promised on a machine that has time. Where other processes want more
//! cores than there are, everybody waits for a turn, and this one sees for how long.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use crate::visitor::{Visitor, p99};

/// Promised to clients that behave.
pub const SOON: Duration = Duration::from_millis(50);

/// On two cores that are free but for the attack, this is hardly ever seen.
const BUSY: Duration = Duration::from_millis(10);

/// Somebody who asks such an echo.
pub struct Bystander(Visitor);

impl Bystander {
    pub fn watch() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        // It ends with the test's process.
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                thread::spawn(|| echo(stream));
            }
        });
        Self(Visitor::by_tcp(address))
    }

    pub fn times(self) -> Vec<Duration> {
        self.0.times()
    }
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let name = stream.peer_addr()?;
    stream.set_nodelay(true)?;
    let lines = BufReader::new(stream.try_clone()?).lines();
    for line in lines {
        stream.write_all(format!("{name} {}\n", line?).as_bytes())?;
    }
    Ok(())
}

/// Holds a server to the promise: what its visitor has seen, beside what the bystander has.
#[track_caller]
pub fn judge(visitor: Vec<Duration>, bystander: Vec<Duration>) {
    let longest = visitor.iter().max().copied().unwrap_or_default();
    let (seen, usual) = (p99(visitor), p99(bystander));
    // An answer takes several turns: the loop's, the worker's, the visitor's.
    let limit = if usual < BUSY { SOON } else { SOON + usual * 3 };
    let told = format!(
        "p99 {seen:?}, longest {longest:?}, of a limit of {limit:?}; a bystander's p99 {usual:?}"
    );
    println!("{told}");
    assert!(seen < limit, "{told}");
    // One who waits asks nothing else meanwhile: a pause is one answer of many, however long it was.
    assert!(longest < limit * 10, "{told}");
}
