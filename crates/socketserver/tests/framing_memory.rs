//! Memory is allocated for received bytes, never for an announced length. The binary has one test,
//! because it counts all allocations.

#![allow(clippy::unwrap_used, reason = "a test prints why it fails")]

use std::alloc::System;

use socketserver::framing::{Decoder, Framed, JsonHeader, LengthPrefix, Lines, Netstring};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[track_caller]
fn assert_little_memory<D: Decoder>(codec: D, wire: &[u8]) {
    let counted = Region::new(COUNTED);
    let mut framed = Framed::new(wire, codec);
    assert!(
        framed.read().is_err(),
        "the frame is incomplete or too long"
    );
    let allocated = counted.change().bytes_allocated;
    assert!(allocated < 16 * 1024, "{allocated} bytes");
}

#[test]
fn announced_length_is_not_allocated() {
    // At the limit, which is 8 MiB, and above it.
    for length in [8 << 20, u64::MAX] {
        let prefix = length.to_be_bytes();
        assert_little_memory(LengthPrefix::u64_be(), &prefix);
        assert_little_memory(LengthPrefix::u64_be().max_len(usize::MAX), &prefix);

        let netstring = format!("{length}:x");
        assert_little_memory(Netstring::default(), netstring.as_bytes());
        assert_little_memory(
            Netstring::default().max_len(usize::MAX),
            netstring.as_bytes(),
        );

        let header = format!("{{\"dataBodyLength\": {length}}}");
        let mut frame = u32::try_from(header.len()).unwrap().to_le_bytes().to_vec();
        frame.extend_from_slice(header.as_bytes());
        assert_little_memory(JsonHeader::default(), &frame);
        assert_little_memory(JsonHeader::default().max_body(u64::MAX), &frame);
    }
    assert_little_memory(
        JsonHeader::default().max_header(usize::MAX),
        &[0xff, 0xff, 0xff, 0x7f],
    );
    assert_little_memory(Lines::default().max_len(100), &[b'x'; 200]);
}
