//! User code may panic in every place where the server calls it.

#![allow(clippy::unwrap_used)]

mod common;

use std::error::Error as StdError;
use std::fmt;
use std::io::{Read, Write};
use std::time::Duration;

use common::TIMEOUT;
use common::running::Running;
use socketserver::transport::Tcp;
use socketserver::{Concurrency, Connection, Pooled, Sequential, Server, Threading, handler_fn};

/// An error that panics in one of its methods.
#[derive(Debug, Clone, Copy)]
enum PanicIn {
    Source,
    Display,
    Drop,
}

impl fmt::Display for PanicIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        assert!(!matches!(self, Self::Display), "in Display");
        f.write_str("an error")
    }
}

impl StdError for PanicIn {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        assert!(!matches!(self, Self::Source), "in source");
        None
    }
}

#[derive(Debug)]
struct PanickingError(PanicIn);

impl fmt::Display for PanickingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for PanickingError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

impl Drop for PanickingError {
    fn drop(&mut self) {
        assert!(!matches!(self.0, PanicIn::Drop), "in Drop");
    }
}

/// Sends requests whose handler returns such errors, and then expects a reply.
fn assert_survives<C: Concurrency>(model: C) {
    // Formats each event, as a log does.
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
                let panic_in = match byte[0] {
                    b's' => PanicIn::Source,
                    b'd' => PanicIn::Display,
                    b'x' => PanicIn::Drop,
                    _ => return Ok(conn.write_all(b"!")?),
                };
                Err(PanickingError(panic_in).into())
            }),
        )
        .unwrap();
    let running = Running::start(server);
    for panic_in in b"sdxsdxsdx" {
        let mut client = running.client();
        client.send(&[*panic_in]).unwrap();
        assert!(client.was_closed_by_server());
    }
    let mut client = running.client();
    client.send(b"?").unwrap();
    assert_eq!(client.read_rest().unwrap(), b"!");
    let handle = running.handle.clone();
    handle.drain(TIMEOUT);
    running.wait_until_stopped().unwrap();
    let counters = handle.counters();
    assert_eq!((counters.accepted, handle.active_count()), (10, 0));
}

#[test]
fn sequential_server_survives_panicking_errors() {
    assert_survives(Sequential);
}

#[test]
fn threading_server_survives_panicking_errors() {
    assert_survives(Threading::new());
}

#[test]
fn pooled_server_survives_panicking_errors() {
    // Fewer threads than errors: a pool that loses a thread to each would be empty.
    assert_survives(Pooled::new().workers(2));
}

#[cfg(feature = "green")]
#[test]
fn green_server_survives_panicking_errors() {
    assert_survives(socketserver::Green::new().workers(1));
}

#[test]
fn server_survives_panicking_errors_of_hooks() {
    let mut server = Server::<Tcp, Sequential>::builder()
        .verify_request(|_| Err(PanickingError(PanicIn::Drop).into()))
        .service_actions(Duration::from_millis(1), || {
            Err(PanickingError(PanicIn::Display).into())
        })
        .handle_timeout(|| Err(PanickingError(PanicIn::Drop).into()))
        .bind("127.0.0.1:0", handler_fn(|_: &mut Connection| Ok(())))
        .unwrap();
    server
        .handle_request(Some(Duration::from_millis(1)))
        .unwrap();
    let running = Running::start(server);
    for _ in 0..5 {
        assert!(running.client().was_closed_by_server());
    }
    let handle = running.handle.clone();
    handle.shutdown();
    running.wait_until_stopped().unwrap();
    assert_eq!(handle.counters().refused, 5);
}

/// Hooks and observers run in the coroutine of their request: they may panic and wait.
#[cfg(feature = "green")]
mod on_one_worker {
    use super::*;
    use socketserver::{Event, Green};

    fn assert_served_with_hooks(act: fn()) {
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
        let mut other = running.client();
        for _ in 0..5 {
            let mut client = running.client();
            client.send(b"x").unwrap();
            assert!(client.was_closed_by_server());
        }
        other.send(b"?").unwrap();
        assert_eq!(other.read_rest().unwrap(), b"!");
        let handle = running.handle.clone();
        handle.drain(TIMEOUT);
        running.wait_until_stopped().unwrap();
        assert_eq!(handle.active_count(), 0);
    }

    #[test]
    fn panicking_hook_does_not_end_its_worker() {
        assert_served_with_hooks(|| panic!("from user code"));
    }

    #[test]
    fn waiting_hook_does_not_block_its_worker() {
        assert_served_with_hooks(|| {
            greenroom::yield_now();
            greenroom::sleep(Duration::from_millis(1));
        });
    }
}
