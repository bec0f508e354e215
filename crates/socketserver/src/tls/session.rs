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

use super::turn::Turn;
use crate::timeouts::{Limits, earliest};

/// What is taken from the socket at once: a record of the longest kind, and its header.
const RECORD: usize = (16 << 10) + 256;

/// How much is encrypted before it is sent.
const PIECE: usize = 64 << 10;

/// The way to the peer, under whose limits everything happens.
pub(crate) trait Wire {
    fn recv(&self, buf: &mut [u8], limits: Limits) -> io::Result<usize>;
    fn send(&self, bytes: &[u8], limits: Limits) -> io::Result<usize>;
    /// Nothing that is sent from now on can be understood by the peer.
    fn is_lost(&self);
}

pub(crate) struct Session {
    state: Mutex<ServerConnection>,
    sending: Turn,
    /// It was ended on this side: what is missing then is not the peer's fault.
    input_ended: AtomicBool,
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
    pub(super) fn new(mut state: ServerConnection) -> Self {
        state.set_buffer_limit(Some(PIECE));
        Self {
            state: Mutex::new(state),
            sending: Turn::default(),
            input_ended: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, ServerConnection> {
        // No application code runs while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shakes hands, to the end.
    pub(super) fn handshake(&self, wire: &impl Wire, limits: Limits) -> io::Result<()> {
        let limits = limits.as_of_now();
        loop {
            self.flush(wire, limits)?;
            if !self.state().is_handshaking() {
                return Ok(());
            }
            if self.take_in(wire, limits)? == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the peer has left in the TLS handshake",
                ));
            }
        }
    }

    pub(crate) fn info(&self) -> TlsInfo {
        let state = self.state();
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
        let state = state.process_new_packets();
        state.is_ok_and(|state| state.plaintext_bytes_to_read() > 0)
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
            match self.state().reader().read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) if self.input_ended.load(Ordering::Relaxed) => return Ok(0),
                Err(error) => {
                    wire.is_lost();
                    return Err(error);
                }
                read => return read,
            }
            self.take_in(wire, limits)?;
            // Answers to what is not data: a change of keys, for instance.
            self.flush(wire, limits)?;
        }
    }

    /// Waits for some bytes, and decrypts what they make complete.
    fn take_in(&self, wire: &impl Wire, limits: Limits) -> io::Result<usize> {
        let mut bytes = vec![0; RECORD];
        let n = wire.recv(&mut bytes, limits)?;
        let mut state = self.state();
        let mut unread = &bytes[..n];
        loop {
            // The end of input is to be told, too.
            state.read_tls(&mut unread)?;
            if let Err(error) = state.process_new_packets() {
                let mut alert = Vec::new();
                while state.wants_write() && state.write_tls(&mut alert).is_ok() {}
                drop(state);
                // What it is told, it may not read; the error is ours to tell.
                let _ = wire.send(&alert, limits);
                wire.is_lost();
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            if unread.is_empty() {
                return Ok(n);
            }
        }
    }

    pub(crate) fn send(
        &self,
        wire: &impl Wire,
        bufs: &[IoSlice<'_>],
        limits: Limits,
    ) -> io::Result<usize> {
        let limits = limits.as_of_now();
        let _turn = self.sending.take(limits.deadline)?;
        let mut taken = 0;
        {
            let mut state = self.state();
            for buf in bufs {
                let n = state.writer().write(buf)?;
                taken += n;
                if n < buf.len() {
                    break;
                }
            }
        }
        self.send_records(wire, limits)?;
        Ok(taken)
    }

    /// Says that no more will come, as far as that can be done at once.
    pub(crate) fn say_goodbye(&self, wire: &impl Wire, limits: Limits) {
        self.state().send_close_notify();
        let _ = self.flush(wire, limits);
    }

    /// Sends what the state has to say by itself.
    fn flush(&self, wire: &impl Wire, limits: Limits) -> io::Result<()> {
        if !self.state().wants_write() {
            return Ok(());
        }
        let _turn = self.sending.take(limits.deadline)?;
        self.send_records(wire, limits)
    }

    /// To be called by who has the turn to send.
    fn send_records(&self, wire: &impl Wire, limits: Limits) -> io::Result<()> {
        let mut records = Vec::new();
        {
            let mut state = self.state();
            while state.wants_write() {
                state.write_tls(&mut records)?;
            }
        }
        let mut rest = &records[..];
        while !rest.is_empty() {
            match wire.send(rest, limits) {
                Ok(n) => rest = &rest[n..],
                Err(error) => {
                    // A record in part: whatever follows would be garbage.
                    wire.is_lost();
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
