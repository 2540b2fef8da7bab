use std::sync::Arc;

use pgkeep_pgformat::{Lsn, Timeline};
use tokio::sync::watch;

/// What a receiver is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// It hasn't begun.
    #[default]
    Starting,
    /// Another receiver is, or may be, at work.
    Waiting,
    /// It connects, and finds out where to go on.
    Connecting,
    /// WAL comes, as the server writes it.
    Streaming,
    /// It puts away what it has, and ends.
    Stopping,
}

/// A piece of WAL that nobody has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The timeline.
    pub timeline: Timeline,
    /// The first position that is missing.
    pub start: Lsn,
    /// The first that is there again.
    pub end: Lsn,
}

/// How near the limit is what a server keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FillLevel {
    /// Less than half.
    Low,
    /// Half of it.
    Half,
    /// 80 %.
    High,
    /// All of it.
    Full,
}

/// How much WAL a server keeps for the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotFill {
    /// So much, in bytes.
    pub kept_bytes: u64,
    /// So much it may be, in bytes.
    pub limit_bytes: u64,
    /// How near the one is to the other.
    pub level: FillLevel,
}

impl SlotFill {
    pub(crate) fn new(kept_bytes: u64, limit_bytes: u64) -> Self {
        let percent = u128::from(kept_bytes) * 100 / u128::from(limit_bytes.max(1));
        let level = match percent {
            0..50 => FillLevel::Low,
            50..80 => FillLevel::Half,
            80..100 => FillLevel::High,
            _ => FillLevel::Full,
        };
        Self {
            kept_bytes,
            limit_bytes,
            level,
        }
    }
}

/// How a receiver fares.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StreamState {
    /// What it is about.
    pub phase: Phase,
    /// The timeline that it receives.
    pub timeline: Option<Timeline>,
    /// How far WAL has come.
    pub received: Lsn,
    /// How far it is durable, without a gap from where it was begun.
    pub durable: Lsn,
    /// How far the server says that it is.
    pub server_end: Lsn,
    /// Why there is no connection, or why it waits.
    pub server_trouble: Option<String>,
    /// Why nothing can be stored.
    pub store_trouble: Option<String>,
    /// How often the connection had to be made again.
    pub reconnects: u64,
    /// Objects stored by this receiver.
    pub objects: u64,
    /// Their contents as WAL, in bytes; some of it more than once.
    pub plain_bytes: u64,
    /// How much the server keeps, while it is looked at because something waits to be stored.
    pub slot_fill: Option<SlotFill>,
    /// How often the slot was dropped because it kept too much.
    pub releases: u64,
    /// WAL that is lost, the oldest first, at most [`GAPS_MAX`].
    pub gaps: Vec<Gap>,
}

/// More gaps than this are one great one.
pub const GAPS_MAX: usize = 100;

/// Where a receiver tells how it fares.
#[derive(Debug, Clone)]
pub(crate) struct Told(Arc<watch::Sender<StreamState>>);

impl Told {
    pub fn new(sender: watch::Sender<StreamState>) -> Self {
        Self(Arc::new(sender))
    }

    pub fn change(&self, change: impl FnOnce(&mut StreamState)) {
        self.0.send_modify(change);
    }

    /// How far all is durable.
    pub fn durable(&self) -> Lsn {
        self.0.borrow().durable
    }

    /// All that is told.
    pub fn current(&self) -> StreamState {
        self.0.borrow().clone()
    }

    /// How much the server keeps.
    pub fn set_slot_fill(&self, fill: Option<SlotFill>) {
        self.0.send_if_modified(|state| {
            let changed = state.slot_fill != fill;
            state.slot_fill = fill;
            changed
        });
    }

    /// Objects stored so far.
    pub fn objects(&self) -> u64 {
        self.0.borrow().objects
    }

    /// The same, for what mustn't wake anybody up who waits for news if nothing is new.
    pub fn set_trouble(&self, trouble: Option<String>, field: fn(&mut StreamState) -> &mut Option<String>) {
        self.0.send_if_modified(|state| {
            let current = field(state);
            let changed = *current != trouble;
            *current = trouble;
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_and_four_fifths_and_all_are_told() {
        let level = |kept: u64| SlotFill::new(kept, 1000).level;
        assert_eq!(level(499), FillLevel::Low);
        assert_eq!(level(500), FillLevel::Half);
        assert_eq!(level(799), FillLevel::Half);
        assert_eq!(level(800), FillLevel::High);
        assert_eq!(level(999), FillLevel::High);
        assert_eq!(level(1000), FillLevel::Full);
        assert_eq!(SlotFill::new(1, 0).level, FillLevel::Full);
    }
}
