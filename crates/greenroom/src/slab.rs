//! Things by key, where a key is void once its thing is gone: for whoever may hear of it late.

/// A place in a [`Table`], and for which of those who have it one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) index: u32,
    generation: u32,
}

impl Key {
    /// The key as the data of an epoll event; never `u64::MAX`.
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

/// A table whose places are used again.
pub(crate) struct Table<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

struct Place<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Table<T> {
    pub(crate) fn insert(&mut self, value: T) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place {
                generation: 0,
                value: None,
            });
            u32::try_from(self.places.len() - 1).expect("fewer than 2^32 at once")
        });
        let place = &mut self.places[index as usize];
        place.value = Some(value);
        Key {
            index,
            generation: place.generation,
        }
    }

    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        let place = self.places.get(key.index as usize)?;
        place
            .value
            .as_ref()
            .filter(|_| place.generation == key.generation)
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let place = self.places.get_mut(key.index as usize)?;
        place
            .value
            .as_mut()
            .filter(|_| place.generation == key.generation)
    }

    /// Whatever has this place now.
    pub(crate) fn at(&mut self, index: u32) -> Option<(Key, &mut T)> {
        let place = self.places.get_mut(index as usize)?;
        let generation = place.generation;
        place
            .value
            .as_mut()
            .map(|value| (Key { index, generation }, value))
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let place = self.places.get_mut(key.index as usize)?;
        if place.generation != key.generation {
            return None;
        }
        let value = place.value.take()?;
        // One less than the highest, for `Key::pack`.
        place.generation = (place.generation + 1) % u32::MAX;
        self.free.push(key.index);
        Some(value)
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = Key> {
        let places = (0..).zip(&self.places);
        places
            .filter(|(_, place)| place.value.is_some())
            .map(|(index, place)| Key {
                index,
                generation: place.generation,
            })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.places.iter().filter_map(|place| place.value.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_void_once_its_thing_is_gone() {
        let mut table = Table::default();
        let first = table.insert(1);
        assert!(table.get(first).is_some());
        assert!(table.remove(first).is_some());
        let second = table.insert(2);
        assert_eq!(first.index, second.index, "the place is used again");
        assert!(table.get(first).is_none() && table.get_mut(first).is_none());
        assert!(table.remove(first).is_none());
        assert_eq!(table.len(), 1);
        assert_eq!(table.get(second), Some(&2));
        assert_eq!(Key::unpack(second.pack()), second);
        assert_eq!(table.keys().collect::<Vec<_>>(), [second]);
    }
}
