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

/// Reads the summaries of these backups, each as its kind has it.
pub async fn read(repository: &Repository, ids: &[BackupId]) -> Result<Summaries, Failure> {
    let mut summaries = Summaries::default();
    let (bases, dumps): (Vec<&BackupId>, Vec<&BackupId>) =
        ids.iter().partition(|id| id.kind() == BackupKind::Base);
    let mut reading = futures::stream::iter(dumps)
        .map(|id| async move { (id, pgkeep_dump::read_summary(repository, id).await) })
        .buffered(CONCURRENCY);
    while let Some((id, read)) = reading.next().await {
        match read {
            Ok(summary) => _ = summaries.by_id.insert(id.clone(), summary),
            Err(error) => {
                let repository = match &error {
                    DumpError::Repository(error) => Some(error),
                    _ => None,
                };
                let why = Why::of(repository, error.is_locked());
                summaries.unread(id, error, why)?;
            }
        }
    }
    let mut reading = futures::stream::iter(bases)
        .map(|id| async move { (id, pgkeep_physical::read_summary(repository, id).await) })
        .buffered(CONCURRENCY);
    while let Some((id, read)) = reading.next().await {
        match read {
            Ok(summary) => _ = summaries.bases.insert(id.clone(), summary),
            Err(error) => {
                let repository = match &error {
                    PhysicalError::Repository(error) => Some(error),
                    _ => None,
                };
                let why = Why::of(repository, error.is_locked());
                summaries.unread(id, error, why)?;
            }
        }
    }
    Ok(summaries)
}

/// Why a summary couldn't be read.
enum Why {
    /// There is no key, or another one.
    Locked,
    /// The backup was removed meanwhile.
    Gone,
    /// It is damaged.
    Damaged,
    /// The store doesn't answer, so the others can't be read either.
    Unreachable,
}

impl Why {
    /// By what the repository said, if it was the repository.
    fn of(error: Option<&RepositoryError>, is_locked: bool) -> Self {
        match error {
            _ if is_locked => Self::Locked,
            Some(RepositoryError::Removed { .. }) => Self::Gone,
            Some(RepositoryError::Store(error))
                if !matches!(error.kind(), StoreErrorKind::NotFound | StoreErrorKind::ShortBody) =>
            {
                Self::Unreachable
            }
            _ => Self::Damaged,
        }
    }
}

impl Summaries {
    /// Takes down why one couldn't be read, unless it is a reason to read no more.
    fn unread(&mut self, id: &BackupId, error: impl Classified, why: Why) -> Result<(), Failure> {
        match why {
            Why::Locked => {
                let mend = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
                self.locked = Some(format!("{error}{mend}"));
            }
            Why::Gone => _ = self.gone.insert(id.clone()),
            Why::Damaged => {
                let what = format!("{id}: its summary can't be read: {error}");
                self.damaged.insert(id.clone(), what);
            }
            Why::Unreachable => return Err(error.into()),
        }
        Ok(())
    }
}
