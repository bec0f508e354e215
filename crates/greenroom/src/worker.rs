//! One worker: a thread, its coroutines, and the loop that resumes the ready ones.
//!
//! [`Worker`] is the view of the worker's own thread; [`WorkerHandle`] is the view of other
//! threads.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use packet_batch::Transmit;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;

use crate::join::drop_catching_panic;
use crate::mailbox::Mailbox;
use crate::park::{Parked, Unparker};
use crate::reactor::{Sources, WAKER};
use crate::send_queue::SendQueue;
use crate::slab::{Key, Slab};
use crate::stack::{Stacks, overflow};
use crate::stall::Monitor;
use crate::task::{Body, Fiber, State, Task, may_suspend, suspend};
use crate::task_name::TaskName;
use crate::timer::Timers;

/// The number of socket operations that the ready coroutines of a worker share per round. A
/// coroutine yields after its part of it. A peer that is always ready must not occupy the worker,
/// and many such peers must not delay a new one.
const OPERATION_BUDGET: usize = 64;

/// The minimum number of operations in a row that each coroutine may complete, because a switch has
/// a cost, too. Most requests need fewer operations.
const MIN_OPERATION_BUDGET: usize = 4;

/// How long a coroutine keeps its worker while others can go on, as far as it offers to
/// [`give_way`](crate::give_way): 1 ms. Operations of sockets offer it, but for the first two in a row.
pub const TIME_SLICE: Duration = Duration::from_millis(1);

/// The number of operations in a row that are not timed: a request that reads and writes once does
/// not read the clock.
const UNTIMED_OPERATIONS: usize = 2;

/// For how long new coroutines begin in a turn, if there are that many: for as long as this, or for a
/// share of the time that the others have had in it. One begins in each turn. So what there is comes to
/// its end before more is taken on, however much arrives.
const BEGINNING: Duration = Duration::from_millis(1);
const SHARE_OF_BEGINNING: u32 = 4;

/// Maximum number of events taken from the kernel per call.
const EVENTS: usize = 256;

/// A coroutine to start.
pub(crate) struct Spawn {
    pub(crate) name: TaskName,
    pub(crate) body: Box<dyn FnOnce() + Send>,
}

/// A message from another thread to a worker.
pub(crate) enum Message {
    /// Starts a coroutine, for which a stack is reserved.
    Spawn(Spawn),
    Unpark(Key),
    /// Removes a socket that is gone.
    Forget(u64),
    /// Makes every wait for a socket fail from now on.
    Cancel,
    /// Ends the worker once no coroutine is left.
    Stop,
}

/// A worker, as other threads see it.
pub(crate) struct WorkerHandle {
    epoll: OwnedFd,
    waker: OwnedFd,
    mailbox: Mailbox<Message>,
    /// Number of stacks that are in use or reserved.
    reserved: AtomicUsize,
    capacity: AtomicUsize,
    switches: AtomicU64,
    wakes: AtomicU64,
    /// The index of the running coroutine plus one, or zero.
    running: AtomicU32,
    names: Mutex<Vec<Option<TaskName>>>,
}

impl WorkerHandle {
    pub(crate) fn new(capacity: usize) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let waker = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // Edge-triggered, so that the counter never has to be read.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, &waker, epoll::EventData::new_u64(WAKER), flags)?;
        Ok(Self {
            epoll,
            waker,
            mailbox: Mailbox::default(),
            reserved: AtomicUsize::new(0),
            capacity: AtomicUsize::new(capacity),
            switches: AtomicU64::new(0),
            wakes: AtomicU64::new(0),
            running: AtomicU32::new(0),
            names: Mutex::default(),
        })
    }

    pub(crate) fn load(&self) -> usize {
        self.reserved.load(Ordering::Relaxed)
    }

    pub(crate) fn counters(&self) -> (u64, u64) {
        (
            self.switches.load(Ordering::Relaxed),
            self.wakes.load(Ordering::Relaxed),
        )
    }

    /// Returns the number of switches so far and the name of the running coroutine. A coroutine
    /// that is about to end has already dropped its name. The caller must drop the name where a
    /// panic is caught.
    pub(crate) fn running(&self) -> Option<(u64, Option<TaskName>)> {
        let switches = self.switches.load(Ordering::Acquire);
        let index = self.running.load(Ordering::Acquire).checked_sub(1)?;
        let name = lock(&self.names).get(index as usize)?.clone();
        Some((switches, name))
    }

    /// Removes a name from the list. The caller drops it after the list is unlocked.
    fn take_name(&self, index: u32) -> Option<TaskName> {
        lock(&self.names).get_mut(index as usize)?.take()
    }

    pub(crate) fn is_asleep(&self) -> bool {
        self.mailbox.is_asleep()
    }

    /// Reserves a stack. Returns false if all are in use.
    pub(crate) fn reserve(&self) -> bool {
        self.reserved
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |reserved| {
                (reserved < self.capacity.load(Ordering::Relaxed)).then_some(reserved + 1)
            })
            .is_ok()
    }

    pub(crate) fn release(&self) {
        self.reserved.fetch_sub(1, Ordering::AcqRel);
    }

    /// Sends a message. Returns the message as the error if the worker has ended.
    pub(crate) fn send(&self, message: Message) -> Result<(), Message> {
        if self.mailbox.send(message)? {
            // The only possible error is a full counter, and then a wake-up is already pending.
            let _ = rustix::io::write(&self.waker, &1_u64.to_ne_bytes());
        }
        Ok(())
    }

    pub(crate) fn unpark(self: &Arc<Self>, key: Key) {
        match Worker::current().filter(|worker| Arc::ptr_eq(&worker.handle, self)) {
            Some(worker) => worker.unpark(key),
            None => drop(self.send(Message::Unpark(key))),
        }
    }

    /// Removes a socket that is gone.
    pub(crate) fn forget(self: &Arc<Self>, token: u64) {
        match Worker::current().filter(|worker| Arc::ptr_eq(&worker.handle, self)) {
            Some(worker) => worker.sources.borrow_mut().remove(token),
            None => drop(self.send(Message::Forget(token))),
        }
    }
}

/// A worker, as its own thread sees it.
pub(crate) struct Worker {
    pub(crate) handle: Arc<WorkerHandle>,
    pub(crate) sources: RefCell<Sources>,
    tasks: RefCell<Slab<Task>>,
    ready: RefCell<VecDeque<Key>>,
    /// Coroutines that came from other threads and have not begun.
    fresh: RefCell<VecDeque<Key>>,
    timers: RefCell<Timers>,
    stacks: RefCell<Stacks>,
    send_queue: RefCell<SendQueue>,
    /// Coroutines that found no stack. They begin when others end.
    waiting_for_stack: RefCell<VecDeque<Key>>,
    /// Number of coroutines that have begun and not ended.
    on_stacks: Cell<usize>,
    current: Cell<Option<Key>>,
    /// Number of socket operations of the running coroutine since it last yielded.
    budget_used: Cell<usize>,
    /// The time of the last reading of the clock. The worker reads it in each tick.
    clock: Cell<Instant>,
    /// The value of `clock` when the running coroutine was resumed. The coroutine may have started
    /// later, and then yields too early, which costs a switch.
    since: Cell<Instant>,
    cancelled: Cell<bool>,
    stopping: Cell<bool>,
}

thread_local! {
    static WORKER: RefCell<Option<Rc<Worker>>> = const { RefCell::new(None) };
}

impl Worker {
    /// Returns the worker of this thread, if the thread is one.
    pub(crate) fn current() -> Option<Rc<Self>> {
        WORKER
            .try_with(|worker| worker.borrow().clone())
            .ok()
            .flatten()
    }

    /// Returns the worker of this thread, if a coroutine is running on it.
    pub(crate) fn in_coroutine() -> Option<Rc<Self>> {
        Self::current().filter(|worker| worker.current.get().is_some())
    }

    /// Runs the calling thread as a worker until it is stopped and has no coroutine left.
    pub(crate) fn run_to_end(handle: Arc<WorkerHandle>, stacks: Stacks, monitor: Option<&Monitor>) {
        let worker = Rc::new(Self {
            handle,
            sources: RefCell::default(),
            tasks: RefCell::default(),
            ready: RefCell::default(),
            fresh: RefCell::default(),
            timers: RefCell::default(),
            stacks: RefCell::new(stacks),
            send_queue: RefCell::default(),
            waiting_for_stack: RefCell::default(),
            on_stacks: Cell::new(0),
            current: Cell::new(None),
            budget_used: Cell::new(0),
            clock: Cell::new(Instant::now()),
            since: Cell::new(Instant::now()),
            cancelled: Cell::new(false),
            stopping: Cell::new(false),
        });
        overflow::guard(worker.stacks.borrow().layout());
        WORKER.set(Some(worker.clone()));
        let guard = AbortOnUnwind;
        worker.work(monitor);
        std::mem::forget(guard);
        worker.sources.borrow_mut().abandon();
        WORKER.set(None);
    }

    fn work(&self, monitor: Option<&Monitor>) {
        let mut messages = Vec::new();
        let mut events = [const { MaybeUninit::uninit() }; EVENTS];
        loop {
            self.handle.mailbox.take(&mut messages);
            for message in messages.drain(..) {
                self.handle_message(message);
            }
            // Only the coroutines that are ready now. Those that they wake up run after the next
            // poll.
            let batch = self.ready.borrow().len();
            for _ in 0..batch {
                let next = self.ready.borrow_mut().pop_front();
                if let Some(key) = next {
                    self.resume(key);
                }
            }
            self.begin_some();
            self.send_packets();
            if self.stopping.get() && self.is_empty() && self.handle.mailbox.close() {
                return;
            }
            self.poll(&mut events, monitor);
            self.fire_timers();
        }
    }

    /// Lets new coroutines begin, after the others of this turn.
    fn begin_some(&self) {
        if self.fresh.borrow().is_empty() {
            return;
        }
        let turn_began = self.clock.get();
        let mut now = Instant::now();
        let share = now.saturating_duration_since(turn_began) / SHARE_OF_BEGINNING;
        let until = now + share.max(BEGINNING);
        while now < until {
            self.clock.set(now);
            let next = self.fresh.borrow_mut().pop_front();
            let Some(key) = next else { return };
            self.resume(key);
            now = Instant::now();
        }
    }

    /// How many others can go on or begin.
    fn others(&self) -> usize {
        self.ready.borrow().len() + self.fresh.borrow().len()
    }

    fn handle_message(&self, message: Message) {
        match message {
            Message::Spawn(Spawn { name, body }) => {
                let key = self.admit(Task::new(name, body, true));
                self.fresh.borrow_mut().push_back(key);
            }
            Message::Unpark(key) => self.unpark(key),
            Message::Forget(token) => self.sources.borrow_mut().remove(token),
            Message::Stop => self.stopping.set(true),
            Message::Cancel => {
                self.cancelled.set(true);
                // A coroutine that waits for a socket may be in the list of another worker.
                // Coroutines that wait for something else check their condition and continue to
                // wait.
                let all: Vec<_> = self.tasks.borrow().keys().collect();
                all.into_iter().for_each(|key| self.unpark(key));
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.tasks.borrow().len() == 0
    }

    /// Sleeps until an event arrives from the kernel or a message from another thread, and delivers
    /// the events.
    fn poll(&self, events: &mut [MaybeUninit<epoll::Event>; EVENTS], monitor: Option<&Monitor>) {
        let idle = self.others() == 0 && self.handle.mailbox.fall_asleep();
        let timeout = if idle {
            let next = self.timers.borrow().next();
            next.map(|at| at.saturating_duration_since(Instant::now()))
        } else {
            Some(Duration::ZERO)
        };
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let polled = epoll::wait(&self.handle.epoll, events, timeout.as_ref());
        if idle {
            self.handle.mailbox.wake_up();
            if let Some(monitor) = monitor {
                monitor.wake();
            }
        }
        let ready = match polled {
            Ok((ready, _)) => ready,
            Err(Errno::INTR) => return,
            // The worker owns the descriptor and the timeout is valid: no other error is possible.
            Err(errno) => unreachable!("epoll_wait: {errno}"),
        };
        for event in ready.iter().filter(|event| event.data.u64() != WAKER) {
            let sources = self.sources.borrow();
            sources.deliver(event.data.u64(), event.flags, |waiter| waiter.unpark(self));
        }
    }

    fn fire_timers(&self) {
        let now = Instant::now();
        self.clock.set(now);
        loop {
            let Some(index) = self.timers.borrow_mut().pop(now) else {
                return;
            };
            let mut tasks = self.tasks.borrow_mut();
            let Some((key, task)) = tasks.at(index) else {
                continue;
            };
            task.timer = None;
            match task.deadline.filter(|_| task.parked) {
                Some(at) if at <= now => {
                    task.parked = false;
                    self.ready.borrow_mut().push_back(key);
                }
                Some(later) => {
                    task.timer = Some(later);
                    self.timers.borrow_mut().insert(later, index);
                }
                None => {}
            }
        }
    }

    /// Starts a coroutine, for which a stack is reserved.
    pub(crate) fn start(&self, name: TaskName, body: Body) {
        let key = self.admit(Task::new(name, body, true));
        self.ready.borrow_mut().push_back(key);
    }

    /// Adds a coroutine that begins when it is unparked or at its deadline. It has no stack until
    /// then.
    pub(crate) fn start_later(&self, name: TaskName, body: Body, deadline: Option<Instant>) -> Key {
        let mut task = Task::new(name, body, false);
        task.parked = true;
        task.deadline = deadline;
        task.timer = deadline;
        let key = self.admit(task);
        if let Some(at) = deadline {
            self.timers.borrow_mut().insert(at, key.index);
        }
        key
    }

    fn admit(&self, task: Task) -> Key {
        let name = task.name.clone();
        let key = self.tasks.borrow_mut().insert(task);
        let mut names = lock(&self.handle.names);
        let index = key.index as usize;
        if names.len() <= index {
            names.resize(index + 1, None);
        }
        names[index] = name;
        key
    }

    fn resume(&self, key: Key) {
        let taken = self.tasks.borrow_mut().get_mut(key).map(|task| {
            let state = std::mem::replace(&mut task.state, State::Running);
            (state, task.name.as_ref().map(TaskName::as_ptr))
        });
        let (mut fiber, name) = match taken {
            Some((State::Suspended(fiber), name)) => (fiber, name),
            Some((State::Dormant(body), name)) => match self.begin(key, body) {
                Some(fiber) => (fiber, name),
                None => return,
            },
            Some((State::Running, _)) | None => return,
        };
        overflow::set_running(name);
        self.current.set(Some(key));
        self.budget_used.set(0);
        self.since.set(self.clock.get());
        let switches = &self.handle.switches;
        // Only this thread writes the counter, so there is no race.
        switches.store(switches.load(Ordering::Relaxed) + 1, Ordering::Release);
        self.handle.running.store(key.index + 1, Ordering::Release);
        let ended = fiber.resume();
        self.handle.running.store(0, Ordering::Release);
        self.current.set(None);
        overflow::set_running(None);
        if ended {
            self.stacks.borrow_mut().recycle(fiber.into_stack());
            self.on_stacks.set(self.on_stacks.get() - 1);
            self.remove_task(key);
            let next = self.waiting_for_stack.borrow_mut().pop_front();
            self.ready.borrow_mut().extend(next);
        } else if let Some(task) = self.tasks.borrow_mut().get_mut(key) {
            task.state = State::Suspended(fiber);
        }
    }

    /// Gives a coroutine its stack. If none is free, the coroutine waits for one.
    fn begin(&self, key: Key, body: Body) -> Option<Fiber> {
        let stack = self.stacks.borrow_mut().take();
        if let Ok(stack) = stack {
            if let Some(task) = self.tasks.borrow_mut().get_mut(key) {
                task.deadline = None;
                task.unparked = false;
                if !std::mem::replace(&mut task.reserved, true) {
                    self.handle.reserved.fetch_add(1, Ordering::AcqRel);
                }
            }
            self.on_stacks.set(self.on_stacks.get() + 1);
            return Some(Fiber::new(stack, body, drop_name));
        }
        // Either all stacks are in use, or the system cannot provide further guard pages. In the
        // second case the existing stacks become the capacity.
        let on_stacks = self.on_stacks.get();
        self.handle
            .capacity
            .fetch_min(on_stacks.max(1), Ordering::Relaxed);
        if on_stacks == 0 {
            // No stack will ever be returned. Dropping the body notifies the join handle.
            drop_catching_panic(body);
            self.remove_task(key);
            return None;
        }
        if let Some(task) = self.tasks.borrow_mut().get_mut(key) {
            task.state = State::Dormant(body);
            self.waiting_for_stack.borrow_mut().push_back(key);
        }
        None
    }

    /// Removes a coroutine.
    fn remove_task(&self, key: Key) {
        let task = self.tasks.borrow_mut().remove(key);
        let Some(mut task) = task else { return };
        if let Some(at) = task.timer {
            self.timers.borrow_mut().remove(at, key.index);
        }
        if task.reserved {
            self.handle.release();
        }
        // A coroutine that has begun has already dropped its name.
        if let Some(name) = task.name.take() {
            drop_catching_panic(self.handle.take_name(key.index));
            drop_catching_panic(name);
        }
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.get()
    }

    /// Returns the key of the running coroutine.
    pub(crate) fn key(&self) -> Key {
        self.current.get().expect("a coroutine is running")
    }

    pub(crate) fn unparker(&self) -> Unparker {
        Unparker::Coroutine(self.handle.clone(), self.key())
    }

    /// Parks the running coroutine.
    pub(crate) fn park(&self, deadline: Option<Instant>) -> Parked {
        let key = self.key();
        {
            let mut tasks = self.tasks.borrow_mut();
            let task = tasks.get_mut(key).expect("it is running");
            if std::mem::take(&mut task.unparked) {
                return Parked::Unparked;
            }
            if !may_suspend() {
                return Parked::Refused;
            }
            task.parked = true;
            task.deadline = deadline;
            if let Some(at) = deadline
                && task.timer.is_none_or(|timer| timer > at)
            {
                let mut timers = self.timers.borrow_mut();
                if let Some(later) = task.timer.replace(at) {
                    timers.remove(later, key.index);
                }
                timers.insert(at, key.index);
            }
        }
        switch_out();
        let mut tasks = self.tasks.borrow_mut();
        let task = tasks.get_mut(key).expect("it is running");
        task.deadline = None;
        if std::mem::take(&mut task.unparked) {
            Parked::Unparked
        } else {
            Parked::TimedOut
        }
    }

    /// Lets all other ready coroutines run first.
    pub(crate) fn yield_now(&self) {
        if !may_suspend() {
            return;
        }
        self.ready.borrow_mut().push_back(self.key());
        switch_out();
    }

    /// Counts an operation that the running coroutine has completed without waiting, and yields if
    /// its budget is used up.
    pub(crate) fn count_operation(&self) {
        let budget_used = self.budget_used.get() + 1;
        self.budget_used.set(budget_used);
        if budget_used >= MIN_OPERATION_BUDGET
            && budget_used * (1 + self.others()) >= OPERATION_BUDGET
        {
            self.yield_now();
        } else if budget_used > UNTIMED_OPERATIONS {
            self.give_way();
        }
    }

    /// Lets other coroutines run first if the time slice of the running one is over.
    pub(crate) fn give_way(&self) {
        let now = Instant::now();
        self.clock.set(now);
        if now.saturating_duration_since(self.since.get()) >= TIME_SLICE {
            self.yield_now();
        }
    }

    /// Returns true if a datagram may wait for the end of this tick and is likely to share a batch
    /// there.
    pub(crate) fn may_send_later(&self, bytes: &[u8]) -> bool {
        let send_queue = self.send_queue.borrow();
        let shared = !send_queue.is_empty() || self.others() > 0;
        shared && send_queue.has_room_for(bytes) && may_suspend()
    }

    /// Queues a datagram of the running coroutine for the end of this tick, and waits for its
    /// result.
    pub(crate) fn send_later(
        &self,
        socket: &Arc<OwnedFd>,
        packet: &Transmit<'_>,
    ) -> rustix::io::Result<()> {
        let sender = self.key();
        self.send_queue.borrow_mut().push(socket, packet, sender);
        loop {
            let sent = self
                .tasks
                .borrow_mut()
                .get_mut(sender)
                .and_then(|task| task.sent.take());
            if let Some(sent) = sent {
                return sent;
            }
            // Without a deadline, because the end of the tick always comes.
            self.park(None);
        }
    }

    /// Sends the datagrams that coroutines have queued for the end of the tick.
    fn send_packets(&self) {
        if self.send_queue.borrow().is_empty() {
            return;
        }
        let mut send_queue = self.send_queue.take();
        send_queue.send_all(|sender, sent| {
            if let Some(task) = self.tasks.borrow_mut().get_mut(sender) {
                task.sent = Some(sent);
            }
            self.unpark(sender);
        });
        // Keeps the allocated memory for reuse.
        self.send_queue.replace(send_queue);
    }

    pub(crate) fn unpark(&self, key: Key) {
        let mut tasks = self.tasks.borrow_mut();
        let Some(task) = tasks.get_mut(key) else {
            return;
        };
        task.unparked = true;
        if std::mem::take(&mut task.parked) {
            let wakes = &self.handle.wakes;
            wakes.store(wakes.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            self.ready.borrow_mut().push_back(key);
        }
    }

    /// Watches a descriptor for a source.
    pub(crate) fn watch(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        let flags = epoll::EventFlags::IN
            | epoll::EventFlags::PRI
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        let data = epoll::EventData::new_u64(token);
        match epoll::add(&self.handle.epoll, &fd, data, flags) {
            // A previous source watched the descriptor, and is gone while the descriptor is still
            // open.
            Err(Errno::EXIST) => Ok(epoll::modify(&self.handle.epoll, &fd, data, flags)?),
            added => Ok(added?),
        }
    }
}

/// Drops the name of the coroutine as its last action, while it can still wait: the destructor of
/// the name is user code.
fn drop_name() {
    let Some(worker) = Worker::in_coroutine() else {
        return;
    };
    let key = worker.key();
    let own = (worker.tasks.borrow_mut().get_mut(key)).and_then(|task| task.name.take());
    let listed = worker.handle.take_name(key.index);
    // An overflow from here on is reported without a name.
    overflow::set_running(None);
    drop(worker);
    drop_catching_panic(listed);
    drop_catching_panic(own);
}

/// Aborts the process if a worker unwinds. Its coroutines would stay suspended for good, while
/// their thread-locals and the values that they have borrowed from each other are freed: safe code
/// would read freed memory. User code that may panic runs in a coroutine or is caught at its call,
/// so this should never happen.
struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        let _ = rustix::io::write(
            rustix::stdio::stderr(),
            b"greenroom: a worker has panicked outside of a coroutine; the process ends because its \
              suspended coroutines cannot be resumed. This is a bug in greenroom: please report it\n",
        );
        std::process::abort();
    }
}

/// Suspends the running coroutine; returns when it is resumed.
fn switch_out() {
    #[cfg(feature = "tracing")]
    let spans = crate::span::leave();
    suspend();
    #[cfg(feature = "tracing")]
    crate::span::enter(&spans);
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code in this crate panics while it holds one of these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::GuardPages;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc;

    /// Runs a worker on its own thread, whose only stack is in use for the whole test.
    fn without_stacks(run: impl FnOnce(&Arc<WorkerHandle>)) {
        let mut stacks = Stacks::reserve(1, 64 << 10, GuardPages::Auto).unwrap();
        let in_use = stacks.take().unwrap();
        let handle = Arc::new(WorkerHandle::new(1).unwrap());
        let (worker_handle, stacks) = (handle.clone(), SendStacks(stacks));
        let (tx, rx) = mpsc::channel();
        let worker = std::thread::spawn(move || {
            let SendStacks(stacks) = { stacks };
            Worker::run_to_end(worker_handle, stacks, None);
            tx.send(()).unwrap();
        });
        run(&handle);
        assert!(handle.send(Message::Stop).is_ok());
        let ended = rx.recv_timeout(Duration::from_secs(20));
        ended.expect("the worker runs to its end");
        worker.join().unwrap();
        drop(in_use);
    }

    struct SendStacks(Stacks);

    /// There is no stack on which the destructors of the closure could run.
    #[test]
    fn closure_that_never_runs_is_dropped_safely() {
        struct OnDrop(bool, Arc<AtomicBool>);
        impl Drop for OnDrop {
            fn drop(&mut self) {
                self.1.store(true, Ordering::SeqCst);
                assert!(!self.0, "a panic of the user's destructor");
                crate::yield_now();
                crate::sleep(Duration::from_millis(1));
            }
        }
        impl std::fmt::Display for OnDrop {
            fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                Ok(())
            }
        }
        for panics in [true, false] {
            let dropped = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
            let [captured, named] = dropped.each_ref().map(|it| OnDrop(panics, it.clone()));
            without_stacks(|handle| {
                assert!(handle.reserve());
                let named: Arc<crate::task_name::Shared> = Arc::new(named);
                let spawn = Spawn {
                    name: named.into(),
                    body: Box::new(move || drop(captured)),
                };
                assert!(handle.send(Message::Spawn(spawn)).is_ok());
            });
            assert!(dropped.iter().all(|it| it.load(Ordering::SeqCst)));
        }
    }

    #[test]
    fn unwinding_worker_aborts_the_process() {
        const ROLE: &str = "GREENROOM_TEST_ROLE";
        if std::env::var_os(ROLE).is_some() {
            let _guard = AbortOnUnwind;
            panic!("outside of a coroutine");
        }
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "worker::tests::unwinding_worker_aborts_the_process",
            ])
            .arg("--nocapture")
            .env(ROLE, "1")
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(6), "{stderr}");
        assert!(stderr.contains("a worker has panicked"), "{stderr}");
    }
}
