use pgkeep_base::{Classified, Hint, RetryClass};
use pgkeep_pg::PgError;
use pgkeep_repository::RepositoryError;
use pgkeep_repository::encryption::EncryptionError;
use pgkeep_store::StoreErrorKind;
use pgkeep_wal::WalError;

/// What can go wrong while taking a base backup or restoring one.
#[derive(Debug, thiserror::Error)]
pub enum PhysicalError {
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
    /// The WAL that a backup needs could not be had.
    #[error("receiving the backup's WAL: {0}")]
    Wal(Box<WalError>),
    /// The server can't be backed up in this way.
    #[error("{message}")]
    Server {
        /// What it lacks, or what it did.
        message: String,
        /// The mend.
        hint: Option<String>,
    },
    /// What the server sent isn't what it can have sent.
    #[error("the server's archive is not readable: {0}")]
    Archive(&'static str),
    /// The WAL that the backup needs isn't all there, though it was received.
    #[error("the WAL from {start} to {stop} is not stored whole, so the backup can't be: {found}")]
    WalIncomplete {
        /// Where it begins.
        start: String,
        /// Where it must reach.
        stop: String,
        /// What is there.
        found: String,
    },
    /// What was asked for is none, or contradicts itself.
    #[error("{message}")]
    Usage {
        /// What is wrong with it.
        message: String,
        /// The mend.
        hint: String,
    },
    /// Going on could destroy something, or restore something else than what was asked for.
    #[error("{message}")]
    Refused {
        /// What was found.
        message: String,
        /// How to go on.
        hint: String,
    },
    /// A restore stopped half-way; the directory is marked.
    #[error("the restore stopped half-way: {source}")]
    Unfinished {
        /// The reason.
        source: Box<PhysicalError>,
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
        /// The backup.
        id: String,
        /// What is wrong.
        reason: String,
    },
    /// An object isn't what the manifest and the list of packs say.
    #[error("backup {id} is damaged: {reason}")]
    Damaged {
        /// The backup.
        id: String,
        /// Where, and how.
        reason: String,
    },
    /// Packs of earlier backups went while a new one that refers to them was made.
    #[error(
        "{first}{} went while backup {id} was made, which needs what is in it, so it was given up",
        others_in_words(*others)
    )]
    PacksMissing {
        /// The backup that there isn't.
        id: String,
        /// The name of the first one, in its folder.
        first: String,
        /// How many more.
        others: u64,
    },
    /// The store's last answer was lost: the backup may be there or not.
    #[error("whether backup {id} is there isn't known: {source}")]
    Unconfirmed {
        /// The backup.
        id: String,
        /// What went wrong.
        source: Box<RepositoryError>,
    },
    /// The user pressed Ctrl-C, or the system asked the process to end.
    #[error("interrupted")]
    Interrupted,
    /// A stage of the pipeline found the next one gone, which knows why.
    #[error("another stage of the backup is gone")]
    StageGone,
    /// A stage of the pipeline died, or a rule the program relies on doesn't hold.
    #[error("internal: {0}")]
    Internal(String),
}

impl PhysicalError {
    /// Whether the backup that was read is gone.
    pub fn is_removed(&self) -> bool {
        matches!(self, Self::Repository(RepositoryError::Removed { .. }))
    }

    /// Whether it takes a key, or another key, and nothing else. That says nothing about the backup.
    pub fn is_locked(&self) -> bool {
        let Self::Repository(RepositoryError::Open { source, .. }) = self else {
            return false;
        };
        matches!(
            source,
            EncryptionError::NoIdentity { .. } | EncryptionError::WrongKey { .. }
        )
    }

    /// Whether it is about the one backup that was read, which others needn't share.
    pub fn is_of_one_backup(&self) -> bool {
        match self {
            Self::Manifest { .. } | Self::Damaged { .. } => true,
            Self::Repository(error) => error.is_damage() || matches!(error, RepositoryError::Open { .. }),
            _ => false,
        }
    }

    /// Whether these credentials may not read what was to be read.
    pub(crate) fn is_denied(&self) -> bool {
        self.store_kind() == Some(StoreErrorKind::PermissionDenied)
    }

    /// Whether an object isn't there, or not all of it.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(
            self.store_kind(),
            Some(StoreErrorKind::NotFound | StoreErrorKind::ShortBody)
        )
    }

    fn store_kind(&self) -> Option<StoreErrorKind> {
        match self {
            Self::Repository(RepositoryError::Store(error)) => Some(error.kind()),
            _ => None,
        }
    }

    pub(crate) fn internal(error: impl std::fmt::Display) -> Self {
        Self::Internal(error.to_string())
    }
}

fn others_in_words(others: u64) -> String {
    match others {
        0 => String::new(),
        1 => " and another pack".to_owned(),
        more => format!(" and {more} other packs"),
    }
}

impl From<WalError> for PhysicalError {
    fn from(error: WalError) -> Self {
        Self::Wal(Box::new(error))
    }
}

impl Classified for PhysicalError {
    fn retry_class(&self) -> RetryClass {
        match self {
            Self::Pg { source, .. } => source.retry_class(),
            Self::Repository(error) => error.retry_class(),
            Self::Unconfirmed { source, .. } => source.retry_class(),
            Self::Wal(error) => error.retry_class(),
            Self::Unfinished { source, .. } => source.retry_class(),
            Self::Usage { .. } => RetryClass::Usage,
            Self::Refused { .. } => RetryClass::Refused,
            _ => RetryClass::Permanent,
        }
    }

    fn hint(&self) -> Option<Hint> {
        let text = match self {
            Self::Pg { source, .. } => return source.hint(),
            Self::Repository(error) => return error.hint(),
            Self::Wal(error) => return error.hint(),
            Self::Server { hint, .. } => hint.clone()?,
            Self::Usage { hint, .. } | Self::Refused { hint, .. } | Self::Unfinished { hint, .. } => {
                hint.clone()
            }
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                "the disk is full: free some space on it, or take another one, then run it again".to_owned()
            }
            Self::Manifest { id, .. } | Self::Damaged { id, .. } => {
                format!(
                    "'pgkeep verify {id}' says what is wrong with it; restore from another one: 'pgkeep list'"
                )
            }
            Self::Unconfirmed { id, .. } => format!("'pgkeep show {id}' tells, as soon as the store answers"),
            Self::WalIncomplete { .. } | Self::PacksMissing { .. } => "run 'pgkeep backup' again".to_owned(),
            _ => return None,
        };
        Some(Hint::new(text))
    }
}

/// Adds what was being done to an error from below.
pub(crate) trait Context<T> {
    /// `context` in the present tense: "writing base/1/2600".
    fn context(self, context: impl FnOnce() -> String) -> Result<T, PhysicalError>;
}

impl<T> Context<T> for Result<T, PgError> {
    fn context(self, context: impl FnOnce() -> String) -> Result<T, PhysicalError> {
        self.map_err(|source| PhysicalError::Pg {
            context: context(),
            source,
        })
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn context(self, context: impl FnOnce() -> String) -> Result<T, PhysicalError> {
        self.map_err(|source| PhysicalError::Io {
            context: context(),
            source,
        })
    }
}
