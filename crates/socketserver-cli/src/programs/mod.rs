//! The servers, each a handler and the options that are its own.

pub(crate) mod command;
pub(crate) mod upper;
