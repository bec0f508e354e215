//! The servers on monoio, with its io_uring driver. The driver passes buffers to the kernel, so
//! they are on the heap.

use std::net::UdpSocket;

use ::monoio::io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt};
use ::monoio::net::{TcpListener, UnixListener};
use ::monoio::{IoUringDriver, RuntimeBuilder};

use super::stream::Listener;

pub(super) fn streams<const N: usize>(listener: Listener) -> anyhow::Result<()> {
    RuntimeBuilder::<IoUringDriver>::new()
        .build()?
        .block_on(async {
            match listener {
                Listener::Tcp(listener) => {
                    let listener = TcpListener::from_std(listener)?;
                    loop {
                        let (stream, _) = listener.accept().await?;
                        stream.set_nodelay(true)?;
                        ::monoio::spawn(echo::<_, N>(stream));
                    }
                }
                Listener::Unix(listener) => {
                    let listener = UnixListener::from_std(listener)?;
                    loop {
                        let (stream, _) = listener.accept().await?;
                        ::monoio::spawn(echo::<_, N>(stream));
                    }
                }
            }
        })
}

async fn echo<S: AsyncReadRent + AsyncWriteRent, const N: usize>(mut stream: S) {
    let mut buf = Vec::with_capacity(N);
    loop {
        let (read, filled) = stream.read(buf).await;
        let Ok(1..) = read else {
            return;
        };
        let (written, emptied) = stream.write_all(filled).await;
        if written.is_err() {
            return;
        }
        buf = emptied;
        buf.clear();
    }
}

pub(super) fn datagrams(socket: UdpSocket) -> anyhow::Result<()> {
    RuntimeBuilder::<IoUringDriver>::new()
        .build()?
        .block_on(async {
            let socket = ::monoio::net::udp::UdpSocket::from_std(socket)?;
            let mut buf = Vec::with_capacity(1024);
            loop {
                let (read, filled) = socket.recv_from(buf).await;
                buf = match read {
                    Ok((_, from)) => socket.send_to(filled, from).await.1,
                    Err(_) => filled,
                };
                buf.clear();
            }
        })
}
