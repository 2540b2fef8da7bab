use std::path::PathBuf;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, SpanRelativeTo};
use pgkeep_base::{ByteCount, Secret, nearest};
use toml::de::DeValue;

use crate::cluster::Databases;

/// The longest list that a setting takes.
const LIST_ITEMS_MAX: usize = 1000;
/// Longer windows are typing errors, and dates that far are not.
const WINDOW_MAX: SignedDuration = SignedDuration::from_hours(24 * 366 * 1000);

/// A value as it was given. Each method reads it as one type; the error completes "the setting ..." and echoes the text
/// only where it can't be a secret.
#[derive(Clone, Copy)]
pub(crate) enum Input<'a> {
    /// A variable's text, or a flag's.
    Text(&'a str),
    /// A flag that was given several times.
    Texts(&'a [String]),
    /// A value of the file.
    Value(&'a DeValue<'a>),
}

/// The items of a list that is given as one text.
pub(crate) fn items(text: &str) -> Vec<String> {
    text.split(',').map(|item| item.trim().to_owned()).collect()
}

impl Input<'_> {
    fn found(&self, expected: &str) -> String {
        let found = match self {
            Self::Text(_) => "other text",
            Self::Texts(_) => "several",
            Self::Value(DeValue::String(_)) => "a string",
            Self::Value(DeValue::Integer(_)) => "an integer",
            Self::Value(DeValue::Float(_)) => "a number with a fraction",
            Self::Value(DeValue::Boolean(_)) => "true or false",
            Self::Value(DeValue::Datetime(_)) => "a date or time",
            Self::Value(DeValue::Array(_)) => "a list",
            Self::Value(DeValue::Table(_)) => "a table",
        };
        format!("must be {expected}, and is {found}")
    }

    fn text(&self, expected: &str) -> Result<&str, String> {
        let text = match self {
            Self::Text(text) => text,
            Self::Texts([text]) => text.as_str(),
            Self::Value(DeValue::String(text)) => text.as_ref(),
            _ => return Err(self.found(expected)),
        };
        if text.trim().is_empty() {
            return Err("is empty".to_owned());
        }
        if text.contains('\0') {
            return Err("holds a zero character".to_owned());
        }
        Ok(text)
    }

    pub(crate) fn string(&self) -> Result<String, String> {
        Ok(self.text("a string")?.trim().to_owned())
    }

    pub(crate) fn secret(&self) -> Result<Secret, String> {
        Ok(Secret::new(self.text("a string")?))
    }

    /// Variables hold lists with commas; the file and flags hold them as such, or a single text.
    pub(crate) fn list(&self) -> Result<Vec<String>, String> {
        const EXPECTED: &str = "a string or a list of strings";
        let items: Vec<String> = match self {
            Self::Text(text) => items(text),
            Self::Texts(texts) => texts.to_vec(),
            Self::Value(DeValue::String(text)) => vec![text.as_ref().to_owned()],
            Self::Value(DeValue::Array(array)) => {
                let strings = array
                    .iter()
                    .map(|item| item.get_ref().as_str().map(str::to_owned));
                strings
                    .collect::<Option<_>>()
                    .ok_or_else(|| format!("must be {EXPECTED}, and holds something else"))?
            }
            Self::Value(_) => return Err(self.found(EXPECTED)),
        };
        if items.len() > LIST_ITEMS_MAX {
            return Err(format!("has {} items; the most is {LIST_ITEMS_MAX}", items.len()));
        }
        if items.iter().any(|item| item.trim().is_empty()) {
            return Err("has an empty item".to_owned());
        }
        Ok(items)
    }

    pub(crate) fn boolean(&self) -> Result<bool, String> {
        const EXPECTED: &str = "true or false";
        match self {
            Self::Value(DeValue::Boolean(value)) => Ok(*value),
            // In the file `stream = "false"` is a mistake worth telling; a variable can't be anything but text.
            Self::Value(_) => Err(self.found(EXPECTED)),
            _ => match self.text(EXPECTED)?.trim().to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" | "1" => Ok(true),
                "false" | "no" | "off" | "0" => Ok(false),
                _ => Err(self.found(EXPECTED)),
            },
        }
    }

    pub(crate) fn integer(&self, min: i64, max: i64) -> Result<i64, String> {
        let expected = format!("a whole number from {min} to {max}");
        let number = match self {
            Self::Value(DeValue::Integer(integer)) => i64::from_str_radix(integer.as_str(), integer.radix())
                .map_err(|_| format!("must be {expected}"))?,
            Self::Value(_) => return Err(self.found(&expected)),
            _ => self
                .text(&expected)?
                .trim()
                .parse()
                .map_err(|_| self.found(&expected))?,
        };
        if (min..=max).contains(&number) {
            Ok(number)
        } else {
            Err(format!("must be {expected}, and is {number}"))
        }
    }

    pub(crate) fn count(&self, min: u32, max: u32) -> Result<u32, String> {
        let number = self.integer(i64::from(min), i64::from(max))?;
        u32::try_from(number).map_err(|error| error.to_string())
    }

    pub(crate) fn compression_level(&self) -> Result<i32, String> {
        i32::try_from(self.integer(1, 19)?).map_err(|error| error.to_string())
    }

    /// Days count 24 hours. Months and years are no durations: `monthly` and `yearly` are for those.
    pub(crate) fn duration(&self) -> Result<SignedDuration, String> {
        const EXPECTED: &str = "a duration such as \"30d\" or \"12h\"";
        let text = self.text(EXPECTED)?.trim();
        let problem = || format!("must be {EXPECTED}, and is '{text}'");
        let span: Span = text.parse().map_err(|_| problem())?;
        let duration = span
            .to_duration(SpanRelativeTo::days_are_24_hours())
            .map_err(|_| problem())?;
        if duration.is_negative() || duration > WINDOW_MAX {
            return Err(format!("must be from 0 to 1000 years, and is '{text}'"));
        }
        Ok(duration)
    }

    /// A replication slot's name (`ReplicationSlotValidateName`, `replication/slot.c`).
    pub(crate) fn slot(&self) -> Result<String, String> {
        const NAME_BYTES_MAX: usize = 63;
        let text = self.string()?;
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.bytes().all(legal) {
            return Err(format!(
                "must be small letters, digits and '_', at most {NAME_BYTES_MAX}, and is '{text}'"
            ));
        }
        Ok(text)
    }

    pub(crate) fn bytes(&self) -> Result<ByteCount, String> {
        const EXPECTED: &str = "a size such as \"256MiB\"";
        if let Self::Value(DeValue::Integer(_)) = self {
            let number = self.integer(1, i64::MAX)?;
            return u64::try_from(number)
                .map(ByteCount)
                .map_err(|error| error.to_string());
        }
        let text = self.text(EXPECTED)?.trim();
        match text.parse() {
            Ok(ByteCount(0)) | Err(_) => Err(format!("must be {EXPECTED}, and is '{text}'")),
            Ok(bytes) => Ok(bytes),
        }
    }

    pub(crate) fn bytes_per_second(&self) -> Result<ByteCount, String> {
        const EXPECTED: &str = "a rate such as \"20MB/s\"";
        if let Self::Value(DeValue::Integer(_)) = self {
            return self.bytes();
        }
        let text = self.text(EXPECTED)?.trim();
        let size = text.strip_suffix("/s").unwrap_or(text);
        Input::Text(size)
            .bytes()
            .map_err(|_| format!("must be {EXPECTED}, and is '{text}'"))
    }

    pub(crate) fn path(&self) -> Result<PathBuf, String> {
        let text = self.text("a path")?;
        if text == "~" || text.starts_with("~/") {
            return Err("begins with '~', which only a shell knows; write the whole path".to_owned());
        }
        Ok(PathBuf::from(text))
    }

    pub(crate) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, String> {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let expected = format!("one of {}", names.join(", "));
        let text = self.text(&expected)?.trim();
        choices
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, choice)| *choice)
            .ok_or_else(|| {
                let meant =
                    nearest(text, names.iter().copied()).map(|name| format!("; did you mean '{name}'?"));
                format!("must be {expected}{}", meant.unwrap_or_default())
            })
    }

    pub(crate) fn time_zone(&self) -> Result<TimeZone, String> {
        const EXPECTED: &str = "a time zone such as \"Europe/Berlin\"";
        let text = self.text(EXPECTED)?.trim();
        TimeZone::get(text)
            .map_err(|_| format!("must be {EXPECTED}, and '{text}' is none that this machine knows"))
    }

    /// Only the shape: the scheduler says more when it reads the expression.
    pub(crate) fn schedule(&self) -> Result<String, String> {
        const EXPECTED: &str = "a cron expression such as \"0 3 * * *\" or \"@daily\"";
        let text = self.text(EXPECTED)?.trim();
        let allowed = |c: char| c.is_ascii_alphanumeric() || "*/,-#?LW@ \t".contains(c);
        let fields = text.split_whitespace().count();
        let named = text.starts_with('@') && fields == 1;
        if text.chars().all(allowed) && (named || (5..=6).contains(&fields)) {
            Ok(text.to_owned())
        } else {
            Err(format!("must be {EXPECTED}, and is '{text}'"))
        }
    }

    pub(crate) fn databases(&self) -> Result<Databases, String> {
        // A database whose name is `all` is named by a list: ["all"].
        if let Ok("all") = self.text("") {
            return Ok(Databases::All);
        }
        let names = self
            .list()
            .map_err(|_| "must be \"all\" or a list of names".to_owned())?;
        if names.is_empty() {
            return Err("is an empty list; write \"all\", or leave it out".to_owned());
        }
        Ok(Databases::Named(names))
    }

    /// Lightly: the checksum in a key is for those to check who encrypt.
    pub(crate) fn recipients(&self) -> Result<Vec<String>, String> {
        let recipients = self.list()?;
        for recipient in &recipients {
            let lower = recipient.to_ascii_lowercase();
            if lower.contains("secret-key") {
                return Err("holds a secret key; a recipient is the public key and begins with age1. Make a new pair \
                            with `pgkeep key new`: this one has been written down in the open"
                    .to_owned());
            }
            if !lower.trim().starts_with("age1") {
                return Err(
                    "must be public keys that begin with age1; `pgkeep key new` makes a pair".to_owned(),
                );
            }
        }
        Ok(recipients)
    }
}
