//! The scheduling policy of the accept loop's thread, during and after serving.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::TIMEOUT;
use socketserver::transport::Tcp;
use socketserver::{
    Builder, Concurrency, Connection, Green, Result, Server, ServerGroup, Threading, handler_fn,
};

/// The policies of sched(7).
const OTHER: u32 = 0;
const BATCH: u32 = 3;

/// Returns the policy of the calling thread: the 41st field of proc_pid_stat(5). The second field
/// is in parentheses and may contain any characters.
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

/// Sends the policy of the handler's thread to the client.
fn send_policy(conn: &mut Connection) -> Result<()> {
    Ok(conn.write_all(policy().to_string().as_bytes())?)
}

/// Returns a server that reports the policy of its accept loop's thread once per millisecond.
fn reporting<C: Concurrency>(model: C) -> (Builder<Tcp, C>, mpsc::Receiver<u32>) {
    let (tx, policies) = mpsc::channel();
    let builder = Server::<Tcp, C>::builder()
        .concurrency(model)
        .service_actions(Duration::from_millis(1), move || {
            let _ = tx.send(policy());
            Ok(())
        });
    (builder, policies)
}

#[test]
fn green_server_restores_the_policy_of_its_thread() {
    let (builder, policies) = reporting(Green::new().workers(1));
    let mut server = builder
        .bind("127.0.0.1:0", handler_fn(send_policy))
        .unwrap();
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
        assert_eq!(policies.recv_timeout(TIMEOUT), Ok(BATCH));
        let mut handler = String::new();
        let mut client = TcpStream::connect(address).unwrap();
        client.set_read_timeout(Some(TIMEOUT)).unwrap();
        client.read_to_string(&mut handler).unwrap();
        assert_eq!(handler, OTHER.to_string(), "the policy of a worker");
        handle.shutdown();
        assert_eq!(ended.recv_timeout(TIMEOUT), Ok((OTHER, true)));
        while policies.try_recv().is_ok() {}
    }
    handle.drain(TIMEOUT);
    // The first call serves until the end of the drain, and the second one returns an error.
    for is_ok in [true, false] {
        serve.send(()).unwrap();
        assert_eq!(ended.recv_timeout(TIMEOUT), Ok((OTHER, is_ok)));
    }
    drop(serve);
    serving.join().unwrap();
}

#[test]
fn group_with_another_model_keeps_the_default_policy() {
    let (builder, policies) = reporting(Green::new().workers(1));
    let green = builder
        .bind("127.0.0.1:0", handler_fn(send_policy))
        .unwrap();
    let (builder, other_policies) = reporting(Threading::new());
    let threading = builder
        .bind("127.0.0.1:0", handler_fn(send_policy))
        .unwrap();
    let mut group = ServerGroup::new().with(green).with(threading);
    let handle = group.handle();
    let serving = thread::spawn(move || group.serve_forever().is_ok());
    for policies in [policies, other_policies] {
        assert_eq!(policies.recv_timeout(TIMEOUT), Ok(OTHER));
    }
    handle.drain(TIMEOUT);
    assert!(serving.join().unwrap());
}

#[test]
fn batch_scheduling_can_be_disabled() {
    let model = Green::new().workers(1).batch_scheduling(false);
    let (builder, policies) = reporting(model);
    let mut server = builder
        .bind("127.0.0.1:0", handler_fn(send_policy))
        .unwrap();
    let handle = server.handle();
    let serving = thread::spawn(move || server.serve_forever().is_ok());
    assert_eq!(policies.recv_timeout(TIMEOUT), Ok(OTHER));
    handle.drain(TIMEOUT);
    assert!(serving.join().unwrap());
}
