//! Endpoints for servers and clients in text form: `tcp://127.0.0.1:8888`.

use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{fmt, fs, io};

use rustix::fs::{Access, access};
use socketserver::Address;

use crate::connect::unix_address;
use crate::inet;
use crate::service_manager::Socket;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Tcp(String),
    /// TCP with TLS.
    Tls(String),
    Udp(String),
    /// HTTP over TCP, with or without TLS, for browsers only.
    Http(String),
    Https(String),
    /// A path, or an abstract name with a leading `@`.
    Unix(PathBuf),
    Unixgram(PathBuf),
    /// Sockets that a service manager has bound: those with this name, or all.
    Inherited(Option<String>),
}

impl Endpoint {
    /// Returns this endpoint with the address that the server has bound.
    pub(crate) fn bound_to(&self, address: &Address) -> Self {
        // `Address` contains the interface of a link-local address.
        match (self, address.as_inet().map(|_| address)) {
            (Self::Tcp(_), Some(address)) => Self::Tcp(address.to_string()),
            (Self::Tls(_), Some(address)) => Self::Tls(address.to_string()),
            (Self::Udp(_), Some(address)) => Self::Udp(address.to_string()),
            (Self::Http(_), Some(address)) => Self::Http(address.to_string()),
            (Self::Https(_), Some(address)) => Self::Https(address.to_string()),
            // An abstract name is shown with a leading `@`.
            (Self::Unix(_), None) => Self::Unix(address.to_string().into()),
            (Self::Unixgram(_), None) => Self::Unixgram(address.to_string().into()),
            _ => self.clone(),
        }
    }

    /// Returns true if the endpoint uses TLS.
    pub(crate) fn is_encrypted(&self) -> bool {
        matches!(self, Self::Tls(_) | Self::Https(_))
    }

    /// Returns true if a service manager has bound the socket.
    pub(crate) fn is_inherited(&self) -> bool {
        matches!(self, Self::Inherited(_))
    }

    /// Returns `HOST:PORT`, if the endpoint has it.
    pub(crate) fn host_and_port(&self) -> Option<&str> {
        match self {
            Self::Tcp(address)
            | Self::Tls(address)
            | Self::Udp(address)
            | Self::Http(address)
            | Self::Https(address) => Some(address),
            Self::Unix(_) | Self::Unixgram(_) | Self::Inherited(_) => None,
        }
    }

    /// Returns true if clients of the endpoint send datagrams.
    pub(crate) fn is_datagram(&self) -> bool {
        matches!(self, Self::Udp(_) | Self::Unixgram(_))
    }

    /// Looks up the addresses that a server would bind, without binding them. Checks that the name
    /// has an address, and that a socket can be created at the path.
    pub(crate) fn look_up(&self) -> io::Result<Vec<SocketAddr>> {
        match self {
            Self::Tcp(address)
            | Self::Tls(address)
            | Self::Udp(address)
            | Self::Http(address)
            | Self::Https(address) => inet::look_up(address),
            Self::Inherited(_) => Ok(Vec::new()),
            Self::Unix(path) | Self::Unixgram(path) => {
                unix_address(path)?;
                if path.as_os_str().as_bytes().starts_with(b"@") {
                    return Ok(Vec::new());
                }
                let parent = match path.parent() {
                    Some(parent) if parent != Path::new("") => parent,
                    _ => Path::new("."),
                };
                access(parent, Access::WRITE_OK | Access::EXEC_OK)
                    .map_err(|errno| with_path(parent, &errno.into()))?;
                match fs::symlink_metadata(path) {
                    Ok(found) if !found.file_type().is_socket() => Err(io::Error::other(
                        "a file that is not a socket already has this path",
                    )),
                    _ => Ok(Vec::new()),
                }
            }
        }
    }
}

fn with_path(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

impl From<&Socket> for Endpoint {
    /// Returns the kind of the socket, without its address.
    fn from(socket: &Socket) -> Self {
        match socket {
            Socket::Tcp(_) => Self::Tcp(String::new()),
            Socket::Udp(_) => Self::Udp(String::new()),
            Socket::Unix(_) => Self::Unix(PathBuf::new()),
            Socket::Unixgram(_) => Self::Unixgram(PathBuf::new()),
        }
    }
}

/// The error for a text that is not an endpoint.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadEndpoint(&'static str);

impl fmt::Display for BadEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for BadEndpoint {}

impl FromStr for Endpoint {
    type Err = BadEndpoint;

    fn from_str(text: &str) -> Result<Self, BadEndpoint> {
        let parse = || {
            match text.split_once(':') {
                None if text == "systemd" => return Ok(Self::Inherited(None)),
                Some(("systemd", name)) if !name.is_empty() && !name.starts_with('/') => {
                    return Ok(Self::Inherited(Some(name.into())));
                }
                _ => {}
            }
            let (scheme, rest) = text.split_once("://").ok_or(FORMS)?;
            match scheme {
                "tcp" => host_and_port(rest).map(Self::Tcp),
                "tls" => host_and_port(rest).map(Self::Tls),
                "udp" => host_and_port(rest).map(Self::Udp),
                "unix" => path(rest).map(Self::Unix),
                "unixgram" => path(rest).map(Self::Unixgram),
                _ => Err(FORMS),
            }
        };
        parse().map_err(BadEndpoint)
    }
}

const FORMS: &str = "write tcp://HOST:PORT, tls://HOST:PORT, udp://HOST:PORT, unix:///path, unix://@name, \
                     unixgram:///path or unixgram://@name";

/// Parses the endpoint for browsers: `http://HOST:PORT` or `https://HOST:PORT`.
pub(crate) fn web(text: &str) -> Result<Endpoint, String> {
    // Browsers show URLs with a trailing slash, and users copy it.
    let text = text.strip_suffix('/').unwrap_or(text);
    let parsed = match text.split_once("://") {
        Some(("http", rest)) => host_and_port(rest).map(Endpoint::Http),
        Some(("https", rest)) => host_and_port(rest).map(Endpoint::Https),
        _ => Err("write http://HOST:PORT or https://HOST:PORT"),
    };
    parsed.map_err(ToOwned::to_owned)
}

fn host_and_port(text: &str) -> Result<String, &'static str> {
    let (host, port) = text
        .rsplit_once(':')
        .ok_or("the port is missing: write HOST:PORT, such as 127.0.0.1:8888")?;
    if host.is_empty() {
        return Err("the host is missing: 127.0.0.1 is this machine only, 0.0.0.0 all interfaces");
    }
    if host.contains(':') && !host.starts_with('[') {
        return Err("an IPv6 address is written in brackets, as in tcp://[::1]:8888");
    }
    if port.parse::<u16>().is_err() {
        return Err("the port must be a number from 0 to 65535");
    }
    Ok(text.into())
}

fn path(text: &str) -> Result<PathBuf, &'static str> {
    if text.is_empty() {
        return Err("the path is missing: write unix:///path, or unix://@name");
    }
    Ok(Path::new(text).into())
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Tls(address) => write!(f, "tls://{address}"),
            Self::Udp(address) => write!(f, "udp://{address}"),
            Self::Http(address) => write!(f, "http://{address}"),
            Self::Https(address) => write!(f, "https://{address}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Unixgram(path) => write!(f, "unixgram://{}", path.display()),
            Self::Inherited(None) => f.write_str("systemd"),
            Self::Inherited(Some(name)) => write!(f, "systemd:{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_returns_the_parsed_text() {
        for text in [
            "tcp://127.0.0.1:8888",
            "tcp://[::1]:0",
            "tcp://localhost:80",
            "tls://localhost:443",
            "udp://0.0.0.0:53",
            "unix:///run/a.sock",
            "unix://@name",
            "unix://relative.sock",
            "unixgram:///run/a.sock",
            "systemd",
            "systemd:web",
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn parse_errors_contain_advice() {
        for (text, advice) in [
            ("", "tcp://HOST:PORT"),
            ("8888", "tcp://HOST:PORT"),
            ("http://localhost:80", "tcp://HOST:PORT"),
            ("tcp://127.0.0.1", "port is missing"),
            ("tcp://:80", "host is missing"),
            ("tcp://localhost:http", "number"),
            ("tcp://localhost:65536", "number"),
            ("udp://::1:53", "brackets"),
            ("unix://", "path is missing"),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.contains(advice), "{text}: {error}");
        }
    }

    #[test]
    fn web_accepts_urls_of_browsers() {
        for text in ["http://127.0.0.1:8000", "https://[::1]:443"] {
            assert_eq!(web(text).unwrap().to_string(), text);
        }
        let slash = web("http://localhost:80/").unwrap();
        assert_eq!(slash, Endpoint::Http("localhost:80".into()));
        for (text, advice) in [
            ("tcp://127.0.0.1:80", "https://HOST:PORT"),
            ("127.0.0.1:80", "https://HOST:PORT"),
            ("http://localhost", "port is missing"),
            ("http://localhost:80/chat", "number"),
        ] {
            let error = web(text).unwrap_err();
            assert!(error.contains(advice), "{text}: {error}");
        }
    }

    #[test]
    fn bound_to_shows_the_bound_port() {
        let bound = Address::Inet("127.0.0.1:4711".parse().unwrap());
        let asked: Endpoint = "udp://localhost:0".parse().unwrap();
        assert_eq!(asked.bound_to(&bound).to_string(), "udp://127.0.0.1:4711");
    }
}
