use pgkeep_base::{Classified, Hint, RetryClass, quote_for_shell};
use pgkeep_pg::PgError;
use pgkeep_pg::programs::ProgramError;
use pgkeep_repository::RepositoryError;
use pgkeep_repository::encryption::EncryptionError;
use pgkeep_timescale::TimescaleError;

use crate::manifest::{QualifiedName, RowFormat};

/// What can go wrong while dumping or restoring.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// PostgreSQL said no, or went away.
    #[error("{context}: {source}")]
    Pg {
        /// What was being done, in the present tense.
        context: String,
        /// PostgreSQL's answer.
        source: PgError,
    },
    /// The repository or its store failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// TimescaleDB's catalog could not be read or changed.
    #[error("database '{database}': {source}")]
    Timescale {
        /// The database.
        database: String,
        /// What was wrong.
        source: TimescaleError,
    },
    /// A PostgreSQL client program is missing or failed.
    #[error("{context}: {source}")]
    Program {
        /// What was being done, in the present tense.
        context: String,
        /// What was wrong.
        source: ProgramError,
    },
    /// The role may not read what is to be dumped.
    #[error(transparent)]
    MayNotRead(Box<DumpError>),
    /// A row, or a value in it, is larger than what PostgreSQL can hold at once while it sends it.
    #[error("{source}")]
    RowTooLarge {
        /// The table.
        table: QualifiedName,
        /// Whether the rows were to come as text.
        in_text: bool,
        /// PostgreSQL's answer, which doesn't speak of rows.
        source: Box<DumpError>,
    },
    /// The list of relations changed under every attempt.
    #[error(
        "cannot get a stable view of database '{database}': in {attempts} attempts its tables changed each time between \
         listing and locking them, the last time {change}"
    )]
    Unstable {
        /// The database.
        database: String,
        /// How often it was tried.
        attempts: u32,
        /// The last difference seen.
        change: String,
    },
    /// Locks could not be had.
    #[error("cannot lock the tables of database '{database}' for reading within {waited_seconds} s{}",
        .blockers.as_ref().map(|b| format!(": {b}")).unwrap_or_default())]
    LockTimeout {
        /// The database.
        database: String,
        /// How long it waited, in seconds.
        waited_seconds: u64,
        /// Which sessions hold what.
        blockers: Option<String>,
    },
    /// A count that must agree doesn't.
    #[error("{what}: counted {found}, expected {expected}")]
    CountMismatch {
        /// What was counted.
        what: String,
        /// What was found.
        found: u64,
        /// What it should have been.
        expected: u64,
    },
    /// The user's choice fits nothing, or contradicts itself.
    #[error("{message}")]
    Usage {
        /// What is wrong with it.
        message: String,
        /// The mend.
        hint: Option<String>,
    },
    /// A database that is being restored, or was left half-restored, can't be dumped.
    #[error("database '{database}' {what}: a dump of it would be half of something")]
    HalfRestored {
        /// The database.
        database: String,
        /// What was found in it, to complete "the database ...".
        what: String,
        /// How to end that.
        mend: String,
    },
    /// A database that was listed when the dump began isn't in the cluster any more.
    #[error("database '{database}' was dropped or renamed while the dump ran{}",
        .source.as_ref().map(|source| format!(": {source}")).unwrap_or_default())]
    DatabaseGone {
        /// The database.
        database: String,
        /// How it was noticed, where it had been begun to be read.
        source: Option<Box<DumpError>>,
    },
    /// Which dump is the latest can't be told: what is newer than the newest sound one can't be read.
    #[error("{} newer than {sound}, the newest sound one that holds what is asked for, and can't be read: {source}",
        match .unreadable.as_slice() {
            [only] => format!("dump {only} is"),
            several => format!("dumps {} are", several.join(", ")),
        })]
    NewerUnreadable {
        /// The dumps, the newest first.
        unreadable: Vec<String>,
        /// The newest of the others.
        sound: String,
        /// The command that asked.
        command: String,
        /// Why the newest can't be read.
        source: Box<DumpError>,
    },
    /// A dump of an earlier version has lost its summary, which alone said what was asked for.
    #[error("of which part of its cluster dump {id} is can't be told: {source}")]
    PartUnknown {
        /// The dump.
        id: String,
        /// Why the summary can't be read.
        source: Box<DumpError>,
    },
    /// Going on could destroy something.
    #[error("{message}")]
    Refused {
        /// What was found.
        message: String,
        /// How to go on.
        hint: String,
    },
    /// The server, or the target of a restore, can't do what was asked for.
    #[error("{message}")]
    Target {
        /// What it lacks.
        message: String,
        /// The mend.
        hint: Option<String>,
    },
    /// A restore stopped half-way; the target is marked.
    #[error("restoring database '{database}' stopped half-way: {source}")]
    Unfinished {
        /// The database as it is called in the target.
        database: String,
        /// The reason.
        source: Box<DumpError>,
        /// How to go on.
        hint: String,
    },
    /// A local file could not be read or written.
    #[error("{context}: {source}")]
    Io {
        /// What was being done, in the present tense.
        context: String,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The manifest isn't what this program can read.
    #[error("the manifest of {id} is not readable: {reason}")]
    Manifest {
        /// The dump.
        id: String,
        /// What is wrong.
        reason: String,
    },
    /// An object isn't what the manifest says.
    #[error("object {name} is not what the manifest says: {reason}")]
    Object {
        /// Its name within the dump's folder.
        name: String,
        /// The difference.
        reason: String,
    },
    /// Objects that the manifest names aren't in the store, or are cut short.
    #[error("dump {id} lacks {}: nothing was done with it", missing_objects(.first, *.found_bytes, *.others))]
    ObjectsMissing {
        /// The dump.
        id: String,
        /// The first of them, by its name within the dump's folder.
        first: String,
        /// What there is of it, in bytes; none where it is missing.
        found_bytes: Option<u64>,
        /// How many others there are.
        others: u64,
    },
    /// The store's last answer was lost or says nothing: the dump may be there or not.
    #[error("whether dump {id} is there and whole isn't known: {source}")]
    Unconfirmed {
        /// The dump.
        id: String,
        /// What went wrong.
        source: Box<DumpError>,
    },
    /// A dump was not committed, because what says what it is would be larger than anybody reads.
    #[error(
        "the dump was not made: {what} would have {bytes} bytes, and no more than {bytes_max} can be read back"
    )]
    Unreadable {
        /// Which part of it.
        what: &'static str,
        /// How large it would be, in bytes.
        bytes: u64,
        /// How large it may be, in bytes.
        bytes_max: u64,
    },
    /// The user pressed Ctrl-C, or the system asked the process to end.
    #[error("interrupted")]
    Interrupted,
    /// A stage of the pipeline died, or a rule the program relies on doesn't hold.
    #[error("internal: {0}")]
    Internal(String),
}

impl DumpError {
    /// The same, with more about what was being done.
    #[must_use]
    pub(crate) fn within(self, what: &str) -> Self {
        match self {
            Self::Program { context, source } => Self::Program {
                context: format!("{context} for {what}"),
                source,
            },
            other => other,
        }
    }

    /// Whether the dump that was read is gone.
    pub fn is_removed(&self) -> bool {
        matches!(self, Self::Repository(RepositoryError::Removed { .. }))
    }

    /// Whether the dump that was read isn't what was written, so that no other attempt gets more out of it.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Unfinished { source, .. } => source.is_damage(),
            Self::PartUnknown { .. } | Self::Repository(RepositoryError::NewerFormat { .. }) => false,
            error => error.is_of_one_dump() && !error.is_locked(),
        }
    }

    /// Whether it takes a key, or another key, and nothing else. That says nothing about the dump.
    pub fn is_locked(&self) -> bool {
        let Self::Repository(RepositoryError::Open { source, .. }) = self else {
            return false;
        };
        matches!(
            source,
            EncryptionError::NoIdentity { .. } | EncryptionError::WrongKey { .. }
        )
    }

    /// Whether it is about the dump that was read, or the key to it: another one may be read all the same.
    pub fn is_of_one_dump(&self) -> bool {
        match self {
            Self::Manifest { .. }
            | Self::Object { .. }
            | Self::ObjectsMissing { .. }
            | Self::PartUnknown { .. } => true,
            Self::Repository(RepositoryError::Open { source, .. }) => {
                !matches!(source, EncryptionError::Read(_))
            }
            Self::Repository(error) => {
                error.is_damage() || matches!(error, RepositoryError::NewerFormat { .. })
            }
            _ => false,
        }
    }

    /// What a dump was refused to read, as such.
    pub(crate) fn of_a_dump(self) -> Self {
        let hides_rows = matches!(&self, Self::Pg { source, .. } if source.hides_rows());
        match self.sqlstate() {
            Some(SQLSTATE_INSUFFICIENT_PRIVILEGE) if !hides_rows => Self::MayNotRead(Box::new(self)),
            _ => self,
        }
    }

    /// What went wrong while the rows of a table were read.
    pub(crate) fn of_rows(self, table: &QualifiedName, format: RowFormat) -> Self {
        let Self::Pg {
            source: PgError::Server(server),
            ..
        } = &self
        else {
            return self;
        };
        // A StringInfo and an allocation with their limits (src/common/stringinfo.c, src/backend/utils/mmgr/mcxt.c).
        let is_too_large = server.sqlstate == SQLSTATE_PROGRAM_LIMIT_EXCEEDED
            || server.message.starts_with("invalid memory alloc request size");
        if !is_too_large {
            return self;
        }
        Self::RowTooLarge {
            table: table.clone(),
            in_text: format == RowFormat::Text,
            source: Box::new(self),
        }
    }

    /// The SQLSTATE, when PostgreSQL reported one.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Pg { source, .. } => source.sqlstate(),
            Self::MayNotRead(source) | Self::RowTooLarge { source, .. } => source.sqlstate(),
            _ => None,
        }
    }
}

impl Classified for DumpError {
    fn retry_class(&self) -> RetryClass {
        match self {
            Self::Pg { source, .. } => source.retry_class(),
            Self::Repository(error) => error.retry_class(),
            Self::Timescale { source, .. } => source.retry_class(),
            Self::Program { source, .. } => source.retry_class(),
            Self::Unfinished { source, .. } | Self::MayNotRead(source) | Self::RowTooLarge { source, .. } => {
                source.retry_class()
            }
            Self::Unstable { .. } | Self::LockTimeout { .. } | Self::DatabaseGone { .. } => {
                RetryClass::Transient
            }
            Self::Usage { .. } => RetryClass::Usage,
            Self::Refused { .. } | Self::HalfRestored { .. } | Self::NewerUnreadable { .. } => {
                RetryClass::Refused
            }
            _ => RetryClass::Permanent,
        }
    }

    fn hint(&self) -> Option<Hint> {
        let text = match self {
            Self::Pg { source, .. } => return source.hint(),
            Self::Repository(error) => return error.hint(),
            Self::Timescale { source, .. } => return source.hint(),
            Self::Program { source, .. } => return source.hint(),
            Self::Refused { hint, .. } | Self::Unfinished { hint, .. } => hint.clone(),
            Self::HalfRestored { mend, .. } => mend.clone(),
            Self::DatabaseGone { .. } => {
                "run it again for the databases that are there now; of those that are named by --database or dump.databases, \
                 leave it out"
                    .to_owned()
            }
            Self::NewerUnreadable {
                unreadable,
                sound,
                command,
                source,
            } => newer_unreadable(unreadable, sound, command, source),
            Self::PartUnknown { id, .. } => {
                format!("an earlier version wrote it; 'pgkeep show {id}' says what it holds, and it is had by that id")
            }
            Self::Usage { hint, .. } | Self::Target { hint, .. } => hint.clone()?,
            Self::Unstable { .. } => {
                "run it again at a quieter time, or leave the tables that come and go out with --exclude-table".to_owned()
            }
            Self::MayNotRead(_) => {
                "the role lacks a privilege: GRANT pg_read_all_data TO the role, or connect as another one".to_owned()
            }
            Self::RowTooLarge { table, in_text, .. } => row_too_large(table, *in_text),
            Self::LockTimeout { .. } => "wait for those sessions to end, or allow more time with --lock-timeout".to_owned(),
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                "the disk is full: free some space on it, or write to another one, then run it again".to_owned()
            }
            Self::Unreadable { .. } => "make several dumps of parts: 'pgkeep dump --database NAME' for each database, or \
                'pgkeep dump --exclude-table PATTERN'; with fewer or shorter annotations and patterns, if those are it"
                .to_owned(),
            Self::Object { .. } => "check the dump with 'pgkeep verify', and restore from another one".to_owned(),
            Self::Unconfirmed { id, .. } => format!("'pgkeep verify {id}' tells, as soon as the store answers"),
            Self::ObjectsMissing { id, .. } => {
                format!("'pgkeep verify {id}' says all that is wrong with it, 'pgkeep list' which others there are")
            }
            Self::Manifest { .. } => "check it with 'pgkeep verify'; a later pgkeep may be needed".to_owned(),
            _ => return None,
        };
        Some(Hint::new(text))
    }
}

fn row_too_large(table: &QualifiedName, in_text: bool) -> String {
    let binary = match in_text {
        true => {
            " (bytea counts twice in text, and large tables come in binary with 'pgkeep dump --set dump.row_format=auto')"
        }
        false => "",
    };
    format!(
        "PostgreSQL sends no row of more than a gibibyte, to pg_dump neither: make that row smaller{binary}, or leave the table's \
         rows out with --exclude-table-data {}; if no row of it is that large, the table is damaged",
        quote_for_shell(&table.quoted())
    )
}

fn missing_objects(first: &str, found_bytes: Option<u64>, others: u64) -> String {
    let what = match found_bytes {
        None => format!("its object {first}"),
        Some(bytes) => format!("a part of its object {first}, of which {bytes} bytes are there"),
    };
    match others {
        0 => what,
        1 => format!("{what}, and another one"),
        _ => format!("{what}, and {others} others"),
    }
}

fn newer_unreadable(unreadable: &[String], sound: &str, command: &str, source: &DumpError) -> String {
    let older = format!("for the older one: 'pgkeep {command} {sound} ...'");
    let newest = unreadable.first().map_or("ID", String::as_str);
    match source {
        DumpError::PartUnknown { .. } => {
            format!("for the newer one: 'pgkeep {command} {newest} ...'; {older}")
        }
        DumpError::Repository(RepositoryError::NewerFormat { .. }) => {
            format!("install the pgkeep that wrote it, or a later one; {older}")
        }
        source if source.is_locked() => match source.hint() {
            Some(hint) => format!("{hint}; {older}"),
            None => older,
        },
        _ => format!("{older}; 'pgkeep verify {newest}' says what is damaged"),
    }
}

/// `insufficient_privilege`
const SQLSTATE_INSUFFICIENT_PRIVILEGE: &str = "42501";
/// `program_limit_exceeded`
const SQLSTATE_PROGRAM_LIMIT_EXCEEDED: &str = "54000";

/// Adds what was being done to an error from below.
pub(crate) trait Context<T> {
    /// `context` in the present tense: "reading table app.games".
    fn context(self, context: impl FnOnce() -> String) -> Result<T, DumpError>;
}

impl<T> Context<T> for Result<T, PgError> {
    fn context(self, context: impl FnOnce() -> String) -> Result<T, DumpError> {
        self.map_err(|source| DumpError::Pg {
            context: context(),
            source,
        })
    }
}

impl<T> Context<T> for Result<T, ProgramError> {
    fn context(self, context: impl FnOnce() -> String) -> Result<T, DumpError> {
        self.map_err(|source| DumpError::Program {
            context: context(),
            source,
        })
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn context(self, context: impl FnOnce() -> String) -> Result<T, DumpError> {
        self.map_err(|source| DumpError::Io {
            context: context(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use pgkeep_pg::ServerError;

    use super::*;

    #[test]
    fn a_row_that_cannot_be_sent_is_told_from_other_failures() {
        let table = QualifiedName {
            schema: "public".to_owned(),
            name: "Wide".to_owned(),
        };
        let failed = |sqlstate: &str, message: &str| {
            let server = ServerError {
                sqlstate: sqlstate.to_owned(),
                message: message.to_owned(),
                ..ServerError::default()
            };
            let source = PgError::Server(Box::new(server));
            let context = "reading table public.Wide".to_owned();
            DumpError::Pg { context, source }.of_rows(&table, RowFormat::Text)
        };
        for (sqlstate, message) in [
            (SQLSTATE_PROGRAM_LIMIT_EXCEEDED, "out of memory"),
            ("XX000", "invalid memory alloc request size 1258291203"),
        ] {
            let error = failed(sqlstate, message);
            let hint = error.hint().unwrap().to_string();
            assert!(
                hint.contains("--exclude-table-data '\"public\".\"Wide\"'"),
                "{hint}"
            );
            assert!(hint.contains("dump.row_format=auto"), "{hint}");
            assert!(error.to_string().contains("reading table public.Wide"), "{error}");
            assert_eq!(error.sqlstate(), Some(sqlstate));
        }
        assert!(matches!(failed("53200", "out of memory"), DumpError::Pg { .. }));
    }

    #[test]
    fn a_missing_privilege_is_explained_by_what_was_done() {
        let server = ServerError {
            severity: "ERROR".to_owned(),
            sqlstate: SQLSTATE_INSUFFICIENT_PRIVILEGE.to_owned(),
            message: "permission denied to create role".to_owned(),
            hint: Some("the server's own".to_owned()),
            ..ServerError::default()
        };
        let refused = || DumpError::Pg {
            context: "c".to_owned(),
            source: PgError::Server(Box::new(server.clone())),
        };
        let hint = |error: DumpError| error.hint().map(|hint| hint.to_string()).unwrap_or_default();
        assert_eq!(hint(refused()), "the server's own");
        let of_a_dump = refused().of_a_dump();
        assert_eq!(of_a_dump.to_string(), refused().to_string());
        assert_eq!(of_a_dump.sqlstate(), refused().sqlstate());
        assert!(hint(of_a_dump).contains("pg_read_all_data"));
    }
}
