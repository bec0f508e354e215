//! Recognition of a complete answer, and its comparison with the expected one.

use std::str::FromStr;

use clap::ValueEnum;

use crate::byte_size::Size;

use super::failure::{Failure, Kind};

/// The rule that recognizes an answer. With datagrams, the next datagram is the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResponseMatcher {
    /// As many bytes as were sent.
    Same,
    Line,
    None,
    Bytes(usize),
}

impl FromStr for ResponseMatcher {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "same" => Ok(Self::Same),
            "line" | "lines" => Ok(Self::Line),
            "none" => Ok(Self::None),
            _ => {
                let size = text.parse::<Size>();
                let size = size.ok().and_then(|size| usize::try_from(size.0).ok());
                size.map(Self::Bytes)
                    .ok_or("write same, lines, none, or a number of bytes such as 100 or 4KiB")
            }
        }
    }
}

impl ResponseMatcher {
    pub(super) fn name(self) -> String {
        match self {
            Self::Same => "same".into(),
            Self::Line => "lines".into(),
            Self::None => "none".into(),
            Self::Bytes(n) => n.to_string(),
        }
    }
}

/// The expected content of all answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Verify {
    /// The message
    Message,
    /// The message in upper case, as `upper` sends it
    Upper,
    /// The first answer that arrives
    First,
}

/// The maximum length of a line.
const LONGEST_LINE: usize = 1 << 20;

/// The part of an answer that has arrived.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub(super) received: usize,
    line_ended: bool,
    /// The content, if it must be compared.
    kept: Vec<u8>,
}

/// The rule for all answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct MatchRule {
    pub(super) answer: ResponseMatcher,
    pub(super) sent: usize,
    pub(super) is_datagram: bool,
    pub(super) keeps: bool,
}

impl Reading {
    /// Takes more bytes of a connection, or a datagram. Returns true if the answer is complete.
    pub(super) fn take(&mut self, bytes: &[u8], rule: &MatchRule) -> Result<bool, Failure> {
        self.received += bytes.len();
        if rule.keeps {
            self.kept.extend_from_slice(bytes);
        }
        if rule.is_datagram {
            return match rule.answer {
                ResponseMatcher::Bytes(n) if n != bytes.len() => Err(Failure::new(
                    Kind::WrongAnswer,
                    format!("a datagram of {} bytes instead of {n}", bytes.len()),
                )),
                _ => Ok(true),
            };
        }
        let expected = match rule.answer {
            ResponseMatcher::None => return Ok(true),
            ResponseMatcher::Line => return self.take_line(bytes),
            ResponseMatcher::Same => rule.sent,
            ResponseMatcher::Bytes(n) => n,
        };
        if self.received > expected {
            let more = format!(
                "more than {expected} bytes: if an answer is longer than the message, use --answer lines or a number of bytes"
            );
            return Err(Failure::new(Kind::WrongAnswer, more));
        }
        Ok(self.received == expected)
    }

    fn take_line(&mut self, bytes: &[u8]) -> Result<bool, Failure> {
        let end = bytes.iter().position(|&byte| byte == b'\n');
        if self.line_ended || end.is_some_and(|at| at + 1 < bytes.len()) {
            return Err(Failure::new(Kind::WrongAnswer, "more than one line"));
        }
        if self.received > LONGEST_LINE {
            return Err(Failure::new(Kind::WrongAnswer, "a line of more than 1 MiB"));
        }
        self.line_ended = end.is_some();
        Ok(self.line_ended)
    }

    /// Compares a complete answer with the expected one.
    pub(super) fn check(&self, expected: &[u8]) -> Result<(), Failure> {
        if self.kept == expected {
            return Ok(());
        }
        let same = self.kept.iter().zip(expected).take_while(|(a, b)| a == b);
        Err(Failure::new(
            Kind::WrongAnswer,
            format!(
                "{} bytes that differ from the {} of the right answer after the first {}",
                self.kept.len(),
                expected.len(),
                same.count()
            ),
        ))
    }

    pub(super) fn into_kept(self) -> Vec<u8> {
        self.kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(answer: ResponseMatcher) -> MatchRule {
        MatchRule {
            answer,
            sent: 5,
            is_datagram: false,
            keeps: true,
        }
    }

    #[test]
    fn answers_are_complete_at_every_split() {
        for (answer, whole) in [
            (ResponseMatcher::Same, "HELLO"),
            (ResponseMatcher::Bytes(3), "HEL"),
            (ResponseMatcher::Line, "some line\n"),
        ] {
            for cut in 1..whole.len() {
                let (head, tail) = whole.as_bytes().split_at(cut);
                let mut reading = Reading::default();
                assert!(!reading.take(head, &rule(answer)).unwrap());
                assert!(reading.take(tail, &rule(answer)).unwrap());
                assert!(reading.check(whole.as_bytes()).is_ok());
                assert!(reading.check(b"HELLo").is_err());
                // Further bytes are an error, even in a later read.
                assert!(reading.take(b"x", &rule(answer)).is_err());
            }
        }
    }

    #[test]
    fn excess_bytes_are_an_error() {
        let take = |answer, bytes: &[u8]| Reading::default().take(bytes, &rule(answer));
        assert!(take(ResponseMatcher::Same, b"HELLO!").is_err());
        assert!(take(ResponseMatcher::Line, b"a\nb").is_err());
        assert!(take(ResponseMatcher::Line, &vec![b'x'; LONGEST_LINE + 1]).is_err());
    }

    #[test]
    fn datagram_of_any_length_is_an_answer() {
        let rule = MatchRule {
            is_datagram: true,
            ..rule(ResponseMatcher::Same)
        };
        assert!(
            Reading::default()
                .take(b"127.0.0.1:1 hello", &rule)
                .unwrap()
        );
        assert!(Reading::default().take(b"", &rule).unwrap());
    }
}
