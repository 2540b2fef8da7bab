//! A store that deletes by age never deletes what the planner keeps, as long as dumps come.

use jiff::civil::Date;
use jiff::{SignedDuration, Timestamp, Unit};
use pgkeep_repository::bucket::{ExpiryBound, Kept, Rhythm};
use pgkeep_repository::retention::{Candidate, Policy, plan};
use proptest::prelude::*;

use crate::properties::policies;
use crate::{DAY, at, backup};

/// A dump at least every 24 hours, over 900 days, at moments that vary.
fn regular_dumps() -> impl Strategy<Value = Vec<Candidate>> {
    prop::collection::vec(6 * 60_i64..=24 * 60, 1..40).prop_map(dumps_by_gaps)
}

/// Dumps that are further apart: by days, weeks, months.
fn rare_dumps() -> impl Strategy<Value = Vec<Candidate>> {
    let gaps =
        (1_i64..=70).prop_flat_map(|days_max| prop::collection::vec(6 * 60_i64..=days_max * 24 * 60, 1..40));
    gaps.prop_map(dumps_by_gaps)
}

fn dumps_by_gaps(gaps: Vec<i64>) -> Vec<Candidate> {
    let mut moment = at("2009-06-01T00:00:00Z");
    let end = at("2011-12-20T00:00:00Z");
    let mut dumps = Vec::new();
    for (number, minutes) in (0_u32..).zip(gaps.into_iter().cycle()) {
        if moment >= end {
            break;
        }
        dumps.push(backup(moment, number));
        moment += SignedDuration::from_mins(minutes);
    }
    dumps
}

/// When S3 expires what was created then: the age rounded up to midnight UTC.
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/intro-lifecycle-rules.html>
fn expires_at(created_at: Timestamp, days: u32) -> Timestamp {
    let moment = created_at
        .saturating_add(DAY * i32::try_from(days).unwrap())
        .unwrap();
    let midnight = jiff::TimestampRound::new()
        .smallest(Unit::Hour)
        .increment(24)
        .mode(jiff::RoundMode::Ceil);
    moment.round(midnight).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_least_age_never_contradicts_the_planner(
        policy in policies(),
        reuse_hours in prop::option::of(0_i64..30 * 24),
        dumps in regular_dumps(),
        now_hours in 600_i64 * 24..900 * 24,
    ) {
        let now = at("2009-06-01T00:00:00Z") + SignedDuration::from_hours(now_hours);
        let reuse_max_age = reuse_hours.map(SignedDuration::from_hours);
        let kept = Kept { policy: policy.clone(), reuse_max_age, rhythm: None };
        let ExpiryBound::AtLeast(days) = kept.expiry_bound() else {
            prop_assert!(policy.keeps_everything());
            return Ok(());
        };
        prop_assert!(kept.expiry_bound().permits(days) && !kept.expiry_bound().permits(days - 1));
        let dumps: Vec<Candidate> = dumps.into_iter().filter(|dump| dump.started_at <= now).collect();
        let plan = plan(&policy, &dumps, now);
        for decision in plan.kept() {
            // What it needs may be older than it is, by so much.
            let oldest_object = decision.id.started_at() - reuse_max_age.unwrap_or_default();
            prop_assert!(
                expires_at(oldest_object, days) >= now,
                "{decision} would have expired after {days} days, now {now}: {policy:?}"
            );
        }
    }

    #[test]
    fn nor_where_dumps_are_rare(
        policy in policies(),
        dumps in rare_dumps(),
        now_hours in 600_i64 * 24..900 * 24,
    ) {
        let now = at("2009-06-01T00:00:00Z") + SignedDuration::from_hours(now_hours);
        let days = dumps.iter().map(|dump| -> Date { dump.started_at.to_zoned(policy.time_zone.clone()).date() });
        let Some(rhythm) = Rhythm::of(days) else { return Ok(()) };
        let kept = Kept { policy: policy.clone(), reuse_max_age: None, rhythm: Some(rhythm) };
        let ExpiryBound::AtLeast(days) = kept.expiry_bound() else {
            prop_assert!(policy.keeps_everything());
            return Ok(());
        };
        if dumps.last().is_none_or(|last| last.started_at < now) {
            return Ok(());
        }
        let dumps: Vec<Candidate> = dumps.into_iter().filter(|dump| dump.started_at <= now).collect();
        for decision in plan(&policy, &dumps, now).kept() {
            prop_assert!(
                expires_at(decision.id.started_at(), days) >= now,
                "{decision} would have expired after {days} days, now {now}: {policy:?} {rhythm:?}"
            );
        }
    }
}

#[test]
fn without_a_policy_nothing_is_said_unless_dumps_build_on_each_other() {
    let kept = |reuse_max_age| Kept {
        policy: Policy::default(),
        reuse_max_age,
        rhythm: None,
    };
    assert_eq!(kept(None).expiry_bound(), ExpiryBound::Any);
    assert_eq!(kept(Some(DAY)).expiry_bound(), ExpiryBound::Never);
}
