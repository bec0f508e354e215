//! WebSocketLimits on waiting, and what extends them.

use std::time::{Duration, Instant};

use socketserver::websocket::{Handler, Message, Sender, WebSocket};
use socketserver::{Concurrency, EndReason, MinRate, Result, Timeouts};

use crate::common::PATIENCE;
use crate::peer::{BINARY, FIN, PING, PONG, Peer, Stage, TEXT, echo, frame, ms};

const IDLE: Duration = ms(300);

fn silence_has_an_end<C: Concurrency>(model: C) {
    let mut stage = Stage::new(model);
    stage.timeouts = Timeouts::default().idle(Some(IDLE));
    let (running, ends) = stage.serve(|| echo);
    let began = Instant::now();
    let mut peer = Peer::open(&running);
    peer.say("hello");
    peer.frame();
    // Nobody asks by default.
    assert_eq!(peer.ends_with(1008), "silent for too long");
    assert!(began.elapsed() >= IDLE);
    assert_eq!(ends.recv_timeout(PATIENCE).unwrap(), EndReason::TimedOut);
}

/// Long enough that a machine which has much to do does not look like a client that is silent.
fn who_answers_stays_and_who_does_not_goes<C: Concurrency>(model: C) {
    const IDLE: Duration = ms(3000);
    let mut stage = Stage::new(model);
    stage.timeouts = Timeouts::default().idle(Some(IDLE));
    stage.sockets = stage.sockets.ping_interval(Some(IDLE / 2));
    let (running, ends) = stage.serve(|| echo);
    let began = Instant::now();
    let mut peer = Peer::open(&running);
    while began.elapsed() < IDLE {
        let asked = peer.frame();
        assert_eq!(asked.opcode, PING, "{asked:?}");
        peer.send(&frame(FIN | PONG, &asked.payload));
    }
    let heard = Instant::now();
    // Once in each silence, however long that is; and the question does not extend it.
    assert_eq!(peer.frame().opcode, PING);
    peer.ends_with(1008);
    let lasted = heard.elapsed();
    assert!(lasted >= IDLE - ms(50), "{lasted:?}");
    assert!(lasted < IDLE + IDLE / 2 - ms(100), "{lasted:?}");
    assert_eq!(ends.recv_timeout(PATIENCE).unwrap(), EndReason::TimedOut);
}

/// What is sent to a client does not prove that it is there.
fn messages_to_it_extend_nothing<C: Concurrency>(model: C) {
    struct Chatty;
    impl Handler for Chatty {
        fn opened(&mut self, socket: &mut WebSocket<'_>) -> Result<()> {
            let sender: Sender = socket.sender();
            std::thread::spawn(move || {
                while sender.send("still here?").is_ok() {
                    std::thread::sleep(ms(10));
                }
            });
            Ok(())
        }
        fn message(&mut self, _: &mut WebSocket<'_>, _: Message) -> Result<()> {
            Ok(())
        }
    }
    let mut stage = Stage::new(model);
    stage.timeouts = Timeouts::default().idle(Some(IDLE));
    let (running, ends) = stage.serve(|| Chatty);
    let mut peer = Peer::open(&running);
    let began = Instant::now();
    while peer.frame().opcode == TEXT {}
    assert!(began.elapsed() < 4 * IDLE, "{:?}", began.elapsed());
    assert_eq!(ends.recv_timeout(PATIENCE).unwrap(), EndReason::TimedOut);
}

/// A message that has begun keeps up the rate, whatever else is sent between its parts.
fn who_trickles_is_cut<C: Concurrency>(model: C) {
    let mut stage = Stage::new(model);
    let rate = MinRate::bytes_per_second(10_000).grace(ms(200));
    stage.timeouts = Timeouts::default().receive_rate(Some(rate));
    let (running, ends) = stage.serve(|| echo);
    let mut peer = Peer::open(&running);
    // Silence between messages is none of its business.
    for _ in 0..2 {
        std::thread::sleep(ms(400));
        peer.say("hello");
        assert_eq!(peer.frame().text(), "hello");
    }
    peer.send(&frame(BINARY, b""));
    let began = Instant::now();
    while ends.try_recv().is_err() {
        let _ = peer.0.send(&frame(FIN | PONG, b""));
        std::thread::sleep(ms(10));
        assert!(began.elapsed() < PATIENCE, "it trickles for ever");
    }
    peer.hears_close(1008);
}

crate::common::under_each_model! {
    silence_has_an_end
    who_answers_stays_and_who_does_not_goes
    messages_to_it_extend_nothing
    who_trickles_is_cut
}
