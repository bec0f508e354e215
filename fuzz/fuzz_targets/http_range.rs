#![no_main]

#[allow(dead_code, reason = "the target uses a part of the module")]
#[path = "../../crates/socketserver/src/http/range.rs"]
mod range;
#[path = "../src/http_range.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|input: &[u8]| target::http_range(input));
