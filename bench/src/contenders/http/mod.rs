//! The file servers over HTTP/1.1. This program creates the socket and then becomes the server,
//! except for hyper, which is a library.

mod hyper;
mod nginx;
mod program;

use std::path::Path;

use anyhow::bail;

use super::stream::{Listener, listen};
use super::{Contender, announce};

pub(super) use nginx::version as nginx_version;

/// Clients that connect before the server is ready wait in the backlog.
pub(super) fn serve(contender: Contender, directory: &Path) -> anyhow::Result<()> {
    if let Some(why) = unavailable_reason(contender) {
        bail!("{why}");
    }
    let (Listener::Tcp(listener), address) = listen(None)? else {
        bail!("HTTP needs a TCP listener");
    };
    announce(&address)?;
    match contender {
        Contender::Nginx => nginx::serve(&listener, &address, directory),
        Contender::Hyper => hyper::serve(listener, directory),
        _ => program::serve(contender, listener, directory),
    }
}

pub(super) fn unavailable_reason(contender: Contender) -> Option<String> {
    match contender {
        Contender::Nginx => nginx::unavailable_reason(),
        Contender::Green | Contender::Threading | Contender::Pooled => {
            program::unavailable_reason()
        }
        _ => None,
    }
}

/// Returns the directory of the files that are served.
fn files(directory: &Path) -> std::path::PathBuf {
    directory.join("files")
}
