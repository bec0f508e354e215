//! The matrix: transports, models, scenarios, and the combinations to which a scenario does not
//! apply.

use std::fmt;
use std::path::{Path, PathBuf};

use libtest_mimic::Trial;
use socketserver::transport::{Tcp, ToBindAddrs, Udp, UnixDatagram, UnixStream};
use socketserver::{
    Builder, Concurrency, Forking, OverloadPolicy, Pooled, Sequential, Threading, Transport,
};

use crate::scenarios::{SCENARIOS, Scenario};
use crate::server_process::{Options, Role, play};

/// A transport and the address that its server binds.
pub trait TestTransport: Transport {
    type BindAddr: ToBindAddrs<Self>;
    fn bind_addr(directory: &Path, options: &Options) -> Self::BindAddr;

    /// Applies the options that only this transport has.
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

/// Defines both axes of the matrix, and the dispatch from the name of a combination to its types. A
/// new transport or model is one more line.
macro_rules! matrix {
    (
        transports { $($transport:ident: $typed:ty,)+ }
        models { $($(#[$condition:meta])* $model:ident: $configured:ty,)+ }
    ) => {
        pub const TRANSPORTS: &[&str] = &[$(stringify!($transport)),+];
        pub const MODELS: &[&str] = &[$($(#[$condition])* stringify!($model)),+];

        /// Runs a server of the combination that the role names.
        pub fn dispatch(role: &Role) {
            fn on<C: Model>(role: &Role) {
                match role.transport.as_str() {
                    $(stringify!($transport) => play::<$typed, C>(role),)+
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

    /// Returns true if handlers run on the thread that accepts.
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

/// The combinations to which a scenario does not apply, with the reason.
const EXCEPTIONS: &[(&str, Cells, &str)] = &[
    (
        "half_closed_client_receives_its_reply",
        DATAGRAM,
        "a datagram socket has no half-close",
    ),
    (
        "unread_input_does_not_destroy_the_reply",
        DATAGRAM,
        "a datagram is read or lost as a whole",
    ),
    (
        "large_write_survives_signals_and_a_slow_reader",
        DATAGRAM,
        "a datagram carries at most 65 KB",
    ),
    (
        "slow_request_ends_at_the_request_timeout",
        DATAGRAM,
        "a datagram arrives at once",
    ),
    (
        "silent_peer_ends_at_the_read_and_idle_timeouts",
        DATAGRAM,
        "the handler of a datagram reads no further input",
    ),
    (
        "peer_that_does_not_read_ends_at_the_write_timeout",
        DATAGRAM,
        "the next scenario covers datagrams",
    ),
    (
        "reply_to_a_peer_that_does_not_read_times_out",
        |cell| cell.transport != "unixgram",
        "the previous scenario covers streams; UDP drops datagrams without buffer space",
    ),
    (
        "peer_that_reads_late_receives_every_reply",
        |cell| cell.transport != "unixgram",
        "UDP drops datagrams without buffer space; a stream blocks",
    ),
    (
        "disconnected_peer_is_not_a_handler_error",
        |cell| cell.transport == "udp",
        "UDP reports a closed peer only with the next datagram",
    ),
    (
        "datagrams_of_every_size_arrive_whole",
        STREAM,
        "a stream has no message boundaries",
    ),
    (
        "oversized_datagram_is_flagged_and_counted",
        STREAM,
        "a stream has no message boundaries",
    ),
    (
        "empty_datagram_is_a_request",
        STREAM,
        "an empty stream is at its end",
    ),
    (
        "only_the_handler_replies_to_a_datagram",
        STREAM,
        "bytes that are written to a stream are sent",
    ),
    (
        "reply_to_an_unnamed_peer_fails",
        |cell| cell.transport != "unixgram",
        "every other peer has an address or a connection",
    ),
    (
        "replies_come_from_the_requested_address",
        NOT_UDP,
        "a socket of the other transports has one address",
    ),
    (
        "ipv6_replies_come_from_the_requested_address",
        NOT_UDP,
        "a socket of the other transports has one address",
    ),
    (
        "replies_are_limited_until_the_peer_is_validated",
        NOT_UDP,
        "peers of the other transports cannot forge an address",
    ),
    (
        "low_source_ports_are_rejected_without_a_handler",
        NOT_UDP,
        "peers of the other transports have no port or cannot forge it",
    ),
    (
        "kernel_drops_are_counted",
        NOT_UDP,
        "the kernel drops no data of the other transports",
    ),
    (
        "next_request_is_rejected_at_the_limit",
        SEQUENTIAL,
        "the accept loop runs the handler, so it cannot reject",
    ),
    (
        "server_stops_at_the_limit",
        SEQUENTIAL,
        "the accept loop runs the handler, so it cannot stop",
    ),
    (
        "shutdown_does_not_end_active_requests",
        SEQUENTIAL,
        "no request is active when the accept loop stops",
    ),
    (
        "drop_does_not_wait_for_active_requests",
        SEQUENTIAL,
        "no request is active outside of serve_forever",
    ),
    (
        "drain_closes_the_listener_at_once",
        |cell| cell.is_sequential() || cell.transport == "udp",
        "a sequential loop that runs a handler cannot close the listener; a UDP socket stays open for replies",
    ),
    (
        "close_abandons_a_stuck_handler_at_its_timeout",
        SEQUENTIAL,
        "no request is active outside of serve_forever",
    ),
    (
        "drain_cancels_requests_at_its_deadline",
        |cell| cell.is_datagram() && cell.is_sequential(),
        "the thread that runs the handler cannot cancel it unless it waits for its connection",
    ),
    (
        "sequential_server_serves_one_request_at_a_time",
        |cell| !cell.is_sequential(),
        "the other models have their own scenario",
    ),
    (
        "concurrent_server_serves_many_requests_at_a_time",
        SEQUENTIAL,
        "the sequential model serves one request at a time",
    ),
    (
        "exit_codes_are_0_and_1",
        NOT_FORKING,
        "the scenario is about children",
    ),
    (
        "foreign_child_stays_waitable",
        NOT_FORKING,
        "the scenario is about children",
    ),
    (
        "child_holds_no_descriptor_of_its_parent",
        NOT_FORKING,
        "the scenario is about children",
    ),
    (
        "killed_child_ends_only_its_request",
        NOT_FORKING,
        "the scenario is about children",
    ),
    (
        "children_ignore_signals_to_the_process_group",
        NOT_FORKING,
        "the scenario is about children",
    ),
    (
        "children_that_ignore_cancellation_are_killed",
        NOT_FORKING,
        "the scenario is about children",
    ),
    (
        "serving_with_other_threads_is_rejected",
        NOT_FORKING,
        "the other models may run next to threads",
    ),
    (
        "children_end_with_their_server",
        NOT_FORKING,
        "the threads of the other models end with their process",
    ),
];

/// Returns each scenario on each combination to which it applies.
pub fn trials() -> Vec<Trial> {
    for (name, _, _) in EXCEPTIONS {
        let known = SCENARIOS.iter().any(|scenario| scenario.name == *name);
        assert!(known, "EXCEPTIONS names {name}, which is not a scenario");
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

impl TestTransport for Tcp {
    type BindAddr = &'static str;
    fn bind_addr(_: &Path, _: &Options) -> &'static str {
        "127.0.0.1:0"
    }
}

impl TestTransport for Udp {
    type BindAddr = &'static str;
    fn bind_addr(_: &Path, options: &Options) -> &'static str {
        if options.has("everywhere") {
            return "0.0.0.0:0";
        }
        if options.has("everywhere_in_ipv6") {
            return "[::]:0";
        }
        // Not the address of the clients. A late reply to a closed client must not reach the server
        // of another trial, which would reply in turn.
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

impl TestTransport for UnixStream {
    type BindAddr = PathBuf;
    fn bind_addr(directory: &Path, _: &Options) -> PathBuf {
        directory.join("socket")
    }
}

impl TestTransport for UnixDatagram {
    type BindAddr = PathBuf;
    fn bind_addr(directory: &Path, _: &Options) -> PathBuf {
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
            Some(limit) => model.max_threads(limit),
            None => model,
        }
    }
}

impl Model for Forking {
    fn configured(options: &Options) -> Self {
        let model = Self::new().overload_policy(policy(options));
        match options.count("limit") {
            Some(limit) => model.max_children(limit),
            None => model,
        }
    }
}

impl Model for Pooled {
    fn configured(options: &Options) -> Self {
        let model = Self::new().overload_policy(policy(options));
        match options.count("limit") {
            Some(limit) => model.workers(limit).queue(0),
            None => model,
        }
    }
}

#[cfg(feature = "green")]
impl Model for socketserver::Green {
    fn configured(options: &Options) -> Self {
        let model = Self::new().overload_policy(policy(options));
        match options.count("limit") {
            Some(limit) => model.max_requests(limit),
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
