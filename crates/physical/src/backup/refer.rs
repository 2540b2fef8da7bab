//! What a new backup needs of earlier ones: in its list of packs, and whether that is there when the backup is.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use pgkeep_base::BackupId;
use pgkeep_repository::map::{PackInfo, PackTable, blocks_of};
use pgkeep_repository::object::ObjectRef;
use pgkeep_repository::{Repository, RepositoryError};

use super::before::{self, Before, Found, Wanted, facts_of};
use super::blocks::BlockMapWriter;
use super::cache::CacheFiles;
use super::pieces::Bench;
use super::run::{Prepared, Run};
use super::stages::PackPlace;
use crate::error::PhysicalError;
use crate::manifest::BaseManifest;

/// The list of packs, each named as what it is: of the backup's own folder, or of that of whoever stored it.
pub fn table(
    places: &[PackPlace],
    own: &[PackInfo],
    before: Option<&Arc<Before>>,
) -> Result<PackTable, PhysicalError> {
    let packs = places.iter().map(|place| match place {
        PackPlace::Own(number) => own.get((*number as usize).saturating_sub(1)),
        PackPlace::Before(place) => before.and_then(|before| before.packs.get(*place as usize)),
    });
    let packs = packs.map(|pack| {
        pack.cloned()
            .ok_or_else(|| PhysicalError::internal("a pack is none"))
    });
    Ok(PackTable {
        packs: packs.collect::<Result<_, _>>()?,
    })
}

/// Packs of a list that lie in other backups' folders.
pub fn referred<'a>(table: &'a PackTable, id: &BackupId) -> impl Iterator<Item = &'a PackInfo> + use<'a> {
    let id = id.clone();
    table.packs.iter().filter(move |pack| pack.owner != id)
}

/// How the list of checksums names such a pack.
pub fn as_object(pack: &PackInfo, id: &BackupId) -> ObjectRef {
    ObjectRef {
        name: pack.name_in(id),
        stored_bytes: pack.stored_bytes,
        hash: pack.hash.to_hex().to_string(),
        plain_bytes: 0,
    }
}

/// Whether the packs of earlier backups are there, now that nobody removes them any more. A prune on a host that took the lease
/// for expired may have been faster than the manifest, which then goes again.
pub async fn look_again(
    repository: &Repository,
    id: &BackupId,
    table: &PackTable,
) -> Result<(), PhysicalError> {
    let referred: Vec<(String, u64)> = referred(table, id)
        .map(|pack| (pack.name_in(id), pack.stored_bytes))
        .collect();
    if referred.is_empty() {
        return Ok(());
    }
    let names = referred.iter().map(|(name, _)| name.as_str());
    let sizes = match repository.stored_sizes(id, names).await {
        Ok(sizes) => sizes,
        Err(source) => {
            return Err(PhysicalError::Unconfirmed {
                id: id.to_string(),
                source: Box::new(source),
            });
        }
    };
    let mut missing = referred
        .iter()
        .filter(|(name, bytes)| sizes.get(name) != Some(bytes));
    let Some((first, _)) = missing.next() else {
        return Ok(());
    };
    let others = missing.count() as u64;
    let gone = matches!(repository.state(id).await, Ok(state) if !state.is_there());
    if gone {
        return Err(RepositoryError::Removed { id: id.to_string() }.into());
    }
    repository.take_back(id).await;
    Err(PhysicalError::PacksMissing {
        id: id.to_string(),
        first: first.clone(),
        others,
    })
}

impl Run<'_> {
    /// The backup whose blocks this one refers to.
    pub async fn before(&self, prepared: &Prepared) -> Result<Found, PhysicalError> {
        if self.options.full {
            return Ok(Found::default());
        }
        self.progress.set_phase("reading what the backup before holds");
        let wanted = Wanted {
            system_identifier: prepared.identity.system_identifier,
            block_bytes: prepared.block_bytes,
            recipients: self.destinations.access().recipients(),
        };
        match before::find(self.repository, self.options.cache_directory.as_ref(), &wanted).await {
            // A host may have the right to store and no other.
            Err(error) if error.is_denied() => Ok(Found::without(&error.to_string())),
            found => found,
        }
    }

    fn cache_files(&self) -> Option<CacheFiles> {
        let directory = self.options.cache_directory.as_ref()?;
        Some(CacheFiles::new(directory, self.repository))
    }

    /// What was written of a backup that there isn't, or not as a whole, is of no use.
    pub fn forget_map(&self) {
        if let Some(files) = self.cache_files() {
            files.discard();
        }
    }

    /// Where it is written what this backup holds.
    pub fn map(&self, block_bytes: u32) -> Option<BlockMapWriter> {
        let expected = self.progress.bytes_total.load(Ordering::Relaxed);
        let begun = self.cache_files()?.begin(blocks_of(expected, block_bytes));
        begun
            .inspect_err(|error| {
                tracing::warn!("what this backup holds can't be kept in cache_directory: {error}");
            })
            .ok()
    }

    /// What workers share, and the key of the fingerprints: that of the backup before, so that they can be compared.
    pub fn bench(
        &self,
        block_bytes: u32,
        before: Option<&Arc<Before>>,
    ) -> Result<(Arc<Bench>, [u8; 32]), PhysicalError> {
        let key = match before {
            Some(before) => before.fingerprint_key,
            None => {
                let mut key = [0; 32];
                getrandom::fill(&mut key).map_err(PhysicalError::internal)?;
                key
            }
        };
        let level = self.destinations.access().compression_level;
        let bench = Bench::new(level, key, block_bytes).with_before(before.cloned());
        Ok((Arc::new(bench), key))
    }

    /// Keeps what a backup holds for the next one. Best effort: without it the next one reads it in the repository, or stores
    /// everything.
    pub async fn remember(
        &self,
        map: Option<BlockMapWriter>,
        table: PackTable,
        manifest: &BaseManifest,
        manifest_hash: String,
    ) {
        let (Some(files), Some(map)) = (self.cache_files(), map) else {
            self.forget_map();
            return;
        };
        let facts = facts_of(manifest, manifest_hash);
        let path = files.path();
        let saving = tokio::task::spawn_blocking(move || files.save(map, &table, &facts));
        let saved = saving.await.map_err(std::io::Error::other).flatten();
        if let Err(error) = saved {
            tracing::warn!(
                "what this backup holds can't be kept in {}: {error}",
                path.display()
            );
        }
    }
}
