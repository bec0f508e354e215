//! Certificates and keys from PEM files.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, RootCertStore, ServerConfig};

use super::dates::CertificateDates;
use super::provider;

/// The certificate files of a server, and its requirements for client certificates.
///
/// ```no_run
/// use socketserver::{Tls, TlsIdentity};
///
/// let files = TlsIdentity::new("example.org.pem", "example.org.key")
///     .with_identity("other.example.pem", "other.example.key")
///     .client_ca("clients.pem");
/// let tls = Tls::new(files.load()?);
/// # Ok::<(), socketserver::TlsConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct TlsIdentity {
    identities: Vec<(PathBuf, PathBuf)>,
    client_ca: Option<PathBuf>,
    client_may_be_anonymous: bool,
    protocols: Vec<Vec<u8>>,
}

/// The error of an invalid TLS configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsConfigError {
    /// A file cannot be read, or is not in PEM format.
    #[error("cannot read {what} from {}", path.display())]
    Unreadable {
        /// The expected content.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file does not contain the expected item.
    #[error("there is no {what} in {}: the file must be in PEM format, with BEGIN and END lines", path.display())]
    Missing {
        /// The expected item.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The key is protected by a passphrase, for which a server cannot ask.
    #[error(
        "the private key in {} is encrypted, and a server cannot ask for its passphrase: decrypt it by \
         `openssl pkey -in {} -out FILE`, readable for the server only", path.display(), path.display()
    )]
    Encrypted {
        /// The file.
        path: PathBuf,
    },
    /// The key is another certificate's.
    #[error("the certificate {} and the key {} do not belong together", certificate.display(), key.display())]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// A certificate or a key cannot be used.
    #[error("cannot use the certificate {} with the key {}", certificate.display(), key.display())]
    Unusable {
        /// The certificate file.
        certificate: PathBuf,
        /// The key file.
        key: PathBuf,
        /// The cause.
        source: rustls::Error,
    },
    /// The certificate authority for client certificates cannot be used.
    #[error("cannot verify clients with the authorities in {}: {reason}", path.display())]
    BadAuthority {
        /// The file of the authority.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// The cryptography provider does not support a required feature.
    #[error("cannot set up TLS")]
    Setup(#[source] rustls::Error),
}

impl TlsIdentity {
    /// Creates an identity with one certificate. `certificate` is a file with the chain, the
    /// server's own certificate first. `key` is the file with its private key.
    #[must_use]
    pub fn new(certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        Self {
            identities: vec![(certificate.into(), key.into())],
            client_ca: None,
            client_may_be_anonymous: false,
            protocols: Vec::new(),
        }
    }

    /// Adds a certificate. A client receives the first certificate that has the requested name
    /// (SNI), or otherwise the first of all.
    #[must_use]
    pub fn with_identity(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.identities.push((certificate.into(), key.into()));
        self
    }

    /// Requires a client certificate that one of the authorities in this file has issued, and
    /// rejects clients without one (mutual TLS).
    #[must_use]
    pub fn client_ca(mut self, authorities: impl Into<PathBuf>) -> Self {
        self.client_ca = Some(authorities.into());
        self
    }

    /// Accepts clients without a certificate. A certificate that a client presents must still be
    /// valid.
    #[must_use]
    pub fn anonymous_clients(mut self) -> Self {
        self.client_may_be_anonymous = true;
        self
    }

    /// Sets the application protocols that the server supports (ALPN), in order of preference. A
    /// client that offers only other protocols is rejected. A client that offers no protocol is
    /// accepted.
    #[must_use]
    pub fn protocols(mut self, names: impl IntoIterator<Item = impl Into<Vec<u8>>>) -> Self {
        self.protocols = names.into_iter().map(Into::into).collect();
        self
    }

    /// Returns the validity of the server's own certificates: the first certificate of each file.
    ///
    /// # Errors
    /// See [`TlsConfigError`]; each names the file.
    pub fn dates(&self) -> Result<Vec<CertificateDates>, TlsConfigError> {
        let own = self.identities.iter().map(|(path, _)| {
            let chain = Self::read_certificates(path)?;
            Ok(chain
                .first()
                .and_then(|own| CertificateDates::of(path, own)))
        });
        own.filter_map(Result::transpose).collect()
    }

    /// Reads the certificates in a file.
    ///
    /// # Errors
    /// [`TlsConfigError::Unreadable`] and [`TlsConfigError::Missing`].
    pub fn read_certificates(
        path: impl AsRef<Path>,
    ) -> Result<Vec<CertificateDer<'static>>, TlsConfigError> {
        certificates("a certificate", path.as_ref())
    }

    /// Reads the private key in a file.
    ///
    /// # Errors
    /// [`TlsConfigError::Unreadable`], [`TlsConfigError::Missing`] and [`TlsConfigError::Encrypted`].
    pub fn read_key(path: impl AsRef<Path>) -> Result<PrivateKeyDer<'static>, TlsConfigError> {
        let path = path.as_ref();
        PrivateKeyDer::from_pem_file(path).map_err(|error| match error {
            _ if is_encrypted(path) => TlsConfigError::Encrypted { path: path.into() },
            pem::Error::NoItemsFound => TlsConfigError::Missing {
                what: "private key",
                path: path.into(),
            },
            error => unreadable("a private key", path, error),
        })
    }

    /// Reads the files.
    ///
    /// # Errors
    /// Returns a [`TlsConfigError`] that names the file.
    pub fn load(&self) -> Result<ServerConfig, TlsConfigError> {
        let identities = self
            .identities
            .iter()
            .map(|(certificate, key)| identity(certificate, key))
            .collect::<Result<Vec<_>, _>>()?;
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsConfigError::Setup)?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let invalid = |reason: String| TlsConfigError::BadAuthority {
                    path: path.clone(),
                    reason,
                };
                let mut roots = RootCertStore::empty();
                for authority in certificates("an authority's certificate", path)? {
                    roots
                        .add(authority)
                        .map_err(|error| invalid(error.to_string()))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
                let verifier = if self.client_may_be_anonymous {
                    verifier.allow_unauthenticated()
                } else {
                    verifier
                };
                let verifier = verifier
                    .build()
                    .map_err(|error| invalid(error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(SniResolver(identities)));
        config.alpn_protocols.clone_from(&self.protocols);
        // All supported cipher suites are secure. The server chooses, because a client may have an
        // outdated preference, and an attacker could make it prefer the weakest suite.
        config.ignore_client_order = true;
        // Sessions are resumed by tickets. The client keeps the session state, so that any process
        // can resume the session.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(TlsConfigError::Setup)?;
        Ok(config)
    }
}

fn identity(certificate: &Path, key: &Path) -> Result<Arc<CertifiedKey>, TlsConfigError> {
    let chain = TlsIdentity::read_certificates(certificate)?;
    let private = TlsIdentity::read_key(key)?;
    let made = CertifiedKey::from_der(chain, private, &provider());
    made.map(Arc::new).map_err(|source| match source {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            TlsConfigError::Mismatch {
                certificate: certificate.into(),
                key: key.into(),
            }
        }
        source => TlsConfigError::Unusable {
            certificate: certificate.into(),
            key: key.into(),
            source,
        },
    })
}

fn certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsConfigError> {
    let all = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unreadable(what, path, error))?;
    if all.is_empty() {
        return Err(TlsConfigError::Missing {
            what: "certificate",
            path: path.into(),
        });
    }
    Ok(all)
}

/// Returns true if the key in a file is encrypted. PKCS #8 shows that in the first line, and older
/// forms show it in a field below (RFC 1421).
fn is_encrypted(path: &Path) -> bool {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST_KEY).read_to_end(&mut text));
    let has = |marker: &str| memmem(&text, marker.as_bytes());
    read.is_ok() && (has("-----BEGIN ENCRYPTED PRIVATE KEY-----") || has("Proc-Type: 4,ENCRYPTED"))
}

/// The number of bytes of a file to search for signs of encryption. Key files are shorter.
const LONGEST_KEY: u64 = 64 << 10;

fn memmem(text: &[u8], wanted: &[u8]) -> bool {
    text.windows(wanted.len()).any(|window| window == wanted)
}

fn unreadable(what: &'static str, path: &Path, source: pem::Error) -> TlsConfigError {
    TlsConfigError::Unreadable {
        what,
        path: path.into(),
        source: match source {
            pem::Error::Io(error) => error.into(),
            pem::Error::MissingSectionEnd { end_marker } => {
                let end = String::from_utf8_lossy(&end_marker);
                format!("it is cut off: the line -----END {end}----- is missing").into()
            }
            pem::Error::IllegalSectionStart { line } => {
                let line = String::from_utf8_lossy(&line).trim().to_owned();
                format!("the line {line:?} is not the beginning of anything in PEM format").into()
            }
            pem::Error::Base64Decode(why) => format!(
                "it is damaged: what is between its BEGIN and END lines is not base64 ({why})"
            )
            .into(),
            other => other.into(),
        },
    }
}

/// Selects a certificate by the name that the client requests (SNI).
struct SniResolver(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for SniResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let requested = hello.server_name();
        let found = requested.and_then(|name| self.0.iter().find(|own| has_name(own, name)));
        found.or_else(|| self.0.first()).cloned()
    }
}

fn has_name(own: &CertifiedKey, requested: &str) -> bool {
    let Some(certificate) = own.cert.first() else {
        return false;
    };
    let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else {
        return false;
    };
    certificate
        .valid_dns_names()
        .any(|name| matches(name, requested))
}

/// Returns true if a certificate's name matches the requested name. A `*` stands for one label
/// ([RFC 6125, 6.4.3](https://www.rfc-editor.org/rfc/rfc6125#section-6.4.3)).
fn matches(name: &str, requested: &str) -> bool {
    match name.strip_prefix("*.") {
        None => name.eq_ignore_ascii_case(requested),
        Some(parent) => requested
            .split_once('.')
            .is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(parent)),
    }
}

impl fmt::Debug for SniResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SniResolver").field(&self.0.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcard_matches_exactly_one_label() {
        assert!(matches("example.org", "EXAMPLE.org"));
        assert!(matches("*.example.org", "a.example.org"));
        for other in [
            "example.org",
            "a.b.example.org",
            ".example.org",
            "aexample.org",
        ] {
            assert!(!matches("*.example.org", other), "{other}");
        }
    }
}
