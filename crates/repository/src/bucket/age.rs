//! From which age on a store may delete dumps by itself without contradicting the planner of retention.

use std::collections::BTreeSet;

use jiff::SignedDuration;
use jiff::civil::Date;

use crate::retention::{Policy, Rule};

/// What of dumps is kept, as far as deleting by age can contradict it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Kept {
    /// The planner's policy.
    pub policy: Policy,
    /// Where there may be incremental dumps: how much older than they are the objects may be that they need.
    pub reuse_max_age: Option<SignedDuration>,
    /// How often dumps come; none where that isn't known, and a dump a day is supposed.
    pub rhythm: Option<Rhythm>,
}

/// How far apart dumps are at most, as the planner counts: from one day that has a dump to the next, one week to the next, ...
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rhythm {
    days: u64,
    weeks: u64,
    months: u64,
    years: u64,
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
const DAY_HOURS: i64 = 24;
/// The longest of each: a store counts days.
const WEEK_DAYS: u64 = 7;
const MONTH_DAYS: u64 = 31;
const YEAR_DAYS: u64 = 366;
/// More isn't taken by S3, whose days are 32-bit integers.
const DAYS_MAX: u64 = i32::MAX as u64;

impl Default for Rhythm {
    /// Every day has its dump.
    fn default() -> Self {
        Self {
            days: 1,
            weeks: 1,
            months: 1,
            years: 1,
        }
    }
}

impl Rhythm {
    /// That of dumps on these days of the policy's time zone; none where they are too few to tell.
    pub fn of(days: impl IntoIterator<Item = Date>) -> Option<Self> {
        let days: BTreeSet<Date> = days.into_iter().collect();
        let mut rhythm = Self::default();
        let mut pairs = days.iter().zip(days.iter().skip(1)).peekable();
        pairs.peek()?;
        for (before, next) in pairs {
            let weeks = days_between(
                Rule::Weekly.period_start(*before),
                Rule::Weekly.period_start(*next),
            );
            let months = 12 * (i64::from(next.year()) - i64::from(before.year())) + i64::from(next.month())
                - i64::from(before.month());
            rhythm.days = rhythm.days.max(days_between(*before, *next));
            rhythm.weeks = rhythm.weeks.max(weeks / WEEK_DAYS);
            rhythm.months = rhythm.months.max(u64::try_from(months).unwrap_or(0));
            rhythm.years = rhythm.years.max(u64::from(next.year().abs_diff(before.year())));
        }
        Some(rhythm)
    }
}

impl Kept {
    /// From which age on dumps may go, supposed that they come as [`Kept::rhythm`] has it. After an outage the planner keeps
    /// older ones: no rule by age can follow that, nor pins.
    ///
    /// What is counted takes as many days as its rhythm does: of weekly dumps, 30 daily ones are 30 weeks. Weeks, months and
    /// years begin with any day of theirs, so there one interval comes on top. One day is added to it all: the dump that
    /// takes the oldest one's place may be hours late. With a dump a day, the same number as in
    /// `infra/terraform/s3-backups/lifecycle.tf`.
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
        let rhythm = self.rhythm.unwrap_or_default();
        let late = rhythm.days.saturating_sub(1);
        let counted = |count: u32, days: u64, slack: u64| match count {
            0 => 0,
            count => u64::from(count).saturating_mul(days).saturating_add(slack),
        };
        let longest = [
            window.map_or(0, days_up),
            counted(*daily, rhythm.days, 0),
            counted(*weekly, rhythm.weeks.saturating_mul(WEEK_DAYS), late),
            counted(*monthly, rhythm.months.saturating_mul(MONTH_DAYS), late),
            counted(*yearly, rhythm.years.saturating_mul(YEAR_DAYS), late),
            // The last good one stays until the next, whatever the policy.
            rhythm.days,
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

fn days_between(before: Date, after: Date) -> u64 {
    u64::try_from(before.duration_until(after).as_hours() / DAY_HOURS).unwrap_or(0)
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
            rhythm: None,
        }
        .expiry_bound()
    }

    #[test]
    fn rarer_dumps_are_kept_for_longer() {
        let weekly = |first: Date| std::iter::successors(Some(first), |day| day.checked_add(DAY * 7).ok());
        let mondays = Rhythm::of(weekly(jiff::civil::date(2024, 1, 1)).take(200)).unwrap();
        let expected = Rhythm {
            days: 7,
            ..Rhythm::default()
        };
        assert_eq!(mondays, expected);
        let months = (1..=12).map(|month| jiff::civil::date(2024, month, 1));
        let firsts = Rhythm::of(months).unwrap();
        assert_eq!(
            (firsts.days, firsts.weeks, firsts.months, firsts.years),
            (31, 5, 1, 1)
        );
        assert_eq!(Rhythm::of([jiff::civil::date(2024, 1, 1)]), None);

        let bound = |rhythm, policy| {
            Kept {
                policy,
                reuse_max_age: None,
                rhythm: Some(rhythm),
            }
            .expiry_bound()
        };
        let daily = Policy {
            daily: 30,
            ..Policy::default()
        };
        assert_eq!(bound(mondays, daily.clone()), ExpiryBound::AtLeast(211));
        assert_eq!(bound(firsts, daily), ExpiryBound::AtLeast(931));
        let short = Policy {
            window: Some(DAY * 3),
            ..Policy::default()
        };
        assert_eq!(bound(mondays, short), ExpiryBound::AtLeast(8));
        let monthly = Policy {
            monthly: 6,
            ..Policy::default()
        };
        assert_eq!(bound(firsts, monthly), ExpiryBound::AtLeast(6 * 31 + 30 + 1));
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
