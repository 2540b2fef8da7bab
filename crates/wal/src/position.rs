//! The slot, and where a stream begins with it.

use pgkeep_pg::PgError;
use pgkeep_pg::replication::{Identity, Lifetime, ReplicationSession};
use pgkeep_pgformat::{Lsn, SegmentName, SegmentSize, Timeline, TimelineHistory};
use pgkeep_repository::wal::Ranges;

use crate::error::WalError;
use crate::start::{Known, Start};
use crate::state::Told;
use crate::storing::Place;

/// `undefined_file`: WAL that was asked for is removed.
const UNDEFINED_FILE: &str = "58P01";
/// `object_not_in_prerequisite_state`: the slot was invalidated.
const INVALIDATED: &str = "55000";

/// Remembers between connections what the server doesn't have any more.
pub(crate) struct Positioning {
    slot: String,
    told: Told,
    gone: Option<Lsn>,
    slot_is_lost: bool,
}

impl Positioning {
    pub fn new(slot: &str, told: Told) -> Self {
        Self {
            slot: slot.to_owned(),
            told,
            gone: None,
            slot_is_lost: false,
        }
    }

    /// WAL comes: what was gone is behind.
    pub fn has_come(&mut self) {
        self.gone = None;
        self.slot_is_lost = false;
    }

    /// A stream that began at `at` failed.
    pub fn has_failed(&mut self, at: Lsn, received: Lsn, error: &PgError) {
        let PgError::Server(error) = error else { return };
        match error.sqlstate.as_str() {
            UNDEFINED_FILE if received == at => self.gone = self.gone.max(Some(at)),
            INVALIDATED => self.slot_is_lost = true,
            _ => {}
        }
    }

    /// The start on the timeline that follows another one.
    pub fn next_timeline(&self, timeline: Timeline, at: Lsn, size: SegmentSize) -> Start {
        Start {
            timeline,
            at: SegmentName::holding(timeline, at, size).start(),
            gap: None,
        }
    }

    /// Makes sure of the slot, and finds out where to begin.
    pub async fn start(
        &mut self,
        session: &mut ReplicationSession,
        place: &Place,
        identity: &Identity,
        size: SegmentSize,
    ) -> Result<Start, WalError> {
        let history = history_of(session, identity.timeline).await?;
        let mut slot = self.slot_position(session, &history).await?;
        let useless = Known {
            size,
            history: &history,
            slot,
            stored: None,
            gone: self.gone,
        };
        if useless.slot_is_useless() {
            tracing::warn!(
                "the WAL that slot {} should hold is gone; it is made anew",
                self.slot
            );
            self.slot_is_lost = true;
            slot = self.slot_position(session, &history).await?;
        }
        let stored = stored_ranges(place, identity, &history, slot.1, size).await?;
        let known = Known {
            size,
            history: &history,
            slot,
            stored: stored.as_ref().map(|(timeline, ranges)| (*timeline, ranges)),
            gone: self.gone,
        };
        let start = known.start();
        if let Some(gap) = start.gap {
            tracing::error!(
                "WAL from {} to {} of timeline {} is lost: the server doesn't have it any more. No restore can go over that; \
                 take a base backup now",
                gap.start,
                gap.end,
                gap.timeline
            );
        }
        self.told.change(|state| state.server_end = identity.flushed);
        Ok(start)
    }

    /// The oldest WAL that the slot holds; the slot is made where there is none, or none that is of use.
    async fn slot_position(
        &mut self,
        session: &mut ReplicationSession,
        history: &TimelineHistory,
    ) -> Result<(Timeline, Lsn), WalError> {
        for _ in 0..2 {
            let slot = session.read_slot(&self.slot).await?;
            let exists = slot.is_some();
            let restart = slot.and_then(|slot| slot.restart);
            if let Some((lsn, timeline)) = restart.filter(|_| !self.slot_is_lost) {
                return Ok((timeline.unwrap_or_else(|| history.timeline_of(lsn)), lsn));
            }
            if exists {
                // Without a position it holds nothing: never used, or invalidated by max_slot_wal_keep_size.
                session.drop_slot(&self.slot, false).await?;
            }
            session.create_slot(&self.slot, Lifetime::Lasting, true).await?;
            self.slot_is_lost = false;
        }
        Err(WalError::Internal(format!(
            "the slot {} has no position, though it was made with one",
            self.slot
        )))
    }
}

async fn history_of(
    session: &mut ReplicationSession,
    timeline: Timeline,
) -> Result<TimelineHistory, WalError> {
    if timeline == Timeline::FIRST {
        return Ok(TimelineHistory::of_first(timeline));
    }
    let (_, contents) = session.timeline_history(timeline).await?;
    Ok(TimelineHistory::parse(timeline, &contents)?)
}

/// The newest timeline of the server's history that WAL is stored of, and which of it around a position and later.
///
/// Refused is a server that can't have written what is stored: an earlier primary that came back, or a copy.
async fn stored_ranges(
    place: &Place,
    identity: &Identity,
    history: &TimelineHistory,
    around: Lsn,
    size: SegmentSize,
) -> Result<Option<(Timeline, Ranges)>, WalError> {
    let (repository, system) = (&place.repository, place.system_identifier);
    let timelines = repository.wal_timelines(system).await?;
    let ranges_of = async |timeline| -> Result<Ranges, WalError> {
        let mut ranges = Ranges::default();
        let segment = SegmentName::holding(timeline, around, size);
        for stored in repository.wal_around(system, segment).await? {
            if let Some((start, end)) = stored.object.positions() {
                ranges.insert(start, end);
            }
        }
        Ok(ranges)
    };
    let refused = |timeline, end, why: String| WalError::NotInHistory {
        cluster: repository.cluster().to_owned(),
        timeline,
        end,
        why,
    };
    let end_of = |ranges: &Ranges| ranges.iter().last().map(|(_, end)| end);
    if let Some(newest) = timelines.last()
        && *newest > identity.timeline
    {
        let end = end_of(&ranges_of(*newest).await?).unwrap_or_default();
        let why = format!("it is on timeline {}", identity.timeline);
        return Err(refused(*newest, end, why));
    }
    let known = timelines.into_iter().rev();
    let Some(timeline) = known.into_iter().find(|timeline| history.contains(*timeline)) else {
        return Ok(None);
    };
    let ranges = ranges_of(timeline).await?;
    if timeline == identity.timeline
        && let Some(end) = end_of(&ranges).filter(|end| *end > identity.flushed)
    {
        let why = format!("it has come to {} only", identity.flushed);
        return Err(refused(timeline, end, why));
    }
    Ok(Some((timeline, ranges)))
}
