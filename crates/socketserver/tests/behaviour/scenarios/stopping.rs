//! Stops: from outside and inside, early, twice, with and without somebody being served.

use crate::matrix::Combination;
use crate::serving::Serving;
use crate::stage::Options;

pub fn an_idle_server_stops_and_serves_again(cell: Combination) {
    let mut serving = Serving::start(cell, Options::default());
    serving.serves();
    serving.rests();
    for round in 1..=2 {
        serving.stop();
        serving.tells_times("served", round);
        // Asked for what is the case already, a stop must not end the next round.
        serving.stop();
        let mut early = serving.client();
        early.say("is anybody there?").unwrap();
        serving.tell("serve");
        serving.answers(&mut early, "is anybody there?");
        drop(early);
        serving.serves();
        serving.rests();
    }
    assert_eq!(serving.count("served"), 2);
    serving.tell("shutdown");
    serving.tells_times("served", 3);
    serving.quits();
}

pub fn a_stop_before_serving_holds(cell: Combination) {
    let mut serving = Serving::bound(cell, Options::default().set("stop_first"));
    serving.tell("serve");
    serving.tells("served");
    serving.tell("serve");
    serving.serves();
    assert_eq!(serving.count("served"), 1);
}

pub fn a_stop_from_a_handler(cell: Combination) {
    let mut serving = Serving::start(cell, Options::default());
    for round in 1..=2 {
        assert_eq!(serving.client().ask("stop"), "stopping");
        serving.tells_times("served", round);
        serving.tell("serve");
        serving.serves();
        serving.rests();
    }
}

pub fn a_stop_leaves_live_requests_alone(cell: Combination) {
    let mut serving = Serving::start(cell, Options::default());
    let (one, two) = (serving.hold("one"), serving.hold("two"));
    serving.stop();
    serving.tells("served");
    assert_eq!(serving.count("ended"), 0);
    one.release();
    serving.tell("serve");
    serving.serves();
    two.release();
    serving.is_idle();
    assert_eq!(serving.count("handle_error"), 0, "{}", serving.journal());
}

pub fn a_drop_waits_for_nothing(cell: Combination) {
    let mut serving = Serving::start(cell, Options::default());
    let held = serving.hold("gate");
    serving.stop();
    serving.tells("served");
    serving.tell("drop");
    serving.tells("dropped");
    if cell.transport == "udp" {
        // The socket is needed for the reply.
        held.release();
        return serving.frees_its_address();
    }
    serving.frees_its_address();
    assert_eq!(serving.count("closing"), 0, "{}", serving.journal());
    held.release();
}

pub fn a_server_that_never_served_closes(cell: Combination) {
    for (command, done) in [("close", "closed"), ("drop", "dropped")] {
        let mut serving = Serving::bound(cell, Options::default());
        serving.tell(command);
        serving.tells(done);
        serving.frees_its_address();
        serving.quits();
    }
}
