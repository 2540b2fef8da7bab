/// How much a finding of a check matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Good to know.
    Info,
    /// It works, but something may be missing, be lost or cost money.
    Warning,
    /// It doesn't work, or not safely.
    Error,
}

impl Severity {
    /// As people and programs read it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }

    /// Whether somebody should do something.
    pub fn needs_something(self) -> bool {
        matches!(self, Self::Warning | Self::Error)
    }
}
