//! The end of a backup, whatever its kind: its manifest in one of its repositories, or the certainty that it isn't there.

use jiff::{SignedDuration, Timestamp};
use pgkeep_base::{BackupId, BackupKind};
use std::time::Duration;

use crate::backups::GivenUp;
use crate::destinations::Destinations;
use crate::error::RepositoryError;
use crate::object::SealedObject;
use crate::references::References;
use crate::repo::Repository;

/// Why a commit is none.
#[derive(Debug)]
pub enum CommitFailure {
    /// The backup isn't there.
    Failed(RepositoryError),
    /// The store's last answer was lost: it may be there or not.
    Unconfirmed(RepositoryError),
}

impl Destinations {
    /// Puts the manifest into one repository. An answer that was lost for good is looked into: a backup that is there must
    /// not be reported as failed. Where the store is sure that it failed, as when a disk can't make it durable, it must not be
    /// there.
    ///
    /// # Errors
    /// See [`CommitFailure`]; what was stored is swept then, as far as the store answers, for this `reason`.
    pub async fn commit_in(
        &self,
        place: usize,
        repository: &Repository,
        id: &BackupId,
        manifest: SealedObject,
        reason: &str,
    ) -> Result<(), CommitFailure> {
        let committed = match self.check_lease(place) {
            Ok(()) => repository.commit(id, manifest).await,
            Err(error) => Err(error),
        };
        let Err(error) = committed else { return Ok(()) };
        let given_up = repository.sweep_own(id, reason).await;
        match (&error, given_up) {
            (RepositoryError::Store(lost), Ok(GivenUp::Committed)) if lost.may_have_happened() => Ok(()),
            (RepositoryError::Store(lost), Err(_)) if lost.may_have_happened() => {
                Err(CommitFailure::Unconfirmed(error))
            }
            (RepositoryError::Store(_), Ok(GivenUp::Committed)) => {
                repository.take_back(id).await;
                Err(CommitFailure::Failed(error))
            }
            _ => Err(CommitFailure::Failed(error)),
        }
    }

    /// A new id. Ids tell the second of the start, and the lease keeps backups apart: so one that begins in the second of
    /// another's start waits for the next. Then ids are in the order of time, and `latest` is the latest.
    ///
    /// # Errors
    /// The last repository's, when none is left; the system's random source.
    pub async fn next_id(&self, kind: BackupKind) -> Result<BackupId, RepositoryError> {
        if let Some(newest) = self.newest_id(kind).await? {
            tokio::time::sleep(rest_of_second(&newest, self.now())).await;
        }
        Ok(BackupId::new(kind, self.now())?)
    }
}

fn rest_of_second(newest: &BackupId, now: Timestamp) -> Duration {
    // Not the sum of times first: a folder may name the last second that there is.
    let rest = newest.started_at().duration_since(now) + SignedDuration::from_secs(1);
    let rest = Duration::try_from(rest).unwrap_or_default();
    // One from the future is somebody's wrong clock.
    if rest <= Duration::from_secs(1) {
        rest
    } else {
        Duration::ZERO
    }
}

impl Repository {
    /// Removes a backup that was committed a moment ago and isn't one after all.
    pub async fn take_back(&self, id: &BackupId) {
        // Nobody has begun to refer to it.
        let mut references = References::default();
        if let Err(error) = self.remove(id, &mut references).await {
            tracing::warn!(%error, "backup {id} failed, and something of it stays: pgkeep verify {id}");
        }
    }
}
