//! Places are short and a client waits: connections that use nothing are cut for it, those that are
//! at work are not.

#![allow(
    clippy::unwrap_used,
    reason = "a test says why it fails, or is skipped"
)]

mod common;

use std::io::{BufRead, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::client::Endpoint;
use common::running::{Running, echo};
use common::{PATIENCE, eventually, under_each_model};
use rustix::net::sockopt;
#[cfg(feature = "green")]
use socketserver::greenroom;
use socketserver::transport::Tcp;
use socketserver::{
    Admission, Builder, Concurrency, Connection, Displacement, EndReason, Event, OverloadPolicy,
    Pooled, RequestHandler, Result, Server, Threading, Timeouts, handler_fn,
};

/// Places of each server here.
const PLACES: usize = 4;

/// Longer than a silent connection is left, and shorter than an idle one.
const A_WHILE: Duration = Duration::from_secs(1);

struct Full {
    running: Running,
    told: Receiver<String>,
}

fn builder<C: Concurrency>(model: C) -> Builder<Tcp, C> {
    Server::<Tcp, C>::builder()
        .concurrency(model)
        .admission(Admission::new().max_active(PLACES))
}

fn start<C, F, H>(builder: Builder<Tcp, C>, handler: F) -> Full
where
    C: Concurrency,
    F: Fn() -> H + Send + Sync + 'static,
    H: RequestHandler<Connection> + 'static,
{
    let (tell, told) = channel();
    let builder = builder.on_event(move |event| {
        if let Event::DisplacementStarted { .. } = event {
            let _ = tell.send(format!("{event:?}"));
        }
    });
    let running = Running::start(builder.bind("127.0.0.1:0", handler).unwrap());
    Full { running, told }
}

impl Full {
    fn connect(&self) -> TcpStream {
        let Endpoint::Tcp(address) = self.running.endpoint else {
            unreachable!("it is TCP");
        };
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Takes all places.
    fn crowd(&self) -> Vec<TcpStream> {
        let crowd = (0..PLACES).map(|_| self.connect()).collect();
        let is_full = || self.running.handle.active_count() == PLACES;
        eventually(PATIENCE, "all places are taken", is_full);
        crowd
    }

    fn displaced(&self) -> u64 {
        self.running.handle.counters().displaced
    }
}

fn ask(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"hello\n")?;
    stream.read_exact(&mut [0; 6])
}

#[track_caller]
fn is_served(stream: &mut TcpStream) {
    ask(stream).expect("it is not served");
}

/// Whether nothing arrives for a while, not even an end.
fn is_left_alone(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(A_WHILE)).unwrap();
    let heard = stream.read(&mut [0]);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    heard.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

fn silent_connections_make_room<C: Concurrency>(model: C) {
    let server = start(builder(model), echo());
    let crowd = server.crowd();
    let began = Instant::now();
    for n in 1..=2 {
        is_served(&mut server.connect());
        assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
        assert!(server.displaced() <= n);
    }
    // One that has gone may have made room for the second.
    assert!(server.displaced() >= 1);
    let told: Vec<_> = server.told.try_iter().collect();
    assert_eq!(told.len(), 1, "{told:?}");
    let ended = server.running.handle.counters().ends();
    let displaced = ended.into_iter().find(|(reason, _)| *reason == "displaced");
    assert_eq!(displaced, Some(("displaced", server.displaced())));
    drop(crowd);
}

/// Half a line is no message.
fn those_who_begin_and_say_no_more_make_room<C: Concurrency>(model: C) {
    let server = start(builder(model), echo());
    let mut crowd = server.crowd();
    for stream in &mut crowd {
        stream.write_all(b"hel").unwrap();
    }
    is_served(&mut server.connect());
    assert_eq!(server.displaced(), 1);
}

fn idle_connections_make_room_after_the_silent<C: Concurrency>(model: C) {
    let displacement = Displacement::new().idle(Duration::from_millis(600));
    let server = start(builder(model).displacement(displacement), echo());
    let mut first = server.connect();
    is_served(&mut first);
    let crowd: Vec<_> = (1..PLACES).map(|_| server.connect()).collect();
    let mut newcomers = Vec::new();
    for _ in 1..PLACES {
        let mut newcomer = server.connect();
        is_served(&mut newcomer);
        newcomers.push(newcomer);
    }
    // The silent ones have gone.
    is_served(&mut first);
    // Now all are idle, and the oldest goes.
    is_served(&mut newcomers[0]);
    is_served(&mut newcomers[1]);
    is_served(&mut newcomers[2]);
    is_served(&mut server.connect());
    assert_eq!(server.displaced(), 4);
    assert_eq!(first.read(&mut [0]).unwrap_or(0), 0, "it was the oldest");
    drop(crowd);
}

/// It may take as long as it likes.
fn what_is_being_computed_is_never_cut<C: Concurrency>(model: C) {
    let (release, wait) = channel::<()>();
    let wait = Arc::new(Mutex::new(wait));
    let handler = handler_fn(move |conn: &mut Connection| {
        let mut line = String::new();
        conn.read_line(&mut line)?;
        // One after the other, and the rest in the lock.
        let wait = wait.clone();
        let waiting = move || drop(wait.lock().map(|wait| wait.recv()));
        compute(waiting);
        Ok(conn.write_all(line.as_bytes())?)
    });
    let server = start(builder(model), handler);
    let mut crowd = server.crowd();
    for stream in &mut crowd {
        stream.write_all(b"hello\n").unwrap();
    }
    let mut newcomer = server.connect();
    newcomer.write_all(b"hello\n").unwrap();
    assert!(is_left_alone(&mut newcomer));
    for _ in 0..=PLACES {
        release.send(()).unwrap();
    }
    for stream in crowd.iter_mut().chain([&mut newcomer]) {
        stream.read_exact(&mut [0; 6]).unwrap();
    }
    assert_eq!(server.displaced(), 0);
}

#[cfg(feature = "green")]
fn compute(work: impl FnOnce() + Send + 'static) {
    greenroom::unblock(work);
}

#[cfg(not(feature = "green"))]
fn compute(work: impl FnOnce()) {
    work();
}

/// The lowest rate of a server is lower than that, or none.
fn those_who_hardly_read_make_room<C: Concurrency>(model: C) {
    let handler = handler_fn(|conn: &mut Connection| -> Result<()> {
        let mut line = String::new();
        conn.read_line(&mut line)?;
        if line == "much\n" {
            let piece = [b'x'; 1 << 16];
            loop {
                conn.write_all(&piece)?;
            }
        }
        Ok(conn.write_all(line.as_bytes())?)
    });
    let timeouts = Timeouts::default().send_rate(None);
    let server = start(builder(model).timeouts(timeouts), handler);
    let mut crowd = server.crowd();
    for stream in &mut crowd {
        // What finds room there is taken for read.
        sockopt::set_socket_recv_buffer_size(&*stream, 4096).unwrap();
        stream.write_all(b"much\n").unwrap();
    }
    // One reads, as fast as it can.
    let mut reader = crowd.pop().unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let seen = is_over.clone();
    let reading = std::thread::spawn(move || {
        let (mut piece, mut read) = (vec![0; 1 << 16], 0);
        while !seen.load(Ordering::Relaxed) {
            match reader.read(&mut piece) {
                Ok(1..) => read += 1,
                other => panic!("{other:?} after {read}"),
            }
        }
    });
    is_served(&mut server.connect());
    assert!(server.displaced() >= 1);
    is_over.store(true, Ordering::Relaxed);
    reading.join().unwrap();
}

fn nothing_is_cut_if_displacement_is_off<C: Concurrency>(model: C) {
    let server = start(builder(model).displacement(Displacement::off()), echo());
    let mut crowd = server.crowd();
    let mut newcomer = server.connect();
    newcomer.write_all(b"hello\n").unwrap();
    assert!(is_left_alone(&mut newcomer));
    for stream in &mut crowd {
        is_served(stream);
    }
    crowd.pop();
    newcomer.read_exact(&mut [0; 6]).unwrap();
    assert_eq!(server.displaced(), 0);
}

fn nothing_is_cut_while_no_client_waits<C: Concurrency>(model: C) {
    let displacement = Displacement::new().idle(Duration::from_millis(100));
    let server = start(builder(model).displacement(displacement), echo());
    let mut crowd = server.crowd();
    assert!(is_left_alone(&mut crowd[0]));
    // One that has waited and gone is nobody who waits.
    for stream in &mut crowd {
        is_served(stream);
    }
    assert_eq!(server.displaced(), 0);
}

under_each_model! {
    silent_connections_make_room
    those_who_begin_and_say_no_more_make_room
    idle_connections_make_room_after_the_silent
    what_is_being_computed_is_never_cut
    those_who_hardly_read_make_room
    nothing_is_cut_if_displacement_is_off
    nothing_is_cut_while_no_client_waits
}

/// A client that would be rejected takes the place of one that uses nothing, as soon as that has gone.
#[test]
fn a_silent_connection_goes_and_not_the_newcomer_where_clients_are_rejected() {
    let model = Threading::new().overload_policy(OverloadPolicy::Reject);
    let server = start(builder(model), echo());
    let crowd = server.crowd();
    assert!(ask(&mut server.connect()).is_err(), "they are new as well");
    std::thread::sleep(Duration::from_millis(600));
    is_served(&mut server.connect());
    assert_eq!(server.displaced(), 1);
    drop(crowd);
}

#[test]
fn the_threads_of_a_pool_are_places_too() {
    let (tell, told) = channel();
    let model = Pooled::new().workers(2).queue(0);
    let builder = Server::<Tcp, Pooled>::builder()
        .concurrency(model)
        .on_event(move |event| {
            if let Event::Ended(_, ended) = event {
                let _ = tell.send(ended.reason);
            }
        });
    let server = start(builder, echo());
    let crowd: Vec<_> = (0..2).map(|_| server.connect()).collect();
    is_served(&mut server.connect());
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), EndReason::Displaced);
    drop(crowd);
}
