//! The servers on actix-server: one thread accepts, another thread serves.

use std::convert::Infallible;

use ::tokio::net::{TcpStream, UnixStream};
use ::tokio::signal::unix::{SignalKind, signal};
use actix_server::Server;
use actix_service::fn_service;

use super::stream::Listener;
use super::tokio::{current, echo};

pub(super) fn serve<const N: usize>(listener: Listener, stop: bool) -> anyhow::Result<()> {
    current().enable_time().build()?.block_on(async {
        let builder = Server::build().workers(1).disable_signals();
        let builder = match listener {
            Listener::Tcp(listener) => builder.listen("echo", listener, || {
                fn_service(|stream: TcpStream| async {
                    let _ = stream.set_nodelay(true);
                    echo::<_, N>(stream).await;
                    Ok::<_, Infallible>(())
                })
            }),
            Listener::Unix(listener) => builder.listen_uds("echo", listener, || {
                fn_service(|stream: UnixStream| async {
                    echo::<_, N>(stream).await;
                    Ok::<_, Infallible>(())
                })
            }),
        }?;
        let server = builder.run();
        if stop {
            let handle = server.handle();
            let mut stopped = signal(SignalKind::terminate())?;
            ::tokio::spawn(async move {
                stopped.recv().await;
                // Without a grace period: open connections are closed.
                handle.stop(false).await;
            });
        }
        Ok(server.await?)
    })
}
