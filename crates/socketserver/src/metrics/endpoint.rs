//! Who answers those that watch: a handler like any other, for a server of its own.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use super::http::{self, Request, Status};
use super::{Metrics, encode};
use crate::{Connection, RequestHandler, Result};

/// How long a whole request may take, from its first byte to the last one of the answer.
const TIME: Duration = Duration::from_secs(5);

/// Answers one request over HTTP/1.1 and closes; see [`Metrics::endpoint`].
///
/// | Path | Answer |
/// |---|---|
/// | `/metrics` | all figures, as `text/plain; version=0.0.4` |
/// | `/livez` | 200, or 503 once all servers have stopped |
/// | `/readyz` | 200 if all servers are [ready](crate::ServerHandle::is_ready) and all [conditions](Metrics::ready_if) hold, otherwise 503; a line for each says which is not, and why |
///
/// To `GET` and `HEAD` only (405), anything else is not found (404). A header may be 8 KiB long and
/// have 64 fields (431). A request has 5 seconds in all, however it trickles, and is cut then. What
/// else a slow or hostile client could hold is the place that the server gives it: serve this from one
/// of its own, with a [limit](crate::Threading::max_threads) of a few, and a short
/// [queue](crate::OverloadPolicy::Queue) beyond it.
///
/// Whoever can connect can read all this; nothing is encrypted.
#[derive(Debug)]
pub struct MetricsHandler {
    metrics: Metrics,
}

impl MetricsHandler {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self { metrics }
    }

    fn respond(&self, request: &Request) -> Answer {
        let answer: fn(&Self) -> Answer = match &*request.path {
            "/metrics" => Self::figures,
            "/livez" => Self::livez,
            "/readyz" => Self::readyz,
            _ => {
                let advice = "not found: there are /metrics, /livez and /readyz\n";
                return Answer::plain(Status::NotFound, advice.into());
            }
        };
        match &*request.method {
            "GET" | "HEAD" => answer(self),
            _ => Answer::plain(Status::MethodNotAllowed, "use GET or HEAD\n".into()),
        }
    }

    fn figures(&self) -> Answer {
        Answer {
            status: Status::Ok,
            media_type: encode::MEDIA_TYPE,
            body: self.metrics.render(),
        }
    }

    fn livez(&self) -> Answer {
        let states = self.metrics.states();
        if states.iter().any(|(_, state)| state.is_live()) {
            Answer::plain(Status::Ok, "alive\n".into())
        } else {
            Answer::plain(Status::Unavailable, "no server serves any more\n".into())
        }
    }

    fn readyz(&self) -> Answer {
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
        Answer::plain(status, body)
    }
}

impl RequestHandler<Connection> for MetricsHandler {
    fn handle(&mut self, conn: &mut Connection) -> Result<()> {
        conn.set_deadline(Instant::now().checked_add(TIME));
        // Until it is whole, the request is all that the client has shown.
        conn.begin_message();
        let request = http::read(conn)?;
        conn.end_message();
        let (answer, with_body) = match request {
            None => return Ok(()),
            Some(Ok(request)) => (self.respond(&request), request.method != "HEAD"),
            Some(Err(status)) => {
                let reason = match status {
                    Status::HeaderTooLarge => "the header is too long\n",
                    _ => "this is no request of HTTP/1.1\n",
                };
                (Answer::plain(status, reason.into()), true)
            }
        };
        let Answer {
            status,
            media_type,
            body,
        } = answer;
        let answer = http::answer(status, media_type, &body, with_body);
        Ok(conn.write_all(answer.as_bytes())?)
    }
}

struct Answer {
    status: Status,
    media_type: &'static str,
    body: String,
}

impl Answer {
    fn plain(status: Status, body: String) -> Self {
        Self {
            status,
            media_type: "text/plain; charset=utf-8",
            body,
        }
    }
}
