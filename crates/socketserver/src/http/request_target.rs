//! The target of a request, in the four forms of [RFC 9112, 3.2](https://www.rfc-editor.org/rfc/rfc9112#section-3.2).

use ::http::uri::{Authority, PathAndQuery, Scheme};
use ::http::{Method, StatusCode, Uri};

use super::problem::{Problem, bad, problem};

pub(super) fn parse(method: &Method, target: &[u8]) -> Result<Uri, Problem> {
    let wrong = || bad("the target is no path and no address of http");
    // A fragment is never sent. Bytes that are not ASCII must be escaped, because parsers differ.
    let is_plain = |byte: &u8| byte.is_ascii_graphic() && *byte != b'#';
    if target.is_empty() || !target.iter().all(is_plain) {
        return Err(wrong());
    }
    if target.len() > usize::from(u16::MAX) - 1 {
        // The type of the URI has no room for more bytes.
        return Err(problem(StatusCode::URI_TOO_LONG, "the target is too long"));
    }
    if *method == Method::CONNECT {
        let authority = Authority::try_from(target).map_err(|_| wrong())?;
        return Ok(Uri::from(authority));
    }
    match target {
        b"*" if *method == Method::OPTIONS => Ok(Uri::from_static("*")),
        [b'/', ..] => {
            let path = PathAndQuery::try_from(target).map_err(|_| wrong())?;
            Ok(Uri::from(path))
        }
        _ => {
            let uri = Uri::try_from(target).map_err(|_| wrong())?;
            let is_http = [Some(&Scheme::HTTP), Some(&Scheme::HTTPS)].contains(&uri.scheme());
            let names_user = uri
                .authority()
                .is_none_or(|host| host.as_str().contains('@'));
            match is_http && !names_user {
                true => Ok(uri),
                false => Err(wrong()),
            }
        }
    }
}
