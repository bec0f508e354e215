//! What belongs to the application may do anything, in every place where it is called.

#![allow(clippy::unwrap_used)]

mod common;

use std::error::Error as StdError;
use std::fmt;
use std::io::{Read, Write};
use std::time::Duration;

use common::PATIENCE;
use common::running::Running;
use socketserver::transport::Tcp;
use socketserver::{Concurrency, Connection, Pooled, Sequential, Server, Threading, handler_fn};

/// An error that panics wherever it can.
#[derive(Debug, Clone, Copy)]
enum Bomb {
    Source,
    Display,
    Drop,
}

impl fmt::Display for Bomb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        assert!(!matches!(self, Self::Display), "in Display");
        f.write_str("bomb")
    }
}

impl StdError for Bomb {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        assert!(!matches!(self, Self::Source), "in source");
        None
    }
}

#[derive(Debug)]
struct Armed(Bomb);

impl fmt::Display for Armed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for Armed {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        assert!(!matches!(self.0, Bomb::Drop), "in Drop");
    }
}

/// Sends bombs to a server that formats what its handlers return, then asks it for an answer.
fn survives<C: Concurrency>(model: C) {
    // Formats whatever it is told, as a log does.
    let builder = Server::<Tcp, C>::builder()
        .concurrency(model)
        .on_event(|event| {
            let _ = format!("{event:?}");
        });
    let server = builder
        .verify_request(|_| Ok(true))
        .bind(
            "127.0.0.1:0",
            handler_fn(|conn: &mut Connection| {
                let mut byte = [0];
                conn.read_exact(&mut byte)?;
                let bomb = match byte[0] {
                    b's' => Bomb::Source,
                    b'd' => Bomb::Display,
                    b'x' => Bomb::Drop,
                    _ => return Ok(conn.write_all(b"!")?),
                };
                Err(Armed(bomb).into())
            }),
        )
        .unwrap();
    let running = Running::start(server);
    for bomb in b"sdxsdxsdx" {
        let mut client = running.client();
        client.send(&[*bomb]).unwrap();
        assert!(client.was_cut());
    }
    let mut client = running.client();
    client.send(b"?").unwrap();
    assert_eq!(client.rest().unwrap(), b"!");
    let handle = running.handle.clone();
    handle.drain(PATIENCE);
    running.ends().unwrap();
    let counters = handle.counters();
    assert_eq!((counters.accepted, handle.active_count()), (10, 0));
}

#[test]
fn errors_that_panic_under_sequential() {
    survives(Sequential);
}

#[test]
fn errors_that_panic_under_threading() {
    survives(Threading::new());
}

#[test]
fn errors_that_panic_under_pooled() {
    // Fewer threads than bombs: a pool that loses one to each would be empty.
    survives(Pooled::new().workers(2));
}

#[cfg(feature = "green")]
#[test]
fn errors_that_panic_under_green() {
    survives(socketserver::Green::new().workers(1));
}

#[test]
fn hooks_that_return_errors_that_panic() {
    let mut server = Server::<Tcp, Sequential>::builder()
        .verify_request(|_| Err(Armed(Bomb::Drop).into()))
        .service_actions(
            Duration::from_millis(1),
            || Err(Armed(Bomb::Display).into()),
        )
        .handle_timeout(|| Err(Armed(Bomb::Drop).into()))
        .bind("127.0.0.1:0", handler_fn(|_: &mut Connection| Ok(())))
        .unwrap();
    server
        .handle_request(Some(Duration::from_millis(1)))
        .unwrap();
    let running = Running::start(server);
    for _ in 0..5 {
        assert!(running.client().was_cut());
    }
    let handle = running.handle.clone();
    handle.shutdown();
    running.ends().unwrap();
    assert_eq!(handle.counters().refused, 5);
}

/// Hooks and observers run in the coroutine of their request: they may panic, and they may wait.
#[cfg(feature = "green")]
mod on_one_worker {
    use super::*;
    use socketserver::{Event, Green};

    fn serves_on(act: fn()) {
        struct Handler(fn());
        impl Drop for Handler {
            fn drop(&mut self) {
                if !std::thread::panicking() {
                    self.0();
                }
            }
        }
        impl socketserver::RequestHandler<Connection> for Handler {
            fn handle(&mut self, conn: &mut Connection) -> socketserver::Result<()> {
                let mut byte = [0];
                conn.read_exact(&mut byte)?;
                if byte == *b"?" {
                    return Ok(conn.write_all(b"!")?);
                }
                Err(std::io::Error::other("not a question").into())
            }
        }
        let server = Server::<Tcp, Green>::builder()
            .concurrency(Green::new().workers(1))
            .on_event(move |event| {
                if matches!(
                    event,
                    Event::Started(_) | Event::Failed(..) | Event::Closing(_) | Event::Ended(..)
                ) {
                    act();
                }
            })
            .handle_error(move |_, _| {
                act();
                Ok(())
            })
            .bind("127.0.0.1:0", move || Handler(act))
            .unwrap();
        let running = Running::start(server);
        let mut between = running.client();
        for _ in 0..5 {
            let mut client = running.client();
            client.send(b"x").unwrap();
            assert!(client.was_cut());
        }
        between.send(b"?").unwrap();
        assert_eq!(between.rest().unwrap(), b"!");
        let handle = running.handle.clone();
        handle.drain(PATIENCE);
        running.ends().unwrap();
        assert_eq!(handle.active_count(), 0);
    }

    #[test]
    fn what_panics_ends_no_worker() {
        serves_on(|| panic!("from the user's code"));
    }

    #[test]
    fn what_waits_keeps_no_worker() {
        serves_on(|| {
            greenroom::yield_now();
            greenroom::sleep(Duration::from_millis(1));
        });
    }
}
