//! Sockets as in the standard library, that park the coroutine where those block the thread.
//!
//! Every one can have timeouts for reading and writing, and works outside of the engine, too, where
//! it blocks the thread.

/// What every socket of this module has: its descriptor, and the way from the standard library's.
macro_rules! socket {
    ($socket:ident, $std:ty) => {
        impl std::os::fd::AsFd for $socket {
            fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
                self.0.as_fd()
            }
        }

        impl TryFrom<$std> for $socket {
            type Error = std::io::Error;

            /// Takes over a socket of the standard library.
            fn try_from(socket: $std) -> std::io::Result<Self> {
                Socket::new(socket).map(Self)
            }
        }
    };
}

/// Bounds on waiting, for what is read and written.
macro_rules! timeouts {
    () => {
        /// Bounds the wait of each read; `None` is no limit.
        ///
        /// # Errors
        /// [`io::ErrorKind::InvalidInput`] for zero.
        pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
            self.0.set_timeout(Interest::Read, timeout)
        }

        /// Bounds the wait of each write; `None` is no limit.
        ///
        /// # Errors
        /// [`io::ErrorKind::InvalidInput`] for zero.
        pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
            self.0.set_timeout(Interest::Write, timeout)
        }
    };
}

/// Reading and writing, by whoever has the stream and whoever only borrows it.
macro_rules! stream {
    ($stream:ident) => {
        impl Read for $stream {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                (&*self).read(buf)
            }
        }

        impl Write for $stream {
            fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
                (&*self).write(buf)
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        impl Read for &$stream {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                self.0.read(buf, |mut socket, buf| socket.read(buf))
            }
        }

        impl Write for &$stream {
            fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
                self.0.run(Interest::Write, |mut socket| socket.write(buf))
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
    };
}

mod socket;
mod tcp;
mod udp;
mod unix;

pub use packet_batch::{PacketInfo, Transmit};
pub use tcp::{TcpListener, TcpStream};
pub use udp::{UdpSocket, send_together, send_together_from};
pub use unix::{UnixDatagram, UnixListener, UnixStream};
