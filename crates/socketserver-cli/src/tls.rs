//! TLS options: the identity of a server and the clients that it accepts, and the trust of a
//! client.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use rustix::event::{PollFd, PollFlags, poll};
use socketserver::rustls::pki_types::ServerName;
use socketserver::rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto::ring,
};
use socketserver::{Tls, TlsConfigError, TlsIdentity};

use crate::cli::{ServerOptions, UsageError};
use crate::endpoint::Endpoint;

/// The options of `tls://` endpoints.
#[derive(Debug, Args)]
#[command(next_help_heading = "TLS")]
pub(crate) struct ServerTls {
    /// File with the server's certificate and the certificates of its issuers, in PEM format; may
    /// be given several times: a client gets the certificate for the host name that it requests
    #[arg(long = "tls-cert", value_name = "FILE")]
    certificates: Vec<PathBuf>,

    /// File with the private key of the certificate; give one for each --tls-cert, in the same
    /// order
    #[arg(long = "tls-key", value_name = "FILE")]
    keys: Vec<PathBuf>,

    /// Accept only clients with a certificate from an authority in this file
    #[arg(long = "tls-client-ca", value_name = "FILE")]
    client_ca: Option<PathBuf>,

    /// Maximum time for the TLS handshake
    #[arg(
        long = "tls-timeout",
        value_name = "DURATION",
        default_value = "10s",
        value_parser = humantime::parse_duration
    )]
    timeout: Duration,

    /// Maximum number of TLS handshakes at the same time; further clients are closed
    #[arg(long = "tls-handshakes", value_name = "N", default_value_t = 1024)]
    handshakes: u32,

    /// The protocols of the program (ALPN), in order of preference. A client that offers only other
    /// protocols is rejected. If the list is empty, offers are ignored.
    #[arg(skip)]
    pub(crate) protocols: &'static [&'static str],
}

/// The protocols of an HTTP server, by the names that IANA has registered (RFC 7301).
pub(crate) const HTTP: &[&str] = &["http/1.1", "http/1.0"];

impl ServerTls {
    /// Returns an error if TLS options and endpoints contradict each other.
    pub(crate) fn check<'a>(
        &self,
        mut endpoints: impl Iterator<Item = &'a Endpoint>,
    ) -> Result<(), UsageError> {
        let encrypted = endpoints.find(|endpoint| endpoint.is_encrypted());
        match encrypted {
            Some(endpoint) if self.certificates.is_empty() => Err(UsageError(format!(
                "{endpoint} needs a certificate: give --tls-cert FILE and --tls-key FILE, or create \
                 both for development with `socketserver cert localhost`"
            ))),
            None if !self.certificates.is_empty() => Err(UsageError(
                "--tls-cert is given, but no endpoint uses TLS: use --listen tls://HOST:PORT"
                    .into(),
            )),
            _ if self.certificates.len() != self.keys.len() => Err(UsageError(format!(
                "--tls-cert is given {} times and --tls-key {} times: give one key for each certificate",
                self.certificates.len(),
                self.keys.len()
            ))),
            _ => Ok(()),
        }
    }

    fn files(&self) -> Option<TlsIdentity> {
        let mut pairs = self.certificates.iter().zip(&self.keys);
        let (certificate, key) = pairs.next()?;
        let files = pairs.fold(
            TlsIdentity::new(certificate, key),
            |files, (certificate, key)| files.with_identity(certificate, key),
        );
        let files = files.protocols(self.protocols.iter().copied());
        Some(match &self.client_ca {
            Some(path) => files.client_ca(path),
            None => files,
        })
    }

    /// Returns true if clients must present a certificate.
    pub(crate) fn knows_clients(&self) -> bool {
        self.client_ca.is_some()
    }

    /// Loads the files. Returns an error if one is unusable.
    pub(crate) fn load(&self) -> anyhow::Result<Option<Tls>> {
        let Some(files) = self.files() else {
            return Ok(None);
        };
        let tls = Tls::new(files.load()?)
            .handshake_timeout(self.timeout)
            .max_handshakes(self.handshakes as usize);
        tls.watch_dates(files.dates()?);
        Ok(Some(tls))
    }

    /// Loads the files for a running server, and returns a function that puts them in force.
    pub(crate) fn reload(&self, running: Option<&Tls>) -> anyhow::Result<impl FnOnce() + use<>> {
        let files = self.files();
        let loaded = files.map(|files| Ok::<_, TlsConfigError>((files.load()?, files.dates()?)));
        let fresh = running.cloned().zip(loaded.transpose()?);
        Ok(move || {
            if let Some((running, (config, dates))) = fresh {
                running.reload(config);
                running.watch_dates(dates);
            }
        })
    }
}

/// Loads the TLS setup of all endpoints of a server.
pub(crate) fn of(options: &ServerOptions) -> anyhow::Result<Option<Tls>> {
    options.tls.check(options.listening())?;
    options.tls.load().context("cannot start")
}

/// The trust of a client in servers, and the client's own certificate.
#[derive(Debug, Args)]
#[command(next_help_heading = "TLS")]
pub(crate) struct ClientTls {
    /// File with the authorities to trust for tls:// servers, in PEM format [default:
    /// /etc/ssl/certs/ca-certificates.crt]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,

    /// File with the certificate to present if the server asks for one
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,

    /// File with the private key of that certificate
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,

    /// Name that the server's certificate must contain [default: the host of the endpoint]
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
}

/// The file in which distributions keep trusted authorities.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

impl ClientTls {
    /// Performs the TLS handshake with a server at `HOST:PORT`.
    pub(crate) fn encrypt(
        &self,
        stream: TcpStream,
        address: &str,
    ) -> anyhow::Result<StreamOwned<ClientConnection, TcpStream>> {
        let (config, name) = self.client(address)?;
        let state = ClientConnection::new(Arc::new(config), name)?;
        let mut stream = StreamOwned::new(state, stream);
        while stream.conn.is_handshaking() {
            stream
                .conn
                .complete_io(&mut stream.sock)
                .context("TLS handshake failed")?;
        }
        Ok(stream)
    }

    /// Creates the TLS state for a caller that performs the handshake itself.
    pub(crate) fn client(
        &self,
        address: &str,
    ) -> anyhow::Result<(ClientConfig, ServerName<'static>)> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        // A zone has a meaning only on this machine, so certificates contain none.
        let host = host.split_once('%').map_or(host, |(ip, _)| ip);
        let name = self.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned())
            .with_context(|| format!("{name} is not a valid name for a certificate"))?;
        Ok((self.config()?, name))
    }

    fn config(&self) -> anyhow::Result<ClientConfig> {
        let path = self.ca.clone().unwrap_or_else(|| AUTHORITIES.into());
        let mut roots = RootCertStore::empty();
        let authorities = TlsIdentity::read_certificates(&path);
        for certificate in authorities.context("no authority can be trusted: give --ca FILE")? {
            // A collection of a distribution may contain certificates that are unusable here.
            let _ = roots.add(certificate);
        }
        if roots.is_empty() {
            bail!("no certificate of an authority found in {}", path.display());
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let (Some(certificate), Some(key)) = (&self.cert, &self.key) else {
            return Ok(builder.with_no_client_auth());
        };
        let chain = TlsIdentity::read_certificates(certificate)?;
        let private = TlsIdentity::read_key(key)?;
        let config = builder.with_client_auth_cert(chain, private);
        config.with_context(|| format!("cannot use the certificate {}", certificate.display()))
    }
}

/// Returns the plain end of an encrypted connection, for a caller that waits on descriptors. A
/// separate thread carries the data.
pub(crate) fn plain_end(
    encrypted: StreamOwned<ClientConnection, TcpStream>,
) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    encrypted.sock.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    thread::Builder::new().name("tls".into()).spawn(move || {
        let StreamOwned { conn, sock } = encrypted;
        let mut carrier = TlsTunnel {
            tls: conn,
            wire: sock,
            plain: theirs,
            received: Vec::new(),
            plain_ended: false,
        };
        // After any error, the other end sees the end of the data.
        if let Err(error) = carrier.carry() {
            tracing::debug!(%error, "the encrypted connection has ended");
        }
    })?;
    Ok(ours)
}

struct TlsTunnel {
    tls: ClientConnection,
    wire: TcpStream,
    plain: UnixStream,
    /// True if the plain end sends no more.
    received: Vec<u8>,
    /// True if the plain end sends no more.
    plain_ended: bool,
}

impl TlsTunnel {
    fn carry(&mut self) -> io::Result<()> {
        let mut wire_ended = false;
        loop {
            self.encrypt()?;
            wire_ended |= self.decrypt()?;
            if !self.received.is_empty() {
                match self.plain.write(&self.received) {
                    Ok(n) => drop(self.received.drain(..n)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            if wire_ended && self.received.is_empty() {
                return Ok(());
            }
            self.wait()?;
        }
    }

    fn encrypt(&mut self) -> io::Result<()> {
        let mut some = [0; 16 << 10];
        while !self.plain_ended && !self.tls.wants_write() {
            match self.plain.read(&mut some) {
                Ok(0) => {
                    self.plain_ended = true;
                    self.tls.send_close_notify();
                }
                Ok(n) => self.tls.writer().write_all(&some[..n])?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.wire) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Decrypts received data. Returns true if the server has ended its side.
    fn decrypt(&mut self) -> io::Result<bool> {
        // A slow reader of the plain end slows down the server, and uses no further memory.
        while self.received.len() < 64 << 10 {
            let mut some = [0; 16 << 10];
            match self.tls.reader().read(&mut some) {
                Ok(0) => return Ok(true),
                Ok(n) => {
                    self.received.extend_from_slice(&some[..n]);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            match self.tls.read_tls(&mut self.wire) {
                Ok(_) => {
                    let seen = self.tls.process_new_packets();
                    seen.map_err(io::Error::other)?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    fn wait(&self) -> io::Result<()> {
        let mut wire = PollFlags::empty();
        let mut plain = PollFlags::empty();
        wire.set(PollFlags::IN, self.received.len() < 64 << 10);
        wire.set(PollFlags::OUT, self.tls.wants_write());
        plain.set(PollFlags::IN, !self.plain_ended && !self.tls.wants_write());
        plain.set(PollFlags::OUT, !self.received.is_empty());
        let mut fds = vec![PollFd::from_borrowed_fd(self.wire.as_fd(), wire)];
        // poll(2) reports a hang-up even if no event is requested, at every call.
        if !plain.is_empty() {
            fds.push(PollFd::from_borrowed_fd(self.plain.as_fd(), plain));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
