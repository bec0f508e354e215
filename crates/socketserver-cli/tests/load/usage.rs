//! Usage errors that the program reports before it sends a byte.

use std::process::Command;

use super::common::{run, text};
use super::servers::{echo, nobody};
use super::{load, number, success};

#[test]
fn what_does_not_go_together_is_wrong_usage() {
    let udp = nobody().replace("tcp", "udp");
    let tcp = nobody();
    for (endpoint, args, advice) in [
        ("tcp://192.0.2.1:80", &[][..], "--allow-remote"),
        ("udp://[2001:db8::1]:80", &[], "--allow-remote"),
        (
            &*tcp,
            &["--verify", "first", "--answer", "none"],
            "--verify",
        ),
        (&*tcp, &["-t", "3", "-C", "2"], "--threads"),
        (&*tcp, &["-m", "a", "-s", "3"], "cannot be used with"),
        (&*tcp, &["-m", ""], "empty"),
        (&*tcp, &["-d", "0s"], "longer"),
        (&*tcp, &["-d", "9000y"], "year"),
        (&*tcp, &["-C", "0"], "0"),
        (&*tcp, &["-n", "0"], "0"),
        (&*tcp, &["-r", "0"], "0"),
        (&*tcp, &["--answer", "something"], "lines"),
        (&*udp, &["-s", "64KiB"], "65507"),
        (&*tcp, &["-s", "2GiB"], "1GiB"),
    ] {
        let output = load(endpoint, args);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {told}");
        assert!(told.contains(advice), "{args:?}: {told}");
    }
    for (args, advice) in [
        (["-m", "@/nowhere/at/all"], "cannot read the message"),
        (["--histogram", "/nowhere/at/all"], "cannot write"),
    ] {
        let output = load(&tcp, &args);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(advice));
    }
}

#[test]
fn a_message_can_be_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("message");
    std::fs::write(&path, [0xff; 321]).unwrap();
    let args = ["-n", "9", "-C", "3", "--verify", "message"];
    let file = format!("@{}", path.display());
    let report = success(&echo(321, || {}), &[&args[..], &["-m", &file]].concat());
    assert_eq!(number(&report, "message_bytes"), 321);
}

/// Runs the program with a hard or soft limit on descriptors.
fn limited(limit: &str, endpoint: &str, connections: &str) -> std::process::Output {
    let script = format!(
        "{limit} && exec {} load {endpoint} -n 200 -C {connections}",
        env!("CARGO_BIN_EXE_socketserver")
    );
    run(&mut Command::new("sh"), ["-c", &script], b"").unwrap()
}

#[test]
fn room_for_connections_is_made_or_missed_before_the_load() {
    let endpoint = echo(64, || {});
    let output = limited("ulimit -Sn 64", &endpoint, "100");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let output = limited("ulimit -n 64", &endpoint, "100");
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(told.contains("100 connections need 1"), "{told}");
    assert!(told.contains("may have 64"), "{told}");
}
