use pgkeep_base::{Classified, Hint, RetryClass};
use pgkeep_pg::PgError;
use pgkeep_pgformat::{
    ControlFileError, Lsn, SegmentName, SegmentSizeError, Timeline, TimelineHistoryError, WalFileNameError,
    WalHeaderError,
};
use pgkeep_repository::RepositoryError;

/// What can go wrong with WAL on its way.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The server, or the connection to it.
    #[error(transparent)]
    Server(#[from] PgError),
    /// The repository, or the store under it.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The same piece of WAL is stored, with other contents.
    #[error(
        "{object} of '{cluster}' is stored already, with other contents: another server writes WAL under this name"
    )]
    OtherWal {
        /// The cluster's name in the repository.
        cluster: String,
        /// The object's name.
        object: String,
    },
    /// WAL is stored that this server can't have written.
    #[error(
        "'{cluster}' has WAL of timeline {timeline} up to {end}, which is no part of this server's history ({why})"
    )]
    NotInHistory {
        /// The cluster's name in the repository.
        cluster: String,
        /// The stored timeline.
        timeline: Timeline,
        /// How far it is stored.
        end: Lsn,
        /// How that is known.
        why: String,
    },
    /// What comes as a segment isn't one.
    #[error("what should be WAL segment {segment} is none: {reason}")]
    NoSegment {
        /// Its name.
        segment: SegmentName,
        /// What is wrong.
        reason: WalHeaderError,
    },
    /// It is a segment of another cluster.
    #[error("{what} is WAL of another database cluster (system identifier {found}, this one has {ours})")]
    OtherSystem {
        /// Where it comes from.
        what: String,
        /// Whose it is.
        found: u64,
        /// Whose it should be.
        ours: u64,
    },
    /// The server was promoted, or followed another timeline, while a backup needed WAL of one.
    #[error("the server left timeline {timeline} at {at}, before the backup's end")]
    TimelineLeft {
        /// The timeline.
        timeline: Timeline,
        /// Where.
        at: Lsn,
    },
    /// The server shut down.
    #[error("the server is shutting down")]
    Shutdown,
    /// Told to stop, it couldn't store what had come.
    #[error("the last WAL could not be stored within {} s", after.as_secs())]
    NotStored {
        /// How long it was tried.
        after: std::time::Duration,
    },
    /// Whoever wanted WAL wants no more.
    #[error("receiving WAL was given up")]
    GivenUp,
    /// The server says something of itself that can't be.
    #[error("the server says '{answer}' of {setting}")]
    Setting {
        /// The setting.
        setting: &'static str,
        /// Its answer.
        answer: String,
    },
    /// Segments can't have this size.
    #[error(transparent)]
    SegmentSize(#[from] SegmentSizeError),
    /// A name that no WAL file has.
    #[error(transparent)]
    Name(#[from] WalFileNameError),
    /// A history that is damaged.
    #[error(transparent)]
    History(#[from] TimelineHistoryError),
    /// A control file that can't be read.
    #[error("cannot read {path}: {source}")]
    ControlFile {
        /// Which one.
        path: String,
        /// What is wrong with it.
        source: ControlFileError,
    },
    /// It can't be told which cluster a file belongs to.
    #[error("it can't be told which database cluster this is for: {0}")]
    WhichSystem(String),
    /// A file can't be read or written.
    #[error("cannot {doing} {path}: {source}")]
    File {
        /// Verb.
        doing: &'static str,
        /// Which one.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file isn't what its name says.
    #[error("{path} is not what its name says: {reason}")]
    NotThat {
        /// Which one.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A fault of the program.
    #[error("internal: {0}")]
    Internal(String),
}

impl Classified for WalError {
    fn retry_class(&self) -> RetryClass {
        match self {
            Self::Server(error) => error.retry_class(),
            Self::Repository(error) => error.retry_class(),
            Self::OtherWal { .. } | Self::NotInHistory { .. } | Self::OtherSystem { .. } => {
                RetryClass::Refused
            }
            Self::Shutdown => RetryClass::Transient,
            Self::Name(error) => error.retry_class(),
            Self::ControlFile { source, .. } => source.retry_class(),
            Self::WhichSystem(_) => RetryClass::Usage,
            _ => RetryClass::Permanent,
        }
    }

    fn hint(&self) -> Option<Hint> {
        let text = match self {
            Self::Server(error) => return error.hint(),
            Self::Repository(error) => return error.hint(),
            Self::Name(error) => return error.hint(),
            Self::History(error) => return error.hint(),
            Self::ControlFile { source, .. } => return source.hint(),
            Self::NoSegment { reason, .. } => return reason.hint(),
            Self::OtherWal { .. } | Self::NotInHistory { .. } | Self::OtherSystem { .. } => {
                "stop whichever server isn't the one to keep; give a copy or a clone a name of its own with --cluster, \
                 and take a base backup there"
            }
            Self::TimelineLeft { .. } | Self::Shutdown => "run the command again",
            Self::NotStored { .. } => {
                "the server keeps it for its slot, and the next 'pgkeep wal stream' stores it; see what is wrong with the store"
            }
            Self::WhichSystem(_) => {
                "run it in the data directory, as PostgreSQL does, or name that: --data-directory DIRECTORY"
            }
            _ => return None,
        };
        Some(Hint::new(text))
    }
}
