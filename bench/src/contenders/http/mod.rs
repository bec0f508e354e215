//! The servers of files over HTTP/1.1, all on a socket that this program has made: it becomes the
//! server, but for hyper, which is a library.

mod hyper;
mod nginx;
mod program;

use std::path::Path;

use anyhow::bail;

use super::stream::{Listener, listen};
use super::{Contender, announce};

pub(super) use nginx::version as nginx_version;

/// Clients that come before the server is there wait in the backlog.
pub(super) fn serve(contender: Contender, directory: &Path) -> anyhow::Result<()> {
    if let Some(why) = missing(contender) {
        bail!("{why}");
    }
    let (Listener::Tcp(listener), address) = listen(None)? else {
        bail!("HTTP is served over TCP here");
    };
    announce(&address)?;
    match contender {
        Contender::Nginx => nginx::serve(&listener, &address, directory),
        Contender::Hyper => hyper::serve(listener, directory),
        _ => program::serve(contender, listener, directory),
    }
}

pub(super) fn missing(contender: Contender) -> Option<String> {
    match contender {
        Contender::Nginx => nginx::missing(),
        Contender::Green | Contender::Threading | Contender::Pooled => program::missing(),
        _ => None,
    }
}

/// The files that are served.
fn files(directory: &Path) -> std::path::PathBuf {
    directory.join("files")
}
