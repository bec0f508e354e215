//! The end, from both sides, by failures and by drains.

use std::io::Write;
use std::net::TcpStream;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use socketserver::websocket::{
    CloseCode, CloseReason, Handler, Message, WebSocket, WebSocketLimits, WebSocketUpgrade,
};
use socketserver::{Concurrency, EndReason, Result};

use crate::common::client::Endpoint;
use crate::common::{PATIENCE, eventually};
use crate::peer::{CLOSE, FIN, HANDSHAKE, PING, Peer, Stage, TEXT, close, frame, ms, serve_echo};

/// Does what it is told, and tells how it ended.
struct Told(mpsc::Sender<CloseReason>);

impl Handler for Told {
    fn opened(&mut self, socket: &mut WebSocket<'_>) -> Result<()> {
        Ok(socket.send("welcome")?)
    }

    fn message(&mut self, socket: &mut WebSocket<'_>, message: Message) -> Result<()> {
        match message.as_text() {
            Some("close") => {
                socket.send("last words")?;
                socket.close(CloseCode::NORMAL, "enough");
                // Only the first reason counts.
                socket.close(CloseCode::POLICY, "again");
                Ok(())
            }
            Some("fail") => Err(std::io::Error::other("as told").into()),
            Some("panic") => panic!("as told"),
            _ => Ok(socket.send(message)?),
        }
    }

    fn closed(&mut self, socket: &mut WebSocket<'_>, how: &CloseReason) -> Result<()> {
        // It arrives, if anybody is there.
        let _ = socket.send("farewell");
        let _ = self.0.send(how.clone());
        Ok(())
    }
}

struct Scene {
    running: crate::common::running::Running,
    ends: mpsc::Receiver<EndReason>,
    closed: mpsc::Receiver<CloseReason>,
}

impl Scene {
    fn new<C: Concurrency>(stage: Stage<C>) -> Self {
        let (told, closed) = mpsc::channel();
        let told = Mutex::new(told);
        let (running, ends) = stage.serve(move || Told(told.lock().unwrap().clone()));
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
        self.closed.recv_timeout(PATIENCE).unwrap()
    }

    fn ended(&self) -> EndReason {
        self.ends.recv_timeout(PATIENCE).unwrap()
    }
}

fn a_client_ends_it<C: Concurrency>(model: C) {
    let scene = Scene::new(Stage::new(model));
    for (bytes, code, reason) in [
        (close(1000, b"bye"), 1000, "bye"),
        (close(1001, b""), 1001, ""),
        (close(4321, "grüße".as_bytes()), 4321, "grüße"),
    ] {
        let mut peer = scene.peer();
        // What it says before is heard, and what it says afterwards is not.
        peer.say("hello");
        peer.send(&[&bytes[..], &frame(FIN | TEXT, b"too late")].concat());
        assert_eq!(peer.frame().text(), "hello");
        assert_eq!(peer.frame().text(), "farewell");
        assert_eq!(peer.ends_with(code), reason);
        let CloseReason::ByPeer(Some(said)) = scene.closed() else {
            panic!("the client has said so");
        };
        assert_eq!((said.code.as_u16(), &*said.reason), (code, reason));
        assert_eq!(scene.ended(), EndReason::Completed);
    }
    let mut peer = scene.peer();
    peer.send(&frame(FIN | CLOSE, b""));
    assert_eq!(peer.frame().text(), "farewell");
    let last = peer.frame();
    assert_eq!((last.opcode, &last.payload[..]), (CLOSE, &b""[..]));
    peer.ends();
    assert_eq!(scene.closed(), CloseReason::ByPeer(None));
}

/// <https://www.iana.org/assignments/websocket/websocket.xhtml>, but for those that no frame may have
/// (1004 to 1006, 1015), and the ranges for registered and private use.
fn every_registered_close_code_is_answered_alike<C: Concurrency>(model: C) {
    let scene = Scene::new(Stage::new(model));
    let codes = (1000..=1003).chain(1007..=1014);
    for code in codes.chain([3000, 3003, 3008, 3999, 4000, 4999]) {
        let mut peer = scene.peer();
        peer.send(&close(code, b"why"));
        assert_eq!(peer.frame().text(), "farewell");
        assert_eq!(peer.ends_with(code), "why");
        let CloseReason::ByPeer(Some(said)) = scene.closed() else {
            panic!("the client has closed with {code}");
        };
        assert_eq!((said.code.as_u16(), &*said.reason), (code, "why"));
        assert_eq!(scene.ended(), EndReason::Completed, "{code}");
    }
    for code in [
        0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535,
    ] {
        let mut peer = scene.peer();
        peer.send(&close(code, b"why"));
        assert_eq!(peer.frame().text(), "farewell");
        peer.ends_with(1002);
        assert!(matches!(scene.closed(), CloseReason::ByServer(_)), "{code}");
        assert_eq!(scene.ended(), EndReason::ProtocolError, "{code}");
    }
}

fn a_handler_ends_it_and_hears_the_answer<C: Concurrency>(model: C) {
    let scene = Scene::new(Stage::new(model));
    let mut peer = scene.peer();
    peer.say("close");
    assert_eq!(peer.frame().text(), "last words");
    assert_eq!(peer.frame().text(), "farewell");
    assert_eq!(peer.hears_close(1000), "enough");
    // It is waited for.
    std::thread::sleep(ms(200));
    assert_eq!(scene.running.handle.active_count(), 1);
    // What crosses the last frame is not answered, and disturbs nothing.
    peer.say("crossing");
    peer.send(&frame(FIN | PING, b"?"));
    peer.send(&close(1000, b""));
    peer.ends();
    assert!(matches!(scene.closed(), CloseReason::ByServer(close) if close.reason == "enough"));
    assert_eq!(scene.ended(), EndReason::Completed);
}

fn nobody_waits_for_an_answer_for_ever<C: Concurrency>(model: C) {
    let mut stage = Stage::new(model);
    let limits = WebSocketLimits::default().close_timeout(ms(100));
    stage.sockets = WebSocketUpgrade::new().limits(limits);
    let scene = Scene::new(stage);
    let mut peer = scene.peer();
    peer.say("close");
    peer.frame();
    peer.frame();
    let began = Instant::now();
    peer.hears_close(1000);
    // It goes on instead of answering: a byte now and then extends nothing.
    while scene.ends.try_recv().is_err() {
        let _ = peer.0.send(&frame(FIN | PING, b""));
        std::thread::sleep(ms(5));
        assert!(began.elapsed() < PATIENCE);
    }
}

fn failures_are_told_without_a_reason<C: Concurrency>(model: C) {
    let scene = Scene::new(Stage::new(model));
    for (told, reason) in [("fail", EndReason::Failed), ("panic", EndReason::Panicked)] {
        let mut peer = scene.peer();
        peer.say(told);
        assert_eq!(peer.frame().text(), "farewell");
        assert_eq!(peer.ends_with(1011), "the server has failed");
        assert!(matches!(scene.closed(), CloseReason::ByServer(_)));
        assert_eq!(scene.ended(), reason);
    }
}

fn whoever_cannot_be_welcomed_is_told<C: Concurrency>(model: C) {
    struct Unwelcoming(bool);
    impl Handler for Unwelcoming {
        fn opened(&mut self, _: &mut WebSocket<'_>) -> Result<()> {
            assert!(!self.0, "as told");
            Err(std::io::Error::other("no room").into())
        }
        fn message(&mut self, _: &mut WebSocket<'_>, _: Message) -> Result<()> {
            unreachable!("nobody was welcomed")
        }
        fn closed(&mut self, _: &mut WebSocket<'_>, _: &CloseReason) -> Result<()> {
            unreachable!("nobody was welcomed")
        }
    }
    let panics = Arc::new(Mutex::new(false));
    let flag = panics.clone();
    let (running, ends) = Stage::new(model).serve(move || Unwelcoming(*flag.lock().unwrap()));
    for reason in [EndReason::Failed, EndReason::Panicked] {
        Peer::open(&running).ends_with(1011);
        assert_eq!(ends.recv_timeout(PATIENCE).unwrap(), reason);
        *panics.lock().unwrap() = true;
    }
}

fn a_drain_says_so_and_ends_at_once<C: Concurrency>(model: C) {
    let scene = Scene::new(Stage::new(model));
    let peers: Vec<_> = (0..5).map(|_| scene.peer()).collect();
    let handle = scene.running.handle.clone();
    eventually(PATIENCE, "rest", || handle.waiting_count() == 5);
    handle.drain(PATIENCE);
    for mut peer in peers {
        assert_eq!(peer.frame().text(), "farewell");
        peer.ends_with(1001);
        assert_eq!(scene.closed(), CloseReason::Lost);
        assert_eq!(scene.ended(), EndReason::Completed);
    }
    scene.running.ends().unwrap();
}

/// The handler is busy when the drain begins; what it says is still heard.
fn a_drain_waits_for_who_is_busy<C: Concurrency>(model: C) {
    let (begun, begins) = mpsc::channel();
    let (go, wait) = mpsc::channel();
    let begun = Mutex::new(begun);
    let wait = Arc::new(Mutex::new(wait));
    let (running, _ends) = Stage::new(model).serve(move || {
        let (begun, wait) = (begun.lock().unwrap().clone(), wait.clone());
        move |socket: &mut WebSocket<'_>, message: Message| {
            begun.send(())?;
            let _ = wait.lock().unwrap().recv_timeout(PATIENCE);
            Ok(socket.send(message)?)
        }
    });
    let mut peer = Peer::open(&running);
    peer.say("slow");
    begins.recv_timeout(PATIENCE).unwrap();
    running.handle.drain(PATIENCE);
    go.send(()).unwrap();
    assert_eq!(peer.frame().text(), "slow");
    peer.ends_with(1001);
    running.ends().unwrap();
}

/// One that never stops does not hold up the end.
fn a_drain_ends_who_never_stops<C: Concurrency>(model: C) {
    // Slower than its client.
    let (running, _ends) = Stage::new(model).serve(|| {
        |_: &mut WebSocket<'_>, _: Message| {
            std::thread::sleep(ms(1));
            Ok(())
        }
    });
    let Endpoint::Tcp(address) = running.endpoint else {
        unreachable!("it listens on TCP");
    };
    // Two ends of one connection: one sends without end, and the other reads.
    let mut sending = TcpStream::connect(address).unwrap();
    sending.set_write_timeout(Some(PATIENCE)).unwrap();
    sending
        .write_all(format!("{HANDSHAKE}\r\n").as_bytes())
        .unwrap();
    let mut reading = sending.try_clone().unwrap();
    let flood = frame(FIN | TEXT, b"and on").repeat(100);
    let sender = std::thread::spawn(move || while sending.write_all(&flood).is_ok() {});
    let reader = std::thread::spawn(move || std::io::copy(&mut reading, &mut std::io::sink()));
    eventually(PATIENCE, "a flood", || {
        running
            .handle
            .active()
            .iter()
            .any(|one| one.received > 10_000)
    });
    let began = Instant::now();
    running.handle.drain(PATIENCE);
    sender.join().unwrap();
    let _ = reader.join().unwrap();
    assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
    running.ends().unwrap();
}

fn who_goes_without_a_word_is_gone<C: Concurrency>(model: C) {
    let scene = Scene::new(Stage::new(model));
    let peer = scene.peer();
    peer.0.half_close().unwrap();
    assert_eq!(scene.closed(), CloseReason::Lost);
    assert_eq!(scene.ended(), EndReason::Completed);
    scene.peer().0.reset();
    let how = scene.closed();
    assert!(matches!(how, CloseReason::Lost), "{how:?}");
    // The kernel tells of a reset once. Whoever only looks whether there is something to read may
    // be the one who is told.
    let reason = scene.ended();
    assert!(
        matches!(reason, EndReason::Disconnected | EndReason::Completed),
        "{reason:?}"
    );
}

fn one_that_is_cut_is_cut<C: Concurrency>(model: C) {
    let running = serve_echo(model);
    let mut peer = Peer::open(&running);
    peer.say("hello");
    peer.frame();
    eventually(PATIENCE, "rest", || running.handle.waiting_count() == 1);
    let live = running.handle.active();
    assert!(running.handle.cancel(live[0].info.id()));
    assert!(peer.0.was_cut());
    let began = Instant::now();
    eventually(PATIENCE, "its end", || running.handle.active_count() == 0);
    assert!(began.elapsed() < Duration::from_secs(3));
}

crate::common::under_each_model! {
    a_client_ends_it
    every_registered_close_code_is_answered_alike
    a_handler_ends_it_and_hears_the_answer
    nobody_waits_for_an_answer_for_ever
    failures_are_told_without_a_reason
    whoever_cannot_be_welcomed_is_told
    a_drain_says_so_and_ends_at_once
    a_drain_waits_for_who_is_busy
    a_drain_ends_who_never_stops
    who_goes_without_a_word_is_gone
    one_that_is_cut_is_cut
}
