//! The matrix: transports, models, scenarios, and the places where one does not apply.

use std::fmt;
use std::path::{Path, PathBuf};

use libtest_mimic::Trial;
use socketserver::transport::{Tcp, ToBindAddrs, Udp, UnixDatagram, UnixStream};
use socketserver::{
    Builder, Concurrency, Forking, OverloadPolicy, Pooled, Sequential, Threading, Transport,
};

use crate::scenarios::{SCENARIOS, Scenario};
use crate::stage::{Options, Role, play};

/// A transport and where its server binds.
pub trait Wired: Transport {
    type Place: ToBindAddrs<Self>;
    fn place(directory: &Path, options: &Options) -> Self::Place;

    /// The options that this transport alone has.
    fn configured<C: Concurrency>(
        builder: Builder<Self, C>,
        options: &Options,
    ) -> Builder<Self, C> {
        let _ = options;
        builder
    }
}

/// A concurrency model and how the options of a trial apply to it.
pub trait Model: Concurrency {
    fn configured(options: &Options) -> Self;
}

/// Both halves of the matrix: what a trial can be run on, and the way from a combination's name to
/// the types it means. A new transport or model is one more line.
macro_rules! matrix {
    (
        transports { $($transport:ident: $wired:ty,)+ }
        models { $($(#[$condition:meta])* $model:ident: $configured:ty,)+ }
    ) => {
        pub const TRANSPORTS: &[&str] = &[$(stringify!($transport)),+];
        pub const MODELS: &[&str] = &[$($(#[$condition])* stringify!($model)),+];

        /// Serves on the combination that the role names.
        pub fn dispatch(role: &Role) {
            fn on<C: Model>(role: &Role) {
                match role.transport.as_str() {
                    $(stringify!($transport) => play::<$wired, C>(role),)+
                    other => panic!("no transport {other}"),
                }
            }
            match role.model.as_str() {
                $($(#[$condition])* stringify!($model) => on::<$configured>(role),)+
                other => panic!("no model {other}"),
            }
        }
    };
}

matrix! {
    transports {
        tcp: Tcp,
        udp: Udp,
        unix: UnixStream,
        unixgram: UnixDatagram,
    }
    models {
        sequential: Sequential,
        threading: Threading,
        forking: Forking,
        pooled: Pooled,
        #[cfg(feature = "green")]
        green: socketserver::Green,
    }
}

/// One cell of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Combination {
    pub transport: &'static str,
    pub model: &'static str,
}

impl Combination {
    pub fn is_datagram(self) -> bool {
        matches!(self.transport, "udp" | "unixgram")
    }

    /// Whether handlers run on the thread that accepts.
    pub fn is_sequential(self) -> bool {
        self.model == "sequential"
    }

    pub fn is_forking(self) -> bool {
        self.model == "forking"
    }
}

impl fmt::Display for Combination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::{}", self.transport, self.model)
    }
}

type Cells = fn(Combination) -> bool;

const DATAGRAM: Cells = Combination::is_datagram;
const NOT_UDP: Cells = |cell| cell.transport != "udp";
const STREAM: Cells = |cell| !cell.is_datagram();
const SEQUENTIAL: Cells = Combination::is_sequential;
const NOT_FORKING: Cells = |cell| !cell.is_forking();

/// What does not apply, where, and why.
const EXCEPTIONS: &[(&str, Cells, &str)] = &[
    (
        "half_close_still_gets_the_answer",
        DATAGRAM,
        "there is no direction to close",
    ),
    (
        "unread_input_does_not_destroy_the_answer",
        DATAGRAM,
        "a datagram is read or lost whole",
    ),
    (
        "a_large_write_survives_signals_and_a_slow_reader",
        DATAGRAM,
        "65 KB is the most there is",
    ),
    (
        "a_trickle_is_cut_by_the_request_deadline",
        DATAGRAM,
        "a datagram arrives at once",
    ),
    (
        "silence_is_cut_by_the_read_and_idle_timeouts",
        DATAGRAM,
        "nothing more is read",
    ),
    (
        "a_peer_that_does_not_read_is_cut_by_the_write_timeout",
        DATAGRAM,
        "see the next one",
    ),
    (
        "a_datagram_peer_that_does_not_read_times_the_reply_out",
        |cell| cell.transport != "unixgram",
        "a stream is the one before; over UDP, what finds no room is dropped",
    ),
    (
        "a_datagram_peer_that_reads_late_gets_every_reply",
        |cell| cell.transport != "unixgram",
        "over UDP, what finds no room is dropped",
    ),
    (
        "a_peer_that_goes_away_is_no_error",
        |cell| cell.transport == "udp",
        "nothing says that a UDP peer is gone, until the next datagram",
    ),
    (
        "datagrams_of_every_size_arrive_whole",
        STREAM,
        "a stream has no message boundaries",
    ),
    (
        "an_oversized_datagram_is_flagged_and_counted",
        STREAM,
        "a stream has no message boundaries",
    ),
    (
        "an_empty_datagram_is_a_request",
        STREAM,
        "a stream without bytes is at its end",
    ),
    (
        "nothing_is_replied_unless_the_handler_does",
        STREAM,
        "what is written to a stream is sent",
    ),
    (
        "an_unnamed_peer_cannot_be_answered",
        |cell| cell.transport != "unixgram",
        "every other peer has an address, or a connection",
    ),
    (
        "answers_come_from_the_address_that_was_asked",
        NOT_UDP,
        "of the others, a socket has one address",
    ),
    (
        "ipv6_answers_do_as_well",
        NOT_UDP,
        "of the others, a socket has one address",
    ),
    (
        "replies_are_limited_until_the_peer_is_validated",
        NOT_UDP,
        "the others cannot forge an address",
    ),
    (
        "low_ports_are_refused_before_a_handler_is_made",
        NOT_UDP,
        "the others have none, or cannot forge it",
    ),
    (
        "what_the_kernel_drops_is_counted",
        NOT_UDP,
        "the others lose nothing",
    ),
    (
        "at_the_limit_the_next_is_rejected",
        SEQUENTIAL,
        "the loop that would reject is serving",
    ),
    (
        "a_stop_is_answered_at_the_limit",
        SEQUENTIAL,
        "the loop that would stop is serving",
    ),
    (
        "a_stop_leaves_live_requests_alone",
        SEQUENTIAL,
        "the loop that stops has just served them",
    ),
    (
        "a_drop_waits_for_nothing",
        SEQUENTIAL,
        "nothing is live outside of serve_forever",
    ),
    (
        "a_drain_refuses_new_clients",
        |cell| cell.is_sequential() || cell.transport == "udp",
        "a loop that serves closes nothing; a socket by which replies are sent stays open",
    ),
    (
        "a_close_leaves_a_stuck_handler_behind",
        SEQUENTIAL,
        "nothing is live outside of serve_forever",
    ),
    (
        "a_drain_cuts_at_its_deadline",
        |cell| cell.is_datagram() && cell.is_sequential(),
        "a handler that does not wait for its connection cannot be cut by its own thread",
    ),
    (
        "one_at_a_time",
        |cell| !cell.is_sequential(),
        "the other models have a trial of their own",
    ),
    (
        "many_at_a_time",
        SEQUENTIAL,
        "one at a time is what it is for",
    ),
    (
        "exit_codes_are_0_and_1",
        NOT_FORKING,
        "a matter of children",
    ),
    (
        "a_foreign_child_stays_waitable",
        NOT_FORKING,
        "a matter of children",
    ),
    (
        "a_child_owns_nothing_of_its_parent",
        NOT_FORKING,
        "a matter of children",
    ),
    (
        "a_killed_child_ends_only_its_request",
        NOT_FORKING,
        "a matter of children",
    ),
    (
        "a_signal_to_the_whole_group_is_for_the_parent",
        NOT_FORKING,
        "a matter of children",
    ),
    (
        "children_that_ignore_the_signal_end_at_the_deadline",
        NOT_FORKING,
        "a matter of children",
    ),
    (
        "serving_with_threads_running_is_refused",
        NOT_FORKING,
        "threads do not mind threads",
    ),
    (
        "children_of_a_dead_server_end",
        NOT_FORKING,
        "threads end with their process",
    ),
];

/// Every scenario on every combination that it applies to.
pub fn trials() -> Vec<Trial> {
    for (name, _, _) in EXCEPTIONS {
        let known = SCENARIOS.iter().any(|scenario| scenario.name == *name);
        assert!(known, "an exception for {name}, which is no scenario");
    }
    let cells = TRANSPORTS.iter().flat_map(|transport| {
        MODELS
            .iter()
            .map(move |model| Combination { transport, model })
    });
    cells
        .flat_map(|cell| {
            SCENARIOS
                .iter()
                .filter(move |s| applies(s, cell))
                .map(move |s| (s, cell))
        })
        .map(|(scenario, cell)| {
            Trial::test(format!("{cell}::{}", scenario.name), move || {
                (scenario.run)(cell);
                Ok(())
            })
        })
        .collect()
}

fn applies(scenario: &Scenario, cell: Combination) -> bool {
    !EXCEPTIONS
        .iter()
        .any(|(name, except, _)| *name == scenario.name && except(cell))
}

impl Wired for Tcp {
    type Place = &'static str;
    fn place(_: &Path, _: &Options) -> &'static str {
        "127.0.0.1:0"
    }
}

impl Wired for Udp {
    type Place = &'static str;
    fn place(_: &Path, options: &Options) -> &'static str {
        if options.has("everywhere") {
            return "0.0.0.0:0";
        }
        if options.has("everywhere_in_ipv6") {
            return "[::]:0";
        }
        // Not where the clients are: an answer that comes too late for its client must not be a
        // request to another trial's server, which would answer it in turn.
        "127.0.0.2:0"
    }

    fn configured<C: Concurrency>(
        builder: Builder<Self, C>,
        options: &Options,
    ) -> Builder<Self, C> {
        let mut builder = builder;
        if let Some(bytes) = options.count("max_packet_size") {
            builder = builder.max_packet_size(bytes);
        }
        if let Some(bytes) = options.count("receive_buffer") {
            builder = builder.receive_buffer(bytes);
        }
        if let Some(factor) = options.number("max_amplification") {
            builder = builder.max_amplification(u32::try_from(factor).ok());
        }
        if options.has("reject_low_ports") {
            builder = builder.reject_low_ports();
        }
        builder
    }
}

impl Wired for UnixStream {
    type Place = PathBuf;
    fn place(directory: &Path, _: &Options) -> PathBuf {
        directory.join("socket")
    }
}

impl Wired for UnixDatagram {
    type Place = PathBuf;
    fn place(directory: &Path, _: &Options) -> PathBuf {
        directory.join("socket")
    }

    fn configured<C: Concurrency>(
        builder: Builder<Self, C>,
        options: &Options,
    ) -> Builder<Self, C> {
        match options.count("max_packet_size") {
            Some(bytes) => builder.max_packet_size(bytes),
            None => builder,
        }
    }
}

impl Model for Sequential {
    fn configured(_: &Options) -> Self {
        Self
    }
}

impl Model for Threading {
    fn configured(options: &Options) -> Self {
        let model = Self::new().overload_policy(policy(options));
        match options.count("limit") {
            Some(most) => model.max_threads(most),
            None => model,
        }
    }
}

impl Model for Forking {
    fn configured(options: &Options) -> Self {
        let model = Self::new().overload_policy(policy(options));
        match options.count("limit") {
            Some(most) => model.max_children(most),
            None => model,
        }
    }
}

impl Model for Pooled {
    fn configured(options: &Options) -> Self {
        let model = Self::new().overload_policy(policy(options));
        match options.count("limit") {
            Some(most) => model.workers(most).queue(0),
            None => model,
        }
    }
}

#[cfg(feature = "green")]
impl Model for socketserver::Green {
    fn configured(options: &Options) -> Self {
        let model = Self::new().overload_policy(policy(options));
        match options.count("limit") {
            Some(most) => model.max_requests(most),
            None => model,
        }
    }
}

fn policy(options: &Options) -> OverloadPolicy {
    if options.has("reject") {
        OverloadPolicy::Reject
    } else {
        OverloadPolicy::Wait
    }
}
