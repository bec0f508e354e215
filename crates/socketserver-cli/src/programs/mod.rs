//! The server programs: one handler each, and the code that starts it.

pub(crate) mod chat;
pub(crate) mod collect;
pub(crate) mod command;
pub(crate) mod echo;
pub(crate) mod http;
pub(crate) mod reply;
pub(crate) mod upper;
