//! The command line.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use socketserver::{Displacement, MinRate, Network, Rate};

use crate::endpoint::Endpoint;
use crate::{
    cert, command_client, config, connect, load, logging, metrics, privileges, programs, tls,
};

/// Network servers for lines, chat, files and commands, and clients to talk to them
#[derive(Debug, Parser)]
#[command(
    name = "socketserver",
    version,
    propagate_version = true,
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) logging: logging::Options,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
#[expect(
    clippy::enum_variant_names,
    reason = "`command` is the name of a program"
)]
pub(crate) enum Command {
    Upper(programs::upper::Options),
    Echo(programs::echo::Options),
    Chat(programs::chat::Options),
    Collect(programs::collect::Options),
    Reply(programs::reply::Options),
    Command(programs::command::Options),
    Http(programs::http::Options),
    Connect(connect::Options),
    CommandClient(command_client::Options),
    Load(load::Options),
    Cert(cert::Options),
}

/// A server program whose options can be checked before it starts.
pub(crate) trait Program {
    fn server(&mut self) -> &mut ServerOptions;

    /// Returns an error if options contradict each other. Opens nothing and looks up no name.
    fn check(&self) -> anyhow::Result<()> {
        Ok(())
    }

    /// Returns an error if a file that the program needs is unusable. Changes nothing.
    fn check_files(&self) -> anyhow::Result<()> {
        Ok(())
    }
}

impl Command {
    /// Returns the server program of this command, or `None` for a client.
    pub(crate) fn program(&mut self) -> Option<&mut dyn Program> {
        Some(match self {
            Self::Upper(program) => program,
            Self::Echo(program) => program,
            Self::Chat(program) => program,
            Self::Collect(program) => program,
            Self::Reply(program) => program,
            Self::Command(program) => program,
            Self::Http(program) => program,
            Self::Connect(_) | Self::CommandClient(_) | Self::Load(_) | Self::Cert(_) => {
                return None;
            }
        })
    }
}

/// An error in the combination of options that are valid separately.
#[derive(Debug)]
pub(crate) struct UsageError(pub(crate) String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

impl ServerOptions {
    /// Returns an error if options contradict each other.
    pub(crate) fn check(&self) -> Result<(), UsageError> {
        let counts_peers = self.max_per_peer.is_some() || self.rate_per_peer.is_some();
        if self.concurrency == Model::Forking && !self.proxy_from.is_empty() && counts_peers {
            return Err(UsageError(
                "--max-per-peer and --rate-per-peer cannot be enforced for clients of --proxy-from by \
                 forked processes, each of which knows only its own client: use another \
                 --concurrency, or set these limits in the proxy"
                    .into(),
            ));
        }
        let listening = self.listening().chain(&self.metrics);
        let mut seen = Vec::new();
        for endpoint in listening.map(ToString::to_string) {
            let is_any = endpoint.ends_with(":0");
            if !is_any && seen.contains(&endpoint) {
                return Err(UsageError(format!(
                    "{endpoint} is given twice; remove one of the two"
                )));
            }
            seen.push(endpoint);
        }
        self.check_effects()?;
        self.tls.check(self.listening())
    }

    /// Refuses options on the command line that have no effect there. A file may be for several programs
    /// and endpoints, and is not looked at.
    fn check_effects(&self) -> Result<(), UsageError> {
        let any = |is: fn(&Endpoint) -> bool| {
            let mut listening = self.listening();
            listening.any(|endpoint| is(endpoint) || endpoint.is_inherited())
        };
        let queues = self.at_limit == Policy::Queue;
        let encrypts = any(|endpoint| matches!(endpoint, Endpoint::Tls(_) | Endpoint::Https(_)));
        let has_udp = any(|endpoint| matches!(endpoint, Endpoint::Udp(_)));
        let of_udp = "an endpoint udp://HOST:PORT";
        let of_tls = "an endpoint tls://HOST:PORT";
        let needs = [
            ("queue-time", queues, "--at-limit queue"),
            ("queue-places", queues, "--at-limit queue"),
            ("proxy-timeout", !self.proxy_from.is_empty(), "--proxy-from"),
            ("tls-timeout", encrypts, of_tls),
            ("tls-handshakes", encrypts, of_tls),
            ("max-amplification", has_udp, of_udp),
            ("reject-low-ports", has_udp, of_udp),
            ("web-ping", self.web.is_some(), "--web http://HOST:PORT"),
        ];
        for (flag, has_effect, needed) in needs {
            if self.given.contains(flag) && !has_effect {
                return Err(UsageError(format!(
                    "--{flag} has no effect without {needed}: add that, or leave --{flag} out"
                )));
            }
        }
        Ok(())
    }

    /// Returns the endpoints that serve clients.
    pub(crate) fn listening(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.iter().chain(&self.web)
    }
}

/// The options that all server programs share.
#[derive(Debug, Args)]
#[command(next_help_heading = "Serving")]
pub(crate) struct ServerOptions {
    /// Address to listen on; may be given several times
    ///
    /// The forms are tcp://HOST:PORT, tls://HOST:PORT, udp://HOST:PORT, unix:///path,
    /// unix://@abstract, unixgram:///path and unixgram://@abstract. With port 0 the kernel chooses
    /// a free port. 127.0.0.1 accepts clients of this machine only; 0.0.0.0 and `[::]` are all
    /// addresses of the machine. A host name stands for all its addresses. A link-local address
    /// needs its interface: tcp://[fe80::1%eth0]:80. systemd and systemd:NAME are sockets that a
    /// systemd socket unit has bound.
    #[arg(
        long = "listen",
        short = 'l',
        value_name = "ENDPOINT",
        default_value = "tcp://127.0.0.1:8888"
    )]
    pub(crate) endpoints: Vec<Endpoint>,

    /// Concurrency model that runs the handlers
    #[arg(long, short = 'c', value_enum, default_value_t)]
    pub(crate) concurrency: Model,

    /// Maximum number of requests that each endpoint serves at once [default: threading 1024,
    /// forking 40, pooled 32, green 10000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) workers: Option<u32>,

    /// Maximum number of requests that each endpoint has at once, including suspended ones that
    /// hold no worker [default: unlimited]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_active: Option<u32>,

    /// Treatment of a new client while all workers are busy
    #[arg(long, value_enum, default_value_t)]
    pub(crate) at_limit: Policy,

    /// Maximum time that a client waits with --at-limit queue
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) queue_time: Duration,

    /// Maximum number of clients that wait with --at-limit queue
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) queue_places: u32,

    /// Do not displace connections. By default the server closes a silent, idle or slow connection
    /// when a new client waits and there is no free slot for it
    #[arg(long)]
    pub(crate) no_displacement: bool,

    /// Line of text to send to clients that the server rejects. Clients that --deny or --allow
    /// reject do not get it
    #[arg(long, value_name = "TEXT", value_parser = notice)]
    pub(crate) rejection_message: Option<String>,

    /// Reject clients from these addresses: 10.0.0.0/8, 2001:db8::/32, 127.0.0.1 or all; may be
    /// given several times
    #[arg(long, value_name = "NETWORK")]
    pub(crate) deny: Vec<Network>,

    /// Accept only clients from these addresses, except those that --deny lists; may be given
    /// several times
    #[arg(long, value_name = "NETWORK")]
    pub(crate) allow: Vec<Network>,

    /// Maximum number of requests from one address that each endpoint serves at once [default:
    /// unlimited]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_per_peer: Option<u32>,

    /// Maximum rate of new requests per second, with an optional burst size, such as 100 or
    /// 100:500; further requests wait [default: unlimited]
    #[arg(long, value_name = "N[:BURST]")]
    pub(crate) rate: Option<Rate>,

    /// Maximum rate of new requests per second from one address; further requests are rejected
    /// [default: unlimited]
    #[arg(long, value_name = "N[:BURST]")]
    pub(crate) rate_per_peer: Option<Rate>,

    /// Answer a UDP datagram with at most N times its bytes, in at most N replies. This limits the
    /// traffic that a client with a forged source address can direct at others [default: unlimited]
    #[arg(long, value_name = "N")]
    pub(crate) max_amplification: Option<u32>,

    /// Reject UDP datagrams from ports below 1024, because services on such ports may answer any
    /// datagram
    #[arg(long)]
    pub(crate) reject_low_ports: bool,

    /// Trust the PROXY protocol headers of proxies at these addresses; "unix" means all clients of
    /// Unix sockets; may be given several times
    ///
    /// A connection from a trusted address must begin with a PROXY protocol header of version 1 or
    /// 2 (send-proxy or send-proxy-v2 of HAProxy). Connections from other addresses, and datagrams,
    /// are served without a header. --deny, --allow and the limits for each address apply to the
    /// client that the header names. --deny and --allow apply to the proxy as well.
    #[arg(long, value_name = "NETWORK", value_parser = proxy)]
    pub(crate) proxy_from: Vec<Proxy>,

    /// Maximum time until a trusted proxy has sent its header
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = nonzero)]
    pub(crate) proxy_timeout: Duration,

    /// Maximum time until a client has sent its first byte, or "none"; chat has no such limit
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = limit)]
    pub(crate) first_byte_timeout: TimeoutArg,

    /// Minimum rate at which the rest of a message must arrive once it has begun, in bytes per
    /// second, optionally enforced only after a TIME, or "none"
    #[arg(long, value_name = "BYTES[:TIME]", default_value = "240:30s", value_parser = min_rate)]
    pub(crate) min_receive_rate: MinRateArg,

    /// Minimum rate at which a client must read while the server sends, in bytes per second,
    /// optionally enforced only after a TIME, or "none"
    #[arg(long, value_name = "BYTES[:TIME]", default_value = "240:30s", value_parser = min_rate)]
    pub(crate) min_send_rate: MinRateArg,

    /// Maximum time without traffic in both directions on a connection, or "none"
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = limit)]
    pub(crate) idle_timeout: TimeoutArg,

    /// Maximum time that a write waits for a client that does not read, or "none" [default: 60s; 1s
    /// for datagrams]
    #[arg(long, value_name = "DURATION", value_parser = limit)]
    pub(crate) write_timeout: Option<TimeoutArg>,

    /// Maximum duration of a connection, or "none"
    #[arg(long, value_name = "DURATION", default_value = "none", value_parser = limit)]
    pub(crate) request_timeout: TimeoutArg,

    #[command(flatten)]
    pub(crate) tls: tls::ServerTls,

    #[command(flatten)]
    pub(crate) privileges: privileges::Privileges,

    /// Time between a signal to stop and the drain. During this time /readyz fails and all clients
    /// are served, so that load balancers can direct new clients elsewhere
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    pub(crate) lame_duck_time: Duration,

    /// Maximum time that requests have to end during a drain, before the server cancels them
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "30s",
        value_parser = humantime::parse_duration
    )]
    pub(crate) drain_timeout: Duration,

    /// The exit status of a drain that had to cut requests when its time was over. 0 is the default
    /// because service managers take any other for a failed service
    #[arg(long, value_name = "STATUS", default_value_t = 0)]
    pub(crate) cut_status: u8,

    /// Serve health and statistics over HTTP at this address: /metrics for Prometheus, /livez and
    /// /readyz; tcp://HOST:PORT or unix:///path
    #[arg(long, value_name = "ENDPOINT", value_parser = metrics::endpoint)]
    pub(crate) metrics: Option<Endpoint>,

    /// Permissions of the files of Unix sockets, in octal
    #[arg(long, value_name = "MODE", default_value = "600", value_parser = octal)]
    pub(crate) unix_mode: u32,

    /// Read options from this file, at start and again at each SIGHUP; the command line takes
    /// precedence
    ///
    /// The file is in TOML format. Its keys are the long flags, such as `max-per-peer = 20`. A
    /// table with the name of a program, such as [chat], holds options for that program only.
    #[arg(long, value_name = "FILE", help_heading = "Configuration")]
    pub(crate) config: Option<PathBuf>,

    /// Check all options, print the resulting configuration and exit: with 0 if it is valid, with 2
    /// if not
    ///
    /// Names are looked up and the files are read. Nothing is bound.
    #[arg(long, help_heading = "Configuration")]
    pub(crate) check_config: bool,

    /// The connections that a new client can displace.
    #[arg(skip)]
    pub(crate) displacement: Displacement,

    /// The endpoint for browsers, which only `chat` has.
    #[arg(skip)]
    pub(crate) web: Option<Endpoint>,

    /// The command line and the file that the options come from, if there is a file.
    #[arg(skip)]
    pub(crate) origin: Option<config::Origin>,

    /// The values on the command line, by the names of their flags.
    #[arg(skip)]
    pub(crate) given: std::collections::BTreeSet<String>,
}

/// A concurrency model, by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Model {
    /// One request at a time, in the serving thread
    Sequential,
    /// One thread for each request
    #[default]
    Threading,
    /// One process for each request
    Forking,
    /// A fixed number of threads
    Pooled,
    /// One coroutine for each request, on one thread per core
    Green,
}

impl Model {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sequential => "sequential",
            Self::Threading => "threading",
            Self::Forking => "forking",
            Self::Pooled => "pooled",
            Self::Green => "green",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Policy {
    /// The client waits until a worker is free
    #[default]
    Wait,
    /// The server closes the connection at once
    Reject,
    /// The client waits, but no longer than --queue-time
    Queue,
}

/// The location of a trusted proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proxy {
    At(Network),
    Unix,
}

fn proxy(text: &str) -> Result<Proxy, String> {
    if text == "unix" {
        return Ok(Proxy::Unix);
    }
    match text.parse() {
        Ok(network) => Ok(Proxy::At(network)),
        Err(error) => Err(format!("{error}, or unix")),
    }
}

fn nonzero(text: &str) -> Result<Duration, String> {
    match limit(text)? {
        TimeoutArg(Some(time)) => Ok(time),
        TimeoutArg(None) => Err("this limit cannot be none; write it as 500ms, 30s or 5m".into()),
    }
}

/// A timeout, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimeoutArg(pub(crate) Option<Duration>);

pub(crate) fn limit(text: &str) -> Result<TimeoutArg, String> {
    if text == "none" {
        return Ok(TimeoutArg(None));
    }
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err(
            "a limit of zero would end every request at once; write \"none\" for no limit".into(),
        ),
        Ok(limit) => Ok(TimeoutArg(Some(limit))),
        Err(error) => Err(format!("{error}; write it as 500ms, 30s, 5m or none")),
    }
}

/// A minimum rate, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MinRateArg(pub(crate) Option<MinRate>);

fn min_rate(text: &str) -> Result<MinRateArg, String> {
    if text == "none" {
        return Ok(MinRateArg(None));
    }
    let (bytes, grace) = match text.split_once(':') {
        None => (text, None),
        Some((bytes, grace)) => (bytes, Some(grace)),
    };
    let Ok(bytes @ 1..) = bytes.parse::<u32>() else {
        return Err(
            "write it as 240 for 240 bytes per second, 240:30s to enforce it after 30 s, or none"
                .into(),
        );
    };
    let rate = MinRate::bytes_per_second(bytes);
    Ok(MinRateArg(Some(match grace.map(limit).transpose()? {
        None => rate,
        Some(TimeoutArg(Some(grace))) => rate.grace(grace),
        Some(TimeoutArg(None)) => return Err("the time cannot be none; write it as 240:30s".into()),
    })))
}

fn notice(text: &str) -> Result<String, &'static str> {
    if text.len() > 1000 {
        return Err("the text is longer than 1000 bytes, which may not fit into one write");
    }
    Ok(text.into())
}

fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("expected octal permissions from 0 to 777, such as 600 or 660".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_definition_is_valid() {
        Cli::command().debug_assert();
    }

    #[test]
    fn values_of_options_are_parsed() {
        assert_eq!(limit("none"), Ok(TimeoutArg(None)));
        assert_eq!(
            limit("1m 30s"),
            Ok(TimeoutArg(Some(Duration::from_secs(90))))
        );
        assert!(limit("0s").is_err());
        assert!(limit("5").unwrap_err().contains("30s"));
        let rate = MinRate::bytes_per_second(1000);
        assert_eq!(min_rate("none"), Ok(MinRateArg(None)));
        assert_eq!(min_rate("1000"), Ok(MinRateArg(Some(rate))));
        let with_grace = rate.grace(Duration::from_secs(60));
        assert_eq!(min_rate("1000:1m"), Ok(MinRateArg(Some(with_grace))));
        for bad in ["", "0", "10:", "10:0s", "10:none", ":5s", "-1", "10/s"] {
            assert!(min_rate(bad).is_err(), "{bad}");
        }
        assert_eq!(proxy("unix"), Ok(Proxy::Unix));
        assert_eq!(proxy("all"), Ok(Proxy::At(Network::all())));
        assert!(proxy("localhost").unwrap_err().contains("unix"));
        assert_eq!(nonzero("2s"), Ok(Duration::from_secs(2)));
        assert!(nonzero("0s").is_err() && nonzero("none").is_err());
        assert_eq!(octal("660"), Ok(0o660));
        assert!(octal("1777").is_err());
        assert!(octal("9").is_err());
    }
}
