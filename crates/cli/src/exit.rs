//! How the program ends: exit codes, and an error told once, with what to do next.

use std::error::Error;

use pgkeep_base::{Classified, RetryClass};
use serde_json::json;

use crate::output::Output;

/// Everything was done.
pub const DONE: u8 = 0;
/// It failed.
pub const FAILED: u8 = 1;
/// Wrong usage or configuration. clap ends with it too.
pub const USAGE: u8 = 2;
/// Done, but something needs attention; standard error says what.
pub const ATTENTION: u8 = 3;
/// Refused for safety.
pub const REFUSED: u8 = 4;
/// What `pgkeep wal fetch` was asked for isn't there. Told as 1, and no other end of it is.
const ABSENT: u8 = 250;
/// How `pgkeep wal fetch` ends when it can't tell whether there is something. PostgreSQL takes up to 125 for "not there", and
/// would end recovery early (`RestoreArchivedFile`, `access/transam/xlogarchive.c`).
const UNCERTAIN: u8 = 255;

/// The exit code of the process. `is_fetch`: it is `pgkeep wal fetch`.
pub fn of_process(code: u8, is_fetch: bool) -> u8 {
    match code {
        ABSENT => FAILED,
        DONE => DONE,
        _ if is_fetch => UNCERTAIN,
        code => code,
    }
}

/// Lets a panic end `pgkeep wal fetch` as any other failure does.
pub fn panic_is_uncertain() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::exit(i32::from(UNCERTAIN));
    }));
}

/// A command that came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything is well.
    Done,
    /// The command has said what needs attention.
    Attention,
    /// The command has said what is wrong: damage found by a verification, say.
    Failed,
    /// There is nothing of what `pgkeep wal fetch` was asked for, and that is certain.
    Absent,
}

impl Outcome {
    /// The exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => DONE,
            Self::Attention => ATTENTION,
            Self::Failed => FAILED,
            Self::Absent => ABSENT,
        }
    }

    /// The worse of two.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Failed, _) | (_, Self::Failed) => Self::Failed,
            (Self::Attention, _) | (_, Self::Attention) => Self::Attention,
            _ => Self::Done,
        }
    }
}

/// An error on its way to the user.
#[derive(Debug)]
pub struct Failure {
    /// What failed.
    message: String,
    /// Why, from the outside to the inside.
    causes: Vec<String>,
    /// What to do next.
    hint: Option<String>,
    /// The exit code.
    code: u8,
}

impl<E: Classified> From<E> for Failure {
    fn from(error: E) -> Self {
        let (message, causes) = split_causes(&error);
        let code = match error.retry_class() {
            RetryClass::Usage => USAGE,
            RetryClass::Refused => REFUSED,
            RetryClass::Transient | RetryClass::Permanent => FAILED,
        };
        Self {
            message,
            causes,
            hint: error.hint().map(|hint| hint.to_string()),
            code,
        }
    }
}

impl Failure {
    /// Wrong usage, found by the command itself.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            causes: Vec::new(),
            hint: Some(hint.into()),
            code: USAGE,
        }
    }

    /// Refused for safety, by the command itself.
    pub fn refused(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            code: REFUSED,
            ..Self::usage(message, hint)
        }
    }

    /// What the command has said has to be mended first.
    pub fn unmended(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            code: FAILED,
            ..Self::usage(message, hint)
        }
    }

    /// A failure of the program's surroundings, found by the command itself.
    pub fn failed(message: impl Into<String>, cause: &dyn Error) -> Self {
        Self {
            message: message.into(),
            causes: vec![cause.to_string()],
            hint: None,
            code: FAILED,
        }
    }

    /// The user pressed Ctrl-C.
    pub fn interrupted() -> Self {
        Self {
            message: "interrupted".to_owned(),
            causes: Vec::new(),
            hint: None,
            code: FAILED,
        }
    }

    /// The same, with another way out behind the hint.
    #[must_use]
    pub fn or_else_do(mut self, other: &str) -> Self {
        self.hint = Some(match self.hint {
            Some(hint) => format!("{hint}; {other}"),
            None => other.to_owned(),
        });
        self
    }

    /// The same, of one of several repositories. What names it already is left as it is.
    #[must_use]
    pub fn at(mut self, url: &str) -> Self {
        if !self.text().contains(url.trim_end_matches('/')) {
            self.message = format!("{url}: {}", self.message);
        }
        self
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        self.code
    }

    /// All of it in one line, without the hint.
    pub fn text(&self) -> String {
        std::iter::once(&self.message)
            .chain(&self.causes)
            .cloned()
            .collect::<Vec<_>>()
            .join(": ")
    }

    /// What to do next.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Tells it on standard error, and with `--json` on standard output too.
    pub fn tell(&self, output: &Output) {
        output.error(&self.message, &self.causes, self.hint.as_deref());
        output.json(&json!({ "error": {
            "message": self.message,
            "causes": self.causes,
            "hint": self.hint,
            "exit_code": self.code,
        }}));
    }
}

/// Many errors end with the text of the one below, so that they read well in one line. On several lines each is told
/// once.
fn split_causes(error: &dyn Error) -> (String, Vec<String>) {
    let mut texts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(below) = source {
        let text = below.to_string();
        if let Some(above) = texts.last_mut() {
            if let Some(prefix) = above
                .strip_suffix(text.as_str())
                .and_then(|rest| rest.strip_suffix(": "))
            {
                *above = prefix.to_owned();
                texts.push(text);
            } else if !above.contains(text.as_str()) {
                texts.push(text);
            }
        }
        source = below.source();
    }
    let message = texts.remove(0);
    (message, texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Layer(&'static str, Option<Box<Layer>>);

    impl std::fmt::Display for Layer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Layer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|below| below as _)
        }
    }

    #[test]
    fn each_cause_is_told_once() {
        let below = || Some(Box::new(Layer("no route", None)));
        let told = |top: Layer| split_causes(&top);
        assert_eq!(
            told(Layer("connecting: no route", below())),
            ("connecting".into(), vec!["no route".into()])
        );
        assert_eq!(
            told(Layer("connecting", below())),
            ("connecting".into(), vec!["no route".into()])
        );
        assert_eq!(
            told(Layer("no route to it", below())),
            ("no route to it".into(), vec![])
        );
    }

    #[test]
    fn the_worse_outcome_counts() {
        assert_eq!(Outcome::Done.and(Outcome::Attention), Outcome::Attention);
        assert_eq!(Outcome::Failed.and(Outcome::Attention), Outcome::Failed);
        assert_eq!(
            [
                Outcome::Done.code(),
                Outcome::Attention.code(),
                Outcome::Failed.code()
            ],
            [0, 3, 1]
        );
    }
}
