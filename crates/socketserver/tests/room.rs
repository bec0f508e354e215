//! Rooms: one order for everybody, and nobody waits for who does not read.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use common::PATIENCE;
use common::client::{Client, Endpoint};
use common::running::Running;
use socketserver::transport::Tcp;
use socketserver::{
    Concurrency, Connection, EndReason, Event, Rate, Result, Room, RoomLimits, Server, Timeouts,
    handler_fn,
};

#[track_caller]
fn until(condition: impl FnMut() -> bool) {
    common::eventually(PATIENCE, "what the test waits for", condition);
}

/// Every line that any client sends goes to all of them; `quit` leaves, `panic` panics.
fn chat(room: Room) -> impl Fn(&mut Connection) -> Result<()> + Clone + Send + Sync + 'static {
    move |conn| {
        let member = room.join(conn)?;
        let mut line = String::new();
        while conn.read_line(&mut line)? > 0 && line != "quit\n" {
            assert!(line != "panic\n", "as told");
            member.send(line.as_bytes())?;
            line.clear();
        }
        Ok(member.leave()?)
    }
}

struct Chat {
    running: Running,
    room: Room,
    ends: mpsc::Receiver<EndReason>,
}

fn open<C: Concurrency>(model: C, limits: RoomLimits, write: Duration) -> Chat {
    let room = Room::with_limits(limits);
    let (told, ends) = mpsc::channel();
    let server = Server::<Tcp, C>::builder()
        .concurrency(model)
        .timeouts(Timeouts::default().write(Some(write)))
        .on_event(move |event| {
            if let Event::Ended(_, end) = event {
                let _ = told.send(end.reason);
            }
        })
        .bind("127.0.0.1:0", handler_fn(chat(room.clone())))
        .unwrap();
    Chat {
        running: Running::start(server),
        room,
        ends,
    }
}

impl Chat {
    /// A client that is in the room.
    fn client(&self) -> TcpStream {
        let Endpoint::Tcp(address) = self.running.endpoint else {
            unreachable!("it listens on TCP");
        };
        let before = self.room.counters().members;
        let client = TcpStream::connect(address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        until(|| self.room.counters().members > before);
        client
    }

    fn ended(&self) -> EndReason {
        self.ends.recv_timeout(PATIENCE).unwrap()
    }
}

fn read_exactly(client: &mut impl Read, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    client.read_exact(&mut bytes).unwrap();
    bytes
}

fn everybody_gets_everything_in_one_order<C: Concurrency>(model: C) {
    const CLIENTS: usize = 8;
    const LINES: usize = 200;
    let chat = open(model, RoomLimits::default(), PATIENCE);
    let clients: Vec<_> = (0..CLIENTS).map(|_| chat.client()).collect();
    let threads: Vec<_> = clients
        .into_iter()
        .enumerate()
        .map(|(number, mut client)| {
            std::thread::spawn(move || {
                let mut reader = client.try_clone().unwrap();
                let reading = std::thread::spawn(move || {
                    read_exactly(&mut reader, CLIENTS * LINES * "0 000\n".len())
                });
                for n in 0..LINES {
                    client
                        .write_all(format!("{number} {n:03}\n").as_bytes())
                        .unwrap();
                }
                let seen = reading.join().unwrap();
                client.write_all(b"quit\n").unwrap();
                let mut rest = Vec::new();
                client.read_to_end(&mut rest).unwrap();
                assert_eq!(rest, b"");
                seen
            })
        })
        .collect();
    let seen: Vec<_> = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect();
    assert!(seen.iter().all(|other| *other == seen[0]));
    // And what one client has sent is in the order in which it did.
    let text = String::from_utf8(seen[0].clone()).unwrap();
    for number in 0..CLIENTS {
        let own = text
            .lines()
            .filter(|line| line.starts_with(&number.to_string()));
        assert!(
            own.map(str::to_owned)
                .eq((0..LINES).map(|n| format!("{number} {n:03}")))
        );
    }
    assert_eq!(chat.room.counters().messages, (CLIENTS * LINES) as u64);
    for _ in 0..CLIENTS {
        assert_eq!(chat.ended(), EndReason::Completed);
    }
    assert_eq!(chat.room.counters().members, 0);
}

fn who_does_not_read_is_cut_and_nobody_waits<C: Concurrency>(model: C) {
    let limits = RoomLimits::default().messages(50).bytes(1 << 20);
    let chat = open(model, limits, PATIENCE);
    let frozen = chat.client();
    let mut listening = chat.client();
    let mut talking = chat.client();
    let line = [vec![b'x'; 100_000], b"\n".to_vec()].concat();
    let mut slowest = Duration::ZERO;
    while chat.room.counters().slow_consumer == 0 {
        let started = Instant::now();
        talking.write_all(&line).unwrap();
        assert_eq!(read_exactly(&mut talking, line.len()), line);
        assert_eq!(read_exactly(&mut listening, line.len()), line);
        slowest = slowest.max(started.elapsed());
    }
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    assert_eq!(chat.ended(), EndReason::SlowConsumer);
    until(|| chat.running.handle.counters().slow_consumer == 1);
    assert_eq!(chat.room.counters().members, 2);
    drop(frozen);
    talking.write_all(b"still here\n").unwrap();
    assert_eq!(read_exactly(&mut listening, 11), b"still here\n");
}

fn one_blocked_write_is_enough<C: Concurrency>(model: C) {
    // More than the buffers on the way hold, and nothing after it.
    let chat = open(
        model,
        RoomLimits::default().bytes(1),
        Duration::from_millis(300),
    );
    let _frozen = chat.client();
    assert_eq!(chat.room.send(vec![b'x'; 64 << 20]), 1);
    assert_eq!(chat.ended(), EndReason::SlowConsumer);
    assert_eq!(chat.room.counters().slow_consumer, 1);
}

fn who_floods_is_read_as_fast_as_it_reads<C: Concurrency>(model: C) {
    let limits = RoomLimits::default().messages(8).bytes(64 << 10);
    let chat = open(model, limits, PATIENCE);
    let mut flooding = chat.client();
    let mut writer = flooding.try_clone().unwrap();
    let line = [vec![b'y'; 9_999], b"\n".to_vec()].concat();
    let sent = line.clone();
    let writing = std::thread::spawn(move || {
        for _ in 0..1000 {
            writer.write_all(&sent).unwrap();
        }
    });
    for _ in 0..1000 {
        assert_eq!(read_exactly(&mut flooding, line.len()), line);
    }
    writing.join().unwrap();
    assert_eq!(chat.room.counters().slow_consumer, 0);
}

fn a_member_that_sends_too_fast_is_delayed_alone<C: Concurrency>(model: C) {
    let rate = Rate::per_second(50_000).burst(10_000);
    let chat = open(model, RoomLimits::default().byte_rate(rate), PATIENCE);
    let (mut fast, mut other) = (chat.client(), chat.client());
    let line = [vec![b'x'; 999], b"\n".to_vec()].concat();
    let started = Instant::now();
    fast.write_all(&line.repeat(40)).unwrap();
    // It is heard at once, between the lines of the delayed member.
    other.write_all(b"here\n").unwrap();
    let mut heard = Vec::new();
    while !heard.ends_with(b"here\n") {
        heard.extend(read_exactly(&mut other, 1));
    }
    assert!(heard.len() < 30_000, "{}", heard.len());
    read_exactly(&mut other, 40_005 - heard.len());
    let took = started.elapsed();
    assert!(took > Duration::from_millis(550), "{took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(chat.room.counters().slow_consumer, 0);
}

fn messages_are_limited_as_bytes_are<C: Concurrency>(model: C) {
    let rate = Rate::per_second(100).burst(5);
    let chat = open(model, RoomLimits::default().message_rate(rate), PATIENCE);
    let mut fast = chat.client();
    let started = Instant::now();
    fast.write_all(&b"x\n".repeat(40)).unwrap();
    read_exactly(&mut fast, 80);
    let took = started.elapsed();
    assert!(took > Duration::from_millis(330), "{took:?}");
}

fn a_delayed_member_is_cut_at_once<C: Concurrency>(model: C) {
    let rate = Rate::per_second(1).burst(10);
    let chat = open(model, RoomLimits::default().byte_rate(rate), PATIENCE);
    let mut fast = chat.client();
    // The second one would wait for two minutes.
    fast.write_all(&[&[b'x'; 129][..], b"\ny\n"].concat())
        .unwrap();
    read_exactly(&mut fast, 130);
    let started = Instant::now();
    for request in chat.running.handle.active() {
        assert!(chat.running.handle.cancel(request.info.id()));
    }
    assert_eq!(chat.ended(), EndReason::Cancelled);
    assert!(started.elapsed() < Duration::from_secs(2));
}

/// However long it takes in all, as long as it goes on.
fn who_reads_slowly_is_not_cut<C: Concurrency>(model: C) {
    let limits = RoomLimits::default().messages(1000).bytes(512 << 10);
    let chat = open(model, limits, Duration::from_secs(2));
    let mut slow = chat.client();
    let mut writer = slow.try_clone().unwrap();
    let line = [vec![b'z'; 9_999], b"\n".to_vec()].concat();
    let (total, sent) = (2_500 * line.len(), line.clone());
    // Far more than the buffers on the way hold.
    let writing = std::thread::spawn(move || {
        (0..2_500).for_each(|_| writer.write_all(&sent).unwrap());
    });
    let started = Instant::now();
    let mut read = 0;
    while read < total {
        read += read_exactly(&mut slow, 200_000).len();
        // For longer than twice what one write may wait; what is left then is read at once.
        if started.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    writing.join().unwrap();
    assert_eq!(chat.room.counters().slow_consumer, 0);
}

fn who_vanishes_or_panics_leaves<C: Concurrency>(model: C) {
    let chat = open(model, RoomLimits::default(), PATIENCE);
    let mut stays = chat.client();
    let panics = chat.client();
    (&panics).write_all(b"panic\n").unwrap();
    assert_eq!(chat.ended(), EndReason::Panicked);
    let mut resets = Client::connect(&chat.running.endpoint).unwrap();
    until(|| chat.room.counters().members == 2);
    resets.send(b"hello\n").unwrap();
    resets.reset();
    until(|| chat.room.counters().members == 1);
    stays.write_all(b"on\n").unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"on\n") {
        seen.extend(read_exactly(&mut stays, 1));
    }
}

fn a_closed_room_ends_its_members_and_says_the_last_word<C: Concurrency>(model: C) {
    let chat = open(model, RoomLimits::default(), PATIENCE);
    let mut clients: Vec<_> = (0..3).map(|_| chat.client()).collect();
    assert_eq!(chat.room.send(*b"goodbye\n"), 3);
    chat.room.close();
    for client in &mut clients {
        let mut all = String::new();
        client.read_to_string(&mut all).unwrap();
        assert_eq!(all, "goodbye\n");
        assert_eq!(chat.ended(), EndReason::Completed);
    }
    assert_eq!(chat.running.client().rest().unwrap(), b"");
    assert_eq!(chat.ended(), EndReason::Failed);
}

fn a_member_that_is_leaked_holds_up_nobody<C: Concurrency>(model: C) {
    let room = Room::new();
    let leaked = Arc::new(AtomicUsize::new(0));
    let (own, count) = (room.clone(), leaked.clone());
    let server = Server::<Tcp, C>::builder()
        .concurrency(model)
        .bind(
            "127.0.0.1:0",
            handler_fn(move |conn: &mut Connection| {
                std::mem::forget(own.join(conn)?);
                count.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }),
        )
        .unwrap();
    let running = Running::start(server);
    drop(running.client().rest());
    until(|| leaked.load(Ordering::SeqCst) == 1);
    room.send(*b"to nobody");
    running.handle.drain(PATIENCE);
    running.ends().unwrap();
}

// A sequential server has one member at a time, and a forking one has none but the child's own.
common::under_each_model! {
    everybody_gets_everything_in_one_order
    who_does_not_read_is_cut_and_nobody_waits
    one_blocked_write_is_enough
    who_floods_is_read_as_fast_as_it_reads
    a_member_that_sends_too_fast_is_delayed_alone
    messages_are_limited_as_bytes_are
    a_delayed_member_is_cut_at_once
    who_reads_slowly_is_not_cut
    who_vanishes_or_panics_leaves
    a_closed_room_ends_its_members_and_says_the_last_word
    a_member_that_is_leaked_holds_up_nobody
}
