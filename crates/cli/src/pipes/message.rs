//! The lines that Dagster reads.

use serde_json::{Map, Value, json};

use crate::exit;
use crate::printable;

/// Of the protocol.
const VERSION: &str = "0.1";

/// How much a line of the log matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Good to know.
    Info,
    /// Needs attention.
    Warning,
    /// Went wrong.
    Error,
}

/// Facts of what was made, in their order.
#[derive(Debug, Default)]
pub struct Metadata(Map<String, Value>);

impl Metadata {
    /// A text; an empty one says nothing and is left out.
    #[must_use]
    pub fn text(self, name: &str, value: &str) -> Self {
        if value.is_empty() {
            return self;
        }
        self.with(name, "text", &json!(value))
    }

    /// A number of something.
    #[must_use]
    pub fn number(self, name: &str, value: u64) -> Self {
        self.with(name, "int", &json!(value))
    }

    /// A duration in seconds.
    #[must_use]
    pub fn seconds(self, name: &str, value: std::time::Duration) -> Self {
        self.with(name, "float", &json!(value.as_secs_f64()))
    }

    /// A URL.
    #[must_use]
    pub fn url(self, name: &str, value: &str) -> Self {
        self.with(name, "url", &json!(value))
    }

    /// A list; an empty one says something.
    #[must_use]
    pub fn list(self, name: &str, values: &[impl AsRef<str>]) -> Self {
        let values: Vec<&str> = values.iter().map(AsRef::as_ref).collect();
        self.with(name, "json", &json!(values))
    }

    fn with(mut self, name: &str, kind: &str, value: &Value) -> Self {
        let value = json!({ "raw_value": value, "type": kind });
        self.0.insert(name.to_owned(), value);
        self
    }

    /// As the protocol has them.
    pub fn value(&self) -> Value {
        Value::Object(self.0.clone())
    }
}

/// One line, without its line feed.
pub fn message(method: &str, params: &Value) -> String {
    json!({ "__dagster_pipes_version": VERSION, "method": method, "params": params }).to_string()
}

/// What a line of the log says.
pub fn log(level: Level, text: &str) -> Value {
    let level = match level {
        Level::Info => "INFO",
        Level::Warning => "WARNING",
        Level::Error => "ERROR",
    };
    json!({ "message": plain(text), "level": level })
}

/// Why the process failed.
pub fn exception(code: u8, errors: &[String]) -> Value {
    let name = match code {
        exit::USAGE => "PgkeepUsageError",
        exit::REFUSED => "PgkeepRefused",
        _ => "PgkeepFailed",
    };
    let message = if errors.is_empty() {
        format!("pgkeep ended with exit code {code}")
    } else {
        errors.join("\n")
    };
    json!({ "name": name, "message": message, "stack": [], "cause": null, "context": null })
}

/// Without our colours, nor blanks at its end; what else a terminal would act on is shown, for people read logs there.
pub fn plain(text: &str) -> String {
    let text = printable::lines(text);
    let text = anstream::adapter::strip_str(&text).to_string();
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{BOLD, styled};

    #[test]
    fn a_message_is_one_line_whatever_is_in_it() {
        let line = message(
            "log",
            &log(
                Level::Warning,
                &format!("{}\nlines\u{1b}[2J\n", styled(BOLD, "two")),
            ),
        );
        assert!(!line.contains('\n'));
        let read: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            read,
            json!({
                "__dagster_pipes_version": "0.1",
                "method": "log",
                "params": { "message": "two\nlines\\x1b[2J", "level": "WARNING" },
            })
        );
    }

    #[test]
    fn facts_carry_their_types() {
        let metadata = Metadata::default()
            .text("dump_id", "d1")
            .text("nothing", "")
            .number("rows", 3)
            .seconds("elapsed_seconds", std::time::Duration::from_millis(1500))
            .url("url", "s3://bucket/main/dump/d1/")
            .list("databases", &["app"]);
        assert_eq!(
            metadata.value(),
            json!({
                "dump_id": { "raw_value": "d1", "type": "text" },
                "rows": { "raw_value": 3, "type": "int" },
                "elapsed_seconds": { "raw_value": 1.5, "type": "float" },
                "url": { "raw_value": "s3://bucket/main/dump/d1/", "type": "url" },
                "databases": { "raw_value": ["app"], "type": "json" },
            })
        );
    }

    #[test]
    fn a_failure_says_why_even_if_nobody_did() {
        let told = |errors: &[String]| exception(exit::REFUSED, errors);
        assert_eq!(told(&["a".to_owned(), "b".to_owned()])["message"], "a\nb");
        assert_eq!(told(&[])["message"], "pgkeep ended with exit code 4");
        assert_eq!(told(&[])["name"], "PgkeepRefused");
    }
}
