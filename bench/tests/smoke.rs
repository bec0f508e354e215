//! Each command that compares, with rounds that are too short to say anything: whether it comes to
//! its table and its picture.

#![allow(clippy::unwrap_used)]

use std::process::Command;

/// What it prints, and what it draws.
fn bench(args: &[&str]) -> (String, String) {
    let directory = tempfile::tempdir().unwrap();
    let picture = directory.path().join("picture.svg");
    let done = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(args)
        .arg("--svg")
        .arg(&picture)
        .output()
        .unwrap();
    let (out, err) = (done.stdout, String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{args:?}: {err}");
    let picture = std::fs::read_to_string(&picture).unwrap();
    (String::from_utf8(out).unwrap(), picture)
}

#[track_caller]
fn compares(command: &str, contenders: &str, options: &[&str]) -> String {
    let mut args = vec![command, "--contenders", contenders];
    args.extend(options);
    let (table, picture) = bench(&args);
    assert!(table.contains("* Linux "), "{table}");
    assert!(table.contains(&format!("* bench {command} ")), "{table}");
    for contender in contenders.split(',') {
        assert!(table.contains(&format!("\n| {contender} | ")), "{table}");
        assert!(picture.contains(&format!(">{contender}</text>")));
    }
    assert!(
        !table.contains("NaN") && !picture.contains("NaN"),
        "{table}"
    );
    table
}

const SHORT: [&str; 6] = ["--rounds", "2", "--time", "30", "--warm-up", "10"];

#[test]
fn echo() {
    let all = "epoll,green,green-keep-alive,greenroom,threading,pooled,pooled-keep-alive,\
               tokio-current,tokio-multi,may,std-thread";
    let table = compares(
        "echo",
        all,
        &[&SHORT[..], &["--connections", "1,5"]].concat(),
    );
    assert!(table.contains("\n## C = 5\n"), "{table}");
    assert!(table.contains("| load slept, per 1,000 |"), "{table}");
}

#[test]
fn churn() {
    let all = "epoll,green,green-watched,threading,threading-watched,pooled,sequential,tokio-current,tokio-multi,may,std-thread";
    let table = compares("churn", all, &[&SHORT[..], &["--clients", "3"]].concat());
    assert!(
        table.contains("microseconds of CPU per connection"),
        "{table}"
    );
}

#[test]
fn udp() {
    let all = "epoll,green,sequential,threading,pooled,tokio-current,tokio-multi";
    let table = compares("udp", all, &[&SHORT[..], &["--clients", "3"]].concat());
    assert!(table.contains("| lost |\n"), "{table}");
}

#[test]
fn idle() {
    let all = "epoll,green,green-keep-alive,tokio-current";
    let table = compares("idle", all, &["--connections", "20"]);
    assert!(table.contains("KiB for each"), "{table}");
}

#[test]
fn who_has_no_such_server_is_an_error() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    let done = command
        .args(["udp", "--contenders", "may"])
        .output()
        .unwrap();
    assert!(!done.status.success());
    let err = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(err.contains("may has no server over UDP"), "{err}");
}
