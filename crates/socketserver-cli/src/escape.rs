//! Escaping of untrusted bytes and names for output.

use std::net::SocketAddr;

use socketserver::{Address, RequestId};

/// Returns `IP:PORT` of a peer, or the path of its Unix socket. Most Unix clients have no path, and
/// are named by the number of the request.
pub(crate) fn name_of(peer: &Address, id: RequestId) -> String {
    match peer.as_inet() {
        // An IPv6 socket reports an IPv4 client by a mapped address, which is shown as IPv4.
        Some(address) if address.ip().to_canonical().is_ipv4() => {
            SocketAddr::new(address.ip().to_canonical(), address.port()).to_string()
        }
        None if peer.is_unnamed() => format!("unix:{id}"),
        // The text contains the zone, or is already escaped.
        _ => peer.to_string(),
    }
}

/// Returns the address of a peer without its port, with its zone if it has one.
pub(crate) fn host_of(peer: &Address, address: SocketAddr) -> String {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => {
            let shown = peer.to_string();
            let host = shown
                .strip_prefix('[')
                .and_then(|rest| rest.rsplit_once("]:"));
            host.map_or(shown.clone(), |(host, _)| host.to_owned())
        }
        _ => address.ip().to_canonical().to_string(),
    }
}

/// The maximum number of characters of a message in a line of the log. Programs allow long
/// messages, and clients decide how many they send.
const EXCERPT: usize = 200;

/// Returns the escaped beginning of a message for the log, with the full length if the message is
/// longer.
pub(crate) fn excerpt(message: &[u8]) -> String {
    // Every byte becomes at least one character, except in UTF-8 sequences.
    let mut shown = printable(&message[..message.len().min(EXCERPT * 4)]);
    if let Some((end, _)) = shown.char_indices().nth(EXCERPT) {
        shown.truncate(end);
        shown.push_str(&format!("... ({} bytes)", message.len()));
    }
    shown
}

/// Escapes all characters that could control a terminal, and all bytes that are not UTF-8.
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
                c => push_visibly(&mut out, c),
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

fn push_visibly(out: &mut String, c: char) {
    if c.is_ascii_control() {
        out.push_str(&format!("\\x{:02x}", u32::from(c)));
    } else if c.is_control() || turns(c) {
        out.extend(c.escape_unicode());
    } else {
        out.push(c);
    }
}

/// Returns true if a character changes the direction of writing or ends a line: UAX #9, 2; UAX #14.
pub(crate) fn turns(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A filter for untrusted bytes on their way to a terminal. Text with line ends and tabs passes;
/// all other bytes are escaped. A character may arrive in pieces.
#[derive(Default)]
pub(crate) struct Escaped {
    /// The first bytes of an incomplete character.
    begun: Vec<u8>,
}

impl Escaped {
    pub(crate) fn text(&mut self, bytes: &[u8]) -> String {
        let mut all = std::mem::take(&mut self.begun);
        all.extend_from_slice(bytes);
        let whole = match std::str::from_utf8(&all) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            // An unfinished character may follow further errors.
            Err(_) => all.len() - unfinished(&all),
            Ok(_) => all.len(),
        };
        self.begun = all.split_off(whole);
        shown(&all)
    }

    /// Returns the bytes of an incomplete character, escaped.
    pub(crate) fn rest(&mut self) -> String {
        shown(&std::mem::take(&mut self.begun))
    }
}

/// Returns the number of bytes at the end that begin a character.
fn unfinished(bytes: &[u8]) -> usize {
    let last = bytes.utf8_chunks().last();
    let invalid = last.map_or(&[][..], |chunk| chunk.invalid());
    match std::str::from_utf8(invalid) {
        Err(error) if error.error_len().is_none() => invalid.len(),
        _ => 0,
    }
}

fn shown(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        let mut chars = chunk.valid().chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '\n' | '\t' => out.push(c),
                // A carriage return without a line feed would overwrite the line.
                '\r' if chars.peek() == Some(&'\n') => {}
                c => push_visibly(&mut out, c),
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
    fn excerpt_shortens_long_messages() {
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
    fn escaped_passes_only_text() {
        let mut escaped = Escaped::default();
        assert_eq!(escaped.text(b"a\tb\r\n"), "a\tb\n");
        assert_eq!(
            escaped.text(b"\x1b[2J\x1b]0;x\x07"),
            "\\x1b[2J\\x1b]0;x\\x07"
        );
        assert_eq!(
            escaped.text("\u{9b}1m\u{202e}\u{61c}".as_bytes()),
            "\\u{9b}1m\\u{202e}\\u{61c}"
        );
        // The character comes in pieces, after an error, and unfinished.
        let euro = "€".as_bytes();
        assert_eq!(escaped.text(&euro[..1]), "");
        assert_eq!(escaped.text(&euro[1..2]), "");
        assert_eq!(escaped.text(&euro[2..]), "€");
        assert_eq!(escaped.text(&[b"\xff", &euro[..2]].concat()), "\\xff");
        assert_eq!(escaped.text(&euro[2..]), "€");
        assert_eq!(escaped.text(b"\xe2\x82"), "");
        assert_eq!(escaped.rest(), "\\xe2\\x82");
        assert_eq!(escaped.rest(), "");
    }

    #[test]
    fn printable_passes_typographic_marks() {
        assert_eq!(printable("“a” – b‐c…".as_bytes()), "“a” – b‐c…");
        assert_eq!(printable("\u{2029}\u{61c}".as_bytes()), "\\u{2029}\\u{61c}");
    }

    #[test]
    fn host_of_keeps_the_interface_of_link_local_addresses() {
        let host = |text: &str| {
            let address = text.parse().unwrap();
            host_of(&Address::Inet(address), address)
        };
        assert_eq!(host("[fe80::1%1]:80"), "fe80::1%lo");
        assert_eq!(host("[2001:db8::1]:80"), "2001:db8::1");
        assert_eq!(host("[::ffff:192.0.2.1]:80"), "192.0.2.1");
        assert_eq!(host("192.0.2.1:80"), "192.0.2.1");
    }

    #[test]
    fn printable_escapes_terminal_commands() {
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
