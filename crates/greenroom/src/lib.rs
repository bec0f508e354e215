//! Stackful coroutines on an epoll loop: blocking code at event-loop cost.
//!
//! A coroutine reads, writes, sleeps and locks as a thread does. Where a thread would block, the
//! coroutine is parked and its worker runs another one. A switch costs a few nanoseconds. A stack
//! costs the pages that it has touched. No code has to be `async`.
//!
//! ```
//! use greenroom::Runtime;
//! use greenroom::net::{TcpListener, TcpStream};
//! use std::io::{Read, Write};
//!
//! let runtime = Runtime::new()?;
//! let listener = TcpListener::bind("127.0.0.1:0")?;
//! let address = listener.local_addr()?;
//! let server = runtime.spawn(move || -> std::io::Result<()> {
//!     let (mut stream, _) = listener.accept()?;
//!     let mut message = [0; 5];
//!     stream.read_exact(&mut message)?;
//!     stream.write_all(&message)
//! })?;
//!
//! // The same types work outside of the runtime, where they block the thread.
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
//! * A coroutine stays on its worker. Thread-locals, `Rc`, and guards that are not `Send` may be
//!   held across a wait. A thread-local is shared with the other coroutines of the worker.
//! * A suspended coroutine is never destroyed by force. A shutdown makes its waits fail.
//! * A coroutine that is panicking cannot wait: I/O in a destructor fails, and sleeping returns at
//!   once. The same applies to a `tracing` subscriber while it is notified that a waiting coroutine
//!   leaves or enters a span. A panic of the subscriber is caught.
//! * The destructor of a coroutine's name, result or panic payload runs in that coroutine, and may
//!   wait. A panic of the destructor is caught.
//! * A call that blocks the thread blocks every coroutine of the worker. Use the [`sync`] types of
//!   this crate, pass blocking calls to [`unblock()`], and let long computations call [`give_way`]
//!   or [`yield_now`]. [`Builder::on_stall`] reports coroutines that do not.
//!
//! # Platform
//!
//! Requires Linux 5.11 or later (`epoll_pwait2`). Guard pages cost nothing on 6.13 or later.

#[cfg(not(target_os = "linux"))]
compile_error!("greenroom requires Linux: it is built on epoll and eventfd");

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
pub use worker::TIME_SLICE;
