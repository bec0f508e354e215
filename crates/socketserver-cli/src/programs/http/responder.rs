//! Responses to requests.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;
use socketserver::Result;
use socketserver::http::{
    Handler, HeaderValue, Method, Problem, Request, Response, StatusCode, header,
};

use super::document_root::{Found, Missing, Root, Tree};
use super::listing::Listing;
use super::request_path::Target;

/// The served directory and its options.
#[derive(Debug)]
pub(super) struct Site {
    pub root: Arc<Root>,
    pub listing: Listing,
    /// The name of the file that is served for its directory.
    pub index: String,
    pub lists: bool,
    pub shows_hidden: bool,
}

/// The handler of one connection.
pub(super) struct Visitor(pub Arc<Site>);

impl Handler for Visitor {
    fn methods(&self) -> &[Method] {
        &[Method::GET]
    }

    fn get(&mut self, request: &mut Request<'_>) -> Result<Response> {
        self.0.answer(request)
    }
}

impl Site {
    fn answer(&self, request: &Request<'_>) -> Result<Response> {
        let target = Target::of(request.path())
            .map_err(|bad| Problem::new(StatusCode::BAD_REQUEST, bad.0))?;
        if target.is_hidden() && !self.shows_hidden {
            return Err(missing().into());
        }
        let tree = self.root.visit().map_err(|missing| match missing {
            Missing::Busy(errno) => problem(errno),
            Missing::Gone(_) => gone(),
        })?;
        match tree.find(&target.file()).map_err(problem)? {
            Found::File(_) if target.is_directory => Err(missing().into()),
            Found::File(file) => of_file(request, file, &target),
            Found::Directory(directory) => self.of_directory(request, &target, tree, directory),
            Found::Other => Err(missing().into()),
        }
    }

    fn of_directory(
        &self,
        request: &Request<'_>,
        target: &Target,
        tree: Tree,
        directory: OwnedFd,
    ) -> Result<Response> {
        if !target.is_directory || !target.is_normal {
            // The redirect makes relative references, such as links of a list, relative to the
            // directory.
            let mut location = target.as_directory();
            if let Some(query) = request.query() {
                location = format!("{location}?{query}");
            }
            return Response::redirect(StatusCode::MOVED_PERMANENTLY, &location);
        }
        let index = target.below(&self.index);
        match tree.find(&index.file()) {
            Ok(Found::File(file)) => return of_file(request, file, &index),
            Ok(_) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(problem(errno).into()),
        }
        if !self.lists {
            let why = "directories are not listed here";
            return Err(Problem::new(StatusCode::FORBIDDEN, why).into());
        }
        let hidden = self.shows_hidden;
        self.listing.of(request, target, tree, directory, hidden)
    }
}

fn of_file(request: &Request<'_>, file: std::fs::File, target: &Target) -> Result<Response> {
    let name = target.name().unwrap_or_default();
    let mut response = Response::file(request, file, &media_type(name.as_ref()))?;
    // `nosniff` keeps browsers from interpreting other files as pages.
    let nosniff = HeaderValue::from_static("nosniff");
    response
        .headers_mut()
        .insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    Ok(response)
}

/// Returns the media type for a name. Text is taken to be UTF-8, except for types that declare
/// their own charset.
fn media_type(name: &std::path::Path) -> String {
    let media_type = mime_guess::from_path(name)
        .first_raw()
        .unwrap_or("application/octet-stream");
    match media_type {
        // RFC 9239 has replaced the other types.
        "application/javascript" | "application/x-javascript" => {
            "text/javascript; charset=utf-8".into()
        }
        "text/html" | "text/xml" => media_type.into(),
        text if text.starts_with("text/") => format!("{text}; charset=utf-8"),
        other => other.into(),
    }
}

fn missing() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "there is nothing of that name here")
}

/// Returns the problem for a served directory that was removed or moved.
fn gone() -> Problem {
    let why = "what is served here is missing at the moment";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, why)
        .header(header::RETRY_AFTER, HeaderValue::from_static("5"))
}

/// Returns the problem for a file that cannot be opened. It does not reveal the target of a link.
fn problem(errno: Errno) -> Problem {
    match errno {
        Errno::ACCESS | Errno::PERM => {
            Problem::new(StatusCode::FORBIDDEN, "this server may not read it")
        }
        Errno::NOENT
        | Errno::NOTDIR
        | Errno::LOOP
        | Errno::XDEV
        | Errno::NAMETOOLONG
        | Errno::NXIO
        | Errno::INVAL => missing(),
        Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN => Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "this server has too much to do",
        )
        .header(header::RETRY_AFTER, HeaderValue::from_static("1")),
        other => {
            tracing::warn!(error = %std::io::Error::from(other), "cannot open a file");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "it cannot be read")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_type_depends_on_the_name() {
        for (name, expected) in [
            ("a.html", "text/html"),
            ("a.TXT", "text/plain; charset=utf-8"),
            ("a.css", "text/css; charset=utf-8"),
            ("a.png", "image/png"),
            ("a.json", "application/json"),
            ("a.svg", "image/svg+xml"),
            ("a.js", "text/javascript; charset=utf-8"),
            ("a.mjs", "text/javascript; charset=utf-8"),
            ("a.tar.gz", "application/gzip"),
            ("a", "application/octet-stream"),
            ("a.unknown", "application/octet-stream"),
            ("", "application/octet-stream"),
        ] {
            assert_eq!(media_type(name.as_ref()), expected, "{name}");
        }
    }
}
