//! The page for browsers, a single response. The page loads nothing from elsewhere, and the browser
//! runs only scripts with the nonce of this response.

use std::io;

use socketserver::Result;
use socketserver::http::{HeaderName, HeaderValue, Response, header};
use socketserver::rustls::crypto::ring;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page without its nonce.
#[derive(Clone)]
pub(super) struct Page(std::sync::Arc<str>);

impl Page {
    /// Creates the page for clients whose messages have at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        let page = PAGE
            .replace("{{style}}", STYLE)
            .replace("{{script}}", SCRIPT)
            .replace("{{limit}}", &limit.to_string());
        Self(page.into())
    }

    pub fn answer(&self) -> Result<Response> {
        let nonce = nonce()?;
        let policy = format!(
            "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
             connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
             frame-ancestors 'none'"
        );
        let mut page = Response::html(self.0.replace("{{nonce}}", &nonce))
            .header(header::CONTENT_SECURITY_POLICY, policy)?;
        let fields: [(HeaderName, &str); 3] = [
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            // A nonce must be used only once.
            (header::CACHE_CONTROL, "no-store"),
        ];
        for (name, value) in fields {
            page.headers_mut()
                .insert(name, HeaderValue::from_static(value));
        }
        Ok(page)
    }
}

/// Returns sixteen random bytes in hexadecimal.
fn nonce() -> Result<String> {
    let mut bytes = [0; 16];
    let random = ring::default_provider().secure_random;
    random
        .fill(&mut bytes)
        .map_err(|_| io::Error::other("the system has no random numbers available"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_page_has_a_new_nonce_and_no_placeholder() {
        let page = Page::new(8192);
        assert_ne!(nonce().unwrap(), nonce().unwrap());
        let nonce_only = page.0.replace("{{nonce}}", "");
        assert!(!nonce_only.contains("{{"), "{nonce_only}");
        assert!(nonce_only.contains("data-limit=\"8192\""));
        // The page names no other origin. The SVG namespace of the icon is not an address.
        let addresses = nonce_only.replace("http://www.w3.org/2000/svg", "");
        assert!(
            !addresses.contains("://"),
            "something is loaded from elsewhere"
        );
    }
}
