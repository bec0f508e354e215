//! What is said over a WebSocket, and how it ends.

use std::fmt;

use bytes::Bytes;

/// A message: text, or bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Text in UTF-8.
    Text(String),
    /// Any bytes.
    Binary(Bytes),
}

impl Message {
    /// Its bytes, whichever it is.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }

    /// Text, if it is.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Binary(_) => None,
        }
    }
}

impl From<String> for Message {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Message {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<Bytes> for Message {
    fn from(bytes: Bytes) -> Self {
        Self::Binary(bytes)
    }
}

impl From<Vec<u8>> for Message {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Binary(bytes.into())
    }
}

/// The number that says why a WebSocket ends (RFC 6455, 7.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CloseCode(u16);

impl CloseCode {
    /// 1000: it has done its work.
    pub const NORMAL: Self = Self(1000);
    /// 1001: a server that stops, or a page that is left.
    pub const GOING_AWAY: Self = Self(1001);
    /// 1002: frames that are none.
    pub const PROTOCOL_ERROR: Self = Self(1002);
    /// 1003: binary where only text is understood, or the reverse.
    pub const UNSUPPORTED: Self = Self(1003);
    /// 1007: text that is not UTF-8, or a message without a meaning.
    pub const INVALID: Self = Self(1007);
    /// 1008: against the rules of the house.
    pub const POLICY: Self = Self(1008);
    /// 1009: a message that is too long.
    pub const TOO_BIG: Self = Self(1009);
    /// 1011: the server has failed.
    pub const FAILED: Self = Self(1011);

    /// One that a frame may have: 1000 to 1003 and 1007 to 1014, which
    /// [IANA](https://www.iana.org/assignments/websocket/websocket.xhtml) has registered for that, and
    /// 3000 to 4999, of which those from 4000 on are for private use.
    #[must_use]
    pub const fn new(code: u16) -> Option<Self> {
        match code {
            1000..=1003 | 1007..=1014 | 3000..=4999 => Some(Self(code)),
            _ => None,
        }
    }

    /// Its number.
    #[must_use]
    pub const fn as_u16(self) -> u16 {
        self.0
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why one side ends a WebSocket: a number, and some words that may be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloseFrame {
    /// The number.
    pub code: CloseCode,
    /// The words.
    pub reason: String,
}

/// RFC 6455, 5.5: control frames have 125 bytes, and two are the number.
const LONGEST_REASON: usize = 123;

impl CloseFrame {
    pub(super) fn new(code: CloseCode, reason: impl Into<String>) -> Self {
        let mut reason = reason.into();
        let mut end = reason.len().min(LONGEST_REASON);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        reason.truncate(end);
        Self { code, reason }
    }
}

impl fmt::Display for CloseFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.reason {
            "" => self.code.fmt(f),
            reason => write!(f, "{} ({reason})", self.code),
        }
    }
}

/// How a WebSocket came to its end; see [`Handler::closed`](super::Handler::closed).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseReason {
    /// The client has said so; it need not say why.
    ByPeer(Option<CloseFrame>),
    /// This side says so, after this: the handler, or because the client broke the rules, was silent
    /// for too long, or the handler has failed.
    ByServer(CloseFrame),
    /// The connection has ended without a word, or the server drains.
    Lost,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_fits_into_its_frame_and_is_cut_between_characters() {
        let close = CloseFrame::new(CloseCode::NORMAL, "ü".repeat(100));
        assert_eq!(close.reason.len(), 122);
        assert_eq!(CloseFrame::new(CloseCode::NORMAL, "bye").reason, "bye");
    }

    #[test]
    fn numbers_that_are_never_sent_cannot_be_made() {
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000] {
            assert_eq!(CloseCode::new(code), None);
        }
        assert_eq!(CloseCode::new(1000), Some(CloseCode::NORMAL));
    }
}
