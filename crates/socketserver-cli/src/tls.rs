//! Encryption: what a server shows and asks for, and what a client trusts.

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

/// How tls:// endpoints are served.
#[derive(Debug, Args)]
#[command(next_help_heading = "TLS")]
pub(crate) struct ServerTls {
    /// The certificate for tls:// endpoints and those that lead to its authority, in PEM format; may
    /// be given several times: clients get the one that has the name they ask for
    #[arg(long = "tls-cert", value_name = "FILE")]
    certificates: Vec<PathBuf>,

    /// The private key of the certificate; as many as there are certificates, in the same order
    #[arg(long = "tls-key", value_name = "FILE")]
    keys: Vec<PathBuf>,

    /// Only let in clients with a certificate of an authority in this file
    #[arg(long = "tls-client-ca", value_name = "FILE")]
    client_ca: Option<PathBuf>,

    /// How long a client may take for the TLS handshake
    #[arg(
        long = "tls-timeout",
        value_name = "DURATION",
        default_value = "10s",
        value_parser = humantime::parse_duration
    )]
    timeout: Duration,

    /// How many TLS handshakes may be under way at once; who comes then is closed
    #[arg(long = "tls-handshakes", value_name = "N", default_value_t = 1024)]
    handshakes: u32,

    /// The protocols that the program speaks (ALPN), the best first. A client that offers others only
    /// is refused; with none, no offer is looked at.
    #[arg(skip)]
    pub(crate) protocols: &'static [&'static str],
}

/// What a server of HTTP speaks, by the names that IANA has registered (RFC 7301).
pub(crate) const HTTP: &[&str] = &["http/1.1", "http/1.0"];

impl ServerTls {
    /// Refuses what does not go together.
    pub(crate) fn check<'a>(
        &self,
        mut endpoints: impl Iterator<Item = &'a Endpoint>,
    ) -> Result<(), UsageError> {
        let encrypted = endpoints.find(|endpoint| endpoint.is_encrypted());
        match encrypted {
            Some(endpoint) if self.certificates.is_empty() => Err(UsageError(format!(
                "{endpoint} needs a certificate: give --tls-cert FILE and --tls-key FILE, or make \
                 them for a try by `socketserver cert localhost`"
            ))),
            None if !self.certificates.is_empty() => Err(UsageError(
                "--tls-cert is given, and nothing is encrypted: use --listen tls://HOST:PORT"
                    .into(),
            )),
            _ if self.certificates.len() != self.keys.len() => Err(UsageError(format!(
                "there are {} of --tls-cert and {} of --tls-key: each certificate has a key",
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

    /// Whether clients have to show who they are.
    pub(crate) fn knows_clients(&self) -> bool {
        self.client_ca.is_some()
    }

    /// What is in the files, as far as they are good.
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

    /// The same for a server that is running: reads the files, and returns what puts them in force.
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

/// Of all endpoints of a server.
pub(crate) fn of(options: &ServerOptions) -> anyhow::Result<Option<Tls>> {
    options.tls.check(options.listening())?;
    options.tls.load().context("cannot start")
}

/// Whom a client trusts, and what it shows of itself.
#[derive(Debug, Args)]
#[command(next_help_heading = "TLS")]
pub(crate) struct ClientTls {
    /// The authorities that the certificate of a tls:// server may be of, in PEM format [default:
    /// those of /etc/ssl/certs/ca-certificates.crt]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,

    /// The certificate to show to the server, if it asks for one
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,

    /// Its private key
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,

    /// The name that the server's certificate must have [default: the host of the endpoint]
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
}

/// Where distributions keep the authorities that they trust.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

impl ClientTls {
    /// Shakes hands with a server that is known as `HOST:PORT`.
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
                .context("no TLS with this server")?;
        }
        Ok(stream)
    }

    /// For somebody who shakes hands himself.
    pub(crate) fn client(
        &self,
        address: &str,
    ) -> anyhow::Result<(ClientConfig, ServerName<'static>)> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        // A zone means something on this machine only, and no certificate has one.
        let host = host.split_once('%').map_or(host, |(ip, _)| ip);
        let name = self.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned())
            .with_context(|| format!("{name} is no name that a certificate can have"))?;
        Ok((self.config()?, name))
    }

    fn config(&self) -> anyhow::Result<ClientConfig> {
        let path = self.ca.clone().unwrap_or_else(|| AUTHORITIES.into());
        let mut roots = RootCertStore::empty();
        let authorities = TlsIdentity::read_certificates(&path);
        for certificate in authorities.context("no authority can be trusted: give --ca FILE")? {
            // A distribution's collection may have some that are good for nothing here.
            let _ = roots.add(certificate);
        }
        if roots.is_empty() {
            bail!(
                "there is no certificate of an authority in {}",
                path.display()
            );
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

/// The plain end of an encrypted connection, for somebody who waits for descriptors. What passes is
/// carried by a thread of its own.
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
        // Whatever went wrong, the other end sees that no more comes.
        if let Err(error) = carrier.carry() {
            tracing::debug!(%error, "the encrypted connection is gone");
        }
    })?;
    Ok(ours)
}

struct TlsTunnel {
    tls: ClientConnection,
    wire: TcpStream,
    plain: UnixStream,
    /// Decrypted, and not yet taken.
    received: Vec<u8>,
    /// No more will be sent.
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

    /// Whether the server has ended.
    fn decrypt(&mut self) -> io::Result<bool> {
        // What the reader of this end does not take holds the server up, and no memory.
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
        // A hang-up is reported even if nobody asks, again and again.
        if !plain.is_empty() {
            fds.push(PollFd::from_borrowed_fd(self.plain.as_fd(), plain));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
