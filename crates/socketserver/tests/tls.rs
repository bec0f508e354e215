//! TLS with rustls as the client, on each model that serves many requests at once.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use common::client::{Endpoint, connect_from};
use common::running::Running;
use common::{TIMEOUT, eventually};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned};
use socketserver::transport::Tcp;
use socketserver::{
    Concurrency, Connection, EndReason, Event, RequestState, Result, Server, Tls, TlsIdentity,
    handler_fn, rustls,
};

/// A certificate authority, and the files of the certificates that it has issued.
struct Authority {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let own = params.self_signed(&key).unwrap();
        std::fs::write(dir.path().join("ca.pem"), own.pem()).unwrap();
        let certificate = own.der().clone();
        let issuer = Issuer::new(params, key);
        Self {
            dir,
            issuer,
            certificate,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Issues a certificate in the files `NAME.pem` and `NAME.key`.
    fn issue(&self, name: &str) -> (PathBuf, PathBuf) {
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let paths = (
            self.path(&format!("{name}.pem")),
            self.path(&format!("{name}.key")),
        );
        std::fs::write(&paths.0, certificate.pem()).unwrap();
        std::fs::write(&paths.1, key.serialize_pem()).unwrap();
        paths
    }

    fn files(&self, name: &str) -> TlsIdentity {
        let (certificate, key) = self.issue(name);
        TlsIdentity::new(certificate, key)
    }

    fn client(&self) -> ClientConfig {
        self.client_with(None)
    }

    fn client_with(&self, identity: Option<(&Path, &Path)>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        match identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_file(certificate).unwrap()],
                    PrivateKeyDer::from_pem_file(key).unwrap(),
                )
                .unwrap(),
        }
    }
}

type Client = StreamOwned<ClientConnection, TcpStream>;

struct Encrypted {
    running: Running,
    events: Receiver<String>,
}

/// Sends back each line.
fn echo(conn: &mut Connection) -> Result<()> {
    let mut line = String::new();
    while conn.read_line(&mut line)? > 0 {
        conn.write_all(line.as_bytes())?;
        line.clear();
    }
    Ok(())
}

fn serve<C: Concurrency>(
    model: C,
    tls: Tls,
    handle: impl Fn(&mut Connection) -> Result<()> + Send + Sync + 'static,
) -> Encrypted {
    let (tx, events) = channel();
    let server = Server::<Tcp, C>::builder()
        .concurrency(model)
        .tls(tls)
        .on_event(move |event| {
            let _ = match event {
                Event::Rejected(_, reason) => tx.send(reason.to_string()),
                Event::Ended(_, end) => tx.send(end.reason.to_string()),
                _ => Ok(()),
            };
        })
        .bind("127.0.0.1:0", handler_fn(handle))
        .unwrap();
    Encrypted {
        running: Running::start(server),
        events,
    }
}

impl Encrypted {
    fn plain(&self) -> TcpStream {
        let Endpoint::Tcp(address) = self.running.endpoint else {
            unreachable!("the transport is TCP");
        };
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        stream
    }

    fn client(&self, config: impl Into<Arc<ClientConfig>>, name: &'static str) -> Client {
        let name = ServerName::try_from(name).unwrap();
        StreamOwned::new(
            ClientConnection::new(config.into(), name).unwrap(),
            self.plain(),
        )
    }

    #[track_caller]
    fn expect_event(&self, what: &str) {
        let event = self.events.recv_timeout(TIMEOUT).unwrap();
        assert!(event.contains(what), "{event:?} instead of {what:?}");
    }
}

#[track_caller]
fn assert_echo(client: &mut Client) {
    client.write_all(b"hello\n").unwrap();
    let mut answer = [0; 6];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello\n");
}

fn lines_are_echoed_and_both_ends_send_close_notify<C: Concurrency>(model: C) {
    let authority = Authority::new();
    let server = serve(
        model,
        Tls::new(authority.files("localhost").load().unwrap()),
        echo,
    );
    let mut client = server.client(authority.client(), "localhost");
    for _ in 0..3 {
        assert_echo(&mut client);
    }
    client.conn.send_close_notify();
    client.flush().unwrap();
    // An end of input without close_notify would be an error of the client.
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    server.expect_event("completed");
}

fn connection_without_close_notify_is_not_an_end_of_input<C: Concurrency>(model: C) {
    let authority = Authority::new();
    let (tx, seen) = channel();
    let tls = Tls::new(authority.files("localhost").load().unwrap());
    let server = serve(model, tls, move |conn| {
        let mut all = Vec::new();
        let read = conn.read_to_end(&mut all);
        tx.send(read.as_ref().err().map(std::io::Error::kind))
            .unwrap();
        read?;
        Ok(())
    });
    let mut client = server.client(authority.client(), "localhost");
    client.write_all(b"the first part").unwrap();
    client.sock.shutdown(Shutdown::Write).unwrap();
    assert_eq!(
        seen.recv_timeout(TIMEOUT).unwrap(),
        Some(ErrorKind::UnexpectedEof)
    );
    server.expect_event(&EndReason::Disconnected.to_string());
}

fn megabytes_pass_in_both_directions_at_once<C: Concurrency>(model: C) {
    const SIZE: usize = 8 << 20;
    let authority = Authority::new();
    let tls = Tls::new(authority.files("localhost").load().unwrap());
    let server = serve(model, tls, |conn| {
        // Two threads write, and one of them reads as well.
        let mut writer = conn.writer();
        let writing = std::thread::spawn(move || writer.write_all(&vec![b'w'; SIZE]));
        let mut received = vec![0; SIZE];
        conn.read_exact(&mut received)?;
        assert!(received.iter().all(|byte| *byte == b'r'));
        conn.write_all(&vec![b'h'; SIZE])?;
        // The test has one connection, so that it may block this thread.
        eventually(TIMEOUT, "the other thread to write", || {
            writing.is_finished()
        });
        writing.join().unwrap()?;
        Ok(())
    });
    let mut client = server.client(authority.client(), "localhost");
    client.conn.complete_io(&mut client.sock).unwrap();
    let mut sent = 0;
    let mut counts = [0; 2];
    let mut some = vec![0; 1 << 16];
    client.sock.set_nonblocking(true).unwrap();
    let end = Instant::now() + TIMEOUT;
    while counts[0] + counts[1] < 2 * SIZE {
        assert!(
            Instant::now() < end,
            "{sent} {counts:?} {:?}",
            server.events.try_recv()
        );
        let mut moved = false;
        if sent < SIZE {
            let chunk = [b'r'; 1 << 14];
            if let Ok(n) = client
                .conn
                .writer()
                .write(&chunk[..chunk.len().min(SIZE - sent)])
            {
                sent += n;
                moved |= n > 0;
            }
        }
        while client.conn.wants_write() && client.conn.write_tls(&mut client.sock).is_ok() {
            moved = true;
        }
        if client.conn.read_tls(&mut client.sock).is_ok_and(|n| n > 0) {
            client.conn.process_new_packets().unwrap();
        }
        while let Ok(n @ 1..) = client.conn.reader().read(&mut some) {
            moved = true;
            for byte in &some[..n] {
                counts[usize::from(*byte == b'h')] += 1;
            }
        }
        if !moved {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    assert_eq!(counts, [SIZE; 2]);
    server.expect_event("completed");
}

fn silent_and_invalid_clients_do_not_delay_others<C: Concurrency>(model: C) {
    let authority = Authority::new();
    let tls = Tls::new(authority.files("localhost").load().unwrap())
        .handshake_timeout(Duration::from_secs(3));
    let server = serve(model, tls, echo);
    let started = Instant::now();
    let mut silent = server.plain();
    let mut noisy = server.plain();
    noisy
        .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    server.expect_event("no TLS: the client sent no TLS, or no version");
    assert_echo(&mut server.client(authority.client(), "localhost"));
    server.expect_event("disconnected");
    // A valid beginning of a handshake. Single bytes do not extend its time.
    silent.write_all(b"\x16\x03\x01\x20\x00").unwrap();
    while started.elapsed() < TIMEOUT && silent.write_all(b"\x01").is_ok() {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(started.elapsed() >= Duration::from_secs(3));
    server.expect_event("no TLS: it took too long");
    assert_eq!(server.running.handle.counters().tls, 2);
}

fn handshakes_are_limited_in_number<C: Concurrency>(model: C) {
    let authority = Authority::new();
    let tls = Tls::new(authority.files("localhost").load().unwrap()).max_handshakes(2);
    let server = serve(model, tls, echo);
    // A client that has sent nothing does not count as a handshake.
    let silent: Vec<_> = (0..10).map(|_| server.plain()).collect();
    let handshakes: Vec<_> = (0..4)
        .map(|_| {
            let mut client = server.plain();
            client.write_all(HANDSHAKE_START).unwrap();
            client
        })
        .collect();
    for _ in 0..2 {
        server.expect_event("too many handshakes");
    }
    assert!(
        server.events.try_recv().is_err(),
        "the other handshakes continue"
    );
    drop((handshakes, silent));
    eventually(TIMEOUT, "the connections to end", || {
        server.running.handle.active_count() == 0
    });
    assert_echo(&mut server.client(authority.client(), "localhost"));
}

/// Half handshakes of one address take no place from others.
fn half_handshakes_make_room<C: Concurrency>(model: C) {
    let authority = Authority::new();
    let tls = Tls::new(authority.files("localhost").load().unwrap()).max_handshakes(8);
    let server = serve(model, tls, echo);
    let Endpoint::Tcp(address) = server.running.endpoint else {
        unreachable!("it is TCP");
    };
    let attackers: Vec<_> = (0..8)
        .map(|_| {
            let mut attacker = connect_from([127, 0, 0, 2].into(), address);
            attacker.write_all(HANDSHAKE_START).unwrap();
            attacker
        })
        .collect();
    // They have their places, and one more of them finds none.
    let mut another = connect_from([127, 0, 0, 2].into(), address);
    another.write_all(HANDSHAKE_START).unwrap();
    server.expect_event("too many handshakes");
    for _ in 0..3 {
        assert_echo(&mut server.client(authority.client(), "localhost"));
    }
    let counters = server.running.handle.counters();
    assert_eq!((counters.tls, counters.displaced), (1, 1));
    drop(attackers);
}

/// The first bytes of a handshake.
const HANDSHAKE_START: &[u8] = b"\x16\x03\x01\x20\x00\x01";

/// A drain closes a silent connection at once. A handshake that has begun completes and is served.
fn drain_lets_a_handshake_complete<C: Concurrency>(model: C) {
    let authority = Authority::new();
    let tls = Tls::new(authority.files("localhost").load().unwrap());
    let server = serve(model, tls, echo);
    let mut silent = server.plain();
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(Arc::new(authority.client()), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let mut slow = server.plain();
    slow.write_all(&hello[..100]).unwrap();
    let handle = &server.running.handle;
    let states = || {
        let live = handle.active();
        let mut states: Vec<_> = live.iter().map(|request| request.state).collect();
        states.sort_by_key(|state| format!("{state:?}"));
        states
    };
    let expected = [RequestState::Serving, RequestState::Waiting];
    eventually(TIMEOUT, "one handshake to begin", || states() == expected);
    handle.drain(TIMEOUT);
    assert!(matches!(silent.read(&mut [0]), Ok(0)), "not closed");
    server.expect_event("disconnected");
    slow.write_all(&hello[100..]).unwrap();
    let mut slow = StreamOwned::new(client, slow);
    assert_echo(&mut slow);
    drop(slow);
}

/// Neither a silent connection nor a handshake that has begun occupies a thread of a pool.
fn incomplete_handshake_does_not_occupy_a_worker<C: Concurrency>(model: C) {
    let authority = Authority::new();
    let server = serve(
        model,
        Tls::new(authority.files("localhost").load().unwrap()),
        echo,
    );
    let mut held: Vec<_> = (0..20).map(|_| server.plain()).collect();
    for client in held.iter_mut().step_by(2) {
        client.write_all(HANDSHAKE_START).unwrap();
    }
    assert_echo(&mut server.client(authority.client(), "localhost"));
    server.expect_event("disconnected");
    eventually(TIMEOUT, "the other connections to be accepted", || {
        server.running.handle.active_count() == held.len()
    });
}

#[test]
fn pool_of_one_serves_next_to_incomplete_handshakes() {
    incomplete_handshake_does_not_occupy_a_worker(socketserver::Pooled::new().workers(1));
}

fn client_certificates_are_verified<C: Concurrency>(model: C) {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("client.example");
    let files = authority
        .files("localhost")
        .client_ca(authority.path("ca.pem"));
    let server = serve(model, Tls::new(files.load().unwrap()), |conn| {
        let names = conn.tls().unwrap().peer_names().join(" ");
        writeln!(conn, "hello {names}")?;
        Ok(())
    });
    let known = authority.client_with(Some((&certificate, &key)));
    let mut line = String::new();
    let known = server.client(known, "localhost");
    BufReader::new(known).read_line(&mut line).unwrap();
    assert_eq!(line, "hello client.example\n");
    server.expect_event("completed");

    // A certificate of another authority, and no certificate.
    let other = Authority::new();
    let (certificate, key) = other.issue("client.example");
    let forged = authority.client_with(Some((&certificate, &key)));
    for untrusted in [forged, authority.client()] {
        let mut untrusted = server.client(untrusted, "localhost");
        assert!(untrusted.read(&mut [0]).is_err());
        server.expect_event("the client's certificate is missing");
    }
}

fn suspended_tls_connection_is_served_and_drained<C: Concurrency>(model: C) {
    let authority = Authority::new();
    let tls = Tls::new(authority.files("localhost").load().unwrap());
    let server = serve(model, tls, |conn| {
        let mut line = String::new();
        if conn.read_line(&mut line)? > 0 {
            conn.write_all(line.as_bytes())?;
            conn.suspend_until_readable();
        }
        Ok(())
    });
    let mut client = server.client(authority.client(), "localhost");
    assert_echo(&mut client);
    // In one record: the second line is not in the socket any more when the first was replied to.
    client.write_all(b"hello\nhello\n").unwrap();
    let mut twice = [0; 12];
    client.read_exact(&mut twice).unwrap();
    let is_suspended = || server.running.handle.active()[0].state == RequestState::Waiting;
    eventually(TIMEOUT, "the connection to be suspended", is_suspended);
    server.running.handle.drain(TIMEOUT);
    // An end of input with close_notify.
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    server.expect_event("completed");
}

/// Data after close_notify is ignored (RFC 8446, 6.1), in any amount.
fn data_after_close_notify_is_ignored<C: Concurrency>(model: C) {
    let authority = Authority::new();
    let tls = Tls::new(authority.files("localhost").load().unwrap());
    let server = serve(model, tls, echo);
    let mut client = server.client(authority.client(), "localhost");
    assert_echo(&mut client);
    client.conn.send_close_notify();
    let mut bytes = Vec::new();
    client.conn.write_tls(&mut bytes).unwrap();
    // More than rustls takes at once, in the same read as close_notify.
    bytes.resize(bytes.len() + 12_000, 0);
    client.sock.write_all(&bytes).unwrap();
    server.expect_event("completed");
}

/// Slow handshakes do not occupy slots that other clients could be served in.
#[test]
fn handshakes_do_not_fill_a_pool() {
    let authority = Authority::new();
    let server = serve(
        socketserver::Pooled::new().workers(1).queue(2),
        Tls::new(authority.files("localhost").load().unwrap()).handshake_timeout(TIMEOUT * 3),
        echo,
    );
    let handshakes: Vec<_> = (0..10)
        .map(|_| {
            let mut client = server.plain();
            client.write_all(HANDSHAKE_START).unwrap();
            client
        })
        .collect();
    assert_echo(&mut server.client(authority.client(), "localhost"));
    drop(handshakes);
}

common::under_each_model! {
    data_after_close_notify_is_ignored
    lines_are_echoed_and_both_ends_send_close_notify
    connection_without_close_notify_is_not_an_end_of_input
    megabytes_pass_in_both_directions_at_once
    silent_and_invalid_clients_do_not_delay_others
    handshakes_are_limited_in_number
    half_handshakes_make_room
    drain_lets_a_handshake_complete
    incomplete_handshake_does_not_occupy_a_worker
    client_certificates_are_verified
    suspended_tls_connection_is_served_and_drained
}

#[test]
fn certificate_is_selected_by_name_and_replaced_while_serving() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("other.example");
    let files = authority
        .files("localhost")
        .with_identity(certificate, key)
        .protocols(["echo", "chat"]);
    let tls = Tls::new(files.load().unwrap());
    let server = serve(socketserver::Threading::new(), tls.clone(), |conn| {
        let info = conn.tls().unwrap();
        let protocol = String::from_utf8(info.protocol.unwrap_or_default()).unwrap();
        writeln!(conn, "{:?} {protocol}", info.server_name)?;
        Ok(())
    });
    for name in ["localhost", "other.example"] {
        let mut config = authority.client();
        config.alpn_protocols = vec![b"chat".to_vec()];
        // The client checks that the certificate has this name.
        let mut line = String::new();
        BufReader::new(server.client(config, name))
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, format!("Some({name:?}) chat\n"));
    }
    let config = Arc::new(authority.client());
    let connect = |name| {
        let mut client = server.client(config.clone(), name);
        let is_connected = client.read(&mut [0; 64]).is_ok();
        // Tickets arrive with the first data.
        let _ = client.read(&mut [0; 64]);
        (is_connected, client.conn.handshake_kind())
    };
    assert_eq!(connect("localhost"), (true, Some(HandshakeKind::Full)));
    assert_eq!(connect("localhost"), (true, Some(HandshakeKind::Resumed)));
    // From here on the certificate has only another name.
    tls.reload(authority.files("renewed.example").load().unwrap());
    assert!(!connect("localhost").0);
    assert!(connect("renewed.example").0);
}

#[test]
fn error_names_the_invalid_file() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("localhost");
    let (_, other_key) = authority.issue("other.example");
    let empty = authority.path("empty.pem");
    std::fs::write(&empty, "nothing\n").unwrap();
    let missing = authority.path("missing.pem");
    for (certificate, key, ca, says) in [
        (&missing, &key, None, "missing.pem"),
        (&empty, &key, None, "no certificate in"),
        (&certificate, &empty, None, "no private key in"),
        (&certificate, &other_key, None, "do not belong together"),
        (&certificate, &key, Some(&empty), "empty.pem"),
        (&certificate, &key, Some(&missing), "missing.pem"),
    ] {
        let mut files = TlsIdentity::new(certificate, key);
        if let Some(ca) = ca {
            files = files.client_ca(ca);
        }
        let error = files.load().unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}
