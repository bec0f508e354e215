//! Where what has arrived waits until it is a whole frame.

use std::io::{self, Read};

use bytes::BytesMut;

/// What a reader asks for at a time, and the smallest memory that a buffer has.
pub(super) const CHUNK: usize = 8 * 1024;

/// A buffer that grows with what has arrived, and never because of what a peer announces.
///
/// Its memory is zeroed once, when it is allocated; the reads go straight into it, and the frames
/// are handed out of it, without copying. When what is left is too small to read into, what is
/// unread moves to new memory, of a size that fits it then.
#[derive(Default)]
pub(super) struct Buffer {
    /// Arrived, and not yet taken by the decoder.
    pub data: BytesMut,
    /// Zeroed and not yet written to, right behind `data` in the same memory.
    spare: BytesMut,
    /// The size of that memory. What of it was taken belongs to it, until new memory replaces it.
    size: usize,
}

impl Buffer {
    /// Reads once. It holds less than `limit` bytes, and will have memory for `limit` and a chunk
    /// at most.
    ///
    /// # Errors
    /// Those of the stream, but for interruption; they change nothing.
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

    /// Gives back all memory that what is unread does not need.
    pub fn shrink(&mut self) {
        self.spare = BytesMut::new();
        self.data = BytesMut::from(&self.data[..]);
        self.size = self.data.capacity();
    }

    /// How much memory is held.
    pub fn size(&self) -> usize {
        match self.data.capacity() {
            // A decoder has reserved memory on its own account.
            own if own > self.size => self.size + own,
            _ => self.size,
        }
    }

    fn make_room(&mut self, limit: usize) {
        let unread = self.data.len();
        // Twice what has arrived, so that a long frame is moved a few times only.
        let fitting = (unread * 2)
            .max(unread + CHUNK)
            .min(limit.saturating_add(CHUNK));
        let enough = self.spare.len() >= CHUNK / 4;
        // Memory that a long frame needed is not kept for short ones.
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
