//! A worker's stacks: slices of one mapping that costs address space until a stack is used.

#![allow(unsafe_code)]

use std::io;
use std::num::NonZeroUsize;
use std::ptr;
use std::sync::Arc;

use corosensei::stack::{Stack, StackPointer};
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};

use super::GuardPages;

const PAGE: usize = 4096;

/// Below each stack. Rust touches every page of a frame in order, so one would do for Rust code; C
/// code may step over some.
const GUARD: usize = 4 * PAGE;

/// Recycled stacks that are kept as they are; of more, the memory goes back to the system. More than
/// the datagrams that a socket's receive buffer holds by default: these come and go in bursts, and
/// giving memory back makes the other cores flush their caches of addresses.
const KEPT_WARM: usize = 256;

/// Linux 6.13; <https://man7.org/linux/man-pages/man2/madvise.2.html>.
const MADV_GUARD_INSTALL: libc::c_int = 102;

/// Neighbours begin at different cache lines. Without it, the hot ends of all stacks would compete
/// for the same few sets of the cache. It is kept within a quarter of a page, so that a coroutine
/// that needs three quarters of one still needs no second.
const COLOURS: u32 = 16;
const COLOUR_STEP: usize = 64;

/// The stacks of one worker.
pub(crate) struct Stacks {
    mapping: Arc<Mapping>,
    slot: usize,
    /// Slots that were used before, last used last: their memory is still there.
    warm: Vec<u32>,
    /// Slots that were used before, whose memory was given back.
    cold: Vec<u32>,
    /// The first slot that was never used, and has no guard yet.
    next: u32,
    capacity: u32,
    guards: GuardPages,
}

impl Stacks {
    /// Reserves address space for `capacity` stacks of `size` bytes each.
    pub(crate) fn reserve(capacity: u32, size: usize, guards: GuardPages) -> io::Result<Self> {
        let too_large = || io::Error::new(io::ErrorKind::InvalidInput, "the stacks exceed memory");
        let slot = size
            .max(2 * PAGE)
            .checked_next_multiple_of(PAGE)
            .and_then(|size| size.checked_add(GUARD))
            .ok_or_else(too_large)?;
        let length = slot.checked_mul(capacity as usize).ok_or_else(too_large)?;
        Ok(Self {
            mapping: Arc::new(Mapping::new(length)?),
            slot,
            warm: Vec::new(),
            cold: Vec::new(),
            next: 0,
            capacity,
            guards,
        })
    }

    /// A stack, unless all are in use or no further guard can be made.
    pub(crate) fn take(&mut self) -> io::Result<SlabStack> {
        let index = match self.warm.pop().or_else(|| self.cold.pop()) {
            Some(index) => index,
            None if self.next < self.capacity => {
                self.guard(self.next)?;
                self.next += 1;
                self.next - 1
            }
            None => return Err(io::ErrorKind::OutOfMemory.into()),
        };
        let limit = self.mapping.base + index as usize * self.slot;
        let colour = (index % COLOURS) as usize * COLOUR_STEP;
        Ok(SlabStack {
            index,
            limit,
            base: limit + self.slot - colour,
            _mapping: self.mapping.clone(),
        })
    }

    /// Takes a stack back.
    pub(crate) fn recycle(&mut self, stack: SlabStack) {
        self.warm.push(stack.index);
        if self.warm.len() > KEPT_WARM {
            // The longest unused half, so that a steady load never gets here twice.
            for index in self.warm.drain(..KEPT_WARM / 2) {
                let limit = self.mapping.base + index as usize * self.slot;
                self.mapping.discard(limit + GUARD, self.slot - GUARD);
                self.cold.push(index);
            }
        }
        drop(stack);
    }

    /// Where the guards are: a fault there is an overflow.
    pub(crate) fn layout(&self) -> Layout {
        Layout {
            base: self.mapping.base,
            length: self.mapping.length,
            slot: self.slot,
            guard: GUARD,
        }
    }

    fn guard(&mut self, index: u32) -> io::Result<()> {
        let at = self.mapping.base + index as usize * self.slot;
        if self.guards == GuardPages::Auto {
            match self.mapping.install_guard(at, GUARD) {
                // An older kernel does not know the advice.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.guards = GuardPages::Mprotect;
                }
                installed => return installed,
            }
        }
        self.mapping.protect(at, GUARD)
    }
}

/// The geometry of a worker's stacks, for whoever looks at an address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    base: usize,
    length: usize,
    slot: usize,
    guard: usize,
}

impl Layout {
    /// Whether an address lies in the guard of one of the stacks.
    pub(crate) fn is_guard(&self, address: usize) -> bool {
        address
            .checked_sub(self.base)
            .is_some_and(|offset| offset < self.length && offset % self.slot < self.guard)
    }

    /// The usable bytes of each stack.
    pub(crate) fn stack_size(&self) -> usize {
        self.slot - self.guard
    }
}

/// One slice, in use by one coroutine.
pub(crate) struct SlabStack {
    index: u32,
    limit: usize,
    base: usize,
    /// The memory outlives whoever stands on it, in whatever order things are dropped.
    _mapping: Arc<Mapping>,
}

// SAFETY: `base` and `limit` enclose memory that is mapped, readable and writable above the guard,
// for as long as `_mapping` lives; the lowest `GUARD` bytes are inaccessible, since `take` hands out
// no slot whose guard was not installed; a slot belongs to one `SlabStack` at a time; what is left
// after guard and colour is at least 2 pages minus 1 KiB, above MIN_STACK_SIZE; and both ends are
// aligned, to a page or to 64 bytes, and STACK_ALIGNMENT is 16.
unsafe impl Stack for SlabStack {
    fn base(&self) -> StackPointer {
        nonzero(self.base)
    }

    fn limit(&self) -> StackPointer {
        nonzero(self.limit)
    }
}

fn nonzero(address: usize) -> StackPointer {
    NonZeroUsize::new(address).expect("the kernel maps nothing at address 0")
}

/// The memory under all stacks of a worker.
struct Mapping {
    base: usize,
    length: usize,
}

impl Mapping {
    fn new(length: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::STACK;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that
        // exists.
        let memory =
            unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), length, protection, flags)? };
        let mapping = Self {
            base: memory.expose_provenance(),
            length,
        };
        // A huge page would back a stack of which two pages are used with two megabytes.
        // SAFETY: the advice concerns the mapping just made, and changes nothing it contains.
        unsafe { rustix::mm::madvise(memory, length, Advice::LinuxNoHugepage) }?;
        Ok(mapping)
    }

    fn install_guard(&self, at: usize, length: usize) -> io::Result<()> {
        self.check(at, length);
        // SAFETY: the range lies in this mapping, and in a slot that is not in use yet: nobody
        // holds a reference into it.
        let done = unsafe { libc::madvise(address(at), length, MADV_GUARD_INSTALL) };
        if done == 0 {
            return Ok(());
        }
        Err(io::Error::last_os_error())
    }

    fn protect(&self, at: usize, length: usize) -> io::Result<()> {
        self.check(at, length);
        // SAFETY: as in `install_guard`.
        unsafe { rustix::mm::mprotect(address(at), length, MprotectFlags::empty())? };
        Ok(())
    }

    /// Gives the memory of a stack that is not in use back to the system; it reads as zeroes then.
    fn discard(&self, at: usize, length: usize) {
        self.check(at, length);
        // SAFETY: the range lies in this mapping, above the guard of a slot that was recycled:
        // nobody holds a reference into it, and what the next user needs it writes first.
        let _ = unsafe { rustix::mm::madvise(address(at), length, Advice::LinuxDontNeed) };
    }

    fn check(&self, at: usize, length: usize) {
        debug_assert!(at >= self.base && at + length <= self.base + self.length);
    }
}

fn address(at: usize) -> *mut libc::c_void {
    ptr::with_exposed_provenance_mut(at)
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: every stack in it holds a reference to this mapping, so none is left.
        let _ = unsafe { rustix::mm::munmap(address(self.base), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corosensei::{Coroutine, CoroutineResult};

    #[test]
    fn slices_are_used_again_and_run_out_with_an_error() {
        for guards in [GuardPages::Auto, GuardPages::Mprotect] {
            let mut stacks = Stacks::reserve(2, 64 << 10, guards).unwrap();
            let (one, two) = (stacks.take().unwrap(), stacks.take().unwrap());
            assert_ne!(one.limit, two.limit);
            assert!(stacks.take().is_err());
            let limit = one.limit;
            stacks.recycle(one);
            assert_eq!(stacks.take().unwrap().limit, limit);
        }
    }

    #[test]
    fn a_recycled_stack_that_was_trimmed_works_and_is_empty() {
        let mut stacks = Stacks::reserve(600, 64 << 10, GuardPages::Auto).unwrap();
        let taken: Vec<_> = (0..600).map(|_| stacks.take().unwrap()).collect();
        taken.into_iter().for_each(|stack| stacks.recycle(stack));
        assert!(stacks.warm.len() <= KEPT_WARM && stacks.cold.len() >= 600 - KEPT_WARM);
        for _ in 0..600 {
            let stack = stacks.take().unwrap();
            let mut deep = Coroutine::with_stack(stack, |_: &corosensei::Yielder<(), ()>, ()| {
                std::hint::black_box([1_u8; 20 << 10])
                    .iter()
                    .map(|&b| usize::from(b))
                    .sum::<usize>()
            });
            assert!(matches!(deep.resume(()), CoroutineResult::Return(n) if n == 20 << 10));
        }
    }

    #[test]
    fn guards_are_where_an_overflow_ends() {
        let mut stacks = Stacks::reserve(4, 64 << 10, GuardPages::Auto).unwrap();
        let layout = stacks.layout();
        let stack = (0..3).map(|_| stacks.take().unwrap()).last().unwrap();
        assert!(layout.is_guard(stack.limit) && layout.is_guard(stack.limit + GUARD - 1));
        assert!(!layout.is_guard(stack.limit + GUARD) && !layout.is_guard(stack.base - 1));
        assert!(!layout.is_guard(0) && !layout.is_guard(usize::MAX));
        assert_eq!(layout.stack_size(), 64 << 10);
    }

    #[test]
    fn a_size_beyond_memory_is_an_error() {
        assert!(Stacks::reserve(u32::MAX, usize::MAX / 2, GuardPages::Auto).is_err());
    }
}
