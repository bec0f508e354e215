//! Rooms with clients of both kinds: those who read bytes, and those who read messages.

use std::time::{Duration, Instant};

use socketserver::websocket::{CloseReason, Handler, Message, WebSocket};
use socketserver::{
    Concurrency, Connection, EndReason, Member, Result, Room, RoomLimits, ThreadingTcpServer,
    handler_fn,
};

use crate::common::running::Running;
use crate::common::{PATIENCE, eventually};
use crate::peer::{BINARY, FIN, PING, PONG, Peer, Stage, TEXT, close, frame};

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

fn both_kinds_hear_the_same_in_one_order<C: Concurrency>(model: C) {
    const EACH: usize = 100;
    let room = Room::new();
    let web = {
        let room = room.clone();
        Stage::new(model).serve(move || Chat(room.clone(), None)).0
    };
    let terminals = plain(room.clone());
    let mut peers = [Peer::open(&web), Peer::open(&web)];
    let mut clients = [terminals.client(), terminals.client()];
    eventually(PATIENCE, "all are in", || room.counters().members == 4);
    let all = std::thread::scope(|scope| {
        let mut heard = Vec::new();
        for (n, peer) in peers.iter_mut().enumerate() {
            heard.push(scope.spawn(move || {
                let mut all = String::new();
                for i in 0..EACH {
                    peer.say(&format!("p{n} {i:03}\n"));
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
            heard.push(scope.spawn(move || {
                let mut all = String::new();
                for i in 0..EACH {
                    client.send(format!("c{n} {i:03}\n").as_bytes()).unwrap();
                }
                while all.len() < 4 * EACH * 7 {
                    all += &client.hear().unwrap().unwrap();
                    all.push('\n');
                }
                all
            }));
        }
        heard
            .into_iter()
            .map(|one| one.join().unwrap())
            .collect::<Vec<_>>()
    });
    assert!(all.iter().all(|one| *one == all[0]), "different orders");
    // What is no text arrives as it is.
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

fn what_was_said_before_is_heard_before_the_end<C: Concurrency>(model: C) {
    let room = Room::new();
    let (running, ends) = {
        let room = room.clone();
        Stage::new(model).serve(move || Chat(room.clone(), None))
    };
    let mut peer = Peer::open(&running);
    let many: Vec<u8> = (0..100)
        .flat_map(|_| frame(FIN | TEXT, &[b'x'; 5000]))
        .collect();
    peer.send(&[many, close(1000, b"")].concat());
    for _ in 0..100 {
        assert_eq!(peer.frame().payload.len(), 5000);
    }
    peer.ends_with(1000);
    assert_eq!(ends.recv_timeout(PATIENCE).unwrap(), EndReason::Completed);

    // And when the room closes.
    let mut peer = Peer::open(&running);
    eventually(PATIENCE, "it is in", || room.counters().members == 1);
    room.send(&b"closing time"[..]);
    room.close();
    assert_eq!(peer.frame().text(), "closing time");
    peer.ends_with(1001);
}

fn a_browser_that_does_not_read_is_cut_and_nobody_waits<C: Concurrency>(model: C) {
    let room = Room::with_limits(RoomLimits::default().messages(50).bytes(1 << 20));
    let (running, ends) = {
        let room = room.clone();
        Stage::new(model).serve(move || Chat(room.clone(), None))
    };
    let frozen = Peer::open(&running);
    let mut talking = Peer::open(&running);
    eventually(PATIENCE, "both are in", || room.counters().members == 2);
    let text = "x".repeat(100_000);
    let mut slowest = Duration::ZERO;
    let mut said = 0;
    while room.counters().slow_consumer == 0 {
        assert!(said < 2000, "nobody was cut");
        let began = Instant::now();
        talking.say(&text);
        assert_eq!(talking.frame().text().len(), text.len());
        slowest = slowest.max(began.elapsed());
        said += 1;
    }
    assert_eq!(
        ends.recv_timeout(PATIENCE).unwrap(),
        EndReason::SlowConsumer
    );
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    drop(frozen);
    talking.say("still here");
    assert_eq!(talking.frame().text(), "still here");
}

crate::common::under_each_model! {
    both_kinds_hear_the_same_in_one_order
    what_was_said_before_is_heard_before_the_end
    a_browser_that_does_not_read_is_cut_and_nobody_waits
}
