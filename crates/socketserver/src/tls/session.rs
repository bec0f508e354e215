//! TLS on one connection: between what a handler reads and writes, and the socket.
//!
//! One reads, and several may write, as on the socket itself. The state is locked for as long as it
//! takes to encrypt or to decrypt, and never while somebody waits for the peer; records go out in
//! the order in which they were made, as who sends holds the turn to send.

use std::io::{self, IoSlice, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustls::ServerConnection;
use rustls::pki_types::CertificateDer;

use crate::send_lock::SendLock;
use crate::timeouts::{Limits, earliest};

/// What is taken from the socket at once: a record of the longest kind, and its header.
const RECORD: usize = (16 << 10) + 256;

/// How much is encrypted before it is sent.
const PIECE: usize = 64 << 10;

/// The way to the peer, under whose limits everything happens.
pub(crate) trait Wire {
    fn recv(&self, buf: &mut [u8], limits: Limits) -> io::Result<usize>;
    /// Without waiting.
    fn try_recv(&self, buf: &mut [u8]) -> io::Result<usize>;
    fn send(&self, bytes: &[u8], limits: Limits) -> io::Result<usize>;
    /// Nothing that is sent from now on can be understood by the peer.
    fn is_disconnected(&self);
}

pub(crate) struct Session {
    state: Mutex<State>,
    sending: SendLock,
    /// It was ended on this side: what is missing then is not the peer's fault.
    input_ended: AtomicBool,
    /// A record was sent in part.
    broken: AtomicBool,
}

struct State {
    tls: ServerConnection,
    /// Received, and not yet decrypted: what was decrypted before is still to be read.
    pending: Vec<u8>,
}

impl State {
    /// Decrypts what has been received, up to where there is something to read.
    fn digest(&mut self) -> Result<(), rustls::Error> {
        let mut rest = &self.pending[..];
        let mut outcome = Ok(());
        loop {
            match self.tls.process_new_packets() {
                Ok(state) if state.plaintext_bytes_to_read() > 0 => break,
                Ok(_) => {}
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
            if rest.is_empty() {
                break;
            }
            match self.tls.read_tls(&mut rest) {
                Ok(1..) => {}
                // The peer has said farewell, and what follows is to be ignored: RFC 8446, 6.1.
                Ok(0) => rest = &[],
                // It fails if there is no room, and there is: nothing is left to read.
                Err(_) => break,
            }
        }
        let done = self.pending.len() - rest.len();
        self.pending.drain(..done);
        outcome
    }
}

/// What was agreed upon with the peer; see [`Connection::tls`](crate::Connection::tls).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TlsInfo {
    /// The name that the peer has asked for (SNI).
    pub server_name: Option<String>,
    /// The protocol that was chosen among those offered (ALPN).
    pub protocol: Option<Vec<u8>>,
    /// The version of TLS, such as `TLSv1.3`.
    pub version: Option<&'static str>,
    /// The peer's certificate and those that lead to the authority which vouches for it, if it was
    /// asked for one. They have been verified.
    pub certificates: Vec<CertificateDer<'static>>,
}

impl TlsInfo {
    /// The names of hosts for which the peer's certificate was issued.
    #[must_use]
    pub fn peer_names(&self) -> Vec<String> {
        let Some(own) = self.certificates.first() else {
            return Vec::new();
        };
        let Ok(own) = webpki::EndEntityCert::try_from(own) else {
            return Vec::new();
        };
        own.valid_dns_names().map(str::to_owned).collect()
    }
}

impl Session {
    pub(super) fn new(mut tls: ServerConnection) -> Self {
        tls.set_buffer_limit(Some(PIECE));
        let pending = Vec::new();
        Self {
            state: Mutex::new(State { tls, pending }),
            sending: SendLock::default(),
            input_ended: AtomicBool::new(false),
            broken: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No application code runs while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on with the handshake for as long as something has arrived.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if the peer has to say more.
    pub(super) fn shake_hands(&self, wire: &impl Wire, limits: Limits) -> io::Result<()> {
        loop {
            self.flush(wire, limits)?;
            if !self.state().tls.is_handshaking() {
                return Ok(());
            }
            let mut bytes = vec![0; RECORD];
            let n = wire.try_recv(&mut bytes)?;
            if self.digest(&bytes[..n], wire, limits)? == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the peer has left in the TLS handshake",
                ));
            }
        }
    }

    pub(crate) fn info(&self) -> TlsInfo {
        let state = &self.state().tls;
        TlsInfo {
            server_name: state.server_name().map(str::to_owned),
            protocol: state.alpn_protocol().map(<[u8]>::to_vec),
            version: state
                .protocol_version()
                .and_then(|version| version.as_str()),
            certificates: state
                .peer_certificates()
                .map(|all| all.iter().map(|one| one.clone().into_owned()).collect())
                .unwrap_or_default(),
        }
    }

    /// The server wants to hear no more of the peer.
    pub(crate) fn end_input(&self) {
        self.input_ended.store(true, Ordering::Relaxed);
    }

    /// Whether there is something to read that has left the kernel already.
    pub(crate) fn has_plaintext(&self) -> bool {
        let mut state = self.state();
        // What is wrong is told by the read that comes across it.
        state.digest().is_err()
            || state
                .tls
                .process_new_packets()
                .is_ok_and(|state| state.plaintext_bytes_to_read() > 0)
    }

    /// Reads what the peer has sent. Its end is only an end if the peer has said so: anybody on the
    /// way could cut a connection.
    pub(crate) fn recv(
        &self,
        wire: &impl Wire,
        buf: &mut [u8],
        limits: Limits,
    ) -> io::Result<usize> {
        let limits = limits.as_of_now();
        loop {
            let mut state = self.state();
            if let Err(error) = state.digest() {
                drop(state);
                return Err(self.give_up(wire, error, limits));
            }
            let read = state.tls.reader().read(buf);
            drop(state);
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) if self.input_ended.load(Ordering::Relaxed) => return Ok(0),
                Err(error) => {
                    wire.is_disconnected();
                    return Err(error);
                }
                read => return read,
            }
            self.take_in(wire, limits)?;
            // Answers to what is not data: a change of keys, for instance. Whoever sends at the
            // moment takes them along: what is read must not wait for what is written.
            self.flush_beside(wire, limits)?;
        }
    }

    /// Waits for some bytes, and decrypts what they make complete.
    fn take_in(&self, wire: &impl Wire, limits: Limits) -> io::Result<usize> {
        let mut bytes = vec![0; RECORD];
        let n = wire.recv(&mut bytes, limits)?;
        self.digest(&bytes[..n], wire, limits)
    }

    /// Decrypts what some bytes make complete; none are the end of input. How many they were.
    fn digest(&self, bytes: &[u8], wire: &impl Wire, limits: Limits) -> io::Result<usize> {
        let mut state = self.state();
        if bytes.is_empty() {
            // The end of input is to be told, too.
            state.tls.read_tls(&mut io::empty())?;
        }
        state.pending.extend_from_slice(bytes);
        match state.digest() {
            Ok(()) => Ok(bytes.len()),
            Err(error) => {
                drop(state);
                Err(self.give_up(wire, error, limits))
            }
        }
    }

    /// Tells the peer what is wrong with it. It may not read that; the error is ours to tell.
    fn give_up(&self, wire: &impl Wire, error: rustls::Error, limits: Limits) -> io::Error {
        let _ = self.flush_beside(wire, limits);
        wire.is_disconnected();
        io::Error::new(io::ErrorKind::InvalidData, error)
    }

    pub(crate) fn send(
        &self,
        wire: &impl Wire,
        bufs: &[IoSlice<'_>],
        limits: Limits,
    ) -> io::Result<usize> {
        let limits = limits.as_of_now();
        let turn = self.sending.take(limits.deadline)?;
        let mut taken = 0;
        {
            let mut state = self.state();
            for buf in bufs {
                let n = state.tls.writer().write(buf)?;
                taken += n;
                if n < buf.len() {
                    break;
                }
            }
        }
        self.send_records(wire, limits)?;
        drop(turn);
        self.flush_beside(wire, limits)?;
        Ok(taken)
    }

    /// Says that no more will come, as far as that can be done at once.
    pub(crate) fn close_notify(&self, wire: &impl Wire, limits: Limits) {
        self.state().tls.send_close_notify();
        let _ = self.flush(wire, limits);
    }

    /// Sends what TLS has to say by itself.
    fn flush(&self, wire: &impl Wire, limits: Limits) -> io::Result<()> {
        if !self.state().tls.wants_write() {
            return Ok(());
        }
        let turn = self.sending.take(limits.deadline)?;
        self.send_records(wire, limits)?;
        drop(turn);
        self.flush_beside(wire, limits)
    }

    /// The same, if it is nobody's turn. If it is somebody's, he does this afterwards.
    fn flush_beside(&self, wire: &impl Wire, limits: Limits) -> io::Result<()> {
        while self.state().tls.wants_write() {
            let Some(_turn) = self.sending.try_take() else {
                return Ok(());
            };
            self.send_records(wire, limits)?;
        }
        Ok(())
    }

    /// To be called by who has the turn to send.
    fn send_records(&self, wire: &impl Wire, limits: Limits) -> io::Result<()> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "an earlier write has failed, and nothing can follow it in TLS",
            ));
        }
        let mut records = Vec::new();
        {
            let mut state = self.state();
            while state.tls.wants_write() {
                state.tls.write_tls(&mut records)?;
            }
        }
        let mut rest = &records[..];
        while !rest.is_empty() {
            match wire.send(rest, limits) {
                Ok(n) => rest = &rest[n..],
                Err(error) => {
                    // A record in part: whatever follows would be garbage.
                    self.broken.store(true, Ordering::Relaxed);
                    wire.is_disconnected();
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

impl Limits {
    /// One read of a handler may take several of the socket: what bounds it is fixed at its
    /// beginning, or a trickle of bytes would extend it.
    fn as_of_now(self) -> Self {
        let end = self.wait.and_then(|wait| Instant::now().checked_add(wait));
        Self {
            wait: None,
            deadline: earliest(self.deadline, end),
            ..self
        }
    }
}
