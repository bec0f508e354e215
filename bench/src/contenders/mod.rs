//! The servers: each echoes what it reads, with a buffer of 1 KiB for each connection.

mod epoll;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};

use clap::ValueEnum;
use rustix::net::{AddressFamily, SocketType, sockopt};
use socketserver::{Builder, Connection, Green, Pooled, Server, Threading, Timeouts, handler_fn};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Contender {
    /// A bare loop around epoll: what all event-driven servers are built on
    Epoll,
    /// `GreenTcpServer`
    Green,
    /// `GreenTcpServer`, with connections kept alive between messages
    GreenKeepAlive,
    /// The engine alone
    Greenroom,
    /// tokio on one thread
    TokioCurrent,
    /// tokio on two
    TokioMulti,
    May,
    /// `ThreadingTcpServer`
    Threading,
    /// A bare thread for each connection
    StdThread,
    /// `PooledTcpServer`, with connections kept alive between messages
    PooledKeepAlive,
}

impl Contender {
    pub(crate) fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().into())
    }
}

pub(crate) fn serve(contender: Contender) -> anyhow::Result<()> {
    let listener = listen()?;
    announce(listener.local_addr()?)?;
    match contender {
        Contender::Epoll => Ok(epoll::serve(&listener)?),
        Contender::Green => {
            socketserver(Green::new().workers(1).max_requests(20_000), listener, echo)
        }
        Contender::GreenKeepAlive => {
            let model = Green::new().workers(1).max_requests(20_000);
            socketserver(model, listener, echo_once)
        }
        Contender::Greenroom => greenroom(listener),
        Contender::TokioCurrent => {
            tokio(&mut tokio::runtime::Builder::new_current_thread(), listener)
        }
        Contender::TokioMulti => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            tokio(builder.worker_threads(2), listener)
        }
        Contender::May => may(listener),
        Contender::Threading => {
            let model = Threading::new().max_threads(20_000);
            socketserver(model, listener, echo)
        }
        Contender::StdThread => std_thread(&listener),
        Contender::PooledKeepAlive => {
            let model = Pooled::new().workers(4).max_idle(20_000);
            socketserver(model, listener, echo_once)
        }
    }
}

/// As long a backlog as the system allows, for all alike.
fn listen() -> io::Result<TcpListener> {
    let fd = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    rustix::net::bind(&fd, &SocketAddr::from(([127, 0, 0, 1], 0)))?;
    rustix::net::listen(&fd, i32::MAX)?;
    Ok(fd.into())
}

fn announce(address: SocketAddr) -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{address}")?;
    out.flush()
}

fn socketserver<C: socketserver::Concurrency>(
    model: C,
    listener: TcpListener,
    handle: impl Fn(&mut Connection) -> socketserver::Result + Send + Sync + 'static,
) -> anyhow::Result<()> {
    // With the timeouts that it has by default: the others have none.
    let builder: Builder<socketserver::transport::Tcp, C> =
        Server::<socketserver::transport::Tcp, C, ()>::builder();
    let mut server = builder
        .concurrency(model)
        .timeouts(Timeouts::default())
        .adopt(listener, handler_fn(handle))?;
    server
        .serve_forever()
        .map_err(|e| anyhow::Error::from_boxed(e.into()))
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

fn may(listener: TcpListener) -> anyhow::Result<()> {
    may::config().set_workers(1);
    let address = listener.local_addr()?;
    // It makes its own socket, and takes the port over.
    drop(listener);
    let listener = may::net::TcpListener::bind(address)?;
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
