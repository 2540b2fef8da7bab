//! Connection strings, resolved as libpq resolves them (`src/interfaces/libpq/fe-connect.c`).

mod command;
mod environment;
mod keywords;
mod parse;
mod passfile;
mod resolve;
mod service;
mod target;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_libpq;

use std::fmt;
use std::path::PathBuf;

use pgkeep_base::{Classified, Hint, RetryClass, Secret};

pub use environment::Environment;
use parse::Settings;
#[cfg(any(test, fuzzing))]
pub(crate) use passfile::PassFile;
pub use passfile::{IgnoredPassfile, PasswordSource};
#[cfg(any(test, fuzzing))]
pub(crate) use service::parse as parse_service;
pub use target::Target;
pub(crate) use target::{
    ChannelBinding, Host, HostKind, Keepalives, RootCertificates, SessionAttributes, SslMode, SslNegotiation,
    TlsVersion,
};

/// A connection string, parsed but not yet resolved: it says only what was written in it.
///
/// Neither `Debug` nor `Display` shows a secret.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Conninfo {
    settings: Settings,
}

impl Conninfo {
    /// Parses `key=value ...` or `postgresql://...` (`postgres://...`). The empty string is right too: everything
    /// then comes from the environment and the defaults.
    ///
    /// # Errors
    /// The text is no connection string, or names an unknown parameter. The error never repeats a password.
    pub fn parse(text: &str) -> Result<Self, ConninfoError> {
        Ok(Self {
            settings: parse::parse(text)?,
        })
    }

    /// Adds the service file, environment variables, passfile and defaults, in libpq's order of precedence.
    ///
    /// # Errors
    /// A service is not defined, or a value makes no sense (`sslmode=on`, two ports for three hosts).
    pub fn resolve(&self, environment: &Environment) -> Result<Target, ConninfoError> {
        resolve::resolve(&self.settings, environment)
    }

    /// The same, for another database.
    #[must_use]
    pub fn with_database(&self, name: &str) -> Self {
        let mut settings = self.settings.clone();
        settings.insert("dbname", name.to_owned());
        Self { settings }
    }

    /// The same with a parameter of another value; an unknown name changes nothing.
    #[must_use]
    pub fn with_setting(&self, name: &str, value: &str) -> Self {
        let mut settings = self.settings.clone();
        if let Some(keyword) = keywords::find(name) {
            settings.insert(keyword.name, value.to_owned());
        }
        Self { settings }
    }

    /// The same without the password, and the password.
    #[must_use]
    pub fn split_password(&self) -> (Self, Option<Secret>) {
        let mut settings = self.settings.clone();
        let password = settings.remove("password").map(Secret::new);
        (Self { settings }, password)
    }

    /// What was written for a parameter (`"host"`, `"sslmode"`, ...), unless it is a secret one.
    pub fn setting(&self, name: &str) -> Option<&str> {
        let keyword = keywords::find(name).filter(|keyword| !keyword.secret)?;
        self.settings.get(keyword.name).map(String::as_str)
    }
}

/// Writes one value so that [`Conninfo::parse`] reads it back.
fn quote_value(value: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "-_./:,@+%".contains(character);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

impl fmt::Display for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (name, value) in &self.settings {
            let secret = keywords::find(name).is_none_or(|keyword| keyword.secret);
            let value = if secret {
                "[secret]".to_owned()
            } else {
                quote_value(value)
            };
            write!(f, "{separator}{name}={value}")?;
            separator = " ";
        }
        Ok(())
    }
}

impl fmt::Debug for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Conninfo({self})")
    }
}

/// A connection string cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConninfoError {
    /// It is not written as libpq wants it.
    #[error("the connection string is not right: {0}")]
    Syntax(String),
    /// It is a URI of something else.
    #[error("the connection string begins with '{scheme}://', and a server's with 'postgres://'{}",
        nearest.map(|nearest| format!(" (did you mean '{nearest}://'?)")).unwrap_or_default())]
    UnknownScheme {
        /// What was written before `://`.
        scheme: String,
        /// The known one most like it.
        nearest: Option<&'static str>,
    },
    /// It names a parameter that libpq doesn't have.
    #[error("unknown connection parameter{}{}",
        name.as_ref().map(|name| format!(" '{name}'")).unwrap_or_default(),
        nearest.map(|nearest| format!(" (did you mean '{nearest}'?)")).unwrap_or_default())]
    UnknownKeyword {
        /// What was written; absent where it could be a part of a password.
        name: Option<String>,
        /// The known name most like it.
        nearest: Option<&'static str>,
    },
    /// libpq has the parameter, pgkeep hasn't, and ignoring it would be wrong.
    #[error("the connection parameter '{0}' is not supported")]
    Unsupported(&'static str),
    /// A value makes no sense.
    #[error("the value of the connection parameter '{parameter}' is not right: {reason}")]
    Value {
        /// The parameter.
        parameter: &'static str,
        /// What is wrong, without the value where that is secret.
        reason: String,
    },
    /// The service isn't in any service file.
    #[error("the service '{name}' is not defined in {searched}")]
    ServiceNotFound {
        /// The service asked for.
        name: String,
        /// The files that were looked into.
        searched: String,
    },
    /// A service file can't be read or is wrong.
    #[error("the service file {path}{}: {reason}", line.map(|line| format!(", line {line}")).unwrap_or_default())]
    ServiceFile {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: Option<usize>,
        /// What is wrong.
        reason: String,
    },
    /// There is no user name anywhere.
    #[error(
        "no user name: it is not in the connection string or PGUSER, and the operating system doesn't know one"
    )]
    NoUser,
}

impl Classified for ConninfoError {
    fn retry_class(&self) -> RetryClass {
        RetryClass::Usage
    }

    fn hint(&self) -> Option<Hint> {
        let text = match self {
            Self::Syntax(_) | Self::UnknownScheme { .. } => {
                "write postgresql://user@host:5432/database or host=... user=... dbname=...; keep the password in \
                 ~/.pgpass or PGPASSWORD"
            }
            Self::UnknownKeyword { name: None, .. } => {
                "if a value holds blanks, quote it: password='two words'"
            }
            Self::UnknownKeyword { .. } => "see https://www.postgresql.org/docs/current/libpq-connect.html",
            Self::Unsupported(_) => "leave the parameter out",
            Self::ServiceNotFound { .. } => "name another file with PGSERVICEFILE, or add the [section]",
            Self::NoUser => "add user=NAME to the connection string",
            Self::Value { .. } | Self::ServiceFile { .. } => return None,
        };
        Some(Hint::new(text))
    }
}
