//! Whether a dump's objects are all there, by their names and sizes: one request, no object is read.

use pgkeep_base::BackupId;
use pgkeep_repository::object::ObjectRef;
use pgkeep_repository::{Repository, RepositoryError};

use crate::error::DumpError;
use crate::manifest::{DatabaseManifest, DumpManifest};
use crate::objects::{database_refs, object_refs};
use crate::restore::Selection;

/// Refuses a dump of which an object is missing, or has another size than its manifest says.
///
/// # Errors
/// [`DumpError::ObjectsMissing`]; whatever the store says.
pub async fn require_all(
    repository: &Repository,
    id: &BackupId,
    manifest: &DumpManifest,
) -> Result<(), DumpError> {
    require(repository, id, &object_refs(manifest)).await
}

/// The same for the databases that are to be restored whole.
pub(crate) async fn require_databases<'a>(
    repository: &Repository,
    id: &BackupId,
    manifest: &DumpManifest,
    databases: impl Iterator<Item = &'a DatabaseManifest>,
) -> Result<(), DumpError> {
    let mut objects: Vec<ObjectRef> = databases.flat_map(database_refs).collect();
    objects.extend(manifest.globals.clone());
    require(repository, id, &objects).await
}

/// The same for some tables of a database. What a hypertable needs is found when it is read, into a scratch database.
pub(crate) async fn require_selected(
    repository: &Repository,
    id: &BackupId,
    database: &DatabaseManifest,
    selection: &Selection,
) -> Result<(), DumpError> {
    let chosen = database.data.iter().filter(|data| {
        let mut segments = data.segments.iter();
        segments.any(|segment| selection.places.contains(&segment.relation))
    });
    let mut objects: Vec<ObjectRef> = chosen.map(|data| data.object.clone()).collect();
    objects.extend(database.schema.iter().cloned());
    objects.push(database.dependents.clone());
    require(repository, id, &objects).await
}

async fn require(repository: &Repository, id: &BackupId, objects: &[ObjectRef]) -> Result<(), DumpError> {
    let names = objects.iter().map(|object| object.name.as_str());
    let sizes = repository.stored_sizes(id, names).await?;
    let mut missing = objects
        .iter()
        .filter(|object| sizes.get(&object.name) != Some(&object.stored_bytes));
    let Some(first) = missing.next() else {
        return Ok(());
    };
    let others = missing.count() as u64;
    // It may have been removed between its manifest and this.
    if !repository.state(id).await?.is_there() {
        return Err(RepositoryError::Removed { id: id.to_string() }.into());
    }
    Err(DumpError::ObjectsMissing {
        id: id.to_string(),
        first: first.name.clone(),
        found_bytes: sizes.get(&first.name).copied(),
        others,
    })
}
