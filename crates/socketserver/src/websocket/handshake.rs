//! The opening handshake of a WebSocket (RFC 6455, 4.2).

use ::http::header::{
    HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use ::http::{Method, StatusCode};
use tungstenite::handshake::derive_accept_key;

use super::WebSocketUpgrade;
use crate::http::{Problem, Request, Response};
use crate::{Connection, RequestHandler, Result};

const NAME: &str = "websocket";
const VERSION: &str = "13";

/// The result of a valid opening handshake.
pub(super) struct Handshake {
    accept: HeaderValue,
    pub protocol: Option<&'static str>,
}

pub(super) fn check(
    request: &Request<'_>,
    sockets: &WebSocketUpgrade,
) -> Result<Handshake, Problem> {
    if request.method() != Method::GET {
        return Err(Problem::method_not_allowed(&[Method::GET]));
    }
    if !request.asks_for(NAME.as_bytes()) {
        let why = "there is a WebSocket here, for who asks for it by Upgrade";
        let problem = Problem::new(StatusCode::UPGRADE_REQUIRED, why);
        return Err(problem.header(UPGRADE, HeaderValue::from_static(NAME)));
    }
    let headers = request.headers();
    if request.only(SEC_WEBSOCKET_VERSION) != Some(VERSION) {
        let why = "only version 13 of WebSocket is spoken here";
        let problem = Problem::new(StatusCode::UPGRADE_REQUIRED, why)
            .header(UPGRADE, HeaderValue::from_static(NAME));
        return Err(problem.header(SEC_WEBSOCKET_VERSION, HeaderValue::from_static(VERSION)));
    }
    let key = request.only(SEC_WEBSOCKET_KEY).filter(|key| is_key(key));
    let key = key.ok_or_else(|| {
        let why = "Sec-WebSocket-Key is not sixteen bytes in base64";
        Problem::new(StatusCode::BAD_REQUEST, why)
    })?;
    if !sockets.origins.permits(request) {
        let why = "pages of another origin may not open this WebSocket";
        return Err(Problem::new(StatusCode::FORBIDDEN, why));
    }
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
        .map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "the key has no answer"))?;
    let protocol = sockets.protocols.iter().copied().find(|known| {
        let fields = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
        let mut asked = fields.flat_map(|field| field.to_str().unwrap_or("").split(','));
        asked.any(|asked| asked.trim_matches([' ', '\t']) == *known)
    });
    Ok(Handshake { accept, protocol })
}

impl Handshake {
    /// Returns the 101 response, after which `session` serves the connection.
    pub fn answer(self, session: impl RequestHandler<Connection>) -> Result<Response> {
        let mut response =
            Response::upgrade(NAME, session)?.header(SEC_WEBSOCKET_ACCEPT, self.accept)?;
        if let Some(protocol) = self.protocol {
            response = response.header(SEC_WEBSOCKET_PROTOCOL, protocol)?;
        }
        Ok(response)
    }
}

/// Sixteen bytes are 22 base64 characters and two padding characters (RFC 6455, 4.1).
fn is_key(key: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
    key.len() == 24
        && key
            .strip_suffix("==")
            .is_some_and(|digits| digits.bytes().all(is_digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_sixteen_bytes() {
        assert!(is_key("dGhlIHNhbXBsZSBub25jZQ=="));
        for bad in [
            "",
            "dGhlIHNhbXBsZSBub25jZQ",
            "dGhlIHNhbXBsZSBub25jZQ=A",
            "dGhlIHNhbXBsZSBub25-ZQ==",
        ] {
            assert!(!is_key(bad), "{bad}");
        }
    }
}
