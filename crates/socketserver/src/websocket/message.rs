//! WebSocket messages, close codes and close reasons.

use std::fmt;

use bytes::Bytes;

/// A message: text or binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// UTF-8 text.
    Text(String),
    /// Arbitrary bytes.
    Binary(Bytes),
}

impl Message {
    /// Returns the bytes of a text or binary message.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }

    /// Returns the text of a text message.
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

/// A WebSocket close code (RFC 6455, 7.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CloseCode(u16);

impl CloseCode {
    /// 1000: the WebSocket has fulfilled its purpose.
    pub const NORMAL: Self = Self(1000);
    /// 1001: the server stops, or the user leaves the page.
    pub const GOING_AWAY: Self = Self(1001);
    /// 1002: protocol error, for example an invalid frame.
    pub const PROTOCOL_ERROR: Self = Self(1002);
    /// 1003: unsupported type of data, for example binary where only text is expected.
    pub const UNSUPPORTED: Self = Self(1003);
    /// 1007: invalid data, for example text that is not UTF-8.
    pub const INVALID: Self = Self(1007);
    /// 1008: policy violation.
    pub const POLICY: Self = Self(1008);
    /// 1009: the message is too long.
    pub const TOO_BIG: Self = Self(1009);
    /// 1011: an internal error of the server.
    pub const FAILED: Self = Self(1011);

    /// Creates a close code that a frame may contain: 1000 to 1003 and 1007 to 1014, which
    /// [IANA](https://www.iana.org/assignments/websocket/websocket.xhtml) has registered for this
    /// use, and 3000 to 4999. Codes from 4000 on are for private use.
    #[must_use]
    pub const fn new(code: u16) -> Option<Self> {
        match code {
            1000..=1003 | 1007..=1014 | 3000..=4999 => Some(Self(code)),
            _ => None,
        }
    }

    /// Returns the number of the close code.
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

/// The content of a close frame: a code, and a reason that may be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloseFrame {
    /// The close code.
    pub code: CloseCode,
    /// The reason as text.
    pub reason: String,
}

/// Maximum length of a reason: 125 bytes of a control frame minus 2 bytes of the code (RFC 6455,
/// 5.5).
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

/// The way in which a WebSocket ended; see [`Handler::closed`](super::Handler::closed).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseReason {
    /// The client sent a close frame, possibly without a code.
    ByPeer(Option<CloseFrame>),
    /// This side sent the close frame: the handler closed the WebSocket, the client violated the
    /// protocol or exceeded a time limit, or the handler failed.
    ByServer(CloseFrame),
    /// The connection ended without a close frame, or the server drains.
    Lost,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_reason_is_truncated_between_characters() {
        let close = CloseFrame::new(CloseCode::NORMAL, "ü".repeat(100));
        assert_eq!(close.reason.len(), 122);
        assert_eq!(CloseFrame::new(CloseCode::NORMAL, "bye").reason, "bye");
    }

    #[test]
    fn reserved_close_codes_are_rejected() {
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000] {
            assert_eq!(CloseCode::new(code), None);
        }
        assert_eq!(CloseCode::new(1000), Some(CloseCode::NORMAL));
    }
}
