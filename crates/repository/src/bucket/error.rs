use pgkeep_base::{Classified, Hint, RetryClass};
use pgkeep_store::StoreError;

/// A bucket isn't set up, or not so.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// A rule by age would delete what is to be kept.
    #[error("expiring dumps of '{cluster}' after {days} days would delete what is to be kept: {why}")]
    Contradiction {
        /// Whose dumps.
        cluster: String,
        /// What was asked for.
        days: u32,
        /// What it contradicts.
        why: String,
        /// What would do.
        mend: String,
    },
    /// What is asked for doesn't fit together, or S3 wouldn't take it.
    #[error("{problem}")]
    Usage {
        /// What is wrong.
        problem: String,
        /// What would do.
        mend: String,
    },
    /// The repository lies elsewhere.
    #[error("{url} is no bucket of S3: its settings are made by hand")]
    NotS3 {
        /// Where it lies.
        url: String,
        /// What to do there.
        mend: String,
    },
    /// There is no such bucket, and none was asked for.
    #[error("there is no bucket for {url}")]
    NoBucket {
        /// The repository.
        url: String,
        /// The command.
        mend: String,
    },
    /// There is such a bucket, and nothing of it can be seen.
    #[error(
        "the bucket for {url} is there, and may be somebody else's: these credentials may see neither it nor any of its settings"
    )]
    Hidden {
        /// The repository.
        url: String,
    },
    /// The bucket couldn't be made.
    #[error("cannot create the bucket for {url}: {why}")]
    NotCreated {
        /// The repository.
        url: String,
        /// The store's words, or what is missing.
        why: String,
        /// What would do.
        mend: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Classified for BucketError {
    fn retry_class(&self) -> RetryClass {
        match self {
            Self::Contradiction { .. } => RetryClass::Refused,
            Self::Usage { .. } | Self::NotS3 { .. } | Self::NoBucket { .. } => RetryClass::Usage,
            Self::NotCreated { .. } | Self::Hidden { .. } => RetryClass::Permanent,
            Self::Store(error) => error.retry_class(),
        }
    }

    fn hint(&self) -> Option<Hint> {
        match self {
            Self::Contradiction { mend, .. }
            | Self::Usage { mend, .. }
            | Self::NotS3 { mend, .. }
            | Self::NoBucket { mend, .. }
            | Self::NotCreated { mend, .. } => Some(Hint::new(mend)),
            Self::Hidden { .. } => Some(Hint::new(
                "names of buckets are the world's: choose another one; or, if it is yours, allow these credentials s3:ListBucket \
                 and what docs/infrastructure.md has for 'check'",
            )),
            Self::Store(error) => error.hint(),
        }
    }
}
