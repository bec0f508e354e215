//! Timeouts, and the frames that extend them.

use std::time::{Duration, Instant};

use socketserver::websocket::{Handler, Message, Sender, WebSocket};
use socketserver::{Concurrency, EndReason, MinRate, Result, Timeouts};

use crate::common::TIMEOUT;
use crate::peer::{BINARY, FIN, PING, PONG, Peer, Setup, TEXT, echo, frame, ms};

const IDLE: Duration = ms(300);

fn silent_client_ends_at_the_idle_timeout<C: Concurrency>(model: C) {
    let mut setup = Setup::new(model);
    setup.timeouts = Timeouts::default().idle(Some(IDLE));
    let (running, ends) = setup.serve(|| echo);
    let start = Instant::now();
    let mut peer = Peer::open(&running);
    peer.send_text("hello");
    peer.frame();
    // The server sends no pings by default.
    assert_eq!(peer.expect_close(1008), "silent for too long");
    assert!(start.elapsed() >= IDLE);
    assert_eq!(ends.recv_timeout(TIMEOUT).unwrap(), EndReason::TimedOut);
}

/// A long timeout, so that a busy machine does not look like a silent client.
fn pong_extends_the_idle_timeout<C: Concurrency>(model: C) {
    const IDLE: Duration = ms(3000);
    let mut setup = Setup::new(model);
    setup.timeouts = Timeouts::default().idle(Some(IDLE));
    setup.sockets = setup.sockets.ping_interval(Some(IDLE / 2));
    let (running, ends) = setup.serve(|| echo);
    let start = Instant::now();
    let mut peer = Peer::open(&running);
    while start.elapsed() < IDLE {
        let ping = peer.frame();
        assert_eq!(ping.opcode, PING, "{ping:?}");
        peer.send(&frame(FIN | PONG, &ping.payload));
    }
    let last_pong = Instant::now();
    // One ping per idle period, however long the period is; the ping does not extend it.
    assert_eq!(peer.frame().opcode, PING);
    peer.expect_close(1008);
    let elapsed = last_pong.elapsed();
    assert!(elapsed >= IDLE - ms(50), "{elapsed:?}");
    assert!(elapsed < IDLE + IDLE / 2 - ms(100), "{elapsed:?}");
    assert_eq!(ends.recv_timeout(TIMEOUT).unwrap(), EndReason::TimedOut);
}

/// Messages to a client do not prove that it is connected.
fn messages_to_a_client_do_not_extend_its_timeout<C: Concurrency>(model: C) {
    struct SendsAlways;
    impl Handler for SendsAlways {
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
    let mut setup = Setup::new(model);
    setup.timeouts = Timeouts::default().idle(Some(IDLE));
    let (running, ends) = setup.serve(|| SendsAlways);
    let mut peer = Peer::open(&running);
    let start = Instant::now();
    while peer.frame().opcode == TEXT {}
    assert!(start.elapsed() < 4 * IDLE, "{:?}", start.elapsed());
    assert_eq!(ends.recv_timeout(TIMEOUT).unwrap(), EndReason::TimedOut);
}

/// An incomplete message must keep up the receive rate, whatever other frames arrive between its
/// fragments.
fn slow_message_ends_at_the_receive_rate<C: Concurrency>(model: C) {
    let mut setup = Setup::new(model);
    let rate = MinRate::bytes_per_second(10_000).grace(ms(200));
    setup.timeouts = Timeouts::default().receive_rate(Some(rate));
    let (running, ends) = setup.serve(|| echo);
    let mut peer = Peer::open(&running);
    // Silence between messages does not count for the rate.
    for _ in 0..2 {
        std::thread::sleep(ms(400));
        peer.send_text("hello");
        assert_eq!(peer.frame().text(), "hello");
    }
    peer.send(&frame(BINARY, b""));
    let start = Instant::now();
    while ends.try_recv().is_err() {
        let _ = peer.0.send(&frame(FIN | PONG, b""));
        std::thread::sleep(ms(10));
        assert!(
            start.elapsed() < TIMEOUT,
            "the server never closes a slow connection"
        );
    }
    peer.expect_close_frame(1008);
}

crate::common::under_each_model! {
    silent_client_ends_at_the_idle_timeout
    pong_extends_the_idle_timeout
    messages_to_a_client_do_not_extend_its_timeout
    slow_message_ends_at_the_receive_rate
}
