use std::fmt;
use std::io;
use std::path::PathBuf;

use pgkeep_base::{Classified, Hint, RetryClass, quote_for_shell};

use crate::file::CONFIG_FILE_BYTES_MAX;

/// Where a setting was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A place in the configuration file; line and column count from 1, the column in characters.
    File {
        /// The file.
        path: PathBuf,
        /// Line.
        line: usize,
        /// Column.
        column: usize,
    },
    /// A variable of the environment.
    Environment(String),
    /// A flag of the command line.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::Environment(name) => f.write_str(name),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

/// The configuration is wrong. No variant holds the text of a secret setting.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file that was named isn't there.
    #[error("there is no configuration file {} (named by {named_by})", path.display())]
    FileMissing {
        /// The file.
        path: PathBuf,
        /// `--config` or `PGKEEP_CONFIG`.
        named_by: &'static str,
    },
    /// The file is there and can't be read.
    #[error("could not read the configuration file {}", path.display())]
    FileRead {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file is no configuration file.
    #[error("{} is not a configuration file: {reason}", path.display())]
    FileNotConfiguration {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
    /// Not TOML.
    #[error("{origin}: {message}")]
    Syntax {
        /// Where.
        origin: Origin,
        /// What the TOML parser says.
        message: String,
    },
    /// A key that means nothing.
    #[error("{origin}: there is no setting '{key}'{}", suggestion(nearest.as_deref()))]
    UnknownKey {
        /// Where.
        origin: Origin,
        /// As it stands there, with the tables it is in.
        key: String,
        /// The most similar known one.
        nearest: Option<String>,
    },
    /// A value that can't be.
    #[error("{origin}: {setting} {problem}")]
    InvalidValue {
        /// Where.
        origin: Origin,
        /// The setting's name.
        setting: String,
        /// What is wrong, completing "the setting ...".
        problem: String,
    },
    /// A cluster's name is part of every object's name in the repository.
    #[error(
        "{origin}: '{name}' can't be a cluster's name: it begins with a small letter or a digit, and up to 62 small \
         letters, digits, dots, dashes and underscores follow"
    )]
    InvalidClusterName {
        /// Where.
        origin: Origin,
        /// The name.
        name: String,
    },
    /// The cluster that was asked for isn't configured.
    #[error("{origin}: no cluster '{name}' is configured{}", suggestion(nearest.as_deref()))]
    UnknownCluster {
        /// Where it was asked for.
        origin: Origin,
        /// The name.
        name: String,
        /// The most similar known one.
        nearest: Option<String>,
        /// All that are configured.
        known: Vec<String>,
    },
    /// Several clusters are configured and none was chosen.
    #[error("several clusters are configured and none was chosen: {}", known.join(", "))]
    ClusterNotChosen {
        /// All that are configured.
        known: Vec<String>,
    },
    /// There is no place for backups.
    #[error("no repository is configured")]
    NoRepository,
    /// Two settings that exclude each other; which one is meant can't be guessed.
    #[error("encryption is \"none\", yet recipients to encrypt for are given")]
    EncryptionContradiction,
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest
        .map(|name| format!("; did you mean '{name}'?"))
        .unwrap_or_default()
}

impl Classified for ConfigError {
    fn retry_class(&self) -> RetryClass {
        RetryClass::Usage
    }

    fn hint(&self) -> Option<Hint> {
        let text = match self {
            Self::FileMissing { .. } => {
                "name another file with --config FILE, or none: then ./pgkeep.toml and /etc/pgkeep/pgkeep.toml are \
                 looked for"
                    .to_owned()
            }
            Self::UnknownKey { .. } => "all settings are listed in docs/configuration.md".to_owned(),
            Self::UnknownCluster { known, .. } => format!("configured are: {}", known.join(", ")),
            Self::ClusterNotChosen { .. } => "choose one with --cluster NAME or PGKEEP_CLUSTER=NAME".to_owned(),
            Self::NoRepository => {
                "set repository = \"s3://bucket/prefix\" (or file:///directory, gs://, az://) in pgkeep.toml, \
                 PGKEEP_REPOSITORY, or --repository"
                    .to_owned()
            }
            Self::EncryptionContradiction => {
                "remove recipients to write without encryption, or encryption = \"none\" to encrypt".to_owned()
            }
            Self::FileNotConfiguration { .. } => {
                format!("a configuration file is TOML text of at most {} KiB", CONFIG_FILE_BYTES_MAX / 1024)
            }
            _ => return None,
        };
        Some(Hint::new(text))
    }
}

/// What is worth saying though the configuration can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// A `PGKEEP_` variable that nothing reads.
    UnknownVariable {
        /// Its name.
        name: String,
        /// The most similar known one.
        nearest: Option<String>,
    },
    /// The file holds a password or a key, and everybody may read it.
    SecretsReadable {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

impl Warning {
    /// The command that mends it.
    pub fn mend(&self) -> Option<String> {
        match self {
            Self::UnknownVariable { name, nearest } => Some(match nearest {
                Some(nearest) => format!("export {nearest}=\"${name}\"; unset {name}"),
                None => format!("unset {name}"),
            }),
            Self::SecretsReadable { path, .. } => {
                let path = path.display().to_string();
                Some(format!("chmod o-rwx {}", quote_for_shell(&path)))
            }
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownVariable { name, nearest } => {
                write!(
                    f,
                    "nothing reads the variable {name}{}",
                    suggestion(nearest.as_deref())
                )
            }
            Self::SecretsReadable { path, mode } => write!(
                f,
                "{path} holds a password or a key and everybody may read it (mode {mode:04o}); `chmod o-rwx {path}` \
                 closes it",
                path = path.display()
            ),
        }
    }
}
