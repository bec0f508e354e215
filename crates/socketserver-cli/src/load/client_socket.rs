//! One connection, or one socket for datagrams, with or without TLS. No operation blocks: an
//! operation that cannot complete says so, and is repeated when the descriptor is ready.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown, sockopt};
use socketserver::rustls::ClientConnection;

use super::failure::{Failure, Kind};

pub(super) struct ClientSocket {
    socket: OwnedFd,
    tls: Option<Box<ClientConnection>>,
    is_datagram: bool,
}

/// The result of one attempt to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// Received bytes; `more` says that further bytes may be available.
    Bytes {
        n: usize,
        more: bool,
    },
    Nothing,
    End,
}

impl ClientSocket {
    pub(super) fn new(
        socket: OwnedFd,
        tls: Option<Box<ClientConnection>>,
        is_datagram: bool,
    ) -> Self {
        Self {
            socket,
            tls,
            is_datagram,
        }
    }

    /// Continues to connect once the socket is ready. Returns true if the connection is
    /// established.
    pub(super) fn continue_opening(&mut self) -> Result<bool, Failure> {
        match sockopt::socket_error(&self.socket) {
            Ok(Ok(())) => {}
            Ok(Err(errno)) | Err(errno) => return Err(Failure::connecting(errno)),
        }
        let Some(tls) = &mut self.tls else {
            return Ok(true);
        };
        while tls.is_handshaking() {
            let wants_write = tls.wants_write();
            let mut socket = Socket(&self.socket);
            let moved = if wants_write {
                tls.write_tls(&mut socket)
            } else {
                tls.read_tls(&mut socket)
            };
            match moved {
                Ok(0) if !wants_write => {
                    return Err(Failure::new(Kind::Tls, "closed during the handshake"));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(Failure::new(Kind::Tls, error.to_string())),
            }
            if let Err(error) = tls.process_new_packets() {
                // The TLS alert for the server is sent on a best-effort basis.
                let _ = tls.write_tls(&mut Socket(&self.socket));
                return Err(Failure::new(Kind::Tls, error.to_string()));
            }
        }
        self.flush()?;
        Ok(true)
    }

    /// Returns the events that a connecting socket waits for.
    pub(super) fn awaits(&self) -> EventFlags {
        if self.wants_write() {
            EventFlags::OUT
        } else {
            EventFlags::IN
        }
    }

    /// Returns true if bytes that were accepted earlier remain to be sent.
    pub(super) fn wants_write(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Accepts the bytes for which there is buffer space, and returns their number.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<usize, Failure> {
        let Some(tls) = &mut self.tls else {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            return match send(&self.socket, bytes, flags) {
                Ok(n) => Ok(n),
                Err(Errno::AGAIN | Errno::INTR) => Ok(0),
                Err(errno) => Err(errno.into()),
            };
        };
        let taken = tls.writer().write(bytes);
        let taken = taken.map_err(|error| Failure::new(Kind::Tls, error.to_string()))?;
        self.flush()?;
        Ok(taken)
    }

    /// Sends accepted bytes. Returns true if all are sent.
    pub(super) fn flush(&mut self) -> Result<bool, Failure> {
        let Some(tls) = &mut self.tls else {
            return Ok(true);
        };
        while tls.wants_write() {
            match tls.write_tls(&mut Socket(&self.socket)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(of_stream(&error)),
            }
        }
        Ok(true)
    }

    pub(super) fn receive(&mut self, buf: &mut [u8]) -> Result<Received, Failure> {
        let Some(tls) = &mut self.tls else {
            return match recv(&self.socket, &mut *buf, RecvFlags::DONTWAIT) {
                Ok((0, _)) if !self.is_datagram => Ok(Received::End),
                Ok((n, _)) => {
                    // A stream that returned less than the buffer holds has no more data: epoll(7).
                    let more = n == buf.len() && !self.is_datagram;
                    Ok(Received::Bytes { n, more })
                }
                Err(Errno::AGAIN | Errno::INTR) => Ok(Received::Nothing),
                Err(errno) => Err(errno.into()),
            };
        };
        loop {
            match tls.reader().read(buf) {
                Ok(0) => return Ok(Received::End),
                Ok(n) => return Ok(Received::Bytes { n, more: true }),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The server closed without `close_notify`. For counting answers, this is an
                // ordinary end.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Ok(Received::End);
                }
                Err(error) => return Err(of_stream(&error)),
            }
            match tls.read_tls(&mut Socket(&self.socket)) {
                Ok(_) => {
                    let seen = tls.process_new_packets();
                    seen.map_err(|error| Failure::new(Kind::Tls, error.to_string()))?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Received::Nothing);
                }
                Err(error) => return Err(of_stream(&error)),
            }
        }
    }

    /// Shuts down the sending side. Errors do not matter, because the server may have closed
    /// already.
    pub(super) fn half_close(&mut self) {
        self.send_close_notify();
        let _ = shutdown(&self.socket, Shutdown::Write);
    }

    /// Sends `close_notify`. Without it the server would have to suspect a truncation attack (RFC
    /// 8446, 6.1).
    pub(super) fn send_close_notify(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let _ = self.flush();
        }
    }
}

impl AsFd for ClientSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn of_stream(error: &io::Error) -> Failure {
    match Errno::from_io_error(error) {
        Some(errno) => errno.into(),
        None => Failure::new(Kind::Tls, error.to_string()),
    }
}

/// A socket in the form that rustls needs.
struct Socket<'a>(&'a OwnedFd);

impl Read for Socket<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self.0, buf, RecvFlags::DONTWAIT)?.0)
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        Ok(send(self.0, bytes, flags)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
