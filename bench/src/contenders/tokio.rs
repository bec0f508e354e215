//! The servers on tokio.

use std::future::{Future, poll_fn};
use std::io;
use std::net::UdpSocket;
use std::pin::pin;
use std::task::Poll;

use ::tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use ::tokio::net::{TcpListener, UnixListener};
use ::tokio::runtime::Builder;
use ::tokio::signal::unix::{SignalKind, signal};

use super::stream::Listener;

pub(super) fn current() -> Builder {
    let mut builder = Builder::new_current_thread();
    builder.enable_io();
    builder
}

pub(super) fn multi() -> Builder {
    let mut builder = Builder::new_multi_thread();
    builder.enable_io().worker_threads(2);
    builder
}

pub(super) fn streams<const N: usize>(
    builder: &mut Builder,
    listener: Listener,
    stop: bool,
) -> anyhow::Result<()> {
    listener.set_nonblocking()?;
    let serve = async {
        match listener {
            Listener::Tcp(listener) => {
                let listener = TcpListener::from_std(listener)?;
                loop {
                    let (stream, _) = listener.accept().await?;
                    stream.set_nodelay(true)?;
                    ::tokio::spawn(echo::<_, N>(stream));
                }
            }
            Listener::Unix(listener) => {
                let listener = UnixListener::from_std(listener)?;
                loop {
                    let (stream, _) = listener.accept().await?;
                    ::tokio::spawn(echo::<_, N>(stream));
                }
            }
        }
    };
    Ok(builder.build()?.block_on(until_stopped(serve, stop))?)
}

/// Echoes until the client closes or a write fails.
pub(super) async fn echo<S, const N: usize>(mut stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut buf = [0; N];
    while let Ok(n @ 1..) = stream.read(&mut buf).await {
        if stream.write_all(&buf[..n]).await.is_err() {
            break;
        }
    }
}

/// Serves until SIGTERM, if `stop` is set. Dropping the runtime ends the spawned tasks.
async fn until_stopped(serve: impl Future<Output = io::Result<()>>, stop: bool) -> io::Result<()> {
    if !stop {
        return serve.await;
    }
    let mut stopped = signal(SignalKind::terminate())?;
    let mut serve = pin!(serve);
    poll_fn(|context| match stopped.poll_recv(context) {
        Poll::Ready(_) => Poll::Ready(Ok(())),
        Poll::Pending => serve.as_mut().poll(context),
    })
    .await
}

pub(super) fn datagrams(
    builder: &mut Builder,
    socket: UdpSocket,
    stop: bool,
) -> anyhow::Result<()> {
    socket.set_nonblocking(true)?;
    let serve = async {
        let socket = ::tokio::net::UdpSocket::from_std(socket)?;
        let mut buf = [0; 1024];
        loop {
            if let Ok((n, from)) = socket.recv_from(&mut buf).await {
                let _ = socket.send_to(&buf[..n], from).await;
            }
        }
    };
    Ok(builder.build()?.block_on(until_stopped(serve, stop))?)
}
