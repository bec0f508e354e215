//! Checks that the tables in `limits.md` match the code and are complete.

use std::collections::BTreeSet;
use std::path::Path;

use crate::concurrency::{
    Concurrency, Forking, Green, OverloadPolicy, Pooled, Sequential, Threading,
};
use crate::http;
use crate::metrics::Metrics;
use crate::room::RoomLimits;
use crate::sessions::SessionLimits;
use crate::timeouts::MinRate;
use crate::transport::{SocketOptions, Tcp, TcpKeepalive, Transport, Udp};
use crate::websocket;
use crate::{Admission, Builder, Counters, ThreadingTcpServer, ThreadingUdpServer, Timeouts};
use table::{Constant, Row, bytes, code, hold, number, rows, time};

#[path = "table.rs"]
mod table;

const TABLE: &str = include_str!("limits.md");

/// The section with the limits of the programs; their own test checks it.
const PROGRAMS: &str = "The programs";

/// Returns the defaults that are not constants.
fn defaults() -> Vec<(&'static str, String)> {
    [
        other_defaults(),
        timeouts(),
        admission(),
        models(),
        sockets(),
        applications(),
        http(),
        websocket(),
    ]
    .concat()
}

/// Returns the defaults that are not in the code or are not numbers.
fn other_defaults() -> Vec<(&'static str, String)> {
    vec![
        ("`Builder::verify_request`", "none".into()),
        ("descriptors", "`ulimit -n`".into()),
        ("`Builder::reserved_descriptors`", "0".into()),
        // The library has no defaults here. The test of the programs checks the defaults of their
        // flags.
        ("`OverloadPolicy::Queue`: patience", "10 s".into()),
        ("`OverloadPolicy::Queue`: places", "128".into()),
        ("`ServerHandle::drain`", "30 s".into()),
        ("lame duck before a drain", "0 s".into()),
    ]
}

fn timeouts() -> Vec<(&'static str, String)> {
    // A new field fails to compile here, because the field needs a row.
    let Timeouts {
        first_byte,
        idle,
        read,
        receive_rate,
        write,
        send_rate,
        request,
    } = Timeouts::default();
    let rate = |rate: MinRate| {
        let (rate, grace) = (rate.bytes_per_second, time(rate.granted()));
        format!("{rate} bytes/s after {grace}")
    };
    let of_datagrams = Udp::default_timeouts().write;
    vec![
        ("`Timeouts::first_byte`", or_none(first_byte, time)),
        ("`Timeouts::idle`", or_none(idle, time)),
        ("`Timeouts::read`", or_none(read, time)),
        ("`Timeouts::receive_rate`", or_none(receive_rate, rate)),
        ("`Timeouts::write`", or_none(write, time)),
        (
            "`Timeouts::write` of datagrams",
            or_none(of_datagrams, time),
        ),
        ("`Timeouts::send_rate`", or_none(send_rate, rate)),
        ("`Timeouts::request`", or_none(request, time)),
    ]
}

fn admission() -> Vec<(&'static str, String)> {
    let Admission {
        rules,
        max_active,
        max_per_peer,
        rate,
        rate_per_peer,
    } = Admission::default();
    let rules = (!rules.is_empty()).then_some(rules.len());
    let (rate, rate_per_peer) = (
        rate.map(|r| r.to_string()),
        rate_per_peer.map(|r| r.to_string()),
    );
    vec![
        (
            "`Admission::allow`, `Admission::deny`",
            or_none(rules, number),
        ),
        ("`Admission::max_active`", or_none(max_active, number)),
        ("`Admission::max_per_peer`", or_none(max_per_peer, number)),
        ("`Admission::rate`", or_none(rate, |rate| rate)),
        (
            "`Admission::rate_per_peer`",
            or_none(rate_per_peer, |rate| rate),
        ),
    ]
}

fn models() -> Vec<(&'static str, String)> {
    let limit = |(limit, policy): (usize, OverloadPolicy)| {
        assert_eq!(
            policy,
            OverloadPolicy::default(),
            "a model has a different default policy"
        );
        number(limit)
    };
    // The default of the standard library's threads; `std::thread`, "Stack size".
    let stack = |asked: Option<usize>| bytes(asked.unwrap_or(2 << 20));
    let (threading, pooled, green) = (Threading::default(), Pooled::default(), Green::default());
    let settings = &pooled.settings;
    assert_eq!(settings.at_limit, OverloadPolicy::default());
    assert_eq!(green.workers, None, "one per core");
    vec![
        (
            "`OverloadPolicy`",
            format!("{:?}", OverloadPolicy::default()).to_lowercase(),
        ),
        // `Sequential` has no policy.
        ("`Sequential`", number(Sequential.limit().0)),
        ("`Threading::max_threads`", limit(threading.limit())),
        ("`Threading::stack_size`", stack(threading.stack_size)),
        ("`Forking::max_children`", limit(Forking::default().limit())),
        ("`Pooled::workers`", number(settings.workers)),
        ("`Pooled::queue`", number(settings.queue)),
        ("`Pooled::max_idle`", number(settings.max_idle)),
        ("`Pooled::stack_size`", stack(settings.stack_size)),
        ("`Green::max_requests`", limit(green.limit())),
        ("coroutines of a server", number(green.max_coroutines())),
        ("`Green::workers`", "one per core".into()),
        ("`Green::stack_size`", bytes(green.stack_size)),
        (
            "`Green::stall_threshold`",
            or_none(green.stall_threshold, time),
        ),
        (
            "a `Green` worker: how long a request keeps it while others can go on",
            time(greenroom::TIME_SLICE),
        ),
        (
            "`greenroom::unblock`",
            number(greenroom::MAX_BLOCKING_THREADS),
        ),
    ]
}

fn sockets() -> Vec<(&'static str, String)> {
    let SocketOptions {
        reuse_address: _,
        reuse_port: _,
        dual_stack: _,
        backlog,
        mode: _,
        owner: _,
        write_timeout: _,
        max_packet_size,
        max_amplification,
        reject_low_ports,
        receive_buffer,
        send_buffer,
        nodelay: _,
        keepalive,
        user_timeout,
    } = Builder::<Tcp, Threading>::new()
        .checked_options()
        .expect("the defaults are valid");
    let TcpKeepalive {
        idle,
        interval,
        probes,
    } = TcpKeepalive::default();
    // The kernel reduces the value: listen(2).
    assert_eq!(backlog, i32::MAX);
    let of_system = |size: Option<usize>| size.map_or("the system's".into(), bytes);
    let off = |is_on: bool| if is_on { "on" } else { "off" }.to_owned();
    vec![
        ("`Builder::backlog`", "`net.core.somaxconn`".into()),
        ("`Builder::max_packet_size`", bytes(max_packet_size)),
        (
            "`Builder::max_amplification`",
            or_none(max_amplification, number),
        ),
        ("`Builder::reject_low_ports`", off(reject_low_ports)),
        // No option admits these datagrams.
        ("datagrams from the server's own address", "none".into()),
        ("datagrams from port 0", "none".into()),
        ("`Builder::receive_buffer`", of_system(receive_buffer)),
        ("`Builder::send_buffer`", of_system(send_buffer)),
        ("`Builder::user_timeout`", or_none(user_timeout, time)),
        ("`Builder::keepalive`", off(keepalive.is_some())),
        ("`TcpKeepalive::idle`", time(idle)),
        ("`TcpKeepalive::interval`", time(interval)),
        ("`TcpKeepalive::probes`", number(probes)),
    ]
}

fn applications() -> Vec<(&'static str, String)> {
    let RoomLimits {
        messages,
        bytes: outbox,
        byte_rate,
        message_rate,
    } = RoomLimits::default();
    let SessionLimits {
        sessions,
        per_address,
        idle,
    } = SessionLimits::default();
    vec![
        ("`RoomLimits::messages`", number(messages)),
        ("`RoomLimits::bytes`", bytes(outbox)),
        (
            "`RoomLimits::byte_rate`",
            or_none(byte_rate, |rate| rate.to_string()),
        ),
        (
            "`RoomLimits::message_rate`",
            or_none(message_rate, |rate| rate.to_string()),
        ),
        ("`SessionLimits::sessions`", number(sessions)),
        ("`SessionLimits::per_address`", number(per_address)),
        ("`SessionLimits::idle`", time(idle)),
    ]
}

fn http() -> Vec<(&'static str, String)> {
    let http::HttpLimits {
        request_line,
        header,
        max_headers,
        header_read_timeout,
        body,
        chunk_extensions,
        max_discard,
    } = http::HttpLimits::default();
    vec![
        ("`http::HttpLimits::request_line`", bytes(request_line)),
        ("`http::HttpLimits::header`", bytes(header)),
        ("`http::HttpLimits::max_headers`", number(max_headers)),
        (
            "`http::HttpLimits::header_read_timeout`",
            or_none(header_read_timeout, time),
        ),
        ("`http::HttpLimits::body`", bytes(body)),
        (
            "`http::HttpLimits::chunk_extensions`",
            bytes(chunk_extensions),
        ),
        ("`http::HttpLimits::max_discard`", bytes(max_discard)),
    ]
}

fn websocket() -> Vec<(&'static str, String)> {
    let websocket::WebSocketLimits {
        message,
        frame,
        frames,
        close_timeout,
    } = websocket::WebSocketLimits::default();
    vec![
        ("`websocket::WebSocketLimits::message`", bytes(message)),
        ("`websocket::WebSocketLimits::frame`", bytes(frame)),
        ("`websocket::WebSocketLimits::frames`", number(frames)),
        (
            "`websocket::WebSocketLimits::close_timeout`",
            time(close_timeout),
        ),
        // The library sends no pings by default. The test of the programs checks the default of the
        // flag.
        ("`WebSocketUpgrade::ping`", "none".into()),
    ]
}

fn or_none<T>(limit: Option<T>, written: impl FnOnce(T) -> String) -> String {
    limit.map_or_else(|| "none".to_owned(), written)
}

const CONSTANTS: &[Constant] = &[
    (
        "requests of a `Green` worker that have not begun",
        "concurrency/green.rs BACKLOG_PER_WORKER",
    ),
    (
        "peers tracked individually",
        "admission/peers.rs MAX_TRACKED",
    ),
    ("`Lines::max_len`", "framing/lines.rs DEFAULT_MAX_LEN"),
    ("`LengthPrefix::max_len`", "framing/mod.rs DEFAULT_MAX_LEN"),
    ("`Netstring::max_len`", "framing/mod.rs DEFAULT_MAX_LEN"),
    (
        "levels of a JSON header",
        "framing/json_header.rs MAX_DEPTH",
    ),
    ("`JsonHeader::max_body`", "framing/mod.rs DEFAULT_MAX_LEN"),
    (
        "`JsonHeader::max_header`",
        "framing/json_header.rs DEFAULT_MAX_HEADER",
    ),
    ("parts of a `Range`", "http/range.rs MOST"),
    (
        "metrics: time for a request",
        "metrics/endpoint.rs REQUEST_TIMEOUT",
    ),
    ("metrics: header of a request", "metrics/http.rs MAX_HEAD"),
    ("metrics: fields of a header", "metrics/http.rs MAX_HEADERS"),
    ("`ProxyProtocol::timeout`", "preamble/proxy/mod.rs TIMEOUT"),
    (
        "PROXY header, version 1",
        "preamble/proxy/length.rs LONGEST_LINE",
    ),
    (
        "PROXY header, version 2",
        "preamble/proxy/length.rs LONGEST_BLOCK",
    ),
    ("`Tls::handshake_timeout`", "tls/mod.rs HANDSHAKE_TIMEOUT"),
    (
        "TLS handshakes at their limit: time of one",
        "tls/places.rs LEFT_ALONE",
    ),
    ("`Tls::max_handshakes`", "tls/mod.rs MAX_HANDSHAKES"),
    (
        "`Member::send`: back-pressure wait",
        "room/mod.rs SENDER_BACKPRESSURE",
    ),
    (
        "pause without descriptors, first",
        "server/backoff.rs FIRST",
    ),
    (
        "pause without descriptors, longest",
        "server/backoff.rs LONGEST",
    ),
    (
        "displacement: time for the first message",
        "server/displacement.rs SILENCE",
    ),
    (
        "displacement: time for the first message, majority address",
        "server/displacement.rs SILENCE_OF_MOST",
    ),
    ("`Displacement::idle`", "server/displacement.rs IDLE"),
    (
        "displacement: time between HTTP requests",
        "server/displacement.rs BETWEEN_REQUESTS",
    ),
    (
        "displacement: first minimum rate",
        "server/displacement.rs SLOW",
    ),
    (
        "displacement: highest minimum rate",
        "server/displacement.rs SLOW_AT_MOST",
    ),
    (
        "displacement: measuring time of a transfer",
        "server/displacement.rs WINDOW",
    ),
    (
        "displacement: connections cancelled at once",
        "server/displacement.rs AT_ONCE",
    ),
    (
        "displacement: wait of a client that would be rejected",
        "server/displacement.rs MADE",
    ),
    ("time to notice a cancellation", "server/drain.rs GRACE"),
    ("backlog accepted by a drain", "server/drain.rs BACKLOG"),
    (
        "clients that came just before a drain, and have said nothing",
        "server/handle.rs NEWCOMER",
    ),
    (
        "`Builder::block_on_close`",
        "server/lifecycle.rs DEFAULT_DRAIN",
    ),
    ("`Builder::rejection_message`", "server/rejection.rs NOTICE"),
    (
        "rejected clients: time to read the message",
        "server/rejection.rs LINGER",
    ),
    (
        "rejected clients: connections that wait for this time",
        "server/rejection.rs MAX_LINGERING",
    ),
    (
        "close: time for a peer that still sends",
        "server/close.rs LINGER",
    ),
    (
        "close: bytes from a peer that still sends",
        "server/close.rs LINGER_BYTES",
    ),
    (
        "WebSocket in a drain: time for further messages",
        "websocket/session.rs DRAIN_GRACE",
    ),
    ("`Builder::max_packet_size`", "transport/mod.rs MAX_PACKET"),
    (
        "claiming a Unix socket's path",
        "transport/unix_path.rs CLAIM_TIMEOUT",
    ),
    (
        "length of a Unix socket's path",
        "transport/unix_path.rs LONGEST",
    ),
];

const NO_LIMITS: &[&str] = &[
    // How often something is looked at or told, and when.
    "admission/peers.rs SWEEP",
    "tls/dates.rs AGAIN",
    "tls/dates.rs NOTICE",
    "server/backoff.rs EPISODE",
    "server/drop_report.rs INTERVAL",
    "concurrency/pooled/mod.rs TELL",
    "server/displacement.rs BUSY",
    "server/displacement.rs DOUBLES_EVERY",
    "server/displacement.rs EPISODE",
    "server/displacement.rs PAUSE",
    "server/displacement.rs PAUSE_TIMES",
    "server/displacement.rs STALE",
    // Part of a limit with its own row.
    "admission/peer_counts.rs MORE",
    // Its row stands with the peers told apart.
    "admission/peers.rs SHARED",
    "server/displacement.rs MANY",
    "server/displacement.rs SHARE",
    "event/throttle.rs INTERVAL",
    // The minimum of a default with its own row.
    "server/builder.rs UNCONFIRMED",
    // Amounts of work before other requests run. Nothing is rejected or lost.
    "framing/buffer.rs CHUNK",
    "http/response_writer.rs COALESCE_LIMIT",
    "socket.rs AT_ONCE",
    "socket.rs MAX_BLOCK",
    "socket.rs COPY",
    "websocket/decoder.rs READ",
    "preamble/proxy/reader.rs USUAL",
    "room/outbox.rs BATCH",
    "server/accept.rs BUDGET",
    "server/accept.rs MAX_EMPTY_ACCEPTS",
    "tls/identity.rs LONGEST_KEY",
    "tls/session.rs PIECE",
    // Thresholds that classify a peer's behaviour but do not restrict it.
    "room/outbox.rs WRITE_STALL",
    "server/close.rs LINGER_SENT",
    // Half a second for a thread that has no work left.
    "server/accept_loop.rs SIDECAR_DRAIN",
    // Constants of formats and protocols.
    "framing/netstring.rs MAX_DIGITS",
    "http/chunked.rs DIGITS",
    "preamble/proxy/length.rs FIXED",
    "tls/session.rs RECORD",
    "websocket/decoder.rs LONGEST_CONTROL",
    "websocket/message.rs LONGEST_REASON",
    // Bits, codes and names.
    "waiting.rs KIND_BITS",
    "concurrency/pooled/idle.rs WAKER",
    "preamble/proxy/header.rs ALPN",
    "preamble/proxy/header.rs AUTHORITY",
    "preamble/proxy/header.rs CRC32C",
    "preamble/proxy/header.rs SSL",
    "preamble/proxy/header.rs UNIQUE_ID",
    "server/accept_loop.rs KIND",
    "server/lifecycle.rs CHILD_DRAIN_UNIT",
    "server/lifecycle.rs CHILD_LAME_UNIT",
    "server/lifecycle.rs CHILD_STOP_UNIT",
    "server/lifecycle.rs CLOSED",
    "server/lifecycle.rs DRAIN",
    "server/lifecycle.rs FORCED",
    "server/lifecycle.rs LAME",
    "server/lifecycle.rs NEW",
    "server/lifecycle.rs PHASE",
    "server/lifecycle.rs SERVING",
    "server/lifecycle.rs STOP",
    "server/lifecycle.rs STOPPED",
    "server/lifecycle.rs WAKE_UNIT",
];

#[test]
fn table_matches_the_defaults_of_the_code() {
    let (all, defaults) = (rows(TABLE), defaults());
    let mut names = BTreeSet::new();
    for row in &all {
        assert!(
            names.insert(row.limit),
            "{} has more than one row",
            row.limit
        );
    }
    for (limit, default) in &defaults {
        let row = all.iter().find(|row| row.limit == *limit);
        assert_eq!(
            row.map(|row| row.default),
            Some(&**default),
            "the default of {limit}"
        );
    }
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    hold(&all, &sources, CONSTANTS, NO_LIMITS);
    let of_defaults = defaults.iter().map(|(limit, _)| *limit);
    let known: BTreeSet<_> = of_defaults
        .chain(CONSTANTS.iter().map(|(limit, _)| *limit))
        .collect();
    for row in all.iter().filter(|row| row.section != PROGRAMS) {
        assert!(
            known.contains(row.limit),
            "{} is not in the code",
            row.limit
        );
    }
}

#[test]
fn counters_exist_and_every_reason_has_a_row() {
    let all = rows(TABLE);
    let metrics = Metrics::new();
    let tcp = ThreadingTcpServer::bind("127.0.0.1:0", crate::handler_fn(|_| Ok(()))).unwrap();
    let udp = ThreadingUdpServer::bind("127.0.0.1:0", crate::handler_fn(|_| Ok(()))).unwrap();
    metrics.register("tcp", &tcp.handle());
    metrics.register("udp", &udp.handle());
    let rendered = metrics.render();
    let counters = Counters::default();
    let rejections: BTreeSet<_> = counters.rejections().map(|(reason, _)| reason).collect();
    let ends: BTreeSet<_> = counters.ends().map(|(reason, _)| reason).collect();
    let (mut rejected, mut ended) = (BTreeSet::new(), BTreeSet::new());
    for Row { limit, counted, .. } in &all {
        for cell in counted.split(", ").filter(|cell| *cell != "—") {
            let label = code(cell).next().unwrap_or(cell);
            match cell.split_once(": ") {
                Some(("rejected", _)) => assert!(rejections.contains(label), "{limit}: {label}"),
                Some(("ended", _)) => assert!(ends.contains(label), "{limit}: {label}"),
                _ => {
                    let known = format!("# TYPE socketserver_{label} ");
                    assert!(
                        rendered.contains(&known),
                        "{limit}: {label} is not a metric"
                    );
                }
            }
            match cell.split_once(": ") {
                Some(("rejected", _)) => rejected.insert(label),
                Some(("ended", _)) => ended.insert(label),
                _ => false,
            };
        }
    }
    assert_eq!(rejected, rejections, "every rejection reason has a row");
    // `completed` and `panicked` are results of a handler and not of a limit.
    ended.extend(["completed", "panicked"]);
    assert_eq!(ended, ends);
}

#[test]
fn every_row_is_complete_and_says_how_to_change_the_limit() {
    let ways = ["next request", "restart", "handler", "call", "fixed"];
    for row in rows(TABLE) {
        assert!(ways.contains(&row.changed), "{row:?}");
        assert!(!row.limit.is_empty() && !row.default.is_empty(), "{row:?}");
        assert!(row.reached.len() > 3 && !row.counted.is_empty(), "{row:?}");
        // A constant has no flag. The exception is `--workers` of `command`, which has a constant
        // as its maximum.
        let may_have_flag = row.changed != "fixed" || row.section == PROGRAMS;
        assert!(may_have_flag || row.flags == "—", "{row:?}");
        assert_eq!(row.flags.contains("--"), row.flags != "—", "{row:?}");
    }
}
