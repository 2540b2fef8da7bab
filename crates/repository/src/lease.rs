//! One writer at a time for each cluster.
//!
//! A lease is a series of small objects, each written once, create-only:
//! `<cluster>/lease/<generation>-<renewal>`, and `<generation>-released` at the end. Whoever creates
//! `<generation + 1>-000000` holds the next lease. No compare-and-swap is needed, so the local file system and every
//! store with create-only puts will do.
//!
//! A lease keeps writers out of each other's way; it is not what keeps backups whole. That is the manifest's
//! create-only put (see `backups`): a holder that was asleep while its lease was taken over is refused there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use pgkeep_store::{ObjectInfo, PutOutcome, StoreErrorKind};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::error::RepositoryError;
use crate::layout;
use crate::process::ProcessName;
use crate::repo::{Repository, SMALL_OBJECT_BYTES_MAX, from_json, to_json};

/// How long a lease lasts when it isn't renewed. A dead holder on another host keeps others waiting this long.
pub const LEASE_DURATION_DEFAULT: Duration = Duration::from_secs(300);

/// Renewals come this many times within a lease's duration, so that two may fail.
const RENEWALS_PER_LEASE: u32 = 3;

/// Two processes that race for the same generation this often are doing something else wrong.
const ACQUIRE_ATTEMPTS_MAX: u32 = 5;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct LeaseBody {
    purpose: String,
    #[serde(flatten)]
    holder: ProcessName,
    since: Timestamp,
    until: Timestamp,
}

/// A held lease. [`Lease::release`] it; dropped, it stops being renewed and runs out.
pub struct Lease {
    repository: Repository,
    generation: u64,
    lost: Arc<AtomicBool>,
    renewer: JoinHandle<()>,
}

struct State {
    generation: u64,
    newest: Option<ObjectInfo>,
    released: bool,
}

impl Lease {
    /// Takes the cluster's lease for `purpose` ("dump", "prune"), and keeps renewing it in the background.
    ///
    /// # Errors
    /// [`RepositoryError::LeaseHeld`] when a live process holds it.
    pub async fn acquire(
        repository: &Repository,
        purpose: &str,
        duration: Duration,
    ) -> Result<Self, RepositoryError> {
        let mut held: Option<LeaseBody> = None;
        for _ in 0..ACQUIRE_ATTEMPTS_MAX {
            let state = read_state(repository).await?;
            held = holder(repository, &state).await?;
            if held.is_some() {
                break;
            }
            let body = LeaseBody::ours(purpose, repository.now(), duration)?;
            let generation = state.generation + 1;
            let key = key(repository, generation, 0);
            if repository.store.put_new(&key, to_json(&body)?).await? == PutOutcome::Created {
                sweep_before(repository, generation).await;
                return Ok(Self::held(repository, generation, body, duration));
            }
        }
        let held = held.map_or_else(|| LeaseBody::ours(purpose, repository.now(), duration), Ok)?;
        Err(held.into_held(repository))
    }

    fn held(repository: &Repository, generation: u64, body: LeaseBody, duration: Duration) -> Self {
        let lost = Arc::new(AtomicBool::new(false));
        let renewer = tokio::spawn(renew(
            repository.clone(),
            generation,
            body,
            duration,
            Arc::clone(&lost),
        ));
        Self {
            repository: repository.clone(),
            generation,
            lost,
            renewer,
        }
    }

    /// Whether this process still holds it, as far as it knows.
    ///
    /// # Errors
    /// [`RepositoryError::LeaseLost`].
    pub fn check(&self) -> Result<(), RepositoryError> {
        if self.lost.load(Ordering::Acquire) {
            return Err(RepositoryError::LeaseLost {
                cluster: self.repository.cluster.clone(),
                reason: "it ran out before it could be renewed, or another process took it over".to_owned(),
            });
        }
        Ok(())
    }

    /// Gives the lease back, so that the next writer needn't wait for it to run out.
    ///
    /// # Errors
    /// The store refused; the lease then runs out by itself.
    pub async fn release(self) -> Result<(), RepositoryError> {
        self.renewer.abort();
        if self.lost.load(Ordering::Acquire) {
            return Ok(());
        }
        let key = format!(
            "{}{:010}-released",
            layout::lease_prefix(&self.repository.cluster),
            self.generation
        );
        // A generation is released by its holder alone.
        let _ = self
            .repository
            .store
            .put_new(&key, to_json(&self.repository.now())?)
            .await?;
        sweep_before(&self.repository, self.generation).await;
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewer.abort();
    }
}

impl LeaseBody {
    fn ours(purpose: &str, now: Timestamp, duration: Duration) -> Result<Self, RepositoryError> {
        let until = now + SignedDuration::try_from(duration).unwrap_or(SignedDuration::from_mins(5));
        Ok(Self {
            purpose: purpose.to_owned(),
            holder: ProcessName::ours(),
            since: now,
            until,
        })
    }

    fn into_held(self, repository: &Repository) -> RepositoryError {
        RepositoryError::LeaseHeld {
            cluster: repository.cluster.clone(),
            purpose: self.purpose,
            pid: self.holder.pid,
            host: self.holder.host,
            since: self.since,
            until: self.until,
        }
    }

    fn unreadable(since: Timestamp) -> Result<Self, RepositoryError> {
        Ok(Self {
            holder: ProcessName::unknown(),
            ..Self::ours("an unknown command", since, LEASE_DURATION_DEFAULT)?
        })
    }
}

/// Who holds the cluster's lease, as the error that whoever wants it gets.
pub(crate) async fn held(repository: &Repository) -> Result<Option<RepositoryError>, RepositoryError> {
    let state = read_state(repository).await?;
    let holder = holder(repository, &state).await?;
    Ok(holder.map(|body| body.into_held(repository)))
}

async fn read_state(repository: &Repository) -> Result<State, RepositoryError> {
    let prefix = layout::lease_prefix(&repository.cluster);
    let mut state = State {
        generation: 0,
        newest: None,
        released: true,
    };
    for object in repository.store.list(&prefix).await? {
        let Some((generation, rest)) = object
            .key
            .strip_prefix(&prefix)
            .and_then(|name| name.split_once('-'))
        else {
            continue;
        };
        let Some(generation) = generation_number(generation) else {
            continue;
        };
        if generation > state.generation {
            state = State {
                generation,
                newest: None,
                released: false,
            };
        }
        if generation == state.generation {
            if rest == "released" {
                state.released = true;
            } else if state.newest.as_ref().is_none_or(|newest| newest.key < object.key) {
                state.newest = Some(object);
            }
        }
    }
    Ok(state)
}

/// The live holder of the newest generation, if there is one.
async fn holder(repository: &Repository, state: &State) -> Result<Option<LeaseBody>, RepositoryError> {
    let (false, Some(newest)) = (state.released, &state.newest) else {
        return Ok(None);
    };
    let body = match repository.store.get(&newest.key, SMALL_OBJECT_BYTES_MAX).await {
        Ok(body) => body,
        // Renewed and swept between listing and reading: alive.
        Err(error) if error.kind() == StoreErrorKind::NotFound => {
            let now = repository.now();
            return Ok(Some(LeaseBody::ours(
                "another process",
                now,
                LEASE_DURATION_DEFAULT,
            )?));
        }
        Err(error) => return Err(error.into()),
    };
    let body: LeaseBody = from_json(&newest.key, &body).or_else(|error| {
        // Emptied by a crash of its disk, say. It isn't known whose it is, but when it was written.
        tracing::warn!(%error, "a lease can't be read");
        LeaseBody::unreadable(newest.modified_at)
    })?;
    let live = repository.now() < body.until && !body.holder.is_gone(&ProcessName::ours());
    Ok(live.then_some(body))
}

/// The generation in an object's name: ten digits. Anything else isn't ours, and must not make the next one overflow.
fn generation_number(text: &str) -> Option<u64> {
    let digits = text.len() == 10 && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

fn key(repository: &Repository, generation: u64, renewal: u64) -> String {
    format!(
        "{}{generation:010}-{renewal:06}",
        layout::lease_prefix(&repository.cluster)
    )
}

async fn renew(
    repository: Repository,
    generation: u64,
    mut body: LeaseBody,
    duration: Duration,
    lost: Arc<AtomicBool>,
) {
    let pause = duration / RENEWALS_PER_LEASE;
    let mut renewal = 0_u64;
    loop {
        tokio::time::sleep(pause).await;
        match renew_once(&repository, generation, renewal + 1, &mut body, duration).await {
            Ok(true) => {
                let old = key(&repository, generation, renewal);
                renewal += 1;
                // A host without the right to delete leaves them; the next holder who may sweeps.
                if let Err(error) = repository.store.delete(&old).await {
                    tracing::debug!(%error, "an old lease renewal stays");
                }
            }
            Ok(false) => {
                lost.store(true, Ordering::Release);
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot renew the lease");
                if repository.now() >= body.until {
                    lost.store(true, Ordering::Release);
                    return;
                }
            }
        }
    }
}

/// False when another process has taken the lease over.
async fn renew_once(
    repository: &Repository,
    generation: u64,
    renewal: u64,
    body: &mut LeaseBody,
    duration: Duration,
) -> Result<bool, RepositoryError> {
    // Any later generation: its first object may be swept already.
    if read_state(repository).await?.generation > generation {
        return Ok(false);
    }
    let renewed = LeaseBody {
        since: body.since,
        ..LeaseBody::ours(&body.purpose, repository.now(), duration)?
    };
    let outcome = repository
        .store
        .put_new(&key(repository, generation, renewal), to_json(&renewed)?)
        .await?;
    *body = renewed;
    Ok(outcome == PutOutcome::Created)
}

/// Removes the leases of earlier generations, where that is allowed.
async fn sweep_before(repository: &Repository, generation: u64) {
    let prefix = layout::lease_prefix(&repository.cluster);
    let Ok(objects) = repository.store.list(&prefix).await else {
        return;
    };
    let old = objects.into_iter().map(|object| object.key).filter(|key| {
        let name = key.strip_prefix(&prefix).and_then(|name| name.split_once('-'));
        name.and_then(|(number, _)| generation_number(number))
            .is_some_and(|number| number < generation)
    });
    if let Err(error) = repository.store.delete_all(old.collect()).await {
        tracing::debug!(%error, "old leases stay");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_among_leases_are_passed_over() {
        assert_eq!(generation_number("0000000007"), Some(7));
        for stranger in ["7", "+000000007", "18446744073709551615", ""] {
            assert_eq!(generation_number(stranger), None, "{stranger}");
        }
    }
}
