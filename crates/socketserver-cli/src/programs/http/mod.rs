//! `http`: the files of a directory over HTTP/1.1.
//!
//! Here is what a person can choose. What a request is answered is in `site.rs`; which file its path
//! means in `path.rs`, and whether that may be opened in `root.rs`. `listing` and `page.rs` are
//! what browsers show; `access_log.rs` says what was asked for.

mod access_log;
mod document_root;
mod html;
#[cfg(test)]
#[path = "../../../../../fuzz/src/http_path.rs"]
mod http_path;
mod listing;
#[cfg(test)]
mod path_properties;
#[cfg(test)]
#[path = "../../../../socketserver/tests/common/random.rs"]
mod random;
mod request_path;
mod responder;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, ValueEnum};
use socketserver::http::{HeaderValue, Http, HttpLimits};

use crate::cli::{Model, Program, ServerOptions};
use crate::serve::{StreamsOnly, need_connections, serve};
use crate::tls;
use document_root::{Missing, Rights, Root, Symlinks};
use listing::Listing;
use responder::Site;

/// Serve the files of a directory over HTTP/1.1
///
/// To GET and HEAD: whole files, parts of them (Range), or that they have not changed. A directory is
/// its index.html or a list of what is in it. Nothing outside of the directory is served, and nothing
/// whose name begins with a dot, but for /.well-known/ (RFC 8615).
///
/// Whoever can connect can read all that. With --listen tls://HOST:PORT it is encrypted.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What to serve
    #[arg(value_name = "DIR", default_value = ".")]
    directory: PathBuf,

    /// The file that stands for its directory
    #[arg(long, value_name = "NAME", default_value = "index.html")]
    index: String,

    /// Do not list directories that have no such file
    #[arg(long)]
    no_listing: bool,

    /// Serve and list names that begin with a dot, too
    #[arg(long)]
    hidden: bool,

    /// Follow symbolic links that lead out of the directory, and absolute ones
    #[arg(long)]
    follow_symlinks: bool,

    /// How the requests are written to stdout
    #[arg(long, value_name = "FORM", value_enum, default_value_t)]
    access_log: AccessLog,

    #[command(flatten)]
    server: ServerOptions,
}

/// The form of the access log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum AccessLog {
    /// The Common Log Format of NCSA's server
    #[default]
    Common,
    /// An object in JSON for each request
    Json,
    /// Not at all
    Off,
}

/// What clients of Python's `http.server` may send: so much as a request line, and so much as a field.
const LONGEST: usize = 65_536;

/// How many threads a pool has by itself.
const POOL: u32 = 32;

impl Program for Options {
    fn server(&mut self) -> &mut ServerOptions {
        self.server.tls.protocols = tls::HTTP;
        &mut self.server
    }

    fn check(&self) -> anyhow::Result<()> {
        need_connections(&self.server)
    }

    fn check_files(&self) -> anyhow::Result<()> {
        self.open().map(drop)
    }
}

impl Options {
    fn open(&self) -> anyhow::Result<Root> {
        let symlinks = match self.follow_symlinks {
            true => Symlinks::Followed,
            false => Symlinks::Confined,
        };
        let rights = match self.server.privileges.are_given_up() {
            true => Rights::GivenUp,
            false => Rights::Kept,
        };
        Root::open(&self.directory, symlinks, rights)
            .with_context(|| format!("cannot serve {}", self.directory.display()))
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let root = Arc::new(options.open()?);
    let workers = (options.server.concurrency == Model::Pooled).then(|| {
        let workers = options.server.workers.unwrap_or(POOL);
        usize::try_from(workers).unwrap_or(usize::MAX)
    });
    let site = Arc::new(Site {
        root: root.clone(),
        listing: Listing::new(workers),
        index: options.index.clone(),
        lists: !options.no_listing,
        shows_hidden: options.hidden,
    });
    let limits = HttpLimits::default().request_line(LONGEST).header(LONGEST);
    let mut http = Http::new()
        .limits(limits)
        .server_name(HeaderValue::from_static(concat!(
            "socketserver/",
            env!("CARGO_PKG_VERSION")
        )))
        .error_page(html::of_problem)
        // It would keep everybody else waiting for as long as its client is idle.
        .keep_alive(options.server.concurrency != Model::Sequential);
    if let Some(log) = access_log::of(options.access_log) {
        http = http.on_response(log);
    }
    let factory = http.handler(move || responder::Visitor(site.clone()));
    let handlers = StreamsOnly::new(factory)
        .ready_if(directory_is_there(root))
        // A file or a directory each.
        .descriptors(1);
    serve(&options.server, &handlers)
}

/// What `/readyz` asks.
fn directory_is_there(root: Arc<Root>) -> impl Fn() -> Result<(), String> + Send + Sync {
    move || match root.visit() {
        Err(Missing::Gone(why)) => Err(why),
        // Being short of descriptors is told by the server itself, and passes.
        Ok(_) | Err(Missing::Busy(_)) => Ok(()),
    }
}
