//! The key of TLS tickets under the forking model, whose server must have one thread.
//!
//! The server is this program, started again as a child process.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test prints why it fails"
)]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use rustls::server::ProducesTickets;
use socketserver::transport::Tcp;
use socketserver::{Connection, Forking, Result, Server, Tls, TlsIdentity, handler_fn, rustls};

const SERVER: &str = "SOCKETSERVER_TEST_CERTIFICATES";
const TIMEOUT: Duration = Duration::from_secs(20);

fn main() {
    if let Some(dir) = std::env::var_os(SERVER) {
        return serve(dir.as_ref());
    }
    parent_uses_the_ticket_key_before_each_fork();
    println!("test parent_uses_the_ticket_key_before_each_fork ... ok");
}

/// A ticketer that prints the process that uses it. A ticketer replaces its key on use, if the key
/// is due.
#[derive(Debug)]
struct PrintingTicketer;

impl ProducesTickets for PrintingTicketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        60
    }

    fn encrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
        println!("{}", std::process::id());
        io::stdout().flush().unwrap();
        // A ticketer of an application may fail in this way.
        panic!("on purpose")
    }

    fn decrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

fn serve(dir: &std::path::Path) {
    let (certificate, key) = (dir.join("a.pem"), dir.join("a.key"));
    let mut config = TlsIdentity::new(certificate, key).load().unwrap();
    config.ticketer = Arc::new(PrintingTicketer);
    let mut server = Server::<Tcp, Forking>::builder()
        .tls(Tls::new(config))
        .bind(
            "127.0.0.1:0",
            handler_fn(|_: &mut Connection| -> Result<()> { Ok(()) }),
        )
        .unwrap();
    println!("{}", server.local_addr());
    io::stdout().flush().unwrap();
    server.serve_forever().unwrap();
}

/// A child process that is killed if the test fails.
struct Guarded(Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn parent_uses_the_ticket_key_before_each_fork() {
    let dir = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["a".into()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    std::fs::write(dir.path().join("a.pem"), certificate.pem()).unwrap();
    std::fs::write(dir.path().join("a.key"), key.serialize_pem()).unwrap();
    let server = Command::new(std::env::current_exe().unwrap())
        .env(SERVER, dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut server = Guarded(server.unwrap());
    let stdout = BufReader::new(server.0.stdout.take().unwrap());
    let (tx, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in stdout.lines().map_while(io::Result::ok) {
            let _ = tx.send(line);
        }
    });
    let address = lines.recv_timeout(TIMEOUT).unwrap();
    for _ in 0..3 {
        // The client sends nothing, so that its child does not use the key.
        let mut client = TcpStream::connect(&address).unwrap();
        client.set_read_timeout(Some(TIMEOUT)).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = client.read(&mut [0]);
        let pid = lines.recv_timeout(TIMEOUT).unwrap();
        assert_eq!(pid, server.0.id().to_string());
    }
}
