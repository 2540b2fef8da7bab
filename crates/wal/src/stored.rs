//! What WAL there is, and what is missing of it.

use jiff::Timestamp;
use pgkeep_pg::Target;
use pgkeep_pg::replication::ReplicationSession;
use pgkeep_pgformat::{Lsn, Timeline, TimelineHistory};
use pgkeep_repository::Repository;
use pgkeep_repository::wal::Covered;

use crate::error::WalError;
use crate::state::Gap;

/// What is stored of one timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTimeline {
    /// The timeline.
    pub timeline: Timeline,
    /// Which ranges.
    pub covered: Vec<Covered>,
    /// What is missing between them, or between where the timeline left its parent and its first.
    pub gaps: Vec<Gap>,
    /// How many objects.
    pub objects: u64,
    /// How large they are as stored, in bytes.
    pub stored_bytes: u64,
    /// When the newest of them was stored.
    pub newest_at: Option<Timestamp>,
}

/// What is stored of one cluster's WAL, timeline by timeline, ascending. One listing of all of it.
///
/// # Errors
/// Whatever the store says.
pub async fn stored_wal(
    repository: &Repository,
    system_identifier: u64,
) -> Result<Vec<StoredTimeline>, WalError> {
    let mut all: Vec<StoredTimeline> = Vec::new();
    for timeline in repository.wal_timelines(system_identifier).await? {
        let found = repository.timeline_wal(system_identifier, timeline).await?;
        let gaps = found.covered.windows(2).filter_map(|pair| match pair {
            [before, after] => Some(Gap {
                timeline,
                start: before.end,
                end: after.start,
            }),
            _ => None,
        });
        all.push(StoredTimeline {
            timeline,
            gaps: gaps.collect(),
            covered: found.covered,
            objects: found.objects,
            stored_bytes: found.stored_bytes,
            newest_at: found.newest_at,
        });
    }
    all.retain(|timeline| timeline.objects > 0);
    Ok(all)
}

/// What is missing between a timeline and the one that it comes from, of which something is stored; its history must be read
/// for it, which takes the secret key.
pub fn gap_at_switch(history: &TimelineHistory, stored: &[StoredTimeline]) -> Option<Gap> {
    let timeline = history.timeline();
    let of = |wanted| stored.iter().find(|stored| stored.timeline == wanted);
    let first = of(timeline)?.covered.first()?.start;
    let parent = history.entries().iter().rev().nth(1)?;
    let (switch, _) = history.switch_point(parent.timeline)?;
    let end = of(parent.timeline)?.covered.last()?.end;
    let missing_before = end < switch;
    let missing_after = first > switch;
    (missing_before || missing_after).then_some(Gap {
        timeline: if missing_before { parent.timeline } else { timeline },
        start: end.min(switch),
        end: first.max(switch),
    })
}

/// A server, and how far a slot lags behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotLag {
    /// Which cluster it is.
    pub system_identifier: u64,
    /// Its timeline.
    pub timeline: Timeline,
    /// How far its WAL is flushed.
    pub flushed: Lsn,
    /// The oldest position that the slot holds; `None` if there is no such slot, or it holds nothing.
    pub restart: Option<Lsn>,
}

impl SlotLag {
    /// Asks the server.
    ///
    /// # Errors
    /// There is no connection, or the role may not replicate.
    pub async fn ask(target: &Target, slot: &str) -> Result<Self, WalError> {
        let mut session = ReplicationSession::connect(target).await?;
        let identity = session.identify().await?;
        let position = session.read_slot(slot).await?;
        session.close().await;
        let restart = position.and_then(|position| position.restart);
        Ok(Self {
            system_identifier: identity.system_identifier,
            timeline: identity.timeline,
            flushed: identity.flushed,
            restart: restart.map(|(lsn, _)| lsn),
        })
    }

    /// How much WAL the server keeps for the slot, in bytes.
    pub fn bytes(&self) -> Option<u64> {
        self.restart
            .map(|restart| self.flushed.bytes_since(restart).unwrap_or(0))
    }
}
