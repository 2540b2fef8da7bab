//! Where to go on.

use pgkeep_pgformat::{Lsn, SegmentName, SegmentSize, Timeline, TimelineHistory};
use pgkeep_repository::wal::{Ranges, StoredWal};

use crate::error::WalError;
use crate::state::Gap;
use crate::storing::Place;

/// What is stored from this segment on, to be compared with what comes.
pub(crate) async fn stored_from(place: &Place, start: SegmentName) -> Result<Vec<StoredWal>, WalError> {
    let around = place
        .repository
        .wal_around(place.system_identifier, start)
        .await?;
    Ok(from_segment(around, start))
}

/// Of these, what is of this segment or a later one.
fn from_segment(stored: Vec<StoredWal>, start: SegmentName) -> Vec<StoredWal> {
    stored
        .into_iter()
        .filter(|stored| {
            let segment = stored.object.segment();
            segment.is_some_and(|segment| segment.number() >= start.number())
        })
        .collect()
}

/// Where a stream begins: at a segment's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Start {
    pub timeline: Timeline,
    pub at: Lsn,
    /// What is missing before it for good.
    pub gap: Option<Gap>,
}

/// What is known before a stream begins.
pub(crate) struct Known<'a> {
    pub size: SegmentSize,
    /// The history of the server's timeline.
    pub history: &'a TimelineHistory,
    /// The oldest WAL that the slot holds, and its timeline.
    pub slot: (Timeline, Lsn),
    /// The newest timeline in this history that WAL is stored of, and which ranges of it.
    pub stored: Option<(Timeline, &'a Ranges)>,
    /// The server has nothing any more up to here.
    pub gone: Option<Lsn>,
}

impl Known<'_> {
    fn segment_start(&self, lsn: Lsn) -> Lsn {
        Lsn::new(lsn.as_u64() - lsn.as_u64() % self.size.bytes())
    }

    /// Whether the slot holds nothing that there still is.
    pub fn slot_is_useless(&self) -> bool {
        self.gone
            .is_some_and(|gone| self.segment_start(self.slot.1) <= gone)
    }

    /// Where to begin, so that nothing is missing between what is stored and what comes; else at the slot's position, with
    /// the gap.
    pub fn start(&self) -> Start {
        let (slot_timeline, at) = (self.slot.0, self.segment_start(self.slot.1));
        let of_slot = |gap| Start {
            timeline: slot_timeline,
            at,
            gap,
        };
        let Some((timeline, ranges)) = self.stored else {
            return of_slot(None);
        };
        let touches = |(start, end): (Lsn, Lsn)| start <= at && at <= end;
        if timeline == slot_timeline && ranges.iter().any(touches) {
            return of_slot(None);
        }
        let Some((_, end)) = ranges.iter().last() else {
            return of_slot(None);
        };
        let (resumed, missing) = match self.history.switch_point(timeline) {
            Some((switch, next)) if end >= switch => (next, switch),
            _ => (timeline, end),
        };
        let resume = self.segment_start(missing);
        if resume >= at {
            // The slot holds what is stored, and more.
            return of_slot(None);
        }
        if self.gone.is_none_or(|gone| resume > gone) {
            return Start {
                timeline: resumed,
                at: resume,
                gap: None,
            };
        }
        of_slot(Some(Gap {
            timeline: resumed,
            start: missing,
            end: at,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn timeline(number: u32) -> Timeline {
        Timeline::new(number).unwrap()
    }

    fn at(segment: u64, offset: u64) -> Lsn {
        Lsn::new(segment * MIB + offset)
    }

    /// Timeline 2 leaves timeline 1 in the middle of segment 10.
    fn history() -> TimelineHistory {
        TimelineHistory::parse(timeline(2), b"1\t0/A80000\tno reason\n").unwrap()
    }

    fn start(
        slot: (u32, Lsn),
        stored: Option<(u32, &[(Lsn, Lsn)])>,
        gone: Option<Lsn>,
    ) -> (u32, Lsn, Option<(u32, Lsn, Lsn)>) {
        let mut ranges = Ranges::default();
        for (start, end) in stored.map(|(_, ranges)| ranges).unwrap_or_default() {
            ranges.insert(*start, *end);
        }
        let history = history();
        let known = Known {
            size: SegmentSize::new(MIB).unwrap(),
            history: &history,
            slot: (timeline(slot.0), slot.1),
            stored: stored.map(|(number, _)| (timeline(number), &ranges)),
            gone,
        };
        let start = known.start();
        let gap = start.gap.map(|gap| (gap.timeline.as_u32(), gap.start, gap.end));
        (start.timeline.as_u32(), start.at, gap)
    }

    #[test]
    fn a_crash_goes_on_at_the_start_of_the_slots_segment() {
        assert_eq!(start((1, at(5, 77)), None, None), (1, at(5, 0), None));
        let stored = [(at(2, 0), at(6, 300))];
        assert_eq!(
            start((1, at(5, 77)), Some((1, &stored)), None),
            (1, at(5, 0), None)
        );
        let stored = [(at(2, 0), at(5, 0))];
        assert_eq!(
            start((1, at(5, 77)), Some((1, &stored)), None),
            (1, at(5, 0), None)
        );
    }

    #[test]
    fn a_new_slot_goes_back_to_what_is_stored_as_long_as_the_server_has_it() {
        let stored = [(at(1, 0), at(2, 0)), (at(2, 5), at(3, 400))];
        assert_eq!(
            start((1, at(7, 77)), Some((1, &stored)), None),
            (1, at(3, 0), None)
        );
        assert_eq!(
            start((1, at(7, 77)), Some((1, &stored)), Some(at(3, 0))),
            (1, at(7, 0), Some((1, at(3, 400), at(7, 0))))
        );
    }

    #[test]
    fn a_promoted_standby_goes_on_where_its_timeline_left_the_stored_one() {
        let switch = at(10, 0x8_0000);
        // All of timeline 1 is stored, and more than the standby had.
        for end in [switch, at(11, 5)] {
            let stored = [(at(1, 0), end)];
            assert_eq!(
                start((2, at(14, 1)), Some((1, &stored)), None),
                (2, at(10, 0), None)
            );
        }
        // The end of timeline 1 is still to come.
        let stored = [(at(1, 0), at(9, 5))];
        assert_eq!(
            start((2, at(14, 1)), Some((1, &stored)), None),
            (1, at(9, 0), None)
        );
        let gone = Some(at(9, 0));
        let gap = Some((1, at(9, 5), at(14, 0)));
        assert_eq!(
            start((2, at(14, 1)), Some((1, &stored)), gone),
            (2, at(14, 0), gap)
        );
        // The slot is still on timeline 1, and timeline 2 was begun: both are gone through again.
        let stored = [(at(10, 0), at(10, 0x9_0000))];
        assert_eq!(
            start((1, at(10, 1)), Some((2, &stored)), None),
            (1, at(10, 0), None)
        );
    }
}
