//! One writer at a time for each cluster.
//!
//! A lease is a series of small objects, each written once, create-only:
//! `<cluster>/lease/<generation>-<renewal>` (whoever receives WAL: `<cluster>/lease/wal/...`), and `<generation>-released` at the end. Whoever creates
//! `<generation + 1>-000000` holds the next lease. No compare-and-swap is needed, so the local file system and every
//! store with create-only puts will do.
//!
//! A lease keeps writers out of each other's way; it is not what keeps backups whole. That is the manifest's
//! create-only put (see `backups`): a holder that was asleep while its lease was taken over is refused there.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
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

/// After a renewal that failed, the next one comes after this part of the lease's duration.
const PAUSES_AFTER_FAILURE_PER_LEASE: u32 = 30;

/// In place of the time until which a lease runs: another process has taken it over.
const TAKEN_OVER: i64 = i64::MIN;

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

/// The leases that keep each other away: those of a cluster's backups, or those of whoever receives its WAL.
#[derive(Clone)]
struct Series {
    repository: Repository,
    prefix: String,
}

impl Series {
    fn of_backups(repository: &Repository) -> Self {
        Self {
            repository: repository.clone(),
            prefix: layout::lease_prefix(&repository.cluster),
        }
    }

    fn of_wal(repository: &Repository) -> Self {
        Self {
            repository: repository.clone(),
            prefix: layout::wal_lease_prefix(&repository.cluster),
        }
    }

    fn key(&self, generation: u64, renewal: u64) -> String {
        format!("{}{generation:010}-{renewal:06}", self.prefix)
    }
}

/// A held lease. [`Lease::release`] it; dropped, it stops being renewed and runs out.
pub struct Lease {
    series: Series,
    generation: u64,
    /// Until when it runs, in milliseconds since the epoch, as far as the store has confirmed it.
    until_ms: Arc<AtomicI64>,
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
        Self::acquire_in(Series::of_backups(repository), purpose, duration).await
    }

    /// The same for receiving the cluster's WAL, which backups don't keep away.
    ///
    /// # Errors
    /// [`RepositoryError::LeaseHeld`] when a live process holds it.
    pub async fn acquire_wal(
        repository: &Repository,
        purpose: &str,
        duration: Duration,
    ) -> Result<Self, RepositoryError> {
        Self::acquire_in(Series::of_wal(repository), purpose, duration).await
    }

    async fn acquire_in(series: Series, purpose: &str, duration: Duration) -> Result<Self, RepositoryError> {
        let repository = &series.repository;
        let mut held: Option<LeaseBody> = None;
        for _ in 0..ACQUIRE_ATTEMPTS_MAX {
            let state = read_state(&series).await?;
            held = holder(repository, &state).await?;
            if held.is_some() {
                break;
            }
            let body = LeaseBody::ours(purpose, repository.now(), duration)?;
            let generation = state.generation + 1;
            let key = series.key(generation, 0);
            if repository.store.put_new(&key, to_json(&body)?).await? == PutOutcome::Created {
                sweep_before(&series, generation).await;
                return Ok(Self::held(series, generation, body, duration));
            }
        }
        let held = held.map_or_else(|| LeaseBody::ours(purpose, repository.now(), duration), Ok)?;
        Err(held.into_held(repository))
    }

    fn held(series: Series, generation: u64, body: LeaseBody, duration: Duration) -> Self {
        let until_ms = Arc::new(AtomicI64::new(body.until.as_millisecond()));
        let renewing = Renewing {
            series: series.clone(),
            generation,
            body,
            duration,
            until_ms: Arc::clone(&until_ms),
        };
        Self {
            series,
            generation,
            until_ms,
            renewer: tokio::spawn(renewing.run()),
        }
    }

    /// Whether this process still holds it: by the clock, whatever became of the renewals.
    ///
    /// # Errors
    /// [`RepositoryError::LeaseLost`].
    pub fn check(&self) -> Result<(), RepositoryError> {
        let until_ms = self.until_ms.load(Ordering::Acquire);
        let reason = if until_ms == TAKEN_OVER {
            "another process took it over".to_owned()
        } else if self.series.repository.now().as_millisecond() >= until_ms {
            "it ran out before it could be renewed: the store could not be reached, or this machine slept"
                .to_owned()
        } else {
            return Ok(());
        };
        Err(RepositoryError::LeaseLost {
            cluster: self.series.repository.cluster.clone(),
            reason,
        })
    }

    /// Gives the lease back, so that the next writer needn't wait for it to run out.
    ///
    /// # Errors
    /// The store refused; the lease then runs out by itself.
    pub async fn release(self) -> Result<(), RepositoryError> {
        self.renewer.abort();
        if self.until_ms.load(Ordering::Acquire) == TAKEN_OVER {
            return Ok(());
        }
        let repository = &self.series.repository;
        let key = format!("{}{:010}-released", self.series.prefix, self.generation);
        // A generation is released by its holder alone.
        let _ = repository
            .store
            .put_new(&key, to_json(&repository.now())?)
            .await?;
        sweep_before(&self.series, self.generation).await;
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
    held_in(&Series::of_backups(repository)).await
}

/// The same of the lease of whoever receives its WAL.
///
/// # Errors
/// Whatever the store says.
pub async fn wal_receiver(repository: &Repository) -> Result<Option<RepositoryError>, RepositoryError> {
    held_in(&Series::of_wal(repository)).await
}

async fn held_in(series: &Series) -> Result<Option<RepositoryError>, RepositoryError> {
    let state = read_state(series).await?;
    let holder = holder(&series.repository, &state).await?;
    Ok(holder.map(|body| body.into_held(&series.repository)))
}

async fn read_state(series: &Series) -> Result<State, RepositoryError> {
    let prefix = &series.prefix;
    let mut state = State {
        generation: 0,
        newest: None,
        released: true,
    };
    for object in series.repository.store.list(prefix).await? {
        let Some((generation, rest)) = object
            .key
            .strip_prefix(prefix.as_str())
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

/// What keeps a lease alive in the background.
struct Renewing {
    series: Series,
    generation: u64,
    body: LeaseBody,
    duration: Duration,
    until_ms: Arc<AtomicI64>,
}

impl Renewing {
    async fn run(mut self) {
        let pause = self.duration / RENEWALS_PER_LEASE;
        let pause_after_failure = self.duration / PAUSES_AFTER_FAILURE_PER_LEASE;
        // Of a renewal that failed or took too long it isn't known whether it is there: each has a number of its own.
        let (mut tried, mut newest) = (0_u64, 0_u64);
        let mut next = pause;
        loop {
            tokio::time::sleep(next).await;
            // Who finds it expired may have acted on that: it stays expired.
            if self.series.repository.now() >= self.body.until {
                return;
            }
            tried += 1;
            let renewed = tokio::time::timeout(pause, self.renew_once(tried)).await;
            next = match renewed {
                Ok(Ok(true)) => {
                    self.forget(newest..tried).await;
                    newest = tried;
                    pause
                }
                Ok(Ok(false)) => {
                    self.until_ms.store(TAKEN_OVER, Ordering::Release);
                    return;
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "cannot renew the lease");
                    pause_after_failure
                }
                Err(_) => {
                    tracing::warn!("cannot renew the lease: no answer within {} s", pause.as_secs());
                    pause_after_failure
                }
            };
        }
    }

    /// False when another process has taken the lease over.
    async fn renew_once(&mut self, renewal: u64) -> Result<bool, RepositoryError> {
        let (repository, generation) = (&self.series.repository, self.generation);
        // Any later generation: its first object may be swept already.
        if read_state(&self.series).await?.generation > generation {
            return Ok(false);
        }
        let renewed = LeaseBody {
            since: self.body.since,
            ..LeaseBody::ours(&self.body.purpose, repository.now(), self.duration)?
        };
        let key = self.series.key(generation, renewal);
        if repository.store.put_new(&key, to_json(&renewed)?).await? != PutOutcome::Created {
            return Ok(false);
        }
        self.until_ms
            .store(renewed.until.as_millisecond(), Ordering::Release);
        self.body = renewed;
        Ok(true)
    }

    /// Removes earlier renewals. A host without the right to delete leaves them; the next holder who may sweeps.
    async fn forget(&self, renewals: std::ops::Range<u64>) {
        let keys = renewals.map(|renewal| self.series.key(self.generation, renewal));
        if let Err(error) = self.series.repository.store.delete_all(keys.collect()).await {
            tracing::debug!(%error, "old lease renewals stay");
        }
    }
}

/// Removes the leases of earlier generations, where that is allowed.
async fn sweep_before(series: &Series, generation: u64) {
    let (prefix, store) = (&series.prefix, &series.repository.store);
    let Ok(objects) = store.list(prefix).await else {
        return;
    };
    let old = objects.into_iter().map(|object| object.key).filter(|key| {
        let name = key
            .strip_prefix(prefix.as_str())
            .and_then(|name| name.split_once('-'));
        name.and_then(|(number, _)| generation_number(number))
            .is_some_and(|number| number < generation)
    });
    if let Err(error) = store.delete_all(old.collect()).await {
        tracing::debug!(%error, "old leases stay");
    }
}

#[cfg(test)]
mod tests {
    use pgkeep_base::Clock;
    use pgkeep_store::fault::FaultPlan;
    use pgkeep_store::{Store, StoreOptions};
    use tokio::time::Instant;

    use super::*;
    use crate::encryption::Encryption;
    use crate::repo::Access;

    const DURATION: Duration = Duration::from_secs(60);

    /// The test's paused time, as a clock.
    struct PausedClock(Instant, Timestamp);

    impl Clock for PausedClock {
        fn now(&self) -> Timestamp {
            self.1 + SignedDuration::try_from(self.0.elapsed()).unwrap()
        }
    }

    async fn repository(name: &str, faults: Option<FaultPlan>) -> Repository {
        let options = StoreOptions {
            faults,
            ..StoreOptions::default()
        };
        let store = Store::open(&format!("memory://lease-{name}"), &options)
            .await
            .unwrap();
        let access = Access {
            encryption: Encryption::None,
            identities: Vec::new(),
            compression_level: 1,
        };
        let clock = PausedClock(Instant::now(), "2026-11-22T02:00:00Z".parse().unwrap());
        let repository = Repository::open_or_create(store, "main", access).await.unwrap();
        repository.with_clock(Arc::new(clock))
    }

    async fn is_held(repository: &Repository) -> bool {
        match Lease::acquire(repository, "another", DURATION).await {
            Ok(lease) => {
                lease.release().await.unwrap();
                false
            }
            Err(RepositoryError::LeaseHeld { .. }) => true,
            Err(error) => panic!("{error}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_outlives_its_duration_by_renewals() {
        let repository = repository("renewed", None).await;
        let lease = Lease::acquire(&repository, "pgkeep dump", DURATION)
            .await
            .unwrap();
        for _ in 0..40 {
            tokio::time::sleep(DURATION / 10).await;
            lease.check().unwrap();
        }
        assert!(is_held(&repository).await);
        let objects = repository.store.list("main/lease/").await.unwrap();
        assert_eq!(objects.len(), 1, "old renewals stay: {objects:?}");
        lease.release().await.unwrap();
        assert!(!is_held(&repository).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_could_not_be_renewed_is_lost_when_it_runs_out() {
        let sound = repository("counted", Some(FaultPlan::default())).await;
        let lease = Lease::acquire(&sound, "pgkeep dump", DURATION).await.unwrap();
        let counts = sound.store.requests();
        let requests = counts.puts + counts.gets + counts.lists + counts.deletes + counts.heads;
        drop(lease);
        // The store goes away at the first renewal, a third of the duration later.
        for (outage_s, survives) in [(15, true), (90, false)] {
            let faults = FaultPlan {
                outage: Some((requests, Duration::from_secs(outage_s))),
                ..FaultPlan::default()
            };
            let repository = repository(&format!("outage-{outage_s}"), Some(faults)).await;
            let lease = Lease::acquire(&repository, "pgkeep dump", DURATION)
                .await
                .unwrap();
            let until = repository.now() + SignedDuration::try_from(DURATION).unwrap();
            let mut lost_at = None;
            while lost_at.is_none() && repository.now() < until + SignedDuration::from_secs(60) {
                tokio::time::sleep(Duration::from_secs(1)).await;
                lost_at = lease.check().is_err().then(|| repository.now());
            }
            assert!(repository.store.requests().retries > 0, "there was no outage");
            assert_eq!(lost_at.is_none(), survives, "{outage_s} s");
            assert!(lost_at.is_none_or(|at| at <= until + SignedDuration::from_secs(1)));
        }
    }

    #[test]
    fn strangers_among_leases_are_passed_over() {
        assert_eq!(generation_number("0000000007"), Some(7));
        for stranger in ["7", "+000000007", "18446744073709551615", ""] {
            assert_eq!(generation_number(stranger), None, "{stranger}");
        }
    }
}
