//! What systemd, and others that speak as it does, pass on to a service and want to hear from it:
//! sockets that are bound already (sd_listen_fds(3)), and how it fares (sd_notify(3)).

use std::env;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;

/// Variables that are for this process, and not for what it starts.
pub(crate) const VARIABLES: [&str; 6] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
];

/// A socket that was bound by somebody else.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
    Unix(UnixListener),
    Unixgram(UnixDatagram),
}

/// The sockets that were passed on, each with its name (`FileDescriptorName=`, or the unit's).
///
/// To be asked for once, before there are threads: it removes the variables that tell of them.
///
/// # Errors
/// One is of a kind that no server here serves.
pub(crate) fn inherited() -> anyhow::Result<Vec<(String, Socket)>> {
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut fds = ListenFd::from_env();
    (0..fds.len())
        .map(|index| {
            let name = names.next().unwrap_or_default().to_owned();
            match take(&mut fds, index) {
                Some(socket) => Ok((name, socket)),
                None => anyhow::bail!(
                    "descriptor {} ({name:?}) that was passed on is no TCP, UDP or Unix socket \
                     that listens: check the Listen...= lines of the socket unit",
                    3 + index
                ),
            }
        })
        .collect()
}

fn take(fds: &mut ListenFd, index: usize) -> Option<Socket> {
    // Each looks at the kind first, and takes nothing of another.
    if let Ok(Some(socket)) = fds.take_tcp_listener(index) {
        return Some(Socket::Tcp(socket));
    }
    if let Ok(Some(socket)) = fds.take_unix_listener(index) {
        return Some(Socket::Unix(socket));
    }
    if let Ok(Some(socket)) = fds.take_udp_socket(index) {
        return Some(Socket::Udp(socket));
    }
    if let Ok(Some(socket)) = fds.take_unix_datagram(index) {
        return Some(Socket::Unixgram(socket));
    }
    None
}

/// It serves.
pub(crate) fn ready() {
    ready_but("serving");
}

/// It serves, and there is something to say about that.
pub(crate) fn ready_but(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Its configuration is read anew; [`ready`] ends that.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "the service manager was not told of the reload"),
    }
}

/// It is on its way to the end, which may take so long.
pub(crate) fn stopping(what: &str, timeout: Duration) {
    let status = format!(
        "{what}; ends in {} at the latest",
        humantime::format_duration(timeout)
    );
    // Or the manager would lose patience first: sd_notify(3), EXTEND_TIMEOUT_USEC.
    let longer = timeout.saturating_add(Duration::from_secs(5)).as_micros();
    let longer = format!("EXTEND_TIMEOUT_USEC={longer}");
    tell(&[
        NotifyState::Stopping,
        NotifyState::Status(&status),
        NotifyState::Custom(&longer),
    ]);
}

/// How often the manager wants to hear that the serving loop turns, if it does: twice in the time
/// after which it would take action.
pub(crate) fn watchdog() -> Option<Duration> {
    Some(sd_notify::watchdog_enabled()? / 2)
}

/// The loop turns.
pub(crate) fn alive() {
    tell(&[NotifyState::Watchdog]);
}

fn tell(what: &[NotifyState<'_>]) {
    // Without a manager there is nobody to tell, and that is no error.
    if let Err(error) = sd_notify::notify(what) {
        tracing::warn!(%error, "the service manager was not told");
    }
}
