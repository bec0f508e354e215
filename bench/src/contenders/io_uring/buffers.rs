//! A ring of buffers from which the kernel picks one for each receive:
//! `io_uring_register_buf_ring(3)`.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

/// The buffers live as long as the process, because the kernel may write to them at any time.
pub(super) struct Buffers {
    /// The first of `count` entries, page-aligned.
    entries: NonNull<BufRingEntry>,
    /// The first byte of the buffers, which are contiguous.
    bytes: NonNull<u8>,
    count: u16,
    size: u32,
    tail: u16,
}

impl Buffers {
    pub(super) const GROUP: u16 = 0;

    /// Registers `count` buffers of `size` bytes. `count` is a power of two.
    pub(super) fn register(ring: &IoUring, count: u16, size: u32) -> io::Result<Self> {
        let entries = Layout::array::<BufRingEntry>(usize::from(count))
            .and_then(|layout| layout.align_to(4096))
            .map_err(io::Error::other)?;
        let bytes =
            Layout::array::<u8>(usize::from(count) * size as usize).map_err(io::Error::other)?;
        let mut buffers = Self {
            entries: allocate(entries).cast(),
            bytes: allocate(bytes),
            count,
            size,
            tail: 0,
        };
        // SAFETY: there are `count` entries at that address, which is page-aligned, and the entries
        // are never freed.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                buffers.entries.as_ptr() as u64,
                count,
                Self::GROUP,
                0,
            )?;
        }
        for buffer in 0..count {
            buffers.recycle(buffer);
        }
        Ok(buffers)
    }

    /// Returns the address of a buffer.
    pub(super) fn address(&self, buffer: u16) -> *const u8 {
        assert!(buffer < self.count);
        let offset = usize::from(buffer) * self.size as usize;
        // SAFETY: there are `count` buffers of that size, and `buffer` is the index of one of them.
        unsafe { self.bytes.as_ptr().add(offset) }
    }

    /// Returns a buffer to the kernel, which may then fill it again.
    pub(super) fn recycle(&mut self, buffer: u16) {
        let address = self.address(buffer) as u64;
        let slot = usize::from(self.tail & (self.count - 1));
        // SAFETY: the slot is one of `count`, a power of two.
        let entry = unsafe { self.entries.add(slot) };
        // SAFETY: the entry was zeroed. The kernel does not read it before the tail passes it,
        // because there are never more returned buffers than slots.
        let entry = unsafe { &mut *entry.as_ptr() };
        entry.set_addr(address);
        entry.set_len(self.size);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: this is the address of the first entry, which was zeroed.
        let tail = unsafe { BufRingEntry::tail(self.entries.as_ptr()) };
        // SAFETY: the tail is in the first entry and aligned; the kernel only reads it.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}

fn allocate(layout: Layout) -> NonNull<u8> {
    // SAFETY: the size of the layout is not zero.
    let memory = unsafe { alloc_zeroed(layout) };
    NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout))
}
