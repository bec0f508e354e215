//! The servers on may, which creates its own sockets.

use std::path::Path;

use ::may::net::{TcpListener, UdpSocket};
use ::may::os::unix::net::UnixListener;

use super::announce;
use super::threads::echo;
use crate::environment::set_congestion_control;

pub(super) fn streams<const N: usize>(path: Option<&Path>) -> anyhow::Result<()> {
    ::may::config().set_workers(1);
    if N > 1024 {
        // The default stack has 32 KiB; the size is given in words.
        ::may::config().set_stack_size((N + (32 << 10)) / size_of::<usize>());
    }
    if let Some(path) = path {
        let listener = UnixListener::bind(path)?;
        announce(path.display())?;
        for stream in listener.incoming() {
            let stream = stream?;
            ::may::go!(move || echo::<N>(stream));
        }
        return Ok(());
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    set_congestion_control(listener.inner());
    announce(listener.local_addr()?)?;
    for stream in listener.incoming() {
        let stream = stream?;
        stream.set_nodelay(true)?;
        ::may::go!(move || echo::<N>(stream));
    }
    Ok(())
}

pub(super) fn datagrams() -> anyhow::Result<()> {
    ::may::config().set_workers(1);
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    announce(socket.local_addr()?)?;
    let serving = ::may::go!(move || {
        let mut buf = [0; 1024];
        loop {
            if let Ok((n, from)) = socket.recv_from(&mut buf) {
                let _ = socket.send_to(&buf[..n], from);
            }
        }
    });
    serving.join().map_err(|_| anyhow::anyhow!("panicked"))
}
