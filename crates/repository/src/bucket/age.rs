//! From which age on a store may delete dumps by itself without contradicting the planner of retention.

use jiff::SignedDuration;

use crate::retention::Policy;

/// What of dumps is kept, as far as deleting by age can contradict it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Kept {
    /// The planner's policy.
    pub policy: Policy,
    /// With incremental dumps: how much older than they are the objects may be that they need.
    pub reuse_max_age: Option<SignedDuration>,
}

/// When a store may delete dumps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpiryBound {
    /// Whenever somebody wants it to: nothing is said about it.
    Any,
    /// Not before they are so many days old.
    AtLeast(u32),
    /// At no age: dumps that build on earlier ones are kept for ever.
    Never,
}

const DAY_SECONDS: u64 = 24 * 3600;
/// The longest of each: a store counts days.
const WEEK_DAYS: u64 = 7;
const MONTH_DAYS: u64 = 31;
const YEAR_DAYS: u64 = 366;
/// More isn't taken by S3, whose days are 32-bit integers.
const DAYS_MAX: u64 = i32::MAX as u64;

impl Kept {
    /// From which age on dumps may go, supposed that every day has its dump, or every week, month and year that the policy
    /// counts. After an outage the planner keeps older ones: no rule by age can follow that, nor pins.
    ///
    /// One day is added to the longest that the policy asks for: the dump that takes the oldest one's place may be hours late.
    /// The same number as in `infra/terraform/s3-backups/lifecycle.tf`.
    pub fn expiry_bound(&self) -> ExpiryBound {
        let reuse_days = self.reuse_max_age.map(days_up);
        if self.policy.keeps_everything() {
            return match reuse_days {
                None => ExpiryBound::Any,
                Some(_) => ExpiryBound::Never,
            };
        }
        let Policy {
            window,
            daily,
            weekly,
            monthly,
            yearly,
            ..
        } = &self.policy;
        let longest = [
            window.map_or(0, days_up),
            u64::from(*daily),
            u64::from(*weekly) * WEEK_DAYS,
            u64::from(*monthly) * MONTH_DAYS,
            u64::from(*yearly) * YEAR_DAYS,
        ];
        let longest = longest.into_iter().max().unwrap_or(0);
        let least = longest.saturating_add(reuse_days.unwrap_or(0)).saturating_add(1);
        match u32::try_from(least) {
            Ok(days) if least <= DAYS_MAX => ExpiryBound::AtLeast(days),
            _ => ExpiryBound::Never,
        }
    }
}

impl ExpiryBound {
    /// Whether a store may delete dumps of this age.
    pub fn permits(self, days: u32) -> bool {
        match self {
            Self::Any => true,
            Self::AtLeast(least) => days >= least,
            Self::Never => false,
        }
    }
}

/// Whole days, rounded up.
fn days_up(duration: SignedDuration) -> u64 {
    let seconds = u64::try_from(duration.as_secs()).unwrap_or(0);
    seconds.div_ceil(DAY_SECONDS) + u64::from(duration.subsec_nanos() > 0 && seconds % DAY_SECONDS == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: SignedDuration = SignedDuration::from_hours(24);

    fn bound(
        window: Option<SignedDuration>,
        counts: [u32; 4],
        reuse_max_age: Option<SignedDuration>,
    ) -> ExpiryBound {
        let [daily, weekly, monthly, yearly] = counts;
        let policy = Policy {
            window,
            daily,
            weekly,
            monthly,
            yearly,
            ..Policy::default()
        };
        Kept {
            policy,
            reuse_max_age,
        }
        .expiry_bound()
    }

    #[test]
    fn the_longest_that_is_kept_counts_and_what_dumps_reuse() {
        let at_least = ExpiryBound::AtLeast;
        assert_eq!(bound(None, [0; 4], None), ExpiryBound::Any);
        assert_eq!(bound(None, [0; 4], Some(DAY * 7)), ExpiryBound::Never);
        assert_eq!(bound(Some(DAY * 30), [0; 4], None), at_least(31));
        assert_eq!(bound(Some(DAY * 30), [0; 4], Some(DAY * 7)), at_least(38));
        assert_eq!(bound(Some(DAY * 30), [7, 4, 6, 0], None), at_least(187));
        assert_eq!(
            bound(Some(SignedDuration::from_hours(25)), [0; 4], None),
            at_least(3)
        );
        assert_eq!(bound(Some(SignedDuration::new(1, 1)), [0; 4], None), at_least(2));
        assert_eq!(
            bound(Some(DAY + SignedDuration::from_nanos(1)), [0; 4], None),
            at_least(3)
        );
        assert_eq!(bound(None, [0, 0, 0, 2], Some(DAY)), at_least(734));
        assert_eq!(bound(None, [0, 0, 0, u32::MAX], None), ExpiryBound::Never);
        assert!(!at_least(38).permits(37) && at_least(38).permits(38));
    }
}
