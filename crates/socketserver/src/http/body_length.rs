//! Where the body of a request ends: [RFC 9112,
//! 6](https://www.rfc-editor.org/rfc/rfc9112#section-6).
//!
//! A proxy may interpret an ambiguous request differently, and take a part of a body for the next
//! request of another client. This module therefore rejects every ambiguous request, including
//! requests that the RFC allows a server to repair.

use ::http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};

use super::problem::{Problem, bad, problem};

/// The rule that determines the end of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyLength {
    /// The body has this number of bytes.
    Length(u64),
    /// The body is sent in chunks, each after its length.
    Chunked,
}

impl BodyLength {
    pub fn of_request(
        method: &Method,
        version: Version,
        headers: &HeaderMap,
    ) -> Result<Self, Problem> {
        let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
        let length = lengths.next().map(length).transpose()?;
        if lengths.next().is_some() {
            return Err(bad("there are several lengths"));
        }
        let is_encoded = headers.contains_key(TRANSFER_ENCODING);
        match length {
            // RFC 9112, 6.1: it "ought to be handled as an error".
            Some(_) if is_encoded => Err(bad("there are a length and a transfer coding")),
            Some(length) => Ok(Self::Length(length)),
            // RFC 9112, 6.1: this framing is faulty, because HTTP/1.0 has no transfer codings.
            None if is_encoded && version == Version::HTTP_10 => {
                Err(bad("HTTP/1.0 has no transfer codings"))
            }
            None if is_encoded => transfer_coding(headers),
            // The end of such a body is the end of the connection, so the server could not respond
            // (RFC 1945, 7.2.2).
            None if version == Version::HTTP_10
                && [Method::POST, Method::PUT, Method::PATCH].contains(method) =>
            {
                Err(problem(
                    StatusCode::LENGTH_REQUIRED,
                    "in HTTP/1.0 a body has to have its length before it",
                ))
            }
            None => Ok(Self::Length(0)),
        }
    }
}

/// Accepts digits only. Other implementations interpret signs, and repeated equal lengths, in ways
/// of their own.
fn length(value: &HeaderValue) -> Result<u64, Problem> {
    let digits = value.as_bytes();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(bad("the length is no number"));
    }
    digits
        .iter()
        .try_fold(0u64, |n, digit| {
            n.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
        })
        .ok_or(problem(
            StatusCode::PAYLOAD_TOO_LARGE,
            "the body is longer than can be counted",
        ))
}

fn transfer_coding(headers: &HeaderMap) -> Result<BodyLength, Problem> {
    let is_chunked = |coding: &str| coding.eq_ignore_ascii_case("chunked");
    // Empty elements are kept, because a list that begins with a comma is an attack.
    let codings: Vec<_> = headers
        .get_all(TRANSFER_ENCODING)
        .iter()
        .flat_map(|value| value.to_str().unwrap_or_default().split(','))
        .map(|coding| coding.trim_matches([' ', '\t']))
        .collect();
    let is_token = |coding: &&str| HeaderName::from_bytes(coding.as_bytes()).is_ok();
    match codings[..] {
        [only] if is_chunked(only) => Ok(BodyLength::Chunked),
        // RFC 9112, 6.1: 501 for a coding that is not understood.
        [ref before @ .., last]
            if codings.iter().all(is_token)
                && !before.iter().any(|coding| is_chunked(coding))
                && (before.is_empty() || is_chunked(last)) =>
        {
            Err(problem(
                StatusCode::NOT_IMPLEMENTED,
                "chunked is the only transfer coding here",
            ))
        }
        // RFC 9112, 6.3: the length of the body cannot be determined.
        _ => Err(bad(
            "the last transfer coding is not chunked, or it is so twice",
        )),
    }
}
