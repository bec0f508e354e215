//! The TLS session of one connection, between the handler and the socket.
//!
//! One thread reads and several threads may write, as on the socket itself. The state is locked
//! only while records are encrypted or decrypted, never during a wait for the peer. Records are
//! sent in the order of their encryption, because the sender holds the send lock.

use std::io::{self, IoSlice, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustls::ServerConnection;
use rustls::pki_types::CertificateDer;

use crate::send_lock::SendLock;
use crate::timeouts::{Limits, earliest};

/// Maximum number of bytes read from the socket at a time: the longest record with its header.
const RECORD: usize = (16 << 10) + 256;

/// Maximum number of bytes that are encrypted before they are sent.
const PIECE: usize = 64 << 10;

/// The socket under a session. All operations observe its limits.
pub(crate) trait Wire {
    fn recv(&self, buf: &mut [u8], limits: Limits) -> io::Result<usize>;
    /// Receives without waiting.
    fn try_recv(&self, buf: &mut [u8]) -> io::Result<usize>;
    fn send(&self, bytes: &[u8], limits: Limits) -> io::Result<usize>;
    /// Records that nothing sent from now on can reach the peer.
    fn mark_disconnected(&self);
}

pub(crate) struct Session {
    state: Mutex<State>,
    send_lock: SendLock,
    /// True if this side ended the input: a missing close_notify is then not the peer's fault.
    input_ended: AtomicBool,
    /// True if only part of a record was sent.
    write_failed: AtomicBool,
}

struct State {
    tls: ServerConnection,
    /// Received bytes that are not decrypted yet, because earlier plaintext is still unread.
    pending: Vec<u8>,
}

impl State {
    /// Decrypts received bytes until some plaintext is available.
    fn decrypt(&mut self) -> Result<(), rustls::Error> {
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
                // The peer has sent close_notify; further bytes are ignored: RFC 8446, 6.1.
                Ok(0) => rest = &[],
                // `read_tls` fails only if its buffer is full, and no plaintext is unread here.
                Err(_) => break,
            }
        }
        let done = self.pending.len() - rest.len();
        self.pending.drain(..done);
        outcome
    }
}

/// The negotiated TLS parameters; see [`Connection::tls`](crate::Connection::tls).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TlsInfo {
    /// The name that the peer requested (SNI).
    pub server_name: Option<String>,
    /// The negotiated application protocol (ALPN).
    pub protocol: Option<Vec<u8>>,
    /// The TLS version, such as `TLSv1.3`.
    pub version: Option<&'static str>,
    /// The verified certificate chain of the peer, the peer's own certificate first. Empty if the
    /// server did not request a certificate or the peer did not send one.
    pub certificates: Vec<CertificateDer<'static>>,
}

impl TlsInfo {
    /// Returns the DNS names in the peer's certificate.
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
            send_lock: SendLock::default(),
            input_ended: AtomicBool::new(false),
            write_failed: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No application code runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Continues the handshake while input is available.
    ///
    /// # Errors
    /// Returns [`io::ErrorKind::WouldBlock`] if the peer must send more.
    pub(super) fn advance_handshake(&self, wire: &impl Wire, limits: Limits) -> io::Result<()> {
        loop {
            self.flush(wire, limits)?;
            if !self.state().tls.is_handshaking() {
                return Ok(());
            }
            let mut bytes = vec![0; RECORD];
            let n = wire.try_recv(&mut bytes)?;
            if self.decrypt(&bytes[..n], wire, limits)? == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the peer disconnected during the TLS handshake",
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

    /// Ends the input from this side.
    pub(crate) fn end_input(&self) {
        self.input_ended.store(true, Ordering::Relaxed);
    }

    /// Returns true if decrypted bytes, or an error, can be read without the socket.
    pub(crate) fn has_plaintext(&self) -> bool {
        let mut state = self.state();
        // The next read reports the error.
        state.decrypt().is_err()
            || state
                .tls
                .process_new_packets()
                .is_ok_and(|state| state.plaintext_bytes_to_read() > 0)
    }

    /// Reads decrypted bytes. Returns the end of input only after close_notify, because an attacker
    /// on the network path can close a connection.
    pub(crate) fn recv(
        &self,
        wire: &impl Wire,
        buf: &mut [u8],
        limits: Limits,
    ) -> io::Result<usize> {
        let limits = limits.as_of_now();
        loop {
            let mut state = self.state();
            if let Err(error) = state.decrypt() {
                drop(state);
                return Err(self.fail(wire, error, limits));
            }
            let read = state.tls.reader().read(buf);
            drop(state);
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) if self.input_ended.load(Ordering::Relaxed) => return Ok(0),
                Err(error) => {
                    wire.mark_disconnected();
                    return Err(error);
                }
                read => return read,
            }
            self.receive_records(wire, limits)?;
            // Sends the replies to records that are not data, for example to a key update. A thread
            // that is sending does so instead, because a read must not wait for a write.
            self.try_flush(wire, limits)?;
        }
    }

    /// Waits for bytes, and decrypts the records that are complete.
    fn receive_records(&self, wire: &impl Wire, limits: Limits) -> io::Result<usize> {
        let mut bytes = vec![0; RECORD];
        let n = wire.recv(&mut bytes, limits)?;
        self.decrypt(&bytes[..n], wire, limits)
    }

    /// Decrypts the records that `bytes` complete; an empty slice is the end of input. Returns the
    /// length of `bytes`.
    fn decrypt(&self, bytes: &[u8], wire: &impl Wire, limits: Limits) -> io::Result<usize> {
        let mut state = self.state();
        if bytes.is_empty() {
            // Reports the end of input to rustls.
            state.tls.read_tls(&mut io::empty())?;
        }
        state.pending.extend_from_slice(bytes);
        match state.decrypt() {
            Ok(()) => Ok(bytes.len()),
            Err(error) => {
                drop(state);
                Err(self.fail(wire, error, limits))
            }
        }
    }

    /// Sends an alert to the peer, ignoring errors, and returns `error` as an I/O error.
    fn fail(&self, wire: &impl Wire, error: rustls::Error, limits: Limits) -> io::Error {
        let _ = self.try_flush(wire, limits);
        wire.mark_disconnected();
        io::Error::new(io::ErrorKind::InvalidData, error)
    }

    pub(crate) fn send(
        &self,
        wire: &impl Wire,
        bufs: &[IoSlice<'_>],
        limits: Limits,
    ) -> io::Result<usize> {
        let limits = limits.as_of_now();
        let guard = self.send_lock.take(limits.deadline)?;
        let mut accepted = 0;
        {
            let mut state = self.state();
            for buf in bufs {
                let n = state.tls.writer().write(buf)?;
                accepted += n;
                if n < buf.len() {
                    break;
                }
            }
        }
        self.send_records(wire, limits)?;
        drop(guard);
        self.try_flush(wire, limits)?;
        Ok(accepted)
    }

    /// Sends close_notify, and ignores errors.
    pub(crate) fn close_notify(&self, wire: &impl Wire, limits: Limits) {
        self.state().tls.send_close_notify();
        let _ = self.flush(wire, limits);
    }

    /// Sends pending handshake messages and alerts.
    fn flush(&self, wire: &impl Wire, limits: Limits) -> io::Result<()> {
        if !self.state().tls.wants_write() {
            return Ok(());
        }
        let guard = self.send_lock.take(limits.deadline)?;
        self.send_records(wire, limits)?;
        drop(guard);
        self.try_flush(wire, limits)
    }

    /// Sends pending handshake messages and alerts if no other thread is sending. Otherwise the
    /// sending thread does so after its records.
    fn try_flush(&self, wire: &impl Wire, limits: Limits) -> io::Result<()> {
        while self.state().tls.wants_write() {
            let Some(_guard) = self.send_lock.try_take() else {
                return Ok(());
            };
            self.send_records(wire, limits)?;
        }
        Ok(())
    }

    /// Sends all pending records. The caller holds the send lock.
    fn send_records(&self, wire: &impl Wire, limits: Limits) -> io::Result<()> {
        if self.write_failed.load(Ordering::Relaxed) {
            return Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "an earlier write failed within a TLS record: the connection cannot send any more",
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
                    // Only part of a record was sent, so that further bytes would be invalid.
                    self.write_failed.store(true, Ordering::Relaxed);
                    wire.mark_disconnected();
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
    /// Converts the wait limit to a deadline. One read of a handler may take several reads of the
    /// socket, and received bytes must not extend the limit.
    fn as_of_now(self) -> Self {
        let end = self.wait.and_then(|wait| Instant::now().checked_add(wait));
        Self {
            wait: None,
            deadline: earliest(self.deadline, end),
            ..self
        }
    }
}
