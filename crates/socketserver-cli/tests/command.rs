//! Tests `socketserver command` and `command-client` from outside: the bytes on the wire, and the
//! end of all processes of a command whose client has gone.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Guarded, PATIENCE, Server, exists, run, socketserver, text};

const MODELS: [&str; 5] = ["sequential", "threading", "forking", "pooled", "green"];

/// The models that serve two clients at once.
const CONCURRENT: [&str; 4] = ["threading", "forking", "pooled", "green"];

fn start(model: &str, options: &[&str]) -> Server {
    let args = ["command", "-c", model, "-l", "tcp://127.0.0.1:0"];
    Server::start(&[&args, options].concat(), 1)
}

#[derive(Debug, PartialEq, Eq)]
struct Reply {
    header: String,
    body: Vec<u8>,
}

impl Reply {
    fn text(&self) -> String {
        text(&self.body)
    }
}

struct Client(TcpStream);

impl Client {
    fn of(server: &Server) -> Self {
        let stream = TcpStream::connect(server.address(0)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).unwrap();
    }

    fn reply(&mut self) -> Reply {
        read_reply(&mut self.0)
    }

    fn ask(&mut self, command: impl AsRef<[u8]>) -> Reply {
        self.send(command);
        self.reply()
    }

    /// Checks that the connection ends without further bytes.
    fn ends(&mut self) {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).unwrap();
        assert_eq!(text(&rest), "");
    }
}

fn read_reply(from: &mut impl Read) -> Reply {
    let mut length = [0; 4];
    from.read_exact(&mut length).unwrap();
    let mut header = vec![0; usize::try_from(i32::from_le_bytes(length)).unwrap()];
    from.read_exact(&mut header).unwrap();
    let header = text(&header);
    let digits = header.strip_prefix("{\"dataBodyLength\": ").unwrap();
    let digits: String = digits.chars().take_while(char::is_ascii_digit).collect();
    let mut body = vec![0; digits.parse().unwrap()];
    from.read_exact(&mut body).unwrap();
    Reply { header, body }
}

fn client(args: &[&str], input: &[u8]) -> Output {
    run(socketserver().arg("command-client"), args, input).unwrap()
}

fn python(script: &str, args: &[&str]) {
    if let Some(got) = run(Command::new("python3").args(["-c", script]), args, b"") {
        assert_eq!(text(&got.stdout), "ok\n", "{}", text(&got.stderr));
    }
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits for process IDs that a command writes into a file, one per line, and returns them.
fn pids(file: &Path, count: usize) -> Vec<String> {
    let read = || fs::read_to_string(file).unwrap_or_default();
    until("the command does not begin", || {
        read().matches('\n').count() >= count
    });
    read().lines().map(String::from).collect()
}

/// Returns true if the process runs. A zombie does not count.
fn is_alive(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, state)| !state.starts_with('Z'))
}

fn until_gone(pids: &[String], context: &str) {
    for pid in pids {
        until(&format!("{context}: {pid} is still there"), || {
            !is_alive(pid)
        });
    }
}

/// Waits for the end of the processes that [`endless`] started. The server must reap their shell.
fn until_cleared_away(pids: &[String], context: &str) {
    until_gone(pids, context);
    until(&format!("{context}: the shell is not reaped"), || {
        !exists(format!("/proc/{}", pids[1]))
    });
}

/// Returns a command that starts a child in the background and ends only by a signal.
fn endless(pids: &Path) -> String {
    let file = pids.display();
    format!("sleep 1000 & echo $! >> {file}; echo $$ >> {file}; wait")
}

fn token_file(dir: &Path, content: &str) -> PathBuf {
    let path = dir.join("token");
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

#[test]
fn the_bytes_are_those_that_clients_know() {
    for model in MODELS {
        let server = start(model, &[]);
        let mut client = Client::of(&server);
        client.send("echo hello");
        let expected = b"\x15\0\0\0{\"dataBodyLength\": 6}hello\n";
        let mut wire = vec![0; expected.len()];
        client.0.read_exact(&mut wire).unwrap();
        assert_eq!(text(&wire), text(expected), "{model}");
        for (command, header, body) in [
            ("printf x; echo e >&2", "{\"dataBodyLength\": 1}", "x"),
            ("echo e >&2", "{\"dataBodyLength\": 2}", "e\n"),
            ("false", "{\"dataBodyLength\": 0, \"exitStatus\": 1}", ""),
            (
                "echo x; exit 7",
                "{\"dataBodyLength\": 2, \"exitStatus\": 7}",
                "x\n",
            ),
            ("kill -9 $$", "{\"dataBodyLength\": 0, \"signal\": 9}", ""),
            ("kill $$", "{\"dataBodyLength\": 0, \"signal\": 15}", ""),
            (
                "no-such-program 2>/dev/null",
                "{\"dataBodyLength\": 0, \"exitStatus\": 127}",
                "",
            ),
            ("cat", "{\"dataBodyLength\": 0}", ""),
            (" \t\n", "{\"dataBodyLength\": 0}", ""),
            ("echo 'a\nb'\n", "{\"dataBodyLength\": 4}", "a\nb\n"),
            ("echo c\r\n", "{\"dataBodyLength\": 2}", "c\n"),
        ] {
            let reply = client.ask(command);
            assert_eq!(
                (reply.header.as_str(), reply.text().as_str()),
                (header, body),
                "{model}: {command:?}"
            );
        }
        let reply = client.ask(r"printf '\000\377\r\n\200'");
        assert_eq!(reply.body, b"\0\xff\r\n\x80");
    }
}

#[test]
fn a_python_client_gets_its_replies() {
    let script = "
import json, os, socket, struct, sys
host, port = sys.argv[1].rsplit(':', 1)
sock = socket.create_connection((host, int(port)), timeout=20)
def exactly(n):
    data = b''
    while len(data) < n:
        piece = sock.recv(min(65536, n - len(data)))
        assert piece, 'closed'
        data += piece
    return data
def run(command):
    sock.send(command.encode('utf-8'))
    header = json.loads(exactly(struct.unpack('i', exactly(4))[0]).decode('utf-8'))
    return header, exactly(header['dataBodyLength'])
assert run('echo one') == ({'dataBodyLength': 4}, b'one\\n')
assert run('pwd') == ({'dataBodyLength': len(os.getcwd()) + 1}, (os.getcwd() + '\\n').encode())
header, body = run('ls /no/such/dir')
assert b'/no/such/dir' in body and header['exitStatus'] > 0, (header, body)
header, body = run(r\"printf '\\304\\343\\272\\303'\")
assert body.decode('gbk') == '你好'
header, body = run('echo 你好')
assert body.decode('utf-8') == '你好\\n'
header, body = run(\"head -c 3000000 /dev/zero | tr '\\\\0' x\")
assert header == {'dataBodyLength': 3000000} and body == b'x' * 3000000
print('ok')
";
    for model in MODELS {
        python(script, &[start(model, &[]).address(0)]);
    }
}

#[test]
fn a_long_reply_is_whole_and_delays_nobody() {
    for model in CONCURRENT {
        let server = start(model, &["--max-commands", "1"]);
        let mut slow = Client::of(&server);
        slow.send(r"head -c 50000000 /dev/zero | tr '\0' x");
        server.logged("bytes=50000000");
        // The client has read none of the output, and the buffers between are full.
        let mut other = Client::of(&server);
        assert_eq!(
            other.ask("sleep 0.1; echo here").text(),
            "here\n",
            "{model}"
        );
        let reply = slow.reply();
        assert_eq!(reply.header, "{\"dataBodyLength\": 50000000}");
        assert!(reply.body.iter().all(|&byte| byte == b'x'), "{model}");
        assert_eq!(slow.ask("echo next").text(), "next\n");
    }
}

#[test]
fn both_streams_are_read_at_once() {
    let server = start("threading", &[]);
    let mut client = Client::of(&server);
    // The output to stderr, which is returned last, is longer than a pipe holds.
    let reply = client.ask("head -c 3000000 /dev/zero >&2; echo done");
    assert_eq!(reply.text(), "done\n");
    let reply = client.ask("head -c 3000000 /dev/zero >&2; exec >&-; head -c 5 /dev/zero >&2");
    assert_eq!(reply.body, vec![0; 3_000_005]);
}

#[test]
fn a_client_that_is_killed_leaves_nothing_running() {
    for model in MODELS {
        let server = start(model, &[]);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pids");
        let client = socketserver()
            .args([
                "command-client",
                &server.endpoints[0],
                "-c",
                &endless(&file),
            ])
            .spawn();
        let mut client = Guarded(client.unwrap());
        let running = pids(&file, 2);
        assert!(running.iter().all(|pid| is_alive(pid)));
        client.0.kill().unwrap();
        until_cleared_away(&running, model);
        server.logged("killed: the client has gone");
        assert_eq!(Client::of(&server).ask("echo on").text(), "on\n");
    }
}

#[test]
fn a_client_that_half_closes_gives_up_its_command() {
    let server = start("threading", &[]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pids");
    let mut client = Client::of(&server);
    client.send(endless(&file));
    let running = pids(&file, 2);
    client.0.shutdown(Shutdown::Write).unwrap();
    until_cleared_away(&running, "half-closed");
    client.ends();
}

#[test]
fn a_command_that_takes_too_long_is_killed() {
    for model in MODELS {
        let server = start(model, &["--time-limit", "300ms"]);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pids");
        let mut client = Client::of(&server);
        let reply = client.ask(format!("printf begun; {}", endless(&file)));
        until_cleared_away(&pids(&file, 2), model);
        assert!(reply.header.ends_with(", \"signal\": 9}"), "{reply:?}");
        let (begun, why) = reply
            .text()
            .split_once('\n')
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .unwrap();
        assert_eq!(begun, "begun");
        assert!(why.contains("300ms") && why.contains("--time-limit") && why.ends_with('\n'));
        // On a busy machine, the next command may exceed the time limit, too.
        until(model, || client.ask("echo on").text() == "on\n");
    }
}

#[test]
fn a_connection_that_is_over_does_not_blame_the_time_limit() {
    for model in MODELS {
        let server = start(model, &["--request-timeout", "1s", "--max-commands", "1"]);
        let mut client = Client::of(&server);
        client.send("sleep 1000");
        let mut rest = Vec::new();
        let _ = client.0.read_to_end(&mut rest);
        let line = server.logged("killed: ");
        assert!(line.contains("--request-timeout"), "{model}: {line}");
        assert!(!line.contains("--time-limit"), "{model}: {line}");
    }
}

#[test]
fn what_has_a_group_of_its_own_is_killed_with_the_command() {
    let dir = tempfile::tempdir().unwrap();
    for model in MODELS {
        let server = start(model, &[]);
        let file = dir.path().join(model);
        let own = format!("echo $$ >> {}; exec sleep 1000", file.display());
        // The command starts a process group in the foreground, a group below it, and a session of
        // its own.
        let command = format!(
            "setsid sh -c '{own}' & timeout 1000 sh -c 'timeout 1000 sh -c \"{}\" & {own}'; true",
            own.replace('$', "\\$")
        );
        let mut client = Client::of(&server);
        client.send(command);
        let all = pids(&file, 3);
        client.0.shutdown(Shutdown::Write).unwrap();
        client.ends();
        let session = |pid: &String| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.split(' ').nth(5) == Some(pid)
        };
        let (free, bound): (Vec<_>, Vec<_>) = all.into_iter().partition(session);
        assert_eq!((free.len(), bound.len()), (1, 2), "{model}");
        until_gone(&bound, model);
        assert!(is_alive(&free[0]), "{model}");
        let ended = Command::new("kill").args(&free).status();
        assert!(ended.unwrap().success());
    }
}

#[test]
fn a_command_that_writes_too_much_is_killed() {
    for model in MODELS {
        let server = start(model, &["--output-limit", "100KiB"]);
        let mut client = Client::of(&server);
        let reply = client.ask("yes");
        assert!(
            reply.header.ends_with(", \"signal\": 9}"),
            "{}",
            reply.header
        );
        let (output, why) = reply.body.split_at(100 << 10);
        assert_eq!(output, b"y\n".repeat(50 << 10));
        let why = text(why);
        assert!(
            why.contains("100KiB") && why.contains("--output-limit"),
            "{why}"
        );
        assert_eq!(why.matches('\n').count(), 1);
        // Output that is not returned counts, too.
        let reply = client.ask("echo out; yes >&2");
        assert!(
            reply.text().starts_with("out\nsocketserver: killed"),
            "{model}"
        );
        assert_eq!(
            client.ask("head -c 102400 /dev/zero").body,
            vec![0; 100 << 10]
        );
    }
}

#[test]
fn only_so_many_commands_run_at_once() {
    for model in CONCURRENT {
        let server = start(model, &["--max-commands", "1", "--wait-limit", "none"]);
        let dir = tempfile::tempdir().unwrap();
        let (begun, fifo) = (dir.path().join("begun"), dir.path().join("fifo"));
        let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        let mut first = Client::of(&server);
        first.send(format!(
            "echo $$ > {}; cat {}",
            begun.display(),
            fifo.display()
        ));
        pids(&begun, 1);
        // Both clients wait for a slot, and the first client leaves before its turn.
        let mut gives_up = Client::of(&server);
        gives_up.send("echo never");
        let mut second = Client::of(&server);
        second.send("echo second");
        drop(gives_up);
        server.logged("not run: the client has gone");
        second
            .0
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        assert!(
            second.0.peek(&mut [0]).is_err(),
            "{model}: it is not its turn yet"
        );
        second.0.set_read_timeout(Some(PATIENCE)).unwrap();
        fs::write(&fifo, "first\n").unwrap();
        assert_eq!(first.reply().text(), "first\n");
        assert_eq!(second.reply().text(), "second\n", "{model}");
    }
}

#[test]
fn a_command_does_not_wait_for_its_turn_for_ever() {
    let limits = ["--time-limit", "2s", "--wait-limit", "2s"];
    let server = start(
        "threading",
        &[&["--max-commands", "1"], &limits[..]].concat(),
    );
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pids");
    let mut first = Client::of(&server);
    first.send(endless(&file));
    pids(&file, 2);
    // The others begin well within the time of the first command. When the first command ends, the
    // server runs one of the others. The waiting time of the other ends before that command does.
    std::thread::sleep(Duration::from_millis(700));
    let mut others = [Client::of(&server), Client::of(&server)];
    for client in &mut others {
        client.send(endless(&file));
    }
    assert!(first.reply().text().contains("--time-limit"));
    let mut replies = others.map(|mut client| client.reply());
    replies.sort_by_key(|reply| reply.header.contains("signal"));
    assert!(
        replies[0].header.ends_with(", \"exitStatus\": 125}"),
        "{replies:?}"
    );
    assert!(replies[0].text().contains("--max-commands"), "{replies:?}");
    until("nothing is free", || {
        Client::of(&server).ask("echo free").text() == "free\n"
    });
}

#[test]
fn a_client_is_told_in_time_that_all_places_are_taken() {
    std::thread::scope(|scope| {
        for model in CONCURRENT {
            scope.spawn(move || {
                let server = start(model, &[]);
                let dir = tempfile::tempdir().unwrap();
                let file = dir.path().join("pids");
                let holders: [Client; 16] = std::array::from_fn(|_| {
                    let mut client = Client::of(&server);
                    client.send(format!("echo $$ >> {}; exec sleep 50", file.display()));
                    client
                });
                pids(&file, 16);
                let mut client = Client::of(&server);
                let began = Instant::now();
                let reply = client.ask("echo here");
                let took = began.elapsed();
                assert_eq!(
                    reply.header,
                    format!(
                        "{{\"dataBodyLength\": {}, \"exitStatus\": 125}}",
                        reply.body.len()
                    ),
                    "{model}"
                );
                let why = "socketserver: busy: all 16 places are taken; try again later";
                assert!(reply.text().starts_with(why), "{model}: {}", reply.text());
                assert!(took < Duration::from_secs(10), "{model}: {took:?}");
                // The connection stays usable.
                drop(holders);
                assert_eq!(client.ask("echo here").text(), "here\n", "{model}");
            });
        }
    });
}

#[test]
fn a_killed_child_gives_its_place_back_once() {
    let server = start("forking", &["--max-commands", "2"]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pids");
    for round in 1..=3 {
        let mut holders = [Client::of(&server), Client::of(&server)];
        for client in &mut holders {
            client.send(format!(
                "echo $$ $PPID >> {}; exec sleep 50",
                file.display()
            ));
        }
        let lines = pids(&file, 2 * round);
        let mut waits = Client::of(&server);
        waits.send("echo free");
        // The commands outlive their children, and are killed after them.
        let pairs = lines[2 * (round - 1)..].iter();
        let (commands, children): (Vec<_>, Vec<_>) =
            pairs.map(|line| line.split_once(' ').unwrap()).unzip();
        let kill = Command::new("kill")
            .arg("-KILL")
            .args(children)
            .args(commands)
            .status();
        assert!(kill.unwrap().success());
        assert_eq!(waits.reply().text(), "free\n");
    }
    // The server has exactly two slots. A third command would find no directory that it can create.
    let alone = format!(
        "cd {}; for d in a b; do mkdir $d && sleep 0.1 && rmdir $d && echo yes && exit; done",
        dir.path().display()
    );
    let mut clients: [Client; 6] = std::array::from_fn(|_| Client::of(&server));
    for client in &mut clients {
        client.send(&alone);
    }
    for mut client in clients {
        assert_eq!(client.reply().text(), "yes\n");
    }
}

#[test]
fn a_stop_lets_short_commands_end_and_kills_the_others() {
    for model in MODELS {
        let dir = tempfile::tempdir().unwrap();
        let (begun, fifo) = (dir.path().join("begun"), dir.path().join("fifo"));
        let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        let mut server = start(model, &[]);
        let mut client = Client::of(&server);
        client.send(format!(
            "echo $$ > {}; cat {}",
            begun.display(),
            fifo.display()
        ));
        pids(&begun, 1);
        server.signal("TERM");
        server.logged("stop asked for");
        fs::write(&fifo, "in time\n").unwrap();
        assert_eq!(client.reply().text(), "in time\n", "{model}");
        if model == "forking" {
            // A child process learns of a drain only at the deadline.
            drop(client);
        } else {
            client.ends();
        }
        assert_eq!(server.wait().code(), Some(0), "{model}");

        let file = dir.path().join("pids");
        let mut server = start(model, &["--drain-timeout", "300ms"]);
        let mut client = Client::of(&server);
        client.send(endless(&file));
        let running = pids(&file, 2);
        server.signal("TERM");
        assert_eq!(server.wait().code(), Some(0), "{model}");
        until_cleared_away(&running, model);
        assert_eq!(client.0.read(&mut [0]).unwrap_or(0), 0);
    }
}

#[test]
fn a_forced_stop_kills_commands_at_once() {
    for model in MODELS {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pids");
        let mut server = start(model, &[]);
        let mut client = Client::of(&server);
        client.send(endless(&file));
        let running = pids(&file, 2);
        server.signal("TERM");
        server.logged("stop asked for");
        server.signal_again("INT");
        assert_eq!(server.wait().code(), Some(1), "{model}");
        until_cleared_away(&running, model);
    }
}

#[test]
fn the_children_of_a_server_that_is_killed_clear_their_commands_away() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pids");
    let mut server = start("forking", &[]);
    let mut client = Client::of(&server);
    client.send(endless(&file));
    let running = pids(&file, 2);
    server.signal("KILL");
    server.wait();
    until_cleared_away(&running, "forking");
}

#[test]
fn a_command_in_a_child_that_is_kicked_ends_and_gives_its_place_back() {
    let server = start("forking", &["--max-commands", "1"]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pids");
    let mut client = Client::of(&server);
    client.send(endless(&file));
    let child = fs::read_to_string(format!("/proc/{}/stat", pids(&file, 2)[1])).unwrap();
    let child = child.split(' ').nth(3).unwrap().to_owned();
    let kicked = Command::new("kill").args(["-VTALRM", &child]).status();
    assert!(kicked.unwrap().success());
    until_cleared_away(&pids(&file, 2), "kicked");
    assert_eq!(client.0.read(&mut [0]).unwrap_or(0), 0);
    assert_eq!(Client::of(&server).ask("echo free").text(), "free\n");
}

#[test]
fn a_silent_client_does_not_hold_up_a_stop() {
    for model in MODELS.into_iter().filter(|&model| model != "forking") {
        let mut server = start(model, &["--drain-timeout", "1h"]);
        let mut client = Client::of(&server);
        client.ask("true");
        server.signal("TERM");
        client.ends();
        assert_eq!(server.wait().code(), Some(0), "{model}");
    }
}

#[test]
fn what_is_left_in_the_background_is_killed_and_not_waited_for() {
    for model in MODELS {
        let server = start(model, &[]);
        let mut client = Client::of(&server);
        let reply = client.ask("sleep 1000 & echo $!");
        assert_eq!(reply.header.find("exitStatus"), None);
        until_gone(&[reply.text().trim().to_owned()], model);
        // A process outside of the group survives. Its output is not part of the reply.
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pids");
        let reply = client.ask(format!(
            "setsid sh -c 'echo $$ > {0}; exec sleep 1000' & until test -s {0}; do :; done; echo started",
            file.display()
        ));
        assert_eq!(reply.text(), "started\n", "{model}");
        let own = pids(&file, 1);
        assert!(is_alive(&own[0]));
        assert!(Command::new("kill").args(&own).status().unwrap().success());
    }
}

#[test]
fn commands_begin_with_nothing_of_the_server() {
    for model in MODELS {
        let server = start(model, &[]);
        // The command must not inherit the descriptors of another connection either.
        let _other = Client::of(&server);
        if model == "sequential" {
            drop(_other);
        }
        let mut client = Client::of(&server);
        // Descriptors that the server has inherited do not count.
        let found = Command::new("ls").arg("/proc/self/fd").output().unwrap();
        let found = text(&found.stdout);
        assert_eq!(client.ask("ls /proc/self/fd").text(), found, "{model}");
        assert_eq!(client.ask("readlink /proc/self/fd/0").text(), "/dev/null\n");
        let status = client.ask("grep ^Sig /proc/self/status").text();
        let mask = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            u64::from_str_radix(line[name.len()..].trim(), 16).unwrap()
        };
        assert_eq!(mask("SigBlk:"), 0, "{model}");
        for signal in [2, 13, 15] {
            assert_eq!(
                mask("SigIgn:") & (1 << (signal - 1)),
                0,
                "{model}: {signal}"
            );
        }
        // The command has its own process group, and the shell is the leader.
        let ids = client.ask("set -- $(cat /proc/$$/stat); echo $1 $5").text();
        let (pid, group) = ids.trim().split_once(' ').unwrap();
        assert_eq!(pid, group);
    }
}

#[test]
fn lines_are_commands_when_asked() {
    for model in MODELS {
        let server = start(model, &["--framing", "lines"]);
        let mut client = Client::of(&server);
        client.send("echo one\necho two\r\n\necho th");
        for expected in ["one\n", "two\n", ""] {
            assert_eq!(client.reply().text(), expected, "{model}");
        }
        client.send("ree\n");
        assert_eq!(client.reply().text(), "three\n");
        client.send(format!(": {}\necho next\n", "x".repeat(70_000)));
        let reply = client.reply();
        assert!(reply.header.ends_with("\"exitStatus\": 125}") && reply.text().contains("65536"));
        // The server runs no command after that.
        client.ends();

        drop(client);
        let input = b"echo a\n\n  \necho b\r\nexit\necho c\n";
        let got = self::client(&["--framing", "lines", &server.endpoints[0]], input);
        assert_eq!(text(&got.stdout), "a\nb\n", "{}", text(&got.stderr));
    }
}

#[test]
fn a_command_that_is_too_long_is_not_run_in_part() {
    let dir = tempfile::tempdir().unwrap();
    let path = format!("unix://{}/s", dir.path().display());
    let server = Server::start(&["command", "-l", &path], 1);
    let mut stream = UnixStream::connect(server.address(0)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let longest = format!("echo {}", "x".repeat((64 << 10) - 5));
    stream.write_all(longest.as_bytes()).unwrap();
    assert_eq!(read_reply(&mut stream).body.len(), longest.len() - 4);
    let longer = format!(
        "touch {}/made #{}",
        dir.path().display(),
        "x".repeat(64 << 10)
    );
    stream.write_all(longer.as_bytes()).unwrap();
    let reply = read_reply(&mut stream);
    assert!(reply.header.ends_with("\"exitStatus\": 125}"), "{reply:?}");
    assert!(reply.text().contains("65536 bytes"));
    assert_eq!(
        stream.read(&mut [0]).unwrap_or(0),
        0,
        "the rest is no command"
    );
    assert!(!exists(dir.path().join("made")));

    let got = client(&[&server.endpoints[0], "-c", &longer], b"");
    assert_eq!(got.status.code(), Some(1));
    assert!(text(&got.stderr).contains("64KiB"), "{}", text(&got.stderr));
}

#[test]
fn a_browser_is_not_obeyed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("made");
    let server = start("threading", &[]);
    let mut client = Client::of(&server);
    client.send(format!(
        "POST / HTTP/1.1\r\nHost: x\r\n\r\ntouch {}\n",
        file.display()
    ));
    assert!(client.reply().header.ends_with("\"exitStatus\": 126}"));
    client.ends();
    server.logged("refused: it speaks HTTP");
    assert!(!exists(file));
    assert_eq!(
        Client::of(&server).ask("echo GET / HTTP/1.1").text(),
        "GET / HTTP/1.1\n"
    );
}

#[test]
fn a_request_in_pieces_is_not_obeyed_either() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("made");
    let body = format!("\ntouch {}\n", file.display());
    for framing in ["chunks", "lines"] {
        let server = start("threading", &["--framing", framing]);
        for begin in [
            &b"POST /aaaa"[..],
            b"PRI * ",
            b"CONNECT hTTps",
            b"LIST x HTTP/1.1\n",
            b"\r\nGET / HTTP/1.1\r\n",
            b"\n \r\n\tPOST /aaaa",
            b"\x16\x03\x01\x02",
        ] {
            let mut client = Client::of(&server);
            client.send(begin);
            let reply = client.reply();
            let context = format!("{framing}: {reply:?}");
            assert!(reply.header.ends_with("\"exitStatus\": 126}"), "{context}");
            assert!(reply.text().contains("is no command"), "{context}");
            // The server may have closed the connection already.
            let _ = client.0.write_all(body.as_bytes());
            assert_eq!(client.0.read(&mut [0]).unwrap_or(0), 0, "{context}");
            server.logged("refused: it speaks");
        }
        for command in ["echo GET /", "GET=/; echo GET /", "echo '\x16\x03'"] {
            let reply = Client::of(&server).ask(format!("{command}\n"));
            assert_eq!(reply.header.find("exitStatus"), None, "{reply:?}");
        }
    }
    // A command longer than the limit of a line is the last of its connection.
    let server = start("threading", &["--framing", "lines"]);
    let mut client = Client::of(&server);
    client.ask("true\n");
    let long = format!("X{} HTTP/1.1\r\n\r\n{body}", "x".repeat(70_000));
    let _ = client.0.write_all(long.as_bytes());
    assert!(client.reply().header.ends_with("\"exitStatus\": 125}"));
    assert_eq!(client.0.read(&mut [0]).unwrap_or(0), 0);
    assert!(!exists(&file));
}

#[test]
fn other_machines_are_not_served_without_a_token() {
    for endpoint in ["tcp://0.0.0.0:0", "tcp://[::]:0"] {
        let args = ["command", "-l", "tcp://127.0.0.1:0", "-l", endpoint];
        let got = run(&mut socketserver(), args, b"").unwrap();
        let complaint = text(&got.stderr);
        assert_eq!(got.status.code(), Some(1), "{complaint}");
        assert_eq!(complaint.trim_end().lines().count(), 1, "{complaint}");
        assert!(complaint.contains("--auth-token-file"), "{complaint}");
        assert_eq!(text(&got.stdout), "");
    }
    let dir = tempfile::tempdir().unwrap();
    let token = token_file(dir.path(), "0123456789abcdef\n");
    let args = [
        "command",
        "-l",
        "tcp://0.0.0.0:0",
        "-l",
        "tcp://localhost:0",
    ];
    let token = ["--auth-token-file", token.to_str().unwrap()];
    Server::start(&[&args[..], &token].concat(), 2);
    Server::start(
        &[
            "command",
            "-l",
            "tcp://[::1]:0",
            "-l",
            "unix://@command-test",
        ],
        2,
    );
    let udp = run(
        &mut socketserver(),
        ["command", "-l", "udp://127.0.0.1:0"],
        b"",
    )
    .unwrap();
    assert!(text(&udp.stderr).contains("tls:// or unix://"));
}

#[test]
fn a_token_file_is_private_and_long_enough() {
    let dir = tempfile::tempdir().unwrap();
    let path = token_file(dir.path(), "0123456789abcdef\n");
    let refused = || {
        let args = ["command", "-l", "tcp://127.0.0.1:0", "--auth-token-file"];
        let got = run(socketserver().args(args), [&path], b"").unwrap();
        assert_eq!(got.status.code(), Some(1));
        text(&got.stderr)
    };
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(refused().contains("chmod 600"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&path, "short\n").unwrap();
    assert!(refused().contains("16"));
    fs::remove_file(&path).unwrap();
    assert!(refused().contains("No such file"));
}

#[test]
fn only_who_knows_the_token_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let file = token_file(dir.path(), "0123456789abcdef\nnot this\n");
    let file = file.to_str().unwrap();
    for model in MODELS {
        let server = start(model, &["--auth-token-file", file]);
        let mut right = Client::of(&server);
        right.send("0123456789");
        right.send("abcdef\n");
        assert_eq!(right.ask("echo in").text(), "in\n", "{model}");
        drop(right);
        // Bytes behind the token in the same segment are a command.
        let glued = Client::of(&server).ask("0123456789abcdef\necho glued");
        assert_eq!(glued.text(), "glued\n", "{model}");

        let made = dir.path().join("made");
        for wrong in [
            "0123456789abcdeX\n",
            "\n",
            "0123456789abcdefg\n",
            "0123456789abcde\n",
        ] {
            let mut client = Client::of(&server);
            client.send(format!("{wrong}touch {}", made.display()));
            let reply = client.reply();
            assert!(
                reply.header.ends_with(", \"exitStatus\": 126}"),
                "{reply:?}"
            );
            assert!(reply.text().contains("wrong token"), "{reply:?}");
            client.ends();
            let line = server.logged("wrong token");
            let peer = client.0.local_addr().unwrap().to_string();
            assert!(line.contains("WARN") && line.contains(&peer), "{line}");
            assert!(!line.contains("0123456789"), "{line}");
        }
        assert!(!exists(made));
        let absent = Client::of(&server);
        absent.0.shutdown(Shutdown::Write).unwrap();
        server.logged("without a token");

        let args = [
            "--auth-token-file",
            file,
            &server.endpoints[0],
            "-c",
            "echo ours; exit 3",
        ];
        let got = client(&args, b"");
        assert_eq!(
            (text(&got.stdout).as_str(), got.status.code()),
            ("ours\n", Some(3))
        );
        let got = client(
            &[&server.endpoints[0], "-c", "echo in a token's place"],
            b"",
        );
        assert_eq!(got.status.code(), Some(126), "{}", text(&got.stderr));
        assert!(text(&got.stdout).contains("wrong token"));
    }
}

/// The number of bytes that the server reads before it answers does not reveal the length of the
/// token.
#[test]
fn the_length_of_the_token_is_not_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = token_file(dir.path(), "0123456789abcdef0123\n");
    let servers = MODELS.map(|model| start(model, &["--auth-token-file", file.to_str().unwrap()]));
    std::thread::scope(|scope| {
        let each = servers.iter().flat_map(|server| {
            [18, 21, 22, 40].map(|length| {
                let mut client = Client::of(server);
                scope.spawn(move || {
                    let began = Instant::now();
                    client.send("x".repeat(length));
                    assert!(client.reply().text().contains("wrong token"));
                    began.elapsed()
                })
            })
        });
        let took: Vec<_> = each
            .collect::<Vec<_>>()
            .into_iter()
            .map(|one| one.join().unwrap())
            .collect();
        let soon = Duration::from_millis(500);
        assert!(took.iter().all(|&took| took > soon), "{took:?}");
    });
}

#[test]
fn who_is_slow_with_the_token_is_not_served() {
    let dir = tempfile::tempdir().unwrap();
    let file = token_file(dir.path(), "0123456789abcdef\n");
    let servers = MODELS.map(|model| start(model, &["--auth-token-file", file.to_str().unwrap()]));
    let began = Instant::now();
    let mut clients = servers.each_ref().map(|server| {
        let mut slow = Client::of(server);
        slow.send("0123456789abcdef");
        slow
    });
    for ((model, server), slow) in MODELS.iter().zip(&servers).zip(&mut clients) {
        let reply = slow.reply();
        assert!(
            reply.header.ends_with("\"exitStatus\": 126}"),
            "{model}: {reply:?}"
        );
        assert!(reply.text().contains("in time"), "{model}: {reply:?}");
        assert!(began.elapsed() > Duration::from_secs(8), "{model}");
        slow.ends();
        server.logged("no token came in time");
    }
}

#[test]
fn strangers_hold_no_worker() {
    let dir = tempfile::tempdir().unwrap();
    let file = token_file(dir.path(), "0123456789abcdef\n");
    let options = [
        "--workers",
        "1",
        "--auth-token-file",
        file.to_str().unwrap(),
    ];
    let server = start("pooled", &options);
    let began = Instant::now();
    let _silent = Client::of(&server);
    let mut begun = Client::of(&server);
    begun.send("0123");
    let mut known = Client::of(&server);
    known.send("0123456789abcdef\n");
    assert_eq!(known.ask("echo in").text(), "in\n");
    begun.send("456789abcdef\n");
    assert_eq!(begun.ask("echo too").text(), "too\n");
    assert!(began.elapsed() < Duration::from_secs(8));
}

#[test]
fn the_log_and_the_console_tell_of_commands() {
    let args = ["command", "-l", "tcp://127.0.0.1:0"];
    let mut server = Server::with_console(&args, 1);
    let command = "echo '\x1b[31mred'; exit 4";
    client(&[&server.endpoints[0], "-c", command], b"");
    let line = server.logged("ran");
    for part in [
        "peer=127.0.0.1:",
        "\\x1b[31mred",
        "exit status: 4",
        "bytes=9",
        "took=",
    ] {
        assert!(line.contains(part), "{line}");
    }
    server.type_in("stats");
    let mut said = server.says();
    while !said.starts_with("commands:") {
        said = server.says();
    }
    assert_eq!(said, "commands: running 0, waiting 0, done 1, killed 0");
    server.type_in("quit");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn the_client_prints_what_comes_and_exits_as_the_command_did() {
    let server = start("threading", &[]);
    let endpoint = server.endpoints[0].as_str();
    for (command, code, stdout, stderr) in [
        ("echo hello", 0, "hello\n", ""),
        ("printf hello", 0, "hello", ""),
        ("echo e >&2; exit 3", 3, "e\n", "[exit status 3]\n"),
        ("kill -9 $$", 137, "", "[killed by signal 9]\n"),
    ] {
        let got = client(&[endpoint, "-c", command], b"");
        assert_eq!(got.status.code(), Some(code), "{command}");
        assert_eq!(
            (text(&got.stdout).as_str(), text(&got.stderr).as_str()),
            (stdout, stderr)
        );
    }
    let got = client(&[endpoint, "-c", " "], b"");
    assert_eq!(
        (text(&got.stdout).as_str(), got.status.code()),
        ("", Some(0))
    );
    let got = client(&[endpoint], b"echo 1\n\nfalse\necho 2\r\n\t\nprintf 3");
    assert_eq!(got.status.code(), Some(0));
    assert_eq!(text(&got.stdout), "1\n2\n3");
    assert_eq!(text(&got.stderr), "[exit status 1]\n");
    let got = client(
        &[endpoint, "-c", r"head -c 50000000 /dev/zero | tr '\0' x"],
        b"",
    );
    assert!(
        got.stdout == vec![b'x'; 50_000_000],
        "{} bytes",
        got.stdout.len()
    );
    let got = client(&[endpoint, "-c", r"printf '\377\000\n'"], b"");
    assert_eq!(got.stdout, b"\xff\0\n", "UTF-8 passes as it is");
}

#[test]
fn the_client_decodes_other_charsets() {
    let server = start("threading", &[]);
    let endpoint = server.endpoints[0].as_str();
    for (charset, bytes, expected) in [
        ("gbk", r"\304\343\272\303", "你好"),
        ("GB2312", r"\304\343\377\272\303", "你\u{fffd}好"),
        ("gbk", r"ab\304", "ab\u{fffd}"),
        ("shift_jis", r"\223\372", "日"),
        ("latin1", r"\344", "ä"),
    ] {
        let got = client(
            &[
                "--charset",
                charset,
                endpoint,
                "-c",
                &format!("printf '{bytes}'"),
            ],
            b"",
        );
        assert_eq!(
            text(&got.stdout),
            expected,
            "{charset}: {}",
            text(&got.stderr)
        );
    }
    // Each character has two bytes, whose halves arrive in different reads.
    let long =
        r"i=0; while [ $i -lt 20000 ]; do printf '\304\343'; i=$((i+1)); done | (printf x; cat)";
    let got = client(&["--charset", "gbk", endpoint, "-c", long], b"");
    assert!(text(&got.stdout) == format!("x{}", "你".repeat(20_000)));
    let got = client(&["--charset", "klingon", endpoint], b"");
    assert_eq!(got.status.code(), Some(2));
}

#[test]
fn the_client_tells_what_is_wrong_with_a_reply() {
    let whole = b"\x18\0\0\0{\"dataBodyLength\": 1000}";
    for (wire, advice) in [
        (&b""[..], "did not reply"),
        (b"\x17\0", "in the middle of a reply's header"),
        (
            &[whole, &b"x".repeat(123)[..]].concat(),
            "only 123 of 1000 bytes",
        ),
        (b"HTTP/1.1 400 Bad Request\r\n", "another kind of server"),
        (b"\xff\xff\xff\xff{}", "negative"),
        (b"\x05\0\0\0hello", "not JSON"),
        (b"\x02\0\0\0{}", "dataBodyLength"),
        (b"\x1b\0\0\0{\"dataBodyLength\": 9999999}", "--max-body"),
        (
            b"\x27\0\0\0{\"dataBodyLength\": 0, \"exitStatus\": -1}",
            "exitStatus",
        ),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
        let wire = wire.to_vec();
        let server = std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            peer.set_read_timeout(Some(PATIENCE)).unwrap();
            // The command arrives in one piece, without a line end.
            let mut command = [0; 100];
            assert_eq!(peer.read(&mut command).unwrap(), 6);
            assert_eq!(&command[..6], b"echo x");
            peer.write_all(&wire).unwrap();
        });
        let got = client(&[&endpoint, "-c", "echo x", "--max-body", "1MiB"], b"");
        server.join().unwrap();
        let complaint = text(&got.stderr);
        assert_eq!(got.status.code(), Some(1), "{complaint}");
        assert_eq!(complaint.trim_end().lines().count(), 1, "{complaint}");
        assert!(complaint.contains(advice), "{advice}: {complaint}");
    }
}

#[test]
fn the_client_does_not_wait_for_ever_when_asked() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let endpoint = format!("tcp://{address}");
    let got = client(&["--wait", "100ms", &endpoint, "-c", "echo x"], b"");
    assert_eq!(got.status.code(), Some(1));
    assert!(
        text(&got.stderr).contains("--wait"),
        "{}",
        text(&got.stderr)
    );
    drop(listener);
    let got = client(&[&endpoint], b"echo x\n");
    assert_eq!(got.status.code(), Some(1));
    assert!(
        text(&got.stderr).contains("refused"),
        "{}",
        text(&got.stderr)
    );
}

#[test]
fn the_client_talks_to_a_server_that_python_wrote() {
    let script = "
import json, socketserver, struct, subprocess
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        while True:
            command = self.request.recv(1024)
            if not command:
                break
            ran = subprocess.run(command.decode('utf-8'), shell=True, capture_output=True)
            body = ran.stdout or ran.stderr
            header = json.dumps({'dataBodyLength': len(body)}).encode('utf-8')
            self.request.send(struct.pack('i', len(header)))
            self.request.send(header)
            self.request.sendall(body)
with socketserver.ThreadingTCPServer(('127.0.0.1', 0), Handler) as server:
    print(server.server_address[1], flush=True)
    server.serve_forever()
";
    let spawned = Command::new("python3")
        .args(["-c", script])
        .stdout(Stdio::piped())
        .spawn();
    let Ok(server) = spawned else {
        println!("SKIPPED: python3 is not installed");
        return;
    };
    let mut server = Guarded(server);
    let mut port = String::new();
    BufReader::new(server.0.stdout.take().unwrap())
        .read_line(&mut port)
        .unwrap();
    let endpoint = format!("tcp://127.0.0.1:{}", port.trim());
    let input = b"echo one\nls /no/such/dir\nhead -c 3000000 /dev/zero\nexit\n";
    let got = client(&[&endpoint], input);
    assert_eq!(text(&got.stderr), "");
    let (first, last) = got.stdout.split_at(got.stdout.len() - 3_000_000);
    assert!(text(first).starts_with("one\n") && text(first).contains("/no/such/dir"));
    assert!(last.iter().all(|&byte| byte == 0));
}
