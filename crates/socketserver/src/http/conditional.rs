//! Conditional requests: [RFC 9110, 13](https://www.rfc-editor.org/rfc/rfc9110#section-13).

use std::time::{Duration, SystemTime};

use ::http::header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE};
use ::http::{HeaderMap, HeaderName};
use httpdate::parse_http_date;

use super::head::only;

/// The validators of one state of a resource.
#[derive(Clone, Debug)]
pub(super) struct Validators {
    /// A strong entity tag, with its quotes.
    pub etag: String,
    /// The modification time in whole seconds, because HTTP dates have no fractions.
    pub modified: SystemTime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Proceed,
    /// The client has the current state: 304.
    NotModified,
    /// The resource is not in the state that the client requires: 412.
    Failed,
}

impl Validators {
    /// Evaluates the conditions of a GET or HEAD request, in the order of RFC 9110, 13.2.2.
    pub fn judge(&self, headers: &HeaderMap) -> Verdict {
        if let Some(matches) = self.any_matches(headers, IF_MATCH, Self::is_strongly) {
            if !matches {
                return Verdict::Failed;
            }
        } else if date(headers, IF_UNMODIFIED_SINCE).is_some_and(|since| self.modified > since) {
            return Verdict::Failed;
        }
        if let Some(matches) = self.any_matches(headers, IF_NONE_MATCH, Self::is_weakly) {
            if matches {
                return Verdict::NotModified;
            }
        } else if date(headers, IF_MODIFIED_SINCE).is_some_and(|since| self.modified <= since) {
            return Verdict::NotModified;
        }
        Verdict::Proceed
    }

    /// Returns true if a range may be served, because the client's parts belong to the current
    /// state.
    pub fn admits_range(&self, headers: &HeaderMap, now: SystemTime) -> bool {
        let Some(condition) = only(headers, IF_RANGE) else {
            return !headers.contains_key(IF_RANGE);
        };
        if condition.starts_with(['"', 'W']) && !condition.starts_with("Wed") {
            return self.is_strongly(condition);
        }
        // A date is as strong as a tag only if no change can have happened in the same second: RFC
        // 9110, 8.8.2.2.
        let is_old = self.modified + Duration::from_secs(1) <= now;
        is_old && parse_http_date(condition).is_ok_and(|date| date == self.modified)
    }

    fn is_strongly(&self, tag: &str) -> bool {
        tag == self.etag
    }

    fn is_weakly(&self, tag: &str) -> bool {
        tag.strip_prefix("W/").unwrap_or(tag) == self.etag
    }

    /// Returns true if a tag of the list matches. Returns `None` if there is no such list.
    fn any_matches(
        &self,
        headers: &HeaderMap,
        name: HeaderName,
        is_this: fn(&Self, &str) -> bool,
    ) -> Option<bool> {
        headers.contains_key(&name).then(|| {
            headers.get_all(name).iter().any(|value| {
                let value = value.to_str().unwrap_or_default();
                value.trim() == "*" || tags(value).any(|tag| is_this(self, tag))
            })
        })
    }
}

/// Returns the tags of a list. A quoted tag may contain commas.
fn tags(list: &str) -> impl Iterator<Item = &str> {
    let mut rest = list;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let opening = rest.find('"')?;
        let closing = opening + 1 + rest[opening + 1..].find('"')?;
        let (tag, others) = rest.split_at(closing + 1);
        rest = others;
        Some(tag)
    })
}

/// Parses a date field. An invalid date, and several dates, are ignored.
fn date(headers: &HeaderMap, name: HeaderName) -> Option<SystemTime> {
    parse_http_date(only(headers, name)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::http::HeaderValue;

    const THEN: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const LATER: &str = "Sunday, 06-Nov-94 08:49:38 GMT";

    fn validators() -> Validators {
        Validators {
            etag: "\"a,b\"".into(),
            modified: parse_http_date(THEN).unwrap(),
        }
    }

    fn headers(fields: &[(HeaderName, &str)]) -> HeaderMap {
        let fields = fields.iter();
        fields
            .map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    #[test]
    fn conditions_are_evaluated_in_rfc_order() {
        use Verdict::{Failed, NotModified, Proceed};
        for (fields, expected) in [
            (&[][..], Proceed),
            (&[(IF_NONE_MATCH, "\"a,b\"")], NotModified),
            (&[(IF_NONE_MATCH, "W/\"a,b\"")], NotModified),
            (&[(IF_NONE_MATCH, "\"x\", W/\"y\" ,\"a,b\"")], NotModified),
            (&[(IF_NONE_MATCH, "*")], NotModified),
            (&[(IF_NONE_MATCH, "\"a\"")], Proceed),
            (&[(IF_NONE_MATCH, "a,b")], Proceed),
            (&[(IF_NONE_MATCH, "\"")], Proceed),
            (&[(IF_MODIFIED_SINCE, THEN)], NotModified),
            (&[(IF_MODIFIED_SINCE, LATER)], NotModified),
            (&[(IF_MODIFIED_SINCE, BEFORE)], Proceed),
            (&[(IF_MODIFIED_SINCE, "yesterday")], Proceed),
            // The tag has precedence over the date.
            (
                &[(IF_NONE_MATCH, "\"x\""), (IF_MODIFIED_SINCE, THEN)],
                Proceed,
            ),
            (&[(IF_MATCH, "\"a,b\"")], Proceed),
            (&[(IF_MATCH, "*")], Proceed),
            (&[(IF_MATCH, "W/\"a,b\"")], Failed),
            (&[(IF_MATCH, "\"x\""), (IF_NONE_MATCH, "*")], Failed),
            (&[(IF_UNMODIFIED_SINCE, BEFORE)], Failed),
            (&[(IF_UNMODIFIED_SINCE, THEN)], Proceed),
            (&[(IF_MATCH, "*"), (IF_UNMODIFIED_SINCE, BEFORE)], Proceed),
        ] {
            assert_eq!(validators().judge(&headers(fields)), expected, "{fields:?}");
        }
    }

    #[test]
    fn range_requires_the_state_that_the_client_has() {
        let now = SystemTime::now();
        for (condition, expected) in [
            ("\"a,b\"", true),
            ("W/\"a,b\"", false),
            ("\"x\"", false),
            (THEN, true),
            (LATER, false),
            ("Wed, 09 Nov 1994 08:49:37 GMT", false),
            ("?", false),
        ] {
            let headers = headers(&[(IF_RANGE, condition)]);
            assert_eq!(
                validators().admits_range(&headers, now),
                expected,
                "{condition}"
            );
        }
        assert!(validators().admits_range(&HeaderMap::new(), now));
        let young = validators().modified;
        assert!(!validators().admits_range(&headers(&[(IF_RANGE, THEN)]), young));
    }
}
