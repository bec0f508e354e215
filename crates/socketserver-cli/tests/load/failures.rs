//! Tests with hostile servers and servers that have gone. The report counts each failure by its
//! kind.

use std::io::{Read, Write};
use std::time::Duration;

use super::common::text;
use super::servers::{echo, nobody, reset, serve};
use super::{load, number, report};

/// Checks that all requests fail for this reason.
#[track_caller]
fn all_fail(endpoint: &str, kind: &str, more: &[&str]) {
    let args = [&["-n", "6", "-C", "2", "--timeout", "300ms"], more].concat();
    let (report, code) = report(endpoint, &args);
    assert_eq!(code, Some(1), "{report:#}");
    assert_eq!(number(&report, "requests_answered"), 0, "{report:#}");
    assert_eq!(
        report["errors"],
        serde_json::json!({ kind: 6 }),
        "{report:#}"
    );
}

#[test]
fn nobody_listens() {
    let dir = tempfile::tempdir().unwrap();
    let unix = format!("unix://{}/none", dir.path().display());
    for (endpoint, reason) in [(nobody(), "2 × connection refused"), (unix, "No such file")] {
        let output = load(&endpoint, &["-C", "2"]);
        assert_eq!(output.status.code(), Some(1));
        let told = text(&output.stderr);
        assert!(told.contains("cannot connect to"), "{told}");
        assert!(told.contains(reason), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }
    all_fail(&nobody(), "connect_refused", &["--churn"]);
    all_fail(&nobody().replace("tcp", "udp"), "connect_refused", &[]);
}

#[test]
fn a_datagram_that_nobody_wants_is_told_later_and_counted() {
    let udp = nobody().replace("tcp", "udp");
    let args = ["-C", "2", "-r", "100", "-n", "20", "--answer", "none"];
    let (report, code) = report(&udp, &args);
    assert_eq!(code, Some(1), "{report:#}");
    assert!(number(&report, "errors.connect_refused") > 0, "{report:#}");
}

#[test]
fn a_server_that_closes_after_each_answer_is_for_churn() {
    let endpoint = serve(|mut stream| {
        stream.read_exact(&mut [0; 64])?;
        stream.write_all(&[b'x'; 64])
    });
    let hint = "use --churn";
    let told = text(&load(&endpoint, &["-C", "3", "-n", "30"]).stdout);
    assert!(told.contains(hint), "{told}");
    let told = text(&load(&endpoint, &["-C", "3", "-n", "30", "--churn"]).stdout);
    assert!(!told.contains(hint), "{told}");
    // The report has no hint if the server keeps its connections open.
    let told = text(&load(&echo(64, || ()), &["-C", "3", "-n", "30"]).stdout);
    assert!(!told.contains(hint), "{told}");
}

#[test]
fn it_says_more_than_it_was_asked() {
    let endpoint = serve(|mut stream| {
        loop {
            stream.read_exact(&mut [0; 64])?;
            stream.write_all(&[b'x'; 64])?;
            std::thread::sleep(Duration::from_millis(5));
            stream.write_all(b"and by the way")?;
        }
    });
    for more in [&["-r", "100"][..], &["-r", "2000"], &[]] {
        let (report, code) = report(&endpoint, &[&["-C", "3", "-n", "50"], more].concat());
        assert_eq!(code, Some(1), "{report:#}");
        assert!(number(&report, "errors.wrong_answer") > 0, "{report:#}");
        let all = number(&report, "requests_answered") + number(&report, "requests_failed");
        assert!(all >= 50, "{report:#}");
    }
}

#[test]
fn it_closes_before_the_answer() {
    let endpoint = serve(|mut stream| {
        stream.read_exact(&mut [0; 64])?;
        stream.write_all(b"half")
    });
    all_fail(&endpoint, "closed_early", &[]);
    all_fail(&endpoint, "closed_early", &["--churn"]);
    all_fail(&endpoint, "closed_early", &["-r", "1000"]);
}

#[test]
fn it_resets() {
    let endpoint = serve(|mut stream| {
        stream.read_exact(&mut [0; 64])?;
        reset(stream)
    });
    all_fail(&endpoint, "reset", &[]);
    all_fail(&endpoint, "reset", &["--churn"]);
}

#[test]
fn it_is_silent() {
    let endpoint = serve(|mut stream| stream.read_to_end(&mut Vec::new()).map(drop));
    all_fail(&endpoint, "timeout", &[]);
    // Both connections are busy, so that other requests that are due have no connection.
    all_fail(&endpoint, "timeout", &["-r", "100"]);
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    all_fail(
        &format!("udp://{}", silent.local_addr().unwrap()),
        "timeout",
        &[],
    );
}

#[test]
fn it_reads_nothing() {
    let endpoint = serve(|stream| {
        std::thread::sleep(Duration::from_secs(20));
        drop(stream);
        Ok(())
    });
    let size = ["-s", "32MiB"];
    all_fail(&endpoint, "timeout", &size);
    all_fail(&endpoint, "timeout", &["-s", "32MiB", "--answer", "none"]);
}

#[test]
fn it_says_something_else() {
    all_fail(&echo(64, || {}), "wrong_answer", &["--verify", "upper"]);
    let babbling = serve(|mut stream| {
        stream.read_exact(&mut [0; 64])?;
        stream.write_all(&[b'\n'; 100])?;
        stream.read_to_end(&mut Vec::new()).map(drop)
    });
    all_fail(&babbling, "wrong_answer", &[]);
    all_fail(&babbling, "wrong_answer", &["--answer", "lines"]);
    all_fail(&babbling, "wrong_answer", &["--answer", "50"]);
    // An answer that differs from the first answer is wrong, too.
    let count = std::sync::atomic::AtomicU8::new(0);
    let changing = serve(move |mut stream| {
        loop {
            stream.read_exact(&mut [0; 64])?;
            let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            stream.write_all(&[n / 3; 64])?;
        }
    });
    let args = ["-n", "6", "-C", "1", "--verify", "first"];
    let (report, code) = report(&changing, &args);
    assert_eq!(code, Some(1));
    assert_eq!(number(&report, "requests_answered"), 3, "{report:#}");
    assert_eq!(number(&report, "errors.wrong_answer"), 3);
}

#[test]
fn it_speaks_no_tls() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().display().to_string();
    let mut cert = super::socketserver();
    cert.args(["cert", "x", "--dir", &ca]);
    assert!(cert.output().unwrap().status.success());
    let ca = format!("{ca}/ca.pem");
    let endpoint = serve(|mut stream| {
        stream.write_all(b"220 hello, this is no TLS\r\n")?;
        stream.read_to_end(&mut Vec::new()).map(drop)
    });
    let output = load(&endpoint.replace("tcp", "tls"), &["-C", "2", "--ca", &ca]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(told.contains("cannot connect to"), "{told}");
    let silent = serve(|mut stream| stream.read_to_end(&mut Vec::new()).map(drop));
    let args = [
        "--ca",
        &ca,
        "--churn",
        "-n",
        "2",
        "-C",
        "1",
        "--timeout",
        "200ms",
    ];
    let (report, _) = report(&silent.replace("tcp", "tls"), &args);
    assert_eq!(number(&report, "errors.connect_timeout"), 2, "{report:#}");
}

#[test]
fn some_fail_and_the_others_count() {
    let count = std::sync::atomic::AtomicU32::new(0);
    let endpoint = serve(move |mut stream| {
        loop {
            stream.read_exact(&mut [0; 64])?;
            if count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 10 == 9 {
                return reset(stream);
            }
            stream.write_all(&[b'x'; 64])?;
        }
    });
    let (report, code) = report(&endpoint, &["-n", "100", "-C", "3"]);
    assert_eq!(code, Some(1));
    assert_eq!(number(&report, "requests_answered"), 90, "{report:#}");
    assert_eq!(number(&report, "errors.reset"), 10);
}

#[test]
fn what_the_server_could_not_take_in_time_is_not_sent_and_said() {
    let endpoint = echo(64, || std::thread::sleep(Duration::from_millis(20)));
    let (report, code) = report(&endpoint, &["-C", "1", "-r", "1000", "-d", "500ms"]);
    assert_eq!(code, Some(0));
    let (answered, not_sent) = (
        number(&report, "requests_answered"),
        number(&report, "requests_not_sent"),
    );
    assert_eq!(answered + not_sent, 500, "{report:#}");
    assert!(not_sent > 400);
    let warnings = report["warnings"].to_string();
    assert!(warnings.contains("the rate was not reached"), "{warnings}");
}
