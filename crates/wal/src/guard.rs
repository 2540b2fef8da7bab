//! The guard of the server's disk: how much WAL the server keeps for the slot, and what gives way when that is too much.

use std::path::Path;
use std::time::Duration;

use pgkeep_pg::replication::ReplicationSession;
use pgkeep_pg::{PgError, Target};
use pgkeep_store::Disk;
use tokio::sync::watch;

use crate::error::WalError;
use crate::files::System;
use crate::server::bytes_of;
use crate::state::{FillLevel, Phase, SlotFill, Told};

/// At most so much is kept for the slot, unless somebody says otherwise.
const SLOT_BYTES_DEFAULT: u64 = 8 << 30;
/// Of the server's free disk, if that is seen.
const DISK_PART: u64 = 4;
/// Asking must not take longer.
const ASK_MAX: Duration = Duration::from_secs(10);
/// So often a slot is tried to be dropped that is still in use, and in between.
const DROP_ATTEMPTS_MAX: u32 = 60;
const DROP_PAUSE: Duration = Duration::from_millis(500);
/// `undefined_object`: there is no such slot.
const UNDEFINED: &str = "42704";

/// What gives way at the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AtLimit {
    /// The slot is dropped and made anew: the server goes on, and WAL that it removes before it is stored is lost.
    #[default]
    Release,
    /// Nothing: the server keeps all WAL, until its disk is full.
    Hold,
}

/// How the server's disk is guarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuardOptions {
    /// The server may keep so much WAL for the slot, in bytes; `None`: the least of 8 GiB, a quarter of the server's free disk where
    /// that is seen, and its `max_slot_wal_keep_size`.
    pub slot_bytes_max: Option<u64>,
    /// What gives way then.
    pub at_limit: AtLimit,
    /// How often it is looked, while anything waits to be stored.
    pub interval: Duration,
}

impl Default for GuardOptions {
    fn default() -> Self {
        Self {
            slot_bytes_max: None,
            at_limit: AtLimit::default(),
            interval: Duration::from_secs(30),
        }
    }
}

/// Looks, for as long as a receiver is at work.
pub(crate) struct Guard {
    pub target: Target,
    pub slot: String,
    pub options: GuardOptions,
    pub told: Told,
    /// True while the slot is being dropped: nobody may use it then.
    pub releasing: watch::Sender<bool>,
}

impl Guard {
    /// Never ends.
    pub async fn run(&self) {
        loop {
            tokio::time::sleep(self.options.interval).await;
            if !self.told.may_lag() {
                self.told.set_slot_fill(None);
                continue;
            }
            match tokio::time::timeout(ASK_MAX, self.ask()).await {
                Ok(Ok(Some(fill))) => self.has_seen(fill).await,
                // Without a slot nothing is kept for it.
                Ok(Ok(None)) => self.told.set_slot_fill(None),
                Ok(Err(error)) => tracing::debug!(%error, "how much the server keeps isn't known"),
                Err(_) => tracing::debug!("how much the server keeps isn't known: no answer"),
            }
        }
    }

    async fn has_seen(&self, fill: SlotFill) {
        self.told.set_slot_fill(Some(fill));
        if fill.level < FillLevel::Full || self.options.at_limit == AtLimit::Hold {
            return;
        }
        tracing::warn!(
            "the server keeps {} bytes of WAL for slot {}, {} may be: the slot is dropped",
            fill.kept_bytes,
            self.slot,
            fill.limit_bytes
        );
        self.releasing.send_replace(true);
        for _ in 0..DROP_ATTEMPTS_MAX {
            match tokio::time::timeout(ASK_MAX, self.drop_slot()).await {
                Ok(Ok(())) => {
                    self.told.change(|state| {
                        state.releases += 1;
                        state.slot_fill = None;
                    });
                    break;
                }
                Ok(Err(error)) => tracing::debug!(%error, "the slot can't be dropped yet"),
                Err(_) => tracing::debug!("the slot can't be dropped yet: no answer"),
            }
            tokio::time::sleep(DROP_PAUSE).await;
        }
        self.releasing.send_replace(false);
    }

    async fn drop_slot(&self) -> Result<(), WalError> {
        let mut session = ReplicationSession::connect(&self.target).await?;
        let dropped = session.drop_slot(&self.slot, false).await;
        session.close().await;
        match dropped {
            Err(PgError::Server(error)) if error.sqlstate == UNDEFINED => Ok(()),
            dropped => Ok(dropped?),
        }
    }

    /// How full it is; `None` without a slot that holds anything.
    async fn ask(&self) -> Result<Option<SlotFill>, WalError> {
        let mut session = ReplicationSession::connect(&self.target).await?;
        let identity = session.identify().await?;
        let position = session.read_slot(&self.slot).await?;
        let Some((restart, _)) = position.and_then(|position| position.restart) else {
            session.close().await;
            return Ok(None);
        };
        let kept_bytes = identity.flushed.bytes_since(restart).unwrap_or(0);
        let limit_bytes = match self.options.slot_bytes_max {
            Some(limit) => limit,
            None => {
                let by_server = session.show("max_slot_wal_keep_size").await.ok();
                let by_server = by_server.and_then(|size| bytes_of(&size));
                // Which a role without more rights isn't told.
                let directory = session.show("data_directory").await.ok();
                let by_disk = match directory {
                    Some(directory) => quarter(&directory, identity.system_identifier, kept_bytes).await,
                    None => None,
                };
                [Some(SLOT_BYTES_DEFAULT), by_server, by_disk]
                    .into_iter()
                    .flatten()
                    .min()
                    .unwrap_or(SLOT_BYTES_DEFAULT)
            }
        };
        session.close().await;
        Ok(Some(SlotFill::new(kept_bytes, limit_bytes)))
    }
}

/// A quarter of what would be free without this WAL, if that directory is here and that cluster's.
async fn quarter(directory: &str, system_identifier: u64, kept_bytes: u64) -> Option<u64> {
    let directory = Path::new(directory);
    let here = System::of_data_directory(directory).await.ok()?;
    if here.identifier != system_identifier {
        return None;
    }
    let free_bytes = Disk::of(&directory.join("pg_wal"))?.free_bytes;
    Some(free_bytes.saturating_add(kept_bytes) / DISK_PART)
}

impl Told {
    /// Whether the server may be keeping more than a moment's WAL, and it is this receiver's slot that it keeps it for.
    fn may_lag(&self) -> bool {
        let state = self.current();
        match state.phase {
            Phase::Starting | Phase::Waiting | Phase::Stopping => false,
            Phase::Connecting => true,
            Phase::Streaming => state.durable < state.received || state.store_trouble.is_some(),
        }
    }
}
