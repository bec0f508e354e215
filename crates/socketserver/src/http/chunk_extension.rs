//! Chunk extensions: [RFC 9112, 7.1.1](https://www.rfc-editor.org/rfc/rfc9112#section-7.1.1).
//!
//! The server ignores extensions, but they must be well-formed. If one reader skips bytes that
//! another reader takes for a line of its own, a request can be smuggled.

/// Returns true if `rest` is `*( BWS ";" BWS chunk-ext-name [ BWS "=" BWS chunk-ext-val ] )`.
pub(super) fn are_extensions(mut rest: &[u8]) -> bool {
    while !rest.is_empty() {
        match extension(rest) {
            Some(others) => rest = others,
            None => return false,
        }
    }
    true
}

/// Returns the bytes after the first extension.
fn extension(rest: &[u8]) -> Option<&[u8]> {
    let rest = token(blank(blank(rest).strip_prefix(b";")?))?;
    match blank(rest).strip_prefix(b"=") {
        None => Some(rest),
        Some(value) => match blank(value) {
            [b'"', quoted @ ..] => string(quoted),
            value => token(value),
        },
    }
}

fn blank(rest: &[u8]) -> &[u8] {
    let count = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t'));
    &rest[count.count()..]
}

/// Skips a token of RFC 9110, 5.6.2, which has at least one character.
fn token(rest: &[u8]) -> Option<&[u8]> {
    let is_part = |byte: &&u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    match rest.iter().take_while(is_part).count() {
        0 => None,
        count => Some(&rest[count..]),
    }
}

/// Skips a quoted string of RFC 9110, 5.6.4, up to the closing quote that has no backslash before
/// it.
fn string(rest: &[u8]) -> Option<&[u8]> {
    let mut bytes = rest.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        let text = match byte {
            b'"' => return Some(&rest[at + 1..]),
            b'\\' => bytes.next()?.1,
            byte => byte,
        };
        if text.is_ascii_control() && *text != b'\t' {
            return None;
        }
    }
    None
}
