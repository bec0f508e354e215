//! Runs each benchmark with rounds too short for meaningful figures. Checks that each one prints
//! its table and draws its chart.

#![allow(clippy::unwrap_used)]

use std::process::Command;

/// Returns the printed table and the chart.
fn bench(args: &[&str]) -> (String, String) {
    let directory = tempfile::tempdir().unwrap();
    let chart = directory.path().join("chart.svg");
    let done = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(args)
        .arg("--svg")
        .arg(&chart)
        .output()
        .unwrap();
    let (out, err) = (done.stdout, String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{args:?}: {err}");
    let chart = std::fs::read_to_string(&chart).unwrap();
    (String::from_utf8(out).unwrap(), chart)
}

#[track_caller]
fn compares(command: &str, contenders: &str, options: &[&str]) -> String {
    let mut args = vec![command, "--contenders", contenders];
    args.extend(options);
    let (table, chart) = bench(&args);
    assert!(table.contains("* Linux "), "{table}");
    assert!(table.contains(&format!("* bench {command} ")), "{table}");
    for contender in contenders.split(',') {
        if table.contains(&format!("Skipped: {contender}: ")) {
            continue;
        }
        assert!(table.contains(&format!("\n| {contender} | ")), "{table}");
        assert!(chart.contains(&format!(">{contender}")), "{contender}");
    }
    assert!(!table.contains("NaN") && !chart.contains("NaN"), "{table}");
    table
}

const SHORT: [&str; 6] = ["--rounds", "2", "--time", "30", "--warm-up", "10"];

#[test]
fn echo() {
    let all = "epoll,io-uring,green,green-keep-alive,greenroom,threading,forking,pooled,\
               pooled-keep-alive,tokio-current,tokio-multi,actix,monoio,may,std-thread,\
               python-threading,python-asyncio";
    let few = [&SHORT[..], &["--connections", "1,5"]].concat();
    let table = compares("echo", all, &few);
    let heads = "| server | C = 1 | of epoll | of green | C = 5 | of epoll | of green |";
    assert!(table.contains(heads), "{table}");
    let some = "epoll,io-uring,green,threading,tokio-current";
    let large = [&SHORT[..], &["--connections", "2", "--size", "16384"]].concat();
    compares("echo", some, &large);
    let unix = [&SHORT[..], &["--connections", "2", "--unix", "--spin"]].concat();
    compares("echo", some, &unix);
}

#[test]
fn churn() {
    let all = "epoll,io-uring,green,green-watched,threading,threading-watched,forking,pooled,\
               sequential,tokio-current,tokio-multi,actix,monoio,may,std-thread,python-gevent";
    let table = compares("churn", all, &[&SHORT[..], &["--clients", "3"]].concat());
    assert!(table.contains("CPU time per connection"), "{table}");
}

#[test]
fn udp() {
    let all = "epoll,green,sequential,threading,forking,pooled,tokio-current,tokio-multi,monoio,\
               may,std-thread,python-threading";
    let table = compares("udp", all, &[&SHORT[..], &["--clients", "3"]].concat());
    assert!(table.contains(" % lost |\n"), "{table}");
}

#[test]
fn idle() {
    let all = "epoll,io-uring,green,green-keep-alive,forking,tokio-current";
    let table = compares("idle", all, &["--connections", "20", "--time", "30"]);
    assert!(table.contains("KiB of private memory"), "{table}");
}

#[test]
fn latency() {
    let some = "epoll,green,threading,tokio-current";
    let few = ["--connections", "5", "--rate", "500"];
    let table = compares("latency", some, &[&SHORT[..], &few].concat());
    assert!(
        table.contains("| server | p50 | of green | p99 |"),
        "{table}"
    );
}

#[test]
fn growth() {
    let some = "epoll,green,threading,tokio-current";
    let few = ["--open", "5,10", "--active", "2,10"];
    let table = compares("growth", some, &[&SHORT[..], &few].concat());
    assert!(
        table.contains("| 10 open, 2 active | of green | 10 open, 10 active |"),
        "{table}"
    );
}

#[test]
fn stop() {
    let all = "green,threading,forking,pooled,tokio-multi,actix,python-asyncio";
    let few = ["--rounds", "1", "--connections", "0,3"];
    let table = compares("stop", all, &few);
    assert!(table.contains("3 idle connections"), "{table}");
}

#[test]
fn contender_without_a_server_for_the_transport_is_an_error() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    let done = command
        .args(["udp", "--contenders", "actix"])
        .output()
        .unwrap();
    assert!(!done.status.success());
    let err = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(err.contains("actix has no UDP server here"), "{err}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    let done = command
        .args(["echo", "--contenders", "hyper"])
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(err.contains("hyper has no TCP server here"), "{err}");
}

/// Servers of this project are skipped if its program is not built, nginx if it is not installed.
#[test]
fn http() {
    let all = "green,threading,pooled,nginx,hyper";
    let few = [&SHORT[..], &["--cases", "1024:5,1048576:2,0:1"]].concat();
    let table = compares("http", all, &few);
    assert!(table.contains("requests per second"), "{table}");
    assert!(
        table.contains("| 1 KiB, C = 5: CPU time |") && table.contains(" MiB/s |\n"),
        "{table}"
    );
}
