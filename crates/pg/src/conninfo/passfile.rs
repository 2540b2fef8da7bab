//! Password files (`fe-connect.c`, `passwordFromFile`).

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pgkeep_base::{Secret, quote_for_shell};

const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where a password came from, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PasswordSource {
    /// The connection string.
    ConnectionString,
    /// An environment variable.
    Variable(&'static str),
    /// A section of a service file.
    ServiceFile(PathBuf),
    /// A line (from 1) of a password file.
    PassFile {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
    },
}

impl fmt::Display for PasswordSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConnectionString => f.write_str("the connection string"),
            Self::Variable(name) => write!(f, "the variable {name}"),
            Self::ServiceFile(path) => write!(f, "the service file {}", path.display()),
            Self::PassFile { path, line } => write!(f, "line {line} of {}", path.display()),
        }
    }
}

/// A password file that was read. Entries are kept because the database may still change.
#[derive(Debug, Clone)]
pub(crate) struct PassFile {
    pub(crate) path: PathBuf,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    line: usize,
    /// Host, port, database, user; `None` stands for `*`.
    fields: [Option<String>; 4],
    password: Secret,
}

/// A password file that is there and isn't used, as libpq has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IgnoredPassfile {
    /// The file.
    pub path: PathBuf,
    /// Why, completing "the password file is ignored: ...".
    pub reason: String,
    /// The command that mends it.
    pub mend: Option<String>,
}

impl PassFile {
    /// Reads a file. A missing file is none, and one that others may read is refused.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, IgnoredPassfile> {
        let ignored = |reason: String, mend: Option<String>| {
            tracing::warn!(path = %path.display(), "the password file is ignored: {reason}");
            IgnoredPassfile {
                path: path.to_owned(),
                reason,
                mend,
            }
        };
        let Ok(metadata) = std::fs::metadata(path) else {
            return Ok(None);
        };
        if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
            return Err(ignored("it is not a plain file below 1 MiB".to_owned(), None));
        }
        if metadata.mode() & 0o077 != 0 {
            let mend = format!("chmod 0600 {}", quote_for_shell(&path.display().to_string()));
            let reason = format!(
                "group or others have access (mode {:04o})",
                metadata.mode() & 0o777
            );
            return Err(ignored(reason, Some(mend)));
        }
        match std::fs::read(path) {
            Ok(bytes) => Ok(Some(Self::parse(path, &String::from_utf8_lossy(&bytes)))),
            Err(error) => Err(ignored(format!("it can't be read: {error}"), None)),
        }
    }

    /// Reads a file's text. As in libpq, a line that is no entry is passed over.
    pub(crate) fn parse(path: &Path, text: &str) -> Self {
        let entries = text
            .lines()
            .enumerate()
            .filter_map(|(index, line)| Entry::parse(index + 1, line))
            .collect();
        Self {
            path: path.to_owned(),
            entries,
        }
    }

    /// The password of the first line that fits.
    pub(crate) fn find(
        &self,
        host: &str,
        port: u16,
        database: &str,
        user: &str,
    ) -> Option<(Secret, PasswordSource)> {
        let port = port.to_string();
        let wanted = [host, &port, database, user];
        let entry = self.entries.iter().find(|entry| {
            entry
                .fields
                .iter()
                .zip(wanted)
                .all(|(field, wanted)| field.as_deref().is_none_or(|field| field == wanted))
        })?;
        let source = PasswordSource::PassFile {
            path: self.path.clone(),
            line: entry.line,
        };
        Some((entry.password.clone(), source))
    }
}

impl Entry {
    fn parse(line: usize, text: &str) -> Option<Self> {
        if text.starts_with('#') {
            return None;
        }
        let mut fields = split_fields(text).into_iter();
        let mut field = || {
            let (raw, value) = fields.next()?;
            Some(if raw == "*" { None } else { Some(value) })
        };
        let fields_4 = [field()?, field()?, field()?, field()?];
        let (_, password) = fields.next()?;
        (!password.is_empty()).then(|| Self {
            line,
            fields: fields_4,
            password: Secret::new(password),
        })
    }
}

/// Splits at colons that no backslash stands before: each field raw and with the backslashes taken away.
fn split_fields(text: &str) -> Vec<(String, String)> {
    let mut fields = vec![(String::new(), String::new())];
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character == ':' {
            fields.push((String::new(), String::new()));
            continue;
        }
        let Some((raw, value)) = fields.last_mut() else {
            break;
        };
        raw.push(character);
        match character {
            '\\' => {
                if let Some(escaped) = characters.next() {
                    raw.push(escaped);
                    value.push(escaped);
                }
            }
            other => value.push(other),
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_fits_gives_the_password() {
        let lines = "# comment:*:*:*:no\ndb:5432:app:joe:one\n*:*:*:joe:t\\:wo\\\\\n*:*:*:*:three:rest\n*:1:*:x:\nshort:line";
        let file = PassFile::parse(Path::new("/p"), lines);
        let find = |host, port, database, user| {
            file.find(host, port, database, user)
                .map(|(password, source)| (password.expose().to_owned(), source))
        };
        let source = |line| PasswordSource::PassFile {
            path: PathBuf::from("/p"),
            line,
        };
        assert_eq!(find("db", 5432, "app", "joe"), Some(("one".into(), source(2))));
        assert_eq!(find("db", 5433, "app", "joe"), Some(("t:wo\\".into(), source(3))));
        assert_eq!(find("db", 5433, "app", "x"), Some(("three".into(), source(4))));
    }
}
