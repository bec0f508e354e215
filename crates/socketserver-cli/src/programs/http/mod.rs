//! `http`: serves the files of a directory over HTTP/1.1.
//!
//! This file defines the options. `responder.rs` answers requests; `request_path.rs` translates a
//! path to a file, and `document_root.rs` opens it. `listing` and `html.rs` create pages;
//! `access_log.rs` logs requests.

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
/// GET and HEAD requests can get whole files, parts of them (Range), or the result that a file has
/// not changed. For a directory, the response is its index.html or a list of its files. Files
/// outside of the directory are not served. Names that begin with a dot are not served either,
/// except /.well-known/ (RFC 8615).
///
/// Every client that can connect can read these files. Use --listen tls://HOST:PORT to encrypt the
/// traffic.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Directory to serve
    #[arg(value_name = "DIR", default_value = ".")]
    directory: PathBuf,

    /// Name of the file to serve for a directory
    #[arg(long, value_name = "NAME", default_value = "index.html")]
    index: String,

    /// Do not list directories that lack this file
    #[arg(long)]
    no_listing: bool,

    /// Also serve and list names that begin with a dot
    #[arg(long)]
    hidden: bool,

    /// Follow absolute symbolic links, and those that lead out of the directory
    #[arg(long)]
    follow_symlinks: bool,

    /// Format of the access log on stdout
    #[arg(long, value_name = "FORM", value_enum, default_value_t)]
    access_log: AccessLog,

    #[command(flatten)]
    server: ServerOptions,
}

/// The format of the access log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum AccessLog {
    /// Common Log Format, as of the NCSA server
    #[default]
    Common,
    /// One JSON object for each request
    Json,
    /// No access log
    Off,
}

/// The maximum size of a request line and of a header field, the limits of Python's `http.server`.
const LONGEST: usize = 65_536;

/// The default number of threads in a pool.
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
        // A kept connection would block all other clients for as long as its client is idle.
        .keep_alive(options.server.concurrency != Model::Sequential);
    if let Some(log) = access_log::of(options.access_log) {
        http = http.on_response(log);
    }
    let factory = http.handler(move || responder::Visitor(site.clone()));
    let handlers = StreamsOnly::new(factory)
        .ready_if(directory_exists(root))
        // Each request opens one file or directory.
        .descriptors(1);
    serve(&options.server, &handlers)
}

/// Returns the condition for `/readyz`.
fn directory_exists(root: Arc<Root>) -> impl Fn() -> Result<(), String> + Send + Sync {
    move || match root.visit() {
        Err(Missing::Gone(why)) => Err(why),
        // The server itself reports a lack of descriptors, which is temporary.
        Ok(_) | Err(Missing::Busy(_)) => Ok(()),
    }
}
