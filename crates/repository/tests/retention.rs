//! Retention: each rule and its words, calendar corners, years of nightly runs, and the promises as properties.

use std::collections::BTreeSet;

use jiff::civil::date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use pgkeep_base::BackupId;
use pgkeep_repository::retention::{Candidate, Plan, Policy, Reason, Rule, plan};
use proptest::prelude::*;

const DAY: SignedDuration = SignedDuration::from_hours(24);

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// A good backup, started at `started_at`.
fn backup(started_at: Timestamp, suffix: u32) -> Candidate {
    let id: BackupId = format!("d{}-{suffix:06x}", started_at.strftime("%Y%m%dT%H%M%SZ"))
        .parse()
        .unwrap();
    Candidate {
        id,
        started_at,
        completed: true,
        verified: None,
        pinned: None,
        system_identifier: Some(1),
        locked_until: None,
        depends_on: Vec::new(),
    }
}

fn good(text: &str) -> Candidate {
    backup(at(text), 1)
}

/// `id: decision`, without the ids' random part.
fn lines(plan: &Plan) -> Vec<String> {
    plan.decisions
        .iter()
        .map(|decision| format!("{} {decision}", &decision.id.to_string()[1..9]))
        .collect()
}

fn removed(plan: &Plan) -> BTreeSet<BackupId> {
    plan.removed().map(|decision| decision.id.clone()).collect()
}

fn kept(plan: &Plan) -> BTreeSet<BackupId> {
    plan.kept().map(|decision| decision.id.clone()).collect()
}

#[test]
fn every_reason_reads_as_plain_language() {
    let policy = Policy {
        window: Some(DAY * 30),
        daily: 2,
        weekly: 2,
        monthly: 2,
        yearly: 2,
        time_zone: TimeZone::UTC,
    };
    let mut pinned = good("2024-03-01T02:00:00Z");
    pinned.pinned = Some("before the migration".to_owned());
    let mut pinned_silently = good("2024-03-02T02:00:00Z");
    pinned_silently.pinned = Some(String::new());
    let mut locked = good("2024-03-03T02:00:00Z");
    locked.locked_until = Some(at("2027-01-01T00:00:00Z"));
    let mut failed = good("2025-12-31T02:00:00Z");
    failed.verified = Some(false);
    let mut referring = good("2026-11-17T03:00:00Z");
    referring.depends_on = vec![good("2024-03-04T02:00:00Z").id];
    let mut other_system = good("2024-03-05T02:00:00Z");
    other_system.system_identifier = Some(2);
    let mut other_failed = good("2024-03-06T02:00:00Z");
    other_failed.system_identifier = Some(3);
    other_failed.verified = Some(false);
    let candidates = [
        pinned,
        pinned_silently,
        locked,
        good("2024-03-04T02:00:00Z"),
        other_system,
        other_failed,
        good("2024-05-05T02:00:00Z"),
        good("2025-12-30T02:00:00Z"),
        failed,
        good("2026-10-31T02:00:00Z"),
        referring,
        good("2026-11-18T02:00:00Z"),
        good("2030-01-01T00:00:00Z"),
    ];
    let plan = plan(&policy, &candidates, at("2026-11-18T12:00:00Z"));
    let id = &candidates[10].id;
    assert_eq!(
        lines(&plan),
        [
            "20240301 kept: pinned: before the migration".to_owned(),
            "20240302 kept: pinned".to_owned(),
            "20240303 kept: locked until 2027-01-01 00:00:00 UTC".to_owned(),
            format!("20240304 kept: {id} refers to it"),
            "20240305 kept: the last good one".to_owned(),
            "20240306 kept: no good one is there, so none goes".to_owned(),
            "20240505 removed: older than the window of 30 days and not chosen by daily/weekly/monthly/yearly".to_owned(),
            "20251230 kept: newest of 2025".to_owned(),
            "20251231 removed: older than the window of 30 days and not eligible for daily/weekly/monthly/yearly \
             because its verification failed"
                .to_owned(),
            "20261031 kept: within the window of 30 days; newest of week 2026-W44; newest of October 2026".to_owned(),
            "20261117 kept: within the window of 30 days; newest of Tuesday 2026-11-17".to_owned(),
            "20261118 kept: the last good one; within the window of 30 days; newest of Wednesday 2026-11-18; newest of \
             week 2026-W47; newest of November 2026; newest of 2026"
                .to_owned(),
            "20300101 kept: started after the present moment: a clock is wrong, so its age is unknown".to_owned(),
        ]
    );
}

#[test]
fn windows_are_said_as_people_say_them() {
    for (window, expected) in [
        (DAY, "1 day"),
        (DAY * 30, "30 days"),
        (SignedDuration::from_hours(12), "12 hours"),
        (SignedDuration::from_mins(90), "90 minutes"),
        (SignedDuration::from_secs(1), "1 second"),
        (SignedDuration::ZERO, "0 seconds"),
        (SignedDuration::from_millis(1500), "1s 500ms"),
    ] {
        let reason = Reason::Expired {
            window: Some(window),
            rules: Vec::new(),
            verification_failed: false,
        };
        assert_eq!(reason.to_string(), format!("older than the window of {expected}"));
    }
    let reason = Reason::Expired {
        window: None,
        rules: vec![Rule::Daily],
        verification_failed: true,
    };
    assert_eq!(
        reason.to_string(),
        "not eligible for daily because its verification failed"
    );
}

#[test]
fn without_a_policy_everything_stays() {
    let mut failed = good("2020-01-01T02:00:00Z");
    failed.verified = Some(false);
    let plan = plan(
        &Policy::default(),
        &[failed, good("2020-01-02T02:00:00Z")],
        at("2026-11-18T12:00:00Z"),
    );
    assert_eq!(
        lines(&plan),
        [
            "20200101 kept: no retention is configured, so everything is",
            "20200102 kept: the last good one; no retention is configured, so everything is",
        ]
    );
}

#[test]
fn the_window_includes_its_first_moment() {
    let policy = Policy {
        window: Some(DAY),
        ..Policy::default()
    };
    let now = at("2026-11-18T12:00:00Z");
    let candidates = [
        good("2026-11-17T11:59:59Z"),
        good("2026-11-17T12:00:00Z"),
        good("2026-11-18T12:00:00Z"),
    ];
    let plan = plan(&policy, &candidates, now);
    assert_eq!(removed(&plan), BTreeSet::from([candidates[0].id.clone()]));
}

#[test]
fn incomplete_ones_count_for_nothing_and_are_listed_apart() {
    let policy = Policy {
        daily: 1,
        ..Policy::default()
    };
    let mut running = good("2026-11-18T11:00:00Z");
    running.completed = false;
    running.pinned = Some("x".to_owned());
    running.depends_on = vec![good("2026-11-16T02:00:00Z").id];
    let candidates = [
        good("2026-11-15T02:00:00Z"),
        good("2026-11-16T02:00:00Z"),
        good("2026-11-17T02:00:00Z"),
        running.clone(),
    ];
    let plan = plan(&policy, &candidates, at("2026-11-18T12:00:00Z"));
    assert_eq!(plan.incomplete, [running.id.clone()]);
    assert_eq!(
        lines(&plan),
        [
            "20261115 removed: not chosen by daily".to_owned(),
            format!("20261116 kept: {} refers to it", running.id),
            "20261117 kept: the last good one; newest of Tuesday 2026-11-17".to_owned(),
        ]
    );
}

#[test]
fn days_weeks_and_years_are_those_of_the_time_zone() {
    let zone = TimeZone::get("Europe/Berlin").unwrap();
    let of = |rule, text: &str| {
        let mut policy = Policy {
            time_zone: zone.clone(),
            ..Policy::default()
        };
        match rule {
            Rule::Daily => policy.daily = 1,
            Rule::Weekly => policy.weekly = 1,
            Rule::Monthly => policy.monthly = 1,
            Rule::Yearly => policy.yearly = 1,
        }
        let plan = plan(&policy, &[good(text)], at("2030-01-01T00:00:00Z"));
        plan.decisions[0].reasons[1].to_string()
    };
    // 23:30 UTC is the next day there; in summer 22:30 UTC is.
    assert_eq!(
        of(Rule::Daily, "2026-11-17T23:30:00Z"),
        "newest of Wednesday 2026-11-18"
    );
    assert_eq!(
        of(Rule::Daily, "2026-07-17T22:30:00Z"),
        "newest of Saturday 2026-07-18"
    );
    assert_eq!(
        of(Rule::Daily, "2026-11-17T22:30:00Z"),
        "newest of Tuesday 2026-11-17"
    );
    assert_eq!(
        of(Rule::Monthly, "2026-10-31T23:30:00Z"),
        "newest of November 2026"
    );
    assert_eq!(of(Rule::Yearly, "2026-12-31T23:30:00Z"), "newest of 2027");
    // ISO weeks: 1 January 2027 is a Friday, in the last week of 2026.
    assert_eq!(
        of(Rule::Weekly, "2027-01-01T12:00:00Z"),
        "newest of week 2026-W53"
    );
    assert_eq!(
        of(Rule::Weekly, "2027-01-03T23:30:00Z"),
        "newest of week 2027-W01"
    );
}

#[test]
fn the_days_of_25_and_23_hours_are_one_day_each() {
    let policy = Policy {
        daily: 10,
        time_zone: TimeZone::get("Europe/Berlin").unwrap(),
        ..Policy::default()
    };
    // 2026-10-25 lasts from 22:00 UTC to 23:00 UTC the next day, and has 02:30 twice; 2026-03-29 has no 02:30.
    let autumn = [
        "2026-10-24T22:00:00Z",
        "2026-10-25T00:30:00Z",
        "2026-10-25T01:30:00Z",
        "2026-10-25T22:59:59Z",
    ];
    let autumn_plan = plan(&policy, &autumn.map(good), at("2026-11-18T12:00:00Z"));
    assert_eq!(kept(&autumn_plan), BTreeSet::from([good(autumn[3]).id]));
    let spring = [
        "2026-03-28T23:00:00Z",
        "2026-03-29T21:59:59Z",
        "2026-03-29T22:00:00Z",
    ];
    let spring_plan = plan(&policy, &spring.map(good), at("2026-11-18T12:00:00Z"));
    assert_eq!(removed(&spring_plan), BTreeSet::from([good(spring[0]).id]));
}

#[test]
fn a_day_that_is_left_and_entered_again_counts_once() {
    // St. John's put its clocks back at 00:01 until 2011: 2010-11-07 began, then came an hour of 2010-11-06 again.
    let policy = Policy {
        daily: 2,
        time_zone: TimeZone::get("America/St_Johns").unwrap(),
        ..Policy::default()
    };
    let texts = [
        "2010-11-07T02:00:00Z",
        "2010-11-07T02:30:30Z",
        "2010-11-07T03:00:00Z",
        "2010-11-07T12:00:00Z",
    ];
    let days = texts.map(|text| policy.time_zone.to_datetime(at(text)).date());
    assert_eq!(
        days,
        [
            date(2010, 11, 6),
            date(2010, 11, 7),
            date(2010, 11, 6),
            date(2010, 11, 7)
        ]
    );
    let plan = plan(&policy, &texts.map(good), at("2010-11-08T00:00:00Z"));
    assert_eq!(
        removed(&plan),
        BTreeSet::from([good(texts[0]).id, good(texts[1]).id])
    );
}

#[test]
fn a_clock_gone_backwards_removes_nothing_that_the_right_one_would_keep() {
    let policy = Policy {
        window: Some(DAY * 7),
        daily: 3,
        monthly: 2,
        ..Policy::default()
    };
    let start = at("2026-01-01T02:00:00Z");
    let candidates: Vec<Candidate> = (0..200).map(|day| backup(start + DAY * day, 0)).collect();
    let right = start + DAY * 200;
    let kept_rightly = kept(&plan(&policy, &candidates, right));
    for back in 1..300 {
        let wrong = plan(&policy, &candidates, right - DAY * back);
        assert!(removed(&wrong).is_disjoint(&kept_rightly), "{back} days back");
    }
}

#[test]
fn an_id_from_the_future_takes_nobodys_place() {
    let policy = Policy {
        daily: 2,
        ..Policy::default()
    };
    let candidates = [
        good("2026-11-16T02:00:00Z"),
        good("2026-11-17T02:00:00Z"),
        good("2099-01-01T00:00:00Z"),
        good("2099-01-02T00:00:00Z"),
    ];
    assert_eq!(
        removed(&plan(&policy, &candidates, at("2026-11-18T12:00:00Z"))),
        BTreeSet::new()
    );
}

#[test]
fn references_are_followed_to_their_end_and_circles_end() {
    let policy = Policy {
        daily: 1,
        ..Policy::default()
    };
    let mut chain = [
        good("2026-11-11T02:00:00Z"),
        good("2026-11-12T02:00:00Z"),
        good("2026-11-13T02:00:00Z"),
        good("2026-11-14T02:00:00Z"),
    ];
    let ids: Vec<BackupId> = chain.iter().map(|candidate| candidate.id.clone()).collect();
    chain[3].depends_on = vec![ids[2].clone(), good("2001-01-01T00:00:00Z").id];
    chain[2].depends_on = vec![ids[1].clone()];
    chain[1].depends_on = vec![ids[2].clone(), ids[1].clone()];
    let plan = plan(&policy, &chain, at("2026-11-18T12:00:00Z"));
    assert_eq!(removed(&plan), BTreeSet::from([ids[0].clone()]));
}

/// A prune after each nightly dump, for four years.
#[test]
fn nightly_runs_leave_what_the_policy_says() {
    let zone = TimeZone::get("Europe/Berlin").unwrap();
    let policy = Policy {
        window: Some(DAY * 3),
        daily: 7,
        weekly: 4,
        monthly: 6,
        yearly: 2,
        time_zone: zone.clone(),
    };
    let mut present: Vec<Candidate> = Vec::new();
    let mut night = date(2023, 1, 1);
    while night <= date(2026, 11, 18) {
        let started_at = night.at(3, 30, 0, 0).to_zoned(zone.clone()).unwrap().timestamp();
        present.push(backup(started_at, 0));
        let plan = plan(&policy, &present, started_at + SignedDuration::from_hours(1));
        let gone = removed(&plan);
        present.retain(|candidate| !gone.contains(&candidate.id));
        night = night.tomorrow().unwrap();
    }
    let days: Vec<String> = present
        .iter()
        .map(|c| zone.to_datetime(c.started_at).date().to_string())
        .collect();
    assert_eq!(
        days,
        [
            "2025-12-31",
            "2026-06-30",
            "2026-07-31",
            "2026-08-31",
            "2026-09-30",
            "2026-10-31",
            "2026-11-01",
            "2026-11-08",
            "2026-11-12",
            "2026-11-13",
            "2026-11-14",
            "2026-11-15",
            "2026-11-16",
            "2026-11-17",
            "2026-11-18",
        ]
    );
}

fn policies() -> impl Strategy<Value = Policy> {
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
        prop::option::weighted(0.1, 0_i64..2000),
        prop::collection::vec(any::<prop::sample::Index>(), 0..2),
    );
    prop::collection::vec(one, 0..60).prop_map(|all| {
        let start = at("2009-06-01T00:00:00Z");
        let mut candidates: Vec<Candidate> = Vec::new();
        let mut references = Vec::new();
        for (at, (minutes, completed, verified, pinned, system, locked_days, refers_to)) in
            all.into_iter().enumerate()
        {
            let mut candidate = backup(
                start + SignedDuration::from_mins(minutes),
                u32::try_from(at).unwrap(),
            );
            candidate.completed = completed;
            candidate.verified = verified;
            candidate.pinned = pinned.then(|| "why".to_owned());
            candidate.system_identifier = Some(system).filter(|system| *system < 3);
            candidate.locked_until = locked_days.map(|days| start + DAY * i32::try_from(days).unwrap());
            candidates.push(candidate);
            references.push(refers_to);
        }
        let ids: Vec<BackupId> = candidates.iter().map(|candidate| candidate.id.clone()).collect();
        for (candidate, refers_to) in candidates.iter_mut().zip(references) {
            // References are rare, else everything hangs together and nothing is ever removed.
            if candidate.started_at.as_second() % 5 == 0 {
                candidate.depends_on = refers_to
                    .into_iter()
                    .map(|index| index.get(&ids).clone())
                    .collect();
            }
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
                || candidate.locked_until.is_some_and(|until| until > now)
                || policy.window.is_some_and(|window| candidate.started_at >= now - window)
                || policy.keeps_everything()
            {
                prop_assert!(!gone.contains(&candidate.id), "{} went", candidate.id);
            }
            if !gone.contains(&candidate.id) {
                for target in &candidate.depends_on {
                    prop_assert!(!gone.contains(target), "{} went, {} refers to it", target, candidate.id);
                }
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
        // Locks do run out with time, and references hang on what they keep: the rules of age alone are compared.
        let plain: Vec<Candidate> = candidates
            .into_iter()
            .map(|c| Candidate { locked_until: None, depends_on: Vec::new(), ..c })
            .collect();
        let rightly = plan(&policy, &plain, now);
        let kept_rightly: BTreeSet<BackupId> =
            plain.iter().filter(|c| is_good(c) && kept(&rightly).contains(&c.id)).map(|c| c.id.clone()).collect();
        let gone = removed(&plan(&policy, &plain, now - SignedDuration::from_hours(hours)));
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
