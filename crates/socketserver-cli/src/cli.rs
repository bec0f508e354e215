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

/// Network servers to talk to, and a client to talk with.
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
#[expect(clippy::enum_variant_names, reason = "one of them is called so")]
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

/// A program that serves, before it does.
pub(crate) trait Program {
    fn server(&mut self) -> &mut ServerOptions;

    /// Refuses options that do not go together. Nothing is opened or looked up for it.
    fn check(&self) -> anyhow::Result<()> {
        Ok(())
    }

    /// Looks at files that it will need, without changing anything.
    fn check_files(&self) -> anyhow::Result<()> {
        Ok(())
    }
}

impl Command {
    /// `None` for a client.
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

/// Options that are right one by one and cannot work together.
#[derive(Debug)]
pub(crate) struct UsageError(pub(crate) String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

impl ServerOptions {
    /// Refuses what does not go together.
    pub(crate) fn check(&self) -> Result<(), UsageError> {
        let counts_peers = self.max_per_peer.is_some() || self.rate_per_peer.is_some();
        if self.concurrency == Model::Forking && !self.proxy_from.is_empty() && counts_peers {
            return Err(UsageError(
                "--max-per-peer and --rate-per-peer cannot be kept for clients of --proxy-from by \
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
                return Err(UsageError(format!("{endpoint} is to be listened on twice")));
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

    /// Where it is to serve clients.
    pub(crate) fn listening(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.iter().chain(&self.web)
    }
}

/// What every server program has in common.
#[derive(Debug, Args)]
#[command(next_help_heading = "Serving")]
pub(crate) struct ServerOptions {
    /// Where to listen; may be given several times
    ///
    /// tcp://HOST:PORT, tls://HOST:PORT, udp://HOST:PORT, unix:///path, unix://@abstract, unixgram:///path,
    /// unixgram://@abstract. Port 0 lets the system choose. Only this machine can connect to
    /// 127.0.0.1; all its addresses are 0.0.0.0 and `[::]`. A name is all addresses that it has. An
    /// address of one link needs its interface: tcp://[fe80::1%eth0]:80. systemd and systemd:NAME are sockets that
    /// a socket unit has bound.
    #[arg(
        long = "listen",
        short = 'l',
        value_name = "ENDPOINT",
        default_value = "tcp://127.0.0.1:8888"
    )]
    pub(crate) endpoints: Vec<Endpoint>,

    /// How requests are served
    #[arg(long, short = 'c', value_enum, default_value_t)]
    pub(crate) concurrency: Model,

    /// How many requests each endpoint serves at once [default: threading 1024, forking 40,
    /// pooled 32, green 10000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) workers: Option<u32>,

    /// How many requests each endpoint has at once, silent ones that hold no worker included
    /// [default: any number]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_active: Option<u32>,

    /// What happens to a client that comes when all workers are busy
    #[arg(long, value_enum, default_value_t)]
    pub(crate) at_limit: Policy,

    /// How long a client may wait with --at-limit queue
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) queue_time: Duration,

    /// How many may wait with --at-limit queue
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) queue_places: u32,

    /// Cut no connection for another one: by default, when a client waits that there is no place for,
    /// connections that use nothing (silent, idle or slow ones) are cut
    #[arg(long)]
    pub(crate) no_displacement: bool,

    /// A line that is sent to clients that are turned away, but not to those that --deny has or
    /// --allow has not
    #[arg(long, value_name = "TEXT", value_parser = notice)]
    pub(crate) rejection_message: Option<String>,

    /// Turn away clients from these addresses: 10.0.0.0/8, 2001:db8::/32, 127.0.0.1 or all; may be
    /// given several times
    #[arg(long, value_name = "NETWORK")]
    pub(crate) deny: Vec<Network>,

    /// Let in only clients from these addresses, unless --deny has them; may be given several times
    #[arg(long, value_name = "NETWORK")]
    pub(crate) allow: Vec<Network>,

    /// How many requests of one address each endpoint serves at once [default: any number]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_per_peer: Option<u32>,

    /// How many requests are taken on per second, and after a pause at once, as in 100 or 100:500;
    /// others wait [default: any number]
    #[arg(long, value_name = "N[:BURST]")]
    pub(crate) rate: Option<Rate>,

    /// The same for each address; here others are refused
    #[arg(long, value_name = "N[:BURST]")]
    pub(crate) rate_per_peer: Option<Rate>,

    /// Answer a datagram over UDP with no more than N times its bytes, in no more than N replies:
    /// whoever forges its source cannot aim more traffic at others than is his own [default: any
    /// amount]
    #[arg(long, value_name = "N")]
    pub(crate) max_amplification: Option<u32>,

    /// Refuse datagrams over UDP from ports below 1024, where services are that answer anything
    #[arg(long)]
    pub(crate) reject_low_ports: bool,

    /// Trust proxies at these addresses to say who their clients are, by the PROXY protocol; "unix"
    /// is whoever connects to a Unix socket; may be given several times
    ///
    /// A connection from there must begin with a header of version 1 or 2 (send-proxy or
    /// send-proxy-v2 of HAProxy). Connections from elsewhere, and datagrams, are served as they are.
    /// --deny, --allow and the limits for each address hold for the clients; --deny and --allow hold
    /// for the proxies as well.
    #[arg(long, value_name = "NETWORK", value_parser = proxy)]
    pub(crate) proxy_from: Vec<Proxy>,

    /// How long a trusted proxy may take to send its header
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = nonzero)]
    pub(crate) proxy_timeout: Duration,

    /// How long a client may take to say anything at all; chat has no such limit
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = limit)]
    pub(crate) first_byte_timeout: TimeoutArg,

    /// How fast the rest of a message must arrive whose beginning has: so many bytes per second
    /// after some time, or none
    #[arg(long, value_name = "BYTES[:TIME]", default_value = "240:30s", value_parser = min_rate)]
    pub(crate) min_receive_rate: MinRateArg,

    /// How fast a client must read while it is waited for
    #[arg(long, value_name = "BYTES[:TIME]", default_value = "240:30s", value_parser = min_rate)]
    pub(crate) min_send_rate: MinRateArg,

    /// How long a connection may be silent in both directions ("none" for any time)
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = limit)]
    pub(crate) idle_timeout: TimeoutArg,

    /// How long a write may wait for a client that does not read [default: 60s; 1s for datagrams]
    #[arg(long, value_name = "DURATION", value_parser = limit)]
    pub(crate) write_timeout: Option<TimeoutArg>,

    /// How long a connection may last at all
    #[arg(long, value_name = "DURATION", default_value = "none", value_parser = limit)]
    pub(crate) request_timeout: TimeoutArg,

    #[command(flatten)]
    pub(crate) tls: tls::ServerTls,

    #[command(flatten)]
    pub(crate) privileges: privileges::Privileges,

    /// How long to go on serving everybody after a signal to stop, while /readyz says no: for those
    /// who distribute clients to notice and send them elsewhere, before the drain begins
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    pub(crate) lame_duck_time: Duration,

    /// How long requests have to end after that, before they are cut
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

    /// Where to tell over HTTP how the servers fare: /metrics for Prometheus, /livez, and /readyz;
    /// tcp://HOST:PORT or unix:///path
    #[arg(long, value_name = "ENDPOINT", value_parser = metrics::endpoint)]
    pub(crate) metrics: Option<Endpoint>,

    /// Permissions of the files of Unix sockets, in octal
    #[arg(long, value_name = "MODE", default_value = "600", value_parser = octal)]
    pub(crate) unix_mode: u32,

    /// Take from this file what the command line does not say, and again at each SIGHUP
    ///
    /// TOML, with the long flags as keys, as in `max-per-peer = 20`; what is for one program only
    /// can stand in a table with its name, such as [chat].
    #[arg(long, value_name = "FILE", help_heading = "Configuration")]
    pub(crate) config: Option<PathBuf>,

    /// Check all options, print what would be in force as a configuration, and exit: with 0, or with
    /// 2 if something is wrong
    ///
    /// Names are looked up and files that are needed are looked at. Nothing is bound.
    #[arg(long, help_heading = "Configuration")]
    pub(crate) check_config: bool,

    /// Which connections make room for others, unless none shall.
    #[arg(skip)]
    pub(crate) displacement: Displacement,

    /// Where browsers are served, by the one program that does.
    #[arg(skip)]
    pub(crate) web: Option<Endpoint>,

    /// Where they come from, if there is a file.
    #[arg(skip)]
    pub(crate) origin: Option<config::Origin>,

    /// What stands on the command line, by the names of flags.
    #[arg(skip)]
    pub(crate) given: std::collections::BTreeSet<String>,
}

/// A concurrency model by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Model {
    /// One at a time, in the serving thread
    Sequential,
    /// A thread for each
    #[default]
    Threading,
    /// A process for each
    Forking,
    /// A fixed number of threads
    Pooled,
    /// A coroutine for each, on a thread per core
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
    /// It waits until one is free
    #[default]
    Wait,
    /// It is closed at once
    Reject,
    /// It waits, but not for longer than --queue-time
    Queue,
}

/// Where proxies are.
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
        TimeoutArg(None) => Err("it has to end at some point".into()),
    }
}

/// A time, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimeoutArg(pub(crate) Option<Duration>);

pub(crate) fn limit(text: &str) -> Result<TimeoutArg, String> {
    if text == "none" {
        return Ok(TimeoutArg(None));
    }
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("zero would end everything at once; \"none\" is no limit".into()),
        Ok(limit) => Ok(TimeoutArg(Some(limit))),
        Err(error) => Err(format!("{error}; write it as 500ms, 30s, 5m or none")),
    }
}

/// A rate, or none.
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
            "write it as 240 bytes per second, 240:30s to ask for it after 30 s, or none".into(),
        );
    };
    let rate = MinRate::bytes_per_second(bytes);
    Ok(MinRateArg(Some(match grace.map(limit).transpose()? {
        None => rate,
        Some(TimeoutArg(Some(grace))) => rate.grace(grace),
        Some(TimeoutArg(None)) => return Err("the time has to end at some point".into()),
    })))
}

fn notice(text: &str) -> Result<String, &'static str> {
    if text.len() > 1000 {
        return Err("no more than 1000 bytes can be sent at once, for sure");
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
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn limits_are_written_as_people_write_them() {
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
        let patient = rate.grace(Duration::from_secs(60));
        assert_eq!(min_rate("1000:1m"), Ok(MinRateArg(Some(patient))));
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
