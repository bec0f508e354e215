//! A secret in a file that a server and its clients share.

use std::fmt;
use std::fs::File;
use std::hint::black_box;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, ensure};

/// The minimum length: shorter secrets can be guessed.
pub(crate) const SHORTEST: usize = 16;

/// The maximum length: a longer first line is a sign of the wrong file.
pub(crate) const LONGEST: usize = 4096;

/// The bytes that a client sends first: the secret and a line end.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token(Vec<u8>);

impl Token {
    /// Reads the first line of a file that only its owner can read.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let read = || -> io::Result<(u32, Vec<u8>)> {
            let file = File::open(path)?;
            let mode = file.metadata()?.permissions().mode();
            let mut bytes = Vec::new();
            file.take(LONGEST as u64 + 2).read_to_end(&mut bytes)?;
            Ok((mode, bytes))
        };
        let (mode, mut bytes) = read().with_context(|| format!("cannot read the token {shown}"))?;
        ensure!(
            mode & 0o077 == 0,
            "refusing the token {shown}: other users can read the file; run chmod 600 {shown}"
        );
        let end = bytes.iter().position(|&byte| byte == b'\n');
        bytes.truncate(end.unwrap_or(bytes.len()));
        if bytes.ends_with(b"\r") {
            bytes.pop();
        }
        ensure!(
            (SHORTEST..=LONGEST).contains(&bytes.len()),
            "refusing the token {shown}: its first line has {} bytes or more, and must have {SHORTEST} to \
             {LONGEST}; create one with openssl rand -hex 32",
            bytes.len()
        );
        bytes.push(b'\n');
        Ok(Self(bytes))
    }

    /// Returns the bytes of the token on the wire, with a `\n`.
    pub(crate) fn line(&self) -> &[u8] {
        &self.0
    }

    /// Returns true if a line is the token. The comparison always covers the maximum length, so
    /// that its time reveals neither the position of a difference nor the length of the token.
    pub(crate) fn is(&self, line: &[u8]) -> bool {
        let padded = |bytes: &[u8]| {
            let mut padded = [0; LONGEST + 1];
            let length = bytes.len().min(padded.len());
            padded[..length].copy_from_slice(&bytes[..length]);
            padded
        };
        let differ = |difference, (a, b)| black_box(difference | (a ^ b));
        let difference = padded(&self.0).iter().zip(&padded(line)).fold(0, differ);
        difference == 0 && line.len() == self.0.len()
    }
}

/// `Debug` does not show the secret.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn load(content: &[u8], mode: u32) -> anyhow::Result<Token> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        Token::load(&path)
    }

    #[test]
    fn load_reads_the_first_line_of_a_private_file() {
        for content in [
            "0123456789abcdef",
            "0123456789abcdef\n",
            "0123456789abcdef\r\nmore",
        ] {
            let token = load(content.as_bytes(), 0o600).unwrap();
            assert_eq!(token.line(), b"0123456789abcdef\n");
        }
        let error = |content, mode| load(content, mode).unwrap_err().to_string();
        assert!(error(b"0123456789abcdef", 0o640).contains("chmod 600"));
        assert!(error(b"0123456789abcde\n", 0o600).contains("16"));
        assert!(error(&[b'x'; 5000], 0o600).contains("4096"));
        assert!(Token::load(Path::new("/no/token")).is_err());
    }

    #[test]
    fn is_accepts_only_the_token() {
        let token = load(b"0123456789abcdef", 0o400).unwrap();
        assert!(token.is(b"0123456789abcdef\n"));
        for wrong in [
            &b""[..],
            b"0123456789abcdef",
            b"0123456789abcdeg\n",
            b"1123456789abcdef\n",
            b"0123456789abcdef\n\n",
        ] {
            assert!(!token.is(wrong));
        }
        assert_eq!(format!("{token:?}"), "Token");
    }
}
