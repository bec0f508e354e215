//! Addresses of peers and listeners, and the credentials of Unix peers.

use std::ffi::OsStr;
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::net::{
    AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, netdevice, socket_with,
};

/// The address of a peer or of a listener.
///
/// `Display` writes the usual form: `127.0.0.1:8888`, `[::1]:8888`, `/run/name.sock`, `@abstract`,
/// and `unnamed` for a Unix socket that was never bound. A link-local address includes its
/// interface, by name if the interface exists: `[fe80::1%eth0]:8888`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// An IPv4 or IPv6 address and a port.
    Inet(SocketAddr),
    /// A Unix domain address.
    Unix(UnixAddress),
}

impl Address {
    /// Returns the IP address and port, or `None` for a Unix address.
    #[must_use]
    pub fn as_inet(&self) -> Option<SocketAddr> {
        match self {
            Self::Inet(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    /// Returns the path, or `None` for an address that is not the path of a Unix socket.
    #[must_use]
    pub fn as_path(&self) -> Option<&Path> {
        match self {
            Self::Unix(UnixAddress::Path(path)) => Some(path),
            _ => None,
        }
    }

    /// Returns true if this is the address of a Unix socket that was never bound. Such a peer
    /// cannot receive replies.
    #[must_use]
    pub fn is_unnamed(&self) -> bool {
        matches!(self, Self::Unix(UnixAddress::Unnamed))
    }

    /// Converts an address that the kernel returned. A missing address belongs to an unnamed Unix
    /// socket.
    pub(crate) fn from_any(any: Option<SocketAddrAny>) -> Self {
        let Some(any) = any else {
            return Self::Unix(UnixAddress::Unnamed);
        };
        if let Ok(inet) = SocketAddr::try_from(any.clone()) {
            return Self::Inet(inet);
        }
        // For a path of 108 bytes, the kernel adds a NUL that exceeds `sockaddr_un`, and does not
        // accept this address as a destination. A peer with such a path cannot receive replies, so
        // it counts as unnamed.
        if any.addr_len() as usize > size_of::<libc::sockaddr_un>() {
            return Self::Unix(UnixAddress::Unnamed);
        }
        match SocketAddrUnix::try_from(any) {
            Ok(unix) => Self::Unix(UnixAddress::from_raw(&unix)),
            Err(_) => Self::Unix(UnixAddress::Unnamed),
        }
    }
}

impl PartialEq<SocketAddr> for Address {
    fn eq(&self, other: &SocketAddr) -> bool {
        self.as_inet() == Some(*other)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(SocketAddr::V6(address)) if address.scope_id() != 0 => {
                match interface(address.scope_id()) {
                    Some(name) => {
                        write!(f, "[{}%", address.ip())?;
                        write_escaped(f, &name)?;
                        write!(f, "]:{}", address.port())
                    }
                    None => address.fmt(f),
                }
            }
            Self::Inet(address) => address.fmt(f),
            Self::Unix(address) => address.fmt(f),
        }
    }
}

/// Returns the name of a network interface. Only link-local addresses have an interface.
fn interface(index: u32) -> Option<String> {
    // `SIOCGIFNAME` works on any socket: netdevice(7).
    let any = socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    );
    netdevice::index_to_name(any.ok()?, index).ok()
}

/// The address of a Unix socket ([unix(7)](https://man7.org/linux/man-pages/man7/unix.7.html)).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum UnixAddress {
    /// A socket that is bound to a file.
    Path(PathBuf),
    /// A socket that is bound to an abstract name (Linux). There is no file and there are no file
    /// permissions.
    Abstract(Vec<u8>),
    /// A socket that was never bound, like most client sockets.
    Unnamed,
}

impl UnixAddress {
    /// Parses an address. A leading `@` marks an abstract name; any other text is a path. Write
    /// `./@name` for a file whose name begins with `@`.
    #[must_use]
    pub fn parse(text: &Path) -> Self {
        match text.as_os_str().as_bytes() {
            [b'@', name @ ..] => Self::Abstract(name.to_vec()),
            path => Self::Path(PathBuf::from(OsStr::from_bytes(path))),
        }
    }

    fn from_raw(raw: &SocketAddrUnix) -> Self {
        match raw.abstract_name() {
            Some([]) => return Self::Unnamed,
            Some(name) => return Self::Abstract(name.to_vec()),
            None => {}
        }
        match raw.path_bytes() {
            // The kernel includes the terminating NUL in the length of a pathname address.
            Some(path) if !path.is_empty() => {
                let path = path.strip_suffix(&[0]).unwrap_or(path);
                Self::Path(PathBuf::from(OsStr::from_bytes(path)))
            }
            _ => Self::Unnamed,
        }
    }

    pub(crate) fn to_raw(&self) -> rustix::io::Result<SocketAddrUnix> {
        match self {
            Self::Path(path) => SocketAddrUnix::new(path.as_path()),
            Self::Abstract(name) => SocketAddrUnix::new_abstract_name(name),
            Self::Unnamed => Ok(SocketAddrUnix::new_unnamed()),
        }
    }
}

impl fmt::Display for UnixAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write_escaped(f, &path.to_string_lossy()),
            Self::Abstract(name) => write!(f, "@{}", name.escape_ascii()),
            Self::Unnamed => f.write_str("unnamed"),
        }
    }
}

/// Writes a text with control characters escaped. A peer chooses its own path, which must not start
/// a new line in a log or control a terminal.
fn write_escaped(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    text.chars().try_for_each(|c| {
        // And what turns the direction of writing, or ends a line: UAX #9, 2; UAX #14.
        let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || turns {
            write!(f, "{}", c.escape_default())
        } else {
            fmt::Write::write_char(f, c)
        }
    })
}

/// The credentials of the peer of a Unix stream socket. The kernel records them at `connect`
/// (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Credentials {
    /// The process id. The kernel can reuse the id, so it is no proof of identity by itself.
    pub pid: u32,
    /// The effective user id.
    pub uid: u32,
    /// The effective group id.
    pub gid: u32,
}

impl Credentials {
    pub(crate) fn of(socket: impl AsFd) -> std::io::Result<Self> {
        let raw = rustix::net::sockopt::socket_peercred(socket)?;
        Ok(Self {
            pid: raw.pid.as_raw_pid().unsigned_abs(),
            uid: raw.uid.as_raw(),
            gid: raw.gid.as_raw(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_writes_the_usual_form() {
        let inet = Address::Inet("[::1]:80".parse().unwrap());
        assert_eq!(inet.to_string(), "[::1]:80");
        let zone = Address::Inet("[fe80::1%1]:80".parse().unwrap());
        assert_eq!(zone.to_string(), "[fe80::1%lo]:80", "the first interface");
        let gone = Address::Inet("[fe80::1%4000000000]:80".parse().unwrap());
        assert_eq!(gone.to_string(), "[fe80::1%4000000000]:80");
        for text in ["/run/a.sock", "@name", "./@file"] {
            assert_eq!(
                Address::Unix(UnixAddress::parse(Path::new(text))).to_string(),
                text
            );
        }
        let control = UnixAddress::Path("/tmp/a\n\x1b[2J".into());
        assert_eq!(control.to_string(), r"/tmp/a\n\u{1b}[2J");
        assert_eq!(Address::from_any(None).to_string(), "unnamed");
        assert!(Address::from_any(None).is_unnamed());
    }

    #[test]
    fn address_survives_conversion_to_the_kernel_form() {
        for text in ["/run/a.sock", "@name", "@with\\x00nul"] {
            let address = UnixAddress::parse(Path::new(text));
            let raw = address.to_raw().unwrap();
            assert_eq!(UnixAddress::from_raw(&raw), address);
        }
        let unnamed = UnixAddress::Unnamed.to_raw().unwrap();
        assert_eq!(UnixAddress::from_raw(&unnamed), UnixAddress::Unnamed);
        let long = UnixAddress::parse(Path::new(&"x".repeat(200)));
        assert!(long.to_raw().is_err(), "sun_path holds 108 bytes");
    }
}
