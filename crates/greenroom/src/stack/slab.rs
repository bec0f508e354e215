//! The stacks of a worker: slices of one mapping that costs only address space until a stack is
//! used.

#![allow(unsafe_code)]

use std::io;
use std::num::NonZeroUsize;
use std::ptr;
use std::sync::Arc;

use corosensei::stack::{Stack, StackPointer};
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};

use super::GuardPages;

const PAGE: usize = 4096;

/// The size of the guard below each stack. Rust touches every page of a frame in order, so one page
/// would do for Rust code; C code may step over some pages.
const GUARD: usize = 4 * PAGE;

/// Maximum number of recycled stacks that keep their memory; the memory of further ones goes back
/// to the system. It exceeds the number of datagrams that a socket's receive buffer holds by
/// default. Datagrams come in bursts, and returning memory makes the other cores flush their TLBs.
const KEPT_WARM: usize = 256;

/// Linux 6.13; <https://man7.org/linux/man-pages/man2/madvise.2.html>.
const MADV_GUARD_INSTALL: libc::c_int = 102;

/// Stacks begin at different cache lines. Otherwise the hot ends of all stacks would compete for
/// the same few sets of the cache. The offset stays within a quarter of a page, so that a coroutine
/// that needs three quarters of a page still needs no second one.
const COLOURS: u32 = 16;
const COLOUR_STEP: usize = 64;

/// The stacks of one worker.
pub(crate) struct Stacks {
    mapping: Arc<Mapping>,
    slot: usize,
    /// Slots that were used before and still have their memory; the last used is last.
    warm: Vec<u32>,
    /// Slots that were used before and whose memory was returned.
    cold: Vec<u32>,
    /// The first slot that was never used and has no guard yet.
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

    /// Returns a stack, unless all are in use or no further guard can be installed.
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

    /// Takes a stack back for reuse.
    pub(crate) fn recycle(&mut self, stack: SlabStack) {
        self.warm.push(stack.index);
        if self.warm.len() > KEPT_WARM {
            // Trims the half that is unused for the longest time, so that a steady load never gets
            // here twice.
            for index in self.warm.drain(..KEPT_WARM / 2) {
                let limit = self.mapping.base + index as usize * self.slot;
                self.mapping.discard(limit + GUARD, self.slot - GUARD);
                self.cold.push(index);
            }
        }
        drop(stack);
    }

    /// Returns the positions of the guards: a fault there is an overflow.
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
                // An older kernel does not know this advice.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.guards = GuardPages::Mprotect;
                }
                installed => return installed,
            }
        }
        self.mapping.protect(at, GUARD)
    }
}

/// The geometry of a worker's stacks, used to classify the address of a fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    base: usize,
    length: usize,
    slot: usize,
    guard: usize,
}

impl Layout {
    /// Returns true if an address lies in the guard of one of the stacks.
    pub(crate) fn is_guard(&self, address: usize) -> bool {
        address
            .checked_sub(self.base)
            .is_some_and(|offset| offset < self.length && offset % self.slot < self.guard)
    }

    /// Returns the usable bytes of each stack.
    pub(crate) fn stack_size(&self) -> usize {
        self.slot - self.guard
    }
}

/// One slice of the mapping, in use by one coroutine.
pub(crate) struct SlabStack {
    index: u32,
    limit: usize,
    base: usize,
    /// Keeps the memory mapped while the stack is in use, in whatever order values are dropped.
    _mapping: Arc<Mapping>,
}

// SAFETY: `base` and `limit` enclose memory that is mapped, readable and writable above the guard,
// for as long as `_mapping` lives; the lowest `GUARD` bytes are inaccessible, because `take` hands
// out no slot whose guard was not installed; a slot belongs to one `SlabStack` at a time; the
// usable part without guard and colour is at least 2 pages minus 1 KiB, above MIN_STACK_SIZE; and
// both ends are aligned, to a page or to 64 bytes, and STACK_ALIGNMENT is 16.
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
        // A huge page would give 2 MiB of memory to a stack that uses two pages.
        // SAFETY: the advice concerns the mapping just made, and changes nothing it contains.
        unsafe { rustix::mm::madvise(memory, length, Advice::LinuxNoHugepage) }?;
        Ok(mapping)
    }

    fn install_guard(&self, at: usize, length: usize) -> io::Result<()> {
        self.check(at, length);
        // SAFETY: the range lies in this mapping, and in a slot that is not in use yet, so no
        // reference into it exists.
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

    /// Returns the memory of an unused stack to the system; the memory reads as zeroes afterwards.
    fn discard(&self, at: usize, length: usize) {
        self.check(at, length);
        // SAFETY: the range lies in this mapping, above the guard of a slot that was recycled: no
        // reference into it exists, and the next user writes before it reads.
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
        // SAFETY: every stack in the mapping holds a reference to it, so no stack is left.
        let _ = unsafe { rustix::mm::munmap(address(self.base), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corosensei::{Coroutine, CoroutineResult};

    #[test]
    fn stacks_are_reused_and_run_out_with_an_error() {
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
    fn trimmed_stack_is_usable_again() {
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
    fn guard_lies_below_the_usable_stack() {
        let mut stacks = Stacks::reserve(4, 64 << 10, GuardPages::Auto).unwrap();
        let layout = stacks.layout();
        let stack = (0..3).map(|_| stacks.take().unwrap()).last().unwrap();
        assert!(layout.is_guard(stack.limit) && layout.is_guard(stack.limit + GUARD - 1));
        assert!(!layout.is_guard(stack.limit + GUARD) && !layout.is_guard(stack.base - 1));
        assert!(!layout.is_guard(0) && !layout.is_guard(usize::MAX));
        assert_eq!(layout.stack_size(), 64 << 10);
    }

    #[test]
    fn size_beyond_address_space_is_rejected() {
        assert!(Stacks::reserve(u32::MAX, usize::MAX / 2, GuardPages::Auto).is_err());
    }
}
