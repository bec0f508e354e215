//! The protocol with systemd and compatible service managers: inherited sockets (sd_listen_fds(3))
//! and status notifications (sd_notify(3)).

use std::env;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;

/// Environment variables for this process only, which its children must not get.
pub(crate) const VARIABLES: [&str; 6] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
];

/// A socket that a service manager has bound.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
    Unix(UnixListener),
    Unixgram(UnixDatagram),
}

/// Returns the inherited sockets, each with its name (`FileDescriptorName=`, or the name of the
/// unit).
///
/// Call it once, before there are threads, because it removes the environment variables.
///
/// # Errors
/// Returns an error if a socket is of a kind that no server here serves.
pub(crate) fn inherited() -> anyhow::Result<Vec<(String, Socket)>> {
    check_passed()?;
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut fds = ListenFd::from_env();
    (0..fds.len())
        .map(|index| {
            let name = names.next().unwrap_or_default().to_owned();
            match take(&mut fds, index) {
                Some(socket) => Ok((name, socket)),
                None => anyhow::bail!(
                    "descriptor {} ({name:?}) that was passed on is not a listening TCP, UDP or Unix socket: \
                     check the Listen...= lines of the socket unit",
                    3 + index
                ),
            }
        })
        .collect()
}

/// Returns an error if `LISTEN_FDS` announces more descriptors than were passed on. Otherwise a
/// later file of this process could be taken for one.
///
/// Inherited descriptors have survived `execve(2)` and so are not close-on-exec. All descriptors
/// that this process has opened are.
fn check_passed() -> anyhow::Result<()> {
    let Ok(count) = env::var("LISTEN_FDS") else {
        return Ok(());
    };
    match env::var("LISTEN_PID") {
        Ok(pid) if !pid.is_empty() && pid != std::process::id().to_string() => return Ok(()),
        _ => {}
    }
    let count: u32 = match count.parse() {
        Ok(count) => count,
        Err(_) => anyhow::bail!("LISTEN_FDS={count} is not a number of sockets"),
    };
    // Without `/proc` the flags are unknown, and each descriptor is checked later.
    if !std::path::Path::new("/proc/self/fdinfo").exists() {
        return Ok(());
    }
    let is_passed = |fd: &u32| {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
        flags.is_some_and(|flags| flags & rustix::fs::OFlags::CLOEXEC.bits() == 0)
    };
    let passed = (3..)
        .take_while(|fd| fd - 3 < count && is_passed(fd))
        .count();
    if passed < count as usize {
        anyhow::bail!(
            "LISTEN_FDS={count}, but {passed} of them were passed on (descriptors from 3 on): check \
             what starts this program"
        );
    }
    Ok(())
}

fn take(fds: &mut ListenFd, index: usize) -> Option<Socket> {
    // Each call checks the kind first, and takes no socket of another kind.
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

/// Reports that the servers serve.
pub(crate) fn ready() {
    ready_but("serving");
}

/// Reports that the servers serve, with a status text.
pub(crate) fn ready_but(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Reports a reload of the configuration; [`ready`] ends it.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "cannot notify the service manager of the reload"),
    }
}

/// Reports that the servers stop, which may take up to `timeout`.
pub(crate) fn stopping(what: &str, timeout: Duration) {
    let status = format!(
        "{what}; ends in {} at the latest",
        humantime::format_duration(timeout)
    );
    // The extra time keeps the manager from a timeout of its own: sd_notify(3),
    // EXTEND_TIMEOUT_USEC.
    let longer = timeout.saturating_add(Duration::from_secs(5)).as_micros();
    let longer = format!("EXTEND_TIMEOUT_USEC={longer}");
    notify(&[
        NotifyState::Stopping,
        NotifyState::Status(&status),
        NotifyState::Custom(&longer),
    ]);
}

/// Returns the interval for reports of the accept loop: half the time after which the manager would
/// act.
pub(crate) fn watchdog() -> Option<Duration> {
    Some(sd_notify::watchdog_enabled()? / 2)
}

/// Reports that the accept loop runs.
pub(crate) fn alive() {
    notify(&[NotifyState::Watchdog]);
}

fn notify(what: &[NotifyState<'_>]) {
    // Without a manager the call does nothing and succeeds.
    if let Err(error) = sd_notify::notify(what) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}
