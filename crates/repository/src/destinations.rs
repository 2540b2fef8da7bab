//! Several repositories that a backup is written to from one read. One that fails is left out from then on, and the others go
//! on; only when none is left does the backup fail.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
/// A request for the lease that is under way when the user interrupts is waited for so long.
const ACQUIRING_ENDS_MAX: Duration = Duration::from_secs(5);

/// One of the repositories.
struct Destination {
    /// As the user wrote it.
    url: String,
    repository: Repository,
    /// Whether its lease was ever held: without it nothing was written there.
    was_held: AtomicBool,
}

/// What becomes of them, by their place.
#[derive(Default)]
struct State {
    leases: BTreeMap<usize, Lease>,
    failed: BTreeSet<usize>,
    /// Those that failed and those that couldn't be opened, until they are told.
    left_out: Vec<LeftOut<RepositoryError>>,
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
    state: Mutex<State>,
    /// No further lease is to be taken.
    stopping: AtomicBool,
    /// Some couldn't be opened.
    has_unopened: bool,
}

impl From<Repository> for Destinations {
    fn from(repository: Repository) -> Self {
        let url = repository.store().url().to_owned();
        Self::of((url, repository), Vec::new(), Vec::new())
    }
}

impl Destinations {
    /// The repositories by their URL, as far as they could be opened.
    ///
    /// # Errors
    /// The first one's, if none could be opened; [`RepositoryError::OneRepositoryTwice`];
    /// [`RepositoryError::Internal`] for no repository at all.
    pub fn new(opened: Vec<(String, Result<Repository, RepositoryError>)>) -> Result<Self, RepositoryError> {
        let mut repositories: Vec<(String, Repository)> = Vec::new();
        let mut unopened = Vec::new();
        for (url, opened) in opened {
            let repository = match opened {
                Ok(repository) => repository,
                Err(error) => {
                    unopened.push(LeftOut { url, error });
                    continue;
                }
            };
            let name = |repository: &Repository| repository.marker().repository.clone();
            let same = |(_, other): &&(String, Repository)| name(other) == name(&repository);
            if let Some((first, _)) = repositories.iter().find(same) {
                return Err(RepositoryError::OneRepositoryTwice {
                    first: first.clone(),
                    second: url,
                });
            }
            repositories.push((url, repository));
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

    fn of(
        first: (String, Repository),
        others: Vec<(String, Repository)>,
        unopened: Vec<LeftOut<RepositoryError>>,
    ) -> Self {
        let sealing = first.1.clone();
        let destination = |(url, repository)| Destination {
            url,
            repository,
            was_held: AtomicBool::new(false),
        };
        Self {
            all: [first].into_iter().chain(others).map(destination).collect(),
            sealing,
            has_unopened: !unopened.is_empty(),
            state: Mutex::new(State {
                left_out: unopened,
                ..State::default()
            }),
            stopping: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
    pub fn remaining(&self) -> Vec<(usize, &Repository)> {
        let state = self.state();
        let all = self.all.iter().enumerate();
        all.filter(|(place, _)| !state.failed.contains(place))
            .map(|(place, destination)| (place, &destination.repository))
            .collect()
    }

    /// The URLs of those that were made by opening them, unless all are new. One that couldn't be opened may have been there.
    pub fn made_beside_others(&self) -> Vec<&str> {
        let is_new = |destination: &&Destination| destination.repository.is_new();
        let made: Vec<&str> = self
            .all
            .iter()
            .filter(is_new)
            .map(|destination| destination.url.as_str())
            .collect();
        let were_there = made.len() < self.all.len() || self.has_unopened;
        if were_there { made } else { Vec::new() }
    }

    /// The URL of one, as it was given.
    pub fn url(&self, place: usize) -> &str {
        self.all.get(place).map_or("", |destination| &destination.url)
    }

    /// Leaves one out from now on. Its lease is given back: what mends it may need it.
    ///
    /// # Errors
    /// The error itself, if no other one is left.
    pub fn leave_out(&self, place: usize, error: RepositoryError) -> Result<(), RepositoryError> {
        let mut state = self.state();
        if (0..self.all.len()).all(|other| other == place || state.failed.contains(&other)) {
            return Err(error);
        }
        // What fails there after it was left out is no news.
        if state.failed.insert(place) {
            let url = self.url(place).to_owned();
            tracing::warn!("going on without {url}: {error}");
            state.left_out.push(LeftOut { url, error });
            if let Some(lease) = state.leases.remove(&place) {
                tokio::spawn(release(lease, false));
            }
        }
        Ok(())
    }

    /// Those that were left out so far and not told of before.
    pub fn take_left_out(&self) -> Vec<LeftOut<RepositoryError>> {
        std::mem::take(&mut self.state().left_out)
    }

    /// As [`Repository::claim_identity`], in each.
    ///
    /// # Errors
    /// [`RepositoryError::OtherIdentity`] of any: what belongs to another database is no matter of one repository. The last
    /// one's other errors, when none is left.
    pub async fn claim_identity(
        &self,
        system_identifier: u64,
        accept_new: bool,
    ) -> Result<(), RepositoryError> {
        let mut checked = self
            .ask(|repository| repository.check_identity(system_identifier, accept_new))
            .await;
        let is_other = |(_, checked): &(usize, Result<bool, RepositoryError>)| {
            matches!(checked, Err(RepositoryError::OtherIdentity { .. }))
        };
        if let Some(other) = checked.iter().position(is_other) {
            return checked.swap_remove(other).1.map(drop);
        }
        let known: Vec<usize> = checked
            .iter()
            .filter(|(_, checked)| matches!(checked, Ok(true)))
            .map(|(place, _)| *place)
            .collect();
        self.settle(checked)?;
        let new = self.remaining().into_iter();
        let new = new
            .filter(|(place, _)| !known.contains(place))
            .map(|(place, repository)| async move {
                (place, repository.record_identity(system_identifier).await)
            });
        let recorded = join_all(new).await;
        self.settle(recorded).map(drop)
    }

    /// Takes the cluster's lease in each, one after another, in an order that is the same for everybody: of two processes
    /// that want the same repositories, one is refused by the first of them and leaves the rest to the other.
    ///
    /// # Errors
    /// [`RepositoryError::LeaseHeld`] while none is held; the last one's, when none is left.
    pub async fn acquire_leases(&self, purpose: &str, duration: Duration) -> Result<(), RepositoryError> {
        let mut remaining = self.remaining();
        remaining.sort_by(|(_, a), (_, b)| a.marker().repository.cmp(&b.marker().repository));
        for (place, repository) in remaining {
            if self.stopping.load(Ordering::Relaxed) {
                return Ok(());
            }
            match Lease::acquire(repository, purpose, duration).await {
                Ok(lease) => {
                    if let Some(destination) = self.all.get(place) {
                        destination.was_held.store(true, Ordering::Relaxed);
                    }
                    self.state().leases.insert(place, lease);
                }
                Err(error @ RepositoryError::LeaseHeld { .. }) if self.state().leases.is_empty() => {
                    return Err(error);
                }
                Err(error) => self.leave_out(place, error)?,
            }
        }
        Ok(())
    }

    /// The same, unless it is cancelled: then false. An interruption must not leave a lease to a process that lives on: a
    /// request that is under way is waited for.
    ///
    /// # Errors
    /// As [`Destinations::acquire_leases`].
    pub async fn acquire_leases_unless(
        &self,
        cancelled: Pin<&mut impl Future<Output = ()>>,
        purpose: &str,
        duration: Duration,
    ) -> Result<bool, RepositoryError> {
        let mut acquired = pin!(self.acquire_leases(purpose, duration));
        tokio::select! {
            acquired = &mut acquired => return acquired.map(|()| true),
            () = cancelled => {}
        }
        // None is taken any more after the one that is being asked for.
        self.stopping.store(true, Ordering::Relaxed);
        let _ = tokio::time::timeout(ACQUIRING_ENDS_MAX, acquired).await;
        Ok(false)
    }

    /// Whether the lease of one is still held.
    ///
    /// # Errors
    /// [`RepositoryError::LeaseLost`].
    pub fn check_lease(&self, place: usize) -> Result<(), RepositoryError> {
        match self.state().leases.get(&place) {
            Some(lease) => lease.check(),
            None => Err(RepositoryError::Internal("there is no lease".to_owned())),
        }
    }

    /// Whether each lease is still held.
    ///
    /// # Errors
    /// [`RepositoryError::LeaseLost`] when none is.
    pub fn check_leases(&self) -> Result<(), RepositoryError> {
        let remaining = self.remaining().into_iter();
        let checked = remaining.map(|(place, _)| (place, self.check_lease(place)));
        self.settle(checked.collect()).map(drop)
    }

    /// Gives the leases back.
    pub async fn release_leases(&self) {
        let leases = std::mem::take(&mut self.state().leases);
        join_all(leases.into_values().map(|lease| release(lease, true))).await;
    }

    /// Sweeps unfinished backups in each. A host without the right to delete leaves it to `pgkeep prune`.
    pub async fn sweep_quietly(&self, kind: BackupKind) -> Swept {
        let sweeps = self
            .remaining()
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
        let ids = self.ask(|repository| repository.ids(kind)).await;
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
        let put = self
            .ask(|repository| repository.put_sealed(prefix, name, object.clone()))
            .await;
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

    /// Sweeps what a failed backup stored in those that remain. Best effort: what stays is an orphan, and the next run sweeps
    /// it. Returns what became of it in each that answered.
    pub async fn give_up(&self, id: &BackupId, reason: &str) -> Vec<GivenUp> {
        let sweeps = self.remaining().into_iter();
        let sweeps = sweeps.map(|(_, repository)| repository.sweep_own(id, reason));
        let left_out = self.give_up_where_left_out(id, reason);
        let (swept, ()) = tokio::join!(join_all(sweeps), left_out);
        swept.into_iter().filter_map(told).collect()
    }

    /// The same in those that were left out: it isn't finished there, and never will be.
    pub async fn give_up_where_left_out(&self, id: &BackupId, reason: &str) {
        let failed = self.state().failed.clone();
        let left_out = failed.iter().filter_map(|place| self.all.get(*place));
        let sweeps = left_out
            .filter(|destination| destination.was_held.load(Ordering::Relaxed))
            .map(|destination| bounded(destination.repository.sweep_own(id, reason)));
        for swept in join_all(sweeps).await {
            told(swept);
        }
    }

    /// Does something in each that remains, at once.
    async fn ask<'a, T, F>(
        &'a self,
        work: impl Fn(&'a Repository) -> F,
    ) -> Vec<(usize, Result<T, RepositoryError>)>
    where
        F: Future<Output = Result<T, RepositoryError>>,
    {
        let asked = self.remaining().into_iter().map(|(place, repository)| {
            let answer = work(repository);
            async move { (place, answer.await) }
        });
        join_all(asked.collect::<Vec<_>>()).await
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

/// A repository that failed isn't waited for long.
async fn bounded<T>(work: impl Future<Output = Result<T, RepositoryError>>) -> Result<T, RepositoryError> {
    let silent = |_| RepositoryError::Internal("no answer in time".to_owned());
    tokio::time::timeout(LEFT_OUT_ENDS_MAX, work)
        .await
        .map_err(silent)
        .flatten()
}

async fn release(lease: Lease, answers: bool) {
    let released = match answers {
        true => lease.release().await,
        false => bounded(lease.release()).await,
    };
    if let Err(error) = released {
        tracing::warn!(%error, "the lease stays until it runs out");
    }
}

fn told(swept: Result<GivenUp, RepositoryError>) -> Option<GivenUp> {
    match swept {
        Ok(given_up) => Some(given_up),
        Err(error) => {
            tracing::debug!(%error, "an unfinished backup's objects stay until the next run");
            None
        }
    }
}
