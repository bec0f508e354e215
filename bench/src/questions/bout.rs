//! One server and one load, in processes of their own.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tempfile::TempDir;

use crate::contenders::{Contender, Wire};
use crate::load::{Kind, Order, Outcome, Page};
use crate::machine::Cores;
use crate::process::Process;

/// What they are told.
pub(super) struct Setup {
    pub(super) wire: Wire,
    pub(super) kind: Kind,
    pub(super) clients: usize,
    /// Of a message or a file, in bytes.
    pub(super) size: usize,
    /// Further options of the server.
    pub(super) serve: Vec<&'static str>,
    /// Further options of the load.
    pub(super) load: Vec<String>,
}

/// The load ends first, so that the server sees its clients leave.
pub(super) struct Bout {
    load: Option<Process>,
    pub(super) server: Process,
    _directory: Option<TempDir>,
}

/// What one run of the load has cost.
pub(super) struct Run {
    pub(super) outcome: Outcome,
    /// Nanoseconds on a core.
    pub(super) server: f64,
    /// The load's share of its core, and the server's.
    pub(super) load_share: f64,
    pub(super) server_share: f64,
    /// How often the load went to sleep for want of answers.
    pub(super) sleeps: f64,
    pub(super) elapsed: Duration,
}

impl Bout {
    /// Clients are connected, and have had right answers.
    pub(super) fn start(contender: Contender, cores: Cores, setup: Setup) -> anyhow::Result<Self> {
        let name = contender.name();
        let mut serve = vec!["serve".to_owned(), name];
        serve.extend(setup.serve.iter().map(ToString::to_string));
        if setup.size > 1024 && setup.wire != Wire::Http {
            serve.push("--large".into());
        }
        let mut directory = None;
        match setup.wire {
            Wire::Tcp => {}
            Wire::Udp => serve.push("--udp".into()),
            Wire::Unix => {
                let own = directory.insert(tempfile::tempdir()?);
                let path = own.path().join("socket");
                serve.push(format!("--unix={}", path.display()));
            }
            Wire::Http => {
                let own = directory.insert(tempfile::tempdir()?);
                let files = own.path().join("files");
                fs::create_dir(&files)?;
                let page = Page::of(setup.size);
                fs::write(files.join(page.name()), page.bytes())?;
                serve.push(format!("--http={}", own.path().display()));
            }
        }
        let mut server = Process::start(cores.server, &serve)?;
        let address = server.line().context("the server does not start")?;
        let mut load = vec!["load".into(), setup.kind.name(), address];
        load.push(format!("--clients={}", setup.clients));
        load.push(format!("--size={}", setup.size));
        load.extend(setup.load);
        let mut load = Process::start(cores.load, &load)?;
        ensure!(load.line()? == "ready");
        Ok(Self {
            load: Some(load),
            server,
            _directory: directory,
        })
    }

    pub(super) fn run(&mut self, order: Order) -> anyhow::Result<Run> {
        let load = self.load.as_mut().context("the load has ended")?;
        let before = (self.server.usage()?, load.usage()?, Instant::now());
        let outcome: Outcome = load.ask(&order.to_string())?.parse()?;
        let (server, load, elapsed) = (self.server.usage()?, load.usage()?, before.2.elapsed());
        ensure!(outcome.answered > 0, "no answers");
        let nanoseconds = elapsed.as_secs_f64() * 1e9;
        let server_time = server.cpu_since(&before.0);
        Ok(Run {
            outcome,
            server: server_time,
            load_share: load.cpu_since(&before.1) / nanoseconds,
            server_share: server_time / nanoseconds,
            sleeps: load.sleeps_since(&before.1),
            elapsed,
        })
    }

    /// All clients leave.
    pub(super) fn end_load(&mut self) {
        self.load = None;
    }

    /// Until the server has nothing to do any more.
    pub(super) fn settle(&self) -> anyhow::Result<()> {
        let end = Instant::now() + Duration::from_secs(5);
        let mut before = self.server.usage()?;
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
            let now = self.server.usage()?;
            if now.cpu_since(&before) < 1.0 {
                return Ok(());
            }
            before = now;
        }
        Ok(())
    }

    pub(super) fn stop_server(self) -> anyhow::Result<Duration> {
        self.server.stop()
    }
}

/// What it takes to start and end both, about: an interpreter takes longer.
pub(super) fn overhead(contender: Contender, clients: usize) -> Duration {
    let start = match contender {
        Contender::PythonThreading | Contender::PythonAsyncio => 150,
        Contender::PythonGevent => 300,
        _ => 30,
    };
    let connect = match contender {
        // A process each.
        Contender::Forking => 500,
        Contender::Threading | Contender::StdThread => 150,
        Contender::PythonThreading | Contender::PythonAsyncio | Contender::PythonGevent => 250,
        _ => 90,
    };
    let clients = u32::try_from(clients.min(contender.capacity())).unwrap_or(u32::MAX);
    Duration::from_millis(start) + Duration::from_micros(connect) * clients
}
