//! HTTP, as bytes and over connections.
//!
//! | File | What it has |
//! |---|---|
//! | `heads.rs`, `chunks.rs` | requests and bodies as bytes: what is understood, and what is refused |
//! | `random.rs` | what nobody thought of |
//! | `conversations.rs` | random requests one after the other, and their answers |
//! | `client.rs` | a client that sees each byte of an answer |
//! | `serving.rs` | requests and answers under each model |
//! | `bodies.rs` | bodies of requests |
//! | `refusing.rs` | what is refused, and how: limits, smuggling, the slow |
//! | `failing.rs` | handlers and readers that fail |
//! | `files.rs` | files, parts of them, and conditions |

#![allow(clippy::unwrap_used, reason = "a test says why it fails")]

mod bodies;
mod chunks;
mod client;
#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "green")]
mod conversations;
mod failing;
mod files;
mod heads;
mod random;
#[path = "../../src/http/range.rs"]
mod range;
#[path = "../../../../fuzz/src/http_range.rs"]
mod range_target;
mod refusing;
mod serving;
#[path = "../../../../fuzz/src/http.rs"]
mod targets;
