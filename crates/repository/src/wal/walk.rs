//! All objects of a database system's WAL, a few at a time, for whoever removes what nobody needs.

use std::collections::BTreeSet;

use pgkeep_pgformat::{SegmentName, SegmentSize, Timeline, WalFileName};

use super::coverage::digits;
use super::{StoredWal, WalObject};
use crate::error::RepositoryError;
use crate::layout;
use crate::repo::{Repository, to_json};

impl Repository {
    /// The folders of a timeline's WAL, in ascending order: each holds what [`Repository::wal_in`] lists.
    pub(crate) async fn wal_logs(
        &self,
        system_identifier: u64,
        timeline: Timeline,
    ) -> Result<Vec<String>, RepositoryError> {
        let prefix = layout::wal_timeline_prefix(&self.cluster, system_identifier, timeline);
        let names = self.store.list_directories(&prefix).await?;
        let mut logs: Vec<&String> = names.iter().filter(|name| digits(name).is_some()).collect();
        logs.sort_unstable();
        Ok(logs.into_iter().map(|name| format!("{prefix}{name}/")).collect())
    }

    /// What lies in one of them, the oldest first; of a segment the whole one first. Of other objects nothing is said.
    pub(crate) async fn wal_in(
        &self,
        log: &str,
        size: SegmentSize,
    ) -> Result<Vec<StoredWal>, RepositoryError> {
        let listed = self.store.list(log).await?.into_iter();
        let mut stored: Vec<StoredWal> = listed.filter_map(|info| StoredWal::of(info, size)).collect();
        stored.sort_by_key(|stored| {
            let number = stored.object.segment().map(SegmentName::number);
            (number, !is_whole(&stored.object), stored.object.offsets())
        });
        Ok(stored)
    }

    /// Marks a timeline, of which something is about to be removed.
    pub(crate) async fn mark_wal_pruned(
        &self,
        system_identifier: u64,
        timeline: Timeline,
    ) -> Result<(), RepositoryError> {
        let key = layout::wal_pruned(&self.cluster, system_identifier, timeline);
        // It says what it says, whoever put it.
        let _ = self.store.put_new(&key, to_json(&self.now())?).await?;
        Ok(())
    }

    /// All histories of a system's timelines, what marks them, and the mark with the size of its segments, which is the last one.
    pub(crate) async fn wal_remains(&self, system_identifier: u64) -> Result<Vec<String>, RepositoryError> {
        let prefix = layout::wal_prefix(&self.cluster, system_identifier);
        let mark = layout::wal_segment_bytes(&self.cluster, system_identifier);
        let mut keys: Vec<String> = self
            .store
            .list(&prefix)
            .await?
            .into_iter()
            .map(|info| info.key)
            .filter(|key| {
                let name = key.strip_prefix(&prefix).unwrap_or_default();
                !name.contains('/') || name.ends_with(&format!("/{}", layout::WAL_PRUNED))
            })
            .collect();
        keys.sort_by_key(|key| (*key == mark, key.clone()));
        Ok(keys)
    }
}

/// A segment as PostgreSQL has it.
fn is_whole(object: &WalObject) -> bool {
    matches!(object, WalObject::File(WalFileName::Segment(_)))
}

/// Of the objects of a folder, the segments that are there as a whole, so that their parts aren't needed any more.
pub(crate) fn whole_segments(stored: &[StoredWal]) -> BTreeSet<u64> {
    stored
        .iter()
        .filter(|stored| is_whole(&stored.object) && stored.stored_bytes > 0)
        .filter_map(|stored| stored.object.segment())
        .map(SegmentName::number)
        .collect()
}
