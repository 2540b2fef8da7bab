use std::fmt;
use std::str::FromStr;

use pgkeep_pg::Session;
use serde::{Deserialize, Serialize};

use crate::TimescaleError;

/// A release of TimescaleDB. Its suffix (`-dev`, `-rc1`) doesn't count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// The 2 of 2.17.2.
    pub major: u32,
    /// The 17 of 2.17.2.
    pub minor: u32,
    /// The last 2 of 2.17.2; 0 where there is none.
    pub patch: u32,
}

impl Version {
    /// The oldest version that is supported.
    pub const OLDEST: Self = Self {
        major: 2,
        minor: 13,
        patch: 0,
    };
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// The text is no version of TimescaleDB.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no version of TimescaleDB")]
pub struct ParseVersionError(String);

impl FromStr for Version {
    type Err = ParseVersionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseVersionError(text.chars().take(64).collect());
        let numbers = text.split_once('-').map_or(text, |(numbers, _)| numbers);
        let mut parts = numbers
            .split('.')
            .map(|part| match part.bytes().all(|byte| byte.is_ascii_digit()) {
                true => part.parse::<u32>().map_err(|_| error()),
                false => Err(error()),
            });
        let major = parts.next().ok_or_else(error)??;
        let minor = parts.next().ok_or_else(error)??;
        let patch = parts.next().transpose()?.unwrap_or_default();
        if parts.next().is_some() {
            return Err(error());
        }
        Ok(Self { major, minor, patch })
    }
}

/// What the server's TimescaleDB may do (`timescaledb.license`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum License {
    /// The Apache edition: hypertables and chunks; no compression, continuous aggregates, policies.
    Apache,
    /// The Community edition: everything.
    Timescale,
    /// The server doesn't say: the library isn't loaded.
    #[default]
    #[serde(other)]
    Unknown,
}

/// The extension as it is installed in one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    /// `pg_extension.extversion`, such as `2.17.2`.
    pub version: String,
    /// The same, to compare.
    pub version_parsed: Version,
    /// The schema of the extension's functions, usually `public`.
    pub schema: String,
    /// The edition.
    pub license: License,
    /// Is the loader in `shared_preload_libraries`?
    pub preloaded: bool,
    /// Is the library of this version loaded? Without it the server answers, but without the compressed rows.
    pub library_loaded: bool,
    /// Is `timescaledb.restoring` on in this session?
    pub restoring: bool,
}

impl Extension {
    /// The extension, if it can be relied upon.
    ///
    /// # Errors
    /// [`TimescaleError::UnsupportedVersion`], [`TimescaleError::LibraryNotLoaded`].
    pub fn usable(self) -> Result<Self, TimescaleError> {
        if self.version_parsed < Version::OLDEST {
            return Err(TimescaleError::UnsupportedVersion {
                version: self.version,
            });
        }
        if !self.library_loaded {
            return Err(TimescaleError::LibraryNotLoaded {
                version: self.version,
            });
        }
        Ok(self)
    }
}

/// The extension as this session's database has it; `None` if it isn't installed there.
///
/// The library's settings tell whether it is loaded: `timescaledb.max_background_workers` is the loader's,
/// `timescaledb.restoring` the versioned library's, and neither is in `pg_settings` unless a library defined it.
///
/// # Errors
/// [`TimescaleError::Pg`]; [`TimescaleError::UnexpectedCatalog`] if the version is unreadable.
pub async fn detect(session: &mut Session) -> Result<Option<Extension>, TimescaleError> {
    let rows = session
        .query(
            "SELECT e.extversion, n.nspname FROM pg_catalog.pg_extension e \
             JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'timescaledb'",
        )
        .await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let version: String = row.get(0)?;
    let version_parsed: Version = version
        .parse()
        .map_err(|error: ParseVersionError| TimescaleError::UnexpectedCatalog(error.to_string()))?;
    let schema: String = row.get(1)?;
    // A second statement: the loader loads the versioned library when a session's first statement is analysed.
    let settings = session
        .query(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_settings WHERE name = 'timescaledb.max_background_workers'), \
             EXISTS (SELECT FROM pg_catalog.pg_settings WHERE name = 'timescaledb.restoring'), \
             pg_catalog.current_setting('timescaledb.license', true), \
             coalesce(pg_catalog.current_setting('timescaledb.restoring', true), 'off') IN ('on', 'true', 'yes', '1')",
        )
        .await?;
    let row = settings
        .first()
        .ok_or_else(|| TimescaleError::UnexpectedCatalog("no settings".to_owned()))?;
    let library_loaded = row.get(1)?;
    let license = match row.get::<Option<String>>(2)?.as_deref() {
        Some("apache") if library_loaded => License::Apache,
        Some("timescale") if library_loaded => License::Timescale,
        _ => License::Unknown,
    };
    Ok(Some(Extension {
        version,
        version_parsed,
        schema,
        license,
        preloaded: row.get(0)?,
        library_loaded,
        restoring: row.get(3)?,
    }))
}

/// The extension, or why it can't be relied upon.
pub(crate) async fn require(session: &mut Session) -> Result<Extension, TimescaleError> {
    detect(session)
        .await?
        .ok_or(TimescaleError::NotInstalled)?
        .usable()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn versions_compare_by_number() {
        assert!(version("2.9.3") < Version::OLDEST);
        assert!(version("2.13.0") >= Version::OLDEST);
        assert!(version("2.29.2") > version("2.3.10"));
        assert_eq!(version("2.18.0-dev"), version("2.18.0"));
        assert_eq!(version("3.0"), version("3.0.0"));
        assert_eq!(version("2.17.2").to_string(), "2.17.2");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_version_or_an_error(text in ".*") {
            let _ = text.parse::<Version>();
        }

        #[test]
        fn a_version_survives_its_text(major in 0_u32.., minor in 0_u32.., patch in 0_u32..) {
            let version = Version { major, minor, patch };
            proptest::prop_assert_eq!(version.to_string().parse::<Version>(), Ok(version));
        }
    }

    #[test]
    fn what_is_no_version_is_refused() {
        for text in [
            "",
            "2",
            "2.",
            "2.x.1",
            "2.+1.0",
            "2.1.2.3",
            "99999999999.1.1",
            "-dev",
        ] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
    }
}
