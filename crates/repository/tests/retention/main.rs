//! Retention: each rule and its words, calendar corners, years of nightly runs, and the promises as properties.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod expiry;
mod properties;

use std::collections::BTreeSet;

use jiff::civil::date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use pgkeep_base::BackupId;
use pgkeep_repository::retention::{Candidate, Plan, Policy, Reason, Rule, plan};

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
        ended_at: None,
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
    let mut failed = good("2025-12-31T02:00:00Z");
    failed.verified = Some(false);
    let mut other_system = good("2024-03-05T02:00:00Z");
    other_system.system_identifier = Some(2);
    let mut other_failed = good("2024-03-06T02:00:00Z");
    other_failed.system_identifier = Some(3);
    other_failed.verified = Some(false);
    let candidates = [
        pinned,
        pinned_silently,
        other_system,
        other_failed,
        good("2024-05-05T02:00:00Z"),
        good("2025-12-30T02:00:00Z"),
        failed,
        good("2026-10-31T02:00:00Z"),
        good("2026-11-17T03:00:00Z"),
        good("2026-11-18T02:00:00Z"),
        good("2030-01-01T00:00:00Z"),
    ];
    let plan = plan(&policy, &candidates, at("2026-11-18T12:00:00Z"));
    assert_eq!(
        lines(&plan),
        [
            "20240301 kept: pinned: before the migration",
            "20240302 kept: pinned",
            "20240305 kept: the last good one",
            "20240306 kept: no good one is there, so none goes; DAMAGED, so it counts for nothing else",
            "20240505 removed: older than the window of 30 days and not chosen by daily/weekly/monthly/yearly",
            "20251230 kept: newest of 2025",
            "20251231 removed: older than the window of 30 days and not eligible for daily/weekly/monthly/yearly \
             because its verification failed",
            "20261031 kept: within the window of 30 days; newest of week 2026-W44; newest of October 2026",
            "20261117 kept: within the window of 30 days; newest of Tuesday 2026-11-17",
            "20261118 kept: the last good one; within the window of 30 days; newest of Wednesday 2026-11-18; newest of \
             week 2026-W47; newest of November 2026; newest of 2026",
            "20300101 kept: started after the present moment: a clock is wrong, so its age is unknown",
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
            "20200101 kept: no retention is configured, so everything is; DAMAGED, so it counts for nothing else",
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
    let candidates = [
        good("2026-11-15T02:00:00Z"),
        good("2026-11-16T02:00:00Z"),
        good("2026-11-17T02:00:00Z"),
        running.clone(),
    ];
    let plan = plan(&policy, &candidates, at("2026-11-18T12:00:00Z"));
    assert_eq!(plan.incomplete, [running.id]);
    assert_eq!(
        lines(&plan),
        [
            "20261115 removed: not chosen by daily",
            "20261116 removed: not chosen by daily",
            "20261117 kept: the last good one; newest of Tuesday 2026-11-17",
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
