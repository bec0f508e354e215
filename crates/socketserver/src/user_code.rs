//! Calls of application code, and the phase, error or panic of a failed request.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::BoxError;
use crate::error::write_chain;

/// The phase of a request in which its handler failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Creating the handler with the factory.
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

/// The error or panic of a handler or hook. `{:#}` formats the error with all its causes on one
/// line.
#[derive(Debug)]
#[non_exhaustive]
pub enum HandlerErrorKind {
    /// The code returned an error.
    Error(BoxError),
    /// The code panicked with this message.
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

/// The error of a handler, as `handle_error` receives it. `{:#}` formats the error with all its
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

    /// Returns the phase in which the handler failed.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    pub(crate) fn into_cause(self) -> HandlerErrorKind {
        self.cause
    }

    /// Returns the error or panic.
    #[must_use]
    pub fn cause(&self) -> &HandlerErrorKind {
        &self.cause
    }

    /// Returns the error, or `None` for a panic.
    #[must_use]
    pub fn error(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.cause {
            HandlerErrorKind::Error(error) => Some(&**error),
            HandlerErrorKind::Panic(_) => None,
        }
    }

    /// Returns true if the handler panicked.
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
            // Display already shows the error's own message.
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

/// Calls application code, and returns its error or panic as a value.
///
/// Unwinding may leave the values that `run` borrows in any state. Using them is sound. After a
/// panic, the server only closes the request.
pub(crate) fn call_user_code<T>(
    run: impl FnOnce() -> Result<T, BoxError>,
) -> Result<T, HandlerErrorKind> {
    catch_panic(run)?.map_err(HandlerErrorKind::Error)
}

/// Calls infallible code, and returns its panic as a value.
pub(crate) fn catch_panic<T>(run: impl FnOnce() -> T) -> Result<T, HandlerErrorKind> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|payload| HandlerErrorKind::Panic(message(payload)))
}

/// Passes an error or panic on to the caller of the handler.
#[cfg(feature = "http")]
pub(crate) fn resume<T>(cause: HandlerErrorKind) -> Result<T, BoxError> {
    match cause {
        HandlerErrorKind::Error(error) => Err(error),
        // The panic hook has already reported it, so `resume_unwind` does not call the hook again.
        HandlerErrorKind::Panic(message) => std::panic::resume_unwind(Box::new(message)),
    }
}

/// Drops a value of the application, whose destructor may panic.
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
    // The destructor of a payload may panic, too. Leaking the second payload ends the chain.
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(second);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_in_drop_of_a_panic_payload_is_caught() {
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
    fn panic_messages_of_both_types_are_kept() {
        let one = call_user_code::<()>(|| panic!("one")).unwrap_err();
        let two = call_user_code::<()>(|| panic!("{}", 2)).unwrap_err();
        assert_eq!(
            (one.to_string(), two.to_string()),
            ("panicked: one".into(), "panicked: 2".into())
        );
    }
}
