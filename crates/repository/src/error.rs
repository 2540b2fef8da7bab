use pgkeep_base::{Classified, Hint, RetryClass};
use pgkeep_store::{StoreError, StoreErrorKind};

use crate::backups::COMMIT_DEADLINE;
use crate::encryption::EncryptionError;

/// What can go wrong with a repository, beyond the store under it.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// The object store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An object could not be opened.
    #[error("cannot open {key}: {source}")]
    Open {
        /// The object.
        key: String,
        /// What went wrong.
        source: EncryptionError,
    },
    /// An object could not be sealed.
    #[error(transparent)]
    Seal(#[from] EncryptionError),
    /// The repository was written by a later version of the program.
    #[error("{what} has format version {found}, and this pgkeep reads up to {known}")]
    NewerFormat {
        /// The object that says so.
        what: String,
        /// The version found.
        found: u32,
        /// The highest version known here.
        known: u32,
    },
    /// An object is not what its name says.
    #[error("{key} is not readable: {reason}")]
    Malformed {
        /// The object.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The stored bytes differ from what was written.
    #[error("{key} is damaged: its BLAKE3 hash is {found}, and the manifest says {expected}")]
    HashMismatch {
        /// The object.
        key: String,
        /// The hash of the bytes in the store.
        found: String,
        /// The hash that was recorded.
        expected: String,
    },
    /// Two URLs lead to one repository.
    #[error("{first} and {second} are one repository")]
    OneRepositoryTwice {
        /// One URL.
        first: String,
        /// The other one.
        second: String,
    },
    /// No repository lies at the URL.
    #[error("there is no pgkeep repository at {url}")]
    NotARepository {
        /// Where it was looked for.
        url: String,
    },
    /// Encryption is on but nobody could ever read what is written.
    #[error("no recipients are configured, and encryption is on")]
    NoRecipients,
    /// Another database cluster writes under this name.
    #[error(
        "'{cluster}' at {url} belongs to another database cluster (system identifier {found}, this one has {ours})"
    )]
    OtherIdentity {
        /// The cluster's name in the repository.
        cluster: String,
        /// The repository.
        url: String,
        /// The identity that is there.
        found: String,
        /// The identity of the cluster being backed up.
        ours: u64,
    },
    /// Another process holds the cluster's lease.
    #[error("{purpose} by process {pid} on {host} has been writing to '{cluster}' since {since}")]
    LeaseHeld {
        /// The cluster's name in the repository.
        cluster: String,
        /// What the holder does.
        purpose: String,
        /// The holder's process id.
        pid: u32,
        /// The holder's host name.
        host: String,
        /// When it began.
        since: jiff::Timestamp,
        /// When its lease runs out unless it is renewed.
        until: jiff::Timestamp,
    },
    /// The lease ran out or was taken over while the work went on.
    #[error("the lease on '{cluster}' was lost: {reason}")]
    LeaseLost {
        /// The cluster's name in the repository.
        cluster: String,
        /// How.
        reason: String,
    },
    /// The backup's commit was refused because it was swept as an orphan meanwhile.
    #[error("backup {id} was given up as an orphan by another process before it was finished")]
    Fenced {
        /// The backup.
        id: String,
    },
    /// The backup took longer than any may.
    #[error(
        "backup {id} was not finished within {} hours of its start, and was given up",
        COMMIT_DEADLINE.as_hours()
    )]
    TooLate {
        /// The backup.
        id: String,
    },
    /// The backup went while it was being used.
    #[error("backup {id} is not there any more: it was removed meanwhile")]
    Removed {
        /// The backup.
        id: String,
    },
    /// Somebody else already wrote an object that is ours alone to write.
    #[error("{key} exists already")]
    ObjectExists {
        /// The object.
        key: String,
    },
    /// WAL is missing between what is stored before and behind it.
    #[error("WAL of '{cluster}' is missing: {what}")]
    WalHole {
        /// The cluster's name in the repository.
        cluster: String,
        /// Which one.
        what: String,
    },
    /// The WAL's segments changed their size.
    #[error("the WAL of '{cluster}' is stored in segments of {found} bytes, and this server has {ours}")]
    OtherSegmentSize {
        /// The cluster's name in the repository.
        cluster: String,
        /// The size that is stored.
        found: u64,
        /// The server's.
        ours: u64,
    },
    /// There is none at all.
    #[error("there is no backup of '{cluster}' at {url}")]
    NoBackup {
        /// The cluster's name in the repository.
        cluster: String,
        /// The repository.
        url: String,
    },
    /// No backup has that id.
    #[error("no backup '{text}' in '{cluster}' (the newest is {newest})")]
    NoSuchBackup {
        /// What was asked for.
        text: String,
        /// The cluster's name in the repository.
        cluster: String,
        /// The newest one there is.
        newest: String,
    },
    /// The shortened id fits several.
    #[error("'{text}' is short for more than one backup: {}", .candidates.join(", "))]
    AmbiguousId {
        /// What was asked for.
        text: String,
        /// What it could mean.
        candidates: Vec<String>,
    },
    /// A stage of the pipeline ended without saying why.
    #[error("internal: {0}")]
    Internal(String),
    /// The operating system's random source failed.
    #[error("the system's random source failed: {0}")]
    Random(#[from] getrandom::Error),
}

impl RepositoryError {
    /// Whether an object of a backup is missing, or isn't what was written.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Malformed { .. } | Self::HashMismatch { .. } => true,
            Self::Store(error) => matches!(
                error.kind(),
                StoreErrorKind::NotFound | StoreErrorKind::ShortBody | StoreErrorKind::TooLarge
            ),
            _ => false,
        }
    }
}

impl Classified for RepositoryError {
    fn retry_class(&self) -> RetryClass {
        match self {
            Self::Store(error) => error.retry_class(),
            Self::Open { source, .. } => source.retry_class(),
            Self::Seal(error) => error.retry_class(),
            Self::NoRecipients
            | Self::NoSuchBackup { .. }
            | Self::AmbiguousId { .. }
            | Self::OneRepositoryTwice { .. }
            | Self::NotARepository { .. } => RetryClass::Usage,
            Self::OtherIdentity { .. } | Self::OtherSegmentSize { .. } => RetryClass::Refused,
            Self::LeaseHeld { .. } | Self::LeaseLost { .. } | Self::Fenced { .. } => RetryClass::Transient,
            _ => RetryClass::Permanent,
        }
    }

    fn hint(&self) -> Option<Hint> {
        let text = match self {
            Self::Store(error) => return error.hint(),
            Self::Open { source, .. } => return source.hint(),
            Self::Seal(error) => return error.hint(),
            Self::NewerFormat { .. } => "install the pgkeep that wrote it, or a later one".to_owned(),
            Self::Malformed { .. } | Self::HashMismatch { .. } => {
                "check the whole repository with 'pgkeep verify all', and restore from another backup"
                    .to_owned()
            }
            Self::NotARepository { .. } => {
                "check the repository's URL; the first 'pgkeep dump' makes a repository where there is none"
                    .to_owned()
            }
            Self::OneRepositoryTwice { .. } => {
                "name it once, or another place; a copy of a repository's files is the same repository".to_owned()
            }
            Self::NoRecipients => {
                "make a key pair with 'pgkeep key new' and put its public key into recipients = [...], \
                or write encryption = \"none\" if the backups shall be readable by anyone who reaches them"
                    .to_owned()
            }
            Self::OtherIdentity { .. } => {
                "choose another name with --cluster, or, if this is the same data after a \
                restore or pg_upgrade, run the command once more with --accept-new-identity"
                    .to_owned()
            }
            Self::WalHole { .. } => "see what is stored with 'pgkeep wal status'; take a new base backup, and restore to a point before \
                the hole or after that backup"
                .to_owned(),
            Self::OtherSegmentSize { .. } => "choose another name with --cluster: pg_resetwal --wal-segsize has begun another WAL".to_owned(),
            Self::LeaseHeld { until, .. } => {
                format!("wait for it to end; if that process is gone, the lease runs out at {until}")
            }
            Self::LeaseLost { .. } | Self::Fenced { .. } => "run the command again".to_owned(),
            Self::NoBackup { .. } => "take one with 'pgkeep dump'; if there should be some, check --cluster and the repository's URL".to_owned(),
            Self::NoSuchBackup { .. } | Self::AmbiguousId { .. } => "'pgkeep list' shows them all".to_owned(),
            Self::TooLate { .. } => "make it faster with --jobs, or take several dumps of parts: 'pgkeep dump --database NAME' \
                or 'pgkeep dump --exclude-table PATTERN'; if this machine's clock was set meanwhile, run it again"
                .to_owned(),
            Self::Removed { .. } => {
                "choose another one with 'pgkeep list'; 'pgkeep pin ID' keeps a backup from being pruned \
                as long as it is needed"
                    .to_owned()
            }
            Self::ObjectExists { .. } | Self::Internal(_) | Self::Random(_) => return None,
        };
        Some(Hint::new(text))
    }
}
