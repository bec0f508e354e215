//! A stop while five hundred clients send requests.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::alone;
use crate::victim::{Crowd, Model, Victim};
use crate::visitor::Talk;

const TALKERS: usize = 500;
const STUCK: usize = 20;
const DEADLINE: Duration = Duration::from_secs(1);

/// Sends messages until told to stop, then waits for the end of the connection. Returns the number
/// of messages without an answer.
fn talk(mut talk: Talk, told_to_stop: &AtomicBool) -> usize {
    let mut unanswered = 0;
    loop {
        let before = !told_to_stop.load(Ordering::SeqCst);
        if before && talk.say().is_ok() {
            unanswered += 1;
        }
        while unanswered > 0 {
            match talk.hear() {
                Ok(true) => unanswered -= 1,
                Ok(false) | Err(_) => return unanswered,
            }
        }
        if !before {
            assert!(
                matches!(talk.hear(), Ok(false) | Err(_)),
                "one answer too many"
            );
            return unanswered;
        }
        // All clients together send five thousand messages per second, which a busy machine can
        // serve.
        thread::sleep(Duration::from_millis(100));
    }
}

fn loses_nothing(model: Model) {
    let _alone = alone();
    let changed = [
        ["--max-per-peer", "1000"],
        ["--workers", "600"],
        ["--drain-timeout", "1s"],
        ["--log-level", "info"],
        // Only the drain may cancel a stuck connection.
        ["--min-receive-rate", "none"],
        ["--idle-timeout", "1m"],
    ];
    let mut victim = Victim::start(model, Crowd::Active, &changed);
    let told_to_stop = AtomicBool::new(false);
    let (unanswered, took) = thread::scope(|scope| {
        let talking: Vec<_> = (0..TALKERS)
            .map(|_| {
                let mut one = Talk::with(victim.address());
                one.ask();
                scope.spawn(|| talk(one, &told_to_stop))
            })
            .collect();
        let mut stuck: Vec<_> = (0..STUCK).map(|_| Talk::with(victim.address())).collect();
        for one in &mut stuck {
            one.begin();
        }
        // The stop comes while clients send. The server must answer all messages sent before the
        // stop.
        thread::sleep(Duration::from_millis(300));
        told_to_stop.store(true, Ordering::SeqCst);
        let start = Instant::now();
        victim.server.signal("TERM");
        let unanswered: usize = talking.into_iter().map(|one| one.join().unwrap()).sum();
        for mut one in stuck {
            assert!(
                matches!(one.hear(), Ok(false) | Err(_)),
                "it was not finished"
            );
        }
        (unanswered, start.elapsed())
    });
    assert_eq!(unanswered, 0);
    assert!(victim.server.wait().success());
    assert!(took >= DEADLINE && took < DEADLINE * 3, "{took:?}");
    let report = victim.server.logged("drained");
    assert!(report.contains(&format!("cancelled={STUCK} ")), "{report}");
    assert!(report.contains("abandoned=0"), "{report}");
}

#[test]
fn threading_loses_nothing() {
    loses_nothing(Model::Threading);
}

#[test]
fn forking_loses_nothing() {
    loses_nothing(Model::Forking);
}

#[test]
fn pooled_loses_nothing() {
    loses_nothing(Model::Pooled);
}

#[test]
fn green_loses_nothing() {
    loses_nothing(Model::Green);
}
