//! Messages of a client: chunks as they arrive, or lines.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use clap::{Args, ValueEnum};
use socketserver::framing::{Decoder, FrameError, Framed, FramedParts, Lines};
use socketserver::{Connection, Result};

#[derive(Debug, Args)]
pub(crate) struct MessageOptions {
    /// Unit of a message on a connection; each datagram is one message
    #[arg(long, value_enum, default_value_t)]
    pub(crate) framing: Framing,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Framing {
    /// All bytes that arrive at once, up to 8 KiB
    #[default]
    Chunks,
    /// A line of up to 64 KiB without its line end; replies get a line end
    Lines,
}

impl Framing {
    /// Returns the maximum length of a message with its terminator, in bytes.
    pub(crate) fn longest(self) -> usize {
        match self {
            Self::Chunks => 8 << 10,
            Self::Lines => (64 << 10) + 1,
        }
    }

    /// Returns the terminator of a sent message.
    pub(crate) fn end(self) -> &'static [u8] {
        match self {
            Self::Chunks => b"",
            Self::Lines => b"\n",
        }
    }
}

/// The messages of one connection, kept between the calls of its handler.
pub(crate) struct Messages {
    framing: Framing,
    parts: Option<FramedParts<Codec>>,
    /// The time at which the handler noticed the drain.
    draining: Option<Instant>,
}

/// The time during which a client can continue when the server drains. Messages that were sent
/// earlier are read, but a client that never stops does not delay the end.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

impl Messages {
    pub(crate) fn new(framing: Framing) -> Self {
        Self {
            framing,
            parts: None,
            draining: None,
        }
    }

    /// Calls `each` for every message that has arrived, and waits for the first one. The connection
    /// ends if `each` returns `false`, or at the end of the input. Otherwise the server calls the
    /// handler again for the next message.
    pub(crate) fn serve(
        &mut self,
        conn: &mut Connection,
        mut each: impl FnMut(&mut Connection, &Bytes) -> Result<bool>,
    ) -> Result<()> {
        let Some(parts) = self.parts.take() else {
            // A client without a message yet holds no thread of a pool, and a drain does not wait
            // for it.
            self.parts = Some(FramedParts::new(Codec::new(self.framing)));
            conn.suspend_until_readable();
            return Ok(());
        };
        let mut messages = Framed::from_parts(&mut *conn, parts).with_receive_rate();
        let mut next = messages.read()?;
        if next.is_none() {
            return Ok(());
        }
        while let Some(message) = next {
            // A drain ends the input between two reads, which may be within a line. The partial
            // line is not a message, so it gets no reply.
            if messages.codec().has_cut_a_line() && messages.stream().server().is_draining() {
                return Ok(());
            }
            if !each(messages.stream_mut(), &message)? {
                return Ok(());
            }
            next = messages.read_buffered()?;
        }
        self.parts = Some(messages.into_parts().1);
        if !self.is_over(conn) {
            conn.suspend_until_readable();
        }
        Ok(())
    }

    fn is_over(&mut self, conn: &Connection) -> bool {
        conn.server().is_draining()
            && self.draining.get_or_insert_with(Instant::now).elapsed() > DRAIN_GRACE
    }
}

/// Returns true if the message is `quit`, with or without a line end.
pub(crate) fn is_quit(message: &[u8]) -> bool {
    message.trim_ascii_end() == b"quit"
}

enum Codec {
    Chunks,
    Lines {
        lines: Lines,
        /// True if the last line had no line end.
        is_cut: bool,
    },
}

impl Codec {
    fn new(framing: Framing) -> Self {
        match framing {
            Framing::Chunks => Self::Chunks,
            Framing::Lines => Self::Lines {
                lines: Lines::default(),
                is_cut: false,
            },
        }
    }

    fn has_cut_a_line(&self) -> bool {
        matches!(self, Self::Lines { is_cut: true, .. })
    }
}

impl Decoder for Codec {
    type Item = Bytes;
    type Error = FrameError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
        match self {
            Self::Chunks => Ok((!src.is_empty()).then(|| src.split().freeze())),
            Self::Lines { lines, .. } => lines.decode(src),
        }
    }

    fn decode_eof(&mut self, src: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
        match self {
            Self::Chunks => self.decode(src),
            Self::Lines { lines, is_cut } => {
                if let Some(line) = lines.decode(src)? {
                    return Ok(Some(line));
                }
                let rest = lines.decode_eof(src)?;
                *is_cut = rest.is_some();
                Ok(rest)
            }
        }
    }

    fn buffer_limit(&self) -> usize {
        match self {
            Self::Chunks => 1,
            Self::Lines { lines, .. } => lines.buffer_limit(),
        }
    }
}
