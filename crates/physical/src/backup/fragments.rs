//! Which packs of the backup before are given up: the bound on what backups keep that nobody needs.
//!
//! The packs that a backup refers to hold, as stored, at most twice what the backup before needed of them, plus what it stored
//! itself. A pack of which the backup before needs less than half is given up: its needed blocks are stored again when they come
//! by. These are fewer than the blocks that have died in it, and each dies once: so at most as much is stored again as has
//! changed.

/// Whether a pack of so many blocks is given up, of which the backup before needs so many. What a block takes as stored is its
/// pack's size by their number.
pub fn is_given_up(blocks: u32, needed: u32) -> bool {
    u64::from(needed) * 2 < u64::from(blocks)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    const PACK_BLOCKS: u32 = 64;
    const BACKUPS: u32 = 40;
    const CLUSTERS: u64 = 12;

    /// A cluster's pages, each with the number of its contents, and what the last backup made of them.
    struct Simulation {
        random: StdRng,
        pages: BTreeMap<u32, u64>,
        /// Where each page lies by the newest backup: its contents and its pack.
        map: BTreeMap<u32, (u64, u32)>,
        /// Size as stored, and number of blocks, of every pack that was ever stored.
        packs: Vec<(u64, u32)>,
        contents: u64,
    }

    impl Simulation {
        /// Writes that have some pattern: everywhere, in one region, or nowhere; and files that come and go.
        fn change(&mut self) {
            let share = [0.0, 0.001, 0.02, 0.3, 0.9][self.random.random_range(0..5)];
            let region = self.random.random_range(0..5_u32) * 400;
            let everywhere = self.random.random_bool(0.5);
            let dropped = self.random.random_range(0..40_u32);
            for (page, contents) in &mut self.pages {
                let inside = everywhere || (region..region + 400).contains(page);
                if inside && self.random.random_bool(share) {
                    self.contents += 1;
                    *contents = self.contents;
                }
            }
            if self.random.random_bool(0.2) {
                self.pages.retain(|page, _| page / 50 != dropped);
            }
            if self.random.random_bool(0.2) {
                for page in 0..50 {
                    self.contents += 1;
                    self.pages.insert(dropped * 50 + page, self.contents);
                }
            }
        }

        /// Stored blocks, of these those that hadn't changed, and the bound of what the backup refers to.
        fn backup(&mut self) -> (u64, u64) {
            let mut needed = BTreeMap::<u32, u32>::new();
            self.map
                .values()
                .for_each(|(_, pack)| *needed.entry(*pack).or_default() += 1);
            let given_up: BTreeSet<u32> = needed
                .iter()
                .filter(|(pack, needed)| is_given_up(self.packs[**pack as usize].1, **needed))
                .map(|(pack, _)| *pack)
                .collect();
            let (mut map, mut new, mut again) = (BTreeMap::new(), Vec::new(), 0);
            for (page, contents) in &self.pages {
                match self.map.get(page) {
                    Some((held, pack)) if held == contents && !given_up.contains(pack) => {
                        map.insert(*page, (*held, *pack));
                    }
                    held => {
                        again += u64::from(held.is_some_and(|(held, _)| held == contents));
                        new.push((*page, *contents));
                    }
                }
            }
            let referred: BTreeSet<u32> = map.values().map(|(_, pack)| *pack).collect();
            let held: u64 = referred.iter().map(|pack| self.packs[*pack as usize].0).sum();
            let needed_bytes: f64 = referred
                .iter()
                .map(|pack| {
                    let (stored_bytes, blocks) = self.packs[*pack as usize];
                    stored_bytes as f64 * f64::from(needed[pack]) / f64::from(blocks)
                })
                .sum();
            assert!(
                held as f64 <= 2.0 * needed_bytes + 0.001,
                "{held} bytes for {needed_bytes} that are needed"
            );
            for some in new.chunks(PACK_BLOCKS as usize) {
                let number = u32::try_from(self.packs.len()).unwrap();
                let blocks = u32::try_from(some.len()).unwrap();
                // Blocks compress as they like.
                let each = self.random.random_range(100..8000_u64);
                self.packs.push((each * u64::from(blocks), blocks));
                map.extend(some.iter().map(|(page, contents)| (*page, (*contents, number))));
            }
            self.map = map;
            (new.len() as u64, again)
        }
    }

    #[test]
    fn what_is_kept_and_what_is_stored_again_is_bounded_over_many_backups() {
        let first = pgkeep_testkit::seed();
        for seed in (0..CLUSTERS).map(|number| first.wrapping_add(number)) {
            println!("seed {seed}");
            let mut simulation = Simulation {
                random: StdRng::seed_from_u64(seed),
                pages: (0..2000).map(|page| (page, u64::from(page))).collect(),
                map: BTreeMap::new(),
                packs: Vec::new(),
                contents: 2000,
            };
            let (mut stored, mut stored_again) = simulation.backup();
            for _ in 1..BACKUPS {
                simulation.change();
                let (new, again) = simulation.backup();
                stored += new;
                stored_again += again;
                // What has died is all that was stored and isn't needed by the newest backup. What was stored again left
                // its first copy behind, which died with its pack: that is no change of the cluster's.
                let died = stored - simulation.map.len() as u64;
                assert!(
                    stored_again <= died - stored_again,
                    "seed {seed}: {stored_again} again, {died} died"
                );
            }
        }
    }
}
