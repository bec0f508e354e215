//! `cert`: a certificate authority and certificates for development.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::Args;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// The validity of a certificate. Browsers reject certificates that are valid for longer than 398
/// days.
const VALID: Duration = Duration::from_secs(397 * 24 * 60 * 60);
/// The validity of the authority, which exceeds that of its certificates.
const AUTHORITY_VALID: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Create a certificate authority and certificates to try TLS
///
/// Writes NAME.pem and NAME.key for each name, for servers and clients. The authority in ca.pem and
/// ca.key issues them; the first call creates it. Certificates are valid for 397 days, the
/// authority for ten years. A program that trusts the authority trusts every owner of the key in
/// ca.key, so use it for development only.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Host names, IP addresses, or names of clients
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,

    /// Directory of the files
    #[arg(long, short = 'd', value_name = "DIR", default_value = ".")]
    dir: PathBuf,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let authority = authority(&options.dir)?;
    for name in &options.names {
        if name.is_empty() || name == "ca" || name.contains('/') {
            bail!(
                "{name:?} cannot name a certificate: it must be usable as a file name other than `ca`"
            );
        }
        let mut params = CertificateParams::new(vec![name.clone()])
            .with_context(|| format!("{name} is neither a host name nor an IP address"))?;
        params.distinguished_name.push(DnType::CommonName, name);
        be_valid(&mut params, VALID);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().context("cannot make a key")?;
        let certificate = params
            .signed_by(&key, &authority)
            .context("cannot issue a certificate")?;
        let file = |extension| options.dir.join(format!("{name}.{extension}"));
        write_secret(&file("key"), &key.serialize_pem())?;
        write(&file("pem"), &certificate.pem())?;
        announce(&file("pem"));
        announce(&file("key"));
    }
    Ok(ExitCode::SUCCESS)
}

fn authority(dir: &Path) -> anyhow::Result<Issuer<'static, KeyPair>> {
    let (certificate, secret) = (dir.join("ca.pem"), dir.join("ca.key"));
    let mut params = CertificateParams::new(Vec::new())?;
    params
        .distinguished_name
        .push(DnType::CommonName, "socketserver development authority");
    be_valid(&mut params, AUTHORITY_VALID);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    match (fs::metadata(&certificate), fs::read_to_string(&secret)) {
        (Ok(_), Ok(key)) => {
            let key = KeyPair::from_pem(&key);
            let key = key.with_context(|| format!("cannot use {}", secret.display()))?;
            // Issued certificates refer to the authority's name, which is constant, and to its key.
            Ok(Issuer::new(params, key))
        }
        (Err(a), Err(b)) if [&a, &b].iter().all(|e| e.kind() == ErrorKind::NotFound) => {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
            let key = KeyPair::generate().context("cannot make a key")?;
            let own = params.self_signed(&key);
            let own = own.context("cannot make an authority")?;
            write_secret(&secret, &key.serialize_pem())?;
            write(&certificate, &own.pem())?;
            announce(&certificate);
            announce(&secret);
            Ok(Issuer::new(params, key))
        }
        (own, key) => {
            let missing = own.err().map(|error| (&certificate, error));
            let missing = missing.or_else(|| Some((&secret, key.err()?)));
            let (path, error) = missing.context("one of them is missing")?;
            Err(error).with_context(|| {
                format!(
                    "an authority is a certificate and a key, and {} cannot be read: remove the \
                     other file to create a new authority",
                    path.display()
                )
            })
        }
    }
}

/// Makes a certificate valid from an hour ago, because clocks differ.
fn be_valid(params: &mut CertificateParams, time: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - Duration::from_secs(60 * 60)).into();
    params.not_after = (now + time).into();
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    replace_file(path, text, 0o666)
}

/// Writes a file that only its owner can read, from its creation on.
fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    replace_file(path, text, 0o600)
}

/// Creates a new file with this mode less the umask. Replaces a link that another user has created
/// under this name, and does not follow it.
fn replace_file(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let write = || {
        // An existing file would keep its permissions.
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

fn announce(path: &Path) {
    // An error on stdout does not matter: the file exists.
    let _ = writeln!(std::io::stdout(), "{}", path.display());
}
