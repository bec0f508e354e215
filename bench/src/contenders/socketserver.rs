//! The servers of this project, and its runtime greenroom.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::bail;
use signal_hook::consts::SIGTERM;
use signal_hook::low_level::pipe;
use socketserver::metrics::Metrics;
use socketserver::transport::Udp;
use socketserver::{
    Concurrency, Connection, Datagram, Forking, Green, Pooled, RequestHandler, Sequential, Server,
    Threading, Transport, Watched, handler_fn,
};

use super::Contender;
use super::stream::Listener;

pub(super) fn streams<T, const N: usize>(
    contender: Contender,
    socket: OwnedFd,
    stop: bool,
) -> anyhow::Result<()>
where
    T: Transport<Request = Connection>,
{
    let (echo, echo_once) = (handler_fn(echo::<N>), handler_fn(echo_once::<N>));
    let plain = ServerOptions {
        stop,
        watched: false,
    };
    let watched = ServerOptions {
        stop,
        watched: true,
    };
    match contender {
        Contender::Green => serve::<T, _, _, _>(green(), socket, echo, plain),
        Contender::GreenKeepAlive => serve::<T, _, _, _>(green(), socket, echo_once, plain),
        Contender::GreenWatched => serve::<T, _, _, _>(green(), socket, echo, watched),
        Contender::Threading => serve::<T, _, _, _>(threading(), socket, echo, plain),
        Contender::ThreadingWatched => serve::<T, _, _, _>(threading(), socket, echo, watched),
        Contender::Forking => serve::<T, _, _, _>(forking(), socket, echo, plain),
        Contender::Pooled => serve::<T, _, _, _>(pooled(), socket, echo, plain),
        Contender::PooledKeepAlive => {
            serve::<T, _, _, _>(pooled().workers(4), socket, echo_once, plain)
        }
        Contender::Sequential => serve::<T, _, _, _>(Sequential, socket, echo, plain),
        other => bail!("{other} is not a socketserver model"),
    }
}

pub(super) fn datagrams(contender: Contender, socket: OwnedFd, stop: bool) -> anyhow::Result<()> {
    let echo = handler_fn(|packet: &mut Datagram| Ok(packet.reply(packet.bytes())?));
    let options = ServerOptions {
        stop,
        watched: false,
    };
    match contender {
        Contender::Green => serve::<Udp, _, _, _>(green(), socket, echo, options),
        Contender::Threading => serve::<Udp, _, _, _>(threading(), socket, echo, options),
        Contender::Forking => serve::<Udp, _, _, _>(forking(), socket, echo, options),
        Contender::Pooled => serve::<Udp, _, _, _>(pooled(), socket, echo, options),
        Contender::Sequential => serve::<Udp, _, _, _>(Sequential, socket, echo, options),
        other => bail!("{other} has no UDP server here"),
    }
}

/// Optional features, off by default because they cost something.
#[derive(Clone, Copy)]
struct ServerOptions {
    /// SIGTERM stops the server and cancels open connections.
    stop: bool,
    /// An observer counts every event, and metrics keep durations, to measure their cost.
    watched: bool,
}

/// Serves with the default timeouts of this project; the other contenders have none.
fn serve<T, C, F, H>(
    model: C,
    socket: OwnedFd,
    factory: F,
    options: ServerOptions,
) -> anyhow::Result<()>
where
    T: Transport,
    C: Concurrency,
    F: Fn() -> H + Send + Sync + 'static,
    H: RequestHandler<T::Request>,
{
    let mut builder = Server::<T, C>::builder().concurrency(model);
    if options.watched {
        let events = AtomicU64::new(0);
        builder = builder.on_event(move |_| {
            events.fetch_add(1, Ordering::Relaxed);
        });
    }
    let mut server = builder.adopt(socket, factory)?;
    let handle = server.handle();
    if options.watched {
        Metrics::new().register("watched", &handle);
    }
    if options.stop {
        let (signals, writer) = UnixStream::pair()?;
        pipe::register(SIGTERM, writer)?;
        server.watch(signals, move || {
            handle.drain(Duration::ZERO);
            Ok(Watched::Done)
        });
    }
    server.serve_forever().map_err(anyhow::Error::from)
}

fn echo<const N: usize>(conn: &mut Connection) -> socketserver::Result<()> {
    let mut buf = [0; N];
    loop {
        match conn.read(&mut buf)? {
            0 => return Ok(()),
            n => conn.write_all(&buf[..n])?,
        }
    }
}

fn echo_once<const N: usize>(conn: &mut Connection) -> socketserver::Result<()> {
    let mut buf = [0; N];
    let n = conn.read(&mut buf)?;
    conn.write_all(&buf[..n])?;
    conn.suspend_until_readable();
    Ok(())
}

// Each model has room for the connections of every benchmark.

fn green() -> Green {
    Green::new().workers(1).max_requests(20_000)
}

fn threading() -> Threading {
    Threading::new().max_threads(20_000)
}

fn forking() -> Forking {
    Forking::new().max_children(2_000)
}

/// With the default number of threads and the default queue length.
fn pooled() -> Pooled {
    Pooled::new().max_idle(20_000)
}

pub(super) fn runtime<const N: usize>(listener: Listener) -> anyhow::Result<()> {
    use greenroom::net::{TcpListener, UnixListener};
    let runtime = greenroom::Runtime::builder().workers(1).build()?;
    let accepting = match listener {
        Listener::Tcp(listener) => {
            let listener = TcpListener::try_from(listener)?;
            runtime.spawn(move || -> io::Result<()> {
                loop {
                    let (stream, _) = listener.accept()?;
                    stream.set_nodelay(true)?;
                    let _ = greenroom::spawn(move || super::threads::echo::<N>(stream));
                }
            })?
        }
        Listener::Unix(listener) => {
            let listener = UnixListener::try_from(listener)?;
            runtime.spawn(move || -> io::Result<()> {
                loop {
                    let (stream, _) = listener.accept()?;
                    let _ = greenroom::spawn(move || super::threads::echo::<N>(stream));
                }
            })?
        }
    };
    let ended = accepting.join().map_err(|_| anyhow::anyhow!("panicked"))?;
    Ok(ended?)
}
