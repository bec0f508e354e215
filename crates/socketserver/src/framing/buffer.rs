//! The input buffer of a stream of frames.

use std::io::{self, Read};

use bytes::BytesMut;

/// The number of bytes that a read requests, and the minimum size of a buffer.
pub(super) const CHUNK: usize = 8 * 1024;

/// A buffer that grows with the received bytes, never with a length that the peer announces.
///
/// The memory is zeroed once, when it is allocated. Reads write directly into it, and frames are
/// split off without copying. If the free space is too small to read into, the unread bytes move to
/// new memory of a size that fits them.
#[derive(Default)]
pub(super) struct Buffer {
    /// Received bytes that the decoder has not taken.
    pub data: BytesMut,
    /// Zeroed free space, directly behind `data` in the same memory.
    spare: BytesMut,
    /// The size of the memory. Frames that were split off count until new memory replaces it.
    size: usize,
}

impl Buffer {
    /// Reads once. The caller ensures that the buffer holds less than `limit` bytes. The memory
    /// grows to at most `limit` and one chunk.
    ///
    /// # Errors
    /// Returns the errors of the stream, except interruptions. An error does not change the buffer.
    pub fn fill(&mut self, stream: &mut impl Read, limit: usize) -> io::Result<usize> {
        self.make_room(limit);
        loop {
            match stream.read(&mut self.spare) {
                Ok(n) => {
                    self.data.unsplit(self.spare.split_to(n));
                    return Ok(n);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Frees all memory that the unread bytes do not need.
    pub fn shrink(&mut self) {
        self.spare = BytesMut::new();
        self.data = BytesMut::from(&self.data[..]);
        self.size = self.data.capacity();
    }

    /// Returns the size of the allocated memory.
    pub fn size(&self) -> usize {
        match self.data.capacity() {
            // The decoder has reserved further memory itself.
            reserved if reserved > self.size => self.size + reserved,
            _ => self.size,
        }
    }

    fn make_room(&mut self, limit: usize) {
        let unread = self.data.len();
        // Twice the received bytes, so that a long frame is moved only a few times.
        let fitting = (unread * 2)
            .max(unread + CHUNK)
            .min(limit.saturating_add(CHUNK));
        let enough = self.spare.len() >= CHUNK / 4;
        // Large memory for a long frame is not kept for short frames.
        if enough && self.size <= fitting * 4 {
            return;
        }
        let mut memory = BytesMut::zeroed(fitting);
        memory[..unread].copy_from_slice(&self.data);
        self.spare = memory.split_off(unread);
        self.data = memory;
        self.size = fitting;
    }
}
