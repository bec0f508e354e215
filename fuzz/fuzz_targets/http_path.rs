#![no_main]

#[allow(dead_code, reason = "the target uses a part of the module")]
#[path = "../../crates/socketserver-cli/src/programs/http/request_path.rs"]
mod request_path;
#[path = "../src/http_path.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|input: &[u8]| target::http_path(input));
