//! Locks, condition variables and channels. They park a coroutine inside the runtime and block a
//! thread outside of it. Coroutines and threads may share the same object.

mod condvar;
mod mpmc;
mod mutex;
mod oneshot;
mod wait_list;

pub use condvar::Condvar;
pub use mpmc::{Receiver, RecvError, SendError, Sender, TrySendError, channel};
pub use mutex::{Mutex, MutexGuard};
pub use oneshot::{OneshotReceiver, OneshotSender, oneshot};
