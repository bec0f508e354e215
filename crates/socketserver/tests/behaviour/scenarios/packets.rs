//! Datagrams: empty, large, too large, from an unnamed peer, and without a reply.

use std::os::unix::net::UnixDatagram;

use crate::common::TIMEOUT;
use crate::common::client::named_unix_datagram;
use crate::common::process::is_asleep;
use crate::matrix::Combination;
use crate::scripted_handler::pattern;
use crate::server_driver::ServerDriver;
use crate::server_process::Options;

/// The maximum payload of UDP over IPv4: 65,535 minus the headers.
const LONGEST: usize = 65_507;

pub fn empty_datagram_is_a_request(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default());
    let mut client = server.client();
    for _ in 0..3 {
        client.send(b"").unwrap();
        server.expect_reply(&mut client, "empty");
    }
    server.expect_events("accepted", 3);
}

pub fn only_the_handler_replies_to_a_datagram(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default());
    let mut client = server.client();
    for (n, silent) in ["nothing", "fail", "panic"].into_iter().enumerate() {
        client.send_line(silent).unwrap();
        server.expect_event(&format!("ended {}", n + 1));
    }
    // A reply to one of them, even an empty one, would arrive before these.
    assert_eq!(client.ask("answer-and-fail"), "answered");
    server.expect_event("ended 4");
    assert_eq!(client.ask("the end"), "the end");
}

pub fn oversized_datagram_is_flagged_and_counted(cell: Combination) {
    let mut server = ServerDriver::start(cell, Options::default().with("max_packet_size", 1000));
    let mut client = server.client();
    for (length, answer) in [
        (1000, "1000 truncated=false kept=1000"),
        (1001, "1001 truncated=true kept=1000"),
        (LONGEST, "65507 truncated=true kept=1000"),
    ] {
        assert_eq!(client.ask(&format!("{:x<length$}", "size ")), answer);
    }
    assert_eq!(server.counter("truncated"), 2);
}

pub fn datagrams_of_every_size_arrive_whole(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default());
    let mut client = server.client();
    for length in [5, 1472, 1473, 8192, 8193, LONGEST] {
        let answer = client.ask(&format!("{:x<length$}", "size "));
        assert_eq!(answer, format!("{length} truncated=false kept={length}"));

        client.send_line(&format!("pour {length}")).unwrap();
        let mut packet = vec![0; 1 << 17];
        let n = client.read(&mut packet).unwrap();
        assert_eq!(n, length);
        assert!(packet[..n] == pattern(length));
    }
}

pub fn reply_to_an_unnamed_peer_fails(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default());
    let unnamed = UnixDatagram::unbound().unwrap();
    unnamed
        .send_to(b"answer-me", server.path().unwrap())
        .unwrap();
    server.expect_event("answered 1 Err(NotConnected)");
    server.expect_event("ended 1 failed");
    assert_eq!(server.lines("accepted"), ["accepted 1 unnamed"]);
    server.assert_serves();
}

pub fn reply_to_a_peer_that_does_not_read_times_out(cell: Combination) {
    let server = ServerDriver::start(cell, Options::default().with("write", 100));
    let reason = if cell.is_forking() {
        "failed"
    } else {
        "timed out"
    };
    // The kernel limits the queue of a receiver that is not connected.
    let silent = named_unix_datagram().unwrap();
    silent.send_to(b"flood", server.path().unwrap()).unwrap();
    server.expect_event("reply-failed 1 TimedOut");
    server.expect_event(&format!("ended 1 {reason}"));
    server.assert_serves();

    // For a connected peer, the kernel limits the bytes that the server has sent and the peer has
    // not read. They are freed when the peer disconnects.
    let mut silent = server.client();
    silent.send_line("flood").unwrap();
    server.expect_event("reply-failed 3 TimedOut");
    server.expect_event(&format!("ended 3 {reason}"));
    drop(silent);
    server.assert_serves();
}

pub fn peer_that_reads_late_receives_every_reply(cell: Combination) {
    const REPLIES: u32 = 1000;
    let server = ServerDriver::start(cell, Options::default());
    let path = server.path().unwrap();
    for (id, is_connected) in [(1, false), (2, true)] {
        let peer = named_unix_datagram().unwrap();
        peer.set_read_timeout(Some(TIMEOUT)).unwrap();
        if is_connected {
            peer.connect(path).unwrap();
        }
        peer.send_to(format!("flood {REPLIES}").as_bytes(), path)
            .unwrap();
        server.expect_event(&format!("handle {id}"));
        let process = if cell.is_forking() {
            server.child()
        } else {
            server.pid()
        };
        server.wait_for("the handler to find no buffer space", || is_asleep(process));
        for n in 0..REPLIES {
            let mut reply = [0; 16];
            let length = peer.recv(&mut reply).unwrap();
            assert_eq!(
                reply[..length],
                *n.to_string().as_bytes(),
                "{}",
                server.journal()
            );
        }
        server.expect_event(&format!("ended {id} completed"));
        server.assert_idle();
    }
}
