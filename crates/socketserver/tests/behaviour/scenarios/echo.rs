//! A request from its beginning to its end, when all goes well.

use std::thread;
use std::time::Duration;

use crate::actor::pattern;
use crate::common::client::Endpoint;
use crate::matrix::Combination;
use crate::serving::Serving;
use crate::stage::Options;

pub fn three_rounds(cell: Combination) {
    let serving = Serving::start(cell, Options::default());
    for _ in 0..3 {
        let mut client = serving.client();
        for line in ["one", "two", "three"] {
            assert_eq!(client.ask(line), line);
        }
    }
    serving.is_idle();
}

pub fn the_reported_address_is_the_bound_one(cell: Combination) {
    let serving = Serving::start(cell, Options::default());
    let bound = serving.tells("bound");
    match &serving.endpoint {
        Endpoint::Tcp(address) | Endpoint::Udp(address) => {
            assert_ne!(address.port(), 0);
            assert_eq!(bound, format!("bound {address} Some({address})"));
        }
        Endpoint::Unix(path) | Endpoint::UnixDatagram(path) => {
            assert_eq!(bound, format!("bound {} None", path.display()));
            assert!(path.is_absolute() && path.exists());
        }
    }
    serving.serves();
}

pub fn nothing_is_left_at_the_end(cell: Combination) {
    let mut serving = Serving::start(cell, Options::default());
    for _ in 0..3 {
        serving.serves();
    }
    serving.stop();
    serving.tells("served");
    serving.tell("close");
    serving.tells("closed");
    serving.frees_its_address();
    assert_eq!(serving.children(), [0; 0]);
    serving.quits();
}

pub fn the_order_of_a_request(cell: Combination) {
    let serving = Serving::start(cell, Options::default());
    serving.serves();
    serving.tells("ended 1");
    let expected = "bound listener state accepted verify dispatched started factory setup handle finish \
                    drop closing ended";
    assert_eq!(words(&serving), expected);

    let mut client = serving.client();
    client.say("fail").unwrap();
    serving.tells("ended 2");
    let failed = "accepted verify dispatched started factory setup handle finish drop failed \
                  handle_error closing ended";
    assert_eq!(words(&serving), format!("{expected} {failed}"));
}

/// The first word of each line of the journal.
fn words(serving: &Serving) -> String {
    let journal = serving.journal();
    let words = journal.lines().filter_map(|line| line.split(' ').next());
    words.collect::<Vec<_>>().join(" ")
}

pub fn requests_run_where_the_model_says(cell: Combination) {
    let serving = Serving::start(cell, Options::default());
    let answer = serving.client().ask("whoami");
    let (process, thread) = answer.split_once(' ').unwrap();
    let server = serving.pid().to_string();
    let expected = match cell.model {
        "sequential" => (true, true),
        // A new process, and its only thread.
        "forking" => (false, process == thread),
        _ => (true, false),
    };
    assert_eq!(
        (process == server, thread == server || process != server),
        expected
    );
}

pub fn one_at_a_time(cell: Combination) {
    let serving = Serving::start(cell, Options::default());
    let first = serving.hold("first");
    let mut second = serving.client();
    second.say("second").unwrap();
    first.release();
    serving.answers(&mut second, "second");
    assert!(serving.position("ended 1") < serving.position("accepted 2"));
}

pub fn many_at_a_time(cell: Combination) {
    let serving = Serving::start(cell, Options::default());
    let held = [serving.hold("a"), serving.hold("b"), serving.hold("c")];
    serving.serves();
    assert_eq!(
        serving.count("ended 1") + serving.count("ended 2") + serving.count("ended 3"),
        0
    );
    for one in held {
        one.release();
    }
    serving.is_idle();
}

pub fn half_close_still_gets_the_answer(cell: Combination) {
    let serving = Serving::start(cell, Options::default());
    let mut client = serving.client();
    client.say("count").unwrap();
    client.send(&[7; 1000]).unwrap();
    client.half_close().unwrap();
    assert_eq!(client.rest().unwrap(), b"1000\n");
}

/// A close of a TCP socket that holds unread input resets the connection, and what the peer has
/// not received by then is lost.
pub fn unread_input_does_not_destroy_the_answer(cell: Combination) {
    const SIZE: usize = 3_000_000;
    let serving = Serving::start(cell, Options::default());
    let mut client = serving.client();
    client.say(&format!("pour-and-leave {SIZE}")).unwrap();
    client.send(&[7; 100_000]).unwrap();
    client.half_close().unwrap();
    let answer = client.rest();
    let lost = answer.as_ref().map(|answer| SIZE - answer.len());
    assert!(matches!(lost, Ok(0)), "{lost:?}");
    assert!(answer.unwrap() == pattern(SIZE));
    serving.tells("ended 1 completed");
}

pub fn a_large_write_survives_signals_and_a_slow_reader(cell: Combination) {
    const SIZE: usize = (16 << 20) + 1;
    let serving = Serving::start(cell, Options::default());
    let mut client = serving.client();
    let place = client.ask(&format!("pour-under-fire {SIZE}"));
    let (process, thread) = place.split_once(' ').unwrap();
    let target: (i64, i64) = (process.parse().unwrap(), thread.parse().unwrap());
    let shoot = || {
        for _ in 0..5 {
            // SAFETY: a system call without memory of ours. The thread exists: it cannot come to
            // its end before the last byte below.
            unsafe { libc::syscall(libc::SYS_tgkill, target.0, target.1, libc::SIGUSR1) };
            thread::sleep(Duration::from_micros(200));
        }
    };

    let expected = pattern(SIZE);
    let mut received = Vec::with_capacity(SIZE);
    let mut buffer = vec![0; 1 << 20];
    while received.len() < SIZE {
        // Slow: the writer is interrupted, in its wait for room, before it is given some.
        shoot();
        let n = client.read(&mut buffer).unwrap_or_else(|error| {
            panic!(
                "{error} after {} bytes\n{}",
                received.len(),
                serving.journal()
            )
        });
        assert_ne!(
            n,
            0,
            "cut after {} bytes\n{}",
            received.len(),
            serving.journal()
        );
        received.extend_from_slice(&buffer[..n]);
    }
    assert!(received == expected);
    serving.tells("poured");
    shoot();
    client.send(b"x").unwrap();
    let interrupted = serving.tells("interrupted");
    assert!(interrupted.ends_with("Ok(1)"), "{interrupted}");
    let times: usize = interrupted.split(' ').nth(1).unwrap().parse().unwrap();
    // Those that are sent while one is pending are merged with it.
    assert!(times >= 3, "only {times} signals hit the writer");
    drop(client);
    serving.rests();
    assert_eq!(serving.count("handle_error"), 0, "{}", serving.journal());
}
