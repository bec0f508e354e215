//! The address of a server: an IP address with a port, or the path of a Unix socket.

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, ensure};

use super::ANSWER_TIMEOUT;
use super::message::Messages;
use crate::environment::set_congestion_control;

#[derive(Clone, Debug)]
pub(super) enum Target {
    Inet(SocketAddr),
    Unix(PathBuf),
}

impl FromStr for Target {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let inet = text.parse().map(Self::Inet);
        Ok(inet.unwrap_or_else(|_| Self::Unix(text.into())))
    }
}

impl Target {
    pub(super) fn inet(&self) -> anyhow::Result<SocketAddr> {
        match self {
            Self::Inet(address) => Ok(*address),
            Self::Unix(path) => anyhow::bail!("{} is not an IP address", path.display()),
        }
    }

    /// Connects, and exchanges the message with number 0. The returned socket does not block.
    pub(super) fn connect(
        &self,
        client: usize,
        messages: &mut Messages,
    ) -> anyhow::Result<OwnedFd> {
        match self {
            Self::Inet(address) => {
                let stream = TcpStream::connect(address).context("cannot connect to the server")?;
                stream.set_nodelay(true)?;
                set_congestion_control(&stream);
                stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
                exchange(&stream, client, messages)?;
                stream.set_nonblocking(true)?;
                Ok(stream.into())
            }
            Self::Unix(path) => {
                let stream = UnixStream::connect(path).context("cannot connect to the server")?;
                stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
                exchange(&stream, client, messages)?;
                stream.set_nonblocking(true)?;
                Ok(stream.into())
            }
        }
    }
}

fn exchange<S>(mut stream: S, client: usize, messages: &mut Messages) -> anyhow::Result<()>
where
    S: Read + Write,
{
    stream.write_all(messages.of(client, 0))?;
    let mut answer = vec![0; messages.size()];
    match stream.read_exact(&mut answer) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            ensure!(false, "no answer within ten seconds");
        }
        read => read.context("cannot read the answer")?,
    }
    messages.check(client, 0, 0, &answer)
}
