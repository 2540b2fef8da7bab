use std::collections::BTreeSet;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use pgkeep_base::BackupId;
use pgkeep_repository::retention::{Candidate, Plan, Policy, Reason, Rule, plan};
use proptest::prelude::*;

use crate::{at, backup, good, kept, removed};

pub fn policies() -> impl Strategy<Value = Policy> {
    let zones = prop::sample::select(vec![
        "UTC",
        "Europe/Berlin",
        "America/St_Johns",
        "Pacific/Apia",
        "Asia/Kolkata",
    ]);
    (
        prop::option::of(0_i64..60 * 24),
        0_u32..8,
        0_u32..5,
        0_u32..5,
        0_u32..3,
        zones,
    )
        .prop_map(|(window_hours, daily, weekly, monthly, yearly, zone)| Policy {
            window: window_hours.map(SignedDuration::from_hours),
            daily,
            weekly,
            monthly,
            yearly,
            time_zone: TimeZone::get(zone).unwrap(),
        })
}

/// Up to 60 backups in the 3 years around the time-zone traps of 2010 and 2011, some after `now`.
fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
    let one = (
        0_i64..3 * 365 * 24 * 60,
        prop::bool::weighted(0.85),
        prop::option::weighted(0.4, prop::bool::weighted(0.6)),
        prop::bool::weighted(0.1),
        1_u64..4,
    );
    prop::collection::vec(one, 0..60).prop_map(|all| {
        let start = at("2009-06-01T00:00:00Z");
        let mut candidates: Vec<Candidate> = Vec::new();
        for (at, (minutes, completed, verified, pinned, system)) in all.into_iter().enumerate() {
            let mut candidate = backup(
                start + SignedDuration::from_mins(minutes),
                u32::try_from(at).unwrap(),
            );
            candidate.completed = completed;
            candidate.verified = verified;
            candidate.pinned = pinned.then(|| "why".to_owned());
            candidate.system_identifier = Some(system).filter(|system| *system < 3);
            candidates.push(candidate);
        }
        candidates
    })
}

fn now() -> impl Strategy<Value = Timestamp> {
    (0_i64..4 * 365 * 24).prop_map(|hours| at("2009-06-01T00:00:00Z") + SignedDuration::from_hours(hours))
}

fn is_good(candidate: &Candidate) -> bool {
    candidate.completed && candidate.verified != Some(false)
}

fn count(plan: &Plan, rule: Rule) -> usize {
    let chosen = |reason: &Reason| matches!(reason, Reason::Newest { rule: by, .. } if *by == rule);
    plan.decisions
        .iter()
        .filter(|decision| decision.reasons.iter().any(chosen))
        .count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_must_stay_stays(policy in policies(), candidates in candidates(), now in now()) {
        let plan = plan(&policy, &candidates, now);
        let gone = removed(&plan);
        let complete: BTreeSet<BackupId> = candidates.iter().filter(|c| c.completed).map(|c| c.id.clone()).collect();
        let decided: BTreeSet<BackupId> = plan.decisions.iter().map(|decision| decision.id.clone()).collect();
        prop_assert_eq!(&decided, &complete);
        prop_assert_eq!(plan.decisions.len(), complete.len());
        prop_assert_eq!(plan.incomplete.len(), candidates.len() - complete.len());
        for candidate in &candidates {
            if candidate.pinned.is_some() || candidate.started_at > now || !candidate.completed
                || policy.window.is_some_and(|window| candidate.started_at >= now - window)
                || policy.keeps_everything()
            {
                prop_assert!(!gone.contains(&candidate.id), "{} went", candidate.id);
            }
        }
        for system in [Some(1), Some(2), None] {
            let of_system: Vec<&Candidate> =
                candidates.iter().filter(|c| c.system_identifier == system && c.completed && c.started_at <= now).collect();
            let last = of_system.iter().filter(|c| is_good(c)).max_by_key(|c| (c.started_at, c.id.clone()));
            match last {
                Some(last) => prop_assert!(!gone.contains(&last.id), "the last good one of {system:?} went"),
                None => prop_assert!(of_system.iter().all(|c| !gone.contains(&c.id))),
            }
        }
        for decision in &plan.decisions {
            prop_assert!(!decision.reasons.is_empty());
            prop_assert_eq!(decision.keep, decision.reasons.iter().all(|r| !matches!(r, Reason::Expired { .. })));
        }
    }

    #[test]
    fn each_counting_rule_chooses_as_many_as_it_may(policy in policies(), candidates in candidates(), now in now()) {
        let plan = plan(&policy, &candidates, now);
        for (rule, limit) in [
            (Rule::Daily, policy.daily), (Rule::Weekly, policy.weekly),
            (Rule::Monthly, policy.monthly), (Rule::Yearly, policy.yearly),
        ] {
            let periods = {
                let one_rule = Policy { time_zone: policy.time_zone.clone(), ..Policy::default() };
                let unlimited = match rule {
                    Rule::Daily => Policy { daily: u32::MAX, ..one_rule },
                    Rule::Weekly => Policy { weekly: u32::MAX, ..one_rule },
                    Rule::Monthly => Policy { monthly: u32::MAX, ..one_rule },
                    Rule::Yearly => Policy { yearly: u32::MAX, ..one_rule },
                };
                count(&pgkeep_repository::retention::plan(&unlimited, &candidates, now), rule)
            };
            prop_assert_eq!(count(&plan, rule), periods.min(limit as usize), "{:?}", rule);
        }
    }

    #[test]
    fn the_order_of_the_candidates_does_not_matter(
        policy in policies(), candidates in candidates(), now in now(), seed: u64,
    ) {
        let expected = plan(&policy, &candidates, now);
        let mut shuffled = candidates;
        let mut state = seed | 1;
        for at in (1..shuffled.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            shuffled.swap(at, usize::try_from(state >> 33).unwrap() % (at + 1));
        }
        let found = plan(&policy, &shuffled, now);
        prop_assert_eq!(kept(&found), kept(&expected));
        prop_assert_eq!(removed(&found), removed(&expected));
    }

    #[test]
    fn planning_again_after_removal_removes_nothing_more(
        policy in policies(), candidates in candidates(), now in now(),
    ) {
        let gone = removed(&plan(&policy, &candidates, now));
        let left: Vec<Candidate> = candidates.into_iter().filter(|c| !gone.contains(&c.id)).collect();
        prop_assert_eq!(removed(&plan(&policy, &left, now)), BTreeSet::new());
    }

    #[test]
    fn a_removal_that_stops_half_way_loses_nothing_more(
        policy in policies(), candidates in candidates(), now in now(), stop: prop::sample::Index,
    ) {
        let whole = plan(&policy, &candidates, now);
        let gone: Vec<BackupId> = whole.removed().map(|decision| decision.id.clone()).collect();
        let done = &gone[..stop.index(gone.len() + 1)];
        let left: Vec<Candidate> = candidates.into_iter().filter(|c| !done.contains(&c.id)).collect();
        let again = removed(&plan(&policy, &left, now));
        prop_assert_eq!(again, gone[done.len()..].iter().cloned().collect::<BTreeSet<_>>());
    }

    #[test]
    fn a_newer_backup_never_costs_a_pinned_one(
        policy in policies(), candidates in candidates(), now in now(), minutes in 1_i64..100_000,
    ) {
        let newest = candidates.iter().map(|c| c.started_at).max().unwrap_or(now);
        let mut more = candidates.clone();
        more.push(backup(newest + SignedDuration::from_mins(minutes), 0xff_ffff));
        let gone = removed(&plan(&policy, &more, now));
        prop_assert!(candidates.iter().filter(|c| c.pinned.is_some()).all(|c| !gone.contains(&c.id)));
    }

    #[test]
    fn an_earlier_clock_never_removes_good_ones_that_a_later_one_keeps(
        policy in policies(), candidates in candidates(), now in now(), hours in 1_i64..20_000,
    ) {
        let rightly = plan(&policy, &candidates, now);
        let kept_rightly: BTreeSet<BackupId> =
            candidates.iter().filter(|c| is_good(c) && kept(&rightly).contains(&c.id)).map(|c| c.id.clone()).collect();
        let gone = removed(&plan(&policy, &candidates, now - SignedDuration::from_hours(hours)));
        prop_assert!(gone.is_disjoint(&kept_rightly));
    }

    #[test]
    fn no_time_however_odd_panics(
        window in any::<i64>(), nows in any::<i64>(), seconds in prop::collection::vec(any::<i64>(), 0..5),
    ) {
        let (min, max) = (Timestamp::MIN.as_second(), Timestamp::MAX.as_second());
        let time = |second: i64| Timestamp::from_second(min + second.rem_euclid(max - min)).unwrap();
        let policy = Policy {
            window: Some(SignedDuration::from_secs(window)), daily: 1, weekly: 1, monthly: 1, yearly: 1,
            time_zone: TimeZone::get("Pacific/Apia").unwrap(),
        };
        let odd: Vec<Candidate> = seconds
            .into_iter()
            .map(|second| Candidate { started_at: time(second), ..good("2026-11-18T12:00:00Z") })
            .collect();
        for decision in plan(&policy, &odd, time(nows)).decisions {
            prop_assert!(!decision.to_string().is_empty());
        }
    }
}
