//! WAL out of the repository: a segment as recovery wants it, whole, or made of its parts.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use pgkeep_pgformat::{Lsn, SegmentName, Timeline, WalFileName};

use super::coverage::digits;
use super::{StoredWal, WalObject};
use crate::error::RepositoryError;
use crate::layout;
use crate::repo::Repository;

/// Parts that are read at once.
const PARTS_AT_ONCE: usize = 8;
/// A prune may take parts away whose segment is whole now: then all is looked at again.
const ATTEMPTS_MAX: u32 = 4;

impl Repository {
    /// A segment of the WAL: whole as it is stored, else its parts, filled up with zeros. `None` if there is nothing of it, and
    /// nothing that would have to follow it.
    ///
    /// # Errors
    /// [`RepositoryError::WalHole`] if bytes of it are missing that lie before others that are stored: recovery must not take
    /// that for the end of the WAL. [`RepositoryError::Malformed`] if what is stored isn't what its name says.
    pub async fn fetch_wal(
        &self,
        system_identifier: u64,
        name: &SegmentName,
    ) -> Result<Option<Bytes>, RepositoryError> {
        self.fetch_needed(system_identifier, name, None).await
    }

    /// The same for who needs it up to a position only: what is missing behind that is no hole, and zeros.
    ///
    /// # Errors
    /// As [`Repository::fetch_wal`].
    pub async fn fetch_wal_to(
        &self,
        system_identifier: u64,
        name: &SegmentName,
        needed_to: Lsn,
    ) -> Result<Option<Bytes>, RepositoryError> {
        self.fetch_needed(system_identifier, name, Some(needed_to)).await
    }

    async fn fetch_needed(
        &self,
        system_identifier: u64,
        name: &SegmentName,
        needed_to: Option<Lsn>,
    ) -> Result<Option<Bytes>, RepositoryError> {
        let whole = WalObject::File(WalFileName::Segment(*name));
        for _ in 0..ATTEMPTS_MAX {
            if let Some(bytes) = self.wal_contents(system_identifier, &whole).await? {
                return Ok(Some(bytes));
            }
            let log = layout::wal_log_prefix(&self.cluster, system_identifier, *name);
            let listed = self.store.list(&log).await?;
            let stored: Vec<StoredWal> = listed
                .into_iter()
                .filter_map(|info| StoredWal::of(info, name.size()))
                .collect();
            if stored.iter().any(|stored| stored.object == whole) {
                // It has just been completed.
                continue;
            }
            let parts = Parts::of(*name, &stored);
            let is_last = self.is_last_of_timeline(system_identifier, *name, &stored);
            let needed = needed_to.and_then(|to| to.bytes_since(name.start()));
            let suffices = needed.is_some_and(|needed| parts.end > 0 && needed <= parts.end);
            if !suffices && (parts.end < parts.furthest || (!parts.is_whole(*name) && !is_last.await?)) {
                return Err(self.hole(*name, parts.end));
            }
            match parts.chain {
                chain if chain.is_empty() => return Ok(None),
                chain => match self.join(*name, &chain).await {
                    Err(RepositoryError::Store(error))
                        if error.kind() == pgkeep_store::StoreErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                    Ok(bytes) => return Ok(Some(bytes)),
                },
            }
        }
        Err(RepositoryError::Malformed {
            key: layout::wal_object(
                &self.cluster,
                system_identifier,
                &whole,
                layout::sealed_suffix(true),
            ),
            reason: "its objects come and go".to_owned(),
        })
    }

    /// The history of a timeline; `None` if there is none.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn fetch_wal_history(
        &self,
        system_identifier: u64,
        timeline: Timeline,
    ) -> Result<Option<Bytes>, RepositoryError> {
        self.fetch_wal_file(system_identifier, WalFileName::History(timeline))
            .await
    }

    /// Any file of the WAL; a segment as [`Repository::fetch_wal`] has it.
    ///
    /// # Errors
    /// As [`Repository::fetch_wal`].
    pub async fn fetch_wal_file(
        &self,
        system_identifier: u64,
        name: WalFileName,
    ) -> Result<Option<Bytes>, RepositoryError> {
        match name {
            WalFileName::Segment(segment) => self.fetch_wal(system_identifier, &segment).await,
            _ => self.wal_contents(system_identifier, &WalObject::File(name)).await,
        }
    }

    /// An object's contents, whichever way it was sealed.
    async fn wal_contents(
        &self,
        system_identifier: u64,
        object: &WalObject,
    ) -> Result<Option<Bytes>, RepositoryError> {
        let ours = self.access.sealed_suffix();
        let others = layout::SEALED_SUFFIXES
            .into_iter()
            .filter(|suffix| *suffix != ours);
        for suffix in std::iter::once(ours).chain(others) {
            let key = layout::wal_object(&self.cluster, system_identifier, object, suffix);
            if let Some(bytes) = self.wal_contents_at(&key, object).await? {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    async fn wal_contents_at(&self, key: &str, object: &WalObject) -> Result<Option<Bytes>, RepositoryError> {
        let bytes_max = object.plain_bytes_max();
        let Some(contents) = self.contents_of_key(key, bytes_max).await? else {
            return Ok(None);
        };
        let limit = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        let bytes = contents.collect(limit).await?;
        if let Some(expected) = object.plain_bytes()
            && bytes.len() as u64 != expected
        {
            return Err(RepositoryError::Malformed {
                key: key.to_owned(),
                reason: format!("it holds {} bytes, and {expected} are right", bytes.len()),
            });
        }
        Ok(Some(Bytes::from(bytes)))
    }

    /// Whether nothing of this timeline is stored behind the segment that would need it: what lies behind the first WAL of
    /// all needs nothing before that, unless more was there once.
    async fn is_last_of_timeline(
        &self,
        system_identifier: u64,
        name: SegmentName,
        stored: &[StoredWal],
    ) -> Result<bool, RepositoryError> {
        let segments = || {
            let recovered = stored.iter().filter(|stored| stored.object.positions().is_some());
            recovered.filter_map(|stored| stored.object.segment())
        };
        let timeline = layout::wal_timeline_prefix(&self.cluster, system_identifier, name.timeline());
        let mut logs = Vec::new();
        let (later, earlier) = (
            segments().any(|segment| segment.number() > name.number()),
            segments().any(|segment| segment.number() < name.number()),
        );
        if !later || !earlier {
            let names = self.store.list_directories(&timeline).await?;
            logs = names.iter().filter_map(|name| digits(name)).collect();
        }
        let later = later || logs.iter().any(|log| u64::from(*log) > name.log());
        let earlier = earlier
            || segments().any(|segment| segment == name)
            || logs.iter().any(|log| u64::from(*log) < name.log());
        if !earlier {
            // A prune may have taken what was before it: then it is missing, and not behind the end.
            let mark = layout::wal_pruned(&self.cluster, system_identifier, name.timeline());
            return Ok(self.store.head(&mark).await?.is_none());
        }
        Ok(!later)
    }

    fn hole(&self, name: SegmentName, end: u64) -> RepositoryError {
        let what = match end {
            0 => format!("{name} isn't stored, or not any more, but what follows it is or was"),
            end => format!("{name} is stored up to byte {end} only, and more follows"),
        };
        RepositoryError::WalHole {
            cluster: self.cluster.clone(),
            what,
        }
    }

    /// Joins parts that follow, or overlap, each other from the segment's start on.
    async fn join(&self, name: SegmentName, chain: &[StoredWal]) -> Result<Bytes, RepositoryError> {
        let size = usize::try_from(name.size().bytes()).unwrap_or(usize::MAX);
        let mut segment = Vec::with_capacity(size);
        let read = futures::stream::iter(chain)
            .map(|part| async move {
                match self.wal_contents_at(part.key(), &part.object).await? {
                    Some(bytes) => Ok((part, bytes)),
                    None => Err(self.gone(part.key()).await),
                }
            })
            .buffered(PARTS_AT_ONCE);
        let mut read = std::pin::pin!(read);
        while let Some((part, bytes)) = read.try_next().await? {
            let from = part.object.offsets().map_or(0, |(from, _)| from);
            append(&mut segment, usize::try_from(from).unwrap_or(usize::MAX), &bytes).map_err(|reason| {
                RepositoryError::Malformed {
                    key: part.key().to_owned(),
                    reason: reason.to_owned(),
                }
            })?;
        }
        segment.resize(size, 0);
        Ok(Bytes::from(segment))
    }

    /// The store's own error for an object that a listing showed and that isn't there any more.
    pub(super) async fn gone(&self, key: &str) -> RepositoryError {
        match self.store.get_range(key, 0..1).await {
            Err(error) => error.into(),
            Ok(_) => RepositoryError::Malformed {
                key: key.to_owned(),
                reason: "it comes and goes".to_owned(),
            },
        }
    }
}

/// Of a segment, the parts that lead as far as possible from its start.
struct Parts {
    chain: Vec<StoredWal>,
    /// The offset that they lead to.
    end: u64,
    /// The offset that any part leads to.
    furthest: u64,
}

impl Parts {
    fn of(name: SegmentName, stored: &[StoredWal]) -> Self {
        let mut parts: Vec<((u64, u64), &StoredWal)> = stored
            .iter()
            .filter(|stored| stored.object.segment() == Some(name))
            .filter_map(|stored| Some((stored.object.offsets()?, stored)))
            .collect();
        parts.sort_unstable_by_key(|(offsets, _)| *offsets);
        let furthest = parts.iter().map(|((_, to), _)| *to).max().unwrap_or(0);
        let (mut chain, mut end, mut next) = (Vec::new(), 0, parts.into_iter().peekable());
        loop {
            // Of all that begin where the chain ends, or before, the one that leads furthest.
            let mut best: Option<(u64, &StoredWal)> = None;
            while let Some(((_, to), part)) = next.next_if(|((from, _), _)| *from <= end) {
                if to > best.map_or(end, |(to, _)| to) {
                    best = Some((to, part));
                }
            }
            let Some((to, part)) = best else { break };
            chain.push(part.clone());
            end = to;
        }
        Self { chain, end, furthest }
    }

    fn is_whole(&self, name: SegmentName) -> bool {
        self.end == name.size().bytes()
    }
}

/// Adds a part to what leads up to it, at least.
fn append(segment: &mut Vec<u8>, from: usize, part: &[u8]) -> Result<(), &'static str> {
    let Some(overlap) = segment.len().checked_sub(from) else {
        return Err("the part before it isn't there");
    };
    let overlap = overlap.min(part.len());
    let (known, new) = part.split_at(overlap);
    if segment.get(from..from + overlap) != Some(known) {
        return Err("it differs from another part of the same bytes: more than one server wrote here");
    }
    segment.extend_from_slice(new);
    Ok(())
}

#[cfg(test)]
mod tests {
    use pgkeep_pgformat::{Lsn, SegmentSize};
    use proptest::prelude::*;

    use super::*;

    fn segment() -> SegmentName {
        SegmentName::holding(Timeline::FIRST, Lsn::new(0), SegmentSize::new(1 << 20).unwrap())
    }

    proptest! {
        #[test]
        fn parts_lead_as_far_as_their_bytes_do(
            bounds in proptest::collection::vec((0_usize..200, 1_usize..60), 0..30),
        ) {
            let contents: Vec<u8> = (0..=255).cycle().take(300).collect();
            let stored: Vec<StoredWal> = bounds
                .iter()
                .map(|(from, length)| {
                    let object = WalObject::part(segment(), *from as u64, (from + length) as u64).unwrap();
                    StoredWal::named(object)
                })
                .collect();
            let parts = Parts::of(segment(), &stored);
            let there = |at: usize| bounds.iter().any(|(from, length)| (*from..from + length).contains(&at));
            let end = (0..).find(|at| !there(*at)).unwrap();
            prop_assert_eq!(parts.end, end as u64);
            let mut joined = Vec::new();
            for part in &parts.chain {
                let (from, to) = part.object.offsets().unwrap();
                let (from, to) = (from as usize, to as usize);
                append(&mut joined, from, &contents[from..to]).unwrap();
            }
            prop_assert_eq!(&joined[..], &contents[..end]);
        }
    }

    #[test]
    fn parts_that_disagree_or_leave_a_hole_are_refused() {
        let mut segment = b"abcd".to_vec();
        append(&mut segment, 2, b"cdef").unwrap();
        assert_eq!(segment, b"abcdef");
        append(&mut segment, 1, b"bc").unwrap();
        assert!(append(&mut segment, 4, b"eX").is_err());
        assert!(append(&mut segment, 7, b"h").is_err());
        assert_eq!(segment, b"abcdef");
    }
}
