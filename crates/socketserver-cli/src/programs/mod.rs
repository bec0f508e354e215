//! The programs: a handler each, and what it takes to start it.

pub(crate) mod chat;
pub(crate) mod collect;
pub(crate) mod command;
pub(crate) mod echo;
pub(crate) mod http;
pub(crate) mod reply;
pub(crate) mod upper;
