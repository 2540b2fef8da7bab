//! The WAL that recovery follows from a backup on: that of its own timeline, and of those that come from it.

use pgkeep_pgformat::{Lsn, SegmentName, SegmentSize, Timeline, TimelineHistory};
use pgkeep_repository::Repository;
use pgkeep_repository::wal::{Covered, Ranges};

use super::plan::{segment_size, system_identifier};
use crate::error::PhysicalError;
use crate::manifest::BaseManifest;

/// Which timeline recovery follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TimelineChoice {
    /// The newest one that comes from the backup.
    #[default]
    Latest,
    /// The one on which the backup was taken.
    Current,
    /// This one.
    Number(Timeline),
}

/// A part of the way on one timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Leg {
    timeline: Timeline,
    from: Lsn,
    /// Where the next one begins.
    to: Option<Lsn>,
    /// Its first segment is stored from its beginning on, with what the one before had in it.
    is_joined: bool,
}

/// The way, and how much of it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalPath {
    legs: Vec<Leg>,
    size: SegmentSize,
    /// What is stored of it, in ascending order.
    pub covered: Vec<Covered>,
}

impl WalPath {
    /// The timeline on which it ends.
    pub fn timeline(&self) -> Option<Timeline> {
        self.legs.last().map(|leg| leg.timeline)
    }

    /// From timeline to timeline, and where: `1, from 0/3000000 on 2`.
    pub fn in_words(&self) -> String {
        let words = self.legs.iter().enumerate().map(|(place, leg)| match place {
            0 => leg.timeline.to_string(),
            _ => format!("from {} on {}", leg.from, leg.timeline),
        });
        words.collect::<Vec<_>>().join(", ")
    }

    /// The segment that holds a position. Where two timelines have it, the later one's holds all of both.
    fn segment(&self, lsn: Lsn) -> Option<SegmentName> {
        let name = |leg: &Leg| SegmentName::holding(leg.timeline, lsn, self.size);
        let begins = |leg: &&Leg| {
            let first = SegmentName::holding(leg.timeline, leg.from, self.size);
            first.start() <= lsn && (leg.is_joined || first.end().is_none_or(|end| end <= lsn))
        };
        let mut legs = self.legs.iter().rev();
        legs.find(begins).or(self.legs.first()).map(name)
    }

    /// The segments from the one that holds a position up to the one that ends at or behind another.
    pub fn segments(&self, start: Lsn, end: Lsn) -> impl Iterator<Item = SegmentName> + '_ {
        let first = self.segment(start);
        let following = std::iter::successors(first, |name| self.segment(name.end()?));
        following.take_while(move |name| Some(*name) == first || name.start() < end)
    }
}

/// The way from a backup to a timeline, and what is stored of it.
///
/// # Errors
/// [`PhysicalError::Refused`] if the timeline doesn't come from the backup; the store's.
pub async fn path(
    repository: &Repository,
    manifest: &BaseManifest,
    choice: TimelineChoice,
) -> Result<WalPath, PhysicalError> {
    let size = segment_size(manifest)?;
    let system = system_identifier(manifest)?;
    let history = history(repository, manifest, choice).await?;
    let mut legs = legs(&history, manifest.start_timeline);
    let mut ranges = Ranges::default();
    for leg in &mut legs {
        let first = SegmentName::holding(leg.timeline, leg.from, size).start();
        for range in repository.wal_coverage(system, leg.timeline).await? {
            leg.is_joined |= range.start <= first && first < range.end;
            let range = clipped(leg, range, size);
            ranges.insert(range.start, range.end);
        }
    }
    let covered = ranges.iter().map(|(start, end)| Covered { start, end }).collect();
    Ok(WalPath { legs, size, covered })
}

fn legs(history: &TimelineHistory, own: Timeline) -> Vec<Leg> {
    let entries = history.entries().iter().skip_while(|entry| entry.timeline != own);
    let legs = entries.enumerate().map(|(place, entry)| Leg {
        timeline: entry.timeline,
        from: if place == 0 { Lsn::INVALID } else { entry.begin },
        to: entry.end,
        is_joined: false,
    });
    legs.collect()
}

/// What a range of stored WAL is worth to a part of the way. A timeline's first segment begins with what the one before had
/// in it; it is needed whole.
fn clipped(leg: &Leg, range: Covered, size: SegmentSize) -> Covered {
    let first = SegmentName::holding(leg.timeline, leg.from, size);
    let start = match range.start <= first.start() {
        true => range.start.max(first.start()),
        false => range.start.max(first.end().unwrap_or(range.start)),
    };
    Covered {
        start,
        end: leg.to.map_or(range.end, |to| to.min(range.end)),
    }
}

/// The history of the timeline that is chosen.
async fn history(
    repository: &Repository,
    manifest: &BaseManifest,
    choice: TimelineChoice,
) -> Result<TimelineHistory, PhysicalError> {
    let system = system_identifier(manifest)?;
    let own = manifest.start_timeline;
    let alone = TimelineHistory::of_first(own);
    let of = async |timeline: Timeline| {
        let contents = repository.fetch_wal_history(system, timeline).await?;
        let history = contents.map(|contents| TimelineHistory::parse(timeline, &contents));
        let history = history.transpose().map_err(|error| PhysicalError::Damaged {
            id: manifest.id.clone(),
            reason: format!("its WAL can't be followed: {error}"),
        })?;
        let comes_from_it = |history: &TimelineHistory| {
            let entry = history.entry(own);
            entry.is_some_and(|entry| entry.end.is_none_or(|end| end >= manifest.stop_lsn))
        };
        Ok::<_, PhysicalError>(history.filter(comes_from_it))
    };
    match choice {
        TimelineChoice::Current => Ok(alone),
        TimelineChoice::Number(timeline) if timeline == own => Ok(alone),
        TimelineChoice::Number(timeline) => match of(timeline).await? {
            Some(history) => Ok(history),
            None => Err(PhysicalError::Refused {
                message: format!(
                    "timeline {timeline} doesn't come from backup {}, which ended at {} of timeline {own}",
                    manifest.id, manifest.stop_lsn
                ),
                hint: "leave --timeline out for the newest one that does; 'pgkeep wal status' shows all"
                    .to_owned(),
            }),
        },
        TimelineChoice::Latest => {
            let timelines = repository.wal_timelines(system).await?;
            for timeline in timelines.into_iter().rev().filter(|timeline| *timeline > own) {
                if let Some(history) = of(timeline).await? {
                    return Ok(history);
                }
            }
            Ok(alone)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn timeline(number: u32) -> Timeline {
        Timeline::new(number).unwrap()
    }

    fn example() -> WalPath {
        let history = TimelineHistory::parse(timeline(4), b"1\t0/300100\twhy\n3\t0/580000\twhy\n").unwrap();
        WalPath {
            legs: legs(&history, timeline(1))
                .into_iter()
                .map(|leg| Leg {
                    is_joined: true,
                    ..leg
                })
                .collect(),
            size: SegmentSize::new(MIB).unwrap(),
            covered: Vec::new(),
        }
    }

    #[test]
    fn a_segment_of_two_timelines_is_the_later_one_s() {
        let path = example();
        assert_eq!(path.timeline(), Some(timeline(4)));
        assert_eq!(path.in_words(), "1, from 0/300100 on 3, from 0/580000 on 4");
        let names: Vec<String> = path
            .segments(Lsn::new(MIB + 40), Lsn::new(7 * MIB))
            .map(|name| name.to_string())
            .collect();
        assert_eq!(
            names,
            [
                "000000010000000000000001",
                "000000010000000000000002",
                "000000030000000000000003",
                "000000030000000000000004",
                "000000040000000000000005",
                "000000040000000000000006",
            ]
        );
        assert_eq!(path.segments(Lsn::new(MIB), Lsn::new(MIB)).count(), 1);
        // Where the later one's isn't there, the earlier one's is what there is.
        let mut torn = example();
        torn.legs[1].is_joined = false;
        let names: Vec<u32> = torn
            .segments(Lsn::new(2 * MIB), Lsn::new(5 * MIB))
            .map(|name| name.timeline().as_u32())
            .collect();
        assert_eq!(names, [1, 1, 3]);
        // A backup that was taken on a later one doesn't follow what came before.
        let history = TimelineHistory::parse(timeline(4), b"1\t0/300100\twhy\n3\t0/580000\twhy\n").unwrap();
        assert_eq!(legs(&history, timeline(3)).len(), 2);
        assert_eq!(legs(&history, timeline(2)).len(), 0);
    }

    #[test]
    fn a_timeline_is_worth_its_own_part_alone() {
        let path = example();
        let range = |start: u64, end: u64| Covered {
            start: Lsn::new(start),
            end: Lsn::new(end),
        };
        let of = |leg: usize, covered| clipped(&path.legs[leg], covered, path.size);
        assert_eq!(of(0, range(MIB, 9 * MIB)), range(MIB, 3 * MIB + 0x100));
        assert_eq!(of(1, range(2 * MIB, 9 * MIB)), range(3 * MIB, 0x58_0000));
        // Its first segment isn't whole.
        assert_eq!(of(1, range(3 * MIB + 8, 9 * MIB)), range(4 * MIB, 0x58_0000));
        assert_eq!(of(2, range(6 * MIB + 8, 9 * MIB)), range(6 * MIB + 8, 9 * MIB));
    }
}
