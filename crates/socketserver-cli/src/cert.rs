//! `cert`: an authority and certificates for trying things out.

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

/// Browsers take none that is valid for longer than 398 days.
const VALID: Duration = Duration::from_secs(397 * 24 * 60 * 60);
/// The authority lasts for longer than what it has issued.
const AUTHORITY_VALID: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Make a certificate authority and certificates for trying TLS out
///
/// Writes NAME.pem and NAME.key for each name, for servers and clients alike, issued by the authority in
/// ca.pem and ca.key, which is made with the first call. They are valid for 397 days, the authority for ten
/// years. Who trusts that authority trusts whoever has
/// its key: keep this for development.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Names of hosts, IP addresses, or names of clients
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,

    /// Where the files are
    #[arg(long, short = 'd', value_name = "DIR", default_value = ".")]
    dir: PathBuf,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let authority = authority(&options.dir)?;
    for name in &options.names {
        if name.is_empty() || name == "ca" || name.contains('/') {
            bail!("{name:?} is no name for a certificate: it becomes a file, and `ca` is taken");
        }
        let mut params = CertificateParams::new(vec![name.clone()])
            .with_context(|| format!("{name} is no name of a host, and no IP address"))?;
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
        tell(&file("pem"));
        tell(&file("key"));
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
            // What it issues refers to its name, which is always the same, and to its key.
            Ok(Issuer::new(params, key))
        }
        (Err(a), Err(b)) if [&a, &b].iter().all(|e| e.kind() == ErrorKind::NotFound) => {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
            let key = KeyPair::generate().context("cannot make a key")?;
            let own = params.self_signed(&key);
            let own = own.context("cannot make an authority")?;
            write_secret(&secret, &key.serialize_pem())?;
            write(&certificate, &own.pem())?;
            tell(&certificate);
            tell(&secret);
            Ok(Issuer::new(params, key))
        }
        (own, key) => {
            let missing = own.err().map(|error| (&certificate, error));
            let missing = missing.or_else(|| Some((&secret, key.err()?)));
            let (path, error) = missing.context("one of them is missing")?;
            Err(error).with_context(|| {
                format!(
                    "an authority is a certificate and a key, and {} cannot be read: remove the \
                     other to make a new one",
                    path.display()
                )
            })
        }
    }
}

/// From an hour ago: clocks differ.
fn be_valid(params: &mut CertificateParams, time: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - Duration::from_secs(60 * 60)).into();
    params.not_after = (now + time).into();
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    write_anew(path, text, 0o666)
}

/// Readable by nobody else, from the beginning.
fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    write_anew(path, text, 0o600)
}

/// Makes a new file, with this mode less the umask. A link that another user has put at a name which
/// can be foreseen is replaced, and not followed.
fn write_anew(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let write = || {
        // One that others can read already would stay so.
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

fn tell(path: &Path) {
    // Somebody may not want to know.
    let _ = writeln!(std::io::stdout(), "{}", path.display());
}
