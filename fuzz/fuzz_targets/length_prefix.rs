#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| socketserver_fuzz::length_prefix(input));
