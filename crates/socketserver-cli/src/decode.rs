//! Text in a charset, decoded as it arrives. A character may arrive in pieces, and malformed bytes
//! do not stop the output.

use std::io::{self, Write};

use anyhow::Context;
use encoding_rs::{CoderResult, Decoder, Encoding, UTF_8};

/// A decoder that writes to stdout in UTF-8.
pub(crate) struct Printer {
    /// The decoder; `None` for UTF-8, which is passed on unchanged.
    decoder: Option<Decoder>,
    text: Vec<u8>,
    ends_line: bool,
}

impl Printer {
    pub(crate) fn new(charset: &'static Encoding) -> Self {
        Self {
            decoder: (charset != UTF_8).then(|| charset.new_decoder_with_bom_removal()),
            text: Vec::new(),
            ends_line: true,
        }
    }

    pub(crate) fn print(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        if self.decoder.is_none() {
            return self.write(bytes);
        }
        self.decode(bytes, false)
    }

    /// Ends the output. Returns true if it ends with a line end.
    pub(crate) fn finish(mut self) -> anyhow::Result<bool> {
        self.decode(&[], true)?;
        io::stdout().flush().context("cannot write to stdout")?;
        Ok(self.ends_line)
    }

    fn decode(&mut self, mut bytes: &[u8], last: bool) -> anyhow::Result<()> {
        let Some(mut decoder) = self.decoder.take() else {
            return Ok(());
        };
        let mut text = std::mem::take(&mut self.text);
        text.resize(64 << 10, 0);
        loop {
            // The decoder replaces malformed bytes with U+FFFD.
            let (result, read, written, _) = decoder.decode_to_utf8(bytes, &mut text, last);
            self.write(&text[..written])?;
            bytes = &bytes[read..];
            if result == CoderResult::InputEmpty {
                break;
            }
        }
        self.text = text;
        if !last {
            self.decoder = Some(decoder);
        }
        Ok(())
    }

    fn write(&mut self, text: &[u8]) -> anyhow::Result<()> {
        let Some(&last) = text.last() else {
            return Ok(());
        };
        self.ends_line = last == b'\n';
        io::stdout()
            .write_all(text)
            .context("cannot write to stdout")
    }
}
