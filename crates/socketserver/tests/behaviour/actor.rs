//! The handler: one type for every transport and model. It does what the client says, a line or a
//! datagram at a time, and fails where the trial wants it to.

use std::fs::{self, File};
use std::io::{self, BufRead, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use socketserver::{Connection, Datagram, RequestHandler, Result, ServerHandle};

use crate::stage::{directory, install, journal};

/// What both kinds of request can do.
pub trait Talk: Sized {
    /// Whether the first line is the only one.
    const ONE_LINE: bool;
    fn number(&self) -> u64;
    fn handle(&self) -> &ServerHandle;
    /// The next line; `None` at the end of input.
    fn hear(&mut self) -> io::Result<Option<String>>;
    fn say(&mut self, answer: &str) -> io::Result<()>;
    /// Everything else that the peer sends, to its end.
    fn rest(&mut self) -> io::Result<Vec<u8>>;
    /// So many bytes of [`pattern`].
    fn pour(&mut self, bytes: usize) -> io::Result<()>;
    /// One byte, by one call.
    fn byte(&mut self) -> io::Result<usize>;
    /// How long the request was on the wire, and whether some of it is lost.
    fn size(&self) -> (usize, bool);
    /// Our own address.
    fn local(&self) -> io::Result<String>;
    /// Takes the peer for who he says he is.
    fn validate(&self) {}
}

impl Talk for Connection {
    const ONE_LINE: bool = false;

    fn number(&self) -> u64 {
        self.id().get()
    }

    fn handle(&self) -> &ServerHandle {
        self.server()
    }

    fn hear(&mut self) -> io::Result<Option<String>> {
        let mut line = Vec::new();
        if self.take(1 << 20).read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        Ok(Some(
            String::from_utf8_lossy(&line)
                .trim_end_matches('\n')
                .to_owned(),
        ))
    }

    fn say(&mut self, answer: &str) -> io::Result<()> {
        self.write_all(format!("{answer}\n").as_bytes())
    }

    fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.read_to_end(&mut rest)?;
        Ok(rest)
    }

    fn pour(&mut self, bytes: usize) -> io::Result<()> {
        let bytes = pattern(bytes);
        let mut sent = 0;
        // Not `write_all`, which does not mind being interrupted.
        while sent < bytes.len() {
            sent += self.write(&bytes[sent..])?;
        }
        Ok(())
    }

    fn byte(&mut self) -> io::Result<usize> {
        self.read(&mut [0])
    }

    fn size(&self) -> (usize, bool) {
        (0, false)
    }

    fn local(&self) -> io::Result<String> {
        Ok(self.local_addr()?.to_string())
    }
}

impl Talk for Datagram {
    const ONE_LINE: bool = true;

    fn number(&self) -> u64 {
        self.id().get()
    }

    fn handle(&self) -> &ServerHandle {
        self.server()
    }

    fn hear(&mut self) -> io::Result<Option<String>> {
        Ok(Some(
            String::from_utf8_lossy(&self.take_bytes()).into_owned(),
        ))
    }

    fn say(&mut self, answer: &str) -> io::Result<()> {
        self.reply(answer.as_bytes())
    }

    fn rest(&mut self) -> io::Result<Vec<u8>> {
        Ok(self.take_bytes())
    }

    fn pour(&mut self, bytes: usize) -> io::Result<()> {
        self.reply(&pattern(bytes))
    }

    fn byte(&mut self) -> io::Result<usize> {
        Ok(0)
    }

    fn size(&self) -> (usize, bool) {
        (self.full_len(), self.is_truncated())
    }

    fn local(&self) -> io::Result<String> {
        Ok(self.local_addr().to_string())
    }

    fn validate(&self) {
        self.mark_validated();
    }
}

/// Bytes that are the same nowhere near by, so that a piece that is lost or doubled is noticed.
pub fn pattern(bytes: usize) -> Vec<u8> {
    // A prime number of them: no power of two brings the same bytes to the same place.
    let block = (0..65_521_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]);
    let block: Vec<u8> = block.collect();
    let mut whole = Vec::with_capacity(bytes);
    while whole.len() < bytes {
        let piece = block.len().min(bytes - whole.len());
        whole.extend_from_slice(&block[..piece]);
    }
    whole
}

pub struct Actor;

impl Actor {
    /// The factory.
    pub fn new() -> Self {
        journal("factory");
        strike("factory").unwrap();
        Self
    }
}

impl<R: Talk> RequestHandler<R> for Actor {
    fn setup(&mut self, request: &mut R) -> Result<()> {
        journal(format_args!("setup {}", request.number()));
        strike("setup")
    }

    fn handle(&mut self, request: &mut R) -> Result<()> {
        journal(format_args!("handle {}", request.number()));
        strike("handle")?;
        while let Some(line) = request.hear()? {
            if !obey(request, &line)? || R::ONE_LINE {
                break;
            }
        }
        Ok(())
    }

    fn finish(&mut self, request: &mut R) -> Result<()> {
        journal(format_args!("finish {}", request.number()));
        strike("finish")
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        journal("drop");
        strike("drop").unwrap();
    }
}

/// Does what one line says; `false` ends the request.
fn obey<R: Talk>(request: &mut R, line: &str) -> Result<bool> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["fail"] => return Err("told to fail".into()),
        ["panic"] => panic!("told to panic"),
        ["answer-and-fail"] => {
            request.say("answered")?;
            return Err("told to fail".into());
        }
        ["nothing"] => {}
        [] => request.say("empty")?,
        ["leave"] => {
            request.say("bye")?;
            return Ok(false);
        }
        ["pour-and-leave", bytes] => {
            request.pour(bytes.parse()?)?;
            return Ok(false);
        }
        ["stop"] => {
            request.handle().shutdown();
            request.say("stopping")?;
        }
        ["drain", millis] => {
            let millis = millis.parse()?;
            request
                .handle()
                .drain(std::time::Duration::from_millis(millis));
            request.say("draining")?;
        }
        ["whoami"] => {
            request.say(&whoami()?)?;
        }
        ["hold", gate] => {
            request.say("holding")?;
            wait_at(gate)?;
            request.say("released")?;
        }
        ["hold-on-to-dear-life", gate] => {
            // SAFETY: ignoring a signal runs no code of ours.
            unsafe { libc::signal(socketserver::Forking::CUT, libc::SIG_IGN) };
            request.say("holding")?;
            wait_at(gate)?;
        }
        ["count"] => {
            let bytes = request.rest()?.len();
            request.say(&format!("{bytes}"))?;
        }
        ["size", ..] => {
            let (length, truncated) = request.size();
            request.say(&format!(
                "{length} truncated={truncated} kept={}",
                line.len()
            ))?;
        }
        ["pour", bytes] => request.pour(bytes.parse()?)?,
        ["pour-under-fire", bytes] => pour_under_fire(request, bytes.parse()?)?,
        ["flood"] => loop {
            if let Err(error) = request.say("flood") {
                journal(format_args!(
                    "reply-failed {} {:?}",
                    request.number(),
                    error.kind()
                ));
                return Err(error.into());
            }
        },
        ["flood", times] => {
            (0..times.parse::<u32>()?).try_for_each(|n| request.say(&n.to_string()))?;
        }
        ["validate-and-flood", times] => {
            request.validate();
            (0..times.parse::<u32>()?).try_for_each(|n| request.say(&n.to_string()))?;
        }
        ["where-are-you"] => {
            let local = request.local()?;
            request.say(&local)?;
        }
        ["answer-me"] => {
            let answered = request.say("you");
            let kind = answered.as_ref().map_err(io::Error::kind);
            journal(format_args!("answered {} {kind:?}", request.number()));
            answered?;
        }
        _ => request.say(line)?,
    }
    Ok(true)
}

/// The process and the thread that this runs on.
fn whoami() -> io::Result<String> {
    let thread = fs::read_link("/proc/thread-self")?;
    let thread = thread.file_name().unwrap_or_default().to_string_lossy();
    Ok(format!("{} {thread}", std::process::id()))
}

/// Waits until the trial opens the gate: the other end of a named pipe.
fn wait_at(gate: &str) -> io::Result<()> {
    let gate = directory().join(gate);
    let wait = move || File::open(gate).map(drop);
    // A model with threads of its own wants to be told what blocks.
    #[cfg(feature = "green")]
    return greenroom::unblock(wait);
    #[cfg(not(feature = "green"))]
    wait()
}

static INTERRUPTIONS: AtomicU64 = AtomicU64::new(0);

/// A large write, and a read, on a thread that is signalled all the time.
fn pour_under_fire<R: Talk>(request: &mut R, bytes: usize) -> Result<()> {
    extern "C" fn hit(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        INTERRUPTIONS.fetch_add(1, Ordering::Relaxed);
    }
    install(libc::SIGUSR1, hit);
    request.say(&whoami()?)?;
    let outcome = request.pour(bytes).and_then(|()| {
        journal("poured");
        request.byte()
    });
    let times = INTERRUPTIONS.load(Ordering::Relaxed);
    journal(format_args!("interrupted {times} {outcome:?}"));
    outcome?;
    Ok(())
}

/// The file in which a trial says what is to go wrong, a line for each: `setup panic`.
pub const FAULTS: &str = "faults";

/// Fails, if the trial wants this stage or hook to.
pub fn strike(place: &str) -> Result<()> {
    if is_asked(&format!("{place} panic")) {
        panic!("told to panic in {place}");
    }
    if is_asked(&format!("{place} error")) {
        return Err(format!("told to fail in {place}").into());
    }
    Ok(())
}

/// Whether the trial wants this to go wrong.
pub fn is_asked(fault: &str) -> bool {
    let faults = fs::read_to_string(directory().join(FAULTS)).unwrap_or_default();
    faults.lines().any(|line| line == fault)
}
