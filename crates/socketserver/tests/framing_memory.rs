//! What a peer announces costs nothing. Alone in its program: it counts all that is allocated.

#![allow(clippy::unwrap_used, reason = "a test says why it fails")]

use std::alloc::System;

use socketserver::framing::{Decoder, Framed, JsonHeader, LengthPrefix, Lines, Netstring};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[track_caller]
fn allocates_little<D: Decoder>(codec: D, wire: &[u8]) {
    let counted = Region::new(COUNTED);
    let mut framed = Framed::new(wire, codec);
    assert!(framed.read().is_err(), "it is cut short, or too long");
    let allocated = counted.change().bytes_allocated;
    assert!(allocated < 16 * 1024, "{allocated} bytes");
}

#[test]
fn what_is_announced_is_not_allocated() {
    // Within the limit, which is 8 MiB, and over it.
    for length in [8 << 20, u64::MAX] {
        let prefix = length.to_be_bytes();
        allocates_little(LengthPrefix::u64_be(), &prefix);
        allocates_little(LengthPrefix::u64_be().max_len(usize::MAX), &prefix);

        let netstring = format!("{length}:x");
        allocates_little(Netstring::default(), netstring.as_bytes());
        allocates_little(
            Netstring::default().max_len(usize::MAX),
            netstring.as_bytes(),
        );

        let header = format!("{{\"dataBodyLength\": {length}}}");
        let mut frame = u32::try_from(header.len()).unwrap().to_le_bytes().to_vec();
        frame.extend_from_slice(header.as_bytes());
        allocates_little(JsonHeader::default(), &frame);
        allocates_little(JsonHeader::default().max_body(u64::MAX), &frame);
    }
    allocates_little(
        JsonHeader::default().max_header(usize::MAX),
        &[0xff, 0xff, 0xff, 0x7f],
    );
    allocates_little(Lines::default().max_len(100), &[b'x'; 200]);
}
