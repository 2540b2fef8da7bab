//! Removing what the retention policy lets go, and what unfinished backups left behind.
//!
//! The planner (`retention`) decides and explains; here its plan is made from what the repository holds, and carried
//! out under the cluster's lease. Each backup goes manifest first ([`Repository::remove`]), so that a prune that is
//! killed leaves an orphan for the next sweep, never a torn backup. Then the WAL goes that no base backup needs any more.

mod wal;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use pgkeep_base::{BackupId, BackupKind, Classified, Hint, RetryClass};
use pgkeep_store::StoreErrorKind;

use crate::backups::{BackupEntry, BackupState, Swept};
use crate::error::RepositoryError;
use crate::lease::Lease;
use crate::references::References;
use crate::repo::Repository;
use crate::retention::wal::BaseExtent;
use crate::retention::{self, Candidate, Decision, Plan, Policy, Reason};

pub use wal::{SystemWal, TimelinePruned, WalPlan, WalReason, plan_wal};

/// Files that an interrupted write left in a local repository are removed when nobody has touched them this long.
const LEFTOVER_IDLE: Duration = Duration::from_secs(24 * 3600);

/// What pruning needs to know of the backups beyond the repository's own markers.
#[derive(Debug, Default, Clone)]
pub struct PruneInput {
    /// What the (encrypted) summaries say, as far as they could be read. Backups without one are taken for backups of
    /// the whole of one database system.
    pub known: BTreeMap<BackupId, Known>,
    /// Backups that don't say what they are, because that is damaged: none of them is reason to let go of another.
    pub damaged: BTreeSet<BackupId>,
    /// Base backups that don't even say which WAL they need, and why: none is removed.
    pub unread: BTreeMap<BackupId, String>,
}

/// What one backup's summary says.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Known {
    /// The database system.
    pub system_identifier: Option<u64>,
    /// What it holds; empty for everything. Backups of different scope are planned apart: one of a single table is no
    /// reason to let go of the last whole one.
    pub scope: String,
    /// What a base backup needs of the WAL.
    pub base: Option<BaseExtent>,
}

/// What a prune did.
#[derive(Debug, Default)]
pub struct PruneReport {
    /// The plan that was carried out.
    pub plan: Plan,
    /// Backups removed, and the number of objects that went with each.
    pub removed: Vec<(BackupId, u64)>,
    /// Backups that could not be removed, and why. What is left of them without a manifest is swept next time.
    pub failed: Vec<(BackupId, RepositoryError)>,
    /// What unfinished backups had left.
    pub swept: Swept,
    /// Why sweeping stopped, if it did.
    pub sweep_failure: Option<RepositoryError>,
    /// What became of the WAL.
    pub wal: WalPlan,
    /// Why removing WAL stopped, if it did; `wal` then says nothing.
    pub wal_failure: Option<RepositoryError>,
    /// Files of interrupted writes that were removed (local repositories only).
    pub leftovers: u64,
}

/// Why nothing was pruned.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The repository failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The plan would have left no backup that is known to be good.
    #[error("pruning '{cluster}' would leave no good backup, so nothing is removed")]
    NothingGoodLeft {
        /// Of which kind.
        kind: BackupKind,
        /// The cluster's name in the repository.
        cluster: String,
    },
    /// The store refuses every delete.
    #[error("nothing may be deleted from {url}: {source}")]
    DeleteDenied {
        /// The repository.
        url: String,
        /// The first refusal.
        source: RepositoryError,
    },
    /// The user pressed Ctrl-C, or the system asked the process to end.
    #[error("interrupted")]
    Interrupted,
}

impl Classified for PruneError {
    fn retry_class(&self) -> RetryClass {
        match self {
            Self::Repository(error) => error.retry_class(),
            Self::NothingGoodLeft { .. } => RetryClass::Refused,
            Self::DeleteDenied { .. } | Self::Interrupted => RetryClass::Permanent,
        }
    }

    fn hint(&self) -> Option<Hint> {
        match self {
            Self::Repository(error) => error.hint(),
            Self::NothingGoodLeft { kind, .. } => {
                let command = match kind {
                    BackupKind::Dump => "pgkeep dump",
                    BackupKind::Base => "pgkeep backup",
                };
                Some(Hint::new(format!(
                    "take a new backup with '{command}', then prune again"
                )))
            }
            Self::DeleteDenied { url, .. } => Some(Hint::new(format!(
                "run 'pgkeep prune' from a host whose credentials may delete under {url}; hosts that only take backups \
                 need no such right"
            ))),
            Self::Interrupted => None,
        }
    }
}

/// Plans what would stay and go at the moment `now`. Nothing is changed.
///
/// # Errors
/// Whatever the store says; [`PruneError::NothingGoodLeft`].
pub async fn plan(
    repository: &Repository,
    policy: &Policy,
    input: &PruneInput,
    now: Timestamp,
) -> Result<Plan, PruneError> {
    let entries = repository.backups_of(&BackupKind::ALL).await?;
    let mut scopes: BTreeMap<(BackupKind, &str), Vec<Candidate>> = BTreeMap::new();
    for entry in &entries {
        let scope = input.known.get(&entry.id).map_or("", |known| &known.scope);
        scopes
            .entry((entry.id.kind(), scope))
            .or_default()
            .extend(candidate(entry, input));
    }
    let mut plan = Plan::default();
    for ((kind, _), candidates) in &scopes {
        let part = retention::plan(policy, candidates, now);
        if part.removed().next().is_some() && !keeps_a_good_one(&part, candidates) {
            return Err(PruneError::NothingGoodLeft {
                kind: *kind,
                cluster: repository.cluster().to_owned(),
            });
        }
        plan.decisions.extend(part.decisions);
        plan.incomplete.extend(part.incomplete);
    }
    let lost = entries.iter().filter(|entry| entry.has_lost_manifest);
    plan.decisions.extend(lost.map(without_manifest));
    plan.decisions.sort_by(|a, b| a.id.cmp(&b.id));
    plan.incomplete.sort();
    Ok(plan)
}

/// The planner promises it, and this is the last moment to hold it to its word.
fn keeps_a_good_one(plan: &Plan, candidates: &[Candidate]) -> bool {
    let kept: BTreeSet<&BackupId> = plan.kept().map(|decision| &decision.id).collect();
    let good = |candidate: &&Candidate| candidate.completed && candidate.verified != Some(false);
    candidates
        .iter()
        .filter(good)
        .any(|candidate| kept.contains(&candidate.id))
}

/// What stays without being planned for: its manifest may come back, from the store's versions or by a copy.
fn without_manifest(entry: &BackupEntry) -> Decision {
    let pin = entry.pin.as_ref().map(|pin| Reason::Pinned(pin.reason.clone()));
    Decision {
        id: entry.id.clone(),
        keep: true,
        reasons: std::iter::once(Reason::ManifestGone).chain(pin).collect(),
    }
}

/// `None` for what was given up already, and what isn't planned for.
fn candidate(entry: &BackupEntry, input: &PruneInput) -> Option<Candidate> {
    if entry.state == BackupState::Swept || entry.has_lost_manifest {
        return None;
    }
    let damaged = entry.state == BackupState::Damaged
        || input.damaged.contains(&entry.id)
        || input.unread.contains_key(&entry.id);
    let known = input.known.get(&entry.id);
    let verified = entry.evidence.as_ref().map(|evidence| evidence.passed);
    Some(Candidate {
        id: entry.id.clone(),
        started_at: entry.id.started_at(),
        completed: entry.state.is_there(),
        verified: if damaged { Some(false) } else { verified },
        pinned: entry.pin.as_ref().map(|pin| pin.reason.clone()),
        system_identifier: known.and_then(|known| known.system_identifier),
        ended_at: known.and_then(|known| known.base).map(|base| base.ended_at),
    })
}

/// Plans and removes, under the cluster's lease. Goes on when one removal fails. `input` is read under the lease as well: a
/// backup that came after it would be planned for without its scope.
///
/// # Errors
/// As [`plan`]; that of `input`; the lease is held by another process; [`PruneError::DeleteDenied`].
pub async fn execute<E: From<PruneError>>(
    repository: &Repository,
    policy: &Policy,
    input: impl Future<Output = Result<PruneInput, E>>,
    lease_duration: Duration,
    progress: impl Fn(&BackupId),
    cancelled: impl Future<Output = ()>,
) -> Result<PruneReport, E> {
    let lease = Lease::acquire(repository, "pgkeep prune", lease_duration).await;
    let lease = lease.map_err(PruneError::from)?;
    let work = async { Ok(execute_under(&lease, repository, policy, &input.await?, progress).await?) };
    let result = tokio::select! {
        result = work => result,
        () = cancelled => Err(PruneError::Interrupted.into()),
    };
    if let Err(error) = lease.release().await {
        tracing::warn!(%error, "the lease stays until it runs out");
    }
    result
}

async fn execute_under(
    lease: &Lease,
    repository: &Repository,
    policy: &Policy,
    input: &PruneInput,
    progress: impl Fn(&BackupId),
) -> Result<PruneReport, PruneError> {
    let mut plan = plan(repository, policy, input, repository.now()).await?;
    let mut report = PruneReport::default();
    let mut references: BTreeMap<BackupKind, References> = BTreeMap::new();
    let kinds: BTreeSet<BackupKind> = plan.removed().map(|decision| decision.id.kind()).collect();
    for kind in kinds {
        references.insert(kind, repository.references(kind).await?);
    }
    for decision in plan.decisions.iter_mut().filter(|decision| !decision.keep) {
        lease.check()?;
        progress(&decision.id);
        let of_kind = references.entry(decision.id.kind()).or_default();
        match remove(repository, &decision.id, of_kind).await {
            Ok(Removal::Done(objects)) => report.removed.push((decision.id.clone(), objects)),
            Ok(Removal::Pinned(reason)) => {
                decision.keep = true;
                decision.reasons = vec![Reason::Pinned(reason)];
            }
            Err(error) => report.failed.push((decision.id.clone(), error)),
        }
    }
    report.plan = plan;
    lease.check()?;
    match sweep(repository).await {
        Ok(swept) => report.swept = swept,
        Err(error) => report.sweep_failure = Some(error),
    }
    prune_wal(lease, repository, policy, input, &mut report).await;
    report.leftovers = remove_leftovers(repository).await;
    let tried = report.failures().next().is_some();
    let nothing_done = report.removed.is_empty() && report.swept.objects == 0 && report.wal.objects() == 0;
    if tried && nothing_done && report.failures().all(is_denied) {
        let first = report
            .failed
            .drain(..)
            .map(|(_, error)| error)
            .chain(report.sweep_failure.take())
            .chain(report.wal_failure.take())
            .next();
        if let Some(source) = first {
            return Err(PruneError::DeleteDenied {
                url: repository.store().url().to_owned(),
                source,
            });
        }
    }
    Ok(report)
}

/// What became of a backup that was to be removed.
enum Removal {
    /// It went, with so many objects.
    Done(u64),
    /// Somebody pinned it after the plan was made, and said why.
    Pinned(String),
}

async fn remove(
    repository: &Repository,
    id: &BackupId,
    references: &mut References,
) -> Result<Removal, RepositoryError> {
    match repository.claim_removal(id).await? {
        Some(pin) => Ok(Removal::Pinned(pin.reason)),
        None => repository.remove(id, references).await.map(Removal::Done),
    }
}

/// The WAL, when it is known which backups are there: those that were to go and didn't need theirs.
async fn prune_wal(
    lease: &Lease,
    repository: &Repository,
    policy: &Policy,
    input: &PruneInput,
    report: &mut PruneReport,
) {
    let has_gone = |id: &BackupId| report.removed.iter().any(|(removed, _)| removed == id);
    let there: Vec<&Decision> = report
        .plan
        .decisions
        .iter()
        .filter(|decision| !has_gone(&decision.id))
        .collect();
    let walk = wal::Walk {
        repository,
        policy,
        input,
        now: repository.now(),
        lease: Some(lease),
        is_swept: report.sweep_failure.is_none(),
    };
    match walk.all(&there).await {
        Ok(done) => report.wal = done,
        Err(error) => report.wal_failure = Some(error),
    }
}

async fn sweep(repository: &Repository) -> Result<Swept, RepositoryError> {
    // The lease is everybody's: none of either kind is being written.
    let mut swept = repository.sweep_of(&BackupKind::ALL).await?;
    swept.objects += repository.forget_the_gone().await?;
    Ok(swept)
}

impl PruneReport {
    /// All that went wrong.
    pub fn failures(&self) -> impl Iterator<Item = &RepositoryError> {
        self.failed
            .iter()
            .map(|(_, error)| error)
            .chain(&self.sweep_failure)
            .chain(&self.wal_failure)
    }
}

fn is_denied(error: &RepositoryError) -> bool {
    matches!(error, RepositoryError::Store(error) if error.kind() == StoreErrorKind::PermissionDenied)
}

/// Housekeeping: what stays takes room and does no harm.
async fn remove_leftovers(repository: &Repository) -> u64 {
    match repository.store().remove_leftovers("", LEFTOVER_IDLE).await {
        Ok(removed) => removed,
        Err(error) => {
            tracing::warn!(%error, "files of interrupted writes stay");
            0
        }
    }
}
