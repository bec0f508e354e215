//! WebSockets under each model, as bytes and by a client that was not written here.
//!
//! | File | What it has |
//! |---|---|
//! | `peer.rs` | a client that makes each frame by hand, right or wrong |
//! | `handshake.rs` | who may open one, and what others are answered |
//! | `messages.rs` | messages of all sizes and in all pieces; pings; several senders |
//! | `hostile.rs` | what breaks the rules, and the code it ends with |
//! | `closing.rs` | the end, from both sides, by failures and by drains |
//! | `silence.rs` | limits on waiting, and what extends them |
//! | `rooms.rs` | rooms with clients of both kinds |

#![allow(clippy::unwrap_used, reason = "a test says why it fails")]

mod closing;
#[path = "../common/mod.rs"]
mod common;
mod handshake;
mod hostile;
mod messages;
mod peer;
mod rooms;
mod silence;
