//! HTML pages: the shared parts, and pages for errors. The pages contain no script and forbid
//! scripts, so that an unescaped name could do no harm.

use std::fmt::{self, Display};

use socketserver::http::{HeaderName, HeaderValue, Problem, Response, StatusCode, header};

use crate::escape::turns;

const STYLE: &str = include_str!("style.css");

/// A text with escaped special characters, for content and for quoted attributes. U+FFFD replaces
/// control characters and characters that change the direction of writing.
pub(super) struct Escaped<'a>(pub &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        let is_special =
            |c: char| matches!(c, '&' | '<' | '>' | '"' | '\'') || c.is_control() || turns(c);
        while let Some(at) = rest.find(is_special) {
            f.write_str(&rest[..at])?;
            let mut chars = rest[at..].chars();
            match chars.next() {
                Some('&') => f.write_str("&amp;")?,
                Some('<') => f.write_str("&lt;")?,
                Some('>') => f.write_str("&gt;")?,
                Some('"') => f.write_str("&quot;")?,
                Some('\'') => f.write_str("&#39;")?,
                // These characters are invalid in a page, or would make a name look like another.
                Some(_) => f.write_str("\u{fffd}")?,
                None => {}
            }
            rest = chars.as_str();
        }
        f.write_str(rest)
    }
}

/// Returns the page up to its body.
pub(super) fn beginning(title: &str) -> String {
    let title = Escaped(title);
    format!(
        "<!DOCTYPE html>\n\
         <html lang=\"en\">\n\
         <head>\n\
         <meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title}</title>\n\
         <style>\n{STYLE}</style>\n\
         </head>\n\
         <body>\n"
    )
}

/// The end of a page, after its body.
pub(super) const END: &str = "</body>\n</html>\n";

/// Sets the headers of a response that is a page.
pub(super) fn of(mut page: Response) -> Response {
    let fields: [(HeaderName, &str); 4] = [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; \
             frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    for (name, value) in fields {
        page.headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    page
}

pub(super) fn of_problem(problem: &Problem) -> Response {
    let status = problem.status();
    let title = heading(status);
    let (heading, message) = (Escaped(&title), Escaped(problem.message()));
    let beginning = beginning(&title);
    of(Response::html(format!(
        "{beginning}<h1>{heading}</h1>\n<p>{message}.</p>\n{END}"
    )))
}

fn heading(status: StatusCode) -> String {
    format!(
        "{} {}",
        status.as_u16(),
        status.canonical_reason().unwrap_or("Error")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_contains_no_html() {
        assert_eq!(
            Escaped("<a href=\"x\" b='&'>ü").to_string(),
            "&lt;a href=&quot;x&quot; b=&#39;&amp;&#39;&gt;ü"
        );
        assert_eq!(Escaped("").to_string(), "");
        assert_eq!(
            Escaped("a\n\u{202e}gpj.\u{7f}b").to_string(),
            "a\u{fffd}\u{fffd}gpj.\u{fffd}b"
        );
    }
}
