//! The body of a request, with a length or in chunks.

use std::io::{self, BufRead};

use ::http::{HeaderMap, StatusCode};

use super::HttpLimits;
use super::body_length::BodyLength;
use super::chunked::Chunks;
use super::problem::{Problem, bad, problem};

/// The state of a body, without its stream.
#[derive(Debug)]
pub(super) struct RequestBody {
    rest: Rest,
    /// The number of bytes that may still be read.
    allowed: u64,
    trailers: HeaderMap,
    /// The error that every further read returns.
    failure: Option<Problem>,
    /// The client may wait for `100 Continue` before it sends any of it.
    expects_continue: bool,
}

#[derive(Debug)]
enum Rest {
    Length(u64),
    Chunked(Box<Chunks>),
}

impl RequestBody {
    pub fn new(framing: BodyLength, expects_continue: bool, limits: &HttpLimits) -> Self {
        let rest = match framing {
            BodyLength::Length(length) => Rest::Length(length),
            BodyLength::Chunked => Rest::Chunked(Box::new(Chunks::new(limits))),
        };
        let mut incoming = Self {
            rest,
            allowed: limits.body,
            trailers: HeaderMap::new(),
            failure: None,
            expects_continue: false,
        };
        incoming.expects_continue = expects_continue && !incoming.is_done();
        incoming
    }

    pub fn limit(&mut self, bytes: u64) {
        self.allowed = bytes;
    }

    /// Returns the length of the rest, if it is known.
    pub fn length(&self) -> Option<u64> {
        match &self.rest {
            Rest::Length(left) => Some(*left),
            Rest::Chunked(chunks) => chunks.is_done().then_some(0),
        }
    }

    pub fn is_done(&self) -> bool {
        self.length() == Some(0)
    }

    pub fn failure(&self) -> Option<&Problem> {
        self.failure.as_ref()
    }

    pub fn trailers(&self) -> &HeaderMap {
        &self.trailers
    }

    /// Returns true if the client waits for `100 Continue`, and marks it as sent.
    pub fn take_awaited(&mut self) -> bool {
        std::mem::take(&mut self.expects_continue)
    }

    pub fn expects_continue(&self) -> bool {
        self.expects_continue
    }

    /// Rejects a body whose known length is too long, before the client sends it.
    pub fn check_length(&mut self) -> io::Result<()> {
        if let Some(problem) = &self.failure {
            return Err(problem.clone().into());
        }
        match self.length() {
            Some(length) if length > self.allowed => {
                let problem = problem(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "the body is longer than is taken here",
                );
                self.failure = Some(problem.clone());
                Err(problem.into())
            }
            _ => Ok(()),
        }
    }

    /// Reads some data. Returns 0 at the end. A failed read fails again.
    pub fn read(&mut self, from: &mut impl BufRead, into: &mut [u8]) -> io::Result<usize> {
        self.check_length()?;
        if into.is_empty() || self.is_done() {
            return Ok(0);
        }
        match self.step(from, into) {
            Ok(n) => {
                self.allowed -= n as u64;
                Ok(n)
            }
            Err(error) => {
                self.failure = cause(&error);
                Err(error)
            }
        }
    }

    fn step(&mut self, from: &mut impl BufRead, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.rest {
            Rest::Length(left) => {
                let most = usize::try_from(*left).unwrap_or(usize::MAX).min(into.len());
                let n = from.read(&mut into[..most])?;
                if n == 0 {
                    return Err(bad("the body ended before it was complete").into());
                }
                *left -= n as u64;
                Ok(n)
            }
            Rest::Chunked(chunks) => {
                let n = chunks.read(from, into, self.allowed)?;
                if chunks.is_done() {
                    self.trailers = chunks.trailers()?;
                }
                Ok(n)
            }
        }
    }

    /// Discards up to `most` bytes of the rest. Returns true if no rest is left.
    pub fn discard(&mut self, from: &mut impl BufRead, most: u64) -> io::Result<bool> {
        self.allowed = most;
        if self.failure.is_some() || self.length().is_some_and(|length| length > most) {
            return Ok(false);
        }
        let mut scratch = [0; 4096];
        while !self.is_done() {
            match self.read(from, &mut scratch) {
                Ok(_) => {}
                Err(_) if self.failure.is_some() => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// Returns the problem to respond with, if the client caused the error.
fn cause(error: &io::Error) -> Option<Problem> {
    if let Some(problem) = Problem::of(error) {
        return Some(problem.clone());
    }
    (error.kind() == io::ErrorKind::TimedOut).then_some(problem(
        StatusCode::REQUEST_TIMEOUT,
        "the body takes too long to arrive",
    ))
}
