//! Lists of directories, as pages.
//!
//! A short list is created at once and sent whole. A long one takes tens of milliseconds of CPU
//! time and half a megabyte of memory. Therefore few are created at the same time, only the names
//! are kept while the client reads, and the total memory is limited.

mod names;
mod page;
mod turns;
mod unread;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::available_parallelism;
use std::time::Duration;

use rustix::fs::fstat;
use socketserver::Result;
use socketserver::greenroom::unblock;
use socketserver::http::{HeaderValue, Method, Problem, Request, Response, StatusCode, header};

use super::document_root::Tree;
use super::html as pages;
use super::request_path::Target;
use names::{Names, Place};
use page::Pieces;
use turns::Turns;
use unread::Lists;

/// The maximum number of names in a short list.
const SHORT: usize = 256;
/// The maximum number of long lists that wait, under models with many threads.
const WAITING: usize = 64;
/// The maximum time that a list waits.
const WAIT: Duration = Duration::from_secs(5);

/// A builder of lists that creates only a few at once.
#[derive(Debug)]
pub(super) struct Listing {
    short: Turns,
    long: Turns,
    unread: Lists,
    /// The device and the inode of the last directory with a long list. Repeated requests for it
    /// skip the attempt to create a short list.
    known_long: Mutex<Option<(u64, u64)>>,
}

impl Listing {
    /// Creates the builder. `workers` is the number of requests served at once, if waiting ones
    /// hold a worker.
    pub fn new(workers: Option<usize>) -> Self {
        let cores = available_parallelism().map_or(1, usize::from);
        let waiting = workers.map_or(WAITING, |workers| (workers / 4).min(WAITING));
        Self {
            short: Turns::new(cores, usize::MAX),
            // The other half of the cores is for other requests.
            long: Turns::new((cores / 2).max(1), waiting),
            unread: Lists::default(),
            known_long: Mutex::new(None),
        }
    }

    /// Returns the response with the list of a directory.
    pub fn of(
        &self,
        request: &Request<'_>,
        target: &Target,
        tree: Tree,
        directory: OwnedFd,
        shows_hidden: bool,
    ) -> Result<Response> {
        let stat = fstat(&directory).map_err(io::Error::from)?;
        let identity = (stat.st_dev, stat.st_ino);
        let place = Arc::new(Place {
            tree,
            directory,
            path: target.file(),
            shows_hidden,
        });
        if self.known_long() != Some(identity) {
            let turn = self.short.take(WAIT).ok_or_else(too_busy)?;
            let names = read(&place, SHORT)?;
            drop(turn);
            if !names.is_cut {
                return Ok(pages::of(Response::html(page::whole(target, &names))));
            }
            *self.lock() = Some(identity);
        }
        if request.method() == Method::HEAD {
            return Ok(pages::of(stream(io::empty())));
        }
        let turn = self.long.take(WAIT).ok_or_else(too_busy)?;
        let names = read(&place, names::MOST)?;
        drop(turn);
        if !names.is_cut && names.len() <= SHORT {
            // The list has become short.
            *self.lock() = None;
        }
        let names = self.unread.keep(names).ok_or_else(too_busy)?;
        Ok(pages::of(stream(Pieces::new(target, names))))
    }

    fn known_long(&self) -> Option<(u64, u64)> {
        *self.lock()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(u64, u64)>> {
        self.known_long
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a directory, under the green model in a separate thread, because its disk may be slow.
fn read(place: &Arc<Place>, most: usize) -> io::Result<Names> {
    let place = place.clone();
    unblock(move || {
        let mut names = Names::read(&place, most)?;
        names.sort();
        Ok(names)
    })
}

fn stream(reader: impl io::Read + Send + 'static) -> Response {
    let mut response = Response::stream(reader);
    let html = HeaderValue::from_static("text/html; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, html);
    response
}

fn too_busy() -> Problem {
    let why = "this server makes as many long lists as it may at once; ask again in a moment";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, why)
        .header(header::RETRY_AFTER, HeaderValue::from_static("1"))
}
