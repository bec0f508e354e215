//! Measures the processor time that the machine has left during an attack.
//!
//! The promise of 50 ms holds on a machine with free processor time. If other processes want more
//! cores than the machine has, every process waits for a turn. A bystander measures this wait: the
//! bystander asks an echo that is not attacked and shares no code with the server. The bystander
//! excuses a server only while other processes work. A server that takes the time of the bystander
//! itself is not excused.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::victim::{Victim, processor_time};
use crate::visitor::{Visitor, p99};

/// The time within which well-behaved clients get an answer.
pub const SOON: Duration = Duration::from_millis(50);

/// A visitor and a bystander that send requests.
pub struct Watch<'v> {
    victim: &'v Victim,
    visitor: Visitor,
    bystander: Visitor,
    start: Instant,
    by_others: Duration,
}

/// The measurements of the visitor and the bystander.
#[derive(Default)]
pub struct Seen {
    /// The times that answers took.
    pub visitor: Vec<Duration>,
    bystander: Vec<Duration>,
    lasted: Duration,
    /// Processor time that neither the server nor its attackers used.
    by_others: Duration,
}

impl<'v> Watch<'v> {
    pub fn of(victim: &'v Victim, visitor: Visitor) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        // The thread ends with the test's process.
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                thread::spawn(|| echo(stream));
            }
        });
        Self {
            victim,
            visitor,
            bystander: Visitor::by_tcp(address),
            start: Instant::now(),
            by_others: by_others(victim),
        }
    }

    pub fn ends(self) -> Seen {
        Seen {
            visitor: self.visitor.times(),
            bystander: self.bystander.times(),
            lasted: self.start.elapsed(),
            by_others: by_others(self.victim).saturating_sub(self.by_others),
        }
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

/// Returns the processor time of other processes since the machine was started: proc_stat(5). The
/// time of interrupts is left out, because its cause is unknown.
fn by_others(victim: &Victim) -> Duration {
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let fields = stat.lines().next().unwrap().split_whitespace().skip(1);
    let fields: Vec<u64> = fields.map(|field| field.parse().unwrap()).collect();
    let [
        user,
        nice,
        system,
        _idle,
        _iowait,
        _irq,
        _softirq,
        steal,
        ..,
    ] = fields[..]
    else {
        panic!("an unknown format: {stat}");
    };
    let all = Duration::from_millis((user + nice + system + steal) * 10);
    all.saturating_sub(victim.processor_time() + processor_time(std::process::id()))
}

impl Seen {
    pub fn add(&mut self, more: Self) {
        self.visitor.extend(more.visitor);
        self.bystander.extend(more.bystander);
        self.lasted += more.lasted;
        self.by_others += more.by_others;
    }

    /// Returns true if other processes used more than a twentieth of one core.
    pub fn is_machine_busy(&self) -> bool {
        self.by_others > self.lasted / 20
    }

    /// Returns the measurements as a text: `Ok` if the server kept the promise, `Err` if not.
    pub fn judged(&self) -> Result<String, String> {
        let longest = self.visitor.iter().max().copied().unwrap_or_default();
        let (seen, usual) = (p99(&self.visitor), p99(&self.bystander));
        // An answer takes several turns: the loop's, the worker's, the visitor's.
        let is_busy = self.is_machine_busy();
        let excused = if is_busy { usual * 5 } else { Duration::ZERO };
        let limit = SOON + excused;
        let told = format!(
            "p99 {seen:?} of {} answers, longest {longest:?}, of a limit of {limit:?}; a bystander's p99 \
             {usual:?}, others had {:?} of {:?}",
            self.visitor.len(),
            self.by_others,
            self.lasted
        );
        // A visitor that waits sends no other request, so that a pause of any length is one answer
        // of many. If other processes want more cores than the machine has, a single turn may take
        // as long.
        if seen < limit && (is_busy || longest < SOON * 10) {
            Ok(told)
        } else {
            Err(told)
        }
    }
}
