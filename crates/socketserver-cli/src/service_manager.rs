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
                    "descriptor {} ({name:?}) that was passed on is no TCP, UDP or Unix socket \
                     that listens: check the Listen...= lines of the socket unit",
                    3 + index
                ),
            }
        })
        .collect()
}

/// Refuses a `LISTEN_FDS` that promises more than was passed on: the descriptors behind those would be
/// whatever this process opens next.
///
/// What is passed on survives `execve(2)`, and so is not marked to be closed then; all that this
/// process has opened is.
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
        Err(_) => anyhow::bail!("LISTEN_FDS={count} is no number of sockets"),
    };
    // Without /proc it is not known, and each is looked at later.
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
