//! A handler that serves metrics over HTTP. It needs a separate server.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use super::http::{self, Request, Status};
use super::{Metrics, encode};
use crate::{Connection, RequestHandler, Result};

/// The time limit for a request and its response.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves one request over HTTP/1.1 and closes the connection; see [`Metrics::endpoint`].
///
/// | Path | Response |
/// |---|---|
/// | `/metrics` | all metrics, as `text/plain; version=0.0.4` |
/// | `/livez` | 200, or 503 once all servers have stopped |
/// | `/readyz` | 200 if all servers are [ready](crate::ServerHandle::is_ready) and all [conditions](Metrics::ready_if) hold, otherwise 503; a line for each server and condition says which is not ready, and why |
///
/// The handler supports `GET` and `HEAD` (otherwise 405); other paths are not found (404). A header
/// may have 8 KiB and 64 fields (otherwise 431). The handler closes the connection after 5 seconds,
/// even if bytes still arrive. Run the handler on a separate server, so that slow clients cannot
/// exhaust the main server. Give this server a [limit](crate::Threading::max_threads) of a few
/// threads and a short [queue](crate::OverloadPolicy::Queue).
///
/// Every client that can connect can read the metrics; the connection is not encrypted.
#[derive(Debug)]
pub struct MetricsHandler {
    metrics: Metrics,
}

impl MetricsHandler {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self { metrics }
    }

    fn respond(&self, request: &Request) -> Response {
        let response: fn(&Self) -> Response = match &*request.path {
            "/metrics" => Self::metrics_page,
            "/livez" => Self::livez,
            "/readyz" => Self::readyz,
            _ => {
                let advice = "not found: there are /metrics, /livez and /readyz\n";
                return Response::plain(Status::NotFound, advice.into());
            }
        };
        match &*request.method {
            "GET" | "HEAD" => response(self),
            _ => Response::plain(Status::MethodNotAllowed, "use GET or HEAD\n".into()),
        }
    }

    fn metrics_page(&self) -> Response {
        Response {
            status: Status::Ok,
            media_type: encode::MEDIA_TYPE,
            body: self.metrics.render(),
        }
    }

    fn livez(&self) -> Response {
        let states = self.metrics.states();
        if states.iter().any(|(_, state)| state.is_live()) {
            Response::plain(Status::Ok, "alive\n".into())
        } else {
            Response::plain(Status::Unavailable, "no server serves any more\n".into())
        }
    }

    fn readyz(&self) -> Response {
        let states = self.metrics.states();
        let mut body = String::new();
        for (name, state) in &states {
            let verdict = if state.is_ready() {
                "ready"
            } else {
                "not ready"
            };
            let name = name.escape_debug();
            let _ = writeln!(body, "{name}: {verdict}, {state}");
        }
        let unmet = self.metrics.unmet();
        for (name, reason) in &unmet {
            let (name, reason) = (name.escape_debug(), reason.escape_debug());
            let _ = writeln!(body, "{name}: not ready, {reason}");
        }
        let is_ready = unmet.is_empty() && states.iter().all(|(_, state)| state.is_ready());
        let status = if states.is_empty() {
            body.push_str("not ready: there is no server\n");
            Status::Unavailable
        } else if is_ready {
            Status::Ok
        } else {
            Status::Unavailable
        };
        Response::plain(status, body)
    }
}

impl RequestHandler<Connection> for MetricsHandler {
    fn handle(&mut self, conn: &mut Connection) -> Result<()> {
        conn.set_deadline(Instant::now().checked_add(REQUEST_TIMEOUT));
        // Until it is whole, the request is all that the client has shown.
        conn.begin_message();
        let request = http::read(conn)?;
        conn.end_message();
        let (response, with_body) = match request {
            None => return Ok(()),
            Some(Ok(request)) => (self.respond(&request), request.method != "HEAD"),
            Some(Err(status)) => {
                let reason = match status {
                    Status::HeaderTooLarge => "the header is too long\n",
                    _ => "this is no request of HTTP/1.1\n",
                };
                (Response::plain(status, reason.into()), true)
            }
        };
        let Response {
            status,
            media_type,
            body,
        } = response;
        let response = http::response(status, media_type, &body, with_body);
        Ok(conn.write_all(response.as_bytes())?)
    }
}

struct Response {
    status: Status,
    media_type: &'static str,
    body: String,
}

impl Response {
    fn plain(status: Status, body: String) -> Self {
        Self {
            status,
            media_type: "text/plain; charset=utf-8",
            body,
        }
    }
}
