//! Files: whole, ranges, conditional requests, and slow clients.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use socketserver::http::{Http, Request, Response};
use socketserver::{Concurrency, MinRate, Result, Threading, Timeouts};
use tempfile::TempDir;

use crate::client::{HttpClient, serve, serve_within};
use crate::common::{TIMEOUT, eventually};

/// Returns bytes that depend on their position.
fn content(length: usize) -> Vec<u8> {
    (0..length)
        .map(|n| (n / 7 + n / 1024).to_le_bytes()[0])
        .collect()
}

/// Returns a directory with a file of this length, and its handler.
fn file(
    length: usize,
) -> (
    TempDir,
    impl Fn(&mut Request<'_>) -> Result<Response> + Send + Sync,
) {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("f");
    std::fs::write(&path, content(length)).unwrap();
    (dir, move |request: &mut Request<'_>| {
        Response::file(request, File::open(&path)?, "text/x-test")
    })
}

/// The same with a sparse file, which takes no time to create.
fn sparse(
    length: u64,
) -> (
    TempDir,
    impl Fn(&mut Request<'_>) -> Result<Response> + Send + Sync,
) {
    let (dir, respond) = file(0);
    let file = File::create(dir.path().join("f")).unwrap();
    file.set_len(length).unwrap();
    (dir, respond)
}

fn get(client: &mut HttpClient, fields: &str) -> crate::client::Answer {
    client.ask(&format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"))
}

fn files_of_all_lengths_are_served<C: Concurrency>(model: C) {
    let lengths = [
        0, 1, 1000, 15_000, 16_384, 16_385, 65_536, 100_000, 3_000_000,
    ];
    let dir = tempfile::tempdir().unwrap();
    for length in lengths {
        std::fs::write(dir.path().join(length.to_string()), content(length)).unwrap();
    }
    let root = dir.path().to_owned();
    let running = serve(model, Http::new(), move |request| {
        let file = File::open(root.join(&request.path()[1..]))?;
        Response::file(request, file, "text/x-test")
    });
    let mut client = HttpClient::to(&running);
    for length in lengths {
        let answer = client.get(&format!("/{length}"));
        assert_eq!(answer.status, 200);
        assert!(answer.body == content(length), "{length}");
        assert_eq!(answer.field("content-type"), Some("text/x-test"));
        assert_eq!(answer.field("accept-ranges"), Some("bytes"));
        let head = client.ask(&format!("HEAD /{length} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(head.field("content-length"), Some(&*length.to_string()));
        assert_eq!(head.field("etag"), answer.field("etag"));
    }
}

fn ranges_of_a_file_are_served<C: Concurrency>(model: C) {
    let (_dir, respond) = file(100_000);
    let running = serve(model, Http::new(), respond);
    let all = content(100_000);
    let mut client = HttpClient::to(&running);
    for (range, part) in [
        ("0-0", 0..1),
        ("10-19", 10..20),
        ("-5", 99_995..100_000),
        ("50000-", 50_000..100_000),
        ("0-999999", 0..100_000),
    ] {
        let answer = get(&mut client, &format!("Range: bytes={range}\r\n"));
        assert_eq!(answer.status, 206, "{range}");
        let content_range = format!("bytes {}-{}/100000", part.start, part.end - 1);
        assert_eq!(answer.field("content-range"), Some(&*content_range));
        assert!(answer.body == all[part], "{range}");
    }
    for range in ["100000-", "-0", "200000-200001"] {
        let answer = get(&mut client, &format!("Range: bytes={range}\r\n"));
        assert_eq!((answer.status, answer.body.len()), (416, 0), "{range}");
        assert_eq!(answer.field("content-range"), Some("bytes */100000"));
    }
    for range in ["bytes=x", "bytes=5-4", "lines=1-2", "bytes=0-,0-"] {
        let answer = get(&mut client, &format!("Range: {range}\r\n"));
        assert_eq!(
            (answer.status, answer.body.len()),
            (200, 100_000),
            "{range}"
        );
    }
    let head = client.ask("HEAD / HTTP/1.1\r\nHost: a\r\nRange: bytes=0-0\r\n\r\n");
    assert_eq!(
        (head.status, head.field("content-length")),
        (200, Some("100000"))
    );
}

fn several_ranges_are_served_as_multipart<C: Concurrency>(model: C) {
    let (_dir, respond) = file(100_000);
    let running = serve(model, Http::new(), respond);
    let all = content(100_000);
    let mut client = HttpClient::to(&running);
    let answer = get(&mut client, "Range: bytes=0-4,50000-89999,-3\r\n");
    assert_eq!(answer.status, 206);
    let media_type = answer.field("content-type").unwrap();
    let boundary = media_type
        .strip_prefix("multipart/byteranges; boundary=")
        .unwrap();
    let mut expected = Vec::new();
    for (n, part) in [0..5, 50_000..90_000, 99_997..100_000]
        .into_iter()
        .enumerate()
    {
        let begin = if n == 0 { "" } else { "\r\n" };
        write!(
            expected,
            "{begin}--{boundary}\r\nContent-Type: text/x-test\r\nContent-Range: bytes {}-{}/100000\r\n\r\n",
            part.start,
            part.end - 1
        )
        .unwrap();
        expected.extend_from_slice(&all[part]);
    }
    write!(expected, "\r\n--{boundary}--\r\n").unwrap();
    assert!(answer.body == expected);
    // A list with one satisfiable range is answered with one part.
    let answer = get(&mut client, "Range: bytes=0-4,200000-\r\n");
    assert_eq!(answer.field("content-range"), Some("bytes 0-4/100000"));
}

fn conditional_requests_are_answered<C: Concurrency>(model: C) {
    let (dir, respond) = file(1000);
    let running = serve(model, Http::new(), respond);
    let mut client = HttpClient::to(&running);
    let whole = client.get("/");
    let tag = whole.field("etag").unwrap().to_owned();
    let date = whole.field("last-modified").unwrap().to_owned();
    for (fields, status) in [
        (format!("If-None-Match: {tag}\r\n"), 304),
        (format!("If-None-Match: W/{tag}, \"x\"\r\n"), 304),
        ("If-None-Match: \"x\"\r\n".into(), 200),
        (format!("If-Modified-Since: {date}\r\n"), 304),
        (
            "If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT\r\n".into(),
            200,
        ),
        ("If-Match: \"x\"\r\n".into(), 412),
        (format!("If-Match: {tag}\r\n"), 200),
        (
            "If-Unmodified-Since: Thu, 01 Jan 1970 00:00:00 GMT\r\n".into(),
            412,
        ),
        (format!("Range: bytes=0-0\r\nIf-Range: {tag}\r\n"), 206),
        ("Range: bytes=0-0\r\nIf-Range: \"x\"\r\n".into(), 200),
        (format!("Range: bytes=0-0\r\nIf-None-Match: {tag}\r\n"), 304),
    ] {
        let answer = get(&mut client, &fields);
        assert_eq!(answer.status, status, "{fields}");
        assert_eq!(answer.field("etag"), Some(&*tag), "{fields}");
        if status == 304 {
            assert_eq!(answer.field("content-length"), None);
        }
    }
    // Other content of the same length.
    std::fs::write(dir.path().join("f"), "y".repeat(1000)).unwrap();
    assert_eq!(
        get(&mut client, &format!("If-None-Match: {tag}\r\n")).status,
        200
    );
}

/// A suffix of more than zero bytes is satisfiable for any file (RFC 9110, 14.1.2).
fn suffix_of_an_empty_file_is_the_whole_file<C: Concurrency>(model: C) {
    let (_dir, respond) = file(0);
    let running = serve(model, Http::new(), respond);
    let mut client = HttpClient::to(&running);
    for (range, status) in [
        ("-5", 200),
        ("-1,0-", 200),
        ("-0", 416),
        ("0-", 416),
        ("0-0", 416),
    ] {
        let answer = get(&mut client, &format!("Range: bytes={range}\r\n"));
        assert_eq!((answer.status, answer.body.len()), (status, 0), "{range}");
        let content_range = (status == 416).then_some("bytes */0");
        assert_eq!(answer.field("content-range"), content_range, "{range}");
    }
}

/// `Range` and `If-Range` have one value each: repeated fields are ignored.
fn repeated_range_fields_are_ignored<C: Concurrency>(model: C) {
    let (_dir, respond) = file(1000);
    let running = serve(model, Http::new(), respond);
    let mut client = HttpClient::to(&running);
    let tag = client.get("/").field("etag").unwrap().to_owned();
    for fields in [
        "Range: bytes=0-0\r\nRange: bytes=0-0\r\n".to_owned(),
        "Range: bytes=0-0\r\nX: y\r\nRange: bytes=5-9\r\n".to_owned(),
        format!("Range: bytes=0-0\r\nIf-Range: {tag}\r\nIf-Range: \"x\"\r\n"),
    ] {
        let answer = get(&mut client, &fields);
        assert_eq!((answer.status, answer.body.len()), (200, 1000), "{fields}");
    }
}

/// The replacement has the same length and modification time as the original.
fn replaced_file_has_another_tag<C: Concurrency>(model: C) {
    let (dir, respond) = file(1000);
    let running = serve(model, Http::new(), respond);
    let mut client = HttpClient::to(&running);
    let path = dir.path().join("f");
    let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
    let rename = |content: &str| {
        let other = dir.path().join("other");
        std::fs::write(&other, content).unwrap();
        let file = File::options().write(true).open(&other).unwrap();
        file.set_modified(modified).unwrap();
        std::fs::rename(other, &path).unwrap();
    };
    let rewrite = |content: &str| {
        // The timestamps of files have a granularity of some milliseconds.
        std::thread::sleep(Duration::from_millis(20));
        std::fs::write(&path, content).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(modified).unwrap();
    };
    for what in ["rename", "rewrite"] {
        let tag = client.get("/").field("etag").unwrap().to_owned();
        assert_eq!(
            get(&mut client, &format!("If-None-Match: {tag}\r\n")).status,
            304,
            "{what}"
        );
        match what {
            "rename" => rename(&"r".repeat(1000)),
            _ => rewrite(&"w".repeat(1000)),
        }
        let whole = get(&mut client, &format!("If-None-Match: {tag}\r\n"));
        assert_eq!(whole.status, 200, "{what}");
        let part = format!("Range: bytes=500-\r\nIf-Range: {tag}\r\n");
        assert_eq!(get(&mut client, &part).status, 200, "{what}");
        let part = format!("Range: bytes=500-\r\nIf-Match: {tag}\r\n");
        assert_eq!(get(&mut client, &part).status, 412, "{what}");
    }
}

/// Times that HTTP cannot represent, and times that it should not send.
#[test]
fn modification_times_of_all_kinds_are_served() {
    let (dir, respond) = file(10);
    let running = serve(Threading::new(), Http::new(), respond);
    let file = File::options()
        .write(true)
        .open(dir.path().join("f"))
        .unwrap();
    let epoch = std::time::UNIX_EPOCH;
    let year = Duration::from_secs(31_557_600);
    let mut client = HttpClient::to(&running);
    for (time, expected) in [
        (
            epoch + Duration::from_millis(784_111_777_500),
            Some("Sun, 06 Nov 1994 08:49:37 GMT"),
        ),
        (epoch - year, Some("Thu, 01 Jan 1970 00:00:00 GMT")),
        // A time in the future is sent as the current time.
        (epoch + 300 * year, None),
    ] {
        file.set_modified(time).unwrap();
        let answer = client.get("/");
        let modified = answer.field("last-modified").unwrap();
        match expected {
            Some(expected) => assert_eq!(modified, expected),
            None => assert!(modified.contains(" 20"), "{modified}"),
        }
    }
}

/// A slow client receives all bytes unchanged.
fn slow_reader_receives_sixteen_mebibytes<C: Concurrency>(model: C) {
    const LENGTH: usize = 16 << 20;
    let (_dir, respond) = file(LENGTH);
    let running = serve(model, Http::new(), respond);
    let mut client = HttpClient::to(&running);
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.extend(client.exactly(1));
        }
        String::from_utf8(head).unwrap()
    };
    assert!(answer.contains(&format!("Content-Length: {LENGTH}\r\n")));
    let all = content(LENGTH);
    for (n, part) in all.chunks(1 << 20).enumerate() {
        std::thread::sleep(Duration::from_millis(10));
        assert!(client.exactly(part.len()) == part, "part {n}");
    }
    assert_eq!(get(&mut client, "Range: bytes=0-0\r\n").status, 206);
}

fn client_that_does_not_read_ends_at_the_write_timeout<C: Concurrency>(model: C) {
    let (_dir, respond) = sparse(16 << 20);
    let limit = Duration::from_millis(200);
    let timeouts = Timeouts::default().write(Some(limit));
    let running = serve_within(model, timeouts, Http::new(), respond);
    let mut client = HttpClient::to(&running);
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    eventually(TIMEOUT, "the timeout", || {
        running.handle.counters().timed_out == 1
    });
}

/// A client that reads a little now and then never reaches the timeout of a single write.
fn slow_reader_ends_at_the_send_rate<C: Concurrency>(model: C) {
    let (_dir, respond) = sparse(16 << 20);
    let rate = MinRate::bytes_per_second(1 << 30).grace(Duration::from_millis(200));
    let timeouts = Timeouts::default().send_rate(Some(rate));
    let running = serve_within(model, timeouts, Http::new(), respond);
    let mut client = HttpClient::to(&running);
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut some = vec![0; 200_000];
    eventually(TIMEOUT, "the timeout", || {
        let _ = client.0.read(&mut some);
        running.handle.counters().timed_out == 1
    });
}

/// A drain cancels a transfer at its deadline, although the client reads.
fn transfer_is_cancelled_at_the_drain_deadline<C: Concurrency>(model: C) {
    let (_dir, respond) = sparse(64 << 20);
    let running = serve(model, Http::new(), respond);
    let mut client = HttpClient::to(&running);
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.exactly(100_000);
    let before = Instant::now();
    running.handle.drain(Duration::from_millis(50));
    let handle = running.handle.clone();
    running.wait_until_stopped().unwrap();
    assert!(before.elapsed() < TIMEOUT / 2);
    assert_eq!(handle.drain_report().unwrap().cancelled, 1);
}

/// A file that becomes shorter than the announced length.
#[test]
fn shortened_file_ends_the_connection() {
    let (dir, respond) = sparse(16 << 20);
    let running = serve(Threading::new(), Http::new(), respond);
    let mut client = HttpClient::to(&running);
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.exactly(1000);
    let file = File::options()
        .write(true)
        .open(dir.path().join("f"))
        .unwrap();
    file.set_len(20_000).unwrap();
    let rest = client.read_rest().len();
    assert!(rest < 16 << 20, "{rest}");
    eventually(TIMEOUT, "the failure", || {
        running.handle.counters().failed == 1
    });
}

/// Sources without sendfile(2): files of proc(5) have no length, and pipes have no positions.
#[test]
fn file_without_sendfile_is_copied() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"abc").unwrap();
    let reader = std::sync::Arc::new(reader);
    let server = socketserver::ThreadingTcpServer::bind(
        "127.0.0.1:0",
        socketserver::handler_fn(move |conn: &mut socketserver::Connection| {
            let file = File::open("/proc/self/status")?;
            conn.send_file(&file, 0..5)?;
            conn.send_file(&File::open("/proc/version")?, 2..5)?;
            assert!(conn.send_file(&*reader, 0..3).is_err());
            Ok(conn.write_all(b"!")?)
        }),
    );
    let running = crate::common::running::Running::start(server.unwrap());
    let reply = running.client().read_rest().unwrap();
    assert_eq!(String::from_utf8(reply).unwrap(), "Name:nux!");
}

crate::common::under_each_model! {
    files_of_all_lengths_are_served
    ranges_of_a_file_are_served
    several_ranges_are_served_as_multipart
    conditional_requests_are_answered
    suffix_of_an_empty_file_is_the_whole_file
    repeated_range_fields_are_ignored
    replaced_file_has_another_tag
    slow_reader_receives_sixteen_mebibytes
    client_that_does_not_read_ends_at_the_write_timeout
    slow_reader_ends_at_the_send_rate
    transfer_is_cancelled_at_the_drain_deadline
}
