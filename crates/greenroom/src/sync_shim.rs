//! The primitives under `mailbox.rs`. `tests/loom.rs` replaces them with loom's.

pub(crate) use std::sync::atomic::{AtomicBool, Ordering};
pub(crate) use std::sync::{Mutex, MutexGuard};
