//! Messages out of streams that deliver them in pieces, glued together, cut short, or not at all.
//!
//! | File | What it has |
//! |---|---|
//! | `codecs.rs` | what holds for every codec, as one macro |
//! | `hostile.rs` | what only one format can be given |
//! | `streams.rs` | errors of the stream, memory, and moving from one owner to another |
//! | `bodies.rs` | bodies in pieces |
//! | `servers.rs` | handlers |
//! | `properties.rs`, `random.rs` | what nobody thought of |

#![allow(clippy::unwrap_used, reason = "a test says why it fails")]

mod bodies;
mod codecs;
#[path = "../common/mod.rs"]
mod common;
mod hostile;
mod properties;
mod random;
mod script;
mod servers;
mod streams;
#[path = "../../../../fuzz/src/lib.rs"]
mod targets;
