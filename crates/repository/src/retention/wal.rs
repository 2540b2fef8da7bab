//! What the base backups that stay need of the WAL. Pure, as the planner itself.
//!
//! | base backup | needs, on its timeline and on those that left it later |
//! |---|---|
//! | the one from which the window begins, and all that ended later | everything from its start on |
//! | an older one: kept as one of a day, a week, ..., or pinned | from its start to its end, and no more |
//!
//! Without a window it begins with the oldest good one that more than a pin keeps. What lies on a timeline that is newer than
//! those of all backups is never below their need.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pgkeep_base::BackupId;
use pgkeep_pgformat::{Lsn, Timeline, TimelineHistory};

use super::{Decision, Reason};

/// A base backup, as far as WAL is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseExtent {
    /// When it ended.
    pub ended_at: Timestamp,
    /// The timeline of both positions.
    pub timeline: Timeline,
    /// Where recovery from it begins.
    pub start: Lsn,
    /// What that must reach.
    pub stop: Lsn,
}

/// What one base backup needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalNeed {
    /// Which.
    pub id: BackupId,
    /// The timeline.
    pub timeline: Timeline,
    /// From here on.
    pub start: Lsn,
    /// Up to here; `None`: all that follows.
    pub stop: Option<Lsn>,
}

/// What the base backups of one database system need that a plan keeps, the oldest first. The first one without an end begins
/// the window.
pub fn needs(kept: &[(&Decision, BaseExtent)]) -> Vec<WalNeed> {
    let has = |decision: &Decision, wanted: fn(&Reason) -> bool| decision.reasons.iter().any(wanted);
    let is_good = |decision: &Decision| {
        !has(decision, |reason| {
            matches!(
                reason,
                Reason::Damaged | Reason::ManifestGone | Reason::NothingGood | Reason::Expired { .. }
            )
        })
    };
    let begins = |decision: &Decision| has(decision, |reason| matches!(reason, Reason::WindowBegins(_)));
    let is_more_than_pinned =
        |decision: &Decision| has(decision, |reason| !matches!(reason, Reason::Pinned(_)));
    let mut sorted = kept.to_vec();
    sorted.sort_by(|(a, of_a), (b, of_b)| (of_a.ended_at, &a.id).cmp(&(of_b.ended_at, &b.id)));
    let good = || sorted.iter().filter(|(decision, _)| is_good(decision));
    let first = good()
        .find(|(decision, _)| begins(decision))
        .or_else(|| good().find(|(decision, _)| is_more_than_pinned(decision)))
        .or_else(|| good().next());
    let window_begins = first.map(|(_, extent)| extent.ended_at);
    let need = |(decision, extent): &(&Decision, BaseExtent)| WalNeed {
        id: decision.id.clone(),
        timeline: extent.timeline,
        start: extent.start,
        // Where none is known to be good, all count as if they were.
        stop: window_begins
            .filter(|begins| extent.ended_at < *begins)
            .map(|_| extent.stop),
    };
    sorted.iter().map(need).collect()
}

/// Which WAL of one database system is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeededWal {
    by_timeline: BTreeMap<Timeline, OnTimeline>,
    /// The newest timeline of a backup.
    newest: Timeline,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct OnTimeline {
    /// All from here on.
    from: Option<Lsn>,
    /// And these: start and end.
    points: Vec<(Lsn, Lsn)>,
}

impl OnTimeline {
    fn add_from(&mut self, lsn: Lsn) {
        self.from = Some(self.from.map_or(lsn, |from| from.min(lsn)));
    }
}

impl NeededWal {
    /// What backups need; `None` if there is none. `histories` are those of the timelines that WAL is stored of, `None` for one that
    /// can't be read: it may come from anywhere, and all of it counts as needed.
    pub fn new(needs: &[WalNeed], histories: &BTreeMap<Timeline, Option<TimelineHistory>>) -> Option<Self> {
        let newest = needs.iter().map(|need| need.timeline).max()?;
        let mut by_timeline: BTreeMap<Timeline, OnTimeline> = BTreeMap::new();
        for need in needs {
            let own = by_timeline.entry(need.timeline).or_default();
            if let Some(stop) = need.stop {
                own.points.push((need.start, stop));
                continue;
            }
            own.add_from(need.start);
            for (timeline, history) in histories.range(need.timeline..) {
                match history {
                    _ if *timeline == need.timeline => {}
                    None => by_timeline.entry(*timeline).or_default().add_from(Lsn::INVALID),
                    Some(history) => follow(history, need, &mut by_timeline),
                }
            }
        }
        Some(Self { by_timeline, newest })
    }

    /// Whether any of the positions [start, end) is needed.
    pub fn holds(&self, timeline: Timeline, start: Lsn, end: Lsn) -> bool {
        if timeline > self.newest {
            return true;
        }
        let Some(on) = self.by_timeline.get(&timeline) else {
            return false;
        };
        on.from.is_some_and(|from| from < end)
            || on
                .points
                .iter()
                .any(|(first, stop)| *first < end && start < *stop)
    }
}

/// Adds what is needed of the timelines by which a history leads on from a backup.
fn follow(history: &TimelineHistory, need: &WalNeed, by_timeline: &mut BTreeMap<Timeline, OnTimeline>) {
    let later = history
        .entries()
        .iter()
        .skip_while(|entry| entry.timeline != need.timeline)
        .skip(1);
    for entry in later {
        // Left before the backup's start, it leads past it.
        if entry.begin < need.start {
            break;
        }
        by_timeline
            .entry(entry.timeline)
            .or_default()
            .add_from(entry.begin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(number: u32) -> Timeline {
        Timeline::new(number).unwrap()
    }

    fn lsn(at: u64) -> Lsn {
        Lsn::new(at)
    }

    fn decision(day: u32, reasons: &[Reason]) -> Decision {
        Decision {
            id: format!("b202611{day:02}T020000Z-000001").parse().unwrap(),
            keep: true,
            reasons: reasons.to_vec(),
        }
    }

    fn extent(day: u32, on: u32, start: u64) -> BaseExtent {
        BaseExtent {
            ended_at: format!("2026-11-{day:02}T03:00:00Z").parse().unwrap(),
            timeline: timeline(on),
            start: lsn(start),
            stop: lsn(start + 10),
        }
    }

    fn monthly() -> Reason {
        Reason::Newest {
            rule: super::super::Rule::Monthly,
            period_start: jiff::civil::date(2026, 11, 1),
        }
    }

    /// Which days need all that follows.
    fn continuous(kept: &[(u32, &[Reason])]) -> Vec<u32> {
        let decisions: Vec<Decision> = kept
            .iter()
            .map(|(day, reasons)| decision(*day, reasons))
            .collect();
        let pairs: Vec<(&Decision, BaseExtent)> = decisions
            .iter()
            .zip(kept)
            .map(|(decision, (day, _))| (decision, extent(*day, 1, u64::from(*day) * 100)))
            .collect();
        needs(&pairs)
            .iter()
            .filter(|need| need.stop.is_none())
            .map(|need| u32::try_from(need.start.as_u64() / 100).unwrap())
            .collect()
    }

    #[test]
    fn the_window_begins_with_the_backup_that_says_so_and_older_ones_are_points() {
        let begins = [Reason::WindowBegins(Timestamp::UNIX_EPOCH)];
        let window = [Reason::Window(jiff::SignedDuration::from_hours(24))];
        let pinned = [Reason::Pinned("why".to_owned())];
        let damaged = [monthly(), Reason::Damaged];
        let kept: &[(u32, &[Reason])] = &[(1, &pinned), (2, &[monthly()]), (3, &begins), (4, &window)];
        assert_eq!(continuous(kept), [3, 4]);
        // Without a window: all that more than a pin keeps.
        assert_eq!(
            continuous(&[(1, &pinned), (2, &[monthly()]), (3, &[monthly()])]),
            [2, 3]
        );
        assert_eq!(continuous(&[(1, &pinned), (2, &pinned)]), [1, 2]);
        // What is damaged begins nothing.
        assert_eq!(
            continuous(&[(1, &damaged), (2, &[monthly()]), (3, &damaged)]),
            [2, 3]
        );
        assert_eq!(continuous(&[(1, &[Reason::NothingGood]), (2, &damaged)]), [1, 2]);
        assert!(continuous(&[]).is_empty());
    }

    #[test]
    fn needs_lead_on_where_timelines_leave() {
        let need = |on: u32, start: u64, stop: Option<u64>| WalNeed {
            id: decision(1, &[]).id,
            timeline: timeline(on),
            start: lsn(start),
            stop: stop.map(lsn),
        };
        let history = |number: u32, text: &str| {
            let parsed = TimelineHistory::parse(timeline(number), text.as_bytes()).unwrap();
            (timeline(number), Some(parsed))
        };
        // 2 leaves 1 at 0x500, 3 leaves 1 at 0x300, 4 leaves 2 at 0x600.
        let histories: BTreeMap<_, _> = [
            (timeline(1), Some(TimelineHistory::of_first(timeline(1)))),
            history(2, "1\t0/500\tx\n"),
            history(3, "1\t0/300\tx\n"),
            history(4, "1\t0/500\tx\n2\t0/600\tx\n"),
        ]
        .into();
        let all = [
            need(1, 0x400, None),
            need(1, 0x100, Some(0x140)),
            need(4, 0x900, None),
        ];
        let needed = NeededWal::new(&all, &histories).unwrap();
        let holds = |on: u32, start: u64, end: u64| needed.holds(timeline(on), lsn(start), lsn(end));
        for (on, start, end, expected) in [
            (1, 0x0, 0x100, false),
            (1, 0x0, 0x101, true),
            (1, 0x130, 0x200, true),
            (1, 0x140, 0x200, false),
            (1, 0x300, 0x400, false),
            (1, 0x300, 0x401, true),
            (1, 0x1000, 0x1100, true),
            (2, 0x400, 0x500, false),
            (2, 0x500, 0x501, true),
            // It left before the window began, so nothing leads onto it.
            (3, 0x300, 0x900, false),
            (4, 0x500, 0x600, false),
            (4, 0x600, 0x601, true),
            // Newer than any backup.
            (5, 0x0, 0x1, true),
        ] {
            assert_eq!(holds(on, start, end), expected, "{on} {start:x}-{end:x}");
        }
        let mut unknown = histories.clone();
        unknown.insert(timeline(3), None);
        let needed = NeededWal::new(&all, &unknown).unwrap();
        assert!(needed.holds(timeline(3), lsn(0x300), lsn(0x301)));
        assert_eq!(NeededWal::new(&[], &histories), None);
    }
}
