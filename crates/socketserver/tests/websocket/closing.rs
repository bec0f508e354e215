//! The close by each side, by failures and by drains.

use std::io::Write;
use std::net::TcpStream;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use socketserver::websocket::{
    CloseCode, CloseReason, Handler, Message, WebSocket, WebSocketLimits, WebSocketUpgrade,
};
use socketserver::{Concurrency, EndReason, Result};

use crate::common::client::Endpoint;
use crate::common::{TIMEOUT, eventually};
use crate::peer::{CLOSE, FIN, HANDSHAKE, PING, Peer, Setup, TEXT, close, frame, ms, serve_echo};

/// A handler that executes the text of each message, and reports the close.
struct CommandHandler(mpsc::Sender<CloseReason>);

impl Handler for CommandHandler {
    fn opened(&mut self, socket: &mut WebSocket<'_>) -> Result<()> {
        Ok(socket.send("welcome")?)
    }

    fn message(&mut self, socket: &mut WebSocket<'_>, message: Message) -> Result<()> {
        match message.as_text() {
            Some("close") => {
                socket.send("last message")?;
                socket.close(CloseCode::NORMAL, "enough");
                // Only the first reason counts.
                socket.close(CloseCode::POLICY, "again");
                Ok(())
            }
            Some("fail") => Err(std::io::Error::other("on request").into()),
            Some("panic") => panic!("on request"),
            _ => Ok(socket.send(message)?),
        }
    }

    fn closed(&mut self, socket: &mut WebSocket<'_>, reason: &CloseReason) -> Result<()> {
        // The message arrives if the peer still reads.
        let _ = socket.send("closed");
        let _ = self.0.send(reason.clone());
        Ok(())
    }
}

struct Fixture {
    running: crate::common::running::Running,
    ends: mpsc::Receiver<EndReason>,
    closed: mpsc::Receiver<CloseReason>,
}

impl Fixture {
    fn new<C: Concurrency>(setup: Setup<C>) -> Self {
        let (tx, closed) = mpsc::channel();
        let tx = Mutex::new(tx);
        let (running, ends) = setup.serve(move || CommandHandler(tx.lock().unwrap().clone()));
        Self {
            running,
            ends,
            closed,
        }
    }

    fn peer(&self) -> Peer {
        let mut peer = Peer::open(&self.running);
        assert_eq!(peer.frame().text(), "welcome");
        peer
    }

    fn closed(&self) -> CloseReason {
        self.closed.recv_timeout(TIMEOUT).unwrap()
    }

    fn ended(&self) -> EndReason {
        self.ends.recv_timeout(TIMEOUT).unwrap()
    }
}

fn client_closes_the_connection<C: Concurrency>(model: C) {
    let fixture = Fixture::new(Setup::new(model));
    for (bytes, code, reason) in [
        (close(1000, b"bye"), 1000, "bye"),
        (close(1001, b""), 1001, ""),
        (close(4321, "grüße".as_bytes()), 4321, "grüße"),
    ] {
        let mut peer = fixture.peer();
        // Messages before the close frame are handled, and messages after it are not.
        peer.send_text("hello");
        peer.send(&[&bytes[..], &frame(FIN | TEXT, b"after the close")].concat());
        assert_eq!(peer.frame().text(), "hello");
        assert_eq!(peer.frame().text(), "closed");
        assert_eq!(peer.expect_close(code), reason);
        let CloseReason::ByPeer(Some(close_frame)) = fixture.closed() else {
            panic!("the client has closed with {code}");
        };
        assert_eq!(
            (close_frame.code.as_u16(), &*close_frame.reason),
            (code, reason)
        );
        assert_eq!(fixture.ended(), EndReason::Completed);
    }
    let mut peer = fixture.peer();
    peer.send(&frame(FIN | CLOSE, b""));
    assert_eq!(peer.frame().text(), "closed");
    let last = peer.frame();
    assert_eq!((last.opcode, &last.payload[..]), (CLOSE, &b""[..]));
    peer.expect_end();
    assert_eq!(fixture.closed(), CloseReason::ByPeer(None));
}

/// <https://www.iana.org/assignments/websocket/websocket.xhtml> without the codes that no frame may
/// have (1004 to 1006, 1015), and the ranges for registered and private use.
fn registered_close_code_is_echoed<C: Concurrency>(model: C) {
    let fixture = Fixture::new(Setup::new(model));
    let codes = (1000..=1003).chain(1007..=1014);
    for code in codes.chain([3000, 3003, 3008, 3999, 4000, 4999]) {
        let mut peer = fixture.peer();
        peer.send(&close(code, b"why"));
        assert_eq!(peer.frame().text(), "closed");
        assert_eq!(peer.expect_close(code), "why");
        let CloseReason::ByPeer(Some(close_frame)) = fixture.closed() else {
            panic!("the client has closed with {code}");
        };
        assert_eq!(
            (close_frame.code.as_u16(), &*close_frame.reason),
            (code, "why")
        );
        assert_eq!(fixture.ended(), EndReason::Completed, "{code}");
    }
    for code in [
        0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535,
    ] {
        let mut peer = fixture.peer();
        peer.send(&close(code, b"why"));
        assert_eq!(peer.frame().text(), "closed");
        peer.expect_close(1002);
        assert!(
            matches!(fixture.closed(), CloseReason::ByServer(_)),
            "{code}"
        );
        assert_eq!(fixture.ended(), EndReason::ProtocolError, "{code}");
    }
}

fn handler_closes_and_the_server_waits_for_the_answer<C: Concurrency>(model: C) {
    let fixture = Fixture::new(Setup::new(model));
    let mut peer = fixture.peer();
    peer.send_text("close");
    assert_eq!(peer.frame().text(), "last message");
    assert_eq!(peer.frame().text(), "closed");
    assert_eq!(peer.expect_close_frame(1000), "enough");
    // The server waits for the answer of the client.
    std::thread::sleep(ms(200));
    assert_eq!(fixture.running.handle.active_count(), 1);
    // Frames that cross the close frame are not answered, and do no harm.
    peer.send_text("crossing");
    peer.send(&frame(FIN | PING, b"?"));
    peer.send(&close(1000, b""));
    peer.expect_end();
    assert!(matches!(fixture.closed(), CloseReason::ByServer(close) if close.reason == "enough"));
    assert_eq!(fixture.ended(), EndReason::Completed);
}

fn close_ends_at_its_timeout_without_an_answer<C: Concurrency>(model: C) {
    let mut setup = Setup::new(model);
    let limits = WebSocketLimits::default().close_timeout(ms(100));
    setup.sockets = WebSocketUpgrade::new().limits(limits);
    let fixture = Fixture::new(setup);
    let mut peer = fixture.peer();
    peer.send_text("close");
    peer.frame();
    peer.frame();
    let start = Instant::now();
    peer.expect_close_frame(1000);
    // The client sends other frames instead of an answer. They do not extend the timeout.
    while fixture.ends.try_recv().is_err() {
        let _ = peer.0.send(&frame(FIN | PING, b""));
        std::thread::sleep(ms(5));
        assert!(start.elapsed() < TIMEOUT);
    }
}

fn handler_failure_closes_with_1011<C: Concurrency>(model: C) {
    let fixture = Fixture::new(Setup::new(model));
    for (command, reason) in [("fail", EndReason::Failed), ("panic", EndReason::Panicked)] {
        let mut peer = fixture.peer();
        peer.send_text(command);
        assert_eq!(peer.frame().text(), "closed");
        assert_eq!(peer.expect_close(1011), "the server has failed");
        assert!(matches!(fixture.closed(), CloseReason::ByServer(_)));
        assert_eq!(fixture.ended(), reason);
    }
}

fn failure_to_open_closes_with_1011<C: Concurrency>(model: C) {
    struct FailsToOpen(bool);
    impl Handler for FailsToOpen {
        fn opened(&mut self, _: &mut WebSocket<'_>) -> Result<()> {
            assert!(!self.0, "on request");
            Err(std::io::Error::other("cannot open").into())
        }
        fn message(&mut self, _: &mut WebSocket<'_>, _: Message) -> Result<()> {
            unreachable!("the handler is never opened")
        }
        fn closed(&mut self, _: &mut WebSocket<'_>, _: &CloseReason) -> Result<()> {
            unreachable!("the handler is never opened")
        }
    }
    let panics = Arc::new(Mutex::new(false));
    let flag = panics.clone();
    let (running, ends) = Setup::new(model).serve(move || FailsToOpen(*flag.lock().unwrap()));
    for reason in [EndReason::Failed, EndReason::Panicked] {
        Peer::open(&running).expect_close(1011);
        assert_eq!(ends.recv_timeout(TIMEOUT).unwrap(), reason);
        *panics.lock().unwrap() = true;
    }
}

fn drain_closes_idle_connections_with_1001<C: Concurrency>(model: C) {
    let fixture = Fixture::new(Setup::new(model));
    let peers: Vec<_> = (0..5).map(|_| fixture.peer()).collect();
    let handle = fixture.running.handle.clone();
    eventually(TIMEOUT, "the connections to be suspended", || {
        handle.waiting_count() == 5
    });
    handle.drain(TIMEOUT);
    for mut peer in peers {
        assert_eq!(peer.frame().text(), "closed");
        peer.expect_close(1001);
        assert_eq!(fixture.closed(), CloseReason::Lost);
        assert_eq!(fixture.ended(), EndReason::Completed);
    }
    fixture.running.wait_until_stopped().unwrap();
}

/// The handler is busy when the drain begins. Its message is still sent.
fn drain_waits_for_a_busy_handler<C: Concurrency>(model: C) {
    let (begun_tx, begun_rx) = mpsc::channel();
    let (release, wait) = mpsc::channel();
    let begun_tx = Mutex::new(begun_tx);
    let wait = Arc::new(Mutex::new(wait));
    let (running, _ends) = Setup::new(model).serve(move || {
        let (begun_tx, wait) = (begun_tx.lock().unwrap().clone(), wait.clone());
        move |socket: &mut WebSocket<'_>, message: Message| {
            begun_tx.send(())?;
            let _ = wait.lock().unwrap().recv_timeout(TIMEOUT);
            Ok(socket.send(message)?)
        }
    });
    let mut peer = Peer::open(&running);
    peer.send_text("slow");
    begun_rx.recv_timeout(TIMEOUT).unwrap();
    running.handle.drain(TIMEOUT);
    release.send(()).unwrap();
    assert_eq!(peer.frame().text(), "slow");
    peer.expect_close(1001);
    running.wait_until_stopped().unwrap();
}

/// A client that never stops sending does not delay the end of a drain.
fn drain_ends_a_client_that_never_stops_sending<C: Concurrency>(model: C) {
    // Slower than its client.
    let (running, _ends) = Setup::new(model).serve(|| {
        |_: &mut WebSocket<'_>, _: Message| {
            std::thread::sleep(ms(1));
            Ok(())
        }
    });
    let Endpoint::Tcp(address) = running.endpoint else {
        unreachable!("the transport is TCP");
    };
    // Two descriptors of one connection: one sends without end, and the other reads.
    let mut sending = TcpStream::connect(address).unwrap();
    sending.set_write_timeout(Some(TIMEOUT)).unwrap();
    sending
        .write_all(format!("{HANDSHAKE}\r\n").as_bytes())
        .unwrap();
    let mut reading = sending.try_clone().unwrap();
    let flood = frame(FIN | TEXT, b"and on").repeat(100);
    let sender = std::thread::spawn(move || while sending.write_all(&flood).is_ok() {});
    let reader = std::thread::spawn(move || std::io::copy(&mut reading, &mut std::io::sink()));
    eventually(TIMEOUT, "the flood to begin", || {
        running
            .handle
            .active()
            .iter()
            .any(|one| one.received > 10_000)
    });
    let start = Instant::now();
    running.handle.drain(TIMEOUT);
    sender.join().unwrap();
    let _ = reader.join().unwrap();
    assert!(start.elapsed() < TIMEOUT / 2, "{:?}", start.elapsed());
    running.wait_until_stopped().unwrap();
}

fn disconnect_without_a_close_frame_is_reported_as_lost<C: Concurrency>(model: C) {
    let fixture = Fixture::new(Setup::new(model));
    let peer = fixture.peer();
    peer.0.half_close().unwrap();
    assert_eq!(fixture.closed(), CloseReason::Lost);
    assert_eq!(fixture.ended(), EndReason::Completed);
    fixture.peer().0.reset();
    let reason = fixture.closed();
    assert!(matches!(reason, CloseReason::Lost), "{reason:?}");
    // The kernel reports a reset once. A check for input may receive the report instead of the
    // read.
    let reason = fixture.ended();
    assert!(
        matches!(reason, EndReason::Disconnected | EndReason::Completed),
        "{reason:?}"
    );
}

fn cancelled_connection_is_closed_at_once<C: Concurrency>(model: C) {
    let running = serve_echo(model);
    let mut peer = Peer::open(&running);
    peer.send_text("hello");
    peer.frame();
    eventually(TIMEOUT, "the connections to be suspended", || {
        running.handle.waiting_count() == 1
    });
    let active = running.handle.active();
    assert!(running.handle.cancel(active[0].info.id()));
    assert!(peer.0.was_closed_by_server());
    let start = Instant::now();
    eventually(TIMEOUT, "the request to end", || {
        running.handle.active_count() == 0
    });
    assert!(start.elapsed() < Duration::from_secs(3));
}

crate::common::under_each_model! {
    client_closes_the_connection
    registered_close_code_is_echoed
    handler_closes_and_the_server_waits_for_the_answer
    close_ends_at_its_timeout_without_an_answer
    handler_failure_closes_with_1011
    failure_to_open_closes_with_1011
    drain_closes_idle_connections_with_1001
    drain_waits_for_a_busy_handler
    drain_ends_a_client_that_never_stops_sending
    disconnect_without_a_close_frame_is_reported_as_lost
    cancelled_connection_is_closed_at_once
}
