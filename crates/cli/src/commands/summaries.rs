//! The summaries of many backups, as far as the key opens them.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use pgkeep_base::{BackupId, BackupKind, Classified};
use pgkeep_dump::DumpError;
use pgkeep_dump::manifest::DumpSummary;
use pgkeep_physical::PhysicalError;
use pgkeep_physical::manifest::BaseSummary;
use pgkeep_repository::{Repository, RepositoryError};
use pgkeep_store::StoreErrorKind;

use crate::exit::Failure;

/// Summaries read at once.
const CONCURRENCY: usize = 8;

/// What could be read.
#[derive(Default)]
pub struct Summaries {
    /// By the dump's id.
    pub by_id: BTreeMap<BackupId, DumpSummary>,
    /// By the base backup's id.
    pub bases: BTreeMap<BackupId, BaseSummary>,
    /// Why some could not be opened: there is no key, or another one.
    pub locked: Option<String>,
    /// What is wrong with others.
    pub damaged: BTreeMap<BackupId, String>,
    /// Dumps that were removed meanwhile.
    pub gone: BTreeSet<BackupId>,
}

/// Reads the summaries of base backups.
pub async fn read_bases(
    repository: &Repository,
    ids: &[BackupId],
    summaries: &mut Summaries,
) -> Result<(), Failure> {
    let bases = ids.iter().filter(|id| id.kind() == BackupKind::Base);
    let mut reading = futures::stream::iter(bases)
        .map(|id| async move { (id, pgkeep_physical::read_summary(repository, id).await) })
        .buffered(CONCURRENCY);
    while let Some((id, read)) = reading.next().await {
        match read {
            Ok(summary) => {
                summaries.bases.insert(id.clone(), summary);
            }
            Err(error) if error.is_locked() => {
                let mend = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
                summaries.locked = Some(format!("{error}{mend}"));
            }
            Err(error) if error.is_removed() => {
                summaries.gone.insert(id.clone());
            }
            Err(PhysicalError::Repository(RepositoryError::Store(error)))
                if !matches!(error.kind(), StoreErrorKind::NotFound | StoreErrorKind::ShortBody) =>
            {
                return Err(RepositoryError::Store(error).into());
            }
            Err(error) => {
                let what = format!("{id}: its summary can't be read: {error}");
                summaries.damaged.insert(id.clone(), what);
            }
        }
    }
    Ok(())
}

/// Reads the summaries of these dumps.
pub async fn read(repository: &Repository, ids: &[BackupId]) -> Result<Summaries, Failure> {
    let mut summaries = Summaries::default();
    let mut reading = futures::stream::iter(ids)
        .map(|id| async move { (id, pgkeep_dump::read_summary(repository, id).await) })
        .buffered(CONCURRENCY);
    while let Some((id, read)) = reading.next().await {
        match read {
            Ok(summary) => {
                summaries.by_id.insert(id.clone(), summary);
            }
            Err(error) if error.is_locked() => {
                let mend = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
                summaries.locked = Some(format!("{error}{mend}"));
            }
            Err(DumpError::Repository(RepositoryError::Removed { .. })) => {
                summaries.gone.insert(id.clone());
            }
            Err(error) if !is_of_one_object(&error) => return Err(error.into()),
            Err(error) => {
                let what = format!("{id}: its summary can't be read: {error}");
                summaries.damaged.insert(id.clone(), what);
            }
        }
    }
    Ok(summaries)
}

/// Whether the other objects may be read all the same.
fn is_of_one_object(error: &DumpError) -> bool {
    match error {
        DumpError::Repository(RepositoryError::Store(error)) => {
            matches!(error.kind(), StoreErrorKind::NotFound | StoreErrorKind::ShortBody)
        }
        _ => true,
    }
}
