//! How a request failed: the stage, and the error or panic.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::BoxError;
use crate::error::write_chain;

/// The part of a request's service that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// The factory that makes the handler.
    Factory,
    /// [`RequestHandler::setup`](crate::RequestHandler::setup).
    Setup,
    /// [`RequestHandler::handle`](crate::RequestHandler::handle).
    Handle,
    /// [`RequestHandler::finish`](crate::RequestHandler::finish).
    Finish,
    /// Dropping the handler.
    Drop,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Factory => "factory",
            Self::Setup => "setup",
            Self::Handle => "handle",
            Self::Finish => "finish",
            Self::Drop => "drop",
        })
    }
}

/// What went wrong in a handler or a hook. `{:#}` shows the error with all its causes on one line.
#[derive(Debug)]
#[non_exhaustive]
pub enum HandlerErrorKind {
    /// It returned an error.
    Error(BoxError),
    /// It panicked, with this message.
    Panic(String),
}

impl fmt::Display for HandlerErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(error) if f.alternate() => write_chain(f, &**error),
            Self::Error(error) => error.fmt(f),
            Self::Panic(message) => write!(f, "panicked: {message}"),
        }
    }
}

/// A handler's failure, as `handle_error` receives it. `{:#}` shows the error with all its
/// causes on one line.
#[derive(Debug)]
pub struct HandlerError {
    phase: Phase,
    cause: HandlerErrorKind,
}

impl HandlerError {
    pub(crate) fn new(phase: Phase, cause: HandlerErrorKind) -> Self {
        Self { phase, cause }
    }

    /// Where it happened.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    pub(crate) fn into_cause(self) -> HandlerErrorKind {
        self.cause
    }

    /// What happened.
    #[must_use]
    pub fn cause(&self) -> &HandlerErrorKind {
        &self.cause
    }

    /// The error, unless it was a panic.
    #[must_use]
    pub fn error(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.cause {
            HandlerErrorKind::Error(error) => Some(&**error),
            HandlerErrorKind::Panic(_) => None,
        }
    }

    /// Whether the handler panicked.
    #[must_use]
    pub fn is_panic(&self) -> bool {
        matches!(self.cause, HandlerErrorKind::Panic(_))
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.phase)?;
        self.cause.fmt(f)
    }
}

impl std::error::Error for HandlerErrorKind {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // Its own message is the error's.
            Self::Error(error) => error.source(),
            Self::Panic(_) => None,
        }
    }
}

impl std::error::Error for HandlerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.source()
    }
}

/// Runs application code; whatever it does comes back as a value.
///
/// Unwinding may leave what `run` borrows in any state. That is sound to use, and here it is only
/// finished with: after a panic the server touches the request to close it, and nothing else.
pub(crate) fn call_user_code<T>(
    run: impl FnOnce() -> Result<T, BoxError>,
) -> Result<T, HandlerErrorKind> {
    catch_panic(run)?.map_err(HandlerErrorKind::Error)
}

/// The same for what can do nothing worse than panic.
pub(crate) fn catch_panic<T>(run: impl FnOnce() -> T) -> Result<T, HandlerErrorKind> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|payload| HandlerErrorKind::Panic(message(payload)))
}

/// Hands a failure to whoever calls handlers, as if it had not been met on the way.
#[cfg(feature = "http")]
pub(crate) fn resume<T>(cause: HandlerErrorKind) -> Result<T, BoxError> {
    match cause {
        HandlerErrorKind::Error(error) => Err(error),
        // It was reported where it happened, and is only carried on.
        HandlerErrorKind::Panic(message) => std::panic::resume_unwind(Box::new(message)),
    }
}

/// Drops what belongs to the application, whose destructors may panic.
pub(crate) fn drop_catching_panic<T>(value: T) {
    let _ = catch_panic(|| drop(value));
}

fn message(payload: Box<dyn Any + Send>) -> String {
    let text = match payload.downcast_ref::<&str>() {
        Some(text) => (*text).to_owned(),
        None => match payload.downcast_ref::<String>() {
            Some(text) => text.clone(),
            None => "(a payload that is no text)".to_owned(),
        },
    };
    // A payload's own destructor may panic in turn; leaking that second payload ends the chain.
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(second);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_that_panics_in_drop_is_contained() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("again");
            }
        }
        let cause = call_user_code::<()>(|| std::panic::panic_any(Bomb)).unwrap_err();
        assert!(matches!(cause, HandlerErrorKind::Panic(text) if text.contains("no text")));
    }

    #[test]
    fn both_forms_of_message_are_kept() {
        let one = call_user_code::<()>(|| panic!("one")).unwrap_err();
        let two = call_user_code::<()>(|| panic!("{}", 2)).unwrap_err();
        assert_eq!(
            (one.to_string(), two.to_string()),
            ("panicked: one".into(), "panicked: 2".into())
        );
    }
}
