//! What a bucket is asked to be.

use super::age::{ExpiryBound, Kept};
use super::error::BucketError;

/// What a bucket for backups is asked to be. The default asks for nothing beyond what every such bucket should have.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wanted {
    /// The clusters whose dumps lie there.
    pub clusters: Vec<ClusterKept>,
    /// When the store itself deletes dumps.
    pub expiry: Expiry,
    /// To where dumps move.
    pub transition: Move,
    /// How long old versions stay; none: at least [`NONCURRENT_DAYS_DEFAULT`].
    pub noncurrent_days: Option<u32>,
    /// How new objects are locked; none: as they are.
    pub object_lock: Option<Lock>,
    /// KMS' key; none: any encryption will do.
    pub kms_key_id: Option<String>,
}

/// A cluster, and what of its dumps is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterKept {
    /// Its name.
    pub name: String,
    /// What is kept.
    pub kept: Kept,
}

/// When the store itself deletes dumps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Expiry {
    /// As it is, unless that contradicts what is kept. In a bucket that wasn't set up yet, and where nothing says what is kept:
    /// after [`EXPIRY_DAYS_DEFAULT`].
    #[default]
    AsItIs,
    /// Not at all.
    Never,
    /// At this age.
    AfterDays(u32),
}

/// To where dumps move.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Move {
    /// As it is.
    #[default]
    AsItIs,
    /// Nowhere.
    Never,
    /// To another storage class.
    To {
        /// Its name.
        class: String,
        /// At this age.
        days: u32,
    },
}

/// How new objects are locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lock {
    /// The weaker one comes first.
    pub mode: LockMode,
    /// How long.
    pub days: u32,
}

/// Who may delete what is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LockMode {
    /// Those with `s3:BypassGovernanceRetention`.
    Governance,
    /// Nobody.
    Compliance,
}

impl LockMode {
    /// As S3 writes it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Governance => "GOVERNANCE",
            Self::Compliance => "COMPLIANCE",
        }
    }
}

/// When dumps go where nothing says what is kept.
pub const EXPIRY_DAYS_DEFAULT: u32 = 30;
/// How long what was deleted can be brought back.
pub const NONCURRENT_DAYS_DEFAULT: u32 = 30;
/// From these, objects are read at once.
pub const STORAGE_CLASSES: [&str; 4] = ["STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR"];
/// S3 moves nothing to the classes of infrequent access before.
const INFREQUENT_ACCESS_DAYS_MIN: u32 = 30;

impl Wanted {
    /// Whether it fits together, and leaves what is to be kept.
    ///
    /// # Errors
    /// It doesn't.
    pub fn check(&self) -> Result<(), BucketError> {
        if let Expiry::AfterDays(days) = self.expiry {
            // The one that needs the most says what would do for all.
            let most = |cluster: &&ClusterKept| match cluster.kept.expiry_bound() {
                ExpiryBound::Any => 0,
                ExpiryBound::AtLeast(days) => u64::from(days),
                ExpiryBound::Never => u64::MAX,
            };
            if let Some(cluster) = self.clusters.iter().max_by_key(most) {
                check_expiry(cluster, days)?;
            }
        }
        self.check_transition()?;
        self.check_lock()
    }

    fn check_transition(&self) -> Result<(), BucketError> {
        let Move::To { class, days } = &self.transition else {
            return Ok(());
        };
        if !STORAGE_CLASSES.contains(&class.as_str()) {
            let problem = match class.as_str() {
                "GLACIER" | "DEEP_ARCHIVE" => {
                    format!("from {class} nothing can be read, so nothing restored, before hours of waiting")
                }
                _ => format!("there is no storage class {class}"),
            };
            return Err(usage(
                problem,
                format!("take one of {}", STORAGE_CLASSES.join(", ")),
            ));
        }
        if class.ends_with("_IA") && *days < INFREQUENT_ACCESS_DAYS_MIN {
            let problem =
                format!("S3 moves nothing to {class} before it is {INFREQUENT_ACCESS_DAYS_MIN} days old");
            let mend = format!("--transition {class}:{INFREQUENT_ACCESS_DAYS_MIN}");
            return Err(usage(problem, mend));
        }
        match self.expiry {
            Expiry::AfterDays(expiry) if *days >= expiry => Err(usage(
                format!("dumps would expire after {expiry} days, before they are moved after {days}"),
                format!("let them move earlier, or expire later than {days} days"),
            )),
            _ => Ok(()),
        }
    }

    fn check_lock(&self) -> Result<(), BucketError> {
        let (Some(lock), Expiry::AfterDays(expiry)) = (self.object_lock, self.expiry) else {
            return Ok(());
        };
        let gone = expiry.saturating_add(self.noncurrent_days.unwrap_or(NONCURRENT_DAYS_DEFAULT));
        if lock.days <= gone {
            return Ok(());
        }
        Err(usage(
            format!(
                "objects would be locked for {} days, longer than the {gone} until the lifecycle rules delete them: S3 would \
                 keep, and charge, what the rules promise to delete",
                lock.days
            ),
            format!("lock for at most {gone} days, or let dumps expire later"),
        ))
    }
}

fn usage(problem: String, mend: String) -> BucketError {
    BucketError::Usage { problem, mend }
}

fn check_expiry(cluster: &ClusterKept, days: u32) -> Result<(), BucketError> {
    let bound = cluster.kept.expiry_bound();
    if bound.permits(days) {
        return Ok(());
    }
    Err(BucketError::Contradiction {
        cluster: cluster.name.clone(),
        days,
        why: reason(bound, &cluster.kept),
        mend: match bound {
            ExpiryBound::AtLeast(least) => {
                format!("--expire-dumps-after {least}, or never: 'pgkeep prune' does it, and knows what is needed")
            }
            ExpiryBound::Any | ExpiryBound::Never => {
                "--expire-dumps-after never; to let dumps go, set keep (keep.window = \"30d\") and run 'pgkeep prune'".to_owned()
            }
        },
    })
}

/// Why dumps have to stay so long.
pub(super) fn reason(bound: ExpiryBound, kept: &Kept) -> String {
    match (bound, kept.reuse_max_age) {
        (ExpiryBound::AtLeast(least), Some(_)) => {
            format!("keep and dump.reuse_max_age together need objects for {least} days")
        }
        (ExpiryBound::AtLeast(least), None) => format!("keep needs dumps for {least} days"),
        (ExpiryBound::Never, Some(_)) if kept.policy.keeps_everything() => {
            "incremental dumps build on earlier ones, and without keep all of them stay".to_owned()
        }
        (ExpiryBound::Never, _) => "keep needs dumps for longer than S3 can count".to_owned(),
        (ExpiryBound::Any, _) => "nothing says what is kept".to_owned(),
    }
}
