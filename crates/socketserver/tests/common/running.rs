//! A server that runs on a thread of the test.

use std::io::{BufRead, Write};
use std::thread::JoinHandle;
use std::time::Duration;

use socketserver::{
    Address, Concurrency, Connection, HandlerFn, Result, ServeError, Server, ServerHandle,
    Transport, handler_fn,
};

use super::TIMEOUT;
use super::client::{Client, Endpoint};

/// A server that runs until it is dropped.
pub struct Running {
    pub handle: ServerHandle,
    pub endpoint: Endpoint,
    serving: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Running {
    pub fn start<T, C>(mut server: Server<T, C>) -> Self
    where
        T: Transport,
        C: Concurrency,
    {
        Self {
            handle: server.handle(),
            endpoint: endpoint_of(T::NAME, server.local_addr()),
            serving: Some(std::thread::spawn(move || server.serve_forever())),
        }
    }

    #[track_caller]
    pub fn client(&self) -> Client {
        Client::connect(&self.endpoint).unwrap()
    }

    /// Waits until the server has stopped, after the test has asked it to.
    #[track_caller]
    pub fn wait_until_stopped(mut self) -> Result<(), ServeError> {
        assert!(self.handle.wait(Some(TIMEOUT)), "still serving");
        self.serving.take().unwrap().join().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.drain(Duration::ZERO);
        // If the test has not panicked before, it has checked the result already.
        if self.handle.wait(Some(TIMEOUT)) {
            let _ = self.serving.take().map(JoinHandle::join);
        }
    }
}

pub fn endpoint_of(transport: &str, address: &Address) -> Endpoint {
    let path = || address.as_path().unwrap().to_owned();
    let inet = || address.as_inet().unwrap();
    match transport {
        "tcp" => Endpoint::Tcp(inet()),
        "udp" => Endpoint::Udp(inet()),
        "unix" => Endpoint::Unix(path()),
        "unixgram" => Endpoint::UnixDatagram(path()),
        other => panic!("no transport {other}"),
    }
}

/// Returns the factory of a handler that sends back each line.
pub fn echo()
-> impl Fn() -> HandlerFn<fn(&mut Connection) -> Result<()>> + Clone + Send + Sync + 'static {
    fn handle(conn: &mut Connection) -> Result<()> {
        let mut line = String::new();
        while conn.read_line(&mut line)? > 0 {
            conn.write_all(line.as_bytes())?;
            line.clear();
        }
        Ok(())
    }
    handler_fn(handle as fn(&mut Connection) -> Result<()>)
}

/// Returns the factory of a handler that sends back a datagram.
pub fn echo_datagram()
-> impl Fn() -> HandlerFn<fn(&mut socketserver::Datagram) -> Result<()>> + Clone + Send + Sync + 'static
{
    fn handle(packet: &mut socketserver::Datagram) -> Result<()> {
        Ok(packet.reply(packet.bytes())?)
    }
    handler_fn(handle as fn(&mut socketserver::Datagram) -> Result<()>)
}
