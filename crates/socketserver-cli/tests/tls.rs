//! Tests of encrypted endpoints with our own clients, openssl and curl, under every model.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::fs;
use std::io;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use ::socketserver::rustls;
use common::{MODELS, PATIENCE, Server, connect, run, socketserver, text};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

/// Creates an authority and its certificates for these names.
fn certificates(names: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let made = socketserver()
        .arg("cert")
        .args(names)
        .arg("--dir")
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", text(&made.stderr));
    dir
}

fn path(dir: &Path, name: &str) -> String {
    dir.join(name).into_os_string().into_string().unwrap()
}

struct Files {
    dir: tempfile::TempDir,
    cert: String,
    key: String,
    ca: String,
}

fn files() -> Files {
    let dir = certificates(&["127.0.0.1", "somebody"]);
    let of = |name| path(dir.path(), name);
    Files {
        cert: of("127.0.0.1.pem"),
        key: of("127.0.0.1.key"),
        ca: of("ca.pem"),
        dir,
    }
}

impl Files {
    fn serve(&self, more: &[&str]) -> Server {
        let mut args = vec![more[0], "-l", "tls://127.0.0.1:0"];
        args.extend(["--tls-cert", &self.cert, "--tls-key", &self.key]);
        args.extend(&more[1..]);
        Server::start(&args, 1)
    }
}

#[test]
fn lines_are_answered_under_every_model() {
    let files = files();
    for model in MODELS {
        let mut server = files.serve(&["upper", "-c", model]);
        assert!(server.endpoints[0].starts_with("tls://127.0.0.1:"));
        let output = connect(
            &[&server.endpoints[0], "--ca", &files.ca],
            b"hello\nworld\n",
        );
        assert_eq!(
            text(&output.stdout),
            "HELLO\nWORLD\n",
            "{model} {}",
            text(&output.stderr)
        );
        assert!(output.status.success());
        // The cases are a wrong authority, a wrong name, and no TLS.
        let other = certificates(&["x"]);
        let output = connect(
            &[&server.endpoints[0], "--ca", &path(other.path(), "ca.pem")],
            b"a\n",
        );
        assert!(!output.status.success());
        assert!(
            text(&output.stderr).contains("TLS handshake failed"),
            "{}",
            text(&output.stderr)
        );
        let args = [
            &*server.endpoints[0],
            "--ca",
            &files.ca,
            "--server-name",
            "other.example",
        ];
        let output = connect(&args, b"a\n");
        assert!(
            text(&output.stderr).contains("not valid for name"),
            "{}",
            text(&output.stderr)
        );
        let plain = server.endpoints[0].replace("tls://", "tcp://");
        let output = connect(&[&plain], b"hello\n");
        assert!(!text(&output.stdout).contains("HELLO"));
        server.signal("TERM");
        assert!(server.wait().success(), "{model}");
    }
}

/// Offers protocols in a handshake. Returns the protocol that the server has chosen, or the error
/// of the handshake.
fn negotiate(files: &Files, server: &Server, offered: &[&str]) -> io::Result<Option<Vec<u8>>> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(&files.ca).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = offered.iter().map(|name| name.as_bytes().into()).collect();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = TcpStream::connect(server.address(0)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    while client.is_handshaking() {
        client.complete_io(&mut stream)?;
    }
    Ok(client.alpn_protocol().map(<[u8]>::to_vec))
}

/// RFC 7301, 3.2: a client without a common protocol gets the alert no_application_protocol.
#[test]
fn http_is_chosen_and_http_2_alone_is_refused() {
    let files = files();
    let dir = tempfile::tempdir().unwrap();
    let root = path(dir.path(), "");
    for model in MODELS {
        let server = files.serve(&["http", &root, "-c", model]);
        for (offered, chosen) in [
            (&["http/1.1"][..], Some("http/1.1")),
            (&["h2", "http/1.1"], Some("http/1.1")),
            (&["http/1.0", "http/1.1"], Some("http/1.1")),
            (&["http/1.0"], Some("http/1.0")),
            (&[], None),
        ] {
            let got = negotiate(&files, &server, offered).unwrap();
            let got = got.as_deref().map(text);
            assert_eq!(got.as_deref(), chosen, "{model} {offered:?}");
        }
        let error = negotiate(&files, &server, &["h2"]).unwrap_err().to_string();
        assert!(error.contains("NoApplicationProtocol"), "{model}: {error}");
    }
    // The web server of `chat` rejects HTTP/2 alone, too. A server without HTTP negotiates no
    // protocol.
    let args = ["chat", "-c", "threading", "--web", "https://127.0.0.1:0"];
    let chat = files.serve(&args);
    assert!(negotiate(&files, &chat, &["h2"]).is_err());
    let upper = files.serve(&["upper"]);
    assert_eq!(negotiate(&files, &upper, &["h2"]).unwrap(), None);
}

#[test]
fn openssl_agrees() {
    let files = files();
    let server = files.serve(&["echo", "--framing", "lines"]);
    let mut openssl = Command::new("openssl");
    let args = [
        "s_client",
        "-quiet",
        "-verify_return_error",
        "-CAfile",
        &files.ca,
    ];
    openssl.args(args).arg("-connect");
    // openssl stays until the server closes the connection.
    let Some(output) = run(&mut openssl, [server.address(0)], b"hello\nquit\n") else {
        return;
    };
    let said = text(&output.stdout);
    assert!(
        said.ends_with(" hello\n"),
        "{said} {}",
        text(&output.stderr)
    );
}

#[test]
fn who_has_a_certificate_may_run_commands() {
    let files = files();
    // The endpoint is open to other machines and has no token.
    let args = [
        "command",
        "-l",
        "tls://0.0.0.0:0",
        "--tls-cert",
        &files.cert,
        "--tls-key",
        &files.key,
    ];
    let refused = socketserver().args(args).output().unwrap();
    assert!(
        text(&refused.stderr).contains("--tls-client-ca"),
        "{}",
        text(&refused.stderr)
    );
    let server = Server::start(&[&args[..], &["--tls-client-ca", &files.ca]].concat(), 1);
    let port = server.address(0).rsplit_once(':').unwrap().1;
    let endpoint = format!("tls://127.0.0.1:{port}");
    let (cert, key) = (
        path(files.dir.path(), "somebody.pem"),
        path(files.dir.path(), "somebody.key"),
    );
    let client = |more: &[&str]| {
        let args = [
            &[
                "command-client",
                &endpoint,
                "--ca",
                &files.ca,
                "-c",
                "echo $((6 * 7))",
            ],
            more,
        ]
        .concat();
        socketserver().args(args).output().unwrap()
    };
    let known = client(&["--cert", &cert, "--key", &key]);
    assert_eq!(text(&known.stdout), "42\n", "{}", text(&known.stderr));
    let stranger = client(&[]);
    assert!(!stranger.status.success());
    assert_eq!(text(&stranger.stdout), "");
}

#[test]
fn certificates_are_renewed_by_a_reload() {
    let files = files();
    let config = path(files.dir.path(), "config.toml");
    fs::write(&config, "").unwrap();
    for model in MODELS {
        let server = files.serve(&["upper", "-c", model, "--config", &config]);
        let asks = |ca: &str| {
            let output = connect(&[&server.endpoints[0], "--ca", ca], b"hello\n");
            text(&output.stdout) == "HELLO\n"
        };
        assert!(asks(&files.ca), "{model}");
        // The renewed files are from another authority and have the same names.
        let renewed = certificates(&["127.0.0.1"]);
        let kept = [&files.cert, &files.key].map(|file| (file, fs::read(file).unwrap()));
        fs::write(&files.cert, "no certificate").unwrap();
        server.signal("HUP");
        server.logged("not reloaded");
        assert!(asks(&files.ca), "{model}: everything stays as it was");
        for name in ["127.0.0.1.pem", "127.0.0.1.key"] {
            fs::copy(renewed.path().join(name), files.dir.path().join(name)).unwrap();
        }
        server.signal("HUP");
        server.logged("reloaded");
        assert!(asks(&path(renewed.path(), "ca.pem")), "{model}");
        assert!(!asks(&files.ca), "{model}");
        for (file, bytes) in kept {
            fs::write(file, bytes).unwrap();
        }
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    let files = files();
    for (args, says) in [
        (vec!["-l", "tls://127.0.0.1:0"], "socketserver cert"),
        (
            vec![
                "-l",
                "tcp://127.0.0.1:0",
                "--tls-cert",
                "a",
                "--tls-key",
                "b",
            ],
            "no endpoint uses TLS",
        ),
        (
            vec!["-l", "tls://127.0.0.1:0", "--tls-cert", "a"],
            "one key for each certificate",
        ),
    ] {
        let output = socketserver().arg("upper").args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(
            text(&output.stderr).contains(says),
            "{}",
            text(&output.stderr)
        );
    }
    let missing = [
        "upper",
        "-l",
        "tls://127.0.0.1:0",
        "--tls-cert",
        "/none.pem",
        "--tls-key",
        &files.key,
    ];
    let output = socketserver().args(missing).output().unwrap();
    assert!(
        text(&output.stderr).contains("/none.pem"),
        "{}",
        text(&output.stderr)
    );
    let output = socketserver()
        .args(missing)
        .arg("--check-config")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}

/// Creates a certificate for 127.0.0.1 and its key. The arguments set the age in days and the
/// lifetime in days.
fn issue(dir: &Path, begins_days_ago: i64, lasts_days: i64) -> [String; 2] {
    const DAY: u64 = 24 * 60 * 60;
    let then = |days: i64| {
        let now = std::time::SystemTime::now();
        let far = std::time::Duration::from_secs(days.unsigned_abs() * DAY + 60);
        if days < 0 { now - far } else { now + far }
    };
    let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
    params.not_before = then(-begins_days_ago).into();
    params.not_after = then(lasts_days - begins_days_ago).into();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let paths = [path(dir, "own.pem"), path(dir, "own.key")];
    fs::write(&paths[0], certificate.pem()).unwrap();
    fs::write(&paths[1], key.serialize_pem()).unwrap();
    paths
}

/// Each error is one sentence, which names the file and names the cause once.
#[test]
fn bad_files_are_told_in_one_sentence() {
    let files = files();
    let of = |name| path(files.dir.path(), name);
    let write = |name, text: &str| {
        fs::write(of(name), text).unwrap();
        of(name)
    };
    let good = fs::read_to_string(&files.cert).unwrap();
    let cut = write("cut.pem", &good[..good.len() / 2]);
    let damaged = write("damaged.pem", &good.replacen("MII", "M?I", 1));
    let begin = write("begin.pem", "-----BEGIN CERTIFICATE\nAAAA\n");
    let encrypted = write(
        "encrypted.key",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    let legacy = write(
        "legacy.key",
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nMAA=\n\
         -----END RSA PRIVATE KEY-----\n",
    );
    let other = of("somebody.key");
    let empty = write("empty.pem", "");
    let gone = of("none.pem");
    for (cert, key, says) in [
        (
            &cut,
            &files.key,
            "it is cut off: the line -----END CERTIFICATE----- is missing",
        ),
        (&files.cert, &cut, "it is cut off"),
        (&damaged, &files.key, "it is damaged"),
        (
            &begin,
            &files.key,
            "the line \"-----BEGIN CERTIFICATE\" is not the beginning",
        ),
        (
            &files.cert,
            &encrypted,
            "is encrypted, and a server cannot ask for its passphrase",
        ),
        (
            &files.cert,
            &legacy,
            "is encrypted, and a server cannot ask for its passphrase",
        ),
        (&files.cert, &other, "do not belong together"),
        (&empty, &files.key, "there is no certificate in"),
        (&files.cert, &empty, "there is no private key in"),
        (&gone, &files.key, "No such file or directory"),
    ] {
        let args = [
            "upper",
            "-l",
            "tls://127.0.0.1:0",
            "--tls-cert",
            cert,
            "--tls-key",
            key,
        ];
        let output = socketserver().args(args).output().unwrap();
        let said = text(&output.stderr);
        assert!(!output.status.success(), "{says}");
        assert_eq!(said.matches(says).count(), 1, "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        let bad = if cert == &files.cert { key } else { cert };
        assert!(said.contains(bad.as_str()), "{said}");
        assert!(!said.contains("[45, 45"), "{said}");
        // The message names one cause once.
        let cause = said.trim_end().rsplit(": ").next().unwrap();
        assert_eq!(said.matches(cause).count(), 1, "{said}");
        // A client reports the same error for its own files.
        let args = [
            "connect",
            "tls://127.0.0.1:1",
            "--ca",
            &files.ca,
            "--cert",
            cert,
            "--key",
            key,
        ];
        let output = socketserver().args(args).output().unwrap();
        assert!(!output.status.success());
    }
}

#[test]
fn an_end_of_a_certificate_is_told_and_measured() {
    let dir = tempfile::tempdir().unwrap();
    for (begins, lasts, says) in [
        (1, 100, None),
        (90, 100, Some("expires on ")),
        (100, 90, Some("has expired on ")),
        (-2, 100, Some("is not valid before ")),
    ] {
        let [cert, key] = issue(dir.path(), begins, lasts);
        let endpoint = "tcp://127.0.0.1:0";
        let args = [
            "upper",
            "-l",
            "tls://127.0.0.1:0",
            "--tls-cert",
            &cert,
            "--tls-key",
            &key,
        ];
        let config = path(dir.path(), "config.toml");
        fs::write(&config, "").unwrap();
        let more = ["--metrics", endpoint, "--config", &config];
        let server = Server::start(&[&args[..], &more].concat(), 2);
        if let Some(says) = says {
            let told = server.logged(says);
            assert!(told.contains("WARN") && told.contains(&cert), "{told}");
        }
        let metrics = server.address(1).trim_end_matches(" (metrics)");
        let mut client = common::client_at(metrics);
        io::Write::write_all(&mut client, b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let figures = io::read_to_string(client).unwrap();
        let name = "socketserver_tls_certificate_end_timestamp_seconds{certificate=\"";
        let line = figures.lines().find_map(|line| line.strip_prefix(name));
        let value = line.unwrap().rsplit(' ').next().unwrap();
        let end = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
        let now = end.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let expected = now.cast_signed() + (lasts - begins) * 24 * 60 * 60;
        let value: i64 = value.parse().unwrap();
        assert!((value - expected).abs() <= 130, "{value} is not {expected}");
        // A reload checks the files again.
        let [_, _] = issue(dir.path(), 90, 100);
        server.signal("HUP");
        server.logged("expires on ");
        assert!(server.log().iter().all(|line| !line.contains("ERROR")));
    }
}

#[test]
fn keys_are_private_and_the_authority_is_kept() {
    let dir = certificates(&["a.example"]);
    let before = fs::read(dir.path().join("ca.pem")).unwrap();
    let again = socketserver()
        .args(["cert", "b.example", "-d"])
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(again.status.success());
    assert_eq!(fs::read(dir.path().join("ca.pem")).unwrap(), before);
    for key in ["ca.key", "a.example.key", "b.example.key"] {
        let mode = fs::metadata(dir.path().join(key))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
    for bad in ["", "ca", "../x"] {
        let output = socketserver()
            .args(["cert", bad, "-d"])
            .arg(dir.path())
            .output()
            .unwrap();
        assert!(!output.status.success(), "{bad}");
    }
}
