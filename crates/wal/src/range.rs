//! The WAL that a base backup needs, received beside it.

use pgkeep_pg::Target;
use pgkeep_pg::replication::{Identity, Lifetime, ReplicationSession, StreamLimits};
use pgkeep_pgformat::{Lsn, SegmentName, SegmentSize, Timeline};
use pgkeep_repository::Repository;
use rand::Rng;
use tokio::sync::watch;

use crate::error::WalError;
use crate::server::segment_size;
use crate::start::stored_from;
use crate::state::{StreamState, Told};
use crate::storing::{Place, Storing, put_history};
use crate::stream::{Ended, Pump, Until};

/// What was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RangeReport {
    /// From where: the start of the segment that holds what was asked for.
    pub start: Lsn,
    /// Up to where all is durable.
    pub end: Lsn,
    /// How many objects were put.
    pub objects: u64,
}

/// A connection whose temporary slot holds the server's WAL from when it was made on.
pub struct RangeReceiver {
    session: ReplicationSession,
    repository: Repository,
    identity: Identity,
    segment_size: SegmentSize,
    slot: String,
}

impl RangeReceiver {
    /// Connects, and makes the slot: before the backup begins. The cluster's identity and the size of its segments are
    /// recorded in the repository.
    ///
    /// # Errors
    /// No connection, or the role may not replicate; another cluster writes under this name, unless `accept_new_identity`.
    pub async fn connect(
        target: &Target,
        repository: &Repository,
        accept_new_identity: bool,
    ) -> Result<Self, WalError> {
        let mut session = ReplicationSession::connect(target).await?;
        let identity = session.identify().await?;
        let segment_size = segment_size(&mut session).await?;
        repository
            .claim_identity(identity.system_identifier, accept_new_identity)
            .await?;
        repository
            .claim_wal(identity.system_identifier, segment_size)
            .await?;
        let slot = format!("pgkeep_{:016x}", rand::rng().random::<u64>());
        session.create_slot(&slot, Lifetime::Temporary, true).await?;
        Ok(Self {
            session,
            repository: repository.clone(),
            identity,
            segment_size,
            slot,
        })
    }

    /// What the server said of itself.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The size of its segments.
    pub fn segment_size(&self) -> SegmentSize {
        self.segment_size
    }

    /// Receives WAL of one timeline, from the start of the segment that holds `from` on, up to a position that `stop` is told
    /// in the end, or somewhat further. Returns when all of it is durable.
    ///
    /// # Errors
    /// The connection failed; the server left the timeline; the store failed; other WAL is stored; [`WalError::GivenUp`]
    /// if nobody is left who could tell `stop` anything.
    pub async fn receive(
        mut self,
        from: Lsn,
        timeline: Timeline,
        stop: watch::Receiver<Option<Lsn>>,
    ) -> Result<RangeReport, WalError> {
        let told = Told::new(watch::Sender::new(StreamState::default()));
        let place = Place {
            repository: self.repository.clone(),
            system_identifier: self.identity.system_identifier,
            persistent: false,
            told: told.clone(),
        };
        if timeline > Timeline::FIRST {
            let (_, contents) = self.session.timeline_history(timeline).await?;
            put_history(&place, timeline, contents).await?;
        }
        let start = SegmentName::holding(timeline, from, self.segment_size);
        let stored = stored_from(&place, start).await?;
        let limits = StreamLimits::default();
        let stream = self
            .session
            .start(Some(&self.slot), start.start(), timeline, limits)
            .await?;
        let pump = Pump {
            limits,
            size: self.segment_size,
            flush_after: None,
            synchronous: false,
            stall_max: None,
            releasing: None,
            told: &told,
            until: &mut UntilPosition {
                stop,
                may_change: true,
            },
        };
        let storing = Storing::begin(place, start, stored)?;
        let (ended, end, _) = pump.run(stream, storing).await?;
        match ended? {
            Ended::Stopped => {
                self.session.close().await;
                Ok(RangeReport {
                    start: start.start(),
                    end,
                    objects: told.objects(),
                })
            }
            Ended::TimelineEnd { at, .. } => Err(WalError::TimelineLeft { timeline, at }),
            Ended::Shutdown | Ended::Stalled => Err(WalError::Shutdown),
        }
    }
}

struct UntilPosition {
    stop: watch::Receiver<Option<Lsn>>,
    may_change: bool,
}

impl Until for UntilPosition {
    async fn changed(&mut self) -> Result<(), WalError> {
        if !self.may_change {
            std::future::pending::<()>().await;
        }
        if self.stop.changed().await.is_err() {
            self.may_change = false;
            if self.stop.borrow().is_none() {
                return Err(WalError::GivenUp);
            }
        }
        Ok(())
    }

    fn is_reached(&self, received: Lsn) -> bool {
        self.stop.borrow().is_some_and(|stop| received >= stop)
    }
}
