use std::collections::BTreeMap;

use pgkeep_pgformat::Lsn;

/// Which positions of the WAL there are: ranges that don't touch each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges {
    /// Start and end, which isn't part of it.
    ranges: BTreeMap<u64, u64>,
}

impl Ranges {
    /// Adds the positions from `start` up to, but not with, `end`.
    pub fn insert(&mut self, start: Lsn, end: Lsn) {
        let (mut start, mut end) = (start.as_u64(), end.as_u64());
        if start >= end {
            return;
        }
        // Those that begin at or before the new one's end, from the last one on, as long as they reach it.
        while let Some((&other_start, &other_end)) = self.ranges.range(..=end).next_back() {
            if other_end < start {
                break;
            }
            self.ranges.remove(&other_start);
            start = start.min(other_start);
            end = end.max(other_end);
        }
        self.ranges.insert(start, end);
    }

    /// How far all is there from a position on: the position itself if it isn't.
    pub fn end_from(&self, start: Lsn) -> Lsn {
        match self.ranges.range(..=start.as_u64()).next_back() {
            Some((_, &end)) => Lsn::new(end.max(start.as_u64())),
            None => start,
        }
    }

    /// The ranges in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (Lsn, Lsn)> + '_ {
        self.ranges
            .iter()
            .map(|(start, end)| (Lsn::new(*start), Lsn::new(*end)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn they_are_what_was_put_in(inserted in proptest::collection::vec((0_u64..60, 0_u64..12), 0..40)) {
            let (mut ranges, mut model) = (Ranges::default(), BTreeSet::new());
            for (start, length) in inserted {
                ranges.insert(Lsn::new(start), Lsn::new(start + length));
                model.extend(start..start + length);
            }
            let found: Vec<_> = ranges.iter().map(|(start, end)| (start.as_u64(), end.as_u64())).collect();
            let flat: BTreeSet<u64> = found.iter().flat_map(|(start, end)| *start..*end).collect();
            prop_assert_eq!(&flat, &model);
            for pair in found.windows(2) {
                prop_assert!(pair[0].1 < pair[1].0, "they touch: {:?}", found);
            }
            for start in 0..80_u64 {
                let end = (start..).find(|at| !model.contains(at)).unwrap();
                prop_assert_eq!(ranges.end_from(Lsn::new(start)), Lsn::new(end));
            }
        }
    }
}
