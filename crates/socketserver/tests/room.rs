//! Rooms: all members receive all messages in one order, and a slow member never delays the others.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use common::TIMEOUT;
use common::client::{Client, Endpoint};
use common::running::Running;
use socketserver::transport::Tcp;
use socketserver::{
    Concurrency, Connection, EndReason, Event, Rate, Result, Room, RoomLimits, Server, Timeouts,
    handler_fn,
};

#[track_caller]
fn wait_until(condition: impl FnMut() -> bool) {
    common::eventually(TIMEOUT, "the condition of the test", condition);
}

/// Each line of a client goes to all members; `quit` leaves, `panic` panics.
fn chat(room: Room) -> impl Fn(&mut Connection) -> Result<()> + Clone + Send + Sync + 'static {
    move |conn| {
        let member = room.join(conn)?;
        let mut line = String::new();
        while conn.read_line(&mut line)? > 0 && line != "quit\n" {
            assert!(line != "panic\n", "on request");
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
    let (tx, ends) = mpsc::channel();
    let server = Server::<Tcp, C>::builder()
        .concurrency(model)
        .timeouts(Timeouts::default().write(Some(write)))
        .on_event(move |event| {
            if let Event::Ended(_, end) = event {
                let _ = tx.send(end.reason);
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
    /// Connects a client that joins the room.
    fn client(&self) -> TcpStream {
        let Endpoint::Tcp(address) = self.running.endpoint else {
            unreachable!("the transport is TCP");
        };
        let before = self.room.counters().members;
        let client = TcpStream::connect(address).unwrap();
        client.set_read_timeout(Some(TIMEOUT)).unwrap();
        client.set_write_timeout(Some(TIMEOUT)).unwrap();
        wait_until(|| self.room.counters().members > before);
        client
    }

    fn ended(&self) -> EndReason {
        self.ends.recv_timeout(TIMEOUT).unwrap()
    }
}

fn read_exactly(client: &mut impl Read, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    client.read_exact(&mut bytes).unwrap();
    bytes
}

fn members_receive_all_messages_in_one_order<C: Concurrency>(model: C) {
    const CLIENTS: usize = 8;
    const LINES: usize = 200;
    let chat = open(model, RoomLimits::default(), TIMEOUT);
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
    // The lines of one client arrive in the order in which it has sent them.
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

fn member_that_does_not_read_is_disconnected_and_delays_no_other<C: Concurrency>(model: C) {
    let limits = RoomLimits::default().messages(50).bytes(1 << 20);
    let chat = open(model, limits, TIMEOUT);
    let silent = chat.client();
    let mut listener = chat.client();
    let mut sender = chat.client();
    let line = [vec![b'x'; 100_000], b"\n".to_vec()].concat();
    let mut slowest = Duration::ZERO;
    while chat.room.counters().slow_consumer == 0 {
        let started = Instant::now();
        sender.write_all(&line).unwrap();
        assert_eq!(read_exactly(&mut sender, line.len()), line);
        assert_eq!(read_exactly(&mut listener, line.len()), line);
        slowest = slowest.max(started.elapsed());
    }
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    assert_eq!(chat.ended(), EndReason::SlowConsumer);
    wait_until(|| chat.running.handle.counters().slow_consumer == 1);
    assert_eq!(chat.room.counters().members, 2);
    drop(silent);
    sender.write_all(b"still here\n").unwrap();
    assert_eq!(read_exactly(&mut listener, 11), b"still here\n");
}

fn member_with_one_blocked_write_is_disconnected<C: Concurrency>(model: C) {
    // One message that exceeds all buffers, and none after it.
    let chat = open(
        model,
        RoomLimits::default().bytes(1),
        Duration::from_millis(300),
    );
    let _silent = chat.client();
    assert_eq!(chat.room.send(vec![b'x'; 64 << 20]), 1);
    assert_eq!(chat.ended(), EndReason::SlowConsumer);
    assert_eq!(chat.room.counters().slow_consumer, 1);
}

fn flooding_member_is_slowed_by_back_pressure<C: Concurrency>(model: C) {
    let limits = RoomLimits::default().messages(8).bytes(64 << 10);
    let chat = open(model, limits, TIMEOUT);
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

fn byte_rate_delays_only_the_fast_member<C: Concurrency>(model: C) {
    let rate = Rate::per_second(50_000).burst(10_000);
    let chat = open(model, RoomLimits::default().byte_rate(rate), TIMEOUT);
    let (mut fast, mut other) = (chat.client(), chat.client());
    let line = [vec![b'x'; 999], b"\n".to_vec()].concat();
    let started = Instant::now();
    fast.write_all(&line.repeat(40)).unwrap();
    // The line arrives at once, between the lines of the delayed member.
    other.write_all(b"here\n").unwrap();
    let mut received = Vec::new();
    while !received.ends_with(b"here\n") {
        received.extend(read_exactly(&mut other, 1));
    }
    assert!(received.len() < 30_000, "{}", received.len());
    read_exactly(&mut other, 40_005 - received.len());
    let took = started.elapsed();
    assert!(took > Duration::from_millis(550), "{took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(chat.room.counters().slow_consumer, 0);
}

fn message_rate_delays_a_fast_member<C: Concurrency>(model: C) {
    let rate = Rate::per_second(100).burst(5);
    let chat = open(model, RoomLimits::default().message_rate(rate), TIMEOUT);
    let mut fast = chat.client();
    let started = Instant::now();
    fast.write_all(&b"x\n".repeat(40)).unwrap();
    read_exactly(&mut fast, 80);
    let took = started.elapsed();
    assert!(took > Duration::from_millis(330), "{took:?}");
}

fn delayed_member_is_cancelled_at_once<C: Concurrency>(model: C) {
    let rate = Rate::per_second(1).burst(10);
    let chat = open(model, RoomLimits::default().byte_rate(rate), TIMEOUT);
    let mut fast = chat.client();
    // The rate would delay the second line by two minutes.
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

/// The total time does not matter as long as each write progresses.
fn slow_reader_that_progresses_is_not_disconnected<C: Concurrency>(model: C) {
    let limits = RoomLimits::default().messages(1000).bytes(512 << 10);
    let chat = open(model, limits, Duration::from_secs(2));
    let mut slow = chat.client();
    let mut writer = slow.try_clone().unwrap();
    let line = [vec![b'z'; 9_999], b"\n".to_vec()].concat();
    let (total, sent) = (2_500 * line.len(), line.clone());
    // Far more than all buffers hold.
    let writing = std::thread::spawn(move || {
        (0..2_500).for_each(|_| writer.write_all(&sent).unwrap());
    });
    let started = Instant::now();
    let mut read = 0;
    while read < total {
        read += read_exactly(&mut slow, 200_000).len();
        // Slow for more than twice the write timeout; the rest is then read at once.
        if started.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    writing.join().unwrap();
    assert_eq!(chat.room.counters().slow_consumer, 0);
}

fn member_leaves_on_reset_and_panic<C: Concurrency>(model: C) {
    let chat = open(model, RoomLimits::default(), TIMEOUT);
    let mut stays = chat.client();
    let panics = chat.client();
    (&panics).write_all(b"panic\n").unwrap();
    assert_eq!(chat.ended(), EndReason::Panicked);
    let mut resets = Client::connect(&chat.running.endpoint).unwrap();
    wait_until(|| chat.room.counters().members == 2);
    resets.send(b"hello\n").unwrap();
    resets.reset();
    wait_until(|| chat.room.counters().members == 1);
    stays.write_all(b"on\n").unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"on\n") {
        seen.extend(read_exactly(&mut stays, 1));
    }
}

fn closed_room_sends_its_last_message_and_ends_its_members<C: Concurrency>(model: C) {
    let chat = open(model, RoomLimits::default(), TIMEOUT);
    let mut clients: Vec<_> = (0..3).map(|_| chat.client()).collect();
    assert_eq!(chat.room.send(*b"goodbye\n"), 3);
    chat.room.close();
    for client in &mut clients {
        let mut all = String::new();
        client.read_to_string(&mut all).unwrap();
        assert_eq!(all, "goodbye\n");
        assert_eq!(chat.ended(), EndReason::Completed);
    }
    assert_eq!(chat.running.client().read_rest().unwrap(), b"");
    assert_eq!(chat.ended(), EndReason::Failed);
}

fn leaked_member_does_not_delay_a_drain<C: Concurrency>(model: C) {
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
    drop(running.client().read_rest());
    wait_until(|| leaked.load(Ordering::SeqCst) == 1);
    room.send(*b"no member");
    running.handle.drain(TIMEOUT);
    running.wait_until_stopped().unwrap();
}

// A sequential server has one member at a time. A child of a forking server has its own copy of the
// room.
common::under_each_model! {
    members_receive_all_messages_in_one_order
    member_that_does_not_read_is_disconnected_and_delays_no_other
    member_with_one_blocked_write_is_disconnected
    flooding_member_is_slowed_by_back_pressure
    byte_rate_delays_only_the_fast_member
    message_rate_delays_a_fast_member
    delayed_member_is_cancelled_at_once
    slow_reader_that_progresses_is_not_disconnected
    member_leaves_on_reset_and_panic
    closed_room_sends_its_last_message_and_ends_its_members
    leaked_member_does_not_delay_a_drain
}
