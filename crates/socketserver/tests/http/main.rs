//! HTTP: parsers on bytes, and servers on connections.
//!
//! | File | Contents |
//! |---|---|
//! | `heads.rs`, `chunks.rs` | valid and invalid requests and bodies as bytes |
//! | `random.rs` | random inputs |
//! | `client.rs` | a client that checks each byte of an answer |
//! | `serving.rs` | requests and answers under each model |
//! | `bodies.rs` | bodies of requests |
//! | `rejections.rs` | rejected requests: limits, request smuggling, slow clients |
//! | `failures.rs` | handlers and readers that fail |
//! | `files.rs` | files, ranges, and conditional requests |

#![allow(clippy::unwrap_used, reason = "a test prints why it fails")]

mod bodies;
mod chunks;
mod client;
#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "green")]
mod conversations;
mod failures;
mod files;
mod heads;
mod random;
#[path = "../../src/http/range.rs"]
mod range;
#[path = "../../../../fuzz/src/http_range.rs"]
mod range_target;
mod rejections;
mod serving;
#[path = "../../../../fuzz/src/http.rs"]
mod targets;
