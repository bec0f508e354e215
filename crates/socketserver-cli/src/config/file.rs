//! The text of a configuration file, read with limits on time and memory.

use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use toml::Spanned;
use toml::de::DeTable;

use super::BadConfig;
use crate::byte_size::Size;
use crate::escape;

/// The maximum size of a configuration.
const LONGEST: u64 = 1 << 20;

/// The parser's message for an error at a key.
const DUPLICATE: &str = "duplicate key";

pub(super) struct File {
    /// The path in a form that is safe to show.
    name: String,
    text: String,
}

impl File {
    /// Reads a regular file. No kind of file at the path can block this function for long or use
    /// much memory.
    pub(super) fn read(path: &Path) -> Result<Self, BadConfig> {
        let name = escape::printable(path.as_os_str().as_encoded_bytes());
        let refuse = |why: String| BadConfig::of_file(&name, why);
        let bytes = match read(path) {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(unfit)) => return Err(refuse(unfit)),
            Err(error) => return Err(refuse(format!("cannot be read: {error}"))),
        };
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Self { name, text }),
            Err(error) => {
                let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                let line = line_of(valid);
                Err(refuse("the file is not UTF-8, which TOML requires".into()).at(line))
            }
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn parse(&self) -> Result<Spanned<DeTable<'_>>, BadConfig> {
        DeTable::parse(&self.text).map_err(|error| {
            let fault = BadConfig::of_file(&self.name, error.message().to_owned());
            let Some(span) = error.span() else {
                return fault;
            };
            let fault = fault.at(self.line(span.start));
            match self.text.get(span) {
                Some(key) if error.message() == DUPLICATE => fault.on(key),
                _ => fault,
            }
        })
    }

    /// Returns the line of a byte, counted from 1.
    pub(super) fn line(&self, at: usize) -> usize {
        line_of(&self.text.as_bytes()[..at.min(self.text.len())])
    }
}

fn line_of(before: &[u8]) -> usize {
    1 + before.iter().filter(|&&byte| byte == b'\n').count()
}

/// Returns the bytes, or the reason why the file cannot be a configuration.
fn read(path: &Path) -> io::Result<Result<Vec<u8>, String>> {
    // Without `O_NONBLOCK`, opening a pipe would wait for a writer: fifo(7).
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = std::fs::File::from(open(path, flags, Mode::empty())?);
    match FileType::from_raw_mode(fstat(&file)?.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Ok(Err("the path is a directory; name a file".into())),
        _ => {
            return Ok(Err(
                "the path is not a regular file; a pipe cannot be read again at a reload".into(),
            ));
        }
    }
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST {
        let limit = Size(LONGEST);
        return Ok(Err(format!(
            "the file is longer than {limit}, the limit for a configuration"
        )));
    }
    Ok(Ok(bytes))
}
