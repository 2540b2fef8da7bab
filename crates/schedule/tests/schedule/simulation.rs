//! A planner in a simulated world: its clock, its store, its restarts.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use pgkeep_base::{Clock, ManualClock};
use pgkeep_schedule::{Action, Missed, Planner, Reason, Run, Schedule};
use proptest::prelude::*;

use crate::{at, schedule};

const MINUTE: SignedDuration = SignedDuration::from_mins(1);
const HOUR: SignedDuration = SignedDuration::from_hours(1);

/// What happened.
#[derive(Debug, Clone, PartialEq)]
enum Event {
    Begun(Run),
    Done(Run),
    Failed(Run),
    Told(Missed),
    LookFailed,
    WentBack,
}

struct World {
    schedule: Schedule,
    planner: Planner,
    clock: Arc<ManualClock>,
    /// The starts of the dumps in the repository.
    dumps: Vec<Timestamp>,
    running: Option<(Run, Timestamp)>,
    /// How long a dump takes.
    takes: SignedDuration,
    /// When the store is away: a dump that would end then fails, and nobody can look.
    outages: Vec<(Timestamp, Timestamp)>,
    events: Vec<(Timestamp, Event)>,
}

impl World {
    fn new(text: &str, zone: &str, start: &str) -> Self {
        let schedule = schedule(text, zone);
        let start = at(start, zone);
        Self {
            planner: Planner::new(schedule.clone(), start),
            schedule,
            clock: Arc::new(ManualClock::new(start)),
            dumps: Vec::new(),
            running: None,
            takes: MINUTE * 10,
            outages: Vec::new(),
            events: Vec::new(),
        }
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn tell(&mut self, event: Event) {
        self.events.push((self.now(), event));
    }

    fn store_is_away(&self) -> bool {
        let now = self.now();
        self.outages.iter().any(|(from, to)| (*from..*to).contains(&now))
    }

    fn run_until(&mut self, end: Timestamp) {
        // Each step is an event; a planner that goes round in circles fails the test.
        for _ in 0..100_000 {
            let now = self.now();
            match self.planner.decide(now) {
                Action::Look if self.store_is_away() => {
                    assert!(self.planner.look_failed(now) > now);
                    self.tell(Event::LookFailed);
                }
                Action::Look => self.planner.looked(now, self.dumps.iter().max().copied()),
                Action::Tell(missed) => self.tell(Event::Told(missed)),
                Action::ClockWentBack(_) => self.tell(Event::WentBack),
                Action::Start(run) => {
                    assert_eq!(self.running, None, "one at a time");
                    self.tell(Event::Begun(run.clone()));
                    self.running = Some((run, now));
                }
                Action::Wait(until) => {
                    let done = self.running.as_ref().map(|(_, since)| *since + self.takes);
                    let next = [until, done].into_iter().flatten().min().unwrap_or(end);
                    assert!(next >= now, "it waits for the past");
                    if next >= end {
                        self.clock.advance(end.duration_since(now));
                        return;
                    }
                    self.clock.advance(next.duration_since(now));
                    if done == Some(next) {
                        self.finish();
                    }
                }
            }
        }
        panic!("no end: {:?}", &self.events[self.events.len() - 20..]);
    }

    fn finish(&mut self) {
        let (run, since) = self.running.take().unwrap();
        let succeeded = !self.store_is_away();
        if succeeded {
            self.dumps.push(since);
            self.tell(Event::Done(run));
        } else {
            self.tell(Event::Failed(run));
        }
        if let Some(missed) = self.planner.finished(self.now(), succeeded) {
            self.tell(Event::Told(missed));
        }
    }

    fn told(&self) -> impl Iterator<Item = &Missed> {
        self.events.iter().filter_map(|(_, event)| match event {
            Event::Told(missed) => Some(missed),
            _ => None,
        })
    }

    fn done(&self) -> Vec<&Run> {
        let done = self.events.iter().filter_map(|(_, event)| match event {
            Event::Done(run) => Some(run),
            _ => None,
        });
        done.collect()
    }

    /// Each due time was dumped for on time, or told as missed, once.
    fn assert_accounted(&self, from: Timestamp, to: Timestamp) {
        let mut accounts: BTreeMap<Timestamp, u32> = BTreeMap::new();
        let on_time = self.done().into_iter().filter(|run| !run.catches_up);
        on_time
            .filter_map(|run| run.due)
            .for_each(|due| *accounts.entry(due).or_default() += 1);
        for missed in self.told() {
            let before = missed.first - SignedDuration::from_secs(1);
            let told = self
                .schedule
                .upcoming(before)
                .take_while(|due| *due <= missed.last);
            told.for_each(|due| *accounts.entry(due).or_default() += 1);
        }
        for due in self.schedule.upcoming(from).take_while(|due| *due < to) {
            assert_eq!(accounts.get(&due), Some(&1), "{due}: {:#?}", self.events);
        }
    }
}

#[test]
fn a_month_with_a_change_of_clocks_a_restart_and_an_absent_store() {
    let berlin = "Europe/Berlin";
    let mut world = World::new("30 2 * * *", berlin, "2026-10-01T12:00");
    let start = world.now();
    // Away for two nights and the day between, and for a few minutes in another night.
    world.outages = vec![
        (at("2026-10-10T02:00", berlin), at("2026-10-11T20:00", berlin)),
        (at("2026-10-20T02:35", berlin), at("2026-10-20T02:45", berlin)),
    ];
    world.run_until(at("2026-10-14T12:00", berlin));
    // Down for three nights.
    world.running = None;
    world.clock.advance(HOUR * 72);
    world.planner = Planner::new(world.schedule.clone(), world.now());
    let end = at("2026-11-05T12:00", berlin);
    world.run_until(end);

    world.assert_accounted(start, end);
    assert_eq!(
        world.events[0].1,
        Event::Begun(run(None, 1, false)),
        "the first is made at once"
    );
    let told: Vec<(u64, Reason)> = world.told().map(|missed| (missed.count, missed.reason)).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        matches!(told[0], (1, Reason::Failed { attempts }) if attempts > 20),
        "{told:?}"
    );
    assert_eq!(told[1], (3, Reason::NotRunning));
    // 35 nights, of which one failed for good and three were slept through; the first dump and the one that caught up.
    assert_eq!(world.done().len(), 35 - 1 - 3 + 2);
    let autumn = at("2026-10-25T02:30", berlin);
    assert_eq!(
        world.done().iter().filter(|run| run.due == Some(autumn)).count(),
        1
    );
}

fn run(due: Option<Timestamp>, attempt: u32, catches_up: bool) -> Run {
    Run {
        due,
        attempt,
        catches_up,
    }
}

#[test]
fn what_a_dump_by_hand_covers_is_not_done_again() {
    let mut world = World::new("0 2 * * *", "UTC", "2026-11-10T12:00");
    world.dumps.push(at("2026-11-10T02:00:01", "UTC"));
    world.run_until(at("2026-11-11T01:00", "UTC"));
    assert_eq!(world.events, []);
    // Begun before it was due, it isn't what was asked for.
    let mut world = World::new("0 2 * * *", "UTC", "2026-11-10T12:00");
    world.dumps.push(at("2026-11-10T01:59:59", "UTC"));
    world.run_until(at("2026-11-10T12:01", "UTC"));
    let due = at("2026-11-10T02:00", "UTC");
    let missed = Missed {
        first: due,
        last: due,
        count: 1,
        reason: Reason::NotRunning,
    };
    let events: Vec<Event> = world.events.into_iter().map(|(_, event)| event).collect();
    assert_eq!(
        events,
        [Event::Told(missed), Event::Begun(run(Some(due), 1, true))]
    );
}

#[test]
fn started_within_minutes_of_a_due_time_it_is_on_time() {
    let mut world = World::new("0 2 * * *", "UTC", "2026-11-10T02:03");
    world.dumps.push(at("2026-11-08T02:00:01", "UTC"));
    world.run_until(at("2026-11-10T02:04", "UTC"));
    let events: Vec<&Event> = world.events.iter().map(|(_, event)| event).collect();
    let (first, due) = (at("2026-11-09T02:00", "UTC"), at("2026-11-10T02:00", "UTC"));
    let missed = Missed {
        first,
        last: first,
        count: 1,
        reason: Reason::NotRunning,
    };
    assert_eq!(
        events,
        [&Event::Told(missed), &Event::Begun(run(Some(due), 1, false))]
    );
}

#[test]
fn for_a_program_that_is_started_now_and_then_the_last_due_time_is_on_time() {
    let now = at("2026-11-10T09:00", "UTC");
    let mut planner = Planner::new(schedule("0 2 * * *", "UTC"), now).started_now_and_then();
    assert_eq!(planner.decide(now), Action::Look);
    planner.looked(now, Some(at("2026-11-09T02:00", "UTC")));
    let due = at("2026-11-10T02:00", "UTC");
    assert_eq!(planner.decide(now), Action::Start(run(Some(due), 1, false)));
    assert_eq!(planner.finished(now, true), None);
    assert_eq!(
        planner.decide(now),
        Action::Wait(Some(at("2026-11-11T02:00", "UTC")))
    );
}

#[test]
fn what_is_due_while_a_dump_runs_is_told_and_not_begun() {
    let mut world = World::new("0 * * * *", "UTC", "2026-11-10T12:30");
    world.dumps.push(at("2026-11-10T12:10", "UTC"));
    world.takes = HOUR * 3 + MINUTE * 10;
    let start = world.now();
    let end = at("2026-11-11T12:30", "UTC");
    world.run_until(end);
    world.assert_accounted(start, at("2026-11-11T09:00", "UTC"));
    let told: Vec<_> = world
        .told()
        .take(2)
        .map(|missed| (missed.count, missed.reason))
        .collect();
    assert_eq!(
        told,
        [(1, Reason::UnderWay), (2, Reason::UnderWay)],
        "the first at once, the others later"
    );
    let begun = world
        .events
        .iter()
        .filter(|(_, event)| matches!(event, Event::Begun(_)));
    let times: Vec<_> = begun.map(|(time, _)| *time).take(2).collect();
    assert_eq!(
        times,
        [at("2026-11-10T13:00", "UTC"), at("2026-11-10T17:00", "UTC")]
    );
}

#[test]
fn a_dump_that_never_ends_is_told_again_and_again() {
    let days = 20;
    for (text, told_max) in [("0 2 * * *", days), ("* * * * *", 60)] {
        let mut world = World::new(text, "Europe/Berlin", "2026-10-15T01:00");
        world.dumps.push(world.now());
        world.takes = HOUR * 24 * 365;
        world.run_until(world.now() + HOUR * 24 * i32::try_from(days).unwrap());
        let times = world
            .events
            .iter()
            .filter(|(_, event)| matches!(event, Event::Told(_)))
            .map(|(time, _)| *time);
        let times: Vec<Timestamp> = times.collect();
        assert!(times.len() <= told_max, "{text}: {} lines", times.len());
        // One night after the other, one of them an hour longer.
        for pair in times.windows(2) {
            assert!(pair[1].duration_since(pair[0]) <= HOUR * 25, "{text}: {pair:?}");
        }
        let last = times.last().unwrap();
        assert!(world.now().duration_since(*last) <= HOUR * 25, "{text}: {last}");
        let reasons = world.told().map(|missed| missed.reason);
        assert!(reasons.into_iter().all(|reason| reason == Reason::UnderWay));
    }
}

#[test]
fn pauses_grow_and_the_next_due_time_ends_the_attempts() {
    let mut world = World::new("0 2 * * *", "UTC", "2026-11-10T01:00");
    world.dumps.push(at("2026-11-09T02:00", "UTC"));
    world.takes = MINUTE;
    world.outages = vec![(at("2026-11-10T01:30", "UTC"), at("2026-11-11T02:30", "UTC"))];
    world.run_until(at("2026-11-11T03:00", "UTC"));
    let begun: Vec<i64> = world
        .events
        .windows(2)
        .filter(|pair| matches!((&pair[0].1, &pair[1].1), (Event::Failed(_), Event::Begun(_))))
        .map(|pair| pair[1].0.duration_since(pair[0].0).as_mins())
        .collect();
    assert_eq!(begun[..8], [1, 2, 4, 8, 16, 32, 60, 60]);
    let told: Vec<_> = world.told().collect();
    assert_eq!(told.len(), 1);
    assert!(matches!(told[0].reason, Reason::Failed { .. }));
    assert_eq!(told[0].first, at("2026-11-10T02:00", "UTC"));
    assert_eq!(
        world.done(),
        [&run(Some(at("2026-11-11T02:00", "UTC")), 6, false)]
    );
}

#[test]
fn a_store_that_cannot_be_asked_is_asked_again_and_holds_no_due_dump_up() {
    let mut world = World::new("0 2 * * *", "UTC", "2026-11-10T01:30");
    world.dumps.push(at("2026-11-01T02:00", "UTC"));
    world.outages = vec![(at("2026-11-10T01:00", "UTC"), at("2026-11-10T02:05", "UTC"))];
    world.run_until(at("2026-11-10T12:00", "UTC"));
    let looks: Vec<_> = world
        .events
        .iter()
        .filter(|(_, event)| *event == Event::LookFailed)
        .collect();
    assert_eq!(looks.len(), 5, "after 0, 1, 3, 7 and 15 minutes");
    assert_eq!(
        world.done(),
        [&run(Some(at("2026-11-10T02:00", "UTC")), 1, false)]
    );
    // Back before anything is due, it is caught up.
    let mut world = World::new("0 2 * * *", "UTC", "2026-11-10T03:30");
    world.dumps.push(at("2026-11-01T02:00", "UTC"));
    world.outages = vec![(at("2026-11-10T03:00", "UTC"), at("2026-11-10T04:00", "UTC"))];
    world.run_until(at("2026-11-10T12:00", "UTC"));
    assert_eq!(world.done(), [&run(Some(at("2026-11-10T02:00", "UTC")), 1, true)]);
    assert_eq!(world.told().map(|missed| missed.count).collect::<Vec<_>>(), [9]);
}

#[test]
fn a_machine_that_slept_catches_up_once() {
    let mut world = World::new("0 2 * * *", "UTC", "2026-11-10T12:00");
    world.dumps.push(at("2026-11-10T02:00:01", "UTC"));
    world.run_until(at("2026-11-10T20:00", "UTC"));
    world.clock.advance(HOUR * 24 * 3);
    world.run_until(at("2026-11-14T01:00", "UTC"));
    let told: Vec<_> = world.told().map(|missed| (missed.count, missed.reason)).collect();
    assert_eq!(told, [(3, Reason::Asleep)]);
    assert_eq!(world.done(), [&run(Some(at("2026-11-13T02:00", "UTC")), 1, true)]);
}

#[test]
fn a_clock_that_goes_back_a_little_repeats_nothing_and_one_that_was_wrong_ends_nothing() {
    let mut world = World::new("0 2 * * *", "UTC", "2026-11-10T01:00");
    world.dumps.push(at("2026-11-09T02:00:01", "UTC"));
    world.run_until(at("2026-11-10T02:30", "UTC"));
    world.clock.advance(-HOUR);
    world.run_until(at("2026-11-10T23:00", "UTC"));
    assert_eq!(world.done().len(), 1);
    assert_eq!(world.told().count(), 0);
    // A year ahead for a minute: the dump of then is made, and the day after is dumped again.
    world.clock.advance(HOUR * 24 * 365);
    world.run_until(world.now() + MINUTE * 30);
    world.clock.advance(-HOUR * 24 * 365);
    world.dumps.retain(|dump| *dump < at("2027-01-01T00:00", "UTC"));
    world.run_until(at("2026-11-12T23:00", "UTC"));
    assert!(world.events.iter().any(|(_, event)| *event == Event::WentBack));
    let due = |day: &str| Some(at(&format!("2026-11-{day}T02:00"), "UTC"));
    let done = world.done();
    assert_eq!(done[done.len() - 2].due, due("11"));
    assert_eq!(done[done.len() - 1].due, due("12"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the store does and however long dumps take, each due time is dumped for or told, once.
    #[test]
    fn every_due_time_is_accounted_for(
        text in proptest::sample::select(&["30 2 * * *", "0 */6 * * *", "15 1,2,3 * * *", "*/30 * * * *", "0 4 * * MON"][..]),
        zone in proptest::sample::select(&["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"][..]),
        takes in 1_i64..400,
        outages in proptest::collection::vec((0_i64..30 * 24 * 60, 1_i64..3000), 0..6),
    ) {
        let mut world = World::new(text, zone, "2026-10-10T12:00");
        let start = world.now();
        world.takes = SignedDuration::from_mins(takes);
        world.dumps.push(start);
        let minute = |minutes: i64| start + SignedDuration::from_mins(minutes);
        world.outages = outages.iter().map(|(from, length)| (minute(*from), minute(from + length))).collect();
        world.run_until(start + HOUR * 24 * 40);
        // By then the store is back, and what is still tried is due later.
        world.assert_accounted(start, start + HOUR * 24 * 32);
    }
}
