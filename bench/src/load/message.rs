//! The messages of clients. Each contains its client and its number, so that a wrong answer is
//! noticed at its first wrong byte.

use std::os::fd::OwnedFd;

use anyhow::ensure;
use rustix::net::SendFlags;

/// Size of the header: the client and the message number, 4 bytes each.
const HEAD: usize = 8;

pub(super) struct Messages {
    /// The message that was last sent or checked.
    bytes: Vec<u8>,
}

impl Messages {
    pub(super) fn new(size: usize) -> anyhow::Result<Self> {
        ensure!(
            size >= HEAD,
            "the message size must be at least {HEAD} bytes"
        );
        // The period of the pattern divides no buffer size, so a shift is noticed.
        let pattern = (0..251_u8).cycle();
        let bytes = [0; HEAD].into_iter().chain(pattern).take(size).collect();
        Ok(Self { bytes })
    }

    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn of(&mut self, client: usize, number: u32) -> &[u8] {
        #[expect(clippy::cast_possible_truncation, reason = "a few thousand")]
        let client = client as u32;
        self.bytes[..4].copy_from_slice(&client.to_ne_bytes());
        self.bytes[4..HEAD].copy_from_slice(&number.to_ne_bytes());
        &self.bytes
    }

    /// Checks that `answer` equals the message from `offset` on.
    pub(super) fn check(
        &mut self,
        client: usize,
        number: u32,
        offset: usize,
        answer: &[u8],
    ) -> anyhow::Result<()> {
        let expected = &self.of(client, number)[offset..];
        ensure!(
            answer.len() <= expected.len(),
            "the server sent too many bytes"
        );
        ensure!(
            answer == &expected[..answer.len()],
            "wrong answer: the echo differs from the message"
        );
        Ok(())
    }
}

pub(super) fn send(stream: &OwnedFd, message: &[u8]) -> anyhow::Result<()> {
    let n = rustix::net::send(stream, message, SendFlags::NOSIGNAL)?;
    ensure!(n == message.len(), "the server does not read");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_answer_is_accepted_in_any_pieces() {
        let mut messages = Messages::new(600).unwrap();
        let right = messages.of(3, 7).to_vec();
        for cut in [1, 8, 300, 600] {
            assert!(messages.check(3, 7, 0, &right[..cut]).is_ok());
            assert!(messages.check(3, 7, cut, &right[cut..]).is_ok());
        }
        for at in [0, 4, 8, 599] {
            let mut wrong = right.clone();
            wrong[at] ^= 1;
            assert!(messages.check(3, 7, 0, &wrong).is_err(), "{at}");
        }
        assert!(messages.check(4, 7, 0, &right).is_err());
        assert!(messages.check(3, 8, 0, &right).is_err());
        // Bytes of the right message at a wrong offset.
        assert!(messages.check(3, 7, 100, &right[356..456]).is_err());
        assert!(messages.check(3, 7, 599, &right[598..]).is_err());
        assert!(Messages::new(7).is_err());
    }
}
