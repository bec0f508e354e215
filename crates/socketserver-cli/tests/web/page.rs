//! Tests of the page in a real browser, in a room with members that use a terminal.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use serde_json::json;

use crate::common::{Server, client, hear, socketserver, text};
use crate::driver::Browser;
use crate::{MODELS, chat};

const ENTER: char = '\u{e007}';

/// Opens the page and returns its name in the room.
fn join(browser: &Browser, server: &Server) -> String {
    browser.open(&server.endpoints[1]);
    is_connected(browser)
}

fn is_connected(browser: &Browser) -> String {
    browser.until(
        "a connection",
        "document.getElementById('status').dataset.state === 'open'",
    );
    let me = browser.run("return document.getElementById('me').textContent");
    me.as_str()
        .unwrap()
        .strip_prefix("You are ")
        .unwrap()
        .to_owned()
}

/// Returns the messages on the page, each with the name of its sender.
fn heard(browser: &Browser) -> Vec<(String, String)> {
    let all = browser.run(
        "return [...document.querySelectorAll('.message')].map(one => \
         [one.querySelector('.name').textContent, one.querySelector('.text').textContent])",
    );
    serde_json::from_value(all).unwrap()
}

fn hears(browser: &Browser, count: usize) -> Vec<(String, String)> {
    let enough = format!("document.querySelectorAll('.message').length >= {count}");
    browser.until("a message", &enough);
    heard(browser)
}

/// Connects a terminal and waits until it is in the room.
fn enter(server: &Server, browser: &Browser) -> (TcpStream, String) {
    let before = heard(browser).len();
    let mut one = client(server, 0);
    one.write_all(b"here\n").unwrap();
    let name = one.local_addr().unwrap().to_string();
    hear(&mut one, format!("{name} here\n").as_bytes());
    assert_eq!(
        hears(browser, before + 1)[before],
        (name.clone(), "here".into())
    );
    (one, name)
}

#[test]
fn browsers_and_terminals_meet() {
    let Some(browser) = Browser::start() else {
        return;
    };
    for model in MODELS {
        let server = chat(model, &[]);
        let me = join(&browser, &server);
        let (mut terminal, name) = enter(&server, &browser);
        // The browser sends to the terminal, with the line end of a terminal's line.
        browser.type_in(&format!("grüße{ENTER}"));
        hear(&mut terminal, format!("{me} grüße\n").as_bytes());
        let own = hears(&browser, 2)[1].clone();
        assert_eq!(own, ("You".into(), "grüße".into()));
        // The terminal sends to the browser. The page shows HTML as text, and replaces bytes that
        // are not text.
        for (said, shown) in [
            (
                &b"<b>bold</b><script>document.title = 'owned'</script>"[..],
                None,
            ),
            (b"a\xffb", Some("a\u{fffd}b")),
            ("  two  spaces\nand a line".as_bytes(), None),
        ] {
            let before = heard(&browser).len();
            terminal.write_all(said).unwrap();
            hear(&mut terminal, &[name.as_bytes(), b" ", said].concat());
            let last = hears(&browser, before + 1)[before].clone();
            let shown = shown.map_or_else(|| text(said), str::to_owned);
            assert_eq!(last, (name.clone(), shown), "{model}");
        }
        assert_eq!(browser.run("return document.title"), json!("Chat"));
        // The browser leaves by the same command as a terminal.
        browser.type_in(&format!("quit{ENTER}"));
        browser.until(
            "the end",
            "document.getElementById('status').textContent === 'You have left'",
        );
        terminal.write_all(b"alone").unwrap();
        hear(&mut terminal, format!("{name} alone").as_bytes());
        browser.run("document.getElementById('again').click()");
        assert_ne!(is_connected(&browser), me);
        assert_eq!(browser.complaints(), [""; 0], "{model}");
    }
}

#[test]
fn the_page_says_that_it_is_alone_and_comes_back() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let mut server = chat("green", &[]);
    join(&browser, &server);
    let (_, port) = server.endpoints[1].rsplit_once(':').unwrap();
    let web = format!("http://127.0.0.1:{port}");
    server.signal("TERM");
    assert!(server.wait().success());
    browser.until(
        "a notice",
        "document.getElementById('again').innerText.includes('Connect now (')",
    );
    assert_eq!(
        browser.run("return document.getElementById('send').disabled"),
        json!(true)
    );
    // The page keeps input that is typed while it is disconnected.
    browser.type_in(&format!("later{ENTER}"));
    let args = ["chat", "-l", "tcp://127.0.0.1:0", "--web", &web];
    let server = Server::start(&args, 2);
    let me = is_connected(&browser);
    browser.until(
        "a notice",
        "document.body.innerText.includes('Connected again')",
    );
    let mut terminal = client(&server, 0);
    terminal.write_all(b"here").unwrap();
    let name = terminal.local_addr().unwrap();
    hear(&mut terminal, format!("{name} here").as_bytes());
    browser.type_in(&ENTER.to_string());
    hear(&mut terminal, format!("{me} later\n").as_bytes());
}

#[test]
fn what_is_too_long_is_said_before_it_is_sent() {
    let Some(browser) = Browser::start() else {
        return;
    };
    for (framing, longest) in [("chunks", 8192), ("lines", 65_537)] {
        let server = chat("threading", &["--framing", framing]);
        join(&browser, &server);
        let (mut terminal, _) = enter(&server, &browser);
        let fill = |bytes: usize| {
            browser.run(&format!(
                "const text = document.getElementById('text'); text.value = 'x'.repeat({bytes}); \
                 text.dispatchEvent(new Event('input')); \
                 return document.getElementById('hint').textContent"
            ))
        };
        assert_eq!(fill(longest), json!("This is too long by 1 bytes."));
        assert_eq!(
            browser.run("return document.getElementById('send').disabled"),
            json!(true)
        );
        assert_eq!(fill(longest - 1), json!(""));
        browser.run("document.getElementById('send').click()");
        let last = hears(&browser, 2)[1].clone();
        assert_eq!((last.0, last.1.len()), ("You".into(), longest - 1));
        let me = is_connected(&browser);
        hear(
            &mut terminal,
            format!("{me} {}\n", "x".repeat(longest - 1)).as_bytes(),
        );
    }
}

#[test]
fn the_page_can_come_encrypted() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let made = socketserver()
        .args(["cert", "127.0.0.1", "--dir"])
        .arg(dir.path())
        .output();
    assert!(made.unwrap().status.success());
    let file = |name| {
        dir.path()
            .join(name)
            .into_os_string()
            .into_string()
            .unwrap()
    };
    let (cert, key) = (file("127.0.0.1.pem"), file("127.0.0.1.key"));
    let args = [
        "chat",
        "-l",
        "tcp://127.0.0.1:0",
        "--web",
        "https://127.0.0.1:0",
    ];
    let tls = ["--tls-cert", &cert, "--tls-key", &key];
    let server = Server::start(&[&args[..], &tls].concat(), 2);
    assert!(server.endpoints[1].starts_with("https://"));
    let me = join(&browser, &server);
    let (mut terminal, _) = enter(&server, &browser);
    browser.type_in(&format!("encrypted{ENTER}"));
    hear(&mut terminal, format!("{me} encrypted\n").as_bytes());
}

/// A page of another origin in the same browser cannot join the room.
#[test]
fn another_page_cannot_open_the_websocket() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let server = chat("threading", &[]);
    let attempt = |address: &str| {
        browser.open(&other_site());
        browser.run(&format!(
            "const socket = new WebSocket('ws://{address}/ws'); window.outcome = ''; \
             socket.onmessage = () => window.outcome = 'open'; \
             socket.onclose = () => window.outcome ||= 'closed';"
        ));
        browser.until("an outcome", "window.outcome");
        browser.run("return window.outcome")
    };
    assert_eq!(attempt(server.address(1)), json!("closed"));
    let open = chat("threading", &["--web-origin", "any"]);
    assert_eq!(attempt(open.address(1)), json!("open"));
}

/// Serves an empty page without a policy. The page is on the same machine, because browsers block
/// access from remote pages to the machine.
fn other_site() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            // The test ignores the content of the request.
            let _ = client.read(&mut [0; 4096]);
            let page = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 20\r\n\
                        Connection: close\r\n\r\n<title>Evil</title>\n";
            let _ = client.write_all(page.as_bytes());
        }
    });
    format!("http://{address}/")
}
