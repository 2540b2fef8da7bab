//! What a bucket is asked to be.

use super::age::{ExpiryBound, Kept};
use super::error::BucketError;
use super::rules::Own;

/// What a bucket for backups is asked to be. The default asks for nothing beyond what every such bucket should have.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wanted {
    /// The clusters whose dumps lie there.
    pub clusters: Vec<ClusterKept>,
    /// When the store itself deletes dumps.
    pub expiry: Expiry,
    /// To where dumps move.
    pub transition: Move,
    /// How long old versions stay; none: for ever where they do, else at least [`NONCURRENT_DAYS_DEFAULT`].
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
    /// As it is, unless that contradicts what is kept. Where no rule deletes dumps, none is made: without `keep` everything is
    /// kept, and who sets up a bucket may not be where the dump host's settings are.
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
        self.check_ages()
    }

    /// The same beside what the bucket's own rules say already of what nothing is asked for.
    pub(super) fn check_beside(&self, own: &Own) -> Result<(), BucketError> {
        let mut all = self.clone();
        if self.expiry == Expiry::AsItIs
            && let Some(days) = own.expiry_days
        {
            all.expiry = Expiry::AfterDays(days);
        }
        if self.transition == Move::AsItIs
            && let Some((class, days)) = &own.transition
            && self.expiry != Expiry::AsItIs
        {
            let (class, days) = (class.clone(), *days);
            all.transition = Move::To { class, days };
        }
        let least = |days: u32| days.max(NONCURRENT_DAYS_DEFAULT);
        all.noncurrent_days = self.noncurrent_days.or(own.noncurrent_days.map(least));
        all.check_ages()
    }

    /// Whether what goes by age fits together.
    fn check_ages(&self) -> Result<(), BucketError> {
        let Expiry::AfterDays(expiry) = self.expiry else {
            return Ok(());
        };
        if let Move::To { days, .. } = &self.transition
            && *days >= expiry
        {
            return Err(usage(
                format!("dumps would expire after {expiry} days, before they are moved after {days}"),
                format!("let them move earlier, or expire later than {days} days"),
            ));
        }
        self.check_lock(expiry)
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
        Ok(())
    }

    fn check_lock(&self, expiry: u32) -> Result<(), BucketError> {
        let Some(lock) = self.object_lock else {
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
    let supposed = match kept.rhythm {
        Some(_) => "",
        None => ", with a dump a day",
    };
    match (bound, kept.reuse_max_age) {
        (ExpiryBound::AtLeast(least), Some(_)) => {
            format!("keep and dump.reuse_max_age together need objects for {least} days{supposed}")
        }
        (ExpiryBound::AtLeast(least), None) => format!("keep needs dumps for {least} days{supposed}"),
        (ExpiryBound::Never, Some(_)) if kept.policy.keeps_everything() => {
            "incremental dumps build on earlier ones, and without keep all of them stay".to_owned()
        }
        (ExpiryBound::Never, _) => "keep needs dumps for longer than S3 can count".to_owned(),
        (ExpiryBound::Any, _) => "nothing says what is kept".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_fits_what_is_there() {
        let own = Own {
            expiry_days: Some(40),
            transition: Some(("GLACIER_IR".to_owned(), 35)),
            noncurrent_days: Some(10),
        };
        let refused = |wanted: Wanted, says: &str| {
            wanted.check().unwrap();
            let error = wanted.check_beside(&own).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        };
        let to = |days| Move::To {
            class: "GLACIER_IR".to_owned(),
            days,
        };
        let locked = |days| Wanted {
            object_lock: Some(Lock {
                mode: LockMode::Governance,
                days,
            }),
            ..Wanted::default()
        };
        refused(locked(71), "locked for 71 days, longer than the 70");
        locked(70).check_beside(&own).unwrap();
        let moved = |transition| Wanted {
            transition,
            ..Wanted::default()
        };
        refused(moved(to(40)), "before they are moved after 40");
        moved(to(39)).check_beside(&own).unwrap();
        let expiring = |days| Wanted {
            expiry: Expiry::AfterDays(days),
            ..Wanted::default()
        };
        refused(expiring(35), "before they are moved after 35");
        expiring(36).check_beside(&own).unwrap();
        Wanted::default().check_beside(&own).unwrap();
    }
}
