//! A request from its beginning to its end, without failures.

use std::thread;
use std::time::Duration;

use crate::common::client::Endpoint;
use crate::matrix::Combination;
use crate::scripted_handler::pattern;
use crate::server_driver::ServerDriver;
use crate::server_process::Options;

pub fn echo_returns_each_line(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default());
    for _ in 0..3 {
        let mut client = server.client();
        for line in ["one", "two", "three"] {
            assert_eq!(client.ask(line), line);
        }
    }
    server.assert_idle();
}

pub fn reported_address_is_the_bound_one(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default());
    let bound = server.expect_event("bound");
    match &server.endpoint {
        Endpoint::Tcp(address) | Endpoint::Udp(address) => {
            assert_ne!(address.port(), 0);
            assert_eq!(bound, format!("bound {address} Some({address})"));
        }
        Endpoint::Unix(path) | Endpoint::UnixDatagram(path) => {
            assert_eq!(bound, format!("bound {} None", path.display()));
            assert!(path.is_absolute() && path.exists());
        }
    }
    server.assert_serves();
}

pub fn closed_server_leaves_nothing_behind(cell: Combination) {
    let mut server = ServerDriver::start(cell, Options::default());
    for _ in 0..3 {
        server.assert_serves();
    }
    server.stop();
    server.expect_event("served");
    server.command("close");
    server.expect_event("closed");
    server.wait_until_address_free();
    assert_eq!(server.children(), [0; 0]);
    server.assert_quits();
}

pub fn events_and_hooks_run_in_order(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default());
    server.assert_serves();
    server.expect_event("ended 1");
    let expected = "bound listener state accepted verify dispatched started factory setup handle finish \
                    drop closing ended";
    assert_eq!(event_names(&server), expected);

    let mut client = server.client();
    client.send_line("fail").unwrap();
    server.expect_event("ended 2");
    let failed = "accepted verify dispatched started factory setup handle finish drop failed \
                  handle_error closing ended";
    assert_eq!(event_names(&server), format!("{expected} {failed}"));
}

/// Returns the first word of each line of the journal.
fn event_names(server: &ServerDriver) -> String {
    let journal = server.journal();
    let event_names = journal.lines().filter_map(|line| line.split(' ').next());
    event_names.collect::<Vec<_>>().join(" ")
}

pub fn requests_run_in_the_thread_or_process_of_the_model(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default());
    let answer = server.client().ask("whoami");
    let (process, thread) = answer.split_once(' ').unwrap();
    let server_pid = server.pid().to_string();
    let expected = match cell.model {
        "sequential" => (true, true),
        // A new process, and its only thread.
        "forking" => (false, process == thread),
        _ => (true, false),
    };
    assert_eq!(
        (
            process == server_pid,
            thread == server_pid || process != server_pid
        ),
        expected
    );
}

pub fn sequential_server_serves_one_request_at_a_time(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default());
    let first = server.hold("first");
    let mut second = server.client();
    second.send_line("second").unwrap();
    first.release();
    server.expect_reply(&mut second, "second");
    assert!(server.position("ended 1") < server.position("accepted 2"));
}

pub fn concurrent_server_serves_many_requests_at_a_time(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default());
    let held = [server.hold("a"), server.hold("b"), server.hold("c")];
    server.assert_serves();
    assert_eq!(
        server.count("ended 1") + server.count("ended 2") + server.count("ended 3"),
        0
    );
    for one in held {
        one.release();
    }
    server.assert_idle();
}

pub fn half_closed_client_receives_its_reply(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default());
    let mut client = server.client();
    client.send_line("count").unwrap();
    client.send(&[7; 1000]).unwrap();
    client.half_close().unwrap();
    assert_eq!(client.read_rest().unwrap(), b"1000\n");
}

/// Closing a TCP socket with unread input resets the connection, and bytes that the peer has not
/// received by then are lost.
pub fn unread_input_does_not_destroy_the_reply(cell: Combination) {
    const SIZE: usize = 3_000_000;
    let server = ServerDriver::start(cell, Options::default());
    let mut client = server.client();
    client.send_line(&format!("pour-and-leave {SIZE}")).unwrap();
    client.send(&[7; 100_000]).unwrap();
    client.half_close().unwrap();
    let answer = client.read_rest();
    let lost = answer.as_ref().map(|answer| SIZE - answer.len());
    assert!(matches!(lost, Ok(0)), "{lost:?}");
    assert!(answer.unwrap() == pattern(SIZE));
    server.expect_event("ended 1 completed");
}

pub fn large_write_survives_signals_and_a_slow_reader(cell: Combination) {
    const SIZE: usize = (16 << 20) + 1;
    let server = ServerDriver::start(cell, Options::default());
    let mut client = server.client();
    let location = client.ask(&format!("pour-with-signals {SIZE}"));
    let (process, thread) = location.split_once(' ').unwrap();
    let target: (i64, i64) = (process.parse().unwrap(), thread.parse().unwrap());
    let send_signals = || {
        for _ in 0..5 {
            // SAFETY: a system call without memory of this process. The thread exists, because it
            // cannot end before the last byte below.
            unsafe { libc::syscall(libc::SYS_tgkill, target.0, target.1, libc::SIGUSR1) };
            thread::sleep(Duration::from_micros(200));
        }
    };

    let expected = pattern(SIZE);
    let mut received = Vec::with_capacity(SIZE);
    let mut buffer = vec![0; 1 << 20];
    while received.len() < SIZE {
        // Slow: signals interrupt the writer in its wait for buffer space before it gets some.
        send_signals();
        let n = client.read(&mut buffer).unwrap_or_else(|error| {
            panic!(
                "{error} after {} bytes\n{}",
                received.len(),
                server.journal()
            )
        });
        assert_ne!(
            n,
            0,
            "closed after {} bytes\n{}",
            received.len(),
            server.journal()
        );
        received.extend_from_slice(&buffer[..n]);
    }
    assert!(received == expected);
    server.expect_event("poured");
    send_signals();
    client.send(b"x").unwrap();
    let interrupted = server.expect_event("interrupted");
    assert!(interrupted.ends_with("Ok(1)"), "{interrupted}");
    let times: usize = interrupted.split(' ').nth(1).unwrap().parse().unwrap();
    // A signal that is sent while another one is pending is merged with it.
    assert!(times >= 3, "only {times} signals interrupted the writer");
    drop(client);
    server.wait_for_requests();
    assert_eq!(server.count("handle_error"), 0, "{}", server.journal());
}
