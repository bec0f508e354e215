//! Whose pages may open a WebSocket: cross-site WebSocket hijacking is a page that opens one in the
//! name of who reads it, as browsers let it, with his cookies and from within his network.

use std::fmt;

use ::http::Uri;
use ::http::header::{HOST, ORIGIN};

use crate::http::Request;

/// The origins of pages that may open WebSockets (RFC 6455, 10.2).
///
/// Browsers tell the origin of a page, and a page cannot change that. Other clients may tell
/// anything, or nothing; who tells nothing is let in, as it is no browser.
///
/// ```
/// use socketserver::websocket::{OriginPolicy, WebSocketUpgrade};
///
/// let sockets = WebSocketUpgrade::new().origins(OriginPolicy::allow(["https://chat.example.org"])?);
/// # Ok::<(), socketserver::BoxError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OriginPolicy(OriginRule);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum OriginRule {
    #[default]
    Same,
    Only(Vec<Origin>),
    Any,
}

impl OriginPolicy {
    /// The default: pages from the host, and the port, that the request names in `Host`. On an
    /// encrypted connection they must have come encrypted, too.
    ///
    /// A server that can be reached by address alone, as on 127.0.0.1, should know that whoever owns
    /// a name can have it mean that address (DNS rebinding), and that such a page is of the same
    /// origin. [`only`](Self::only) lets no such page in.
    #[must_use]
    pub fn same_origin() -> Self {
        Self(OriginRule::Same)
    }

    /// These, as browsers write them: `https://example.org`, `http://127.0.0.1:8000`. Those of the
    /// same origin have to be among them.
    ///
    /// # Errors
    /// For what is no origin.
    pub fn allow<T: AsRef<str>>(
        origins: impl IntoIterator<Item = T>,
    ) -> Result<Self, ParseOriginError> {
        let parse = |text: T| {
            let text = text.as_ref();
            Origin::parse(text).ok_or_else(|| ParseOriginError(text.into()))
        };
        let origins = origins.into_iter().map(parse);
        Ok(Self(OriginRule::Only(origins.collect::<Result<_, _>>()?)))
    }

    /// Any page on the web. To be used if what a client may do does not depend on who or where it is.
    #[must_use]
    pub fn any() -> Self {
        Self(OriginRule::Any)
    }

    pub(super) fn permits(&self, request: &Request<'_>) -> bool {
        if self.0 == OriginRule::Any || !request.headers().contains_key(ORIGIN) {
            return true;
        }
        // "null" is the origin of pages that have none, and of anybody who wants to have none.
        let Some(origin) = request.only(ORIGIN).and_then(Origin::parse) else {
            return false;
        };
        match &self.0 {
            OriginRule::Any => true,
            OriginRule::Only(origins) => origins.contains(&origin),
            OriginRule::Same => {
                let host = request.only(HOST);
                let is_tls = is_encrypted(request);
                (!is_tls || origin.scheme == "https")
                    && host.and_then(|host| Origin::of(&origin.scheme, host)) == Some(origin)
            }
        }
    }
}

/// By this server, that is; a proxy may have decrypted what came by it.
fn is_encrypted(request: &Request<'_>) -> bool {
    #[cfg(feature = "tls")]
    let is_encrypted = request.connection().tls().is_some();
    #[cfg(not(feature = "tls"))]
    let is_encrypted = {
        let _ = request;
        false
    };
    is_encrypted
}

/// A scheme, a host and a port (RFC 6454, 4).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

impl Origin {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        Self::of(scheme, authority)
    }

    /// Of what `Host` says, or what follows the scheme.
    fn of(scheme: &str, authority: &str) -> Option<Self> {
        let scheme = scheme.to_ascii_lowercase();
        let uri: Uri = format!("{scheme}://{authority}").parse().ok()?;
        let named = uri.authority()?;
        // A scheme, nothing before the host, and nothing behind the port.
        if scheme.is_empty() || named.as_str() != authority || authority.contains('@') {
            return None;
        }
        let usual = match &*scheme {
            "http" => Some(80),
            "https" => Some(443),
            _ => None,
        };
        let (host, port) = authority.split_at(named.host().len());
        Some(Self {
            scheme,
            host: host.to_ascii_lowercase(),
            port: match port.strip_prefix(':') {
                // A number, without a sign, that is a port.
                Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                    Some(port.parse().ok()?)
                }
                Some(_) => return None,
                None => usual,
            },
        })
    }
}

/// A text that is no origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseOriginError(String);

impl fmt::Display for ParseOriginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is no origin: write https://HOST or http://HOST:PORT, with nothing behind it",
            self.0
        )
    }
}

impl std::error::Error for ParseOriginError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_the_same_whichever_way_they_are_written() {
        let of = |text| Origin::parse(text);
        assert_eq!(of("http://Example.org:80"), of("HTTP://example.org"));
        assert_eq!(of("https://a:443"), of("https://a"));
        assert_ne!(of("https://a"), of("http://a"));
        assert_ne!(of("http://a:81"), of("http://a"));
        assert_ne!(of("http://a.b"), of("http://a"));
        assert_eq!(of("http://[::1]:80"), of("http://[::1]"));
    }

    #[test]
    fn what_is_no_origin_is_none() {
        for bad in [
            "",
            "null",
            "a",
            "http://",
            "http://a/",
            "http://a/b",
            "http://u@a",
            "http://a?b",
            "http://a:99999",
            "http://a:",
            "http://a:+80",
            "http://a b",
            "://a",
            "http://a, http://b",
            "http://a#b",
        ] {
            assert_eq!(Origin::parse(bad), None, "{bad:?}");
            assert!(
                OriginPolicy::allow([bad])
                    .unwrap_err()
                    .to_string()
                    .contains("https://HOST")
            );
        }
    }
}
