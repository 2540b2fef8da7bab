//! What a bucket is.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use pgkeep_base::{BackupId, BackupKind};
use pgkeep_store::bucket::{
    Bucket, Encryption, Lifecycle, ObjectLock, OwnershipControls, PublicAccessBlock, Reading, Versioning,
};
use pgkeep_store::{Store, StoreError};

use super::wanted::ClusterKept;
use crate::layout;

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
            dumps: no_dumps.collect(),
        }
    }

    /// Asks for all of it.
    pub(super) async fn read(
        store: &Store,
        bucket: Bucket<'_>,
        clusters: &[ClusterKept],
    ) -> Result<Self, StoreError> {
        let prefix = bucket.prefix();
        if !bucket.exists().await? {
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
        Ok(Self {
            exists: true,
            prefix,
            public_access: bucket.read().await?,
            ownership: bucket.read().await?,
            encryption: bucket.read().await?,
            versioning: bucket.read().await?,
            object_lock: bucket.read().await?,
            lifecycle: bucket.lifecycle().await?,
            dumps,
        })
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
