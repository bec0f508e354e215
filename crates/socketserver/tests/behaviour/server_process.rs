//! The process of a server: it serves according to its [`Role`], executes the commands on its
//! standard input, and writes its events to a journal.
//!
//! It has one thread. While it serves, the server itself watches the input. A sequential server
//! reads its input only between two requests, so a signal can also stop or drain it through the
//! library's `ServerHandle`.

use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use socketserver::{Builder, Event, HandlerError, RequestInfo, Server, ServerHandle, Timeouts};

use crate::matrix::{Model, TestTransport, dispatch};
use crate::scripted_handler::{ScriptedHandler, ScriptedRequest, inject_fault};

const ROLE: &str = "SOCKETSERVER_BEHAVIOUR";

/// The task of a child process of this program, which the environment passes on.
#[derive(Clone, Debug)]
pub struct Role {
    pub transport: String,
    pub model: String,
    pub directory: PathBuf,
    pub options: Options,
}

impl Role {
    /// Reads the role from the environment. Returns `None` if this process runs the trials.
    pub fn from_environment() -> Option<Self> {
        let role = std::env::var(ROLE).ok()?;
        let mut words = role.split(' ').map(str::to_owned);
        Some(Self {
            transport: words.next()?,
            model: words.next()?,
            directory: words.next()?.into(),
            options: Options(words.collect()),
        })
    }

    /// Sets the environment of a child process that is to play the role.
    pub fn assign(&self, process: &mut Command) {
        let directory = self.directory.to_str().unwrap();
        let role = format!("{} {} {directory}", self.transport, self.model);
        let words = [&[role], &*self.options.0].concat();
        process.env(ROLE, words.join(" "));
    }

    pub fn run(&self) {
        dispatch(self);
    }
}

/// The options of a trial's server: words such as `reject` and `limit=2`.
#[derive(Clone, Debug, Default)]
pub struct Options(Vec<String>);

impl Options {
    #[must_use]
    pub fn set(mut self, word: &str) -> Self {
        self.0.push(word.into());
        self
    }

    #[must_use]
    pub fn with(self, name: &str, value: u64) -> Self {
        self.set(&format!("{name}={value}"))
    }

    pub fn has(&self, word: &str) -> bool {
        self.0.iter().any(|it| it == word)
    }

    pub fn number(&self, name: &str) -> Option<u64> {
        let value = |word: &String| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok();
        self.0.iter().find_map(value)
    }

    pub fn count(&self, name: &str) -> Option<usize> {
        self.number(name).and_then(|n| usize::try_from(n).ok())
    }

    fn millis(&self, name: &str) -> Option<Duration> {
        self.number(name).map(Duration::from_millis)
    }
}

static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
static JOURNAL: OnceLock<File> = OnceLock::new();
static HANDLE: OnceLock<ServerHandle> = OnceLock::new();

/// Returns the directory of the trial.
pub fn directory() -> &'static PathBuf {
    DIRECTORY.get().unwrap()
}

/// Writes one line to the journal, with one `write(2)` to a file in append mode, so that processes
/// and threads do not mix up their lines.
pub fn journal(line: impl Display) {
    let line = format!("{line}\n");
    JOURNAL.get().unwrap().write_all(line.as_bytes()).unwrap();
}

/// Binds a server of these types, prints its address, and executes commands.
pub fn play<T, C>(role: &Role)
where
    T: TestTransport,
    T::Request: ScriptedRequest,
    C: Model,
{
    let file = role.directory.join("journal");
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)
        .unwrap();
    JOURNAL.set(file).unwrap();
    DIRECTORY.set(role.directory.clone()).unwrap();
    std::panic::set_hook(Box::new(|info| journal(format_args!("panicked {info:?}"))));

    let foreign = role.options.has("foreign_child").then(foreign_child);
    let options = &role.options;
    let model = C::configured(options);
    let builder = T::configured(hooks::<T, C>(options).concurrency(model), options);
    let address = T::bind_addr(&role.directory, options);
    let mut server = builder.bind(address, ScriptedHandler::new).unwrap();
    let handle = server.handle();
    HANDLE.set(handle.clone()).unwrap();
    install_command_handler();
    if options.has("stop_first") {
        handle.shutdown();
    }
    if options.has("second_thread") {
        std::thread::spawn(|| std::thread::sleep(Duration::from_secs(3600)));
    }

    let seen = rustix::net::getsockname(&server).unwrap();
    let address = server.local_addr().to_string();
    journal(format_args!(
        "bound {address} {:?}",
        std::net::SocketAddr::try_from(seen).ok()
    ));
    let inode = File::from(server.as_fd().try_clone_to_owned().unwrap())
        .metadata()
        .unwrap()
        .ino();
    journal(format_args!("listener socket:[{inode}]"));
    println!("{address}");

    let input = io::stdin().as_fd().try_clone_to_owned().unwrap();
    server.watch(input, move || {
        let line = read_line();
        match words(&line)[..] {
            ["shutdown"] => handle.shutdown(),
            ["drain", millis] => handle.drain(Duration::from_millis(millis.parse()?)),
            // The trial is over or has failed: the process must not outlive it.
            _ => std::process::exit(3),
        }
        Ok(())
    });
    run_commands(server, foreign);
}

/// Executes commands until the input ends, or until a command consumes the server.
fn run_commands<T, C>(mut server: Server<T, C>, mut foreign: Option<std::process::Child>)
where
    T: TestTransport,
    T::Request: ScriptedRequest,
    C: Model,
{
    loop {
        let line = read_line();
        match words(&line)[..] {
            ["serve"] => match server.serve_forever() {
                Ok(()) => journal("served"),
                Err(error) => journal(format_args!("serve-failed {error:#}")),
            },
            ["handle", millis] => {
                let timeout = millis.parse().ok().map(Duration::from_millis);
                journal(format_args!(
                    "handled {:?}",
                    server.handle_request(timeout).unwrap()
                ));
            }
            ["collect"] => {
                let status = foreign.as_mut().unwrap().wait().unwrap();
                journal(format_args!("collected {}", status.code().unwrap_or(-1)));
            }
            ["counters"] => journal(format_args!("counters {:?}", server.handle().counters())),
            ["close"] => {
                let report = server.server_close().unwrap();
                journal(format_args!("closed {report:?}"));
                break;
            }
            ["drop"] => {
                drop(server);
                journal("dropped");
                break;
            }
            _ => return,
        }
    }
    // Threads of the server continue until the trial has seen enough.
    read_line();
}

/// Returns a builder whose hooks journal each call and then fail if the trial has set that fault.
fn hooks<T, C>(options: &Options) -> Builder<T, C>
where
    T: TestTransport,
    T::Request: ScriptedRequest,
    C: Model,
{
    let timeouts = Timeouts::default()
        .read(options.millis("read"))
        .request(options.millis("request"));
    let timeouts = match options.millis("idle") {
        Some(limit) => timeouts.idle(Some(limit)),
        None => timeouts,
    };
    let timeouts = match options.millis("write") {
        Some(limit) => timeouts.write(Some(limit)),
        None => timeouts,
    };
    let mut builder = Server::<T, C>::builder()
        .timeouts(timeouts)
        .verify_request(|request| {
            journal(format_args!("verify {}", request.number()));
            inject_fault("verify_request")
                .map(|()| !crate::scripted_handler::has_fault("verify_request reject"))
        })
        .handle_error(|info: &RequestInfo, failure: &HandlerError| {
            let kind = if failure.is_panic() { "panic" } else { "error" };
            let (id, stage) = (info.id(), failure.phase());
            journal(format_args!(
                "handle_error {id} {stage} {kind} {}",
                failure.cause()
            ));
            inject_fault("handle_error")
        })
        .handle_timeout(|| {
            journal("handle_timeout");
            inject_fault("handle_timeout")
        })
        .on_event(|event| {
            journal_event(event);
            inject_fault("on_event").unwrap();
        });
    if let Some(limit) = options.millis("block_on_close") {
        builder = builder.block_on_close(Some(limit));
    }
    if let Some(interval) = options.millis("service_actions") {
        builder = builder.service_actions(interval, || {
            journal("service_actions");
            inject_fault("service_actions")
        });
    }
    builder
}

fn journal_event(event: &Event<'_>) {
    match event {
        Event::Accepted(r) => journal(format_args!("accepted {} {}", r.id(), r.peer())),
        Event::Rejected(r, why) => journal(format_args!("rejected {} {why}", r.id())),
        Event::Dispatched(r) => journal(format_args!("dispatched {}", r.id())),
        Event::Started(r) => journal(format_args!("started {}", r.id())),
        Event::Failed(r, why) => journal(format_args!("failed {} {why}", r.id())),
        Event::Closing(r) => journal(format_args!("closing {}", r.id())),
        Event::Ended(r, end) => journal(format_args!("ended {} {}", r.id(), end.reason)),
        Event::HookFailed { hook, cause } => journal(format_args!("hook {hook} {cause}")),
        Event::StateChanged { from, to } => journal(format_args!("state {from} {to}")),
        Event::DrainStarted { live, .. } => journal(format_args!("drain-started {live}")),
        Event::DrainEnded(report) => journal(format_args!(
            "drained queued={} finished={} rejected={} cancelled={} abandoned={} ms={}",
            report.queued,
            report.finished,
            report.refused,
            report.cancelled,
            report.abandoned,
            report.elapsed.as_millis()
        )),
        other => journal(format_args!("event {other:?}")),
    }
}

/// Starts a child of the application, which exits at once.
fn foreign_child() -> std::process::Child {
    Command::new("/bin/sh")
        .args(["-c", "exit 7"])
        .spawn()
        .unwrap()
}

/// Reads one line of the standard input byte by byte, because later lines belong to the watch.
fn read_line() -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        match rustix::io::read(io::stdin(), &mut byte) {
            Ok(0) => return String::new(),
            Ok(_) if byte == *b"\n" => return String::from_utf8(line).unwrap(),
            Ok(_) => line.extend(byte),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => panic!("standard input: {errno}"),
        }
    }
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// The value of the signal that stops the server. Any other value is the drain timeout in
/// milliseconds.
pub const STOP: isize = -1;

/// Installs a handler for `SIGUSR2`, whose value selects a stop or a drain. It lacks `SA_RESTART`,
/// so that it interrupts system calls.
fn install_command_handler() {
    extern "C" fn command(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the kernel passes a valid siginfo to a handler with SA_SIGINFO.
        let info = unsafe { &*info };
        // SAFETY: there is a value, as the signal was sent by sigqueue.
        let value = unsafe { info.si_value() }.sival_ptr as isize;
        let (Some(handle), Some(mut journal)) = (HANDLE.get(), JOURNAL.get()) else {
            return;
        };
        // write(2) is async-signal-safe, and so are the two calls of the handle.
        match u64::try_from(value) {
            Ok(millis) => handle.drain(Duration::from_millis(millis)),
            Err(_) => handle.shutdown(),
        }
        let _ = journal.write(b"signalled\n");
    }
    install(libc::SIGUSR2, command);
}

/// Installs a signal handler without `SA_RESTART`.
pub fn install(signal: i32, handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void)) {
    // SAFETY: all zeroes are a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: `action` is initialised, and its handler has the signature that SA_SIGINFO requires
    // and makes async-signal-safe calls only.
    let done = unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) };
    assert_eq!(done, 0);
}
