//! Framing: messages from streams that deliver them in parts, glued together, truncated, or not at
//! all.
//!
//! | File | Contents |
//! |---|---|
//! | `codecs.rs` | properties of every codec, as one macro |
//! | `hostile.rs` | invalid inputs of single formats |
//! | `streams.rs` | errors of the stream, memory, and a change of the owner |
//! | `bodies.rs` | bodies in parts |
//! | `servers.rs` | handlers |
//! | `properties.rs`, `random.rs` | random inputs |

#![allow(clippy::unwrap_used, reason = "a test prints why it fails")]

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
