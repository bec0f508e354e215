//! Tests `--config`, `--check-config` and reloading from outside.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{
    MODELS, PATIENCE, Server, client, client_at, eventually, exchange, exists, is_closed, lets_in,
    run, socketserver, text,
};

/// A configuration file that tests rewrite.
struct Config {
    dir: tempfile::TempDir,
}

impl Config {
    fn new(content: &str) -> Self {
        let config = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        config.write(content);
        config
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("server.toml")
    }

    /// Replaces the file atomically, as an editor should.
    fn write(&self, content: impl AsRef<[u8]>) {
        let new = self.dir.path().join("new");
        fs::write(&new, content).unwrap();
        fs::rename(new, self.path()).unwrap();
    }

    fn start(&self, args: &[&str], endpoints: usize) -> Server {
        let mut command = socketserver();
        command.args(args).arg("--config").arg(self.path());
        Server::launch(command.stdin(std::process::Stdio::null()), endpoints)
    }

    fn reload(&self, server: &Server, content: &str) -> String {
        self.write(content);
        server.signal("HUP");
        server.logged("reloaded")
    }

    fn check(&self, args: &[&str]) -> Output {
        let mut command = socketserver();
        command.args(args).arg("--config").arg(self.path());
        run(&mut command, ["--check-config"], b"").unwrap()
    }
}

#[test]
fn a_file_says_what_the_command_line_does_not() {
    let config = Config::new(
        "listen = ['tcp://127.0.0.1:0', 'tcp://127.0.0.1:0']
         max-per-peer = 1
         concurrency = 'pooled'
         [upper]
         log-level = 'debug'",
    );
    let mut server = config.start(&["upper"], 2);
    let mut first = client(&server, 1);
    assert_eq!(exchange(&mut first, b"a"), b"A");
    assert!(!lets_in(&server, 1));
    drop(first);
    server.signal("TERM");
    assert!(server.wait().success());
    // A list on the command line replaces the list of the file.
    let server = config.start(
        &["upper", "-l", "tcp://127.0.0.1:0", "--max-per-peer", "2"],
        1,
    );
    let mut two: Vec<_> = (0..2).map(|_| client(&server, 0)).collect();
    assert!(two.iter_mut().all(|client| exchange(client, b"a") == b"A"));
    assert!(!lets_in(&server, 0));
}

/// The server does not wait for any kind of file at the path, and logs the error in one line.
#[test]
fn what_is_no_configuration_is_refused_at_once() {
    let config = Config::new("");
    let dir = config.dir.path();
    let long = dir.join("long");
    fs::File::create(&long).unwrap().set_len(100 << 20).unwrap();
    let pipe = dir.join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
    let binary = dir.join("binary");
    fs::write(&binary, b"rate = 5\n# \xff\n").unwrap();
    let nested = dir.join("nested");
    fs::write(&nested, format!("rate = {}", "[".repeat(100_000))).unwrap();
    for (path, reason) in [
        (long.as_path(), "longer than 1MiB"),
        (Path::new("/dev/zero"), "not a regular file"),
        (&pipe, "not a regular file"),
        (dir, "directory"),
        (&binary, "binary:2: the file is not UTF-8"),
        (&nested, "nested:1"),
        (&dir.join("none"), "No such file"),
        (&dir.join("server.toml/x"), "Not a directory"),
    ] {
        let before = Instant::now();
        let mut command = socketserver();
        let got = run(
            command.args(["upper", "--config"]).arg(path),
            ["-l", "tcp://127.0.0.1:0"],
            b"",
        );
        let got = got.unwrap();
        let complaint = text(&got.stderr);
        assert_eq!(got.status.code(), Some(2), "{complaint}");
        assert_eq!(complaint.trim_end().lines().count(), 1, "{complaint}");
        assert!(complaint.contains(reason), "{reason}: {complaint}");
        assert!(complaint.len() < 1000, "{}", complaint.len());
        assert!(before.elapsed() < Duration::from_secs(5), "{reason}");
    }
}

#[test]
fn a_check_binds_nothing_and_can_be_fed_back() {
    let taken = Server::start(&["upper", "-l", "tcp://127.0.0.1:0"], 1);
    let config = Config::new("");
    let path = config.dir.path().join("s");
    config.write(format!(
        "listen = ['{}', 'unix://{}']\nrate = 7\n[chat]\nframing = 'lines'\n",
        taken.endpoints[0],
        path.display()
    ));
    let got = config.check(&["chat", "--max-per-peer", "3"]);
    assert_eq!(text(&got.stderr), "");
    assert!(got.status.success());
    assert!(!exists(&path));
    let printed = text(&got.stdout);
    for line in ["framing = \"lines\"", "rate = 7", "max-per-peer = 3"] {
        assert!(printed.lines().any(|found| found == line), "{printed}");
    }
    config.write(&printed);
    let again = config.check(&["chat"]);
    assert_eq!(text(&again.stdout), printed);
    // Without a file, the program writes a first configuration.
    let got = run(
        &mut socketserver(),
        ["echo", "--rate", "5", "--check-config"],
        b"",
    )
    .unwrap();
    assert!(text(&got.stdout).contains("\nrate = 5\n"));
}

#[test]
fn a_check_finds_what_would_fail_later() {
    let config = Config::new("");
    let dir = config.dir.path().display().to_string();
    for (program, content, reason) in [
        (
            "upper",
            "listen = 'tcp://no-such-host.invalid:80'".to_owned(),
            "tcp://no-such-host.invalid:80",
        ),
        (
            "upper",
            format!("listen = 'unix://{dir}/no/s'"),
            "No such file",
        ),
        (
            "upper",
            format!("listen = 'unix://{dir}/server.toml'"),
            "not a socket",
        ),
        (
            "upper",
            format!("listen = 'unix:///tmp/{}'", "x".repeat(200)),
            "cannot listen on",
        ),
        (
            "chat",
            "listen = 'udp://127.0.0.1:0'".to_owned(),
            "needs connections",
        ),
        ("chat", "concurrency = 'forking'".to_owned(), "one room"),
        (
            "collect",
            "output = '/nonexistent/x'".to_owned(),
            "cannot write to /nonexistent/x",
        ),
        ("collect", format!("output = '{dir}'"), "directory"),
        (
            "command",
            "auth-token-file = '/nonexistent/x'".to_owned(),
            "/nonexistent/x",
        ),
        (
            "command",
            "listen = 'tcp://0.0.0.0:0'".to_owned(),
            "--auth-token-file",
        ),
        (
            "command",
            "workers = 33\nconcurrency = 'green'".to_owned(),
            "32 threads",
        ),
        ("upper", "deny = ['all'\n".to_owned(), "server.toml:"),
    ] {
        config.write(&content);
        let got = config.check(&[program]);
        let complaint = text(&got.stderr);
        assert_eq!(got.status.code(), Some(2), "{content}: {complaint}");
        assert_eq!(complaint.trim_end().lines().count(), 1, "{complaint}");
        assert!(complaint.contains(reason), "{content}: {complaint}");
        assert_eq!(text(&got.stdout), "");
    }
}

const TWO: [&str; 4] = ["-l", "tcp://127.0.0.1:0", "-l", "tcp://127.0.0.1:0"];

#[test]
fn rules_change_for_all_endpoints_while_clients_stay() {
    // A sequential server is busy with the connected client.
    for model in MODELS.into_iter().filter(|&model| model != "sequential") {
        let config = Config::new("");
        let args = [&["upper", "-c", model][..], &TWO].concat();
        let server = config.start(&args, 2);
        let mut present: Vec<_> = (0..2).map(|index| client(&server, index)).collect();
        let mut stay = || {
            for client in &mut present {
                assert_eq!(exchange(client, b"here"), b"HERE", "{model}");
            }
        };
        stay();
        let line = config.reload(&server, "deny = 'all'");
        assert!(line.contains("changed: deny"), "{line}");
        stay();
        assert!(!lets_in(&server, 0) && !lets_in(&server, 1), "{model}");
        // Existing connections count, and the peer has one on each endpoint.
        config.reload(&server, "max-per-peer = 1");
        stay();
        assert!(!lets_in(&server, 0) && !lets_in(&server, 1), "{model}");
        let line = config.reload(&server, "");
        assert!(line.contains("changed: max-per-peer"), "{line}");
        assert!(lets_in(&server, 0) && lets_in(&server, 1), "{model}");
        stay();
    }
}

#[test]
fn a_sequential_server_reloads_while_it_is_busy() {
    let config = Config::new("");
    let server = config.start(&["upper", "-c", "sequential", "-l", "tcp://127.0.0.1:0"], 1);
    let mut present = client(&server, 0);
    assert_eq!(exchange(&mut present, b"here"), b"HERE");
    config.reload(&server, "deny = 'all'");
    assert_eq!(exchange(&mut present, b"here"), b"HERE");
    drop(present);
    assert!(!lets_in(&server, 0));
}

#[test]
fn limits_on_waiting_change_for_new_connections() {
    for model in MODELS.into_iter().filter(|&model| model != "sequential") {
        let config = Config::new("idle-timeout = '1h'");
        let server = config.start(&["upper", "-c", model, "-l", "tcp://127.0.0.1:0"], 1);
        let mut old = client(&server, 0);
        assert_eq!(exchange(&mut old, b"here"), b"HERE");
        config.reload(&server, "idle-timeout = '100ms'");
        let mut new = client(&server, 0);
        assert_eq!(exchange(&mut new, b"here"), b"HERE");
        assert!(is_closed(&mut new), "{model}: cut for its silence");
        assert_eq!(exchange(&mut old, b"still"), b"STILL", "{model}");
    }
}

#[test]
fn the_level_of_the_log_changes() {
    for model in ["threading", "forking"] {
        let config = Config::new("log-level = 'info'");
        let server = config.start(&["upper", "-c", model, "-l", "tcp://127.0.0.1:0"], 1);
        assert!(lets_in(&server, 0));
        server.logged("disconnected");
        config.write("log-level = 'error'");
        server.signal("HUP");
        eventually(|| {
            server.log();
            lets_in(&server, 0) && server.log().is_empty()
        });
        config.reload(&server, "log-level = 'info'");
        assert!(lets_in(&server, 0));
        server.logged("disconnected");
    }
}

/// A file with a mistake has no effect. The rule before the mistake has no effect either.
#[test]
fn a_file_that_is_wrong_changes_nothing() {
    for model in MODELS {
        let config = Config::new("idle-timeout = '1h'");
        let server = config.start(&[&["upper", "-c", model][..], &TWO].concat(), 2);
        let refused = |reason: &str| {
            server.signal("HUP");
            let line = server.logged("not reloaded");
            assert!(line.contains(reason), "{reason}: {line}");
            assert!(lets_in(&server, 0) && lets_in(&server, 1), "{reason}");
        };
        for (content, reason) in [
            (
                "deny = 'all'\nidle-timeot = '1h'",
                "server.toml:2: idle-timeot: ",
            ),
            ("deny = 'all'\nrate = true", "server.toml:2: rate: "),
            (
                "deny = 'all'\nrate = 5\nrate = 5",
                "server.toml:3: rate: duplicate key",
            ),
            (
                "deny = 'all'\nlisten = 'nonsense'",
                "server.toml:2: listen: ",
            ),
            ("deny = 'all'\n[chat]\nx = 5", "server.toml:3: x: "),
            ("deny = 'all'\n[", "server.toml:2: "),
        ] {
            config.write(content);
            refused(reason);
        }
        config.write(b"deny = 'all' # \xff");
        refused("UTF-8");
        fs::remove_file(config.path()).unwrap();
        refused("No such file");
        fs::create_dir(config.path()).unwrap();
        refused("directory");
        fs::remove_dir(config.path()).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, config.path(), rustix::fs::Mode::RWXU).unwrap();
        refused("not a regular file");
        fs::remove_file(config.path()).unwrap();
        let long = fs::File::create(config.path()).unwrap();
        long.set_len(100 << 20).unwrap();
        refused("longer than 1MiB");
        // The configuration applies again when the file is valid.
        let line = config.reload(&server, "deny = 'all'");
        assert!(line.contains("changed: deny, idle-timeout"), "{line}");
        assert!(!lets_in(&server, 0) && !lets_in(&server, 1));
    }
}

#[test]
fn options_that_could_not_be_started_with_are_refused() {
    let config = Config::new("");
    let server = config.start(&["chat", "-l", "tcp://127.0.0.1:0"], 1);
    config.write("deny = 'all'\nconcurrency = 'forking'");
    server.signal("HUP");
    server.logged("one room");
    let _present = TcpStream::connect(server.address(0)).unwrap();
    server.logged("connected");
}

#[test]
fn what_takes_a_restart_is_named_and_the_command_line_wins() {
    let config = Config::new("workers = 5");
    let args = ["upper", "-l", "tcp://127.0.0.1:0", "--max-per-peer", "1"];
    let server = config.start(&args, 1);
    let mut present = client(&server, 0);
    assert_eq!(exchange(&mut present, b"a"), b"A");
    let new = "workers = 6\nlisten = 'tcp://127.0.0.1:1'\nmax-per-peer = 50\nat-limit = 'reject'\nrate = 1000";
    for changed in ["changed: rate", "nothing has changed that can be applied"] {
        let line = config.reload(&server, new);
        assert!(line.contains(changed), "{line}");
        // The server logs the message at each reload until the restart.
        let line = server.logged("takes a restart");
        assert!(
            line.contains("WARN") && line.ends_with("restart: at-limit, workers"),
            "{line}"
        );
    }
    assert!(!lets_in(&server, 0), "the command line wins");
    let line = config.reload(&server, "workers = 5\nrate = 1000");
    assert!(line.contains("nothing has changed"), "{line}");
    assert!(!server.log().iter().any(|line| line.contains("restart")));
}

#[test]
fn the_console_reloads() {
    let config = Config::new("");
    let path = config.path();
    for model in MODELS {
        config.write("");
        let args = ["upper", "-c", model, "-l", "tcp://127.0.0.1:0", "--config"];
        let mut server = Server::with_console(&[&args[..], &[path.to_str().unwrap()]].concat(), 1);
        config.write("deny = 'all'\nworkers = 7");
        server.type_in("reload");
        assert_eq!(server.says(), "reloaded; changed: deny");
        assert_eq!(server.says(), "changed, but takes a restart: workers");
        assert!(!lets_in(&server, 0), "{model}");
        config.write("deny = 'all'\nx = 5");
        server.type_in("reload");
        let answer = server.says();
        assert!(
            answer.starts_with("not reloaded, everything stays as it was: "),
            "{answer}"
        );
        assert!(answer.contains("server.toml:2: x: "), "{answer}");
    }
    let mut server = Server::with_console(&["upper", "-l", "tcp://127.0.0.1:0"], 1);
    server.type_in("reload");
    assert!(server.says().contains("started without --config"));
}

#[test]
fn a_hundred_reloads_lose_nobody() {
    for model in MODELS {
        let config = Config::new("");
        let server = config.start(
            &[
                "upper",
                "-c",
                model,
                "-l",
                "tcp://127.0.0.1:0",
                "--log-level",
                "warn",
            ],
            1,
        );
        let (over, served) = (AtomicBool::new(false), AtomicU64::new(0));
        let address = server.address(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        let mut client = client_at(address);
                        for _ in 0..3 {
                            assert_eq!(exchange(&mut client, b"hello"), b"HELLO");
                        }
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for n in 0..100 {
                let before = served.load(Ordering::Relaxed);
                // The test changes every kind of setting that admits all clients.
                config.write(format!(
                    "rate = {}\nmax-active = {}\nidle-timeout = '{}s'\ndeny = '10.0.0.{n}'\n",
                    100_000 + n,
                    1000 + n,
                    100 + n
                ));
                server.signal("HUP");
                let end = Instant::now() + PATIENCE;
                while served.load(Ordering::Relaxed) == before && Instant::now() < end {
                    std::thread::yield_now();
                }
            }
            over.store(true, Ordering::Relaxed);
        });
        assert!(served.load(Ordering::Relaxed) >= 100, "{model}");
        assert_eq!(server.log(), Vec::<String>::new(), "{model}");
        config.write("deny = 'all'");
        server.signal("HUP");
        eventually(|| !lets_in(&server, 0));
    }
}

/// The test sends more signals than the pipe that reports them can hold.
#[test]
fn a_storm_of_signals_is_one() {
    for model in MODELS {
        let config = Config::new("");
        let server = config.start(&["upper", "-c", model, "-l", "tcp://127.0.0.1:0"], 1);
        let pid = server.pid().to_string();
        let script = "i=0; while [ $i -lt 2000 ]; do kill -HUP $0 || exit 1; i=$((i+1)); done";
        let status = Command::new("sh")
            .args(["-c", script, &pid])
            .status()
            .unwrap();
        assert!(status.success());
        config.write("deny = 'all'");
        server.signal("HUP");
        server.logged("changed: deny");
        assert!(!lets_in(&server, 0), "{model}");
    }
}

#[test]
fn options_without_effect_are_refused() {
    for (args, needed) in [
        (&["upper", "--queue-time", "1s"][..], "--at-limit queue"),
        (&["upper", "--queue-places", "1"], "--at-limit queue"),
        (&["upper", "--proxy-timeout", "1s"], "--proxy-from"),
        (&["upper", "--tls-timeout", "1s"], "tls://"),
        (&["upper", "--max-amplification", "2"], "udp://"),
        (&["upper", "--reject-low-ports"], "udp://"),
        (&["chat", "--web-ping", "1s"], "--web"),
    ] {
        let args = [args, &["-l", "tcp://127.0.0.1:0"]].concat();
        let output = run(&mut socketserver(), args, b"").unwrap();
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains("has no effect without"), "{told}");
        assert!(told.contains(needed), "{told}");
    }
}
