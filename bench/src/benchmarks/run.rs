//! One run of a benchmark: a server and a load, each in its own process.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tempfile::TempDir;

use crate::contenders::{Contender, Transport};
use crate::environment::Cores;
use crate::load::{Kind, Outcome, RunSpec, TestFile};
use crate::process::Process;

/// The options of both processes.
pub(super) struct Setup {
    pub(super) transport: Transport,
    pub(super) kind: Kind,
    pub(super) clients: usize,
    /// Size of a message or a file, in bytes.
    pub(super) size: usize,
    /// Further options of the server.
    pub(super) server_args: Vec<&'static str>,
    /// Further options of the load.
    pub(super) load_args: Vec<String>,
}

/// A running server and its load. The load is dropped first, so that the server sees its clients
/// disconnect.
pub(super) struct Run {
    load: Option<Process>,
    pub(super) server: Process,
    _directory: Option<TempDir>,
}

/// The result of one run of the load.
pub(super) struct Measurement {
    pub(super) outcome: Outcome,
    /// CPU time of the server, in nanoseconds.
    pub(super) server: f64,
    /// CPU time of the load and of the server, as shares of a core.
    pub(super) load_share: f64,
    pub(super) server_share: f64,
    /// Number of times that the load went to sleep because no answer was available.
    pub(super) sleeps: f64,
    pub(super) elapsed: Duration,
}

impl Run {
    /// Starts both. Every client has connected and received a correct answer when this returns.
    pub(super) fn start(contender: Contender, cores: Cores, setup: Setup) -> anyhow::Result<Self> {
        let name = contender.name();
        let mut serve = vec!["serve".to_owned(), name];
        serve.extend(setup.server_args.iter().map(ToString::to_string));
        if setup.size > 1024 && setup.transport != Transport::Http {
            serve.push("--large".into());
        }
        let mut directory = None;
        match setup.transport {
            Transport::Tcp => {}
            Transport::Udp => serve.push("--udp".into()),
            Transport::Unix => {
                let own = directory.insert(tempfile::tempdir()?);
                let path = own.path().join("socket");
                serve.push(format!("--unix={}", path.display()));
            }
            Transport::Http => {
                let own = directory.insert(tempfile::tempdir()?);
                let files = own.path().join("files");
                fs::create_dir(&files)?;
                let file = TestFile::of(setup.size);
                fs::write(files.join(file.name()), file.bytes())?;
                serve.push(format!("--http={}", own.path().display()));
            }
        }
        let mut server = Process::start(cores.server, &serve)?;
        let address = server.read_line().context("the server did not start")?;
        let mut load = vec!["load".into(), setup.kind.name(), address];
        load.push(format!("--clients={}", setup.clients));
        load.push(format!("--size={}", setup.size));
        load.extend(setup.load_args);
        let mut load = Process::start(cores.load, &load)?;
        ensure!(load.read_line()? == "ready", "the load did not start");
        Ok(Self {
            load: Some(load),
            server,
            _directory: directory,
        })
    }

    pub(super) fn measure(&mut self, spec: RunSpec) -> anyhow::Result<Measurement> {
        let load = self.load.as_mut().context("the load was stopped before")?;
        let before = (self.server.usage()?, load.usage()?, Instant::now());
        let outcome: Outcome = load.request(&spec.to_string())?.parse()?;
        let (server, load, elapsed) = (self.server.usage()?, load.usage()?, before.2.elapsed());
        ensure!(outcome.answered > 0, "the server sent no answer");
        let nanoseconds = elapsed.as_secs_f64() * 1e9;
        let server_time = server.cpu_since(&before.0);
        Ok(Measurement {
            outcome,
            server: server_time,
            load_share: load.cpu_since(&before.1) / nanoseconds,
            server_share: server_time / nanoseconds,
            sleeps: load.sleeps_since(&before.1),
            elapsed,
        })
    }

    /// Ends the load, which closes all connections.
    pub(super) fn stop_load(&mut self) {
        self.load = None;
    }

    /// Waits until the server uses no CPU time any more, at most 5 s.
    pub(super) fn wait_until_idle(&self) -> anyhow::Result<()> {
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

/// Estimates the time to start and end both processes. An interpreter starts more slowly.
pub(super) fn startup_time(contender: Contender, clients: usize) -> Duration {
    let start = match contender {
        Contender::PythonThreading | Contender::PythonAsyncio => 150,
        Contender::PythonGevent => 300,
        _ => 30,
    };
    let connect = match contender {
        // One process per connection.
        Contender::Forking => 500,
        Contender::Threading | Contender::StdThread => 150,
        Contender::PythonThreading | Contender::PythonAsyncio | Contender::PythonGevent => 250,
        _ => 90,
    };
    let clients = u32::try_from(clients.min(contender.max_connections())).unwrap_or(u32::MAX);
    Duration::from_millis(start) + Duration::from_micros(connect) * clients
}
