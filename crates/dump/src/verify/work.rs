//! What a verification reads: which objects, and in which groups.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use pgkeep_repository::integrity::Checksum;
use pgkeep_repository::object::ObjectRef;
use rand::SeedableRng;
use rand::seq::SliceRandom;

use super::Sample;
use crate::manifest::{DataObject, DatabaseManifest, DumpManifest};
use crate::objects::object_refs;

/// The places of the chosen ones, in order: at random until their sizes make up the fraction, one at least.
pub(super) fn choose(sizes: &[u64], sample: Option<Sample>) -> BTreeSet<usize> {
    let Some(sample) = sample else {
        return (0..sizes.len()).collect();
    };
    let total: u64 = sizes.iter().sum();
    let mut places: Vec<usize> = (0..sizes.len()).collect();
    places.shuffle(&mut rand::rngs::StdRng::seed_from_u64(sample.seed));
    let mut left = total as f64 * sample.fraction.clamp(0.0, 1.0);
    let mut chosen = BTreeSet::new();
    for place in places {
        if left <= 0.0 && !chosen.is_empty() {
            break;
        }
        left -= sizes.get(place).copied().unwrap_or(0) as f64;
        chosen.insert(place);
    }
    chosen
}

/// Data objects that share relations, in order: a relation's hash goes over all of them.
pub(super) struct Group<'a> {
    pub(super) database: &'a DatabaseManifest,
    pub(super) objects: Vec<&'a DataObject>,
    /// Relations all of whose blocks are among these objects.
    pub(super) whole: BTreeSet<u32>,
}

pub(super) struct Work<'a> {
    /// Objects that the manifest doesn't name, by their hash alone.
    pub(super) unnamed: Vec<Checksum>,
    /// Objects without rows.
    pub(super) others: Vec<ObjectRef>,
    pub(super) groups: Vec<Group<'a>>,
}

impl<'a> Work<'a> {
    pub(super) fn choose(manifest: &'a DumpManifest, checksums: &[Checksum], sample: Option<Sample>) -> Self {
        let all: Vec<(usize, &DataObject)> = manifest
            .databases
            .iter()
            .enumerate()
            .flat_map(|(place, database)| database.data.iter().map(move |data| (place, data)))
            .collect();
        let chosen = choose(
            &all.iter()
                .map(|(_, data)| data.object.stored_bytes)
                .collect::<Vec<_>>(),
            sample,
        );
        let mut by_database: BTreeMap<usize, Vec<&DataObject>> = BTreeMap::new();
        for (database, data) in chosen.into_iter().filter_map(|place| all.get(place)) {
            by_database.entry(*database).or_default().push(data);
        }
        let mut groups = Vec::new();
        for (place, objects) in by_database {
            groups.extend(
                manifest
                    .databases
                    .get(place)
                    .into_iter()
                    .flat_map(|database| group(database, &objects)),
            );
        }
        let data: BTreeSet<&str> = all.iter().map(|(_, data)| data.object.name.as_str()).collect();
        let others: Vec<ObjectRef> = object_refs(manifest)
            .into_iter()
            .filter(|object| !data.contains(object.name.as_str()))
            .collect();
        let named: BTreeSet<&str> = others.iter().map(|object| object.name.as_str()).collect();
        let unnamed = checksums
            .iter()
            .filter(|checksum| {
                !named.contains(checksum.name.as_str()) && !data.contains(checksum.name.as_str())
            })
            .cloned()
            .collect();
        Self {
            unnamed,
            others,
            groups,
        }
    }

    pub(super) fn objects(&self) -> u64 {
        let data: usize = self.groups.iter().map(|group| group.objects.len()).sum();
        (self.unnamed.len() + self.others.len() + data) as u64
    }

    pub(super) fn stored_bytes(&self, sizes: &BTreeMap<String, u64>) -> u64 {
        let data = self
            .groups
            .iter()
            .flat_map(|group| &group.objects)
            .map(|data| data.object.stored_bytes);
        let others = self.others.iter().map(|object| object.stored_bytes);
        let unnamed = self
            .unnamed
            .iter()
            .map(|checksum| sizes.get(&checksum.name).copied().unwrap_or(0));
        data.chain(others).chain(unnamed).sum()
    }
}

/// Puts objects that share a relation, directly or by way of others, into one group.
fn group<'a>(database: &'a DatabaseManifest, objects: &[&'a DataObject]) -> Vec<Group<'a>> {
    let mut group_of_object: Vec<usize> = (0..objects.len()).collect();
    let mut group_of_relation: HashMap<u32, usize> = HashMap::new();
    for (place, object) in objects.iter().enumerate() {
        for segment in &object.segments {
            let ours = group_of_object.get(place).copied().unwrap_or(place);
            let theirs = *group_of_relation.entry(segment.relation).or_insert(ours);
            if theirs != ours {
                // Objects are in the order they were written in, so neighbours meet; renaming is cheap.
                group_of_object
                    .iter_mut()
                    .filter(|group| **group == ours)
                    .for_each(|group| *group = theirs);
                group_of_relation
                    .values_mut()
                    .filter(|group| **group == ours)
                    .for_each(|group| *group = theirs);
            }
        }
    }
    let mut groups: BTreeMap<usize, Vec<&DataObject>> = BTreeMap::new();
    for (object, group) in objects.iter().zip(group_of_object) {
        groups.entry(group).or_default().push(object);
    }
    let mut blocks: HashMap<u32, usize> = HashMap::new();
    for segment in database.data.iter().flat_map(|data| &data.segments) {
        *blocks.entry(segment.relation).or_default() += 1;
    }
    let whole = |objects: &[&DataObject]| {
        let mut found: HashMap<u32, usize> = HashMap::new();
        for segment in objects.iter().flat_map(|object| &object.segments) {
            *found.entry(segment.relation).or_default() += 1;
        }
        found
            .into_iter()
            .filter(|(relation, count)| blocks.get(relation) == Some(count))
            .map(|(relation, _)| relation)
            .collect()
    };
    groups
        .into_values()
        .map(|objects| Group {
            database,
            whole: whole(&objects),
            objects,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_at_random_by_bytes_and_the_seed_repeats_it() {
        let sizes: Vec<u64> = (1..=1000).collect();
        let total: u64 = sizes.iter().sum();
        let sample = |fraction, seed| choose(&sizes, Some(Sample { fraction, seed }));
        assert_eq!(sample(0.1, 7), sample(0.1, 7));
        assert_ne!(sample(0.1, 7), sample(0.1, 8));
        for seed in 0..20 {
            let bytes: u64 = sample(0.1, seed).iter().map(|place| sizes[*place]).sum();
            assert!(
                bytes >= total / 10 && bytes <= total / 10 + 1000,
                "{bytes} of {total} with seed {seed}"
            );
        }
        assert_eq!(choose(&sizes, None).len(), 1000);
        assert_eq!(sample(1.0, 7).len(), 1000);
        assert_eq!(sample(0.000_001, 7).len(), 1, "one at least");
        assert!(
            choose(
                &[],
                Some(Sample {
                    fraction: 0.5,
                    seed: 1
                })
            )
            .is_empty()
        );
    }
}
