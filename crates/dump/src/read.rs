//! Reading what a dump says of itself.

use pgkeep_base::BackupId;
use pgkeep_repository::integrity::{is_object_name, is_own_object_name};
use pgkeep_repository::object::ObjectRef;
use pgkeep_repository::{Repository, RepositoryError, layout};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::DumpError;
use crate::limits::{self, Limit};
use crate::manifest::{DatabaseManifest, DumpManifest, DumpSummary, MANIFEST_FORMAT};
use crate::objects::{object_refs, other_refs};

/// What every version of the manifest has.
#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

/// Reads a dump's manifest and checks that it hangs together: nothing in it leads out of the dump's folder or out of
/// its own lists.
///
/// # Errors
/// The store's; a missing or wrong key; [`RepositoryError::NewerFormat`]; [`DumpError::Manifest`].
pub async fn read_manifest(repository: &Repository, id: &BackupId) -> Result<DumpManifest, DumpError> {
    let text = read_whole(repository, id, layout::MANIFEST, &limits::MANIFEST).await?;
    let FormatOnly { format } = parse(id, &text)?;
    if format > MANIFEST_FORMAT {
        let what = format!("the dump {id}");
        return Err(RepositoryError::NewerFormat {
            what,
            found: format,
            known: MANIFEST_FORMAT,
        }
        .into());
    }
    let manifest: DumpManifest = parse(id, &text)?;
    check(&manifest, id).map_err(|reason| DumpError::Manifest {
        id: id.to_string(),
        reason,
    })?;
    Ok(manifest)
}

/// Reads a dump's summary.
///
/// # Errors
/// The store's; a missing or wrong key; [`DumpError::Manifest`].
pub async fn read_summary(repository: &Repository, id: &BackupId) -> Result<DumpSummary, DumpError> {
    let text = read_whole(repository, id, layout::SUMMARY, &limits::SUMMARY).await?;
    parse(id, &text)
}

async fn read_whole(
    repository: &Repository,
    id: &BackupId,
    name: &str,
    limit: &Limit,
) -> Result<Vec<u8>, DumpError> {
    let contents = repository.contents_unchecked(id, name, limit.bytes_max).await?;
    Ok(contents.collect(limit.size_max()).await?)
}

fn parse<T: DeserializeOwned>(id: &BackupId, text: &[u8]) -> Result<T, DumpError> {
    serde_json::from_slice(text).map_err(|error| DumpError::Manifest {
        id: id.to_string(),
        reason: error.to_string(),
    })
}

pub(crate) fn check(manifest: &DumpManifest, id: &BackupId) -> Result<(), String> {
    if manifest.id != id.to_string() {
        return Err(format!("it belongs to {}", manifest.id));
    }
    for object in object_refs(manifest) {
        check_object(&object, true)?;
    }
    for object in other_refs(manifest) {
        check_object(&object, false)?;
    }
    manifest.databases.iter().try_for_each(check_database)?;
    check_sums(manifest)
}

/// Whoever adds sizes or rows up, of whatever part of the dump, needn't fear for an overflow.
fn check_sums(manifest: &DumpManifest) -> Result<(), String> {
    let relations = || manifest.databases.iter().flat_map(|database| &database.relations);
    let data = || manifest.databases.iter().flat_map(|database| &database.data);
    let segments = || data().flat_map(|data| &data.segments);
    let objects = object_refs(manifest);
    let sum = |sizes: &mut dyn Iterator<Item = u64>| {
        let mut sizes = sizes;
        Iterator::try_fold(&mut sizes, 0_u64, u64::checked_add)
    };
    let sums = [
        sum(&mut objects.iter().map(|object| object.stored_bytes)),
        sum(&mut objects.iter().map(|object| object.plain_bytes)),
        sum(&mut relations().map(|relation| relation.rows)),
        sum(&mut relations().map(|relation| relation.plain_bytes)),
        sum(&mut relations().filter_map(|relation| relation.compressed_rows)),
        sum(&mut segments().map(|segment| segment.rows)),
        sum(&mut segments().map(|segment| segment.bytes)),
    ];
    if sums.iter().any(Option::is_none) {
        return Err("its sizes add up to more than any dump can hold".to_owned());
    }
    Ok(())
}

/// Names become keys of the store, and hashes file contents: neither may be just anything. Rows may lie in the folder of an
/// earlier dump.
fn check_object(object: &ObjectRef, is_data: bool) -> Result<(), String> {
    let named = match is_data {
        true => is_object_name(&object.name),
        false => is_own_object_name(&object.name),
    };
    if !named {
        return Err(format!(
            "'{}' is no name of an object",
            object.name.escape_debug()
        ));
    }
    let hexadecimal =
        object.hash.len() == blake3::OUT_LEN * 2 && object.hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    if hexadecimal {
        Ok(())
    } else {
        Err(format!("the hash of {} is not one", object.name))
    }
}

fn check_database(database: &DatabaseManifest) -> Result<(), String> {
    for data in &database.data {
        let stranger = data
            .segments
            .iter()
            .find(|segment| segment.relation as usize >= database.relations.len());
        if let Some(segment) = stranger {
            return Err(format!(
                "{} holds rows of a relation {} that isn't listed",
                data.object.name, segment.relation
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(name: &str) -> ObjectRef {
        let hash = blake3::hash(b"").to_hex().to_string();
        ObjectRef {
            name: name.to_owned(),
            stored_bytes: 0,
            hash,
            plain_bytes: 0,
        }
    }

    #[test]
    fn sizes_that_no_dump_can_have_are_refused() {
        let hash = blake3::hash(b"").to_hex().to_string();
        let object = json!({"name": "d1/x", "stored_bytes": 1, "hash": hash, "plain_bytes": 2});
        let mut data = object.clone();
        data["segments"] = json!([{"relation": 1, "rows": 1, "bytes": 2}]);
        let relation = json!({"schema": "public", "name": "t", "kind": "table", "oid": 1, "columns": "\"a\"", "rows": 1,
            "hash": hash, "plain_bytes": 2});
        let mut manifest: DumpManifest = serde_json::from_value(json!({
            "format": 1, "id": "d20261122T020000Z-7f3a9c", "cluster": "main", "pgkeep_version": "0.1.0",
            "started_at": "2026-11-22T02:00:00Z", "finished_at": "2026-11-22T02:10:00Z", "system_identifier": "7",
            "server_version": "16.4", "server_version_num": 160_004, "globals": null,
            "databases": [{
                "name": "app", "folder": "d1", "snapshot_at": "2026-11-22T02:00:00Z", "extensions": [],
                "properties": {"owner": "o", "encoding": "UTF8", "locale_provider": "c", "collate": "C", "ctype": "C",
                    "connection_limit": -1, "is_template": false, "settings": []},
                "pg_dump_version": "16.4", "schema": [], "dependents": object, "large_objects": [],
                "materialized_views": [], "relations": [relation, relation], "data": [data, data],
            }],
            "totals": {"objects": 1, "stored_bytes": 1, "plain_bytes": 1, "relations": 1, "rows": 1},
        }))
        .unwrap();
        let id: BackupId = manifest.id.parse().unwrap();
        assert_eq!(check(&manifest, &id), Ok(()));
        manifest.databases[0].relations[0].rows = u64::MAX;
        assert!(check(&manifest, &id).unwrap_err().contains("add up to more"));
        manifest.databases[0].relations[0].rows = 0;
        manifest.databases[0].data[0].object.stored_bytes = u64::MAX;
        assert!(check(&manifest, &id).unwrap_err().contains("add up to more"));
    }

    #[test]
    fn names_that_lead_out_of_the_folder_are_refused() {
        assert_eq!(check_object(&object("d1/000001.sql.zst"), false), Ok(()));
        for bad in ["", "/x", "../manifest", "d1//x", "d1/./x", "d1/..", "d1\n"] {
            assert!(check_object(&object(bad), true).is_err(), "{bad}");
        }
        let earlier = object("../d20261122T020000Z-7f3a9c/d1/000001.copy.zst");
        assert_eq!(check_object(&earlier, true), Ok(()));
        assert!(check_object(&earlier, false).is_err());
        let short = ObjectRef {
            hash: "00".to_owned(),
            ..object("x")
        };
        assert!(check_object(&short, true).is_err());
    }
}
