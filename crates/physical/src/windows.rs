//! To which points a repository's base backups and WAL lead back.

use futures::{StreamExt, TryStreamExt};
use pgkeep_base::{BackupId, BackupKind};
use pgkeep_repository::Repository;
use pgkeep_wal::{Beginning, StoredTimeline, Windows, stored_wal};

use crate::error::PhysicalError;
use crate::manifest::BaseSummary;
use crate::read::read_summary;

/// Summaries read at once.
const SUMMARIES_AT_ONCE: usize = 8;

/// A base backup as a beginning of recovery.
pub fn beginning(id: &BackupId, summary: &BaseSummary) -> Beginning {
    Beginning {
        id: id.clone(),
        ended_at: summary.finished_at,
        timeline: summary.timeline,
        start: summary.start_lsn,
        stop: summary.stop_lsn,
    }
}

/// The windows of one database system, by what is stored of its WAL and the summaries of all backups that can be read.
///
/// # Errors
/// Whatever the store says; a missing or wrong key.
pub async fn windows(
    repository: &Repository,
    system_identifier: u64,
    stored: &[StoredTimeline],
) -> Result<Windows, PhysicalError> {
    let system = system_identifier.to_string();
    let ids = repository.ids(BackupKind::Base).await?;
    let read: Vec<Option<Beginning>> = futures::stream::iter(ids)
        .map(|id| async move {
            if !repository.state(&id).await?.is_there() {
                return Ok(None);
            }
            match read_summary(repository, &id).await {
                Ok(summary) => Ok(Some((id, summary))),
                // It is its own trouble, which a list tells.
                Err(error) if error.is_removed() || (error.is_of_one_backup() && !error.is_locked()) => {
                    Ok(None)
                }
                Err(error) => Err(error),
            }
        })
        .buffered(SUMMARIES_AT_ONCE)
        .map_ok(|found| {
            let found = found.filter(|(_, summary)| summary.system_identifier == system);
            found.map(|(id, summary)| beginning(&id, &summary))
        })
        .try_collect()
        .await?;
    let backups: Vec<Beginning> = read.into_iter().flatten().collect();
    Ok(Windows::of(&backups, stored))
}

/// The same where nothing of the WAL is known yet.
///
/// # Errors
/// As [`windows`].
pub async fn windows_of(repository: &Repository, system_identifier: u64) -> Result<Windows, PhysicalError> {
    let stored = stored_wal(repository, system_identifier).await?;
    windows(repository, system_identifier, &stored).await
}
