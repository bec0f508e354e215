//! The access log: one line on stdout for each request. It never blocks a client: lines that cannot
//! be written at once are dropped.

use std::fmt::Write;
use std::time::SystemTime;

use humantime::format_rfc3339_millis;
use socketserver::Address;
use socketserver::RequestId;
use socketserver::framing::{Map, Value};
use socketserver::http::{RequestHead, RequestLog};

use super::AccessLog;
use crate::terminal;

/// The maximum length of a request in a line, so that a pipe takes each line whole: pipe(7),
/// `PIPE_BUF`.
const LONGEST: usize = 2000;

pub(super) fn of(form: AccessLog) -> Option<fn(&RequestLog<'_>)> {
    match form {
        AccessLog::Common => Some(|exchange| terminal::say(&common(exchange, SystemTime::now()))),
        AccessLog::Json => Some(|exchange| terminal::say(&json(exchange, SystemTime::now()))),
        AccessLog::Off => None,
    }
}

/// `host ident user [time] "request" status bytes`:
/// <https://www.w3.org/Daemon/User/Config/Logging.html#common-logfile-format>.
fn common(exchange: &RequestLog<'_>, now: SystemTime) -> String {
    let host = host(exchange.peer, exchange.id);
    let (status, sent) = (exchange.status.as_u16(), exchange.sent);
    let request = match exchange.request {
        Some(head) => {
            let target = target(head);
            format!("{} {} {:?}", head.method(), quoted(&target), head.version())
        }
        None => "-".into(),
    };
    let request = cut_quoted(&request);
    format!("{host} - - [{}] \"{request}\" {status} {sent}\n", time(now))
}

fn json(exchange: &RequestLog<'_>, now: SystemTime) -> String {
    let mut line = Map::new();
    let mut put = |key: &str, value: Value| drop(line.insert(key.into(), value));
    put("time", format_rfc3339_millis(now).to_string().into());
    put("peer", host(exchange.peer, exchange.id).into());
    put("id", exchange.id.get().into());
    if let Some(head) = exchange.request {
        put("method", short(head.method().as_str()).into());
        put("target", cut(&target(head)).into());
        put("version", format!("{:?}", head.version()).into());
        for name in ["host", "referer", "user-agent"] {
            if let Some(value) = head.header(name) {
                put(name, short(value).into());
            }
        }
    }
    put("status", exchange.status.as_u16().into());
    put("bytes", exchange.sent.into());
    put("complete", exchange.is_complete.into());
    let micros = u64::try_from(exchange.elapsed.as_micros()).unwrap_or(u64::MAX);
    put("micros", micros.into());
    format!("{}\n", Value::Object(line))
}

fn target(head: &RequestHead) -> String {
    head.uri().to_string()
}

/// Returns the host without its port, as the format requires.
fn host(peer: &Address, id: RequestId) -> String {
    match peer.as_inet() {
        Some(address) => crate::escape::host_of(peer, address),
        None => crate::escape::name_of(peer, id).replace([' ', '"'], "_"),
    }
}

/// Escapes the two characters that have a meaning in the format, in the way of Apache. Targets are
/// ASCII without control characters.
fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

/// Cuts a text, which is ASCII.
fn cut(text: &str) -> &str {
    &text[..text.len().min(LONGEST)]
}

/// Cuts an escaped text. A cut within an escape would leave a backslash that escapes the closing
/// quote.
fn cut_quoted(text: &str) -> &str {
    let text = cut(text);
    let backslashes = text.bytes().rev().take_while(|byte| *byte == b'\\');
    &text[..text.len() - backslashes.count() % 2]
}

/// Shortens a method, which is ASCII. A method may be as long as the request line.
fn short(text: &str) -> &str {
    &text[..text.len().min(300)]
}

/// Formats a time as `10/Oct/2000:13:55:36 +0000`.
fn time(now: SystemTime) -> String {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let text = format_rfc3339_millis(now).to_string();
    let month = text[5..7].parse::<usize>().unwrap_or(1);
    let month = MONTHS[month.clamp(1, 12) - 1];
    let mut out = String::new();
    let _ = write!(
        out,
        "{}/{month}/{}:{} +0000",
        &text[8..10],
        &text[..4],
        &text[11..19]
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn time_uses_the_common_log_format() {
        let then = UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(time(then), "06/Nov/1994:08:49:37 +0000");
    }

    #[test]
    fn quoted_escapes_quotes_and_backslashes() {
        assert_eq!(quoted("/a\"b\\"), "/a\\\"b\\\\");
    }

    #[test]
    fn cut_quoted_keeps_escapes_whole() {
        for (before, expected) in [(LONGEST - 1, LONGEST - 1), (LONGEST - 2, LONGEST)] {
            let text = quoted(&("a".repeat(before) + "\"b"));
            assert_eq!(cut_quoted(&text).len(), expected);
        }
        let text = quoted(&("a".repeat(LONGEST - 3) + "\\\"b"));
        assert_eq!(cut_quoted(&text), "a".repeat(LONGEST - 3) + "\\\\");
        assert_eq!(short(&"G".repeat(60_000)).len(), 300);
    }
}
