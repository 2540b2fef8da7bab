//! Several repositories that a backup is written to from one read. One that fails is left out from then on, and the others go
//! on; only when none is left does the backup fail.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use jiff::Timestamp;
use pgkeep_base::{BackupId, BackupKind};

use crate::backups::{GivenUp, Swept};
use crate::error::RepositoryError;
use crate::lease::Lease;
use crate::object::{ObjectRef, SealedObject};
use crate::repo::{Access, Repository};

/// A repository that failed isn't waited for longer than this when something is to be cleaned up there; what stays is for the
/// next run.
const LEFT_OUT_ENDS_MAX: Duration = Duration::from_secs(10);

/// One of the repositories.
struct Destination {
    repository: Repository,
    lease: Mutex<Option<Lease>>,
}

/// A repository that a backup is not in, and why.
#[derive(Debug)]
pub struct LeftOut<E> {
    /// Its URL.
    pub url: String,
    /// What failed.
    pub error: E,
}

/// The repositories of one backup, at least one.
pub struct Destinations {
    all: Vec<Destination>,
    /// Seals for all of them: with the same keys.
    sealing: Repository,
    /// Repositories that couldn't be opened.
    unopened: Mutex<Vec<LeftOut<RepositoryError>>>,
    /// Those of `all` that failed, by their place, and why, until it is told.
    failed: Mutex<Vec<(usize, Option<RepositoryError>)>>,
}

impl From<Repository> for Destinations {
    fn from(repository: Repository) -> Self {
        Self::of(repository, Vec::new(), Vec::new())
    }
}

impl Destinations {
    /// The repositories by their URL, as far as they could be opened.
    ///
    /// # Errors
    /// The first one's, if none could be opened; and [`RepositoryError::Internal`] for no repository at all.
    pub fn new(opened: Vec<(String, Result<Repository, RepositoryError>)>) -> Result<Self, RepositoryError> {
        let mut repositories = Vec::new();
        let mut unopened = Vec::new();
        for (url, opened) in opened {
            match opened {
                Ok(repository) => repositories.push(repository),
                Err(error) => unopened.push(LeftOut { url, error }),
            }
        }
        let mut repositories = repositories.into_iter();
        match (repositories.next(), unopened.is_empty()) {
            (Some(first), _) => {
                for LeftOut { url, error } in &unopened {
                    tracing::warn!("going on without {url}: {error}");
                }
                Ok(Self::of(first, repositories.collect(), unopened))
            }
            (None, false) => Err(unopened.swap_remove(0).error),
            (None, true) => Err(RepositoryError::Internal("there is no repository".to_owned())),
        }
    }

    fn of(first: Repository, others: Vec<Repository>, unopened: Vec<LeftOut<RepositoryError>>) -> Self {
        let sealing = first.clone();
        let destination = |repository| Destination {
            repository,
            lease: Mutex::new(None),
        };
        Self {
            all: [first].into_iter().chain(others).map(destination).collect(),
            sealing,
            unopened: Mutex::new(unopened),
            failed: Mutex::new(Vec::new()),
        }
    }

    /// The cluster's name, the same in all of them.
    pub fn cluster(&self) -> &str {
        self.sealing.cluster()
    }

    /// The present moment, as their clock has it.
    pub fn now(&self) -> Timestamp {
        self.sealing.now()
    }

    /// How objects are sealed for all of them.
    pub fn access(&self) -> &Access {
        self.sealing.access()
    }

    /// The same, for a thread of its own.
    pub fn shared_access(&self) -> Arc<Access> {
        self.sealing.shared_access()
    }

    /// Those that haven't failed, with their place.
    pub fn alive(&self) -> Vec<(usize, &Repository)> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        self.all
            .iter()
            .enumerate()
            .filter(|(place, _)| failed.iter().all(|(failed, _)| failed != place))
            .map(|(place, destination)| (place, &destination.repository))
            .collect()
    }

    /// Leaves one out from now on.
    ///
    /// # Errors
    /// The error itself, if no other one is left.
    pub fn leave_out(&self, place: usize, error: RepositoryError) -> Result<(), RepositoryError> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let is_out = |place: usize| failed.iter().any(|(failed, _)| *failed == place);
        if (0..self.all.len()).all(|other| other == place || is_out(other)) {
            return Err(error);
        }
        // What fails there after it was left out is no news.
        if !is_out(place) {
            if let Some(destination) = self.all.get(place) {
                tracing::warn!(
                    "going on without {}: {error}",
                    destination.repository.store().url()
                );
            }
            failed.push((place, Some(error)));
        }
        Ok(())
    }

    /// Those that were left out so far and not told of before.
    pub fn take_left_out(&self) -> Vec<LeftOut<RepositoryError>> {
        let mut left_out = std::mem::take(&mut *self.unopened.lock().unwrap_or_else(PoisonError::into_inner));
        // Their places stay: what has failed is not alive.
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        for (place, error) in failed.iter_mut() {
            if let (Some(destination), Some(error)) = (self.all.get(*place), error.take()) {
                let url = destination.repository.store().url().to_owned();
                left_out.push(LeftOut { url, error });
            }
        }
        left_out
    }

    /// As [`Repository::claim_identity`], in each.
    ///
    /// # Errors
    /// The last one's, when none is left.
    pub async fn claim_identity(
        &self,
        system_identifier: u64,
        accept_new: bool,
    ) -> Result<(), RepositoryError> {
        let claims = self.alive().into_iter().map(|(place, repository)| async move {
            let claimed = repository.claim_identity(system_identifier, accept_new).await;
            (place, claimed)
        });
        let claimed = join_all(claims).await;
        self.settle(claimed).map(drop)
    }

    /// Takes the cluster's lease in each, one after another: of two processes that want the same repositories, one is
    /// refused by the first of them and leaves the rest to the other.
    ///
    /// # Errors
    /// [`RepositoryError::LeaseHeld`] by the first that answers; the last one's, when none is left.
    pub async fn acquire_leases(&self, purpose: &str, duration: Duration) -> Result<(), RepositoryError> {
        let mut holds_one = false;
        for (place, repository) in self.alive() {
            match Lease::acquire(repository, purpose, duration).await {
                Ok(lease) => {
                    holds_one = true;
                    self.set_lease(place, Some(lease));
                }
                Err(error @ RepositoryError::LeaseHeld { .. }) if !holds_one => return Err(error),
                Err(error) => self.leave_out(place, error)?,
            }
        }
        Ok(())
    }

    fn set_lease(&self, place: usize, lease: Option<Lease>) -> Option<Lease> {
        let destination = self.all.get(place)?;
        let mut held = destination.lease.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *held, lease)
    }

    /// Whether the lease of one is still held.
    ///
    /// # Errors
    /// [`RepositoryError::LeaseLost`].
    pub fn check_lease(&self, place: usize) -> Result<(), RepositoryError> {
        let none = || RepositoryError::Internal("there is no lease".to_owned());
        let destination = self.all.get(place).ok_or_else(none)?;
        let lease = destination.lease.lock().unwrap_or_else(PoisonError::into_inner);
        lease.as_ref().ok_or_else(none)?.check()
    }

    /// Whether each lease is still held.
    ///
    /// # Errors
    /// [`RepositoryError::LeaseLost`] when none is.
    pub fn check_leases(&self) -> Result<(), RepositoryError> {
        let alive = self.alive().into_iter();
        let checked = alive.map(|(place, _)| (place, self.check_lease(place)));
        self.settle(checked.collect()).map(drop)
    }

    /// Gives the leases back.
    pub async fn release_leases(&self) {
        let alive: Vec<usize> = self.alive().into_iter().map(|(place, _)| place).collect();
        let releases = (0..self.all.len()).filter_map(|place| {
            let lease = self.set_lease(place, None)?;
            let is_alive = alive.contains(&place);
            Some(async move {
                let releasing = lease.release();
                let released = match is_alive {
                    true => releasing.await,
                    false => tokio::time::timeout(LEFT_OUT_ENDS_MAX, releasing)
                        .await
                        .unwrap_or(Ok(())),
                };
                if let Err(error) = released {
                    tracing::warn!(%error, "the lease stays until it runs out");
                }
            })
        });
        join_all(releases).await;
    }

    /// Sweeps unfinished backups in each. A host without the right to delete leaves it to `pgkeep prune`.
    pub async fn sweep_quietly(&self, kind: BackupKind) -> Swept {
        let sweeps = self
            .alive()
            .into_iter()
            .map(|(_, repository)| repository.sweep(kind));
        let mut all = Swept::default();
        for swept in join_all(sweeps).await {
            match swept {
                Ok(swept) => {
                    all.backups.extend(swept.backups);
                    all.objects += swept.objects;
                }
                Err(error) => tracing::debug!(%error, "unfinished backups stay until 'pgkeep prune'"),
            }
        }
        all.backups.sort();
        all.backups.dedup();
        all
    }

    /// The newest backup's folder in any of them, whatever lies there.
    ///
    /// # Errors
    /// The last one's, when none is left.
    pub async fn newest_id(&self, kind: BackupKind) -> Result<Option<BackupId>, RepositoryError> {
        let ids = self
            .alive()
            .into_iter()
            .map(|(place, repository)| async move { (place, repository.ids(kind).await) });
        let ids = join_all(ids).await;
        let newest = self
            .settle(ids)?
            .into_iter()
            .filter_map(|ids| ids.into_iter().next());
        Ok(newest.max())
    }

    /// Puts a sealed object into each, create-only.
    ///
    /// # Errors
    /// The last one's, when none is left.
    pub async fn put_sealed(
        &self,
        prefix: &str,
        name: &str,
        object: SealedObject,
    ) -> Result<ObjectRef, RepositoryError> {
        let recorded = object.as_object(name);
        let puts = self.alive().into_iter().map(|(place, repository)| {
            let object = object.clone();
            async move { (place, repository.put_sealed(prefix, name, object).await) }
        });
        let put = join_all(puts.collect::<Vec<_>>()).await;
        self.settle(put)?;
        Ok(recorded)
    }

    /// Seals contents that are at hand, for all of them.
    ///
    /// # Errors
    /// As [`Repository::seal`].
    pub async fn seal(&self, contents: Bytes) -> Result<SealedObject, RepositoryError> {
        self.sealing.seal(contents).await
    }

    /// Seals contents that are at hand, and puts them into each.
    ///
    /// # Errors
    /// As [`Repository::seal`] and [`Destinations::put_sealed`].
    pub async fn put_contents(
        &self,
        prefix: &str,
        name: &str,
        contents: Bytes,
    ) -> Result<ObjectRef, RepositoryError> {
        let sealed = self.seal(contents).await?;
        self.put_sealed(prefix, name, sealed).await
    }

    /// Puts an object into each as it is.
    ///
    /// # Errors
    /// As [`Destinations::put_sealed`].
    pub async fn put_plain(
        &self,
        prefix: &str,
        name: &str,
        contents: Bytes,
    ) -> Result<ObjectRef, RepositoryError> {
        self.put_sealed(prefix, name, SealedObject::plain(contents)).await
    }

    /// Sweeps what a failed backup stored, in those that were left out or in all. Best effort: what stays is an orphan, and
    /// the next run sweeps it. Returns what became of it in each that answered.
    pub async fn give_up(&self, id: &BackupId, reason: &str, which: GiveUp) -> Vec<GivenUp> {
        let alive: Vec<usize> = self.alive().into_iter().map(|(place, _)| place).collect();
        let sweeps = self.all.iter().enumerate().filter_map(|(place, destination)| {
            let is_alive = alive.contains(&place);
            let has_lease = destination
                .lease
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .is_some();
            // Without a lease nothing was written there.
            let concerned = has_lease && !(is_alive && which == GiveUp::LeftOut);
            concerned.then(|| async move {
                let sweeping = destination.repository.sweep_own(id, reason);
                let swept = match is_alive {
                    true => sweeping.await,
                    false => tokio::time::timeout(LEFT_OUT_ENDS_MAX, sweeping)
                        .await
                        .map_err(|_| RepositoryError::Internal("no answer in time".to_owned()))
                        .flatten(),
                };
                match swept {
                    Ok(given_up) => Some(given_up),
                    Err(error) => {
                        tracing::debug!(%error, "an unfinished backup's objects stay until the next run");
                        None
                    }
                }
            })
        });
        join_all(sweeps.collect::<Vec<_>>())
            .await
            .into_iter()
            .flatten()
            .collect()
    }

    /// Leaves those out that failed. Returns what the others answered.
    fn settle<T>(
        &self,
        outcomes: Vec<(usize, Result<T, RepositoryError>)>,
    ) -> Result<Vec<T>, RepositoryError> {
        let mut answers = Vec::new();
        for (place, outcome) in outcomes {
            match outcome {
                Ok(answer) => answers.push(answer),
                Err(error) => self.leave_out(place, error)?,
            }
        }
        Ok(answers)
    }
}

/// In which repositories a backup is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GiveUp {
    /// In all of them: it failed.
    All,
    /// In those that were left out: it isn't finished there, and never will be.
    LeftOut,
}
