//! Rooms with both kinds of clients: plain ones read bytes, and WebSocket ones read messages.

use std::time::{Duration, Instant};

use socketserver::websocket::{CloseReason, Handler, Message, WebSocket};
use socketserver::{
    Concurrency, Connection, EndReason, Member, Result, Room, RoomLimits, ThreadingTcpServer,
    handler_fn,
};

use crate::common::running::Running;
use crate::common::{TIMEOUT, eventually};
use crate::peer::{BINARY, FIN, PING, PONG, Peer, Setup, TEXT, close, frame};

struct Chat(Room, Option<Member>);

impl Handler for Chat {
    fn opened(&mut self, socket: &mut WebSocket<'_>) -> Result<()> {
        self.1 = Some(self.0.join_websocket(socket)?);
        Ok(())
    }

    fn message(&mut self, _: &mut WebSocket<'_>, message: Message) -> Result<()> {
        match &self.1 {
            Some(member) => Ok(member.send(message.as_bytes())?),
            None => Ok(()),
        }
    }

    fn closed(&mut self, _: &mut WebSocket<'_>, _: &CloseReason) -> Result<()> {
        match self.1.take() {
            Some(member) => Ok(member.leave()?),
            None => Ok(()),
        }
    }
}

fn plain(room: Room) -> Running {
    let chat = handler_fn(move |conn: &mut Connection| {
        use std::io::Read;
        let member = room.join(conn)?;
        let mut chunk = [0; 1024];
        loop {
            match conn.read(&mut chunk)? {
                0 => return Ok(member.leave()?),
                n => member.send(&chunk[..n])?,
            }
        }
    });
    let server = ThreadingTcpServer::bind("127.0.0.1:0", chat);
    Running::start(server.unwrap())
}

fn both_kinds_receive_the_same_messages_in_one_order<C: Concurrency>(model: C) {
    const EACH: usize = 100;
    let room = Room::new();
    let web = {
        let room = room.clone();
        Setup::new(model).serve(move || Chat(room.clone(), None)).0
    };
    let plain_server = plain(room.clone());
    let mut peers = [Peer::open(&web), Peer::open(&web)];
    let mut clients = [plain_server.client(), plain_server.client()];
    eventually(TIMEOUT, "all members to join", || {
        room.counters().members == 4
    });
    let all = std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (n, peer) in peers.iter_mut().enumerate() {
            threads.push(scope.spawn(move || {
                let mut all = String::new();
                for i in 0..EACH {
                    peer.send_text(&format!("p{n} {i:03}\n"));
                    if i % 10 == 0 {
                        peer.send(&frame(FIN | PING, b""));
                    }
                }
                while all.len() < 4 * EACH * 7 {
                    let frame = peer.frame();
                    if frame.opcode != PONG {
                        all += frame.text();
                    }
                }
                all
            }));
        }
        for (n, client) in clients.iter_mut().enumerate() {
            threads.push(scope.spawn(move || {
                let mut all = String::new();
                for i in 0..EACH {
                    client.send(format!("c{n} {i:03}\n").as_bytes()).unwrap();
                }
                while all.len() < 4 * EACH * 7 {
                    all += &client.receive_line().unwrap().unwrap();
                    all.push('\n');
                }
                all
            }));
        }
        threads
            .into_iter()
            .map(|one| one.join().unwrap())
            .collect::<Vec<_>>()
    });
    assert!(all.iter().all(|one| *one == all[0]), "different orders");
    // Bytes that are not UTF-8 arrive as a binary message.
    clients[0].send(b"\xff\xfe").unwrap();
    for peer in &mut peers {
        let frame = peer.frame();
        let last = if frame.opcode == PONG {
            peer.frame()
        } else {
            frame
        };
        assert_eq!((last.opcode, &last.payload[..]), (BINARY, &b"\xff\xfe"[..]));
    }
}

fn messages_before_the_close_are_delivered<C: Concurrency>(model: C) {
    let room = Room::new();
    let (running, ends) = {
        let room = room.clone();
        Setup::new(model).serve(move || Chat(room.clone(), None))
    };
    let mut peer = Peer::open(&running);
    let many: Vec<u8> = (0..100)
        .flat_map(|_| frame(FIN | TEXT, &[b'x'; 5000]))
        .collect();
    peer.send(&[many, close(1000, b"")].concat());
    for _ in 0..100 {
        assert_eq!(peer.frame().payload.len(), 5000);
    }
    peer.expect_close(1000);
    assert_eq!(ends.recv_timeout(TIMEOUT).unwrap(), EndReason::Completed);

    // The same when the room closes.
    let mut peer = Peer::open(&running);
    eventually(TIMEOUT, "the member to join", || {
        room.counters().members == 1
    });
    room.send(&b"last message"[..]);
    room.close();
    assert_eq!(peer.frame().text(), "last message");
    peer.expect_close(1001);
}

fn websocket_that_does_not_read_is_disconnected_and_delays_no_other<C: Concurrency>(model: C) {
    let room = Room::with_limits(RoomLimits::default().messages(50).bytes(1 << 20));
    let (running, ends) = {
        let room = room.clone();
        Setup::new(model).serve(move || Chat(room.clone(), None))
    };
    let silent = Peer::open(&running);
    let mut sender = Peer::open(&running);
    eventually(TIMEOUT, "both members to join", || {
        room.counters().members == 2
    });
    let text = "x".repeat(100_000);
    let mut slowest = Duration::ZERO;
    let mut sent = 0;
    while room.counters().slow_consumer == 0 {
        assert!(sent < 2000, "no member was disconnected");
        let start = Instant::now();
        sender.send_text(&text);
        assert_eq!(sender.frame().text().len(), text.len());
        slowest = slowest.max(start.elapsed());
        sent += 1;
    }
    assert_eq!(ends.recv_timeout(TIMEOUT).unwrap(), EndReason::SlowConsumer);
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    drop(silent);
    sender.send_text("still here");
    assert_eq!(sender.frame().text(), "still here");
}

crate::common::under_each_model! {
    both_kinds_receive_the_same_messages_in_one_order
    messages_before_the_close_are_delivered
    websocket_that_does_not_read_is_disconnected_and_delays_no_other
}
