use pgkeep_base::{Classified, Hint, RetryClass};

use crate::{Lsn, Timeline};

/// More forks than any cluster has seen; a file with more is none of PostgreSQL's.
const ENTRIES_MAX: usize = 100_000;

/// A timeline's part of a history: from where, and to where, its WAL counts (`TimeLineHistoryEntry`,
/// `access/timeline.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The timeline.
    pub timeline: Timeline,
    /// Its first position; [`Lsn::INVALID`] for the first timeline of all.
    pub begin: Lsn,
    /// The position behind its last byte, at which the next timeline begins; `None`: it goes on.
    pub end: Option<Lsn>,
}

impl HistoryEntry {
    fn holds(&self, lsn: Lsn) -> bool {
        self.begin <= lsn && self.end.is_none_or(|end| lsn < end)
    }
}

/// From which timelines, and where, a timeline comes: the contents of `<timeline>.history` as `readTimeLineHistory`
/// (`access/transam/timeline.c`) reads them, oldest first, the timeline itself last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    /// Never empty.
    entries: Vec<HistoryEntry>,
    timeline: Timeline,
}

/// The contents are no history of the timeline.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the history of timeline {timeline} is damaged in line {line}: {reason}")]
pub struct TimelineHistoryError {
    /// Whose history it should be.
    pub timeline: Timeline,
    /// The line, from 1; behind the last one for what is wrong with the whole.
    pub line: usize,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl Classified for TimelineHistoryError {
    fn retry_class(&self) -> RetryClass {
        RetryClass::Permanent
    }

    fn hint(&self) -> Option<Hint> {
        Some(Hint::new(format!(
            "compare it with {:08X}.history in the server's pg_wal, or in another archive of this cluster",
            self.timeline.as_u32()
        )))
    }
}

impl TimelineHistory {
    /// The history of a timeline that has no file: the first one.
    pub fn of_first(timeline: Timeline) -> Self {
        let entry = HistoryEntry {
            timeline,
            begin: Lsn::INVALID,
            end: None,
        };
        Self {
            entries: vec![entry],
            timeline,
        }
    }

    /// Reads the contents of a timeline's history file: lines with number, position of the switch and reason. Empty ones
    /// and those that begin with `#` say nothing.
    ///
    /// # Errors
    /// What PostgreSQL refuses too: no number, no position, or timelines that don't grow.
    pub fn parse(timeline: Timeline, contents: &[u8]) -> Result<Self, TimelineHistoryError> {
        let mut entries: Vec<HistoryEntry> = Vec::new();
        let mut begin = Lsn::INVALID;
        let mut parents: Option<Timeline> = None;
        let mut lines = 0;
        let refused = |line, reason| TimelineHistoryError {
            timeline,
            line,
            reason,
        };
        for (index, line) in contents.split(|byte| *byte == b'\n').enumerate() {
            lines = index + 1;
            let line = line.trim_ascii_start();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let (parent, end) = parent(line).map_err(|reason| refused(lines, reason))?;
            if parents.is_some_and(|last| parent <= last) {
                return Err(refused(lines, "timelines must be in increasing sequence"));
            }
            parents = Some(parent);
            // Recovery to a point before the parent began, with the parent as its target, ends on the parent's parent, and is
            // written so all the same. PostgreSQL searches from the newest one on: nothing of the parent counts, nor what the
            // ones before have behind that point.
            if end < begin {
                while entries.pop_if(|last| last.begin >= end).is_some() {}
                if let Some(last) = entries.last_mut() {
                    last.end = Some(end);
                }
                begin = end;
                continue;
            }
            if entries.len() >= ENTRIES_MAX {
                return Err(refused(lines, "there are too many timelines"));
            }
            entries.push(HistoryEntry {
                timeline: parent,
                begin,
                end: Some(end),
            });
            begin = end;
        }
        if parents.is_some_and(|last| timeline <= last) {
            return Err(refused(
                lines,
                "its timelines must be less than the timeline itself",
            ));
        }
        entries.push(HistoryEntry {
            timeline,
            begin,
            end: None,
        });
        Ok(Self { entries, timeline })
    }

    /// Whose history it is.
    pub fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// Oldest first; the timeline itself is the last one.
    pub fn entries(&self) -> &[HistoryEntry] {
        &self.entries
    }

    /// Does the timeline come from this one, or is it this one (`tliInHistory`)?
    pub fn contains(&self, timeline: Timeline) -> bool {
        self.entry(timeline).is_some()
    }

    /// The part that this timeline has in it.
    pub fn entry(&self, timeline: Timeline) -> Option<&HistoryEntry> {
        self.entries.iter().find(|entry| entry.timeline == timeline)
    }

    /// The timeline whose WAL holds the byte at this position (`tliOfPointInHistory`).
    pub fn timeline_of(&self, lsn: Lsn) -> Timeline {
        // They follow each other without a gap from the first position on, and the last one has no end.
        self.entries
            .iter()
            .find(|entry| entry.holds(lsn))
            .map_or(self.timeline, |entry| entry.timeline)
    }

    /// Where this timeline is left, and for which one (`tliSwitchPoint`); `None` if it isn't in the history, or is its
    /// last.
    pub fn switch_point(&self, timeline: Timeline) -> Option<(Lsn, Timeline)> {
        let index = self.entries.iter().position(|entry| entry.timeline == timeline)?;
        let next = self.entries.get(index + 1)?;
        Some((next.begin, next.timeline))
    }
}

/// `%u\t%X/%X`, and whatever follows. Between the fields any white space will do, as `sscanf` has it.
fn parent(line: &[u8]) -> Result<(Timeline, Lsn), &'static str> {
    let mut fields = line
        .split(u8::is_ascii_whitespace)
        .filter(|field| !field.is_empty())
        .map(|field| std::str::from_utf8(field).unwrap_or_default());
    let timeline = fields.next().and_then(|field| field.parse().ok());
    let timeline = timeline.ok_or("expected a numeric timeline id")?;
    let end = fields.next().and_then(|field| field.parse().ok());
    Ok((
        timeline,
        end.ok_or("expected a write-ahead log switchpoint location")?,
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn timeline(number: u32) -> Timeline {
        Timeline::new(number).unwrap()
    }

    fn lsn(text: &str) -> Lsn {
        text.parse().unwrap()
    }

    const FILE: &[u8] =
        b"# a comment\n1\t0/3000158\tno recovery target specified\n\n2\t1/A0\tbefore 2026-01-01\n";

    #[test]
    fn a_history_is_searched_as_the_server_does() {
        let history = TimelineHistory::parse(timeline(4), FILE).unwrap();
        for (at, expected) in [
            ("0/0", 1),
            ("0/3000157", 1),
            ("0/3000158", 2),
            ("1/9F", 2),
            ("1/A0", 4),
            ("FFFFFFFF/FFFFFFFF", 4),
        ] {
            assert_eq!(history.timeline_of(lsn(at)), timeline(expected), "{at}");
        }
        assert_eq!(
            history.switch_point(timeline(1)),
            Some((lsn("0/3000158"), timeline(2)))
        );
        assert_eq!(
            history.switch_point(timeline(2)),
            Some((lsn("1/A0"), timeline(4)))
        );
        assert_eq!(history.switch_point(timeline(4)), None);
        assert_eq!(history.switch_point(timeline(3)), None);
        assert!(history.contains(timeline(2)) && !history.contains(timeline(3)));
        assert_eq!(history.entry(timeline(2)).unwrap().begin, lsn("0/3000158"));
    }

    /// As PostgreSQL writes it after a recovery to 0/3000000 with timeline 2 as its target, which begins at 0/5000000.
    #[test]
    fn a_parent_that_was_never_come_to_has_no_part() {
        let history = TimelineHistory::parse(timeline(3), b"1\t0/5000000\tx\n2\t0/3000000\tx\n").unwrap();
        for (at, expected) in [
            ("0/2FFFFFF", 1),
            ("0/3000000", 3),
            ("0/4000000", 3),
            ("0/6000000", 3),
        ] {
            assert_eq!(history.timeline_of(lsn(at)), timeline(expected), "{at}");
        }
        assert_eq!(
            history.switch_point(timeline(1)),
            Some((lsn("0/3000000"), timeline(3)))
        );
        assert!(!history.contains(timeline(2)));
        let several =
            TimelineHistory::parse(timeline(9), b"1\t0/3\n2\t0/5\n3\t0/7\n4\t0/4\n5\t0/8\n").unwrap();
        let parts: Vec<_> = several
            .entries()
            .iter()
            .map(|entry| entry.timeline.as_u32())
            .collect();
        assert_eq!(parts, [1, 2, 5, 9]);
        assert_eq!(several.timeline_of(lsn("0/4")), timeline(5));
    }

    #[test]
    fn the_first_timeline_has_no_file() {
        let history = TimelineHistory::of_first(Timeline::FIRST);
        assert_eq!(history, TimelineHistory::parse(Timeline::FIRST, b"").unwrap());
        assert_eq!(history.timeline_of(lsn("5/0")), Timeline::FIRST);
    }

    #[test]
    fn what_the_server_refuses_is_refused() {
        for (contents, line, reason) in [
            (&b"x\t0/1\n"[..], 1, "expected a numeric"),
            (b"1\t0/1\n2\n", 2, "switchpoint"),
            (b"1\tno\n", 1, "switchpoint"),
            (b"2\t0/1\n1\t0/2\n", 2, "increasing"),
            (b"1\t0/1\n1\t0/2\n", 2, "increasing"),
            (b"5\t0/1", 1, "less than the timeline"),
        ] {
            let error = TimelineHistory::parse(timeline(5), contents).unwrap_err();
            assert_eq!(error.line, line, "{error}");
            assert!(error.reason.contains(reason), "{error}");
        }
    }

    proptest! {
        #[test]
        fn every_position_has_the_timeline_whose_part_holds_it(
            steps in prop::collection::vec((1..5_u32, 0..1000_u64), 0..20),
            at in 0..20_000_u64,
        ) {
            let (mut number, mut end) = (0, 0);
            let mut contents = String::new();
            for (more, bytes) in &steps {
                number += more;
                end += bytes;
                contents += &format!("{number}\t{}\twhy\n", Lsn::new(end));
            }
            let history = TimelineHistory::parse(timeline(number + 1), contents.as_bytes()).unwrap();
            prop_assert_eq!(history.entries().len(), steps.len() + 1);
            let found = history.timeline_of(Lsn::new(at));
            let entry = history.entry(found).unwrap();
            prop_assert!(entry.begin.as_u64() <= at && entry.end.is_none_or(|end| at < end.as_u64()));
        }
    }
}
