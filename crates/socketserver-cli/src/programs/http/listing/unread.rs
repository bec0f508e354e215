//! Long lists that clients have not read yet, with a limit on their total memory.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::names::Names;

/// The maximum memory of all lists. A list of 10,000 ordinary names takes half a megabyte.
pub(super) const MEMORY: usize = 32 << 20;
/// The time without a read after which a list can be evicted for another one.
pub(super) const EVICTION_AGE: Duration = Duration::from_secs(1);

/// All unread lists, in the order of their creation.
#[derive(Debug, Default)]
pub(super) struct Lists(Mutex<Vec<Weak<Unread>>>);

/// A list, until it is read or evicted.
#[derive(Debug)]
pub(super) struct Unread(Mutex<State>);

#[derive(Debug)]
struct State {
    /// The names, or `None` after an eviction.
    names: Option<Names>,
    read_at: Instant,
}

impl Lists {
    /// Keeps a list until it is dropped. Evicts lists that have not been read for longest, if that
    /// is at least a second. Returns `None` if the memory still does not suffice.
    pub fn keep(&self, names: Names) -> Option<Arc<Unread>> {
        let mut all = lock(&self.0);
        all.retain(|list| list.strong_count() > 0);
        let others: Vec<_> = all.iter().filter_map(Weak::upgrade).collect();
        let mut sizes: Vec<_> = others
            .iter()
            .map(|list| {
                let state = lock(&list.0);
                let size = state.names.as_ref().map_or(0, Names::size);
                (state.read_at, size, list)
            })
            .filter(|(_, size, _)| *size > 0)
            .collect();
        let mut total = names.size() + sizes.iter().map(|(_, size, _)| size).sum::<usize>();
        sizes.sort_by_key(|(read_at, ..)| *read_at);
        for (read_at, size, list) in sizes {
            if total <= MEMORY || read_at.elapsed() < EVICTION_AGE {
                break;
            }
            lock(&list.0).names = None;
            total -= size;
        }
        if total > MEMORY {
            return None;
        }
        let list = Arc::new(Unread(Mutex::new(State {
            names: Some(names),
            read_at: Instant::now(),
        })));
        all.push(Arc::downgrade(&list));
        Some(list)
    }
}

impl Unread {
    /// Passes the names to `read`.
    ///
    /// # Errors
    /// Returns [`io::ErrorKind::TimedOut`] if the list was evicted.
    pub fn with(&self, read: impl FnOnce(&Names)) -> io::Result<()> {
        let mut state = lock(&self.0);
        state.read_at = Instant::now();
        let Some(names) = &state.names else {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client has not read the list, whose memory was needed for others",
            ));
        };
        read(names);
        Ok(())
    }
}

/// Locks the mutex. No code panics or blocks while it is held.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let name = "x".repeat(255);
        Names::of(&vec![(&*name, false, 1); 10_000])
    }

    #[test]
    fn keep_evicts_the_list_that_was_unread_for_longest() {
        let lists = Lists::default();
        let mut kept: Vec<_> = std::iter::from_fn(|| lists.keep(names())).collect();
        assert!(kept.len() > 5, "{}", kept.len());
        assert!(kept.len() * names().size() <= MEMORY);
        // All lists were read a moment ago, so that none is evicted.
        assert!(kept.iter().all(|list| list.with(|_| {}).is_ok()));
        lock(&kept[2].0).read_at = Instant::now().checked_sub(EVICTION_AGE).unwrap();
        let newcomer = lists.keep(names()).expect("room");
        assert_eq!(
            kept.remove(2).with(|_| {}).unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
        assert!(
            kept.iter()
                .chain([&newcomer])
                .all(|list| list.with(|_| {}).is_ok())
        );
        assert!(lists.keep(names()).is_none());
        // A list that was read to its end is dropped.
        kept.pop();
        assert!(lists.keep(names()).is_some());
    }
}
