//! Due times, above all on the days when clocks change.

use std::collections::BTreeMap;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, Zoned};
use pgkeep_base::{Classified, RetryClass};
use pgkeep_schedule::Schedule;
use proptest::prelude::*;

use crate::{at, schedule};

/// Clocks that go by an hour at two or at midnight, by half an hour, on other days in the south, and never.
const ZONES: [&str; 8] = [
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "America/Santiago",
    "Africa/Cairo",
    "Europe/Dublin",
    "Asia/Kathmandu",
    "UTC",
];

/// How often something is due on each local date of a year.
fn by_date(schedule: &Schedule, year: i16) -> BTreeMap<Date, u32> {
    let zone = schedule.zone();
    let start = jiff::civil::date(year, 1, 1)
        .to_zoned(zone.clone())
        .unwrap()
        .timestamp();
    let mut dates = BTreeMap::new();
    for due in schedule.upcoming(start - SignedDuration::from_secs(1)) {
        let date = due.to_zoned(zone.clone()).date();
        if date.year() != year {
            return dates;
        }
        *dates.entry(date).or_insert(0) += 1;
    }
    panic!("the calendar has ended");
}

fn days(year: i16) -> usize {
    usize::try_from(jiff::civil::date(year, 1, 1).days_in_year()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_daily_time_comes_once_on_each_local_date(
        zone in proptest::sample::select(&ZONES[..]), year in 2024_i16..2032, hour in 0_u8..5, minute in 0_u8..60,
    ) {
        let dates = by_date(&schedule(&format!("{minute} {hour} * * *"), zone), year);
        prop_assert_eq!(dates.len(), days(year));
        prop_assert!(dates.values().all(|times| *times == 1), "{:?}", dates);
    }

    #[test]
    fn the_last_due_time_is_the_one_before_the_next(
        zone in proptest::sample::select(&ZONES[..]),
        text in proptest::sample::select(&["30 2 * * *", "*/7 * * * *", "0 0 29 2 *", "15 1,2,3 * * SUN", "* * * * * *"][..]),
        second in 1_700_000_000_i64..1_900_000_000,
    ) {
        let schedule = schedule(text, zone);
        let now = Timestamp::from_second(second).unwrap();
        let last = schedule.last_at(now).unwrap();
        prop_assert!(last <= now);
        prop_assert!(schedule.next_after(last).unwrap() > now);
        prop_assert_eq!(schedule.last_at(last), Some(last));
    }

    /// All that the configuration lets through.
    #[test]
    fn any_text_is_read_or_refused(text in "[0-9*/,#?LWMONa@ -]{0,12}( [0-9*/,LW-]{1,4}){0,5}") {
        if let Ok(schedule) = Schedule::parse(&text, TimeZone::UTC) {
            let now = at("2026-03-29T00:00", "UTC");
            prop_assert!(schedule.next_after(now).unwrap() > now);
        }
    }
}

#[test]
fn half_past_two_comes_once_each_day() {
    for zone in ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"] {
        let dates = by_date(&schedule("30 2 * * *", zone), 2026);
        assert_eq!(dates.len(), 365, "{zone}");
        assert!(dates.values().all(|times| *times == 1), "{zone}: {dates:?}");
        let dates = by_date(&schedule("30 2,14 * * *", zone), 2026);
        assert!(dates.values().all(|times| *times == 2), "{zone}: {dates:?}");
    }
}

#[test]
fn what_the_clock_skips_is_due_right_after_and_what_it_repeats_the_first_time() {
    let berlin = "Europe/Berlin";
    let local = |schedule: &Schedule, from: &str| -> Vec<String> {
        let due = schedule.upcoming(at(from, berlin)).take(3);
        due.map(|due| {
            due.to_zoned(schedule.zone().clone())
                .strftime("%m-%d %H:%M %:z")
                .to_string()
        })
        .collect()
    };
    assert_eq!(
        local(&schedule("30 2 * * *", berlin), "2026-03-28T12:00"),
        ["03-29 03:00 +02:00", "03-30 02:30 +02:00", "03-31 02:30 +02:00"]
    );
    // Several skipped ones are one, and one that comes at the skip's end anyway is the same.
    assert_eq!(
        local(&schedule("5,30 2-3 * * *", berlin), "2026-03-29T01:00"),
        ["03-29 03:00 +02:00", "03-29 03:05 +02:00", "03-29 03:30 +02:00"]
    );
    assert_eq!(
        local(&schedule("30 2 * * *", berlin), "2026-10-24T12:00"),
        ["10-25 02:30 +02:00", "10-26 02:30 +01:00", "10-27 02:30 +01:00"]
    );
    assert_eq!(
        local(&schedule("0 * * * *", berlin), "2026-10-25T01:30"),
        ["10-25 02:00 +02:00", "10-25 02:00 +01:00", "10-25 03:00 +01:00"]
    );
    assert_eq!(
        local(&schedule("0 * * * *", berlin), "2026-03-29T00:30"),
        ["03-29 01:00 +01:00", "03-29 03:00 +02:00", "03-29 04:00 +02:00"]
    );
    assert_eq!(
        local(&schedule("15 2 * * *", "Australia/Lord_Howe"), "2026-10-03T00:00")[0],
        "10-04 02:30 +11:00"
    );
}

/// A schedule that follows the clock is due whenever the clock shows a time that fits: looked up minute by minute.
#[test]
fn a_schedule_with_stars_follows_the_clock() {
    type Fits = fn(&Zoned) -> bool;
    let schedules: [(&str, Fits); 4] = [
        ("* * * * *", |_| true),
        ("*/15 * * * *", |local| local.minute() % 15 == 0),
        ("@hourly", |local| local.minute() == 0),
        ("*/20 1-2 * * *", |local| {
            local.minute() % 20 == 0 && (1..=2).contains(&local.hour())
        }),
    ];
    let changes = [
        ("Europe/Berlin", "2026-03-28T20:00"),
        ("Europe/Berlin", "2026-10-24T20:00"),
        ("America/New_York", "2026-03-07T20:00"),
        ("America/New_York", "2026-10-31T20:00"),
        ("Australia/Lord_Howe", "2026-04-04T20:00"),
        ("Australia/Lord_Howe", "2026-10-03T20:00"),
        ("America/Santiago", "2026-04-04T12:00"),
        ("America/Santiago", "2026-09-05T12:00"),
    ];
    for (zone, from) in changes {
        for (text, fits) in schedules {
            let schedule = schedule(text, zone);
            let start = at(from, zone);
            let end = start + SignedDuration::from_hours(18);
            let minutes = (1..=18 * 60).map(|minute| start + SignedDuration::from_mins(minute));
            let expected: Vec<Timestamp> = minutes
                .filter(|moment| fits(&moment.to_zoned(schedule.zone().clone())))
                .collect();
            let found: Vec<Timestamp> = schedule.upcoming(start).take_while(|due| *due <= end).collect();
            assert_eq!(found, expected, "{text} in {zone} from {from}");
        }
    }
}

#[test]
fn what_cannot_be_a_schedule_is_refused_with_an_example() {
    for (text, reason) in [
        ("61 * * * *", "61"),
        ("0 2 * *", "4 fields"),
        ("0 2 * * * * 2026", "7 fields"),
        ("0 2 * * FOO", "F"),
        ("@fortnightly", "the names are @yearly"),
        ("0 2,,3 * * *", "an item of '2,,3' is empty"),
        (", * * * *", "an item of ',' is empty"),
        ("", "fields"),
        ("0 0 30 2 *", "no time of any year"),
        ("0 0 31 4,6 *", "no time of any year"),
    ] {
        let error = Schedule::parse(text, TimeZone::UTC).unwrap_err();
        assert!(error.to_string().contains(reason), "{text}: {error}");
        assert!(error.to_string().starts_with(&format!("'{text}'")), "{error}");
        assert_eq!(error.retry_class(), RetryClass::Usage);
        assert!(error.hint().unwrap().as_str().contains("\"0 2 * * *\""));
    }
}

#[test]
fn it_is_told_with_its_zone() {
    assert_eq!(
        schedule(" 0 2 * * * ", "Europe/Berlin").to_string(),
        "0 2 * * *, Europe/Berlin"
    );
}
