use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// How far a long job is: counters that the job raises and the screen reads.
#[derive(Debug, Default)]
pub struct Progress {
    phase: Mutex<String>,
    /// Expected size of all that is to be done, in bytes; an estimate.
    pub bytes_total: AtomicU64,
    /// Done of it, in bytes.
    pub bytes_done: AtomicU64,
    /// Stored or fetched bytes, as they travel to or from the repository.
    pub bytes_stored: AtomicU64,
    /// Rows read or written.
    pub rows: AtomicU64,
    /// Relations finished.
    pub relations_done: AtomicU64,
    /// Relations to do.
    pub relations_total: AtomicU64,
}

impl Progress {
    /// Names what is going on, in the present tense.
    pub fn set_phase(&self, phase: impl Into<String>) {
        *self
            .phase
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = phase.into();
    }

    /// What is going on.
    pub fn phase(&self) -> String {
        self.phase
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    /// Raises one of the counters.
    pub fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }
}
