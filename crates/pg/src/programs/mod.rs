//! PostgreSQL's own programs: where they are, which version, and how they are run.

mod find;
mod messages;
mod run;

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use pgkeep_base::{Classified, Hint, RetryClass};

pub use find::{Program, ProgramSearch, find};
pub use run::{Finished, RunLimits, Running, run};

/// A program of PostgreSQL is missing, or failed.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// There is none with a version that will do.
    #[error(
        "no {program} of PostgreSQL {major_min} or later was found{}",
        found_text(found)
    )]
    NotFound {
        /// The program.
        program: String,
        /// The lowest major version that will do.
        major_min: u32,
        /// What was found and why it won't do.
        found: Vec<(PathBuf, String)>,
    },
    /// It can't be run.
    #[error("cannot run {}: {source}", path.display())]
    Start {
        /// The program.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It ended with an error.
    #[error("{program} failed ({}){}", status_text(status), stderr_text(stderr))]
    Failed {
        /// The program.
        program: String,
        /// Its exit status.
        status: ExitStatus,
        /// The end of what it wrote to standard error.
        stderr: String,
    },
    /// What was to run it elsewhere failed.
    #[error("cannot run {program}: {message}")]
    Launcher {
        /// The program.
        program: String,
        /// What the launcher said.
        message: String,
        /// And what to do.
        hint: Option<String>,
    },
    /// It didn't end in time, and was killed.
    #[error("{program} did not end within {} s and was stopped{}", after.as_secs(), stderr_text(stderr))]
    Deadline {
        /// The program.
        program: String,
        /// How long it was waited for.
        after: Duration,
        /// The end of what it wrote to standard error.
        stderr: String,
    },
    /// It wrote more than was asked for, and was killed.
    #[error("{program} wrote more than {bytes_max} bytes")]
    OutputTooLarge {
        /// The program.
        program: String,
        /// The limit.
        bytes_max: usize,
    },
    /// The pipe to or from it failed.
    #[error("the pipe of {program} failed: {source}")]
    Pipe {
        /// The program.
        program: String,
        /// Why.
        source: std::io::Error,
    },
}

fn found_text(found: &[(PathBuf, String)]) -> String {
    if found.is_empty() {
        return "; there is none at all".to_owned();
    }
    let list = found
        .iter()
        .map(|(path, version)| format!("{} ({version})", path.display()))
        .collect::<Vec<_>>();
    format!("; there is {}", list.join(", "))
}

/// `exit status 1` or `signal 9`.
fn status_text(status: &ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

fn stderr_text(stderr: &str) -> String {
    let trimmed = stderr.trim();
    if trimmed.is_empty() {
        String::new()
    } else {
        format!(": {trimmed}")
    }
}

/// The mend, by what a program said. (They run with `LC_ALL=C`.)
fn failed_hint(stderr: &str) -> Option<&'static str> {
    if stderr.contains("No space left on device") {
        return Some(
            "the disk that is written to is full: free some space, or write to another one, then run it again",
        );
    }
    stderr
        .contains("affected by row-level security policy")
        .then_some(crate::error::ROW_SECURITY_HINT)
}

impl Classified for ProgramError {
    fn retry_class(&self) -> RetryClass {
        match self {
            Self::Deadline { .. } | Self::Pipe { .. } => RetryClass::Transient,
            Self::NotFound { .. }
            | Self::Start { .. }
            | Self::Failed { .. }
            | Self::Launcher { .. }
            | Self::OutputTooLarge { .. } => RetryClass::Permanent,
        }
    }

    fn hint(&self) -> Option<Hint> {
        if let Self::Failed { stderr, .. } = self {
            return failed_hint(stderr).map(Hint::new);
        }
        if let Self::Launcher { hint, .. } = self {
            return hint.clone().map(Hint::new);
        }
        let Self::NotFound {
            program, major_min, ..
        } = self
        else {
            return None;
        };
        let server = matches!(
            program.as_str(),
            "postgres" | "initdb" | "pg_ctl" | "pg_controldata"
        );
        let package = if server {
            format!("postgresql-{major_min}")
        } else {
            format!("postgresql-client-{major_min}")
        };
        Some(Hint::new(format!(
            "install it (Debian, Ubuntu: apt-get install {package}, from apt.postgresql.org if the distribution has an \
             older one), or name the directory it is in by --pg-bin, pg_bin or PGKEEP_PG_BIN; of a server in a container, its own: \
             --pg-bin container:NAME"
        )))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn failures_are_told_with_their_mend() {
        let hint = |stderr: &str| {
            let failed = ProgramError::Failed {
                program: "pg_dump".to_owned(),
                status: ExitStatus::from_raw(256),
                stderr: stderr.to_owned(),
            };
            failed.hint().map(|hint| hint.to_string()).unwrap_or_default()
        };
        let full = "pg_dump: error: could not write to file \"x/1.dat\": No space left on device";
        assert!(hint(full).contains("full: free some space"));
        let policy = "pg_dump: error: query failed: ERROR:  query would be affected by row-level security policy for table \"t\"";
        assert!(hint(policy).contains("BYPASSRLS"));
        assert_eq!(hint("pg_dump: error: something else"), "");
    }
}
