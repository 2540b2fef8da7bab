//! The receiver: WAL as the server writes it, for as long as anybody wants it.

use std::time::Duration;

use pgkeep_base::{Classified, RetryClass};
use pgkeep_pg::replication::{Identity, ReplicationSession, StreamLimits};
use pgkeep_pg::{PgError, Target};
use pgkeep_pgformat::{Lsn, SegmentName, SegmentSize, Timeline, TimelineHistory};
use pgkeep_repository::lease::{LEASE_DURATION_DEFAULT, Lease};
use pgkeep_repository::{Repository, RepositoryError};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::WalError;
use crate::guard::{Guard, GuardOptions};
use crate::pause::Pauses;
use crate::position::Positioning;
use crate::server::segment_size;
use crate::start::stored_from;
use crate::state::{GAPS_MAX, Phase, StreamState, Told};
use crate::storing::{Place, Storing, put_history};
use crate::stream::{Ended, Pump, Until};

/// Between two attempts to connect, at most.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How often it is looked whether the lease is still held.
const LEASE_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// What others read of whoever holds the lease.
const PURPOSE: &str = "pgkeep wal stream";

/// How WAL is received.
#[derive(Debug, Clone)]
pub struct ReceiverOptions {
    /// The name of the physical slot, which is made where there is none.
    pub slot: String,
    /// What has come is stored after so long, at the latest.
    pub flush_after: Duration,
    /// What has come is stored as soon as nothing that came before is under way: for a server that waits for it.
    pub synchronous: bool,
    /// A database cluster that has never written under this name may.
    pub accept_new_identity: bool,
    /// When the server is told something, and when its silence is its end.
    pub limits: StreamLimits,
    /// Nothing becomes durable for so long, and the connection is given up: a server that shuts down waits for it.
    pub stall_max: Duration,
    /// Told to stop, it stores what came, for up to so long.
    pub stop_max: Duration,
    /// How long the lease lasts without a renewal.
    pub lease_duration: Duration,
    /// What becomes of the server's disk when nothing can be stored.
    pub guard: GuardOptions,
}

impl Default for ReceiverOptions {
    fn default() -> Self {
        Self {
            slot: "pgkeep".to_owned(),
            flush_after: Duration::from_secs(10),
            synchronous: false,
            accept_new_identity: false,
            limits: StreamLimits::default(),
            stall_max: Duration::from_secs(60),
            stop_max: Duration::from_secs(60),
            lease_duration: LEASE_DURATION_DEFAULT,
            guard: GuardOptions::default(),
        }
    }
}

/// Receives a cluster's WAL and stores it.
pub struct Receiver {
    target: Target,
    repository: Repository,
    options: ReceiverOptions,
    told: Told,
    /// Which cluster it is, once that is known.
    system_identifier: Option<u64>,
    positioning: Positioning,
    /// WAL has come: what was asked for is right, and from now on failures pass.
    has_streamed: bool,
    /// True while the guard drops the slot.
    releasing: watch::Sender<bool>,
}

impl Receiver {
    /// A receiver, and what it tells of itself.
    pub fn new(
        target: Target,
        repository: Repository,
        options: ReceiverOptions,
    ) -> (Self, watch::Receiver<StreamState>) {
        let (sender, state) = watch::channel(StreamState::default());
        let told = Told::new(sender);
        let positioning = Positioning::new(&options.slot, told.clone());
        let receiver = Self {
            target,
            repository,
            options,
            told,
            system_identifier: None,
            positioning,
            has_streamed: false,
            releasing: watch::Sender::new(false),
        };
        (receiver, state)
    }

    /// Receives until `stop` says true, or nobody is left who could say it; then what came is stored, and confirmed. A
    /// connection or a store that fails is tried again for ever, once WAL has come.
    ///
    /// # Errors
    /// What doesn't pass: another server writes WAL under this name, wrong credentials from the start, and the like.
    pub async fn run(mut self, stop: watch::Receiver<bool>) -> Result<(), WalError> {
        let mut told_to_stop = stop.clone();
        let stop_max = self.options.stop_max;
        let too_long = async move {
            // Nobody left to say it is as if it were said.
            let _ = told_to_stop.wait_for(|stop| *stop).await;
            tokio::time::sleep(stop_max).await;
        };
        let guard = Guard {
            target: self.target.clone(),
            slot: self.options.slot.clone(),
            options: self.options.guard,
            told: self.told.clone(),
            releasing: self.releasing.clone(),
        };
        tokio::select! {
            result = self.hold_and_receive(stop) => result,
            () = guard.run() => Err(WalError::Internal("the guard ended by itself".to_owned())),
            () = too_long => Err(WalError::NotStored { after: stop_max }),
        }
    }

    async fn hold_and_receive(&mut self, stop: watch::Receiver<bool>) -> Result<(), WalError> {
        let mut stopping = Stopping::new(stop);
        loop {
            let Some(lease) = self.acquire(&mut stopping).await? else {
                return Ok(());
            };
            stopping.lease = Some(lease);
            let result = self.receive(&mut stopping).await;
            self.told.change(|state| state.phase = Phase::Stopping);
            let lost = matches!(
                result,
                Err(WalError::Repository(RepositoryError::LeaseLost { .. }))
            );
            if let Some(lease) = stopping.lease.take()
                && !lost
                && let Err(error) = lease.release().await
            {
                tracing::warn!(%error, "the lease can't be given back, and will run out");
            }
            match result {
                Err(error) if lost => tracing::warn!(%error, "it is taken again"),
                result => return result,
            }
        }
    }

    /// Waits for the lease; `None` if it is told to stop before.
    async fn acquire(&mut self, stopping: &mut Stopping) -> Result<Option<Lease>, WalError> {
        let mut pauses = Pauses::new(PAUSE_MAX);
        loop {
            let acquiring = Lease::acquire_wal(&self.repository, PURPOSE, self.options.lease_duration);
            let acquired = tokio::select! {
                acquired = acquiring => acquired,
                () = stopping.told() => return Ok(None),
            };
            let error = match acquired {
                Ok(lease) => return Ok(Some(lease)),
                Err(error @ RepositoryError::LeaseHeld { .. }) => error,
                Err(error) if self.has_streamed && error.retry_class() == RetryClass::Transient => error,
                Err(error) => return Err(error.into()),
            };
            self.wait(Phase::Waiting, &error.to_string(), pauses.next(), stopping)
                .await;
            if stopping.is_told() {
                return Ok(None);
            }
        }
    }

    async fn wait(&self, phase: Phase, why: &str, pause: Duration, stopping: &mut Stopping) {
        tracing::warn!("{why}; trying again in {} ms", pause.as_millis());
        self.told.change(|state| {
            state.phase = phase;
            state.server_trouble = Some(why.to_owned());
        });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stopping.told() => {}
        }
    }

    /// Connection after connection.
    async fn receive(&mut self, stopping: &mut Stopping) -> Result<(), WalError> {
        let mut pauses = Pauses::new(PAUSE_MAX);
        loop {
            let durable = self.told.durable();
            let mut releasing = self.releasing.subscribe();
            let result = tokio::select! {
                result = async {
                    // It ends only with this receiver.
                    let _ = releasing.wait_for(|releasing| !*releasing).await;
                    self.connect().await
                } => result,
                () = stopping.told() => return Ok(()),
            };
            let result = match result {
                Ok((session, identity, size)) => self.stream(session, identity, size, stopping).await,
                Err(error) => Err(error),
            };
            let error = match result {
                Ok(Ended::Stopped) => return Ok(()),
                // It answers, but nothing could be stored for a while. What came is stored now.
                Ok(Ended::Stalled) => {
                    pauses = Pauses::new(PAUSE_MAX);
                    continue;
                }
                Ok(_) => WalError::Shutdown,
                Err(error) => error,
            };
            if !self.passes(&error) {
                return Err(error);
            }
            if self.told.durable() > durable {
                pauses = Pauses::new(PAUSE_MAX);
            }
            self.told.change(|state| state.reconnects += 1);
            self.wait(Phase::Connecting, &error.to_string(), pauses.next(), stopping)
                .await;
            if stopping.is_told() {
                return Ok(());
            }
            stopping.check_lease()?;
        }
    }

    /// Whether it may be over the next time.
    fn passes(&self, error: &WalError) -> bool {
        match error {
            WalError::Server(PgError::Server(error)) if is_passing(&error.sqlstate) => true,
            WalError::Server(_) if self.has_streamed => true,
            WalError::Repository(RepositoryError::LeaseLost { .. }) => false,
            WalError::Repository(RepositoryError::Store(_)) if self.has_streamed => true,
            error => error.retry_class() == RetryClass::Transient,
        }
    }

    async fn connect(&mut self) -> Result<(ReplicationSession, Identity, SegmentSize), WalError> {
        self.told.change(|state| state.phase = Phase::Connecting);
        let mut session = ReplicationSession::connect(&self.target).await?;
        let identity = session.identify().await?;
        let size = segment_size(&mut session).await?;
        match self.system_identifier {
            None => {
                let accept_new = self.options.accept_new_identity;
                self.repository
                    .claim_identity(identity.system_identifier, accept_new)
                    .await?;
                self.repository
                    .claim_wal(identity.system_identifier, size)
                    .await?;
                self.system_identifier = Some(identity.system_identifier);
            }
            Some(ours) if ours != identity.system_identifier => {
                return Err(WalError::OtherSystem {
                    what: format!("the server at {}", self.target.endpoint()),
                    found: identity.system_identifier,
                    ours,
                });
            }
            Some(_) => {}
        }
        Ok((session, identity, size))
    }

    /// One connection, over all timelines that it goes through.
    async fn stream(
        &mut self,
        mut session: ReplicationSession,
        identity: Identity,
        size: SegmentSize,
        stopping: &mut Stopping,
    ) -> Result<Ended, WalError> {
        let place = Place {
            repository: self.repository.clone(),
            system_identifier: identity.system_identifier,
            persistent: true,
            told: self.told.clone(),
        };
        let mut start = self
            .positioning
            .start(&mut session, &place, &identity, size)
            .await?;
        loop {
            let (timeline, at) = (start.timeline, start.at);
            if timeline > Timeline::FIRST {
                let (_, contents) = session.timeline_history(timeline).await?;
                TimelineHistory::parse(timeline, &contents)?;
                put_history(&place, timeline, contents).await?;
            }
            let segment = SegmentName::holding(timeline, at, size);
            let stored = stored_from(&place, segment).await?;
            let stream = session
                .start(Some(&self.options.slot), at, timeline, self.options.limits)
                .await?;
            self.told.change(|state| {
                state.phase = Phase::Streaming;
                state.timeline = Some(timeline);
                state.server_trouble = None;
                if let Some(gap) = start.gap.filter(|gap| !state.gaps.contains(gap)) {
                    state.gaps.truncate(GAPS_MAX - 1);
                    state.gaps.push(gap);
                }
            });
            let pump = Pump {
                limits: self.options.limits,
                size,
                flush_after: Some(self.options.flush_after),
                synchronous: self.options.synchronous,
                stall_max: Some(self.options.stall_max),
                releasing: Some(self.releasing.subscribe()),
                told: &self.told,
                until: stopping,
            };
            let storing = Storing::begin(place.clone(), segment, stored)?;
            let (ended, received, rest) = pump.run(stream, storing).await?;
            if received > at {
                self.has_streamed = true;
                self.positioning.has_come();
            }
            match ended {
                Ok(Ended::TimelineEnd { next, at }) => {
                    start = self.positioning.next_timeline(next, at, size);
                }
                ended => {
                    drop(session);
                    if let Some(rest) = rest {
                        rest.store().await?;
                    }
                    if let Err(error) = &ended {
                        self.positioning.has_failed(at, received, error);
                    }
                    return Ok(ended?);
                }
            }
        }
    }
}

/// Errors that say that it may be different in a moment: the slot is used (`object_in_use`), it was lost
/// (`object_not_in_prerequisite_state`), WAL isn't there (`undefined_file`), the server starts or shuts down.
fn is_passing(sqlstate: &str) -> bool {
    matches!(
        sqlstate,
        "55006" | "55000" | "58P01" | "57P01" | "57P02" | "57P03"
    )
}

/// Knows when to stop, and whether the lease is still held.
struct Stopping {
    stop: watch::Receiver<bool>,
    lease: Option<Lease>,
    check_due: Instant,
}

impl Stopping {
    fn new(stop: watch::Receiver<bool>) -> Self {
        Self {
            stop,
            lease: None,
            check_due: Instant::now() + LEASE_CHECK_INTERVAL,
        }
    }

    fn is_told(&self) -> bool {
        *self.stop.borrow() || self.stop.has_changed().is_err()
    }

    /// Waits until it is told to stop.
    async fn told(&mut self) {
        // Nobody left to say it is as if it were said.
        let _ = self.stop.wait_for(|stop| *stop).await;
    }

    fn check_lease(&self) -> Result<(), WalError> {
        match &self.lease {
            Some(lease) => Ok(lease.check()?),
            None => Ok(()),
        }
    }
}

impl Until for Stopping {
    async fn changed(&mut self) -> Result<(), WalError> {
        let due = self.check_due;
        tokio::select! {
            () = self.told() => Ok(()),
            () = tokio::time::sleep_until(due) => {
                self.check_due = Instant::now() + LEASE_CHECK_INTERVAL;
                self.check_lease()
            }
        }
    }

    fn is_reached(&self, _: Lsn) -> bool {
        self.is_told()
    }
}
