//! What a command ends with when it does not succeed: one line for the reader and an exit code for the caller.

use std::fmt::{self, Display};
use std::process::ExitCode;

pub(crate) type Outcome<T = ()> = Result<T, Failure>;

#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self::with_code(message, 1)
    }

    /// Something only the caller can put right: a wrong argument, a program that is not installed.
    pub(crate) fn of_usage(message: impl Into<String>) -> Self {
        Self::with_code(message, 2)
    }

    pub(crate) fn with_code(message: impl Into<String>, code: u8) -> Self {
        Self {
            message: message.into(),
            code,
        }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Turns the error of another library into a [`Failure`] that says what was tried.
pub(crate) trait OrCannot<T> {
    /// `what` completes the sentence "cannot …".
    fn or_cannot(self, what: impl FnOnce() -> String) -> Outcome<T>;
}

impl<T, E: Display> OrCannot<T> for Result<T, E> {
    fn or_cannot(self, what: impl FnOnce() -> String) -> Outcome<T> {
        self.map_err(|error| Failure::new(format!("cannot {}: {error}", what())))
    }
}
