//! Closing connections and datagrams.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, send};

use super::handle::{RequestGuard, RequestId};
use super::session::sealed;
use super::task::Outcome;
use crate::address::Address;
use crate::event::EndReason;
use crate::park::Park;
use crate::preamble::{PreambleProgress, PreambleState};
use crate::socket::{CancelReason, Socket};
use crate::timeouts::{Limits, earliest};
use crate::waiting::{Awaited, Waiting};
use crate::{Connection, Datagram};

/// The limits on a close that waits for a peer which is still sending.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1 << 20;
/// The kernel sends less than this at once to a peer that has just connected (ten segments).
const LINGER_SENT: u64 = 14_600;

impl sealed::Request for Connection {
    fn id(&self) -> RequestId {
        self.id()
    }

    fn peer(&self) -> &Address {
        self.peer_addr()
    }

    fn socket(&self) -> Option<Weak<Socket>> {
        Some(Arc::downgrade(self.socket()))
    }

    fn waiting(&self) -> Option<(&Waiting, Awaited)> {
        Some((self.socket().input(), self.awaited()))
    }

    fn byte_counts(&self) -> (u64, u64) {
        self.byte_counts()
    }

    fn is_disconnected(&self) -> bool {
        self.socket().is_disconnected()
    }

    fn cut(&self) -> Option<CancelReason> {
        self.socket().cut()
    }

    fn verdict(&self) -> Option<EndReason> {
        self.verdict()
    }

    fn take_suspend_request(&mut self) -> bool {
        self.take_suspend_request()
    }

    fn has_buffered(&mut self) -> bool {
        self.has_buffered()
    }

    fn is_within_message(&self) -> bool {
        self.is_within_message()
    }

    fn suspend_until(&self) -> Option<Instant> {
        let (end, wake_at) = self.suspend_until();
        earliest(end, wake_at)
    }

    fn wake(&mut self) -> bool {
        self.wake()
    }

    fn is_written_to(&self, moved_before: u64) -> bool {
        self.is_written_to(moved_before)
    }

    fn wait_readable(&self, until: Option<Instant>) -> io::Result<()> {
        let limits = Limits {
            deadline: until,
            ..Limits::default()
        };
        self.socket().wait_readable(limits)
    }

    fn has_input(&self) -> bool {
        self.socket().has_input()
    }

    fn end_input(&self) {
        let _ = self.shutdown(Shutdown::Read);
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        AsFd::as_fd(self)
    }

    fn park(&self) -> Option<&dyn Park> {
        self.socket().park()
    }

    fn preamble(
        &mut self,
        record: &mut RequestGuard,
        steps: &mut Option<Box<PreambleState>>,
    ) -> Result<PreambleProgress, Outcome> {
        // Most servers have no preamble, and the state of a step may be as large as a handshake.
        if steps.is_none() && !record.shared().preamble.may_refuse(self.peer_addr()) {
            return Ok(PreambleProgress::Complete);
        }
        steps.get_or_insert_default().take(self, record)
    }

    fn reject(mut self, notice: &[u8]) {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let told = !notice.is_empty() && send(self.socket(), notice, flags).is_ok();
        self.shutdown_request();
        if told {
            self.close_request();
        }
    }

    fn shutdown_request(&mut self) {
        let limits = Limits {
            deadline: Instant::now().checked_add(LINGER),
            ..Limits::default()
        };
        if !self.socket().is_disconnected() {
            self.socket().close_notify(limits);
        }
        let _ = self.socket().shutdown(Shutdown::Write);
    }

    fn refuse(self) -> Option<OwnedFd> {
        self.into_fd()
    }

    fn close_request(self) {
        let socket = self.socket();
        if !self.has_ended() && !socket.is_disconnected() && !socket.is_cancelled() {
            linger(socket);
        }
    }
}

/// Discards unread input and waits for the peer's close. Closing a TCP socket that has unread
/// input, or receives some later, resets the connection. A reset overtakes data that the kernel has
/// not sent yet ([RFC 2525, 2.17](https://www.rfc-editor.org/rfc/rfc2525#section-2.17)). The peer
/// therefore gets some time to close first, if it is still sending, or if much data may be
/// unreceived.
fn linger(socket: &Socket) {
    let mut scratch = [0; 4096];
    let mut discarded = match socket.discard(&mut scratch) {
        Ok(Some(0)) if socket.byte_counts().1 < LINGER_SENT => return,
        Ok(Some(n)) => n,
        _ => return,
    };
    let limits = Limits {
        deadline: Some(Instant::now() + LINGER),
        ..Limits::default()
    };
    let _waiting = socket.input().for_now(Awaited::Close);
    while discarded < LINGER_BYTES {
        match socket.recv_ciphertext(&mut scratch, limits) {
            Ok(n) if n > 0 => discarded += n,
            _ => return,
        }
    }
}

impl sealed::Request for Datagram {
    fn id(&self) -> RequestId {
        self.id()
    }

    fn peer(&self) -> &Address {
        self.peer_addr()
    }

    fn socket(&self) -> Option<Weak<Socket>> {
        None
    }

    fn waiting(&self) -> Option<(&Waiting, Awaited)> {
        None
    }

    fn byte_counts(&self) -> (u64, u64) {
        self.byte_counts()
    }

    fn is_disconnected(&self) -> bool {
        self.is_disconnected()
    }

    fn cut(&self) -> Option<CancelReason> {
        None
    }

    fn verdict(&self) -> Option<EndReason> {
        None
    }

    fn take_suspend_request(&mut self) -> bool {
        false
    }

    fn has_buffered(&mut self) -> bool {
        false
    }

    fn is_within_message(&self) -> bool {
        false
    }

    fn suspend_until(&self) -> Option<Instant> {
        None
    }

    fn wake(&mut self) -> bool {
        false
    }

    fn is_written_to(&self, _: u64) -> bool {
        false
    }

    fn wait_readable(&self, _: Option<Instant>) -> io::Result<()> {
        Ok(())
    }

    fn has_input(&self) -> bool {
        false
    }

    fn end_input(&self) {}

    fn as_fd(&self) -> BorrowedFd<'_> {
        AsFd::as_fd(self)
    }

    fn park(&self) -> Option<&dyn Park> {
        None
    }

    fn preamble(
        &mut self,
        _: &mut RequestGuard,
        _: &mut Option<Box<PreambleState>>,
    ) -> Result<PreambleProgress, Outcome> {
        Ok(PreambleProgress::Complete)
    }

    fn reject(self, _: &[u8]) {}

    fn shutdown_request(&mut self) {}

    fn refuse(self) -> Option<OwnedFd> {
        None
    }

    fn close_request(self) {}
}
