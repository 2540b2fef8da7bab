use std::fmt;

/// Whether doing the same thing again may succeed. Every library error has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryClass {
    /// A passing fault (a cut connection, a 503, a time-out): the caller may retry within its budget.
    Transient,
    /// The same call will fail the same way until somebody changes something.
    Permanent,
    /// What was asked for is wrong: usage or configuration. Exit code 2.
    Usage,
    /// Done on purpose: going on could lose or overwrite data. Exit code 4.
    Refused,
}

/// What to do next, in the imperative; where a command mends it, the exact command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint(String);

impl Hint {
    /// A hint from any text. It must not hold secrets: hints are printed.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text as it is printed.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What every typed error of the libraries can tell the layer that handles it.
pub trait Classified: std::error::Error {
    /// May the same call succeed later, and how should the program exit if not?
    fn retry_class(&self) -> RetryClass;

    /// The next step for the user, if one is known.
    fn hint(&self) -> Option<Hint> {
        None
    }
}
