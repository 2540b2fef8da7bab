//! To which points one can go back: where base backups and the WAL behind them lead. The only place that reckons it; `list`,
//! `show`, `wal status` and the plan of a restore tell what it says.

use jiff::Timestamp;
use pgkeep_base::BackupId;
use pgkeep_pgformat::{Lsn, Timeline};

use crate::state::Gap;
use crate::stored::StoredTimeline;

/// A base backup that recovery may begin from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beginning {
    /// Which.
    pub id: BackupId,
    /// When it ended.
    pub ended_at: Timestamp,
    /// The timeline of both positions.
    pub timeline: Timeline,
    /// Where recovery from it begins.
    pub start: Lsn,
    /// The first point that it can be recovered to.
    pub stop: Lsn,
}

/// Points that one can go back to, without a gap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// On which timeline.
    pub timeline: Timeline,
    /// The first point.
    pub from: Lsn,
    /// When that was.
    pub from_at: Timestamp,
    /// The last point.
    pub to: Lsn,
    /// When the last WAL was stored, if it is the timeline's newest: about when that point was.
    pub to_at: Option<Timestamp>,
    /// The backups in it, the oldest first; never empty.
    pub backups: Vec<BackupId>,
}

impl Window {
    /// Whether one can go back to this point.
    pub fn holds(&self, timeline: Timeline, lsn: Lsn) -> bool {
        self.timeline == timeline && self.from <= lsn && lsn <= self.to
    }
}

/// All windows of one database system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Windows {
    /// By timeline and position, ascending.
    pub windows: Vec<Window>,
    /// Backups whose own WAL isn't all there: nothing can be recovered from them.
    pub unusable: Vec<BackupId>,
}

impl Windows {
    /// Of backups, in any order, and what WAL is stored.
    pub fn of(backups: &[Beginning], stored: &[StoredTimeline]) -> Self {
        let mut sorted: Vec<&Beginning> = backups.iter().collect();
        sorted.sort_by_key(|backup| (backup.timeline, backup.stop, &backup.id));
        let mut all = Self::default();
        for backup in sorted {
            let of_timeline = stored.iter().find(|stored| stored.timeline == backup.timeline);
            let Some((timeline, range)) = of_timeline.and_then(|timeline| {
                let mut ranges = timeline.covered.iter();
                Some((
                    timeline,
                    ranges.find(|range| range.holds(backup.start, backup.stop))?,
                ))
            }) else {
                all.unusable.push(backup.id.clone());
                continue;
            };
            match all.windows.last_mut() {
                Some(window) if window.holds(backup.timeline, backup.start) && window.to == range.end => {
                    window.backups.push(backup.id.clone());
                }
                _ => all.windows.push(Window {
                    timeline: backup.timeline,
                    from: backup.stop,
                    from_at: backup.ended_at,
                    to: range.end,
                    to_at: timeline
                        .newest_at
                        .filter(|_| timeline.covered.last() == Some(range)),
                    backups: vec![backup.id.clone()],
                }),
            }
        }
        all
    }

    /// The one that a backup is in.
    pub fn of_backup(&self, id: &BackupId) -> Option<&Window> {
        self.windows.iter().find(|window| window.backups.contains(id))
    }

    /// The last point before, and the first point behind one that nobody can go back to.
    pub fn nearest(&self, timeline: Timeline, lsn: Lsn) -> (Option<&Window>, Option<&Window>) {
        let of_timeline = || self.windows.iter().filter(|window| window.timeline == timeline);
        (
            of_timeline().rfind(|window| window.to < lsn),
            of_timeline().find(|window| window.from > lsn),
        )
    }

    /// Whether a piece of missing WAL is behind the newest backup of its timeline: then nobody can go on over it until there is
    /// another backup.
    pub fn is_open(&self, gap: &Gap) -> bool {
        !self
            .windows
            .iter()
            .any(|window| window.timeline >= gap.timeline && window.from >= gap.end)
    }
}

#[cfg(test)]
mod tests {
    use pgkeep_repository::wal::Covered;

    use super::*;

    fn backup(number: u32, start: u64) -> Beginning {
        Beginning {
            id: format!("b20261122T{number:02}0000Z-000001").parse().unwrap(),
            ended_at: Timestamp::from_second(i64::from(number)).unwrap(),
            timeline: Timeline::FIRST,
            start: Lsn::new(start),
            stop: Lsn::new(start + 10),
        }
    }

    fn stored(ranges: &[(u64, u64)]) -> StoredTimeline {
        let covered = ranges.iter().map(|(start, end)| Covered {
            start: Lsn::new(*start),
            end: Lsn::new(*end),
        });
        StoredTimeline {
            timeline: Timeline::FIRST,
            covered: covered.collect(),
            gaps: Vec::new(),
            objects: 1,
            stored_bytes: 1,
            newest_at: Some(Timestamp::UNIX_EPOCH),
        }
    }

    #[test]
    fn windows_are_where_backups_and_wal_lead() {
        let backups = [
            backup(1, 100),
            backup(2, 300),
            backup(3, 400),
            backup(4, 600),
            backup(5, 900),
        ];
        let stored = [stored(&[(90, 150), (290, 500), (595, 605), (800, 1000)])];
        let windows = Windows::of(&backups, &stored);
        let shown: Vec<(u64, u64, usize, bool)> = windows
            .windows
            .iter()
            .map(|window| {
                let (from, to) = (window.from.as_u64(), window.to.as_u64());
                (from, to, window.backups.len(), window.to_at.is_some())
            })
            .collect();
        assert_eq!(
            shown,
            [(110, 150, 1, false), (310, 500, 2, false), (910, 1000, 1, true)]
        );
        assert_eq!(windows.unusable, [backups[3].id.clone()]);
        let around = |lsn: u64| {
            let (before, behind) = windows.nearest(Timeline::FIRST, Lsn::new(lsn));
            (
                before.map(|window| window.to.as_u64()),
                behind.map(|window| window.from.as_u64()),
            )
        };
        assert_eq!(around(50), (None, Some(110)));
        assert_eq!(around(200), (Some(150), Some(310)));
        assert_eq!(around(2000), (Some(1000), None));
        let gap = |start: u64, end: u64| Gap {
            timeline: Timeline::FIRST,
            start: Lsn::new(start),
            end: Lsn::new(end),
        };
        assert!(!windows.is_open(&gap(500, 595)));
        assert!(windows.is_open(&gap(1000, 1100)));
        assert_eq!(Windows::of(&[], &stored), Windows::default());
    }
}
