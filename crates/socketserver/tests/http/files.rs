//! Files: whole, in parts, conditionally, and to clients that do not read them.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use socketserver::http::{Http, Request, Response};
use socketserver::{Concurrency, MinRate, Result, Threading, Timeouts};
use tempfile::TempDir;

use crate::client::{Wire, serve, serve_within};
use crate::common::{PATIENCE, eventually};

/// Bytes that tell where they are.
fn content(length: usize) -> Vec<u8> {
    (0..length)
        .map(|n| (n / 7 + n / 1024).to_le_bytes()[0])
        .collect()
}

/// A directory with a file of this length, and what serves it.
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

/// The same, of nothing: it takes no time to make.
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

fn get(wire: &mut Wire, fields: &str) -> crate::client::Answer {
    wire.ask(&format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"))
}

fn files_of_all_lengths<C: Concurrency>(model: C) {
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
    let mut wire = Wire::to(&running);
    for length in lengths {
        let answer = wire.get(&format!("/{length}"));
        assert_eq!(answer.status, 200);
        assert!(answer.body == content(length), "{length}");
        assert_eq!(answer.field("content-type"), Some("text/x-test"));
        assert_eq!(answer.field("accept-ranges"), Some("bytes"));
        let head = wire.ask(&format!("HEAD /{length} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(head.field("content-length"), Some(&*length.to_string()));
        assert_eq!(head.field("etag"), answer.field("etag"));
    }
}

fn parts_of_a_file<C: Concurrency>(model: C) {
    let (_dir, respond) = file(100_000);
    let running = serve(model, Http::new(), respond);
    let all = content(100_000);
    let mut wire = Wire::to(&running);
    for (range, part) in [
        ("0-0", 0..1),
        ("10-19", 10..20),
        ("-5", 99_995..100_000),
        ("50000-", 50_000..100_000),
        ("0-999999", 0..100_000),
    ] {
        let answer = get(&mut wire, &format!("Range: bytes={range}\r\n"));
        assert_eq!(answer.status, 206, "{range}");
        let place = format!("bytes {}-{}/100000", part.start, part.end - 1);
        assert_eq!(answer.field("content-range"), Some(&*place));
        assert!(answer.body == all[part], "{range}");
    }
    for range in ["100000-", "-0", "200000-200001"] {
        let answer = get(&mut wire, &format!("Range: bytes={range}\r\n"));
        assert_eq!((answer.status, answer.body.len()), (416, 0), "{range}");
        assert_eq!(answer.field("content-range"), Some("bytes */100000"));
    }
    for range in ["bytes=x", "bytes=5-4", "lines=1-2", "bytes=0-,0-"] {
        let answer = get(&mut wire, &format!("Range: {range}\r\n"));
        assert_eq!(
            (answer.status, answer.body.len()),
            (200, 100_000),
            "{range}"
        );
    }
    let head = wire.ask("HEAD / HTTP/1.1\r\nHost: a\r\nRange: bytes=0-0\r\n\r\n");
    assert_eq!(
        (head.status, head.field("content-length")),
        (200, Some("100000"))
    );
}

fn several_parts<C: Concurrency>(model: C) {
    let (_dir, respond) = file(100_000);
    let running = serve(model, Http::new(), respond);
    let all = content(100_000);
    let mut wire = Wire::to(&running);
    let answer = get(&mut wire, "Range: bytes=0-4,50000-89999,-3\r\n");
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
    // One of those that were asked for is one part.
    let answer = get(&mut wire, "Range: bytes=0-4,200000-\r\n");
    assert_eq!(answer.field("content-range"), Some("bytes 0-4/100000"));
}

fn conditions<C: Concurrency>(model: C) {
    let (dir, respond) = file(1000);
    let running = serve(model, Http::new(), respond);
    let mut wire = Wire::to(&running);
    let whole = wire.get("/");
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
        let answer = get(&mut wire, &fields);
        assert_eq!(answer.status, status, "{fields}");
        assert_eq!(answer.field("etag"), Some(&*tag), "{fields}");
        if status == 304 {
            assert_eq!(answer.field("content-length"), None);
        }
    }
    // Another state, of the same length.
    std::fs::write(dir.path().join("f"), "y".repeat(1000)).unwrap();
    assert_eq!(
        get(&mut wire, &format!("If-None-Match: {tag}\r\n")).status,
        200
    );
}

/// A suffix that is not of zero bytes is satisfiable, however short the file is (RFC 9110, 14.1.2).
fn a_suffix_of_an_empty_file_is_the_whole_file<C: Concurrency>(model: C) {
    let (_dir, respond) = file(0);
    let running = serve(model, Http::new(), respond);
    let mut wire = Wire::to(&running);
    for (range, status) in [
        ("-5", 200),
        ("-1,0-", 200),
        ("-0", 416),
        ("0-", 416),
        ("0-0", 416),
    ] {
        let answer = get(&mut wire, &format!("Range: bytes={range}\r\n"));
        assert_eq!((answer.status, answer.body.len()), (status, 0), "{range}");
        let place = (status == 416).then_some("bytes */0");
        assert_eq!(answer.field("content-range"), place, "{range}");
    }
}

/// `Range` and `If-Range` have one value each: several of them are ignored.
fn repeated_range_fields_are_ignored<C: Concurrency>(model: C) {
    let (_dir, respond) = file(1000);
    let running = serve(model, Http::new(), respond);
    let mut wire = Wire::to(&running);
    let tag = wire.get("/").field("etag").unwrap().to_owned();
    for fields in [
        "Range: bytes=0-0\r\nRange: bytes=0-0\r\n".to_owned(),
        "Range: bytes=0-0\r\nX: y\r\nRange: bytes=5-9\r\n".to_owned(),
        format!("Range: bytes=0-0\r\nIf-Range: {tag}\r\nIf-Range: \"x\"\r\n"),
    ] {
        let answer = get(&mut wire, &fields);
        assert_eq!((answer.status, answer.body.len()), (200, 1000), "{fields}");
    }
}

/// The replacement has the length and the modification time of the file that it replaces.
fn a_replaced_file_has_another_tag<C: Concurrency>(model: C) {
    let (dir, respond) = file(1000);
    let running = serve(model, Http::new(), respond);
    let mut wire = Wire::to(&running);
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
        // The kernel's clock for files goes in steps of some milliseconds.
        std::thread::sleep(Duration::from_millis(20));
        std::fs::write(&path, content).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(modified).unwrap();
    };
    for what in ["rename", "rewrite"] {
        let tag = wire.get("/").field("etag").unwrap().to_owned();
        assert_eq!(
            get(&mut wire, &format!("If-None-Match: {tag}\r\n")).status,
            304,
            "{what}"
        );
        match what {
            "rename" => rename(&"r".repeat(1000)),
            _ => rewrite(&"w".repeat(1000)),
        }
        let whole = get(&mut wire, &format!("If-None-Match: {tag}\r\n"));
        assert_eq!(whole.status, 200, "{what}");
        let part = format!("Range: bytes=500-\r\nIf-Range: {tag}\r\n");
        assert_eq!(get(&mut wire, &part).status, 200, "{what}");
        let part = format!("Range: bytes=500-\r\nIf-Match: {tag}\r\n");
        assert_eq!(get(&mut wire, &part).status, 412, "{what}");
    }
}

/// Times that HTTP cannot write, or should not.
#[test]
fn times_of_all_kinds() {
    let (dir, respond) = file(10);
    let running = serve(Threading::new(), Http::new(), respond);
    let file = File::options()
        .write(true)
        .open(dir.path().join("f"))
        .unwrap();
    let epoch = std::time::UNIX_EPOCH;
    let year = Duration::from_secs(31_557_600);
    let mut wire = Wire::to(&running);
    for (time, expected) in [
        (
            epoch + Duration::from_millis(784_111_777_500),
            Some("Sun, 06 Nov 1994 08:49:37 GMT"),
        ),
        (epoch - year, Some("Thu, 01 Jan 1970 00:00:00 GMT")),
        // Later than now is now.
        (epoch + 300 * year, None),
    ] {
        file.set_modified(time).unwrap();
        let answer = wire.get("/");
        let modified = answer.field("last-modified").unwrap();
        match expected {
            Some(expected) => assert_eq!(modified, expected),
            None => assert!(modified.contains(" 20"), "{modified}"),
        }
    }
}

/// All of it arrives at a client that takes its time, byte for byte.
fn sixteen_mebibytes_to_a_slow_reader<C: Concurrency>(model: C) {
    const LENGTH: usize = 16 << 20;
    let (_dir, respond) = file(LENGTH);
    let running = serve(model, Http::new(), respond);
    let mut wire = Wire::to(&running);
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.extend(wire.exactly(1));
        }
        String::from_utf8(head).unwrap()
    };
    assert!(answer.contains(&format!("Content-Length: {LENGTH}\r\n")));
    let all = content(LENGTH);
    for (n, part) in all.chunks(1 << 20).enumerate() {
        std::thread::sleep(Duration::from_millis(10));
        assert!(wire.exactly(part.len()) == part, "part {n}");
    }
    assert_eq!(get(&mut wire, "Range: bytes=0-0\r\n").status, 206);
}

fn who_does_not_read_is_cut<C: Concurrency>(model: C) {
    let (_dir, respond) = sparse(16 << 20);
    let limit = Duration::from_millis(200);
    let timeouts = Timeouts::default().write(Some(limit));
    let running = serve_within(model, timeouts, Http::new(), respond);
    let mut wire = Wire::to(&running);
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    eventually(PATIENCE, "an end", || {
        running.handle.counters().timed_out == 1
    });
}

/// Somebody who takes a little now and then is within every single wait.
fn who_reads_too_slowly_is_cut<C: Concurrency>(model: C) {
    let (_dir, respond) = sparse(16 << 20);
    let rate = MinRate::bytes_per_second(1 << 30).grace(Duration::from_millis(200));
    let timeouts = Timeouts::default().send_rate(Some(rate));
    let running = serve_within(model, timeouts, Http::new(), respond);
    let mut wire = Wire::to(&running);
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut some = vec![0; 200_000];
    eventually(PATIENCE, "an end", || {
        let _ = wire.0.read(&mut some);
        running.handle.counters().timed_out == 1
    });
}

/// A drain that is over cuts a transfer at once, however willing its client is.
fn a_transfer_is_cut_at_the_deadline<C: Concurrency>(model: C) {
    let (_dir, respond) = sparse(64 << 20);
    let running = serve(model, Http::new(), respond);
    let mut wire = Wire::to(&running);
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    wire.exactly(100_000);
    let before = Instant::now();
    running.handle.drain(Duration::from_millis(50));
    let handle = running.handle.clone();
    running.ends().unwrap();
    assert!(before.elapsed() < PATIENCE / 2);
    assert_eq!(handle.drain_report().unwrap().cancelled, 1);
}

/// A file that becomes shorter than was told.
#[test]
fn a_file_that_is_shortened_cuts_the_connection() {
    let (dir, respond) = sparse(16 << 20);
    let running = serve(Threading::new(), Http::new(), respond);
    let mut wire = Wire::to(&running);
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    wire.exactly(1000);
    let file = File::options()
        .write(true)
        .open(dir.path().join("f"))
        .unwrap();
    file.set_len(20_000).unwrap();
    let rest = wire.rest().len();
    assert!(rest < 16 << 20, "{rest}");
    eventually(PATIENCE, "the failure", || {
        running.handle.counters().failed == 1
    });
}

/// Where there is no sendfile(2): files of proc(5) have no length, and pipes no positions.
#[test]
fn a_file_that_cannot_be_sent_is_copied() {
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
    let said = running.client().rest().unwrap();
    assert_eq!(String::from_utf8(said).unwrap(), "Name:nux!");
}

crate::common::under_each_model! {
    files_of_all_lengths
    parts_of_a_file
    several_parts
    conditions
    a_suffix_of_an_empty_file_is_the_whole_file
    repeated_range_fields_are_ignored
    a_replaced_file_has_another_tag
    sixteen_mebibytes_to_a_slow_reader
    who_does_not_read_is_cut
    who_reads_too_slowly_is_cut
    a_transfer_is_cut_at_the_deadline
}
