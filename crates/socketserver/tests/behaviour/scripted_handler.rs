//! The handler, one type for every transport and model. It executes the commands of the client, one
//! per line or datagram, and injects the faults that the trial has set.

use std::fs::{self, File};
use std::io::{self, BufRead, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use socketserver::{Connection, Datagram, RequestHandler, Result, ServerHandle};

use crate::server_process::{directory, install, journal};

/// The operations that the handler needs of both kinds of request.
pub trait ScriptedRequest: Sized {
    /// True if the request has only one line.
    const ONE_LINE: bool;
    fn number(&self) -> u64;
    fn handle(&self) -> &ServerHandle;
    /// Receives the next line; `None` at the end of input.
    fn receive_line(&mut self) -> io::Result<Option<String>>;
    fn send_line(&mut self, reply: &str) -> io::Result<()>;
    /// Reads all further input, to its end.
    fn read_rest(&mut self) -> io::Result<Vec<u8>>;
    /// Sends this number of bytes of [`pattern`].
    fn send_pattern(&mut self, bytes: usize) -> io::Result<()>;
    /// Reads one byte, with one call.
    fn byte(&mut self) -> io::Result<usize>;
    /// Returns the length of the request on the wire, and whether it is truncated.
    fn size(&self) -> (usize, bool);
    /// Returns the local address.
    fn local(&self) -> io::Result<String>;
    /// Marks the address of the peer as validated.
    fn validate(&self) {}
}

impl ScriptedRequest for Connection {
    const ONE_LINE: bool = false;

    fn number(&self) -> u64 {
        self.id().get()
    }

    fn handle(&self) -> &ServerHandle {
        self.server()
    }

    fn receive_line(&mut self) -> io::Result<Option<String>> {
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

    fn send_line(&mut self, reply: &str) -> io::Result<()> {
        self.write_all(format!("{reply}\n").as_bytes())
    }

    fn read_rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.read_to_end(&mut rest)?;
        Ok(rest)
    }

    fn send_pattern(&mut self, bytes: usize) -> io::Result<()> {
        let bytes = pattern(bytes);
        let mut sent = 0;
        // Not `write_all`, which retries after an interruption.
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

impl ScriptedRequest for Datagram {
    const ONE_LINE: bool = true;

    fn number(&self) -> u64 {
        self.id().get()
    }

    fn handle(&self) -> &ServerHandle {
        self.server()
    }

    fn receive_line(&mut self) -> io::Result<Option<String>> {
        Ok(Some(
            String::from_utf8_lossy(&self.take_bytes()).into_owned(),
        ))
    }

    fn send_line(&mut self, reply: &str) -> io::Result<()> {
        self.reply(reply.as_bytes())
    }

    fn read_rest(&mut self) -> io::Result<Vec<u8>> {
        Ok(self.take_bytes())
    }

    fn send_pattern(&mut self, bytes: usize) -> io::Result<()> {
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

/// Returns bytes that do not repeat at short distance, so that a lost or doubled part is noticed.
pub fn pattern(bytes: usize) -> Vec<u8> {
    // The length of a block is prime, so that no power-of-two offset maps to the same bytes.
    let block = (0..65_521_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]);
    let block: Vec<u8> = block.collect();
    let mut whole = Vec::with_capacity(bytes);
    while whole.len() < bytes {
        let piece = block.len().min(bytes - whole.len());
        whole.extend_from_slice(&block[..piece]);
    }
    whole
}

pub struct ScriptedHandler;

impl ScriptedHandler {
    /// Creates the handler; the server calls it as the factory.
    pub fn new() -> Self {
        journal("factory");
        inject_fault("factory").unwrap();
        Self
    }
}

impl<R: ScriptedRequest> RequestHandler<R> for ScriptedHandler {
    fn setup(&mut self, request: &mut R) -> Result<()> {
        journal(format_args!("setup {}", request.number()));
        inject_fault("setup")
    }

    fn handle(&mut self, request: &mut R) -> Result<()> {
        journal(format_args!("handle {}", request.number()));
        inject_fault("handle")?;
        while let Some(line) = request.receive_line()? {
            if !execute(request, &line)? || R::ONE_LINE {
                break;
            }
        }
        Ok(())
    }

    fn finish(&mut self, request: &mut R) -> Result<()> {
        journal(format_args!("finish {}", request.number()));
        inject_fault("finish")
    }
}

impl Drop for ScriptedHandler {
    fn drop(&mut self) {
        journal("drop");
        inject_fault("drop").unwrap();
    }
}

/// Executes one line. Returns false if the request ends.
fn execute<R: ScriptedRequest>(request: &mut R, line: &str) -> Result<bool> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["fail"] => return Err("asked to fail".into()),
        ["panic"] => panic!("asked to panic"),
        ["answer-and-fail"] => {
            request.send_line("answered")?;
            return Err("asked to fail".into());
        }
        ["nothing"] => {}
        [] => request.send_line("empty")?,
        ["leave"] => {
            request.send_line("bye")?;
            return Ok(false);
        }
        ["pour-and-leave", bytes] => {
            request.send_pattern(bytes.parse()?)?;
            return Ok(false);
        }
        ["stop"] => {
            request.handle().shutdown();
            request.send_line("stopping")?;
        }
        ["drain", millis] => {
            let millis = millis.parse()?;
            request
                .handle()
                .drain(std::time::Duration::from_millis(millis));
            request.send_line("draining")?;
        }
        ["whoami"] => {
            request.send_line(&whoami()?)?;
        }
        ["hold", fifo] => {
            request.send_line("holding")?;
            wait_for_release(fifo)?;
            request.send_line("released")?;
        }
        ["hold-without-cancel", fifo] => {
            // SAFETY: ignoring a signal runs no code of this process.
            unsafe { libc::signal(socketserver::Forking::CANCEL_SIGNAL, libc::SIG_IGN) };
            request.send_line("holding")?;
            wait_for_release(fifo)?;
        }
        ["count"] => {
            let bytes = request.read_rest()?.len();
            request.send_line(&format!("{bytes}"))?;
        }
        ["size", ..] => {
            let (length, truncated) = request.size();
            request.send_line(&format!(
                "{length} truncated={truncated} kept={}",
                line.len()
            ))?;
        }
        ["pour", bytes] => request.send_pattern(bytes.parse()?)?,
        ["pour-with-signals", bytes] => pour_with_signals(request, bytes.parse()?)?,
        ["flood"] => loop {
            if let Err(error) = request.send_line("flood") {
                journal(format_args!(
                    "reply-failed {} {:?}",
                    request.number(),
                    error.kind()
                ));
                return Err(error.into());
            }
        },
        ["flood", times] => {
            (0..times.parse::<u32>()?).try_for_each(|n| request.send_line(&n.to_string()))?;
        }
        ["validate-and-flood", times] => {
            request.validate();
            (0..times.parse::<u32>()?).try_for_each(|n| request.send_line(&n.to_string()))?;
        }
        ["local-address"] => {
            let local = request.local()?;
            request.send_line(&local)?;
        }
        ["answer-me"] => {
            let answered = request.send_line("you");
            let kind = answered.as_ref().map_err(io::Error::kind);
            journal(format_args!("answered {} {kind:?}", request.number()));
            answered?;
        }
        _ => request.send_line(line)?,
    }
    Ok(true)
}

/// Returns the process and the thread that this runs on.
fn whoami() -> io::Result<String> {
    let thread = fs::read_link("/proc/thread-self")?;
    let thread = thread.file_name().unwrap_or_default().to_string_lossy();
    Ok(format!("{} {thread}", std::process::id()))
}

/// Waits until the trial opens the other end of a named pipe.
fn wait_for_release(fifo: &str) -> io::Result<()> {
    let fifo = directory().join(fifo);
    let wait = move || File::open(fifo).map(drop);
    // In a green server, blocking calls must go through `unblock`.
    #[cfg(feature = "green")]
    return greenroom::unblock(wait);
    #[cfg(not(feature = "green"))]
    wait()
}

static INTERRUPTIONS: AtomicU64 = AtomicU64::new(0);

/// Writes a large reply and reads a byte, on a thread that receives signals all the time.
fn pour_with_signals<R: ScriptedRequest>(request: &mut R, bytes: usize) -> Result<()> {
    extern "C" fn on_signal(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        INTERRUPTIONS.fetch_add(1, Ordering::Relaxed);
    }
    install(libc::SIGUSR1, on_signal);
    request.send_line(&whoami()?)?;
    let outcome = request.send_pattern(bytes).and_then(|()| {
        journal("poured");
        request.byte()
    });
    let times = INTERRUPTIONS.load(Ordering::Relaxed);
    journal(format_args!("interrupted {times} {outcome:?}"));
    outcome?;
    Ok(())
}

/// The file in which a trial sets its faults, one per line: `setup panic`.
pub const FAULTS: &str = "faults";

/// Fails if the trial has set a fault for this phase or hook.
pub fn inject_fault(point: &str) -> Result<()> {
    if has_fault(&format!("{point} panic")) {
        panic!("asked to panic in {point}");
    }
    if has_fault(&format!("{point} error")) {
        return Err(format!("asked to fail in {point}").into());
    }
    Ok(())
}

/// Returns true if the trial has set this fault.
pub fn has_fault(fault: &str) -> bool {
    let faults = fs::read_to_string(directory().join(FAULTS)).unwrap_or_default();
    faults.lines().any(|line| line == fault)
}
