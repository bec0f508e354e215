//! Every limit there is, of the library and of the programs: its default, what happens when it is
//! reached, what counts that, and how it is changed. This page has no items.
//!
#![doc = include_str!("limits.md")]

// The table has the limits of all features.
#[cfg(all(
    test,
    feature = "framing",
    feature = "green",
    feature = "http",
    feature = "metrics",
    feature = "proxy",
    feature = "tls",
    feature = "websocket"
))]
mod tests;
