#![no_main]

#[path = "../src/http.rs"]
#[allow(dead_code, reason = "each target uses one function")]
mod http;

libfuzzer_sys::fuzz_target!(|input: &[u8]| http::http_chunked(input));
