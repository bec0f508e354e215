//! A real browser without a window, driven by [WebDriver](https://www.w3.org/TR/webdriver2/): JSON over
//! HTTP, on loopback.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::Guarded;

/// The deadline of each call. A browser starts slowly on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Browser {
    port: u16,
    session: String,
    /// The driver, killed after the end of the session. A driver that is killed earlier leaves its
    /// browser behind.
    _driver: Guarded,
}

impl Browser {
    /// Starts a browser. Prints a line and returns `None` if the machine has no browser.
    pub fn start() -> Option<Self> {
        let mut driver = match driver() {
            Ok(driver) => Guarded(driver),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                println!("SKIPPED: chromedriver is not installed");
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let mut told = BufReader::new(driver.0.stdout.take().unwrap());
        let port = loop {
            let mut line = String::new();
            assert!(
                told.read_line(&mut line).unwrap() > 0,
                "the driver does not start"
            );
            if let Some((_, port)) = line.split_once("started successfully on port ") {
                break port.trim_end().trim_end_matches('.').parse().unwrap();
            }
        };
        // A thread drains the driver's later output, so that its pipe stays empty.
        std::thread::spawn(move || std::io::copy(&mut told, &mut std::io::sink()));
        let mut browser = Self {
            port,
            session: String::new(),
            _driver: driver,
        };
        let options = json!({"capabilities": {"alwaysMatch": {
            "acceptInsecureCerts": true,
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"args": [
                "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--disable-background-networking", "--no-first-run", "--window-size=900,700",
                // The browser reaches only this machine.
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
            ]},
        }}});
        let made = browser.call("POST", "/session", &options);
        let made = match made {
            Ok(made) => made,
            // The driver is installed, but the browser is missing or has another version.
            Err(error) if error.contains("cannot find") || error.contains("only supports") => {
                println!("SKIPPED: no browser for chromedriver: {error}");
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        browser.session = format!("/session/{}", made["sessionId"].as_str().unwrap());
        Some(browser)
    }

    pub fn open(&self, url: &str) {
        self.ask("/url", &json!({ "url": url }));
    }

    /// Runs a script and returns its result.
    #[track_caller]
    pub fn run(&self, script: &str) -> Value {
        self.ask("/execute/sync", &json!({"script": script, "args": []}))
    }

    /// Waits until a script returns a true value.
    #[track_caller]
    pub fn until(&self, what: &str, condition: &str) {
        let end = Instant::now() + PATIENCE;
        while self.run(&format!("return Boolean({condition});")) != json!(true) {
            assert!(
                Instant::now() < end,
                "{what} never came to be; {:#?}",
                self.run("return document.body.innerText")
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Types into the field by key presses. `\u{e007}` is Enter.
    #[track_caller]
    pub fn type_in(&self, text: &str) {
        let found = self.ask(
            "/element",
            &json!({"using": "css selector", "value": "#text"}),
        );
        // The standard defines this key for all drivers.
        let id = found["element-6066-11e4-a52e-4f735466cecf"]
            .as_str()
            .unwrap();
        self.ask(&format!("/element/{id}/value"), &json!({ "text": text }));
    }

    /// Returns the messages of the browser's log, such as blocked scripts and styles and errors.
    pub fn complaints(&self) -> Vec<String> {
        let log = self.ask("/se/log", &json!({"type": "browser"}));
        let entries = log.as_array().unwrap().iter();
        entries
            .map(|entry| entry["message"].as_str().unwrap().to_owned())
            .collect()
    }

    #[track_caller]
    pub fn ask(&self, path: &str, body: &Value) -> Value {
        let path = format!("{}{path}", self.session);
        match self.call("POST", &path, body) {
            Ok(value) => value,
            Err(error) => panic!("{path} {body}: {error}"),
        }
    }

    /// Sends a request on a connection of its own.
    fn call(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let mut driver = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        driver.set_read_timeout(Some(PATIENCE)).unwrap();
        let body = body.to_string();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            self.port,
            body.len()
        );
        driver.write_all((head + &body).as_bytes()).unwrap();
        let mut driver = BufReader::new(driver);
        let (mut head, mut length) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            let begin = head.len();
            assert!(
                driver.read_line(&mut head).unwrap() > 0,
                "no answer: {head}"
            );
            let line = head[begin..].to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        driver.read_exact(&mut body).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let value = body["value"].clone();
        match head.contains(" 200 OK") {
            true => Ok(value),
            false => Err(value["message"].to_string()),
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            let _ = self.call("DELETE", &self.session, &json!({}));
        }
    }
}

fn driver() -> std::io::Result<Child> {
    Command::new("chromedriver")
        .arg("--port=0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
}
