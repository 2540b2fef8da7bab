use pgkeep_base::{Classified, Hint, RetryClass};
use pgkeep_pg::PgError;

use crate::Version;

/// What can go wrong with a database that has, or should have, TimescaleDB.
#[derive(Debug, thiserror::Error)]
pub enum TimescaleError {
    /// The server or the connection failed.
    #[error(transparent)]
    Pg(#[from] PgError),
    /// The extension isn't installed in this database.
    #[error("TimescaleDB is not installed in this database")]
    NotInstalled,
    /// The version is older than what this program knows.
    #[error("TimescaleDB {version} is not supported: {} or later is", Version::OLDEST)]
    UnsupportedVersion {
        /// The installed version.
        version: String,
    },
    /// The extension is in the catalog, but its library is not in the server: the server answers queries all the same,
    /// without the compressed rows.
    #[error("TimescaleDB {version} is installed in this database, but the server has not loaded its library")]
    LibraryNotLoaded {
        /// The version in the catalog.
        version: String,
    },
    /// Hypertables can't be read right while `timescaledb.restoring` is on.
    #[error("timescaledb.restoring is on in this session: compressed rows are invisible to it")]
    Restoring,
    /// `timescaledb_post_restore()` said it was done, and wasn't.
    #[error("timescaledb.restoring is still on after {attempts} calls of timescaledb_post_restore()")]
    StillRestoring {
        /// How often it was called.
        attempts: u32,
    },
    /// The database already has the extension, but not as it is wanted.
    #[error(
        "the database already has TimescaleDB {found_version} in schema {found_schema}; {wanted_version} in schema {wanted_schema} is wanted"
    )]
    OtherExtensionPresent {
        /// The version that is there.
        found_version: String,
        /// Its schema.
        found_schema: String,
        /// The version wanted.
        wanted_version: String,
        /// The schema wanted.
        wanted_schema: String,
    },
    /// `ALTER EXTENSION` was not the first statement of its session.
    #[error("TimescaleDB can't be updated in this session, which has loaded the old version already")]
    AlreadyLoaded,
    /// The catalog is not as any known version has it.
    #[error("TimescaleDB's catalog is not as expected: {0}")]
    UnexpectedCatalog(String),
}

impl Classified for TimescaleError {
    fn retry_class(&self) -> RetryClass {
        match self {
            Self::Pg(error) => error.retry_class(),
            Self::NotInstalled
            | Self::UnsupportedVersion { .. }
            | Self::LibraryNotLoaded { .. }
            | Self::Restoring
            | Self::StillRestoring { .. }
            | Self::AlreadyLoaded
            | Self::UnexpectedCatalog(_) => RetryClass::Permanent,
            Self::OtherExtensionPresent { .. } => RetryClass::Refused,
        }
    }

    fn hint(&self) -> Option<Hint> {
        let text = match self {
            Self::Pg(error) => return error.hint(),
            Self::NotInstalled => {
                "connect to the database that has the hypertables, or run there: CREATE EXTENSION timescaledb"
            }
            Self::UnsupportedVersion { .. } => {
                "update it first, as the first statement of a new session: psql -X -c 'ALTER EXTENSION timescaledb UPDATE'"
            }
            Self::LibraryNotLoaded { .. } => {
                "install the package of exactly this version, add timescaledb to shared_preload_libraries, restart the \
                 server; until then trust no query of this database"
            }
            Self::Restoring | Self::StillRestoring { .. } => {
                "end the restore mode, then open new sessions: SELECT timescaledb_post_restore()"
            }
            Self::OtherExtensionPresent { .. } => {
                "restore into a database made from template0, which has no extensions: CREATE DATABASE name TEMPLATE \
                 template0"
            }
            Self::AlreadyLoaded => {
                "run it as the first statement of a new session: psql -X -c 'ALTER EXTENSION timescaledb UPDATE'"
            }
            Self::UnexpectedCatalog(_) => {
                "see which version it is: SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'; and report it"
            }
        };
        Some(Hint::new(text))
    }
}
