//! Reading what a dump says of itself.

use pgkeep_base::BackupId;
use pgkeep_repository::object::ObjectRef;
use pgkeep_repository::{Repository, RepositoryError, layout};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::DumpError;
use crate::manifest::{DatabaseManifest, DumpManifest, DumpSummary, MANIFEST_FORMAT};
use crate::run::object_refs;

/// A relation takes some 500 bytes of a manifest: a quarter of a million of them fit.
const MANIFEST_BYTES_MAX: u64 = 128 << 20;
const SUMMARY_BYTES_MAX: u64 = 4 << 20;

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
    let key = layout::backup_object(repository.cluster(), id, layout::MANIFEST);
    let text = read_whole(repository, &key, MANIFEST_BYTES_MAX).await?;
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
    let key = layout::backup_object(repository.cluster(), id, layout::SUMMARY);
    let text = read_whole(repository, &key, SUMMARY_BYTES_MAX).await?;
    parse(id, &text)
}

async fn read_whole(repository: &Repository, key: &str, bytes_max: u64) -> Result<Vec<u8>, DumpError> {
    let contents = repository.contents(key, bytes_max, None).await?;
    Ok(contents
        .collect(key, usize::try_from(bytes_max).unwrap_or(usize::MAX))
        .await?)
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
        check_object(&object)?;
    }
    manifest.databases.iter().try_for_each(check_database)
}

/// Names become keys of the store, and hashes file contents: neither may be just anything.
fn check_object(object: &ObjectRef) -> Result<(), String> {
    let inside = object
        .name
        .split('/')
        .all(|part| !matches!(part, "" | "." | ".."));
    if !inside {
        return Err(format!("'{}' is no name of an object", object.name));
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
    fn names_that_lead_out_of_the_folder_are_refused() {
        assert_eq!(check_object(&object("d1/000001.sql.zst")), Ok(()));
        for bad in ["", "/x", "../manifest", "d1//x", "d1/./x", "d1/.."] {
            assert!(check_object(&object(bad)).is_err(), "{bad}");
        }
        let short = ObjectRef {
            hash: "00".to_owned(),
            ..object("x")
        };
        assert!(check_object(&short).is_err());
    }
}
