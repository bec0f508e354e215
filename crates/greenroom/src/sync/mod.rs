//! Locks, conditions and channels that park a coroutine inside the engine and a thread outside of
//! it. Both may use the same one.

mod condvar;
mod mpmc;
mod mutex;
mod oneshot;
mod wait_list;

pub use condvar::Condvar;
pub use mpmc::{Receiver, RecvError, SendError, Sender, TrySendError, channel};
pub use mutex::{Mutex, MutexGuard};
pub use oneshot::{OneshotReceiver, OneshotSender, oneshot};
