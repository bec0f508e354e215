//! Tests `socketserver http` from outside.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use common::{MODELS, Server, client, is_closed, run, socketserver, text};
use tempfile::TempDir;

/// Creates a directory with a file of each kind, and a secret file beside it.
///
/// The directory has names that a page must escape, a name that is not UTF-8, inner, outer and
/// absolute links, and a pipe.
fn site() -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("www");
    fs::create_dir_all(root.join("sub/deep")).unwrap();
    fs::create_dir_all(root.join("with index")).unwrap();
    fs::create_dir_all(root.join(".well-known")).unwrap();
    fs::write(dir.path().join("secret"), "SECRET").unwrap();
    fs::write(root.join("hello.txt"), "hello\n").unwrap();
    fs::write(root.join("with index/index.html"), "<p>index").unwrap();
    fs::write(root.join("sub/a&b.txt"), "ab").unwrap();
    fs::write(root.join("sub/<img src=x onerror=alert(1)>"), "x").unwrap();
    fs::write(root.join("sub/javascript:alert(1)"), "x").unwrap();
    fs::write(root.join("sub/\"quoted' 100%?#"), "q").unwrap();
    fs::write(root.join("sub/ümlaut"), "u").unwrap();
    fs::write(
        root.join("sub")
            .join(std::ffi::OsStr::from_bytes(b"\xff\xfe")),
        "raw",
    )
    .unwrap();
    fs::write(root.join(".hidden"), "SECRET").unwrap();
    fs::write(root.join(".well-known/x"), "known").unwrap();
    symlink("hello.txt", root.join("inside")).unwrap();
    symlink("../secret", root.join("outside")).unwrap();
    symlink("..", root.join("up")).unwrap();
    symlink(dir.path().join("secret"), root.join("absolute")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("pipe"),
        rustix::fs::FileType::Fifo,
        0o644.into(),
        0,
    )
    .unwrap();
    let root = root.to_str().unwrap().to_owned();
    (dir, root)
}

fn start(model: &str, root: &str, more: &[&str]) -> Server {
    let args = [
        &["http", root, "-c", model, "-l", "tcp://127.0.0.1:0"][..],
        more,
    ];
    Server::start(&args.concat(), 1)
}

/// Sends a request on a connection of its own. Returns the status, the head and the body.
fn ask(server: &Server, request: &str) -> (u16, String, Vec<u8>) {
    let mut client = client(server, 0);
    client.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let body =
        answer.split_off(end.unwrap_or_else(|| panic!("{request:?}: {:?}", text(&answer))) + 4);
    let head = text(&answer);
    (head[9..12].parse().unwrap(), head, body)
}

fn get(server: &Server, path: &str) -> (u16, String, Vec<u8>) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    ask(server, &request)
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (field, value) = line.split_once(": ")?;
        field.eq_ignore_ascii_case(name).then_some(value)
    })
}

#[test]
fn files_and_directories_under_every_model() {
    let (_dir, root) = site();
    for model in MODELS {
        let server = start(model, &root, &[]);
        let (status, head, body) = get(&server, "/hello.txt");
        assert_eq!((status, &*body), (200, &b"hello\n"[..]), "{model}");
        assert_eq!(
            field(&head, "content-type"),
            Some("text/plain; charset=utf-8")
        );
        assert_eq!(field(&head, "content-length"), Some("6"));
        assert_eq!(field(&head, "x-content-type-options"), Some("nosniff"));
        assert!(field(&head, "server").unwrap().starts_with("socketserver/"));
        for name in ["date", "etag", "last-modified"] {
            assert!(field(&head, name).is_some(), "{name}");
        }
        let request = "HEAD /hello.txt HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let (status, alike, body) = ask(&server, request);
        assert_eq!((status, &*body), (200, &b""[..]));
        let but_date = |head: &str| {
            head.lines()
                .filter(|l| !l.starts_with("Date"))
                .collect::<String>()
        };
        assert_eq!(but_date(&alike), but_date(&head));

        let (status, head, _) = get(&server, "/sub?a=b&c");
        assert_eq!(
            (status, field(&head, "location")),
            (301, Some("/sub/?a=b&c"))
        );
        assert_eq!(text(&get(&server, "/with%20index/").2), "<p>index");
        let (status, head, _) = get(&server, "/with%20index");
        assert_eq!(
            (status, field(&head, "location")),
            (301, Some("/with%20index/"))
        );
        assert_eq!(get(&server, "/sub/").0, 200);
        assert_eq!(get(&server, "/none").0, 404);
        assert_eq!(get(&server, "/hello.txt/").0, 404);
        let (status, head, _) = ask(&server, "DELETE /hello.txt HTTP/1.0\r\n\r\n");
        assert_eq!(
            (status, field(&head, "allow")),
            (405, Some("GET, HEAD, OPTIONS"))
        );
        assert_eq!(ask(&server, "BREW / HTTP/1.0\r\n\r\n").0, 501);
        let range = "GET /hello.txt HTTP/1.0\r\nRange: bytes=1-2\r\n\r\n";
        let (status, _, body) = ask(&server, range);
        assert_eq!((status, &*body), (206, &b"el"[..]));

        // A sequential server keeps no connection open. The other models do.
        let mut client = client(&server, 0);
        client
            .write_all(b"GET /hello.txt HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
        let mut answer = vec![0; 4096];
        let mut filled = 0;
        while !answer[..filled].ends_with(b"\r\n\r\nhello\n") {
            let n = client.read(&mut answer[filled..]).unwrap();
            assert_ne!(n, 0, "{}", text(&answer));
            filled += n;
        }
        if model == "sequential" {
            assert!(text(&answer).contains("\r\nConnection: close\r\n"));
            assert!(is_closed(&mut client));
        } else {
            client
                .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                .unwrap();
            assert!(!is_closed(&mut client), "{model}");
        }
    }
}

/// No path out of the directory is served, in a hundred spellings.
#[test]
fn no_path_leads_out() {
    let (dir, root) = site();
    let server = start("threading", &root, &[]);
    let absolute = dir.path().join("secret");
    let absolute = absolute.to_str().unwrap();
    let mut paths: Vec<String> = Vec::new();
    for up in [
        "..",
        "%2e%2e",
        "%2E%2e",
        ".%2e",
        "%2e.",
        "%252e%252e",
        "..%00",
        "..%20",
        "...",
        "..;",
        "..\\",
        "%c0%ae%c0%ae",
        "%uff0e%uff0e",
        "..%c0%af",
        "%e0%80%ae%e0%80%ae",
        "..%01",
        "./..",
        "%2e/..",
    ] {
        for slash in ["/", "//", "%2f", "%5c", "\\", "%252f"] {
            paths.push(format!("/{up}{slash}secret"));
            paths.push(format!("/sub{slash}{up}{slash}{up}{slash}secret"));
        }
    }
    paths.extend([
        format!("/{absolute}"),
        format!("//{absolute}"),
        format!("/%2f{}", &absolute[1..]),
        format!("file://{absolute}"),
        "/outside".into(),
        "/absolute".into(),
        "/up/secret".into(),
        "/up/".into(),
        "/up".into(),
        "/up/www/hello.txt".into(),
        "/loop".into(),
        "/pipe".into(),
        "/inside/../../secret".into(),
        "/secret%00.txt".into(),
        "/.hidden".into(),
        "/%2ehidden".into(),
        "/sub/../.hidden".into(),
        "/hello.txt%00".into(),
        "/hello.txt%2f..%2f..%2fsecret".into(),
        "/proc/self/environ".into(),
        format!("/{}", "../".repeat(50)),
        format!("/{}etc/passwd", "..%2f".repeat(20)),
        format!("/{}", "a/".repeat(3000)),
        format!("/{}", "x".repeat(300)),
    ]);
    assert!(paths.len() > 100, "{}", paths.len());
    for path in &paths {
        let (status, head, body) = get(&server, path);
        assert!([400, 404].contains(&status), "{path}: {head}");
        assert!(!text(&body).contains("SECRET"), "{path}");
    }
    for (path, expected) in [("/inside", "hello\n"), ("/.well-known/x", "known")] {
        assert_eq!(text(&get(&server, path).2), expected);
    }
    // With these options, the server serves the same paths.
    let server = start("threading", &root, &["--follow-symlinks", "--hidden"]);
    for path in ["/outside", "/absolute", "/up/secret", "/.hidden"] {
        assert_eq!(text(&get(&server, path).2), "SECRET", "{path}");
    }
    assert_eq!(get(&server, "/../secret").0, 400);
}

/// The links of a list and of an index are relative to the directory's own path.
#[test]
fn a_directory_is_served_by_its_own_path_only() {
    let (_dir, root) = site();
    let server = start("threading", &root, &[]);
    for (path, location) in [
        ("/sub/deep/..", "/sub/"),
        ("/sub/deep/../", "/sub/"),
        ("/sub/deep/%2e%2e/?a=b", "/sub/?a=b"),
        ("/sub/.", "/sub/"),
        ("/sub//", "/sub/"),
        ("//sub/", "/sub/"),
        ("/sub/..", "/"),
        ("/./", "/"),
        ("/sub/../with%20index/", "/with%20index/"),
    ] {
        let (status, head, _) = get(&server, path);
        assert_eq!(
            (status, field(&head, "location")),
            (301, Some(location)),
            "{path}"
        );
        assert_eq!(get(&server, location).0, 200, "{location}");
    }
    // A file is served by every path that leads to it.
    assert_eq!(get(&server, "/sub/../hello.txt").0, 200);
}

/// The server resolves its path again for each request. The path may be a link that changes to the
/// next release, or a directory that is created again.
#[test]
fn the_directory_is_looked_up_again_under_every_model() {
    for model in MODELS {
        let dir = tempfile::tempdir().unwrap();
        let release = |n: &str| {
            let path = dir.path().join(n);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("version"), n).unwrap();
            path
        };
        let (one, two) = (release("1"), release("2"));
        let link = dir.path().join("current");
        symlink(&one, &link).unwrap();
        let endpoint = "tcp://127.0.0.1:0";
        let root = link.to_str().unwrap();
        let args = [
            "http",
            root,
            "-c",
            model,
            "-l",
            endpoint,
            "--metrics",
            endpoint,
        ];
        let server = Server::start(&args, 2);
        let version = || text(&get(&server, "/version").2);
        assert_eq!(version(), "1", "{model}");
        symlink(&two, dir.path().join("next")).unwrap();
        fs::rename(dir.path().join("next"), &link).unwrap();
        assert_eq!(version(), "2", "{model}");
        // The same holds on a connection that is kept open.
        let keeps = model != "sequential";
        let mut kept = keeps.then(|| client(&server, 0));
        let mut kept_asks = || {
            let Some(kept) = &mut kept else {
                return String::new();
            };
            let request = b"GET /version HTTP/1.1\r\nHost: a\r\n\r\n";
            let _ = kept.write_all(request);
            let mut some = [0; 4096];
            let n = kept.read(&mut some).unwrap_or(0);
            text(&some[..n])
        };
        assert!(!keeps || kept_asks().ends_with("\r\n\r\n2"), "{model}");
        let ready = || {
            let address = server.address(1).trim_end_matches(" (metrics)").to_owned();
            let mut client = common::client_at(&address);
            client.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            answer
        };
        assert!(ready().starts_with("HTTP/1.1 200 "), "{model}");
        for _ in 0..2 {
            fs::remove_dir_all(&two).unwrap();
            for _ in 0..3 {
                let (status, head, _) = get(&server, "/version");
                assert_eq!((status, field(&head, "retry-after")), (503, Some("5")));
                assert_eq!(get(&server, "/").0, 503, "{model}");
            }
            assert!(
                !keeps || kept_asks().starts_with("HTTP/1.1 503 "),
                "{model}"
            );
            let answer = ready();
            assert!(answer.starts_with("HTTP/1.1 503 "), "{model}: {answer}");
            assert!(
                answer.contains("program: not ready, cannot open "),
                "{answer}"
            );
            assert!(server.logged("cannot open").contains("WARN"), "{model}");
            fs::create_dir(&two).unwrap();
            fs::write(two.join("version"), "3").unwrap();
            assert_eq!(version(), "3", "{model}");
            assert!(!keeps || kept_asks().ends_with("\r\n\r\n3"), "{model}");
            assert!(ready().starts_with("HTTP/1.1 200 "), "{model}");
            server.logged("is there again");
        }
        server.signal("TERM");
        let told = server.rest_of_log();
        // The server logged each loss of the directory once.
        assert!(
            !told.iter().any(|line| line.contains("cannot open")),
            "{told:?}"
        );
    }
}

#[test]
fn scripts_have_one_media_type() {
    let (_dir, root) = site();
    for name in ["a.js", "a.mjs"] {
        fs::write(Path::new(&root).join(name), "1").unwrap();
    }
    let server = start("threading", &root, &[]);
    for name in ["/a.js", "/a.mjs"] {
        let (_, head, _) = get(&server, name);
        let media_type = field(&head, "content-type");
        assert_eq!(media_type, Some("text/javascript; charset=utf-8"), "{name}");
    }
}

#[test]
fn no_redirect_leads_to_another_host() {
    let (dir, _) = site();
    let root = dir.path().join("hosts");
    for name in [
        "example.org",
        "\\example.org",
        "\\\\example.org",
        "\u{a0}example.org",
        "@example.org",
        "a\r\nX: y",
    ] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    let server = start("threading", root.to_str().unwrap(), &[]);
    for path in [
        "//example.org",
        "///example.org",
        "/./example.org",
        "//./example.org",
        "/.//example.org",
        "/\\example.org",
        "/%5cexample.org",
        "/%5c%5cexample.org",
        "/%c2%a0example.org",
        "/@example.org",
        "/a%0d%0aX:%20y",
        "//example.org/..//example.org",
        "/%2e/example.org",
    ] {
        let (status, head, _) = get(&server, path);
        assert_eq!(status, 301, "{path}: {head}");
        let location = field(&head, "location").unwrap();
        let second = location.as_bytes()[1];
        assert!(
            location.starts_with('/') && second != b'/' && second != b'\\',
            "{location}"
        );
        assert_eq!(field(&head, "x"), None, "{path}");
        // The redirect leads to the right page.
        assert_eq!(get(&server, location).0, 200, "{path}: {location}");
    }
}

#[test]
fn a_listing_has_no_markup_of_names() {
    let (_dir, root) = site();
    let server = start("threading", &root, &[]);
    let (status, head, body) = get(&server, "/sub/");
    let page = text(&body);
    assert_eq!(
        (status, field(&head, "content-type")),
        (200, Some("text/html; charset=utf-8"))
    );
    let policy = field(&head, "content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'"), "{policy}");
    assert!(!page.contains("<img"), "{page}");
    assert!(page.contains("&lt;img src=x onerror=alert(1)&gt;"));
    assert!(page.contains("href=\"./javascript%3Aalert%281%29\""));
    assert!(page.contains("&quot;quoted&#39; 100%?#"));
    assert!(
        page.contains("<h1><a href=\"../\">/</a><a href=\"./\">sub/</a></h1>"),
        "{page}"
    );
    // Each link leads to its file, for names of any bytes.
    let mut links = 0;
    for href in page
        .split("href=\"./")
        .skip(2)
        .filter_map(|rest| rest.split('"').next())
    {
        let (status, _, _) = get(&server, &format!("/sub/{href}"));
        assert_eq!(status, 200, "{href}");
        links += 1;
    }
    assert_eq!(links, 7);
    let deep = page.find("deep/").unwrap();
    assert!(
        deep < page.find("a&amp;b.txt").unwrap(),
        "directories first"
    );

    // The list has no entry that the server does not serve.
    let page = text(&get(&server, "/").2);
    for name in ["outside", "absolute", ".hidden", "pipe", "loop", "up"] {
        assert!(
            !page.contains(&format!("./{name}\"")) && !page.contains(&format!("./{name}/\"")),
            "{name}"
        );
    }
    assert!(page.contains("./inside\""));
    let server = start("threading", &root, &["--no-listing"]);
    assert_eq!(get(&server, "/sub/").0, 403);
    assert_eq!(get(&server, "/hello.txt").0, 200);
}

#[test]
fn errors_are_pages_with_nothing_of_the_request_in_them() {
    let (_dir, root) = site();
    let server = start("threading", &root, &[]);
    for (request, status) in [
        ("GET /none&lt;'%3Cscript%3E HTTP/1.0\r\n\r\n", 404),
        ("GET /<script>alert(1)</script> HTTP/1.0\r\n\r\n", 400),
        ("<script> / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/2.0\r\n\r\n", 505),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nA : b\r\n\r\n", 400),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
        ),
    ] {
        let (found, head, body) = ask(&server, request);
        assert_eq!(found, status, "{request:?}");
        assert_eq!(
            field(&head, "content-type"),
            Some("text/html; charset=utf-8")
        );
        let page = text(&body);
        assert!(page.contains(&format!("<h1>{status} ")), "{page}");
        assert!(!page.contains("<script"), "{page}");
        assert_eq!(
            field(&head, "content-length"),
            Some(&*body.len().to_string())
        );
    }
    let (status, _, body) = ask(&server, "HEAD /none HTTP/1.0\r\n\r\n");
    assert_eq!((status, body.len()), (404, 0));
}

/// The limits are those that Python's `http.server` has for its clients.
#[test]
fn limits_are_those_of_python() {
    let (_dir, root) = site();
    let server = start("green", &root, &[]);
    let long = |n: usize| "x".repeat(n);
    for (request, status) in [
        (format!("GET /?{} HTTP/1.0\r\n\r\n", long(60_000)), 200),
        (format!("GET /?{} HTTP/1.0\r\n\r\n", long(65_536)), 414),
        (
            format!("GET / HTTP/1.0\r\nA: {}\r\n\r\n", long(60_000)),
            200,
        ),
        (
            format!("GET / HTTP/1.0\r\nA: {}\r\n\r\n", long(65_536)),
            431,
        ),
        (
            format!("GET / HTTP/1.0\r\n{}\r\n", "A: b\r\n".repeat(100)),
            200,
        ),
        (
            format!("GET / HTTP/1.0\r\n{}\r\n", "A: b\r\n".repeat(101)),
            431,
        ),
    ] {
        assert_eq!(ask(&server, &request).0, status, "{} bytes", request.len());
    }
}

#[test]
fn the_access_log_has_a_line_for_each_request() {
    let (_dir, root) = site();
    let server = start("pooled", &root, &[]);
    get(&server, "/hello\".txt?a=b");
    let line = server.says();
    assert!(line.starts_with("127.0.0.1 - - ["), "{line}");
    assert!(
        line.contains("] \"GET /hello\\\".txt?a=b HTTP/1.1\" 404 "),
        "{line}"
    );
    ask(&server, "nonsense\r\n\r\n");
    let line = server.says();
    assert!(line.contains("] \"-\" 400 "), "{line}");

    let server = start("forking", &root, &["--access-log", "json"]);
    let request = "GET /none HTTP/1.0\r\nUser-Agent: x\"y\r\n\r\n";
    ask(&server, request);
    let line = server.says();
    for part in [
        "\"status\":404",
        "\"target\":\"/none\"",
        "\"user-agent\":\"x\\\"y\"",
        "\"peer\":\"127.0.0.1\"",
    ] {
        assert!(line.contains(part), "{line}");
    }
    let server = start("threading", &root, &["--access-log", "off"]);
    get(&server, "/hello.txt");
    server.signal("TERM");
    let mut server = server;
    assert!(server.wait().success());
}

#[test]
fn over_a_unix_socket_and_from_a_configuration() {
    let (dir, root) = site();
    let socket = dir.path().join("s");
    let config = dir.path().join("c.toml");
    fs::write(&config, "[http]\nno-listing = true\nindex = 'hello.txt'\n").unwrap();
    let endpoint = format!("unix://{}", socket.display());
    let args = [
        "http",
        &root,
        "-l",
        &endpoint,
        "--config",
        config.to_str().unwrap(),
    ];
    let _server = Server::start(&args, 1);
    let mut client = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    client
        .write_all(b"GET / HTTP/1.0\r\n\r\nGET /sub/ HTTP/1.0\r\n\r\n")
        .unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert!(
        text(&answer).ends_with("\r\n\r\nhello\n"),
        "{}",
        text(&answer)
    );
}

#[test]
fn what_cannot_be_served_is_said_at_once() {
    let (_dir, root) = site();
    for (args, status, message) in [
        (
            ["http", "/nowhere", "-l", "tcp://127.0.0.1:0"],
            1,
            "cannot serve /nowhere",
        ),
        (
            [
                "http",
                &*format!("{root}/hello.txt"),
                "-l",
                "tcp://127.0.0.1:0",
            ],
            1,
            "hello.txt",
        ),
        (
            ["http", &*root, "-l", "udp://127.0.0.1:0"],
            2,
            "connections",
        ),
    ] {
        let output = socketserver().args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(status));
        assert!(
            text(&output.stderr).contains(message),
            "{}",
            text(&output.stderr)
        );
    }
}

#[test]
fn curl_gets_what_is_there() {
    let (dir, root) = site();
    let big: Vec<u8> = (0..5_000_000u32).flat_map(u32::to_le_bytes).collect();
    fs::write(Path::new(&root).join("big"), &big).unwrap();
    for model in MODELS {
        let server = start(model, &root, &[]);
        let url = format!("http://{}", server.address(0));
        let curl = |args: &[&str]| {
            let common = ["-sS", "--max-time", "20", "--path-as-is"];
            run(&mut Command::new("curl"), common.iter().chain(args), b"")
        };
        let to = dir.path().join("got");
        let Some(output) = curl(&["-o", to.to_str().unwrap(), &format!("{url}/big")]) else {
            return;
        };
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(fs::read(&to).unwrap() == big, "{model}");
        // curl resumes a download that was cut off.
        fs::write(&to, &big[..1_000_001]).unwrap();
        let output = curl(&["-C", "-", "-o", to.to_str().unwrap(), &format!("{url}/big")]).unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(fs::read(&to).unwrap() == big, "{model}");
        // curl sends two requests on one connection, and follows a redirect.
        let pair = [format!("{url}/hello.txt"), format!("{url}/inside")];
        assert_eq!(
            text(&curl(&[&*pair[0], &*pair[1]]).unwrap().stdout),
            "hello\nhello\n"
        );
        let followed = curl(&["-L", &format!("{url}/with%20index")]).unwrap();
        assert_eq!(text(&followed.stdout), "<p>index");
        // With an entity tag, the second answer is a 304.
        let tag = dir.path().join(format!("tag-{model}"));
        let tag = tag.to_str().unwrap();
        let hello = format!("{url}/hello.txt");
        curl(&["--etag-save", tag, &hello]).unwrap();
        let again = curl(&["--etag-compare", tag, "-w", "%{http_code}", &hello]).unwrap();
        assert_eq!(text(&again.stdout), "304");
        let body = "x".repeat(2000);
        let post = curl(&["-d", &body, "-w", "%{http_code}", "-o", "/dev/null", &hello]).unwrap();
        assert_eq!(text(&post.stdout), "405");
    }
}

#[test]
fn pythons_client_gets_what_is_there() {
    const SCRIPT: &str = "
import http.client, sys
c = http.client.HTTPConnection(sys.argv[1], timeout=20)
for n in range(100):
    c.request('GET', '/hello.txt', headers={'X-N': str(n)})
    r = c.getresponse()
    assert (r.status, r.read()) == (200, b'hello\\n'), n
    sock = sock if n else c.sock
    assert c.sock is sock, 'it was closed'
c.request('POST', '/', body=(b'x' * 10 for _ in range(10)), encode_chunked=True,
          headers={'Transfer-Encoding': 'chunked'})
r = c.getresponse(); r.read()
assert r.status == 405
c.request('HEAD', '/hello.txt')
r = c.getresponse()
assert (r.status, r.length, r.read()) == (200, 0, b'') and r.headers['Content-Length'] == '6'
print('fine')
";
    let (_dir, root) = site();
    for model in ["threading", "forking", "pooled", "green"] {
        let server = start(model, &root, &[]);
        let args = ["-c", SCRIPT, server.address(0)];
        let Some(output) = run(&mut Command::new("python3"), args, b"") else {
            return;
        };
        // A minimal Python has no module `http.client`.
        if text(&output.stderr).contains("ModuleNotFoundError") {
            println!("SKIPPED: this Python has no http.client");
            return;
        }
        assert_eq!(
            text(&output.stdout),
            "fine\n",
            "{model}: {}",
            text(&output.stderr)
        );
    }
}

/// A drain does not wait for idle connections. A busy connection completes its download.
#[test]
fn a_drain_lets_a_download_end() {
    let (_dir, root) = site();
    fs::write(Path::new(&root).join("big"), vec![b'x'; 20_000_000]).unwrap();
    for model in MODELS {
        let mut server = start(model, &root, &["--access-log", "off"]);
        let mut busy = client(&server, 0);
        busy.write_all(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
        busy.read_exact(&mut [0; 1000]).unwrap();
        let idle: Option<TcpStream> = (model != "sequential").then(|| {
            let mut idle = client(&server, 0);
            idle.write_all(b"GET /hello.txt HTTP/1.1\r\nHost: a\r\n\r\n")
                .unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\nhello\n") {
                let mut byte = [0];
                idle.read_exact(&mut byte).unwrap();
                answer.push(byte[0]);
            }
            idle
        });
        server.signal("TERM");
        // The idle connection is closed before the busy connection ends.
        if let Some(mut idle) = idle {
            assert!(is_closed(&mut idle), "{model}");
        }
        let mut rest = Vec::new();
        busy.read_to_end(&mut rest).unwrap();
        assert!(rest.len() > 19_999_000, "{model}: {}", rest.len());
        assert!(server.wait().success(), "{model}");
    }
}

/// An answer within a drain tells the client that the connection closes.
#[test]
fn a_drain_is_told() {
    let (_dir, root) = site();
    for model in ["threading", "forking", "pooled", "green"] {
        let mut server = start(model, &root, &[]);
        let mut client = client(&server, 0);
        // The client has begun a request, so that the drain waits for its rest.
        client.write_all(b"GET /hello.txt HTTP/1.1\r\n").unwrap();
        // The answer shows that the server serves the earlier connection, too.
        assert_eq!(get(&server, "/hello.txt").0, 200);
        server.signal("TERM");
        server.logged("drain");
        client.write_all(b"Host: a\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        let answer = text(&answer);
        assert!(
            answer.contains("\r\nConnection: close\r\n"),
            "{model}: {answer}"
        );
        assert!(answer.ends_with("hello\n"), "{model}: {answer}");
        assert!(server.wait().success(), "{model}");
    }
}

/// Sends a request every 2 ms until the server has ended, on one connection while the server keeps
/// it open. Returns the number of answers. Returns an error if a request gets no answer.
fn ask_until_it_is_gone(address: &str) -> Result<usize, String> {
    let mut answered = 0;
    let mut kept: Option<TcpStream> = None;
    loop {
        let mut client = match kept.take() {
            Some(kept) => kept,
            None => match TcpStream::connect(address) {
                Ok(client) => client,
                Err(_) => return Ok(answered),
            },
        };
        client.set_read_timeout(Some(common::PATIENCE)).unwrap();
        let lost = |what: &str| format!("{what}, after {answered} answers");
        let request = b"GET /hello.txt HTTP/1.1\r\nHost: a\r\n\r\n";
        client
            .write_all(request)
            .map_err(|e| lost(&e.to_string()))?;
        let (mut answer, mut some) = (Vec::new(), [0; 1024]);
        while !answer.ends_with(b"\r\n\r\nhello\n") {
            match client.read(&mut some) {
                Ok(0) => return Err(lost("the end")),
                Ok(n) => answer.extend_from_slice(&some[..n]),
                Err(error) => return Err(lost(&error.to_string())),
            }
        }
        answered += 1;
        let closes = text(&answer).contains("\r\nConnection: close\r\n");
        kept = (!closes).then_some(client);
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// During the lame-duck time, each answer is the last of its connection. When the drain begins, no
/// client has an open connection on which a request could cross the close.
#[test]
fn a_stop_with_a_lame_time_loses_no_request() {
    let (_dir, root) = site();
    for model in MODELS {
        let more = ["--lame-duck-time", "500ms", "--access-log", "off"];
        let mut server = start(model, &root, &more);
        let address = server.address(0).to_owned();
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..16)
                .map(|_| scope.spawn(|| ask_until_it_is_gone(&address)))
                .collect();
            std::thread::sleep(std::time::Duration::from_millis(200));
            server.signal("TERM");
            for client in clients {
                let answered = client.join().unwrap();
                assert!(matches!(answered, Ok(10..)), "{model}: {answered:?}");
            }
        });
        assert!(server.wait().success(), "{model}");
    }
}

/// Returns header fields that have hidden a request in the body of another request. Each has two
/// readings or is not valid.
fn smuggling_attempts() -> Vec<String> {
    let chunked = "Transfer-Encoding: chunked\r\n";
    vec![
        format!("Content-Length: 4\r\n{chunked}"),
        format!("{chunked}Content-Length: 4\r\n"),
        "Content-Length: 4\r\nContent-Length: 5\r\n".into(),
        "Content-Length: 4, 5\r\n".into(),
        "Content-Length: +4\r\n".into(),
        "Content-Length: 0x4\r\n".into(),
        "Content-Length: 4 4\r\n".into(),
        "Content-Length: 18446744073709551617\r\n".into(),
        "Content-Length: -1\r\n".into(),
        "Content-Length:\r\n".into(),
        "Content-Length : 4\r\n".into(),
        " Content-Length: 4\r\n".into(),
        "Content-Length\x0b: 4\r\n".into(),
        "Content-Length: 4\x0b\r\n".into(),
        "Content\0Length: 4\r\n".into(),
        "Transfer-Encoding: identity\r\n".into(),
        "Transfer-Encoding: chunked, identity\r\n".into(),
        "Transfer-Encoding: identity, chunked\r\n".into(),
        "Transfer-Encoding: gzip, chunked\r\n".into(),
        "Transfer-Encoding: xchunked\r\n".into(),
        "Transfer-Encoding: chunked;q=1\r\n".into(),
        "Transfer-Encoding: \"chunked\"\r\n".into(),
        "Transfer-Encoding:\x0bchunked\r\n".into(),
        "Transfer-Encoding:\r\n chunked\r\n".into(),
        "Transfer-Encoding\r\n: chunked\r\n".into(),
        "Transfer-Encoding : chunked\r\n".into(),
        format!("{chunked}{chunked}"),
        "X: a\r\n Transfer-Encoding: chunked\r\n".into(),
        "X: a\nTransfer-Encoding: chunked\r\n".into(),
        "X: a\rTransfer-Encoding: chunked\r\n".into(),
        "X: a\r\r\nTransfer-Encoding: chunked\r\n".into(),
        "\nTransfer-Encoding: chunked\r\n".into(),
        "Content-Length: 4;\r\n".into(),
        "Content-Length: \"4\"\r\n".into(),
        "Content-Length: 4\r\nContent-Length: 4\r\n".into(),
        "Transfer-Encoding: chunked, chunked\r\n".into(),
        "Transfer-Encoding: , chunked, identity\r\n".into(),
        format!("{chunked}Transfer-Encoding: identity\r\n"),
    ]
}

/// An nginx in front of a server, over Unix sockets. The test stops it on drop.
struct Nginx(std::process::Child);

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Two servers that read a request differently allow a hidden request. nginx has seen each request
/// that reaches the server behind nginx.
#[test]
fn nothing_is_smuggled_through_nginx() {
    let (dir, root) = site();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (behind, front, seen) = (at("behind.sock"), at("front.sock"), at("access.log"));
    let listen = format!("unix://{behind}");
    let config = format!(
        "daemon off; master_process off; pid {pid}; error_log stderr crit; events {{}}\n\
         http {{ log_format seen '$request'; access_log {seen} seen;\n\
         client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;\n\
         uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;\n\
         upstream behind {{ server unix:{behind}; keepalive 4; }}\n\
         server {{ listen unix:{front}; location / {{ proxy_pass http://behind; proxy_http_version 1.1;\n\
         proxy_set_header Connection \"\"; proxy_request_buffering off; }} }} }}\n",
        pid = at("nginx.pid"),
        dir = dir.path().display(),
    );
    fs::write(at("nginx.conf"), config).unwrap();
    for model in ["threading", "green"] {
        let _ = fs::remove_file(&front);
        let _ = fs::remove_file(&seen);
        let server = Server::start(&["http", &root, "-c", model, "-l", &listen], 1);
        let nginx = Command::new("nginx")
            .args(["-e", "stderr", "-p", &at(""), "-c", &at("nginx.conf")])
            .spawn();
        let _nginx = match nginx {
            Ok(nginx) => Nginx(nginx),
            Err(error) => return println!("SKIPPED: nginx cannot be started: {error}"),
        };
        let ask = |request: &str| {
            let mut client = None;
            common::eventually(|| {
                client = std::os::unix::net::UnixStream::connect(&front).ok();
                client.is_some()
            });
            let mut client = client.unwrap();
            // nginx may wait for the rest of a request.
            let patience = std::time::Duration::from_millis(500);
            client.set_read_timeout(Some(patience)).unwrap();
            client.write_all(request.as_bytes()).unwrap();
            let mut answer = Vec::new();
            let _ = client.read_to_end(&mut answer);
            text(&answer)
        };
        // Both servers see a request that is not hidden.
        let plain = ask("GET /hello.txt HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert!(plain.contains("hello\n"), "{plain}");
        let attempts = smuggling_attempts();
        assert_eq!(attempts.len(), 38);
        for (n, case) in attempts.iter().enumerate() {
            let hidden =
                format!("GET /hidden-{n} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            ask(&format!(
                "POST /open-{n} HTTP/1.1\r\nHost: a\r\n{case}\r\n0\r\n\r\n{hidden}"
            ));
        }
        ask("GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let mut reached = Vec::new();
        while let Some(line) = server.next_line() {
            let request = line.split('"').nth(1).unwrap_or_default().to_owned();
            let is_last = request.starts_with("GET /last ");
            reached.push(request);
            if is_last {
                break;
            }
        }
        let mut told = String::new();
        common::eventually(|| {
            told = fs::read_to_string(&seen).unwrap_or_default();
            told.contains("GET /last ")
        });
        assert!(
            reached
                .iter()
                .any(|line| line.starts_with("GET /hello.txt ")),
            "{reached:?}"
        );
        for request in &reached {
            let is_seen = told.lines().any(|line| line == request);
            assert!(is_seen, "{model}: nginx has not seen {request:?}: {told}");
        }
    }
}

/// A server that reads an ambiguous request in either way sends only one answer, an error, and never
/// serves the hidden request.
#[test]
fn nothing_is_smuggled_under_any_model() {
    let (_dir, root) = site();
    let hidden = "GET /hello.txt HTTP/1.1\r\nHost: a\r\n\r\n";
    let chunked = "Transfer-Encoding: chunked\r\n";
    let cases = smuggling_attempts();
    for model in MODELS {
        let server = start(model, &root, &["--access-log", "off"]);
        for case in &cases {
            let request = format!("POST / HTTP/1.1\r\nHost: a\r\n{case}\r\n0\r\n\r\n{hidden}");
            let mut client = client(&server, 0);
            client.write_all(request.as_bytes()).unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).unwrap();
            let answer = text(&answer);
            let status = &answer[9..12];
            assert!(
                ["400", "413", "501"].contains(&status),
                "{model} {case:?}: {answer}"
            );
            assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{model} {case:?}");
        }
        // Fields with one reading make two requests, if the model serves a second request.
        let both = format!("POST / HTTP/1.1\r\nHost: a\r\n{chunked}\r\n0\r\n\r\n{hidden}");
        let both = both.replace(
            "GET /hello.txt HTTP/1.1\r\n",
            "GET /hello.txt HTTP/1.1\r\nConnection: close\r\n",
        );
        let mut client = client(&server, 0);
        client.write_all(both.as_bytes()).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        let expected = if model == "sequential" { 1 } else { 2 };
        assert_eq!(
            text(&answer).matches("HTTP/1.1 ").count(),
            expected,
            "{model}"
        );
    }
}

/// Chunked bodies whose framing is wrong. The server drops the bodies, but must parse them, because
/// the next request follows.
#[test]
fn bodies_that_are_malformed_end_the_connection() {
    let (_dir, root) = site();
    let server = start("threading", &root, &["--access-log", "off"]);
    let long = "x".repeat(5000);
    for body in [
        "1\r\nab\r\n0\r\n\r\n",
        "1\na\n0\n\n",
        "1\r\na\n0\r\n\r\n",
        "0x1\r\na\r\n0\r\n\r\n",
        "-1\r\na\r\n0\r\n\r\n",
        "+1\r\na\r\n0\r\n\r\n",
        "\r\n0\r\n\r\n",
        "1 \r\na\r\n0\r\n\r\n",
        "10000000000000000\r\na\r\n0\r\n\r\n",
        "FFFFFFFFFFFFFFFF\r\na\r\n0\r\n\r\n",
        &format!("1;{long}\r\na\r\n0\r\n\r\n"),
        "1;a\nb\r\na\r\n0\r\n\r\n",
        "0\r\nX : y\r\n\r\n",
        "0\r\n X: y\r\n\r\n",
        &format!("0\r\n{}\r\n", "X: y\r\n".repeat(101)),
        &format!("0\r\n{}\r\n", format!("X: {long}\r\n").repeat(14)),
    ] {
        let request = format!(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}\
             GET /hello.txt HTTP/1.1\r\nHost: a\r\n\r\n"
        );
        let mut client = client(&server, 0);
        client.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        let shown = &body[..body.len().min(40)];
        assert_eq!(text(&answer).matches("HTTP/1.1 ").count(), 1, "{shown:?}");
        assert!(text(&answer).starts_with("HTTP/1.1 405 "), "{shown:?}");
    }
}

/// The server cancels a slow client before a request, within its head, and within a body that the
/// server drops.
#[test]
fn who_dawdles_is_cut() {
    let (_dir, root) = site();
    for model in MODELS {
        let limits = [
            "--first-byte-timeout",
            "200ms",
            "--min-receive-rate",
            "1000:200ms",
        ];
        let server = start(model, &root, &limits);
        let mut silent = client(&server, 0);
        assert!(is_closed(&mut silent), "{model}");

        let mut slow = client(&server, 0);
        slow.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n").unwrap();
        let mut answer = Vec::new();
        slow.read_to_end(&mut answer).unwrap();
        assert!(
            text(&answer).starts_with("HTTP/1.1 408 "),
            "{model}: {}",
            text(&answer)
        );

        let mut slow = client(&server, 0);
        slow.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nx")
            .unwrap();
        let mut answer = Vec::new();
        slow.read_to_end(&mut answer).unwrap();
        assert!(
            text(&answer).starts_with("HTTP/1.1 405 "),
            "{model}: {}",
            text(&answer)
        );

        let mut fast = client(&server, 0);
        fast.write_all(b"GET /hello.txt HTTP/1.0\r\n\r\n").unwrap();
        answer.clear();
        fast.read_to_end(&mut answer).unwrap();
        assert!(text(&answer).ends_with("hello\n"), "{model}");
    }
}

/// The server sends the same files over TLS as over TCP, and the access log counts the same bytes.
#[test]
fn over_tls_under_every_model() {
    let (dir, root) = site();
    let big: Vec<u8> = (0..2_000_000u32).flat_map(u32::to_le_bytes).collect();
    fs::write(Path::new(&root).join("big"), &big).unwrap();
    let certs = dir.path().join("certs");
    let path = |name: &str| certs.join(name).to_str().unwrap().to_owned();
    let made = socketserver()
        .args(["cert", "127.0.0.1", "--dir"])
        .arg(&certs)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", text(&made.stderr));
    let (cert, key, ca) = (path("127.0.0.1.pem"), path("127.0.0.1.key"), path("ca.pem"));
    for model in MODELS {
        let tls = [
            "-l",
            "tls://127.0.0.1:0",
            "--tls-cert",
            &cert,
            "--tls-key",
            &key,
        ];
        let server = Server::start(&[&["http", &root, "-c", model], &tls[..]].concat(), 1);
        let url = format!("https://{}", server.address(0));
        let to = dir.path().join("got");
        let curl = |args: &[&str]| {
            let common = ["-sS", "--http1.1", "--max-time", "20", "--cacert", &ca];
            run(&mut Command::new("curl"), common.iter().chain(args), b"")
        };
        let Some(output) = curl(&["-o", to.to_str().unwrap(), &format!("{url}/big")]) else {
            return;
        };
        assert!(output.status.success(), "{model}: {}", text(&output.stderr));
        assert!(fs::read(&to).unwrap() == big, "{model}");
        let line = server.says();
        assert!(line.ends_with(" 200 8000000"), "{model}: {line}");
        let pair = [format!("{url}/hello.txt"), format!("{url}/inside")];
        assert_eq!(
            text(&curl(&[&*pair[0], &*pair[1]]).unwrap().stdout),
            "hello\nhello\n"
        );
        let part = curl(&["-r", "4000000-4000003", &format!("{url}/big")]).unwrap();
        assert_eq!(part.stdout, 1_000_000u32.to_le_bytes(), "{model}");
    }
}
