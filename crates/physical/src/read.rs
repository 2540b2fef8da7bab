//! Reading what a base backup says of itself.

use pgkeep_base::{BackupId, BackupKind};
use pgkeep_pgformat::SegmentSize;
use pgkeep_repository::integrity::is_own_object_name;
use pgkeep_repository::object::ObjectRef;
use pgkeep_repository::pack::is_block_size;
use pgkeep_repository::{Repository, RepositoryError, layout};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::PhysicalError;
use crate::manifest::{BaseManifest, BaseSummary, MANIFEST_BYTES_MAX, MANIFEST_FORMAT, SUMMARY_BYTES_MAX};

/// The length of a BLAKE3 hash, or a key, in hexadecimal.
const HEX_DIGITS: usize = 64;

/// What every version of the manifest has.
#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

/// Reads a backup's manifest and checks that it hangs together.
///
/// # Errors
/// The store's; a missing or wrong key; [`RepositoryError::NewerFormat`]; [`PhysicalError::Manifest`].
pub async fn read_manifest(repository: &Repository, id: &BackupId) -> Result<BaseManifest, PhysicalError> {
    let text = read_whole(repository, id, layout::MANIFEST, MANIFEST_BYTES_MAX).await?;
    let FormatOnly { format } = parse(id, &text)?;
    if format > MANIFEST_FORMAT {
        return Err(RepositoryError::NewerFormat {
            what: format!("the backup {id}"),
            found: format,
            known: MANIFEST_FORMAT,
        }
        .into());
    }
    let manifest: BaseManifest = parse(id, &text)?;
    check(&manifest, id).map_err(|reason| PhysicalError::Manifest {
        id: id.to_string(),
        reason,
    })?;
    Ok(manifest)
}

/// Reads a backup's summary.
///
/// # Errors
/// The store's; a missing or wrong key; [`PhysicalError::Manifest`].
pub async fn read_summary(repository: &Repository, id: &BackupId) -> Result<BaseSummary, PhysicalError> {
    let text = read_whole(repository, id, layout::SUMMARY, SUMMARY_BYTES_MAX).await?;
    parse(id, &text)
}

async fn read_whole(
    repository: &Repository,
    id: &BackupId,
    name: &str,
    bytes_max: usize,
) -> Result<Vec<u8>, PhysicalError> {
    let contents = repository.contents_unchecked(id, name, bytes_max as u64).await?;
    Ok(contents.collect(bytes_max).await?)
}

fn parse<T: DeserializeOwned>(id: &BackupId, text: &[u8]) -> Result<T, PhysicalError> {
    serde_json::from_slice(text).map_err(|error| PhysicalError::Manifest {
        id: id.to_string(),
        reason: error.to_string(),
    })
}

fn check(manifest: &BaseManifest, id: &BackupId) -> Result<(), String> {
    if manifest.id != id.to_string() || id.kind() != BackupKind::Base {
        return Err(format!("it belongs to {}", manifest.id));
    }
    if !is_block_size(manifest.block_bytes) {
        return Err("its blocks have a size that PostgreSQL has not".to_owned());
    }
    SegmentSize::new(manifest.wal_segment_bytes).map_err(|error| error.to_string())?;
    if manifest.system_identifier.parse::<u64>().is_err() {
        return Err("its system identifier is none".to_owned());
    }
    if manifest.start_timeline != manifest.stop_timeline || manifest.start_lsn > manifest.stop_lsn {
        return Err("it ends before it begins, or on another timeline".to_owned());
    }
    if !is_hex(&manifest.fingerprint_key) {
        return Err("the key of its fingerprints is none".to_owned());
    }
    manifest
        .files
        .iter()
        .chain([&manifest.packs])
        .try_for_each(check_object)
}

fn check_object(object: &ObjectRef) -> Result<(), String> {
    if !is_own_object_name(&object.name) || !is_hex(&object.hash) {
        return Err(format!(
            "'{}' is no name of an object, or its hash is none",
            object.name.escape_debug()
        ));
    }
    Ok(())
}

fn is_hex(text: &str) -> bool {
    text.len() == HEX_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
