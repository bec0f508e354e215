//! The servers of this project, and their engine.

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
    let (all, once) = (handler_fn(echo::<N>), handler_fn(echo_once::<N>));
    let plain = Extras {
        stop,
        watched: false,
    };
    let watched = Extras {
        stop,
        watched: true,
    };
    match contender {
        Contender::Green => serve::<T, _, _, _>(green(), socket, all, plain),
        Contender::GreenKeepAlive => serve::<T, _, _, _>(green(), socket, once, plain),
        Contender::GreenWatched => serve::<T, _, _, _>(green(), socket, all, watched),
        Contender::Threading => serve::<T, _, _, _>(threading(), socket, all, plain),
        Contender::ThreadingWatched => serve::<T, _, _, _>(threading(), socket, all, watched),
        Contender::Forking => serve::<T, _, _, _>(forking(), socket, all, plain),
        Contender::Pooled => serve::<T, _, _, _>(pooled(), socket, all, plain),
        Contender::PooledKeepAlive => serve::<T, _, _, _>(pooled().workers(4), socket, once, plain),
        Contender::Sequential => serve::<T, _, _, _>(Sequential, socket, all, plain),
        other => bail!("{other} is not one of this project"),
    }
}

pub(super) fn datagrams(contender: Contender, socket: OwnedFd, stop: bool) -> anyhow::Result<()> {
    let echo = handler_fn(|packet: &mut Datagram| Ok(packet.reply(packet.bytes())?));
    let extras = Extras {
        stop,
        watched: false,
    };
    match contender {
        Contender::Green => serve::<Udp, _, _, _>(green(), socket, echo, extras),
        Contender::Threading => serve::<Udp, _, _, _>(threading(), socket, echo, extras),
        Contender::Forking => serve::<Udp, _, _, _>(forking(), socket, echo, extras),
        Contender::Pooled => serve::<Udp, _, _, _>(pooled(), socket, echo, extras),
        Contender::Sequential => serve::<Udp, _, _, _>(Sequential, socket, echo, extras),
        other => bail!("{other} has no server over UDP here"),
    }
}

/// What is not always there, as it costs something.
#[derive(Clone, Copy)]
struct Extras {
    /// SIGTERM stops it, and cuts whoever is connected.
    stop: bool,
    /// Somebody hears of every event and does next to nothing about it, and durations are kept for
    /// metrics: what that costs is the difference.
    watched: bool,
}

/// Serves with the timeouts that a server has by default: the others have none.
fn serve<T, C, F, H>(model: C, socket: OwnedFd, factory: F, extras: Extras) -> anyhow::Result<()>
where
    T: Transport,
    C: Concurrency,
    F: Fn() -> H + Send + Sync + 'static,
    H: RequestHandler<T::Request>,
{
    let mut builder = Server::<T, C, ()>::builder().concurrency(model);
    if extras.watched {
        let heard = AtomicU64::new(0);
        builder = builder.on_event(move |_| {
            heard.fetch_add(1, Ordering::Relaxed);
        });
    }
    let mut server = builder.adopt(socket, factory)?;
    let controller = server.controller();
    if extras.watched {
        Metrics::new().add("watched", &controller);
    }
    if extras.stop {
        let (arrivals, handler) = UnixStream::pair()?;
        pipe::register(SIGTERM, handler)?;
        server.watch(arrivals, move || {
            controller.drain(Duration::ZERO);
            Ok(Watched::Done)
        });
    }
    server
        .serve_forever()
        .map_err(|e| anyhow::Error::from_boxed(e.into()))
}

fn echo<const N: usize>(conn: &mut Connection) -> socketserver::Result {
    let mut buf = [0; N];
    loop {
        match conn.read(&mut buf)? {
            0 => return Ok(()),
            n => conn.write_all(&buf[..n])?,
        }
    }
}

fn echo_once<const N: usize>(conn: &mut Connection) -> socketserver::Result {
    let mut buf = [0; N];
    let n = conn.read(&mut buf)?;
    conn.write_all(&buf[..n])?;
    conn.keep_alive();
    Ok(())
}

// Each with room for all that any question here has.

fn green() -> Green {
    Green::new().workers(1).max_requests(20_000)
}

fn threading() -> Threading {
    Threading::new().max_threads(20_000)
}

fn forking() -> Forking {
    Forking::new().max_children(2_000)
}

/// With as many threads and as long a queue as it has by default.
fn pooled() -> Pooled {
    Pooled::new().max_idle(20_000)
}

pub(super) fn engine<const N: usize>(listener: Listener) -> anyhow::Result<()> {
    use greenroom::net::{TcpListener, UnixListener};
    let engine = greenroom::Engine::builder().workers(1).build()?;
    let accepting = match listener {
        Listener::Tcp(listener) => {
            let listener = TcpListener::try_from(listener)?;
            engine.spawn(move || -> io::Result<()> {
                loop {
                    let (stream, _) = listener.accept()?;
                    stream.set_nodelay(true)?;
                    let _ = greenroom::spawn(move || super::threads::echo::<N>(stream));
                }
            })?
        }
        Listener::Unix(listener) => {
            let listener = UnixListener::try_from(listener)?;
            engine.spawn(move || -> io::Result<()> {
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
