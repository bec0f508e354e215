//! As many requests at once as the model allows, and one more.

use std::time::Duration;

use crate::matrix::Combination;
use crate::serving::Serving;
use crate::stage::Options;

pub fn at_the_limit_the_next_waits(cell: Combination) {
    let serving = Serving::start(cell, Options::default().with("limit", 2));
    let mut held = vec![serving.hold("a")];
    if !cell.is_sequential() {
        held.push(serving.hold("b"));
    }
    let next = held.len() + 1;
    let mut waiting = serving.client();
    waiting.say("next").unwrap();
    let mut one_more = serving.client();
    one_more.say("one more").unwrap();
    // Both are served in the one place that this makes free.
    held.remove(0).release();
    serving.answers(&mut waiting, "next");
    drop(waiting);
    serving.answers(&mut one_more, "one more");
    let [first, second] = [
        serving.position("ended 1"),
        serving.position(&format!("ended {next}")),
    ];
    assert!(
        first < serving.position(&format!("accepted {next}")),
        "{}",
        serving.journal()
    );
    assert!(
        second < serving.position(&format!("accepted {}", next + 1)),
        "{}",
        serving.journal()
    );
    assert_eq!(serving.count("refused"), 0);
}

pub fn at_the_limit_the_next_is_rejected(cell: Combination) {
    let serving = Serving::start(cell, Options::default().with("limit", 1).set("reject"));
    let held = serving.hold("gate");
    let mut rejected = serving.client();
    let _ = rejected.say("hello");
    serving.tells("refused 2 at the limit");
    if !cell.is_datagram() {
        assert!(rejected.was_cut());
    }
    assert_eq!(serving.count("factory"), 1);
    held.release();
    serving.waits_for("the place to be free again", || {
        let mut client = serving.client();
        client.set_patience(Duration::from_millis(200)).unwrap();
        client.say("again").is_ok()
            && matches!(client.hear(), Ok(Some(answer)) if answer == "again")
    });
}

pub fn a_stop_is_answered_at_the_limit(cell: Combination) {
    let mut serving = Serving::start(cell, Options::default().with("limit", 1));
    let held = serving.hold("gate");
    let mut waiting = serving.client();
    waiting.say("next").unwrap();
    serving.stop();
    serving.tells("served");
    assert_eq!(serving.count("accepted"), 1);
    serving.tell("serve");
    held.release();
    serving.answers(&mut waiting, "next");
}
