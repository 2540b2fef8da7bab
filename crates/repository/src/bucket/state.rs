//! What a bucket is.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use pgkeep_base::{BackupId, BackupKind};
use pgkeep_store::Store;
use pgkeep_store::bucket::{
    Bucket, Encryption, Lifecycle, ObjectLock, OwnershipControls, Presence, PublicAccessBlock, Reading,
    Versioning,
};

use super::error::BucketError;
use super::wanted::ClusterKept;
use crate::layout;

/// Whether there may be old versions that nothing ends, before anything is set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum OldVersions {
    /// None were ever kept.
    #[default]
    None,
    /// They are kept, or were, or nobody could look.
    Kept,
    /// The store keeps none.
    Unsupported,
}

impl OldVersions {
    fn of(versioning: &Reading<Versioning>) -> Self {
        match versioning {
            Reading::Unset => Self::None,
            Reading::Set(versioning) if versioning.status.is_none() => Self::None,
            // Switched off, they stay as well.
            Reading::Set(_) | Reading::Forbidden(_) => Self::Kept,
            Reading::Unsupported(_) => Self::Unsupported,
        }
    }
}

/// All settings of a bucket that matter for backups.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct State {
    /// Whether there is such a bucket.
    pub(super) exists: bool,
    /// Where the repository lies: empty, or with a slash at its end.
    pub(super) prefix: String,
    pub(super) public_access: Reading<PublicAccessBlock>,
    pub(super) ownership: Reading<OwnershipControls>,
    pub(super) encryption: Reading<Encryption>,
    pub(super) versioning: Reading<Versioning>,
    pub(super) object_lock: Reading<ObjectLock>,
    pub(super) lifecycle: Reading<Lifecycle>,
    pub(super) old_versions: OldVersions,
    /// When the dumps of each cluster were started, where that could be seen.
    dumps: BTreeMap<String, Vec<Timestamp>>,
}

impl State {
    /// A bucket that isn't there yet.
    fn none(prefix: String, clusters: &[ClusterKept]) -> Self {
        let no_dumps = clusters.iter().map(|cluster| (cluster.name.clone(), Vec::new()));
        Self {
            exists: false,
            prefix,
            public_access: Reading::Unset,
            ownership: Reading::Unset,
            encryption: Reading::Unset,
            versioning: Reading::Unset,
            object_lock: Reading::Unset,
            lifecycle: Reading::Unset,
            old_versions: OldVersions::None,
            dumps: no_dumps.collect(),
        }
    }

    /// Asks for all of it.
    pub(super) async fn read(
        store: &Store,
        bucket: Bucket<'_>,
        clusters: &[ClusterKept],
    ) -> Result<Self, BucketError> {
        let prefix = bucket.prefix();
        let presence = bucket.presence().await?;
        if presence == Presence::Missing {
            return Ok(Self::none(prefix, clusters));
        }
        let mut dumps = BTreeMap::new();
        for cluster in clusters {
            // Whoever sets up buckets need not be somebody who may list them.
            let folder = layout::kind_prefix(&cluster.name, BackupKind::Dump);
            if let Ok(names) = store.list_directories(&folder).await {
                let ids = names.iter().filter_map(|name| name.parse::<BackupId>().ok());
                dumps.insert(cluster.name.clone(), ids.map(|id| id.started_at()).collect());
            }
        }
        let versioning = bucket.read().await?;
        let state = Self {
            exists: true,
            prefix,
            public_access: bucket.read().await?,
            ownership: bucket.read().await?,
            encryption: bucket.read().await?,
            old_versions: OldVersions::of(&versioning),
            versioning,
            object_lock: bucket.read().await?,
            // Last: whoever writes the rules writes them from this.
            lifecycle: bucket.lifecycle().await?,
            dumps,
        };
        if presence == Presence::Hidden && state.is_hidden() {
            return Err(BucketError::Hidden {
                url: store.url().to_owned(),
            });
        }
        Ok(state)
    }

    /// Whether nothing of it could be seen.
    fn is_hidden(&self) -> bool {
        fn is_forbidden<S>(reading: &Reading<S>) -> bool {
            matches!(reading, Reading::Forbidden(_))
        }
        self.dumps.is_empty()
            && is_forbidden(&self.public_access)
            && is_forbidden(&self.ownership)
            && is_forbidden(&self.encryption)
            && is_forbidden(&self.versioning)
            && is_forbidden(&self.object_lock)
            && is_forbidden(&self.lifecycle)
    }

    /// How many dumps of a cluster are older; none where that isn't known.
    pub(super) fn older_dumps(&self, cluster: &str, days: u32, now: Timestamp) -> Option<usize> {
        let age = SignedDuration::from_hours(24 * i64::from(days));
        let dumps = self.dumps.get(cluster)?;
        Some(
            dumps
                .iter()
                .filter(|started_at| now.duration_since(**started_at) > age)
                .count(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden() -> State {
        State {
            exists: true,
            public_access: Reading::Forbidden(""),
            ownership: Reading::Forbidden(""),
            encryption: Reading::Forbidden(""),
            versioning: Reading::Forbidden(""),
            object_lock: Reading::Forbidden(""),
            lifecycle: Reading::Forbidden(""),
            ..State::none(String::new(), &[])
        }
    }

    #[test]
    fn a_bucket_of_which_something_is_seen_is_not_hidden() {
        assert!(hidden().is_hidden());
        let seen = State {
            lifecycle: Reading::Unset,
            ..hidden()
        };
        assert!(!seen.is_hidden());
        let listed = State {
            dumps: [("main".to_owned(), Vec::new())].into(),
            ..hidden()
        };
        assert!(!listed.is_hidden());
    }

    #[test]
    fn old_versions_may_be_there_unless_none_were_ever_kept() {
        let status = |status: Option<&str>| {
            OldVersions::of(&Reading::Set(Versioning {
                status: status.map(str::to_owned),
            }))
        };
        assert_eq!(status(None), OldVersions::None);
        assert_eq!(OldVersions::of(&Reading::Unset), OldVersions::None);
        for known in [Some("Enabled"), Some("Suspended")] {
            assert_eq!(status(known), OldVersions::Kept);
        }
        assert_eq!(OldVersions::of(&Reading::Forbidden("")), OldVersions::Kept);
    }
}
