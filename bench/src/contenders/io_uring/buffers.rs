//! Buffers that the kernel picks from when something has come: `io_uring_register_buf_ring(3)`.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

/// They stay for as long as the process does: the kernel may write to them at any time.
pub(super) struct Buffers {
    /// The first of `count` entries, at the beginning of a page.
    entries: NonNull<BufRingEntry>,
    /// The first byte of the buffers, which lie one after the other.
    bytes: NonNull<u8>,
    count: u16,
    size: u32,
    tail: u16,
}

impl Buffers {
    pub(super) const GROUP: u16 = 0;

    /// Offers the kernel `count` buffers, a power of two, of `size` bytes.
    pub(super) fn offer(ring: &IoUring, count: u16, size: u32) -> io::Result<Self> {
        let entries = Layout::array::<BufRingEntry>(usize::from(count))
            .and_then(|layout| layout.align_to(4096))
            .map_err(io::Error::other)?;
        let bytes =
            Layout::array::<u8>(usize::from(count) * size as usize).map_err(io::Error::other)?;
        let mut own = Self {
            entries: allocate(entries).cast(),
            bytes: allocate(bytes),
            count,
            size,
            tail: 0,
        };
        // SAFETY: there are `count` entries at that address, at the beginning of a page, and they are
        // never freed.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                own.entries.as_ptr() as u64,
                count,
                Self::GROUP,
                0,
            )?;
        }
        for buffer in 0..count {
            own.give_back(buffer);
        }
        Ok(own)
    }

    /// The first byte of a buffer.
    pub(super) fn address(&self, buffer: u16) -> *const u8 {
        assert!(buffer < self.count);
        let offset = usize::from(buffer) * self.size as usize;
        // SAFETY: there are `count` buffers of that size, and it is one of them.
        unsafe { self.bytes.as_ptr().add(offset) }
    }

    /// The kernel may fill it again.
    pub(super) fn give_back(&mut self, buffer: u16) {
        let address = self.address(buffer) as u64;
        let slot = usize::from(self.tail & (self.count - 1));
        // SAFETY: the slot is one of `count`, a power of two.
        let entry = unsafe { self.entries.add(slot) };
        // SAFETY: it was zeroed. The kernel does not read it before the tail says so, as there are
        // never more buffers given back than there are slots.
        let entry = unsafe { &mut *entry.as_ptr() };
        entry.set_addr(address);
        entry.set_len(self.size);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: it is the address of the first entry, which was zeroed.
        let tail = unsafe { BufRingEntry::tail(self.entries.as_ptr()) };
        // SAFETY: it lies in the first entry and is aligned; the kernel only reads it.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}

fn allocate(layout: Layout) -> NonNull<u8> {
    // SAFETY: its size is not zero.
    let memory = unsafe { alloc_zeroed(layout) };
    NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout))
}
