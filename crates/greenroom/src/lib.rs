//! Stackful coroutines on an epoll loop: blocking code at event-loop cost.
//!
//! A coroutine reads, writes, sleeps and locks as a thread does. Where a thread would block, the
//! coroutine is parked and its worker runs another one. Switching costs a few nanoseconds, a stack
//! costs the pages it has touched, and nothing has to be `async`.
//!
//! ```
//! use greenroom::Runtime;
//! use greenroom::net::{TcpListener, TcpStream};
//! use std::io::{Read, Write};
//!
//! let engine = Runtime::new()?;
//! let listener = TcpListener::bind("127.0.0.1:0")?;
//! let address = listener.local_addr()?;
//! let server = engine.spawn(move || -> std::io::Result<()> {
//!     let (mut stream, _) = listener.accept()?;
//!     let mut word = [0; 5];
//!     stream.read_exact(&mut word)?;
//!     stream.write_all(&word)
//! })?;
//!
//! // The same types work outside of the engine, and block the thread.
//! let mut client = TcpStream::connect(address)?;
//! client.write_all(b"hello")?;
//! let mut echo = [0; 5];
//! client.read_exact(&mut echo)?;
//! assert_eq!(&echo, b"hello");
//! server.join().unwrap()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Rules
//!
//! * A coroutine stays on its worker. Thread-locals, `Rc`, and guards that are not `Send` are safe
//!   to hold across a wait; but what is thread-local is shared with the worker's other coroutines.
//! * A suspended coroutine is never destroyed by force. Shutting down makes its waits fail.
//! * A coroutine that is panicking cannot wait: I/O in a destructor fails, sleeping returns at once.
//!   The same holds for a `tracing` subscriber that is told that a coroutine enters or leaves a span
//!   because it waits. A panic there is caught.
//! * The destructor of a coroutine's name, result or panic runs in that coroutine, and may wait. A
//!   panic there is caught.
//! * What blocks the thread blocks every coroutine of the worker: take the [`sync`] types of this
//!   crate, put blocking calls into [`unblock()`], and let long computations [`give_way`] or
//!   [`yield_now`].
//!   [`Builder::on_stall`] finds what was overlooked.
//!
//! # Platform
//!
//! Linux 5.11 or later (`epoll_pwait2`); 6.13 for guard pages that cost nothing.

#[cfg(not(target_os = "linux"))]
compile_error!("greenroom is built on epoll and eventfd: it needs Linux");

mod batch_sched;
mod block_on;
mod join;
mod mailbox;
pub mod net;
mod park;
mod reactor;
mod runtime;
mod send_queue;
mod slab;
#[cfg(feature = "tracing")]
mod span;
mod stack;
mod stall;
pub mod sync;
mod sync_shim;
mod task;
mod task_name;
mod time;
mod timer;
mod unblock;
mod worker;

pub use batch_sched::BatchScheduling;
pub use block_on::block_on;
pub use join::JoinHandle;
pub use reactor::{Interest, Readiness};
pub use runtime::{
    Builder, Counters, Runtime, SpawnError, SpawnPermit, give_way, is_coroutine, spawn, yield_now,
};
pub use stack::GuardPages;
pub use stall::Stall;
pub use task_name::TaskName;
pub use time::{sleep, sleep_until};
pub use unblock::{MAX_BLOCKING_THREADS, unblock};
pub use worker::LONGEST_STREAK;
