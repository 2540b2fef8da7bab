use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

/// A bandwidth limit shared by every upload of a store.
///
/// A bucket of tokens that may go into debt: an upload waits until earlier ones are paid for, then goes out at full
/// speed. So the average holds, in steps of one object; nothing is ever larger than the bucket.
#[derive(Debug)]
pub(crate) struct Throttle {
    bytes_per_second: u64,
    /// When everything let through so far is paid for.
    paid_at: Mutex<Instant>,
}

impl Throttle {
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            paid_at: Mutex::new(Instant::now()),
        }
    }

    /// Waits for its turn to send `bytes`. The wait is bounded by what was let through before at the limit's speed.
    pub(crate) async fn acquire(&self, bytes: u64) {
        let start = {
            let mut paid_at = self.paid_at.lock().await;
            let start = (*paid_at).max(Instant::now());
            *paid_at = start + self.cost(bytes);
            start
        };
        tokio::time::sleep_until(start).await;
    }

    fn cost(&self, bytes: u64) -> Duration {
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        // A year is for ever, and keeps the clock's arithmetic from overflowing.
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
            .min(Duration::from_secs(31_536_000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_average_stays_at_the_limit() {
        let throttle = Throttle::new(1_000);
        let started = Instant::now();
        for _ in 0..11 {
            throttle.acquire(500).await;
        }
        // Ten earlier uploads of 500 bytes at 1000 bytes a second.
        let elapsed = started.elapsed();
        assert!(
            elapsed >= Duration::from_secs(5) && elapsed < Duration::from_millis(5_100),
            "{elapsed:?}"
        );
    }
}
