//! Random conversations: requests of all kinds, sent in random pieces without waiting, with the
//! answers that have to come back. Each one has a number, by which it can be repeated.

use std::fmt::Write as _;

use socketserver::http::{Http, HttpLimits};
use socketserver::{Concurrency, Green, Pooled, Sequential, Threading};

use crate::client::{HttpClient, echo, serve};
use crate::common::random::Rng;

/// The bytes that one conversation sends, and the answers that it expects.
struct Conversation {
    bytes: Vec<u8>,
    expected: Vec<Expected>,
}

#[derive(Debug)]
struct Expected {
    status: u16,
    /// `None` of an error: its page has words.
    body: Option<Vec<u8>>,
    wants_body: bool,
    /// Nothing is answered after it.
    is_last: bool,
}

/// Requests that have no meaning, or two.
const BAD: [&str; 8] = [
    "GET / HTTP/1.1\r\n\r\n",
    "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 2\r\n\r\nab",
    "GET / HTTP/1.1\r\nHost: a\r\nA : b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nA: b\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
];

fn make_up(dice: &mut Rng) -> Conversation {
    let mut conversation = Conversation {
        bytes: Vec::new(),
        expected: Vec::new(),
    };
    for _ in 0..=dice.below(5) {
        if !conversation.request(dice) {
            break;
        }
    }
    // It says that it is the last, so that the server is not waited for.
    let is_over = conversation
        .expected
        .last()
        .is_some_and(|last| last.is_last);
    if !is_over {
        conversation
            .bytes
            .extend(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        conversation.expected.push(Expected {
            status: 200,
            body: Some(Vec::new()),
            wants_body: true,
            is_last: true,
        });
    }
    conversation
}

impl Conversation {
    /// Adds a request; whether another one may follow.
    fn request(&mut self, dice: &mut Rng) -> bool {
        if dice.below(8) == 0 {
            self.bytes.extend(dice.pick(&BAD).as_bytes());
            self.expected.push(Expected {
                status: 400,
                body: None,
                wants_body: true,
                is_last: true,
            });
            return false;
        }
        let body: Vec<u8> = match dice.below(3) {
            0 => Vec::new(),
            1 => (0..dice.below(20)).map(|_| dice.byte()).collect(),
            _ => (0..dice.below(3000)).map(|_| dice.byte()).collect(),
        };
        let is_head = dice.below(6) == 0;
        let method = if is_head {
            "HEAD"
        } else {
            *dice.pick(&["GET", "POST", "PUT", "X"])
        };
        let closes = dice.below(10) == 0;
        let mut head = format!("{method} /{} HTTP/1.1\r\nHost: a\r\n", dice.below(1000));
        for n in 0..dice.below(4) {
            let _ = write!(head, "X-{n}: {}\r\n", "y".repeat(dice.below(40)));
        }
        if closes {
            head += "Connection: close\r\n";
        }
        let mut text: Vec<u8> = Vec::new();
        if dice.below(2) == 0 {
            if !body.is_empty() || dice.below(2) == 0 {
                let _ = write!(head, "Content-Length: {}\r\n", body.len());
            }
            text.extend(&body);
        } else {
            head += "Transfer-Encoding: chunked\r\n";
            let mut rest = &body[..];
            while !rest.is_empty() {
                let (chunk, more) = rest.split_at(1 + dice.below(rest.len()));
                let extension = *dice.pick(&["", ";a", ";a=b", ";a=\"b c\""]);
                text.extend(format!("{:x}{extension}\r\n", chunk.len()).as_bytes());
                text.extend(chunk);
                text.extend(b"\r\n");
                rest = more;
            }
            text.extend(b"0\r\n");
            if dice.below(4) == 0 {
                text.extend(b"X-After: all\r\n");
            }
            text.extend(b"\r\n");
        }
        self.bytes.extend(head.as_bytes());
        self.bytes.extend(b"\r\n");
        self.bytes.extend(text);
        self.expected.push(Expected {
            status: 200,
            body: Some(body),
            wants_body: !is_head,
            is_last: closes,
        });
        !closes
    }
}

fn converse<C: Concurrency>(model: C, count: u64) {
    let http = Http::new().limits(HttpLimits::default().body(10_000));
    let running = serve(model, http, echo);
    for number in 0..count {
        let mut dice = Rng::new(0x5eed + number);
        let conversation = make_up(&mut dice);
        let mut wire = HttpClient::to(&running);
        let mut rest = &conversation.bytes[..];
        while !rest.is_empty() {
            let most = if dice.below(2) == 0 { 10 } else { rest.len() };
            let (piece, more) = rest.split_at(rest.len().min(1 + dice.below(most)));
            // Behind a request that is refused it may be closed already.
            if wire.0.send(piece).is_err() {
                break;
            }
            rest = more;
        }
        for (n, expected) in conversation.expected.iter().enumerate() {
            let answer = wire.read_answer(expected.wants_body);
            let what = format!(
                "conversation {number}, answer {n}: {expected:?}, {}",
                answer.head
            );
            assert_eq!(answer.status, expected.status, "{what}");
            assert_eq!(answer.closes(), expected.is_last, "{what}");
            if let Some(body) = expected.body.as_ref().filter(|_| expected.wants_body) {
                assert!(answer.body == *body, "{what}");
            }
            if expected.is_last {
                assert_eq!(n + 1, conversation.expected.len(), "{what}");
            }
        }
        wire.expect_end();
    }
    let counters = running.handle.counters();
    assert_eq!((counters.failed, counters.panicked), (0, 0));
}

/// Under four models together.
fn converse_under_four_models(count: u64) {
    std::thread::scope(|scope| {
        scope.spawn(move || converse(Sequential, count));
        scope.spawn(move || converse(Threading::new(), count));
        scope.spawn(move || converse(Pooled::new(), count));
        scope.spawn(move || converse(Green::new(), count));
    });
}

#[test]
fn four_hundred_random_conversations() {
    converse_under_four_models(100);
}

#[test]
#[ignore = "takes ten seconds, in release: see CONTRIBUTING.md"]
fn twenty_two_thousand_random_conversations() {
    converse_under_four_models(5500);
}
