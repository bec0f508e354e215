//! How many lines of one kind are logged: clients decide how often they come, and what they send, and
//! must not fill a disk by it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata};

const WINDOW: Duration = Duration::from_secs(1);

/// How much of a message names its kind.
const NAME: usize = 60;

/// Counts lines by the place in the code that logs them.
pub(crate) struct LogRate {
    /// Lines of one kind per second.
    limit: u32,
    kinds: Mutex<HashMap<Identifier, Kind>>,
}

struct Kind {
    began: Instant,
    logged: u32,
    left_out: u64,
    /// Of the first that was left out.
    message: String,
}

impl LogRate {
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            limit,
            kinds: Mutex::default(),
        }
    }

    /// Whether a line is logged. `told` is called first with a sentence for each kind of which lines were
    /// left out in a second that is over.
    pub(crate) fn allows(&self, event: &Event<'_>, told: impl FnMut(&str)) -> bool {
        self.allows_at(event.metadata(), || message_of(event), Instant::now(), told)
    }

    fn allows_at(
        &self,
        metadata: &Metadata<'_>,
        message: impl FnOnce() -> String,
        now: Instant,
        mut told: impl FnMut(&str),
    ) -> bool {
        let mut kinds = self.kinds();
        let over = |kind: &Kind| now.saturating_duration_since(kind.began) >= WINDOW;
        // There are as many kinds as places in the code, some dozens.
        let ended = kinds
            .values_mut()
            .filter(|kind| kind.left_out > 0 && over(kind));
        let ended: Vec<_> = ended.filter_map(Kind::tell).collect();
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
        ended.iter().for_each(|text| told(text));
        is_allowed
    }

    /// What was left out and not told of yet.
    pub(crate) fn rest(&self) -> Vec<String> {
        self.kinds().values_mut().filter_map(Kind::tell).collect()
    }

    fn kinds(&self) -> MutexGuard<'_, HashMap<Identifier, Kind>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kind {
    fn tell(&mut self) -> Option<String> {
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
    fn lines_beyond_the_limit_are_counted_and_told() {
        let metadata = |which: bool| {
            let spans = [tracing::info_span!("a"), tracing::info_span!("b")];
            spans[usize::from(which)].metadata()
        };
        let subscriber = tracing_subscriber::registry();
        tracing::subscriber::with_default(subscriber, || {
            let (one, other) = (metadata(false).unwrap(), metadata(true).unwrap());
            let (rate, start) = (LogRate::new(2), Instant::now());
            let log = |metadata, at| {
                let mut told = Vec::new();
                let message = || "came".into();
                let allowed =
                    rate.allows_at(metadata, message, at, |text| told.push(text.to_owned()));
                (allowed, told)
            };
            let nothing = Vec::new;
            assert_eq!(log(one, start), (true, nothing()));
            assert_eq!(log(one, start), (true, nothing()));
            for _ in 0..3 {
                assert_eq!(log(one, start), (false, nothing()));
            }
            assert_eq!(log(other, start), (true, nothing()));
            let (allowed, told) = log(other, start + WINDOW);
            assert!(allowed);
            assert_eq!(
                told,
                ["3 more lines like \"came\" were left out (--log-rate)"]
            );
            assert_eq!(log(one, start + WINDOW), (true, nothing()));
            assert_eq!(rate.rest(), [""; 0]);
        });
    }
}
