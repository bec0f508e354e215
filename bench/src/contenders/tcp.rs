//! The servers over TCP.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};

use rustix::net::{AddressFamily, SocketType, sockopt};
use socketserver::transport::Tcp;
use socketserver::{Connection, Sequential, handler_fn};

use super::{Contender, announce, epoll, green, pooled, socketserver, threading, watched};

pub(super) fn serve(contender: Contender) -> anyhow::Result<()> {
    let (all, once) = (handler_fn(echo), handler_fn(echo_once));
    match contender {
        Contender::Epoll => Ok(epoll::serve(&listen()?)?),
        Contender::Green => socketserver::<Tcp, _, _, _>(green(), listen()?, all),
        Contender::GreenKeepAlive => socketserver::<Tcp, _, _, _>(green(), listen()?, once),
        Contender::GreenWatched => watched::<Tcp, _, _, _>(green(), listen()?, all),
        Contender::Greenroom => greenroom(listen()?),
        Contender::Threading => socketserver::<Tcp, _, _, _>(threading(), listen()?, all),
        Contender::ThreadingWatched => watched::<Tcp, _, _, _>(threading(), listen()?, all),
        Contender::Pooled => socketserver::<Tcp, _, _, _>(pooled(), listen()?, all),
        Contender::PooledKeepAlive => {
            socketserver::<Tcp, _, _, _>(pooled().workers(4), listen()?, once)
        }
        Contender::Sequential => socketserver::<Tcp, _, _, _>(Sequential, listen()?, all),
        Contender::TokioCurrent => {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            tokio(&mut builder, listen()?)
        }
        Contender::TokioMulti => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            tokio(builder.worker_threads(2), listen()?)
        }
        Contender::May => may(),
        Contender::StdThread => std_thread(&listen()?),
    }
}

/// As long a backlog as the system allows, for all alike but one, which makes its own socket.
fn listen() -> io::Result<TcpListener> {
    let fd = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    rustix::net::bind(&fd, &SocketAddr::from(([127, 0, 0, 1], 0)))?;
    rustix::net::listen(&fd, i32::MAX)?;
    let listener = TcpListener::from(fd);
    announce(listener.local_addr()?)?;
    Ok(listener)
}

fn echo(conn: &mut Connection) -> socketserver::Result {
    let mut buf = [0; 1024];
    loop {
        match conn.read(&mut buf)? {
            0 => return Ok(()),
            n => conn.write_all(&buf[..n])?,
        }
    }
}

fn echo_once(conn: &mut Connection) -> socketserver::Result {
    let mut buf = [0; 1024];
    let n = conn.read(&mut buf)?;
    conn.write_all(&buf[..n])?;
    conn.keep_alive();
    Ok(())
}

fn greenroom(listener: TcpListener) -> anyhow::Result<()> {
    let engine = greenroom::Engine::builder().workers(1).build()?;
    let listener = greenroom::net::TcpListener::try_from(listener)?;
    let accepting = engine.spawn(move || -> io::Result<()> {
        loop {
            let (mut stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            let serve = move || {
                let mut buf = [0; 1024];
                while let Ok(n @ 1..) = stream.read(&mut buf) {
                    if stream.write_all(&buf[..n]).is_err() {
                        break;
                    }
                }
            };
            let _ = greenroom::spawn(serve);
        }
    })?;
    let ended = accepting.join().map_err(|_| anyhow::anyhow!("panicked"))?;
    Ok(ended?)
}

fn tokio(builder: &mut tokio::runtime::Builder, listener: TcpListener) -> anyhow::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    listener.set_nonblocking(true)?;
    builder.enable_io().build()?.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(async move {
                let mut buf = [0; 1024];
                while let Ok(n @ 1..) = stream.read(&mut buf).await {
                    if stream.write_all(&buf[..n]).await.is_err() {
                        break;
                    }
                }
            });
        }
    })
}

fn may() -> anyhow::Result<()> {
    may::config().set_workers(1);
    let listener = may::net::TcpListener::bind("127.0.0.1:0")?;
    announce(listener.local_addr()?)?;
    for stream in listener.incoming() {
        let mut stream = stream?;
        stream.set_nodelay(true)?;
        may::go!(move || {
            let mut buf = [0; 1024];
            while let Ok(n @ 1..) = stream.read(&mut buf) {
                if stream.write_all(&buf[..n]).is_err() {
                    break;
                }
            }
        });
    }
    Ok(())
}

fn std_thread(listener: &TcpListener) -> anyhow::Result<()> {
    loop {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        std::thread::Builder::new().spawn(move || {
            let mut buf = [0; 1024];
            while let Ok(n @ 1..) = stream.read(&mut buf) {
                if stream.write_all(&buf[..n]).is_err() {
                    break;
                }
            }
        })?;
    }
}
