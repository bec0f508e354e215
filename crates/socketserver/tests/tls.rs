//! TLS, with rustls as the client: on every model that serves many at once.

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
use common::{PATIENCE, eventually};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned};
use socketserver::transport::Tcp;
use socketserver::{
    Concurrency, Connection, EndReason, Event, RequestState, Result, Server, Tls, TlsIdentity,
    handler_fn, rustls,
};

/// An authority, and files of what it has issued.
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

    /// Files `NAME.pem` and `NAME.key`.
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
    told: Receiver<String>,
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
    let (tell, told) = channel();
    let server = Server::<Tcp, C>::builder()
        .concurrency(model)
        .tls(tls)
        .on_event(move |event| {
            let _ = match event {
                Event::Rejected(_, reason) => tell.send(reason.to_string()),
                Event::Ended(_, end) => tell.send(end.reason.to_string()),
                _ => Ok(()),
            };
        })
        .bind("127.0.0.1:0", handler_fn(handle))
        .unwrap();
    Encrypted {
        running: Running::start(server),
        told,
    }
}

impl Encrypted {
    fn plain(&self) -> TcpStream {
        let Endpoint::Tcp(address) = self.running.endpoint else {
            unreachable!("it is TCP");
        };
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
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
    fn tells(&self, what: &str) {
        let told = self.told.recv_timeout(PATIENCE).unwrap();
        assert!(told.contains(what), "{told:?} instead of {what:?}");
    }
}

#[track_caller]
fn answers(client: &mut Client) {
    client.write_all(b"hello\n").unwrap();
    let mut answer = [0; 6];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello\n");
}

fn lines_come_back_and_both_ends_say_goodbye<C: Concurrency>(model: C) {
    let authority = Authority::new();
    let server = serve(
        model,
        Tls::new(authority.files("localhost").load().unwrap()),
        echo,
    );
    let mut client = server.client(authority.client(), "localhost");
    for _ in 0..3 {
        answers(&mut client);
    }
    client.conn.send_close_notify();
    client.flush().unwrap();
    // An end of input without one would be an error here.
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    server.tells("completed");
}

fn a_cut_connection_is_no_end_of_input<C: Concurrency>(model: C) {
    let authority = Authority::new();
    let (tell, seen) = channel();
    let tls = Tls::new(authority.files("localhost").load().unwrap());
    let server = serve(model, tls, move |conn| {
        let mut all = Vec::new();
        let read = conn.read_to_end(&mut all);
        tell.send(read.as_ref().err().map(std::io::Error::kind))
            .unwrap();
        read?;
        Ok(())
    });
    let mut client = server.client(authority.client(), "localhost");
    client.write_all(b"the beginning of something").unwrap();
    client.sock.shutdown(Shutdown::Write).unwrap();
    assert_eq!(
        seen.recv_timeout(PATIENCE).unwrap(),
        Some(ErrorKind::UnexpectedEof)
    );
    server.tells(&EndReason::Disconnected.to_string());
}

fn much_passes_in_both_directions_at_once<C: Concurrency>(model: C) {
    const SIZE: usize = 8 << 20;
    let authority = Authority::new();
    let tls = Tls::new(authority.files("localhost").load().unwrap());
    let server = serve(model, tls, |conn| {
        // From two threads: one of them reads as well.
        let mut writer = conn.writer();
        let writing = std::thread::spawn(move || writer.write_all(&vec![b'w'; SIZE]));
        let mut received = vec![0; SIZE];
        conn.read_exact(&mut received)?;
        assert!(received.iter().all(|byte| *byte == b'r'));
        conn.write_all(&vec![b'h'; SIZE])?;
        // The test has one connection: nobody else needs this thread.
        eventually(PATIENCE, "the other thread to write", || {
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
    let end = Instant::now() + PATIENCE;
    while counts[0] + counts[1] < 2 * SIZE {
        assert!(
            Instant::now() < end,
            "{sent} {counts:?} {:?}",
            server.told.try_recv()
        );
        let mut moved = false;
        if sent < SIZE {
            let piece = [b'r'; 1 << 14];
            if let Ok(n) = client
                .conn
                .writer()
                .write(&piece[..piece.len().min(SIZE - sent)])
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
    server.tells("completed");
}

fn silence_and_noise_hold_nobody_up<C: Concurrency>(model: C) {
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
    server.tells("no TLS: the client sent no TLS, or no version");
    answers(&mut server.client(authority.client(), "localhost"));
    server.tells("disconnected");
    // It begins as it should; a byte now and then does not extend its time.
    silent.write_all(b"\x16\x03\x01\x20\x00").unwrap();
    while started.elapsed() < PATIENCE && silent.write_all(b"\x01").is_ok() {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(started.elapsed() >= Duration::from_secs(3));
    server.tells("no TLS: it took too long");
    assert_eq!(server.running.handle.counters().tls, 2);
}

fn handshakes_are_limited<C: Concurrency>(model: C) {
    let authority = Authority::new();
    let tls = Tls::new(authority.files("localhost").load().unwrap()).max_handshakes(2);
    let server = serve(model, tls, echo);
    // Who says nothing is no work, and takes no place.
    let silent: Vec<_> = (0..10).map(|_| server.plain()).collect();
    let begun: Vec<_> = (0..4)
        .map(|_| {
            let mut client = server.plain();
            client.write_all(BEGINNING).unwrap();
            client
        })
        .collect();
    for _ in 0..2 {
        server.tells("too many handshakes");
    }
    assert!(server.told.try_recv().is_err(), "the others may go on");
    drop((begun, silent));
    eventually(PATIENCE, "room", || {
        server.running.handle.active_count() == 0
    });
    answers(&mut server.client(authority.client(), "localhost"));
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
            attacker.write_all(BEGINNING).unwrap();
            attacker
        })
        .collect();
    // They have their places, and one more of them finds none.
    let mut another = connect_from([127, 0, 0, 2].into(), address);
    another.write_all(BEGINNING).unwrap();
    server.tells("too many handshakes");
    for _ in 0..3 {
        answers(&mut server.client(authority.client(), "localhost"));
    }
    let counters = server.running.handle.counters();
    assert_eq!((counters.tls, counters.displaced), (1, 1));
    drop(attackers);
}

/// The first bytes of a handshake.
const BEGINNING: &[u8] = b"\x16\x03\x01\x20\x00\x01";

/// Silence is ended by a drain at once; what has begun is not, and is served.
fn a_drain_lets_a_handshake_end<C: Concurrency>(model: C) {
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
    eventually(PATIENCE, "one to begin", || states() == expected);
    handle.drain(PATIENCE);
    assert!(matches!(silent.read(&mut [0]), Ok(0)), "it is closed");
    server.tells("disconnected");
    slow.write_all(&hello[100..]).unwrap();
    let mut slow = StreamOwned::new(client, slow);
    answers(&mut slow);
    drop(slow);
}

/// Neither silence nor what has begun holds a thread of a pool.
fn neither_silence_nor_a_beginning_holds_a_worker<C: Concurrency>(model: C) {
    let authority = Authority::new();
    let server = serve(
        model,
        Tls::new(authority.files("localhost").load().unwrap()),
        echo,
    );
    let mut held: Vec<_> = (0..20).map(|_| server.plain()).collect();
    for client in held.iter_mut().step_by(2) {
        client.write_all(BEGINNING).unwrap();
    }
    answers(&mut server.client(authority.client(), "localhost"));
    server.tells("disconnected");
    eventually(PATIENCE, "the others to be there", || {
        server.running.handle.active_count() == held.len()
    });
}

#[test]
fn a_pool_of_one_serves_beside_those_who_dally() {
    neither_silence_nor_a_beginning_holds_a_worker(socketserver::Pooled::new().workers(1));
}

fn clients_show_who_they_are<C: Concurrency>(model: C) {
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
    server.tells("completed");

    // One of somebody else's, and none at all.
    let other = Authority::new();
    let (certificate, key) = other.issue("client.example");
    let forged = authority.client_with(Some((&certificate, &key)));
    for stranger in [forged, authority.client()] {
        let mut stranger = server.client(stranger, "localhost");
        assert!(stranger.read(&mut [0]).is_err());
        server.tells("the client's certificate is missing");
    }
}

fn a_connection_is_kept_alive_and_drained<C: Concurrency>(model: C) {
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
    answers(&mut client);
    // In one record: the second is in nobody's socket when the first has been answered.
    client.write_all(b"hello\nhello\n").unwrap();
    let mut twice = [0; 12];
    client.read_exact(&mut twice).unwrap();
    let paused = || server.running.handle.active()[0].state == RequestState::Waiting;
    eventually(PATIENCE, "it to wait", paused);
    server.running.handle.drain(PATIENCE);
    // An end, and a proper one.
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    server.tells("completed");
}

/// What comes behind the farewell is nobody's (RFC 8446, 6.1), however much it is.
fn what_follows_a_farewell_is_left<C: Concurrency>(model: C) {
    let authority = Authority::new();
    let tls = Tls::new(authority.files("localhost").load().unwrap());
    let server = serve(model, tls, echo);
    let mut client = server.client(authority.client(), "localhost");
    answers(&mut client);
    client.conn.send_close_notify();
    let mut bytes = Vec::new();
    client.conn.write_tls(&mut bytes).unwrap();
    // More than rustls takes at once, in the same read as the farewell.
    bytes.resize(bytes.len() + 12_000, 0);
    client.sock.write_all(&bytes).unwrap();
    server.tells("completed");
}

/// Those who have begun a handshake and dally hold no place that somebody else could be served in.
#[test]
fn a_pool_is_not_full_of_handshakes() {
    let authority = Authority::new();
    let server = serve(
        socketserver::Pooled::new().workers(1).queue(2),
        Tls::new(authority.files("localhost").load().unwrap()).handshake_timeout(PATIENCE * 3),
        echo,
    );
    let begun: Vec<_> = (0..10)
        .map(|_| {
            let mut client = server.plain();
            client.write_all(BEGINNING).unwrap();
            client
        })
        .collect();
    answers(&mut server.client(authority.client(), "localhost"));
    drop(begun);
}

common::under_each_model! {
    what_follows_a_farewell_is_left
    lines_come_back_and_both_ends_say_goodbye
    a_cut_connection_is_no_end_of_input
    much_passes_in_both_directions_at_once
    silence_and_noise_hold_nobody_up
    handshakes_are_limited
    half_handshakes_make_room
    a_drain_lets_a_handshake_end
    neither_silence_nor_a_beginning_holds_a_worker
    clients_show_who_they_are
    a_connection_is_kept_alive_and_drained
}

#[test]
fn certificates_are_chosen_by_name_and_replaced_while_serving() {
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
        // The client itself checks that the certificate has this name.
        let mut line = String::new();
        BufReader::new(server.client(config, name))
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, format!("Some({name:?}) chat\n"));
    }
    let config = Arc::new(authority.client());
    let greet = |name| {
        let mut client = server.client(config.clone(), name);
        let greeted = client.read(&mut [0; 64]).is_ok();
        // Tickets come with the first data.
        let _ = client.read(&mut [0; 64]);
        (greeted, client.conn.handshake_kind())
    };
    assert_eq!(greet("localhost"), (true, Some(HandshakeKind::Full)));
    assert_eq!(greet("localhost"), (true, Some(HandshakeKind::Resumed)));
    // From now on it has another name only.
    tls.reload(authority.files("renewed.example").load().unwrap());
    assert!(!greet("localhost").0);
    assert!(greet("renewed.example").0);
}

#[test]
fn files_that_are_no_good_are_named() {
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
