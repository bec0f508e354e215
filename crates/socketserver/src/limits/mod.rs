//! All limits of the library and the programs: the default, the effect, the counter, and how to
//! change the limit. This module contains documentation only.
//!
#![doc = include_str!("limits.md")]

// The page lists the limits of all features.
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
