//! Properties of the path of a request. The input comes from libFuzzer, or from the random tests of
//! the program `http`, which include this file. The including module needs `request_path.rs` beside it.
//!
//! For any input:
//!
//! * nothing panics, and the parsed path needs no more memory than the input;
//! * a file's name is relative, and contains no `..`, empty name or NUL byte;
//! * a reference names no other host, and leads back to the same file.

use super::request_path::Target;

pub fn http_path(input: &[u8]) {
    let Ok(path) = std::str::from_utf8(input) else {
        return;
    };
    let Ok(target) = Target::of(path) else {
        return;
    };
    let file = target.file();
    assert!(file.len() <= path.len().max(1), "{}", file.escape_ascii());
    assert!(!file.contains(&0) && !file.starts_with(b"/"));
    if file != b"." {
        for name in file.split(|byte| *byte == b'/') {
            assert!(
                !matches!(name, b"" | b"." | b".."),
                "{}",
                file.escape_ascii()
            );
        }
    }
    if !target.is_hidden() {
        let hides = |name: &[u8]| name.starts_with(b".") && name != b"." && name != b".well-known";
        assert!(!file.split(|byte| *byte == b'/').any(hides));
    }
    let reference = target.as_directory();
    assert!(reference.starts_with('/'));
    assert!(!matches!(reference.as_bytes().get(1), Some(b'/' | b'\\')));
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._~%/".contains(c);
    assert!(reference.chars().all(is_plain), "{reference}");
    let reparsed = Target::of(&reference).expect("the reference is a valid path");
    assert_eq!(reparsed.file(), file);
    assert!(reparsed.is_directory);
}
