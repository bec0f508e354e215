//! Tests `socketserver chat --web` from outside, with browsers and terminals in one room.
//!
//! | File | Contents |
//! |---|---|
//! | `driver.rs` | a real browser, driven by WebDriver |
//! | `page.rs` | tests of the page in that browser |
//! | `room.rs` | other WebSocket clients: order, limits, the console, the end of connections |

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "../common/mod.rs"]
mod common;
mod driver;
mod page;
mod room;

use common::Server;

const MODELS: [&str; 3] = ["threading", "pooled", "green"];

/// Starts a room for terminals (0) and browsers (1).
fn chat(model: &str, more: &[&str]) -> Server {
    let args = ["chat", "-c", model, "-l", "tcp://127.0.0.1:0"];
    let web = ["--web", "http://127.0.0.1:0"];
    Server::start(&[&args[..], &web, more].concat(), 2)
}
