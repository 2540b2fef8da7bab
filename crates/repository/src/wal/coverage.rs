use jiff::Timestamp;
use pgkeep_pgformat::{Lsn, SegmentName, SegmentSize, Timeline};
use pgkeep_store::ObjectInfo;

use super::{Ranges, WalObject};
use crate::error::RepositoryError;
use crate::layout;
use crate::repo::Repository;

/// A range of WAL that is stored without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Covered {
    /// The first byte's position.
    pub start: Lsn,
    /// The position behind the last byte.
    pub end: Lsn,
}

impl Covered {
    /// Whether all of [start, stop) is in it.
    pub fn holds(&self, start: Lsn, stop: Lsn) -> bool {
        self.start <= start && stop <= self.end
    }
}

/// What is stored of a timeline's WAL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TimelineWal {
    /// The ranges, in ascending order; between two of them something is missing.
    pub covered: Vec<Covered>,
    /// How many objects.
    pub objects: u64,
    /// How large they are as stored, in bytes.
    pub stored_bytes: u64,
    /// When the newest of them was stored, by the store's clock.
    pub newest_at: Option<Timestamp>,
}

/// An object with WAL that a listing shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredWal {
    /// What it holds.
    pub object: WalObject,
    /// Its size as stored, in bytes.
    pub stored_bytes: u64,
    key: String,
}

impl StoredWal {
    pub(super) fn of(info: ObjectInfo, size: SegmentSize) -> Option<Self> {
        let name = info.key.rsplit('/').next()?;
        let object = WalObject::parse(name, size).ok()?;
        Some(Self {
            object,
            stored_bytes: info.size,
            key: info.key,
        })
    }

    /// As if it had been listed, for tests.
    #[cfg(test)]
    pub(super) fn named(object: WalObject) -> Self {
        Self {
            object,
            stored_bytes: 1,
            key: object.to_string(),
        }
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }
}

impl Repository {
    /// The database clusters whose WAL is stored, by their system identifiers, in ascending order.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn wal_systems(&self) -> Result<Vec<u64>, RepositoryError> {
        let prefix = format!("{}/wal/", self.cluster);
        let names = self.store.list_directories(&prefix).await?;
        let mut systems: Vec<u64> = names.iter().filter_map(|name| name.parse().ok()).collect();
        systems.sort_unstable();
        Ok(systems)
    }

    /// The timelines that WAL is stored of, in ascending order.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn wal_timelines(&self, system_identifier: u64) -> Result<Vec<Timeline>, RepositoryError> {
        let prefix = layout::wal_prefix(&self.cluster, system_identifier);
        let names = self.store.list_directories(&prefix).await?;
        Ok(names
            .iter()
            .filter_map(|name| digits(name))
            .filter_map(Timeline::new)
            .collect())
    }

    /// Which ranges of a timeline's WAL are stored. One listing of all of it.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn wal_coverage(
        &self,
        system_identifier: u64,
        timeline: Timeline,
    ) -> Result<Vec<Covered>, RepositoryError> {
        Ok(self.timeline_wal(system_identifier, timeline).await?.covered)
    }

    /// The same, with what else the listing tells.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn timeline_wal(
        &self,
        system_identifier: u64,
        timeline: Timeline,
    ) -> Result<TimelineWal, RepositoryError> {
        let mut found = TimelineWal::default();
        let Some(size) = self.wal_segment_size(system_identifier).await? else {
            return Ok(found);
        };
        let prefix = layout::wal_timeline_prefix(&self.cluster, system_identifier, timeline);
        let mut ranges = Ranges::default();
        let each = |info: ObjectInfo| {
            let (stored_bytes, modified_at) = (info.size, info.modified_at);
            if let Some(stored) = StoredWal::of(info, size) {
                found.objects += 1;
                found.stored_bytes += stored_bytes;
                found.newest_at = found.newest_at.max(Some(modified_at));
                if let Some((start, end)) = stored.object.positions() {
                    ranges.insert(start, end);
                }
            }
            true
        };
        self.store.list_each(&prefix, each).await?;
        found.covered = ranges.iter().map(|(start, end)| Covered { start, end }).collect();
        Ok(found)
    }

    /// What is stored of a timeline from somewhat before this segment on: at least from the newest object before it, if
    /// there is one. For whoever goes on there.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn wal_around(
        &self,
        system_identifier: u64,
        segment: SegmentName,
    ) -> Result<Vec<StoredWal>, RepositoryError> {
        let timeline = layout::wal_timeline_prefix(&self.cluster, system_identifier, segment.timeline());
        let names = self.store.list_directories(&timeline).await?;
        let logs: Vec<(u64, &String)> = names
            .iter()
            .filter_map(|name| Some((u64::from(digits(name)?), name)))
            .collect();
        let before = logs
            .iter()
            .map(|(log, _)| *log)
            .filter(|log| *log < segment.log());
        let first = before.max().unwrap_or(segment.log());
        let mut stored = Vec::new();
        for (_, name) in logs.iter().filter(|(log, _)| *log >= first) {
            let prefix = format!("{timeline}{name}/");
            let objects = self.store.list(&prefix).await?;
            stored.extend(
                objects
                    .into_iter()
                    .filter_map(|info| StoredWal::of(info, segment.size())),
            );
        }
        Ok(stored)
    }

    /// BLAKE3 of a stored object's contents, where it is encrypted without reading more than its header; and makes sure
    /// that the object stays.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn wal_hash(&self, stored: &StoredWal) -> Result<blake3::Hash, RepositoryError> {
        self.store.ensure_durable(&stored.key).await?;
        self.wal_hash_at(&stored.key, stored.object.plain_bytes_max())
            .await
    }
}

/// Eight hexadecimal digits, capitals.
pub(super) fn digits(text: &str) -> Option<u32> {
    let well_formed = text.len() == 8
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte));
    well_formed.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}
