//! Bytes and names of strangers, made fit to be shown.

use std::net::SocketAddr;

use socketserver::{Address, RequestId};

/// `IP:PORT` of a peer, or the path of its Unix socket. Most of these have none: the number of the
/// request is their name.
pub(crate) fn name_of(peer: &Address, id: RequestId) -> String {
    match peer.as_inet() {
        // What an IPv6 socket shows of an IPv4 client is still that client's address.
        Some(address) if address.ip().to_canonical().is_ipv4() => {
            SocketAddr::new(address.ip().to_canonical(), address.port()).to_string()
        }
        // With its zone.
        Some(_) => peer.to_string(),
        None if peer.is_unnamed() => format!("unix:{id}"),
        None => printable(peer.to_string().as_bytes()),
    }
}

/// How much of a message a line of the log shows, in characters. Messages may be as long as a program
/// lets them be, and clients decide how many there are.
const EXCERPT: usize = 200;

/// The beginning of a message for the log, fit to be shown, and how long it is if that is not all.
pub(crate) fn excerpt(message: &[u8]) -> String {
    // Every byte is shown as one character at least, but for UTF-8.
    let mut shown = printable(&message[..message.len().min(EXCERPT * 4)]);
    if let Some((end, _)) = shown.char_indices().nth(EXCERPT) {
        shown.truncate(end);
        shown.push_str(&format!("... ({} bytes)", message.len()));
    }
    shown
}

/// With everything escaped that could mean something to a terminal, and all that is not UTF-8.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\\' => out.push_str("\\\\"),
                c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
                // The other controls, and what turns the direction of writing.
                c if c.is_control()
                    || matches!(c, '\u{200e}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
                {
                    out.extend(c.escape_unicode());
                }
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_shows_the_beginning_of_a_long_message() {
        assert_eq!(excerpt(b"short\n"), "short\\n");
        let whole = "x".repeat(EXCERPT);
        assert_eq!(excerpt(whole.as_bytes()), whole);
        let long = excerpt(&b"\0".repeat(65_507));
        assert!(long.ends_with("... (65507 bytes)"), "{long}");
        assert!(long.len() < EXCERPT + 30, "{long}");
        let wide = excerpt("\u{1f600}".repeat(300).as_bytes());
        assert_eq!(wide.chars().filter(|c| *c == '\u{1f600}').count(), EXCERPT);
    }

    #[test]
    fn nothing_reaches_the_terminal_as_a_command() {
        assert_eq!(printable("grüße, 世界".as_bytes()), "grüße, 世界");
        assert_eq!(printable(b"a\r\n\tb\\"), "a\\r\\n\\tb\\\\");
        assert_eq!(printable(b"\x1b]0;x\x07\x7f"), "\\x1b]0;x\\x07\\x7f");
        assert_eq!(printable(b"\xff\xc3(\xe4\xb8"), "\\xff\\xc3(\\xe4\\xb8");
        assert_eq!(
            printable("\u{9b}2J\u{202e}x".as_bytes()),
            "\\u{9b}2J\\u{202e}x"
        );
    }
}
