//! A limit for lines of one kind in the log. Clients decide how often they connect and send, and
//! must not fill a disk through the log.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata};

const WINDOW: Duration = Duration::from_secs(1);

/// The number of characters of a message that a summary shows.
const NAME: usize = 60;

/// A counter of lines by the place in the code that logs them.
pub(crate) struct LogRate {
    /// The maximum number of lines of one kind per second.
    limit: u32,
    kinds: Mutex<HashMap<Identifier, Kind>>,
}

struct Kind {
    began: Instant,
    logged: u32,
    left_out: u64,
    /// The first message that was left out.
    message: String,
}

impl LogRate {
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            limit,
            kinds: Mutex::default(),
        }
    }

    /// Returns true if a line is to be logged. First calls `report` with a summary for each kind of
    /// which lines were left out in a past second.
    pub(crate) fn allows(&self, event: &Event<'_>, report: impl FnMut(&str)) -> bool {
        self.allows_at(
            event.metadata(),
            || message_of(event),
            Instant::now(),
            report,
        )
    }

    fn allows_at(
        &self,
        metadata: &Metadata<'_>,
        message: impl FnOnce() -> String,
        now: Instant,
        mut report: impl FnMut(&str),
    ) -> bool {
        let mut kinds = self.kinds();
        let over = |kind: &Kind| now.saturating_duration_since(kind.began) >= WINDOW;
        // The number of kinds is that of logging calls in the code: some dozens.
        let ended = kinds
            .values_mut()
            .filter(|kind| kind.left_out > 0 && over(kind));
        let ended: Vec<_> = ended.filter_map(Kind::take_summary).collect();
        let kind = kinds.entry(metadata.callsite()).or_insert_with(|| Kind {
            began: now,
            logged: 0,
            left_out: 0,
            message: String::new(),
        });
        if over(kind) {
            (kind.began, kind.logged) = (now, 0);
        }
        let is_allowed = kind.logged < self.limit;
        if is_allowed {
            kind.logged += 1;
        } else {
            if kind.left_out == 0 {
                kind.message = message();
            }
            kind.left_out += 1;
        }
        drop(kinds);
        ended.iter().for_each(|text| report(text));
        is_allowed
    }

    /// Returns summaries of the lines that were left out and not yet reported.
    pub(crate) fn rest(&self) -> Vec<String> {
        self.kinds()
            .values_mut()
            .filter_map(Kind::take_summary)
            .collect()
    }

    fn kinds(&self) -> MutexGuard<'_, HashMap<Identifier, Kind>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kind {
    fn take_summary(&mut self) -> Option<String> {
        let left_out = std::mem::take(&mut self.left_out);
        (left_out > 0).then(|| {
            format!(
                "{left_out} more lines like \"{}\" were left out (--log-rate)",
                self.message
            )
        })
    }
}

fn message_of(event: &Event<'_>) -> String {
    struct Message(String);
    impl Visit for Message {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            if field.name() == "message" {
                self.0 = format!("{value:?}");
            }
        }
    }
    let mut message = Message(String::new());
    event.record(&mut message);
    if let Some((end, _)) = message.0.char_indices().nth(NAME) {
        message.0.truncate(end);
        message.0.push_str("...");
    }
    message.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_limit_are_counted_and_reported() {
        let metadata = |which: bool| {
            let spans = [tracing::info_span!("a"), tracing::info_span!("b")];
            spans[usize::from(which)].metadata()
        };
        let subscriber = tracing_subscriber::registry();
        tracing::subscriber::with_default(subscriber, || {
            let (one, other) = (metadata(false).unwrap(), metadata(true).unwrap());
            let (rate, start) = (LogRate::new(2), Instant::now());
            let log = |metadata, at| {
                let mut report = Vec::new();
                let message = || "came".into();
                let allowed =
                    rate.allows_at(metadata, message, at, |text| report.push(text.to_owned()));
                (allowed, report)
            };
            let nothing = Vec::new;
            assert_eq!(log(one, start), (true, nothing()));
            assert_eq!(log(one, start), (true, nothing()));
            for _ in 0..3 {
                assert_eq!(log(one, start), (false, nothing()));
            }
            assert_eq!(log(other, start), (true, nothing()));
            let (allowed, report) = log(other, start + WINDOW);
            assert!(allowed);
            assert_eq!(
                report,
                ["3 more lines like \"came\" were left out (--log-rate)"]
            );
            assert_eq!(log(one, start + WINDOW), (true, nothing()));
            assert_eq!(rate.rest(), [""; 0]);
        });
    }
}
