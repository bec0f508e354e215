//! The parser of request heads, on bytes.

use socketserver::http::{HttpLimits, Method, Problem, RequestHead, Version};

fn parse(bytes: &[u8]) -> Result<Option<(RequestHead, usize)>, Problem> {
    RequestHead::parse(bytes, &HttpLimits::default())
}

#[track_caller]
fn head(text: &str) -> RequestHead {
    match parse(text.as_bytes()) {
        Ok(Some((head, length))) => {
            assert_eq!(length, text.len());
            head
        }
        other => panic!("{text:?}: {other:?}"),
    }
}

/// Returns the status with which a request is rejected, or 0 if it is accepted.
pub fn status(bytes: &[u8]) -> u16 {
    parse(bytes).map_or_else(|problem| problem.status().as_u16(), |_| 0)
}

#[test]
fn valid_requests_are_parsed() {
    let get = head("GET /a%20b?c=d&e HTTP/1.1\r\nHost: example.org\r\nX-A:  1 \r\nx-a: 2\r\n\r\n");
    assert_eq!(get.method(), Method::GET);
    assert_eq!((get.path(), get.query()), ("/a%20b", Some("c=d&e")));
    assert_eq!(get.version(), Version::HTTP_11);
    assert_eq!(get.header("X-a"), Some("1"));
    let both: Vec<_> = get.headers().get_all("x-a").iter().collect();
    assert_eq!(both, ["1", "2"]);

    assert_eq!(head("GET / HTTP/1.0\r\n\r\n").version(), Version::HTTP_10);
    // RFC 9110, 2.5: treated as the highest known version of the same major version.
    let later = head("GET / HTTP/1.7\r\nHost: a\r\n\r\n");
    assert_eq!(later.version(), Version::HTTP_11);
    let own = head("PROPFIND / HTTP/1.1\r\nHost:\r\n\r\n");
    assert_eq!(own.method().as_str(), "PROPFIND");
    assert_eq!(head("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").path(), "/");
    assert_eq!(head("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n").path(), "/");
    let latin = parse(b"GET / HTTP/1.1\r\nHost: a\r\nX: \xe4\t\xf6\r\n\r\n")
        .unwrap()
        .unwrap();
    assert_eq!(latin.0.headers()["x"].as_bytes(), b"\xe4\t\xf6");
}

#[test]
fn four_forms_of_targets_are_parsed() {
    for (method, target, path) in [
        ("GET", "/", "/"),
        ("GET", "//other.example/x", "//other.example/x"),
        ("GET", "http://a/b?c", "/b"),
        ("GET", "HTTPS://a", "/"),
        ("GET", "http://a?c", "/"),
        ("GET", "http://a:80/x", "/x"),
        ("OPTIONS", "*", "*"),
        ("CONNECT", "a:443", ""),
    ] {
        let host = match method {
            "CONNECT" => target,
            _ if target.contains("://") => "a",
            _ => "b",
        };
        let head = head(&format!(
            "{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"
        ));
        assert_eq!(head.path(), path, "{target}");
    }
    for (method, target) in [
        ("GET", "*"),
        ("GET", "a"),
        ("GET", "a:443"),
        ("GET", "ftp://b/"),
        ("GET", "http://user@b/"),
        ("GET", "/a#b"),
        ("GET", "/\u{e4}"),
        ("GET", "/a\tb"),
        ("GET", "/\u{7f}"),
        ("GET", "http://other/"),
        ("GET", "http://b:81/"),
        ("CONNECT", "/"),
        ("GET", ""),
    ] {
        let text = format!("{method} {target} HTTP/1.1\r\nHost: b\r\n\r\n");
        assert_eq!(status(text.as_bytes()), 400, "{target}");
    }
}

#[test]
fn ambiguous_request_lines_are_rejected() {
    for (line, expected) in [
        ("GET / HTTP/1.1", 0),
        ("GET  / HTTP/1.1", 400),
        ("GET /  HTTP/1.1", 400),
        (" GET / HTTP/1.1", 400),
        ("GET / HTTP/1.1 ", 400),
        ("GET\t/ HTTP/1.1", 400),
        ("GET / b HTTP/1.1", 400),
        ("GET /", 400),
        ("GET", 400),
        ("G(T / HTTP/1.1", 400),
        ("GET / http/1.1", 400),
        ("GET / HTTP/1", 400),
        ("GET / HTTP/1.", 400),
        ("GET / HTTP/1.10", 400),
        ("GET / HTTP/01.1", 400),
        ("GET / HTTP/+1.1", 400),
        ("GET / HTTP/0.9", 400),
        ("GET / HTTPS/1.1", 400),
        ("GET / HTTP/2.0", 505),
        ("GET / HTTP/9.9", 505),
        ("PRI * HTTP/2.0", 505),
    ] {
        let whole = format!("{line}\r\nHost: a\r\n\r\n");
        assert_eq!(status(whole.as_bytes()), expected, "{line:?}");
        if expected != 0 {
            // The error is reported once the line is complete, without waiting for the rest.
            assert_eq!(
                status(format!("{line}\r\n").as_bytes()),
                expected,
                "{line:?}"
            );
        }
    }
    // A client of another protocol waits for an answer, and gets one.
    for bytes in [&b"\x16\x03\x01"[..], b"\0", b"\x80GET", b" "] {
        assert_eq!(status(bytes), 400, "{bytes:?}");
    }
    assert_eq!(status(b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
}

#[test]
fn ambiguous_fields_are_rejected() {
    for field in [
        "A : b",
        " A: b",
        "\tA: b",
        "A\t: b",
        "A",
        ":b",
        "A b: c",
        "A: b\r\n c",
        "A: b\r\n\tc",
        "A: b\0",
        "A: b\x07",
        "A: b\x7f",
        "A\u{e4}: b",
        "A(: b",
        "A: b\rc",
        "A: b\nC: d",
        "A: b\r\r\n",
        "Host: b",
        "Host: b c",
        "Host: a@b",
        "Host: http://a",
    ] {
        for template in ["Host: a\r\nFIELD\r\n\r\n", "FIELD\r\nHost: a\r\n\r\n"] {
            let text = format!("GET / HTTP/1.1\r\n{}", template.replace("FIELD", field));
            assert_eq!(status(text.as_bytes()), 400, "{text:?}");
        }
    }
    for hosts in ["", "X: a\r\n", "Host: a b\r\n", "Host: a\r\nHost: a\r\n"] {
        let text = format!("GET / HTTP/1.1\r\n{hosts}\r\n");
        assert_eq!(status(text.as_bytes()), 400, "{hosts:?}");
    }
}

#[test]
fn lines_must_end_in_crlf() {
    let whole = "GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n\r\n";
    for (at, _) in whole.match_indices("\r\n") {
        let mut bare_lf = whole.to_owned();
        bare_lf.remove(at);
        assert_eq!(status(bare_lf.as_bytes()), 400, "{bare_lf:?}");
        let mut bare_cr = whole.to_owned();
        bare_cr.replace_range(at + 1..=at + 1, "x");
        assert_eq!(status(bare_cr.as_bytes()), 400, "{bare_cr:?}");
    }
}

#[test]
fn ambiguous_body_lengths_are_rejected() {
    for (method, version, fields, expected) in [
        ("POST", 1, "Content-Length: 5", 0),
        ("POST", 1, "Content-Length: 0005", 0),
        ("POST", 1, "", 0),
        ("GET", 1, "Content-Length: 5", 0),
        ("POST", 1, "Content-Length: 5|Content-Length: 6", 400),
        ("POST", 1, "Content-Length: 5|Content-Length: 5", 400),
        ("POST", 1, "Content-Length: 5, 5", 400),
        ("POST", 1, "Content-Length: +5", 400),
        ("POST", 1, "Content-Length: -5", 400),
        ("POST", 1, "Content-Length: 0x5", 400),
        ("POST", 1, "Content-Length: 5 5", 400),
        ("POST", 1, "Content-Length: 5;", 400),
        ("POST", 1, "Content-Length:", 400),
        ("POST", 1, "Content-Length: 1e1", 400),
        ("POST", 1, "Content-Length: 18446744073709551615", 0),
        ("POST", 1, "Content-Length: 18446744073709551616", 413),
        ("POST", 1, "Transfer-Encoding: chunked", 0),
        ("POST", 1, "Transfer-Encoding: CHUNKED", 0),
        (
            "POST",
            1,
            "Transfer-Encoding: chunked|Content-Length: 5",
            400,
        ),
        (
            "POST",
            1,
            "Content-Length: 5|Transfer-Encoding: chunked",
            400,
        ),
        (
            "POST",
            1,
            "Content-Length: 5|Transfer-Encoding: identity",
            400,
        ),
        (
            "POST",
            1,
            "Transfer-Encoding: chunked|Transfer-Encoding: chunked",
            400,
        ),
        ("POST", 1, "Transfer-Encoding: chunked, chunked", 400),
        ("POST", 1, "Transfer-Encoding: chunked, gzip", 400),
        (
            "POST",
            1,
            "Transfer-Encoding: chunked|Transfer-Encoding: identity",
            400,
        ),
        ("POST", 1, "Transfer-Encoding: gzip, chunked", 501),
        ("POST", 1, "Transfer-Encoding: identity", 501),
        ("POST", 1, "Transfer-Encoding: xchunked", 501),
        ("POST", 1, "Transfer-Encoding:", 400),
        ("POST", 1, "Transfer-Encoding: ,chunked", 400),
        ("POST", 1, "Transfer-Encoding: chunked,", 400),
        ("POST", 1, "Transfer-Encoding: \"chunked\"", 400),
        ("POST", 1, "Transfer-Encoding: chunked;q=1", 400),
        ("POST", 1, "Transfer-Encoding: chunked\u{b}", 400),
        ("POST", 1, "Transfer-Encoding: [chunked]", 400),
        ("POST", 1, "Transfer-Encoding : chunked", 400),
        ("POST", 1, "Transfer_Encoding: chunked", 0),
        ("POST", 0, "Transfer-Encoding: chunked", 400),
        ("POST", 0, "", 411),
        ("PUT", 0, "", 411),
        ("POST", 0, "Content-Length: 0", 0),
        ("GET", 0, "", 0),
    ] {
        let fields: String = fields
            .split_terminator('|')
            .map(|f| format!("{f}\r\n"))
            .collect();
        let text = format!("{method} / HTTP/1.{version}\r\nHost: a\r\n{fields}\r\n");
        assert_eq!(status(text.as_bytes()), expected, "{text:?}");
    }
}

#[test]
fn limits_are_exact() {
    let limits = HttpLimits::default()
        .request_line(30)
        .header(40)
        .max_headers(3);
    let status = |text: &str| match RequestHead::parse(text.as_bytes(), &limits) {
        Ok(parsed) => u16::from(parsed.is_none()),
        Err(problem) => problem.status().as_u16(),
    };
    let line = |n: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(n - 14));
    assert_eq!(status(&line(30)), 0);
    assert_eq!(status(&line(31)), 414);
    // The limit applies before the line has an end.
    assert_eq!(status(&"G".repeat(30)), 1);
    assert_eq!(status(&"G".repeat(31)), 414);
    let header = |n: usize| {
        format!(
            "GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n",
            "x".repeat(n - 14)
        )
    };
    assert_eq!(status(&header(40)), 0);
    assert_eq!(status(&header(41)), 431);
    assert_eq!(status(&header(400)[..80]), 431);
    let fields = |n: usize| {
        format!(
            "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
            "A:b\r\n".repeat(n - 1)
        )
    };
    assert_eq!(status(&fields(3)), 0);
    assert_eq!(status(&fields(4)), 431);
    // The type of targets has a maximum length.
    let target = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(1 << 16));
    let large_limits = HttpLimits::default().request_line(1 << 20);
    let problem = RequestHead::parse(target.as_bytes(), &large_limits).unwrap_err();
    assert_eq!(problem.status().as_u16(), 414);
}

#[test]
fn head_is_read_in_any_parts_and_no_byte_after_it() {
    use std::io::{BufReader, Read};
    let text = "\r\nGET /a HTTP/1.1\r\nHost: a\r\nB: c\r\n\r\n";
    let wire = format!("{text}GET /b HTTP/1.1\r\n");
    for step in 1..=wire.len() {
        let mut from = BufReader::with_capacity(step, wire.as_bytes());
        let head = RequestHead::read(&mut from, &HttpLimits::default())
            .unwrap()
            .unwrap();
        assert_eq!((head.path(), head.header("b")), ("/a", Some("c")));
        let mut rest = String::new();
        from.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "GET /b HTTP/1.1\r\n", "{step}");
    }
    for end in 0..text.len() {
        let read = RequestHead::read(&mut &text.as_bytes()[..end], &HttpLimits::default());
        assert_eq!(read.is_ok(), end == 0, "{end}");
        assert!(parse(&text.as_bytes()[..end]).unwrap().is_none(), "{end}");
    }
}
