//! Datagrams: empty, large, too large, from nobody, and unanswered.

use std::os::unix::net::UnixDatagram;

use crate::actor::pattern;
use crate::common::PATIENCE;
use crate::common::client::named_unix_datagram;
use crate::common::process::is_asleep;
use crate::matrix::Combination;
use crate::serving::Serving;
use crate::stage::Options;

/// The most that UDP over IPv4 carries: 65,535 less the headers.
const LONGEST: usize = 65_507;

pub fn an_empty_datagram_is_a_request(cell: Combination) {
    let serving = Serving::start(cell, Options::default());
    let mut client = serving.client();
    for _ in 0..3 {
        client.send(b"").unwrap();
        serving.answers(&mut client, "empty");
    }
    serving.tells_times("accepted", 3);
}

pub fn nothing_is_replied_unless_the_handler_does(cell: Combination) {
    let serving = Serving::start(cell, Options::default());
    let mut client = serving.client();
    for (n, silent) in ["nothing", "fail", "panic"].into_iter().enumerate() {
        client.say(silent).unwrap();
        serving.tells(&format!("ended {}", n + 1));
    }
    // An answer to one of them, an empty one even, would come before these.
    assert_eq!(client.ask("answer-and-fail"), "answered");
    serving.tells("ended 4");
    assert_eq!(client.ask("the end"), "the end");
}

pub fn an_oversized_datagram_is_flagged_and_counted(cell: Combination) {
    let mut serving = Serving::start(cell, Options::default().with("max_packet_size", 1000));
    let mut client = serving.client();
    for (length, answer) in [
        (1000, "1000 truncated=false kept=1000"),
        (1001, "1001 truncated=true kept=1000"),
        (LONGEST, "65507 truncated=true kept=1000"),
    ] {
        assert_eq!(client.ask(&format!("{:x<length$}", "size ")), answer);
    }
    assert_eq!(serving.counter("truncated"), 2);
}

pub fn datagrams_of_every_size_arrive_whole(cell: Combination) {
    let serving = Serving::start(cell, Options::default());
    let mut client = serving.client();
    for length in [5, 1472, 1473, 8192, 8193, LONGEST] {
        let answer = client.ask(&format!("{:x<length$}", "size "));
        assert_eq!(answer, format!("{length} truncated=false kept={length}"));

        client.say(&format!("pour {length}")).unwrap();
        let mut packet = vec![0; 1 << 17];
        let n = client.read(&mut packet).unwrap();
        assert_eq!(n, length);
        assert!(packet[..n] == pattern(length));
    }
}

pub fn an_unnamed_peer_cannot_be_answered(cell: Combination) {
    let serving = Serving::start(cell, Options::default());
    let nobody = UnixDatagram::unbound().unwrap();
    nobody
        .send_to(b"answer-me", serving.path().unwrap())
        .unwrap();
    serving.tells("answered 1 Err(NotConnected)");
    serving.tells("ended 1 failed");
    assert_eq!(serving.lines("accepted"), ["accepted 1 unnamed"]);
    serving.serves();
}

pub fn a_datagram_peer_that_does_not_read_times_the_reply_out(cell: Combination) {
    let serving = Serving::start(cell, Options::default().with("write", 100));
    let reason = if cell.is_forking() {
        "failed"
    } else {
        "timed out"
    };
    // The kernel bounds how much may wait for a peer that is not connected.
    let silent = named_unix_datagram().unwrap();
    silent.send_to(b"flood", serving.path().unwrap()).unwrap();
    serving.tells("reply-failed 1 TimedOut");
    serving.tells(&format!("ended 1 {reason}"));
    serving.serves();

    // For one that is, it bounds what the server has sent and nobody has read: that is freed when
    // the peer is gone.
    let mut silent = serving.client();
    silent.say("flood").unwrap();
    serving.tells("reply-failed 3 TimedOut");
    serving.tells(&format!("ended 3 {reason}"));
    drop(silent);
    serving.serves();
}

pub fn a_datagram_peer_that_reads_late_gets_every_reply(cell: Combination) {
    const REPLIES: u32 = 1000;
    let serving = Serving::start(cell, Options::default());
    let path = serving.path().unwrap();
    for (id, is_connected) in [(1, false), (2, true)] {
        let peer = named_unix_datagram().unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        if is_connected {
            peer.connect(path).unwrap();
        }
        peer.send_to(format!("flood {REPLIES}").as_bytes(), path)
            .unwrap();
        serving.tells(&format!("handle {id}"));
        let server = if cell.is_forking() {
            serving.child()
        } else {
            serving.pid()
        };
        serving.waits_for("the handler to find no room", || is_asleep(server));
        for n in 0..REPLIES {
            let mut reply = [0; 16];
            let length = peer.recv(&mut reply).unwrap();
            assert_eq!(
                reply[..length],
                *n.to_string().as_bytes(),
                "{}",
                serving.journal()
            );
        }
        serving.tells(&format!("ended {id} completed"));
        serving.is_idle();
    }
}
