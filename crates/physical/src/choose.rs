//! Which base backup is meant.

use pgkeep_base::{BackupId, BackupKind};
use pgkeep_repository::backups::BackupState;
use pgkeep_repository::{Repository, RepositoryError, layout};

use crate::error::PhysicalError;
use crate::manifest::BaseManifest;
use crate::read::read_manifest;

const LATEST: &str = "latest";

/// Finds the base backup that `text` names: an id, the beginning of one, or `latest`, whatever can be read of it.
///
/// # Errors
/// There is none; the store's.
pub async fn find(repository: &Repository, text: &str) -> Result<BackupId, PhysicalError> {
    Ok(repository.find(BackupKind::Base, text).await?)
}

/// Finds the base backup that `text` names, to read from it. `latest` is the newest for which `suits` says so, with what it found;
/// one that can't be read is never passed over in silence.
///
/// # Errors
/// There is none, or none that suits, with what the oldest said; the store's; a missing or wrong key.
pub async fn choose<T>(
    repository: &Repository,
    text: &str,
    suits: impl AsyncFn(&BaseManifest) -> Result<Result<T, PhysicalError>, PhysicalError>,
) -> Result<(BaseManifest, T), PhysicalError> {
    if text != LATEST {
        let id = find(repository, text).await?;
        let state = repository.state(&id).await?;
        let manifest = read_there(repository, &id, state).await?;
        let found = suits(&manifest).await??;
        return Ok((manifest, found));
    }
    let mut refused = None;
    for id in repository.ids(BackupKind::Base).await? {
        let state = repository.state(&id).await?;
        if !state.is_there() {
            continue;
        }
        let manifest = match read_there(repository, &id, state).await {
            Ok(manifest) => manifest,
            Err(error) if error.is_removed() => continue,
            Err(error) if error.is_of_one_backup() && !error.is_locked() => {
                return Err(PhysicalError::Refused {
                    message: format!(
                        "base backup {id} can't be read, and which one is meant can't be told without it: {error}"
                    ),
                    hint: "name another one by its id in place of 'latest'; 'pgkeep list' shows them"
                        .to_owned(),
                });
            }
            Err(error) => return Err(error),
        };
        match suits(&manifest).await? {
            Ok(found) => return Ok((manifest, found)),
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.unwrap_or_else(|| repository.no_backup().into()))
}

async fn read_there(
    repository: &Repository,
    id: &BackupId,
    state: BackupState,
) -> Result<BaseManifest, PhysicalError> {
    if state == BackupState::Damaged {
        let key = layout::backup_object(repository.cluster(), id, layout::MANIFEST);
        let reason = "it is no manifest".to_owned();
        return Err(RepositoryError::Malformed { key, reason }.into());
    }
    read_manifest(repository, id).await
}
