//! Sockets with the API of the standard library. They park the coroutine where the standard
//! library's block the thread.
//!
//! Every socket can have timeouts for reads and writes. Outside of the runtime, a socket blocks the
//! thread.

/// Implements the common part of a socket: its descriptor and the conversion from the standard
/// library's type.
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

/// Defines the timeouts of reads and writes.
macro_rules! timeouts {
    () => {
        /// Sets the maximum wait of each read; `None` is no limit.
        ///
        /// # Errors
        /// Returns [`io::ErrorKind::InvalidInput`] if `timeout` is zero.
        pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
            self.0.set_timeout(Interest::Read, timeout)
        }

        /// Sets the maximum wait of each write; `None` is no limit.
        ///
        /// # Errors
        /// Returns [`io::ErrorKind::InvalidInput`] if `timeout` is zero.
        pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
            self.0.set_timeout(Interest::Write, timeout)
        }
    };
}

/// Implements `Read` and `Write` for a stream and for a reference to it.
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
