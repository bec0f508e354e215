//! The origins whose pages may open a WebSocket. In cross-site WebSocket hijacking, a page opens a
//! WebSocket in the name of its reader, with the reader's cookies and from the reader's network.
//! Browsers permit this.

use std::fmt;

use ::http::Uri;
use ::http::header::{HOST, ORIGIN};

use crate::http::Request;

/// The origins of pages that may open WebSockets (RFC 6455, 10.2).
///
/// A browser sends the origin of a page, and the page cannot change it. Other clients can send any
/// origin or none. A client that sends no origin is accepted, because it is not a browser.
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
    /// Accepts pages of the host and port that the request names in `Host`. On an encrypted
    /// connection, the page must be encrypted, too. This policy is the default.
    ///
    /// An attacker who owns a domain name can let it resolve to the address of this server (DNS
    /// rebinding). A page of that domain then has the same origin. A server that is reachable by
    /// its address alone, as on 127.0.0.1, should use [`allow`](Self::allow), which rejects the
    /// page.
    #[must_use]
    pub fn same_origin() -> Self {
        Self(OriginRule::Same)
    }

    /// Accepts pages of the listed origins, in the form that browsers send: `https://example.org`,
    /// `http://127.0.0.1:8000`. Pages of the same origin are accepted only if their origin is
    /// listed.
    ///
    /// # Errors
    /// Returns [`ParseOriginError`] for a text that is not an origin.
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

    /// Accepts every page on the web. Use this policy only if a client's permissions depend on
    /// neither its identity nor its network.
    #[must_use]
    pub fn any() -> Self {
        Self(OriginRule::Any)
    }

    pub(super) fn permits(&self, request: &Request<'_>) -> bool {
        if self.0 == OriginRule::Any || !request.headers().contains_key(ORIGIN) {
            return true;
        }
        // "null" is the origin of a page without an origin, and any page can choose to send it.
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

/// Returns true if this server decrypted the connection. A proxy in front may also have decrypted
/// it.
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

    /// Parses the authority from `Host` or from the part after the scheme.
    fn of(scheme: &str, authority: &str) -> Option<Self> {
        let scheme = scheme.to_ascii_lowercase();
        let uri: Uri = format!("{scheme}://{authority}").parse().ok()?;
        let named = uri.authority()?;
        // Require a scheme, and reject user information and anything after the port.
        if scheme.is_empty() || named.as_str() != authority || authority.contains('@') {
            return None;
        }
        let default_port = match &*scheme {
            "http" => Some(80),
            "https" => Some(443),
            _ => None,
        };
        let (host, port) = authority.split_at(named.host().len());
        Some(Self {
            scheme,
            host: host.to_ascii_lowercase(),
            port: match port.strip_prefix(':') {
                // Digits only, without a sign, within the range of a port.
                Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                    Some(port.parse().ok()?)
                }
                Some(_) => return None,
                None => default_port,
            },
        })
    }
}

/// The error of a text that is not an origin.
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
    fn equal_origins_compare_equal_in_any_spelling() {
        let of = |text| Origin::parse(text);
        assert_eq!(of("http://Example.org:80"), of("HTTP://example.org"));
        assert_eq!(of("https://a:443"), of("https://a"));
        assert_ne!(of("https://a"), of("http://a"));
        assert_ne!(of("http://a:81"), of("http://a"));
        assert_ne!(of("http://a.b"), of("http://a"));
        assert_eq!(of("http://[::1]:80"), of("http://[::1]"));
    }

    #[test]
    fn invalid_origins_are_rejected() {
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
