//! A slab with generational keys. A key stops resolving when its entry is removed, so a late epoll
//! event cannot reach a different entry.

/// An index into a [`Slab`] with the generation of the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) index: u32,
    generation: u32,
}

impl Key {
    /// Packs the key into the data of an epoll event. The result is never `u64::MAX`.
    pub(crate) fn pack(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub(crate) fn unpack(data: u64) -> Self {
        let half = |data: u64| u32::try_from(data & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        Self {
            index: half(data),
            generation: half(data >> 32),
        }
    }
}

/// A slab that reuses the indices of removed entries.
pub(crate) struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
}

struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slab<T> {
    pub(crate) fn insert(&mut self, value: T) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry {
                generation: 0,
                value: None,
            });
            u32::try_from(self.entries.len() - 1).expect("fewer than 2^32 at once")
        });
        let entry = &mut self.entries[index as usize];
        entry.value = Some(value);
        Key {
            index,
            generation: entry.generation,
        }
    }

    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        let entry = self.entries.get(key.index as usize)?;
        entry
            .value
            .as_ref()
            .filter(|_| entry.generation == key.generation)
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let entry = self.entries.get_mut(key.index as usize)?;
        entry
            .value
            .as_mut()
            .filter(|_| entry.generation == key.generation)
    }

    /// Returns the current entry at this index.
    pub(crate) fn at(&mut self, index: u32) -> Option<(Key, &mut T)> {
        let entry = self.entries.get_mut(index as usize)?;
        let generation = entry.generation;
        entry
            .value
            .as_mut()
            .map(|value| (Key { index, generation }, value))
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let entry = self.entries.get_mut(key.index as usize)?;
        if entry.generation != key.generation {
            return None;
        }
        let value = entry.value.take()?;
        // One less than the maximum, for `Key::pack`.
        entry.generation = (entry.generation + 1) % u32::MAX;
        self.free.push(key.index);
        Some(value)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = Key> {
        let entries = (0..).zip(&self.entries);
        entries
            .filter(|(_, entry)| entry.value.is_some())
            .map(|(index, entry)| Key {
                index,
                generation: entry.generation,
            })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().filter_map(|entry| entry.value.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_does_not_resolve_after_its_entry_is_removed() {
        let mut slab = Slab::default();
        let first = slab.insert(1);
        assert!(slab.get(first).is_some());
        assert!(slab.remove(first).is_some());
        let second = slab.insert(2);
        assert_eq!(first.index, second.index, "the index is reused");
        assert!(slab.get(first).is_none() && slab.get_mut(first).is_none());
        assert!(slab.remove(first).is_none());
        assert_eq!(slab.len(), 1);
        assert_eq!(slab.get(second), Some(&2));
        assert_eq!(Key::unpack(second.pack()), second);
        assert_eq!(slab.keys().collect::<Vec<_>>(), [second]);
    }
}
