//! Sockets as in the standard library, that park the coroutine where those block the thread.
//!
//! Every one can have timeouts for reading and writing, and works outside of the engine, too, where
//! it blocks the thread.

mod socket;
mod tcp;
mod udp;
mod unix;

pub use tcp::{TcpListener, TcpStream};
pub use udp::UdpSocket;
pub use unix::{UnixDatagram, UnixListener, UnixStream};
