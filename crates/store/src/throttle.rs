use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

/// Uploads of at most this many bytes don't wait: leases, which would run out behind data, tombstones, and whatever else
/// ends a run that was interrupted.
const SMALL_BYTES_MAX: u64 = 4 << 10;

/// A bandwidth limit shared by every upload of a store.
///
/// A bucket of tokens that may go into debt: an upload waits until earlier ones are paid for, then goes out at full
/// speed. So the average holds, in steps of one object; nothing is ever larger than the bucket. Small uploads are paid
/// for by those that come later.
#[derive(Debug)]
pub(crate) struct Throttle {
    bytes_per_second: u64,
    /// Held by the upload that waits to be next. Who gives up waiting owes nothing.
    turn: tokio::sync::Mutex<()>,
    /// When everything let through so far is paid for.
    paid_at: std::sync::Mutex<Instant>,
}

impl Throttle {
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            turn: tokio::sync::Mutex::new(()),
            paid_at: std::sync::Mutex::new(Instant::now()),
        }
    }

    /// Waits for its turn to send `bytes`. The wait is bounded by what was let through before at the limit's speed.
    pub(crate) async fn acquire(&self, bytes: u64) {
        if bytes <= SMALL_BYTES_MAX {
            self.pay(bytes);
            return;
        }
        let _turn = self.turn.lock().await;
        loop {
            let paid_at = *self.paid_at();
            if paid_at <= Instant::now() {
                break;
            }
            tokio::time::sleep_until(paid_at).await;
        }
        self.pay(bytes);
    }

    fn pay(&self, bytes: u64) {
        let cost = self.cost(bytes);
        let mut paid_at = self.paid_at();
        *paid_at = (*paid_at).max(Instant::now()) + cost;
    }

    fn paid_at(&self) -> std::sync::MutexGuard<'_, Instant> {
        self.paid_at.lock().unwrap_or_else(PoisonError::into_inner)
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
        let throttle = Throttle::new(1_000_000);
        let started = Instant::now();
        for _ in 0..11 {
            throttle.acquire(500_000).await;
        }
        // Ten earlier uploads of 500 kB at 1 MB a second.
        let elapsed = started.elapsed();
        assert!(
            elapsed >= Duration::from_secs(5) && elapsed < Duration::from_millis(5_100),
            "{elapsed:?}"
        );
    }

    /// A lease that waits behind data runs out; the tombstone of a dump that was given up waits for nobody.
    #[tokio::test(start_paused = true)]
    async fn small_uploads_go_at_once_and_those_given_up_cost_nothing() {
        let throttle = Throttle::new(1_000_000);
        let started = Instant::now();
        throttle.acquire(10_000_000).await;
        for _ in 0..100 {
            let waits = throttle.acquire(50_000_000);
            assert!(
                tokio::time::timeout(Duration::from_millis(1), waits)
                    .await
                    .is_err()
            );
        }
        throttle.acquire(4_000).await;
        assert!(
            started.elapsed() < Duration::from_millis(500),
            "{:?}",
            started.elapsed()
        );
        throttle.acquire(100_000).await;
        let elapsed = started.elapsed();
        assert!(
            elapsed >= Duration::from_millis(10_004) && elapsed < Duration::from_millis(10_100),
            "{elapsed:?}"
        );
    }
}
