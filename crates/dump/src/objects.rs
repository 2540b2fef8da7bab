//! The objects that a manifest names, and what sums a dump up.

use pgkeep_repository::layout;
use pgkeep_repository::object::ObjectRef;

use crate::manifest::{Asked, DatabaseManifest, DumpManifest, DumpSummary, Totals};

/// Every object the manifest names.
pub(crate) fn object_refs(manifest: &DumpManifest) -> Vec<ObjectRef> {
    manifest
        .globals
        .iter()
        .cloned()
        .chain(manifest.databases.iter().flat_map(database_refs))
        .collect()
}

/// Those without rows.
pub(crate) fn other_refs(manifest: &DumpManifest) -> Vec<ObjectRef> {
    let others = manifest.databases.iter().flat_map(other_refs_of);
    manifest.globals.iter().chain(others).cloned().collect()
}

/// Every object of one database.
pub(crate) fn database_refs(database: &DatabaseManifest) -> Vec<ObjectRef> {
    let data = database.data.iter().map(|data| &data.object);
    other_refs_of(database).chain(data).cloned().collect()
}

fn other_refs_of(database: &DatabaseManifest) -> impl Iterator<Item = &ObjectRef> {
    let single = [Some(&database.dependents), database.sequences.as_ref()];
    let several = database.schema.iter().chain(&database.large_objects);
    single.into_iter().flatten().chain(several)
}

/// What they and the rows in them add up to; `objects` are all, those included that the manifest doesn't name.
pub(crate) fn totals(manifest: &DumpManifest, objects: &[ObjectRef]) -> Totals {
    let relations = || manifest.databases.iter().flat_map(|database| &database.relations);
    let reused = || {
        objects
            .iter()
            .filter(|object| layout::reference(&object.name).is_some())
    };
    Totals {
        objects: objects.len() as u64,
        stored_bytes: objects.iter().map(|object| object.stored_bytes).sum(),
        plain_bytes: objects.iter().map(|object| object.plain_bytes).sum(),
        relations: relations().count() as u64,
        rows: manifest.databases.iter().map(DatabaseManifest::rows).sum(),
        reused_objects: reused().count() as u64,
        reused_bytes: reused().map(|object| object.stored_bytes).sum(),
    }
}

/// What is read for a list of dumps.
pub(crate) fn summary(manifest: &DumpManifest, asked: Asked) -> DumpSummary {
    let timescaledb = manifest
        .databases
        .iter()
        .find_map(|database| database.timescaledb.as_ref());
    DumpSummary {
        finished_at: manifest.finished_at,
        system_identifier: manifest.system_identifier.clone(),
        server_version: manifest.server_version.clone(),
        databases: manifest
            .databases
            .iter()
            .map(|database| database.name.clone())
            .collect(),
        timescaledb: timescaledb.map(|inventory| inventory.version.clone()),
        annotations: manifest.annotations.clone(),
        totals: manifest.totals,
        partial: asked.partial,
        filters: asked.filters,
        narrowed: Some(asked.narrowed),
    }
}
