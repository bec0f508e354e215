//! How the thread that serves is scheduled, while it does and afterwards.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::PATIENCE;
use socketserver::transport::Tcp;
use socketserver::{
    Builder, Concurrency, Connection, Green, Result, Server, ServerGroup, Threading, handler_fn,
};

/// sched(7)
const OTHER: u32 = 0;
const BATCH: u32 = 3;

/// That of the calling thread: the 41st field of proc_pid_stat(5), where the second one is in
/// parentheses and may have anything in it.
fn policy() -> u32 {
    let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
    let (_, from_third) = stat.rsplit_once(')').unwrap();
    from_third
        .split_whitespace()
        .nth(38)
        .unwrap()
        .parse()
        .unwrap()
}

/// Tells a client how its handler is scheduled.
fn tell(conn: &mut Connection) -> Result<()> {
    Ok(conn.write_all(policy().to_string().as_bytes())?)
}

/// A server that says how the thread is scheduled that serves, again and again.
fn told_by<C: Concurrency>(model: C) -> (Builder<Tcp, C>, mpsc::Receiver<u32>) {
    let (tell, told) = mpsc::channel();
    let builder = Server::<Tcp, C>::builder()
        .concurrency(model)
        .service_actions(Duration::from_millis(1), move || {
            let _ = tell.send(policy());
            Ok(())
        });
    (builder, told)
}

#[test]
fn a_green_server_leaves_its_thread_as_it_was() {
    let (builder, told) = told_by(Green::new().workers(1));
    let mut server = builder.bind("127.0.0.1:0", handler_fn(tell)).unwrap();
    let address = server.local_addr().as_inet().unwrap();
    let handle = server.handle();
    let (serve, rounds) = mpsc::channel();
    let (ends, ended) = mpsc::channel();
    let serving = thread::spawn(move || {
        assert_eq!(policy(), OTHER);
        for () in rounds {
            let result = server.serve_forever();
            ends.send((policy(), result.is_ok())).unwrap();
        }
    });
    for _ in 0..2 {
        serve.send(()).unwrap();
        assert_eq!(told.recv_timeout(PATIENCE), Ok(BATCH));
        let mut handler = String::new();
        let mut client = TcpStream::connect(address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.read_to_string(&mut handler).unwrap();
        assert_eq!(handler, OTHER.to_string(), "a worker");
        handle.shutdown();
        assert_eq!(ended.recv_timeout(PATIENCE), Ok((OTHER, true)));
        while told.try_recv().is_ok() {}
    }
    handle.drain(PATIENCE);
    // The first one comes to the end of the drain, and the second one cannot begin.
    for is_ok in [true, false] {
        serve.send(()).unwrap();
        assert_eq!(ended.recv_timeout(PATIENCE), Ok((OTHER, is_ok)));
    }
    drop(serve);
    serving.join().unwrap();
}

#[test]
fn who_serves_others_as_well_is_scheduled_as_before() {
    let (builder, told) = told_by(Green::new().workers(1));
    let green = builder.bind("127.0.0.1:0", handler_fn(tell)).unwrap();
    let (builder, beside) = told_by(Threading::new());
    let threading = builder.bind("127.0.0.1:0", handler_fn(tell)).unwrap();
    let mut group = ServerGroup::new().with(green).with(threading);
    let handle = group.handle();
    let serving = thread::spawn(move || group.serve_forever().is_ok());
    for told in [told, beside] {
        assert_eq!(told.recv_timeout(PATIENCE), Ok(OTHER));
    }
    handle.drain(PATIENCE);
    assert!(serving.join().unwrap());
}

#[test]
fn who_says_so_is_scheduled_as_before() {
    let model = Green::new().workers(1).batch_scheduling(false);
    let (builder, told) = told_by(model);
    let mut server = builder.bind("127.0.0.1:0", handler_fn(tell)).unwrap();
    let handle = server.handle();
    let serving = thread::spawn(move || server.serve_forever().is_ok());
    assert_eq!(told.recv_timeout(PATIENCE), Ok(OTHER));
    handle.drain(PATIENCE);
    assert!(serving.join().unwrap());
}
