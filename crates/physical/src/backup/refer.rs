//! What a new backup needs of earlier ones: in its list of packs, and whether that is there when the backup is.

use std::sync::Arc;

use pgkeep_base::BackupId;
use pgkeep_repository::map::{PackInfo, PackTable};
use pgkeep_repository::object::ObjectRef;
use pgkeep_repository::{Repository, RepositoryError};

use super::before::{Before, facts_of};
use super::blocks::BlockMapWriter;
use super::cache::CacheFiles;
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

/// Keeps what a backup holds for the next one. Best effort: without it the next one reads it in the repository, or stores
/// everything.
pub async fn remember(
    files: CacheFiles,
    map: BlockMapWriter,
    table: PackTable,
    manifest: &BaseManifest,
    manifest_hash: String,
) {
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
