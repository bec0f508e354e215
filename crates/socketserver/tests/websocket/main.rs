//! WebSockets under each model: frames as bytes, and an independent client.
//!
//! | File | Contents |
//! |---|---|
//! | `peer.rs` | a client that builds each frame, valid or not |
//! | `handshake.rs` | accepted and rejected handshakes |
//! | `messages.rs` | messages of all sizes and in all parts; pings; several senders |
//! | `hostile.rs` | protocol errors and their close codes |
//! | `closing.rs` | the close by each side, by failures and by drains |
//! | `timeouts.rs` | timeouts, and the frames that extend them |
//! | `rooms.rs` | rooms with plain and WebSocket clients |

#![allow(clippy::unwrap_used, reason = "a test prints why it fails")]

mod closing;
#[path = "../common/mod.rs"]
mod common;
mod handshake;
mod hostile;
mod messages;
mod peer;
mod rooms;
mod timeouts;
