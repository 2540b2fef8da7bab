use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

/// How long and how often a failed request is sent again.
///
/// The pauses have full jitter: each is random between zero and a ceiling that doubles from `backoff_base` to
/// `backoff_max`, so that many clients that failed together don't come back together
/// (<https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryOptions {
    /// Attempts of one request, the first included. At least 1.
    pub attempts_max: u32,
    /// Attempts that are made however long they take: one large upload that stalls must not use up all the time.
    pub attempts_min: u32,
    /// Time after which no further attempt begins, counted from the first one (for a download: from the last byte that
    /// arrived).
    pub elapsed_max: Duration,
    /// The same for as long as the store has never answered: a wrong endpoint should fail before it bores.
    pub first_contact_elapsed_max: Duration,
    /// Ceiling of the first pause.
    pub backoff_base: Duration,
    /// Highest ceiling of a pause.
    pub backoff_max: Duration,
}

impl Default for RetryOptions {
    /// Rides out five minutes without the store, 90 s if it never answered at all.
    fn default() -> Self {
        Self {
            attempts_max: 60,
            attempts_min: 3,
            elapsed_max: Duration::from_secs(300),
            first_contact_elapsed_max: Duration::from_secs(90),
            backoff_base: Duration::from_millis(200),
            backoff_max: Duration::from_secs(10),
        }
    }
}

impl RetryOptions {
    /// The longest pause after this many failures.
    pub(crate) fn ceiling(&self, failures: u32) -> Duration {
        let factor = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        self.backoff_base.saturating_mul(factor).min(self.backoff_max)
    }
}

/// The budget of one request.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    options: RetryOptions,
    started: Instant,
    failures: u32,
}

impl RetryBudget {
    pub(crate) fn new(options: RetryOptions) -> Self {
        Self {
            options,
            started: Instant::now(),
            failures: 0,
        }
    }

    /// Counts a failure. The pause before the next attempt, or none when the budget is spent.
    pub(crate) fn after_failure(&mut self, contacted: bool) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= self.options.attempts_max.max(1) {
            return None;
        }
        let ceiling = self.options.ceiling(self.failures);
        let pause = rand::rng().random_range(Duration::ZERO..=ceiling);
        let in_time = pause <= self.left(contacted);
        (in_time || self.failures < self.options.attempts_min).then_some(pause)
    }

    /// How long further attempts may still begin.
    pub(crate) fn left(&self, contacted: bool) -> Duration {
        let limit = match contacted {
            true => self.options.elapsed_max,
            false => self
                .options
                .elapsed_max
                .min(self.options.first_contact_elapsed_max),
        };
        limit.saturating_sub(self.started.elapsed())
    }

    /// Something arrived: the budget is for failures without progress.
    pub(crate) fn progressed(&mut self) {
        self.failures = 0;
        self.started = Instant::now();
    }

    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ceilings_grow_and_stay_below_the_maximum(
            base_ms in 1_u64..5_000, max_ms in 1_u64..60_000, failures in 1_u32..200,
        ) {
            let options = RetryOptions {
                backoff_base: Duration::from_millis(base_ms),
                backoff_max: Duration::from_millis(max_ms),
                ..RetryOptions::default()
            };
            prop_assert!(options.ceiling(failures) <= options.ceiling(failures + 1));
            prop_assert!(options.ceiling(failures) <= options.backoff_max);
            prop_assert_eq!(options.ceiling(1), options.backoff_base.min(options.backoff_max));
        }

        #[test]
        fn the_budget_ends_by_attempts_and_by_time(attempts_max in 1_u32..50, elapsed_s in 1_u64..600, seed_ms in 1_u64..3_000) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let options = RetryOptions {
                    attempts_max,
                    elapsed_max: Duration::from_secs(elapsed_s),
                    attempts_min: 1,
                    backoff_base: Duration::from_millis(seed_ms),
                    ..RetryOptions::default()
                };
                let elapsed_max = options.elapsed_max;
                let started = Instant::now();
                let mut budget = RetryBudget::new(options);
                assert_eq!(budget.left(true), elapsed_max);
                assert_eq!(budget.left(false), elapsed_max.min(options.first_contact_elapsed_max));
                let mut attempts = 1;
                while let Some(pause) = budget.after_failure(true) {
                    assert!(pause <= options.ceiling(attempts));
                    tokio::time::sleep(pause).await;
                    attempts += 1;
                }
                assert!(attempts <= attempts_max);
                assert!(started.elapsed() <= Duration::from_secs(elapsed_s) + Duration::from_millis(2 * u64::from(attempts)));
            });
        }
    }
}
