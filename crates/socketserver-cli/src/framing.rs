//! What a client says, message by message: in chunks as they arrive, or in lines.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use clap::{Args, ValueEnum};
use socketserver::framing::{Decoder, FrameError, Framed, FramedParts, Lines};
use socketserver::{Connection, Result};

#[derive(Debug, Args)]
pub(crate) struct MessageOptions {
    /// What a message is; datagrams are always one each
    #[arg(long, value_enum, default_value_t)]
    pub(crate) framing: Framing,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Framing {
    /// Whatever arrives at once, up to 8 KiB
    #[default]
    Chunks,
    /// A line of up to 64 KiB, without its end; answers get one, too
    Lines,
}

impl Framing {
    /// How long one can be with what ends it, in bytes.
    pub(crate) fn longest(self) -> usize {
        match self {
            Self::Chunks => 8 << 10,
            Self::Lines => (64 << 10) + 1,
        }
    }

    /// What ends a message that is sent.
    pub(crate) fn end(self) -> &'static [u8] {
        match self {
            Self::Chunks => b"",
            Self::Lines => b"\n",
        }
    }
}

/// The messages of one connection, between the calls of its handler.
pub(crate) struct Messages {
    framing: Framing,
    parts: Option<FramedParts<Codec>>,
    /// When it was seen that the server drains.
    draining: Option<Instant>,
}

/// How long a client can go on when the server drains: what it has sent before is heard, but one
/// that never stops does not hold up the end.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl Messages {
    pub(crate) fn new(framing: Framing) -> Self {
        Self {
            framing,
            parts: None,
            draining: None,
        }
    }

    /// Calls `each` for every message that has arrived, waiting for the first one, until it says
    /// that there should be no more (`false`). Then, or at the end of input, the connection ends;
    /// otherwise the handler is called again for the next message.
    pub(crate) fn serve(
        &mut self,
        conn: &mut Connection,
        mut each: impl FnMut(&mut Connection, &Bytes) -> Result<bool>,
    ) -> Result<()> {
        let Some(parts) = self.parts.take() else {
            // Who has said nothing yet holds no thread of a pool, and is not waited for by a drain.
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
            // A drain ends the input between two reads, which may be within a line: the client was not
            // done with it, and is not told that it was.
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
            && self.draining.get_or_insert_with(Instant::now).elapsed() > LAST_WORDS
    }
}

/// Whether a client wants to leave: `quit`, with a line end or without.
pub(crate) fn is_quit(message: &[u8]) -> bool {
    message.trim_ascii_end() == b"quit"
}

enum Codec {
    Chunks,
    Lines {
        lines: Lines,
        /// The last line had no end.
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
