//! The server that is attacked, and what it uses.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{PATIENCE, Server, socketserver};

/// A concurrency model, and what keeps attackers from taking all of its places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    Sequential,
    Threading,
    Forking,
    Pooled,
    Green,
}

/// What attackers do with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crowd {
    /// It waits for its first message, or its next: then it holds no worker of a pool.
    Idle,
    /// It is within a message, or an answer.
    Active,
}

pub struct Victim {
    pub server: Server,
    pub model: Model,
}

/// What has to be the same after an attack as before it.
#[derive(Clone, Debug)]
pub struct Figures {
    pub threads: usize,
    pub descriptors: usize,
    pub children: usize,
    pub resident_kib: usize,
}

impl Model {
    fn name(self) -> &'static str {
        match self {
            Self::Sequential => "sequential",
            Self::Threading => "threading",
            Self::Forking => "forking",
            Self::Pooled => "pooled",
            Self::Green => "green",
        }
    }
}

impl Victim {
    /// A line echo over TCP with limits that are short enough for a test. Attackers come from other
    /// addresses than visitors, and where places are few, they get a share of them only.
    pub fn start(model: Model, crowd: Crowd, changed: &[[&str; 2]]) -> Self {
        let share = match (model, crowd) {
            (Model::Forking, _) | (Model::Pooled, Crowd::Active) => "20",
            _ => "2000",
        };
        let usual = [
            ["--log-level", "off"],
            ["--first-byte-timeout", "500ms"],
            ["--idle-timeout", "2s"],
            ["--min-receive-rate", "10000:500ms"],
            ["--write-timeout", "500ms"],
            ["--min-send-rate", "1000000:500ms"],
            ["--drain-timeout", "5s"],
            ["--max-per-peer", share],
        ];
        let usual = usual
            .iter()
            .filter(|[flag, _]| !changed.iter().any(|[other, _]| other == flag));
        let mut args = vec!["--framing", "lines", "-l", "tcp://127.0.0.1:0"];
        args.extend(usual.chain(changed).flatten());
        Self::with(model, &args)
    }

    /// An echo with these options.
    pub fn with(model: Model, args: &[&str]) -> Self {
        Self::launch(&mut socketserver(), model, args)
    }

    /// Another program with these options.
    pub fn serving(program: &str, model: Model, args: &[&str]) -> Self {
        let mut command = socketserver();
        command.args([program, "-c", model.name()]).args(args);
        let server = Server::launch(command.stdin(Stdio::null()), 1);
        Self { server, model }
    }

    /// The same, by a command that ends up as the program.
    pub fn launch(command: &mut Command, model: Model, args: &[&str]) -> Self {
        command.args(["echo", "-c", model.name()]).args(args);
        let server = Server::launch(command.stdin(Stdio::null()), 1);
        Self { server, model }
    }

    /// Where it listens, over IP.
    pub fn address(&self) -> SocketAddr {
        self.server.address(0).parse().unwrap()
    }

    pub fn figures(&self) -> Figures {
        let pid = self.server.pid();
        let count = |dir: &str| fs::read_dir(format!("/proc/{pid}/{dir}")).unwrap().count();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let fields: BTreeMap<_, _> = status.lines().filter_map(|l| l.split_once(':')).collect();
        let resident = fields["VmRSS"].trim().trim_end_matches(" kB");
        Figures {
            threads: count("task"),
            descriptors: count("fd"),
            children: self.children().len(),
            resident_kib: resident.parse().unwrap(),
        }
    }

    /// Of the server and its children.
    pub fn processor_time(&self) -> Duration {
        let children = self.children().into_iter().map(processor_time);
        processor_time(self.server.pid()) + children.sum::<Duration>()
    }

    pub fn children(&self) -> Vec<u32> {
        let pid = self.server.pid();
        let listed = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let listed = listed.unwrap_or_default();
        listed
            .split_whitespace()
            .map(|n| n.parse().unwrap())
            .collect()
    }

    /// Waits until nothing is left of an attack but memory that the process keeps for the next.
    pub fn recovers(&self, before: &Figures) -> Figures {
        // A pool keeps its threads.
        let kept = if self.model == Model::Pooled { 32 } else { 0 };
        let mut now = self.figures();
        let end = Instant::now() + PATIENCE;
        while now.threads > before.threads + kept
            || now.descriptors > before.descriptors
            || now.children > before.children
        {
            assert!(Instant::now() < end, "{before:?} before, {now:?} after");
            std::thread::sleep(Duration::from_millis(2));
            now = self.figures();
        }
        now
    }
}

/// Of a process, its threads, and its children that were collected, in steps of ten milliseconds:
/// proc_pid_stat(5). None of one that has gone.
pub fn processor_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before that may contain anything. From the third field on:
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let ticks = fields.split(' ').skip(11).take(4);
    let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}
