//! When schedules are due, and a planner's month in a simulated world.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod simulation;
mod times;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use pgkeep_schedule::Schedule;

fn schedule(text: &str, zone: &str) -> Schedule {
    Schedule::parse(text, TimeZone::get(zone).unwrap()).unwrap()
}

/// A moment by its local time: `2026-10-25T02:30 Europe/Berlin`; the first of two.
fn at(text: &str, zone: &str) -> Timestamp {
    let civil: jiff::civil::DateTime = text.parse().unwrap();
    let zone = TimeZone::get(zone).unwrap();
    zone.to_ambiguous_timestamp(civil).earlier().unwrap()
}
