//! `socketserver chat --web`, from outside: browsers and terminals in one room.
//!
//! | File | What it has |
//! |---|---|
//! | `driver.rs` | a real browser, driven by WebDriver |
//! | `page.rs` | what people do with the page, in that browser |
//! | `room.rs` | clients of the WebSocket that are no browsers: order, limits, the console, ends |

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "../common/mod.rs"]
mod common;
mod driver;
mod page;
mod room;

use common::Server;

const MODELS: [&str; 3] = ["threading", "pooled", "green"];

/// A room for terminals (0) and browsers (1).
fn chat(model: &str, more: &[&str]) -> Server {
    let args = ["chat", "-c", model, "-l", "tcp://127.0.0.1:0"];
    let web = ["--web", "http://127.0.0.1:0"];
    Server::start(&[&args[..], &web, more].concat(), 2)
}
