//! Base backups and WAL under a policy: what goes, what stays, and what is there when a prune is cut off anywhere.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::SignedDuration;
use pgkeep_base::{BackupId, BackupKind, ManualClock};
use pgkeep_pgformat::{Lsn, SegmentName, SegmentSize, Timeline};
use pgkeep_repository::Repository;
use pgkeep_repository::prune::{self, Known, PruneError, PruneInput, PruneReport, WalPlan, WalReason};
use pgkeep_repository::retention::wal::BaseExtent;
use pgkeep_repository::retention::{Policy, Reason};
use pgkeep_store::{RetryOptions, StoreOptions};
use support::{Folder, base_backup, day, open, open_with};

const SYSTEM: u64 = 7_345_678_901_234_567_890;
const LEASE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

fn size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
}

fn timeline(number: u32) -> Timeline {
    Timeline::new(number).unwrap()
}

fn segment(on: u32, number: u64) -> SegmentName {
    SegmentName::holding(timeline(on), Lsn::new(number * MIB), size())
}

fn policy(days: i64) -> Policy {
    Policy {
        window: Some(SignedDuration::from_hours(24 * days)),
        ..Policy::default()
    }
}

fn on(repository: &Repository, number: u32) -> Repository {
    repository
        .clone()
        .with_clock(Arc::new(ManualClock::new(day(number))))
}

async fn put_segments(repository: &Repository, system: u64, on: u32, numbers: std::ops::Range<u64>) {
    repository.claim_wal(system, size()).await.unwrap();
    for number in numbers {
        let bytes = Bytes::from(vec![number as u8; MIB as usize]);
        let _ = repository
            .put_wal_segment(system, &segment(on, number), bytes)
            .await
            .unwrap();
    }
}

async fn put_part(repository: &Repository, number: u64, from: u32, to: u32) {
    let bytes = Bytes::from(vec![number as u8; (to - from) as usize]);
    let _ = repository
        .put_wal_part(SYSTEM, &segment(1, number), from, bytes)
        .await
        .unwrap();
}

/// A base backup of that day, whose own WAL lies in these segments.
async fn base(
    repository: &Repository,
    input: &mut PruneInput,
    number: u32,
    on_timeline: u32,
    segments: (u64, u64),
) -> BackupId {
    let id = base_backup(&on(repository, number)).await;
    let extent = BaseExtent {
        ended_at: id.started_at() + SignedDuration::from_hours(1),
        timeline: timeline(on_timeline),
        start: Lsn::new(segments.0 * MIB + 40),
        stop: Lsn::new(segments.1 * MIB + 300),
    };
    let known = Known {
        system_identifier: Some(SYSTEM),
        scope: String::new(),
        base: Some(extent),
    };
    input.known.insert(id.clone(), known);
    id
}

async fn execute(
    repository: &Repository,
    policy: &Policy,
    input: &PruneInput,
) -> Result<PruneReport, PruneError> {
    let input = async { Ok(input.clone()) };
    prune::execute(repository, policy, input, LEASE, |_| {}, std::future::pending()).await
}

async fn planned(repository: &Repository, policy: &Policy, input: &PruneInput) -> WalPlan {
    let now = repository.now();
    let plan = prune::plan(repository, policy, input, now).await.unwrap();
    prune::plan_wal(repository, policy, input, &plan, now)
        .await
        .unwrap()
}

/// Segments of a timeline that are stored, as ranges of numbers.
async fn stored(repository: &Repository, system: u64, number: u32) -> Vec<(u64, u64)> {
    let covered = repository.wal_coverage(system, timeline(number)).await.unwrap();
    covered
        .iter()
        .map(|range| (range.start.as_u64() / MIB, range.end.as_u64() / MIB))
        .collect()
}

async fn bases(repository: &Repository) -> Vec<BackupId> {
    let entries = repository.backups(BackupKind::Base).await.unwrap();
    entries
        .into_iter()
        .filter(|entry| entry.state.is_there())
        .map(|entry| entry.id)
        .collect()
}

/// Five backups, a day apart, each of two segments, and WAL without a gap; parts of two segments, one of which is there whole.
async fn filled(folder: &Path) -> (Repository, PruneInput, Vec<BackupId>) {
    let repository = open(folder, day(1)).await;
    put_segments(&repository, SYSTEM, 1, 1..40).await;
    put_part(&repository, 30, 0, 100).await;
    put_part(&repository, 30, 100, 900).await;
    put_part(&repository, 40, 0, 77).await;
    let mut input = PruneInput::default();
    let mut ids = Vec::new();
    for number in 1..=5 {
        let first = u64::from(number) * 6;
        ids.push(base(&repository, &mut input, number, 1, (first, first + 1)).await);
    }
    (on(&repository, 6), input, ids)
}

#[tokio::test]
async fn the_window_begins_with_a_backup_before_it_and_wal_below_goes() {
    let folder = tempfile::tempdir().unwrap();
    let (today, input, ids) = filled(folder.path()).await;
    today
        .set_pin(&ids[0], true, "before the migration")
        .await
        .unwrap();
    let before = planned(&today, &policy(2), &input).await;
    assert_eq!(
        stored(&today, SYSTEM, 1).await,
        [(1, 40)],
        "a plan changes nothing"
    );

    let report = execute(&today, &policy(2), &input).await.unwrap();
    assert_eq!(report.failures().count(), 0);
    // The window begins on the 4th at 02:00: the backup of the 3rd ended before it.
    let window_begins = report.plan.decisions.iter().find(|decision| {
        decision
            .reasons
            .iter()
            .any(|reason| matches!(reason, Reason::WindowBegins(_)))
    });
    assert_eq!(window_begins.map(|decision| &decision.id), Some(&ids[2]));
    assert_eq!(
        bases(&today).await,
        [&ids[0], &ids[2], &ids[3], &ids[4]].map(Clone::clone)
    );
    // The pinned one has its own WAL and no more; the window all from its beginning on.
    assert_eq!(stored(&today, SYSTEM, 1).await, [(6, 8), (18, 40)]);
    let (system, reason) = (&report.wal.systems[0], &report.wal.systems[0].reason);
    assert!(
        matches!(reason, WalReason::Needed { backup, points: 1, .. } if *backup == ids[2]),
        "{reason}"
    );
    let pruned = &system.timelines[0];
    assert_eq!((pruned.objects, pruned.parts), (5 + 10, 2));
    assert_eq!(before, report.wal, "what was done is what was planned");
    // The part that nothing else holds stays.
    let last = today.fetch_wal(SYSTEM, &segment(1, 40)).await.unwrap().unwrap();
    assert_eq!(last[..78], [vec![40; 77], vec![0]].concat());
    assert_eq!(
        today.fetch_wal(SYSTEM, &segment(1, 30)).await.unwrap().unwrap()[5],
        30
    );
    // Once more, nothing is left to be done.
    let again = execute(&today, &policy(2), &input).await.unwrap();
    assert_eq!((again.removed.len(), again.wal.objects()), (0, 0));
}

/// Nobody may take the beginning that a prune cut off for the end of what there is.
#[tokio::test]
async fn wal_that_was_pruned_is_a_hole_and_not_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let (today, input, _) = filled(folder.path()).await;
    execute(&today, &policy(2), &input).await.unwrap();
    let error = today.fetch_wal(SYSTEM, &segment(1, 12)).await.unwrap_err();
    assert!(error.to_string().contains("isn't stored"), "{error}");
    assert_eq!(today.fetch_wal(SYSTEM, &segment(1, 41)).await.unwrap(), None);
}

#[tokio::test]
async fn without_a_policy_only_superseded_parts_go() {
    let folder = tempfile::tempdir().unwrap();
    let (today, input, ids) = filled(folder.path()).await;
    let report = execute(&today, &Policy::default(), &input).await.unwrap();
    assert_eq!(bases(&today).await, ids);
    assert_eq!(stored(&today, SYSTEM, 1).await, [(1, 40)]);
    assert_eq!(report.wal.systems[0].reason, WalReason::NoPolicy);
    assert_eq!(report.wal.objects(), 2);
}

#[tokio::test]
async fn a_backup_whose_need_is_unknown_keeps_all_wal() {
    let folder = tempfile::tempdir().unwrap();
    let (today, mut input, ids) = filled(folder.path()).await;
    input.known.remove(&ids[4]);
    input.unread.insert(ids[4].clone(), "it is cut short".to_owned());
    let report = execute(&today, &policy(2), &input).await.unwrap();
    assert_eq!(stored(&today, SYSTEM, 1).await, [(1, 40)]);
    assert_eq!(report.wal.objects(), 0);
    let why = report.wal.systems[0].reason.to_string();
    assert!(
        why.contains(&ids[4].to_string()) && why.contains("cut short"),
        "{why}"
    );
    // It isn't good, either: the one before it is the last good one.
    let last_good = report.plan.decisions.iter().find(|decision| {
        decision
            .reasons
            .iter()
            .any(|reason| matches!(reason, Reason::LastGood))
    });
    assert_eq!(last_good.map(|decision| &decision.id), Some(&ids[3]));
}

#[tokio::test]
async fn timelines_are_followed() {
    let folder = Folder::new(day(1)).await;
    let repository = &folder.repository;
    put_segments(repository, SYSTEM, 1, 1..30).await;
    put_segments(repository, SYSTEM, 2, 10..20).await;
    put_segments(repository, SYSTEM, 3, 25..40).await;
    for (number, left) in [(2, 10), (3, 25)] {
        let contents = Bytes::from(format!("1\t{}\tno reason\n", Lsn::new(left * MIB + 50)));
        let _ = repository
            .put_wal_history(SYSTEM, timeline(number), contents)
            .await
            .unwrap();
    }
    let mut input = PruneInput::default();
    base(repository, &mut input, 1, 1, (3, 4)).await;
    base(repository, &mut input, 2, 1, (20, 21)).await;
    base(repository, &mut input, 12, 3, (30, 31)).await;
    let today = on(repository, 13);
    // The window begins on timeline 1, and goes on on 3; 2 left it before.
    execute(&today, &policy(7), &input).await.unwrap();
    assert_eq!(stored(&today, SYSTEM, 1).await, [(20, 30)]);
    assert_eq!(stored(&today, SYSTEM, 2).await, []);
    assert_eq!(stored(&today, SYSTEM, 3).await, [(25, 40)]);
    // Now it begins on 3.
    execute(&on(repository, 25), &policy(7), &input).await.unwrap();
    assert_eq!(stored(&today, SYSTEM, 1).await, []);
    assert_eq!(stored(&today, SYSTEM, 3).await, [(30, 40)]);
    // Histories say which timelines are taken.
    for number in [2, 3] {
        let history = today.fetch_wal_history(SYSTEM, timeline(number)).await.unwrap();
        assert!(history.is_some());
    }
}

/// The WAL of an earlier server under this name: nobody can use it, and nobody needs it any more.
#[tokio::test]
async fn wal_of_another_server_goes_when_the_window_is_this_ones() {
    let folder = tempfile::tempdir().unwrap();
    let (today, input, _) = filled(folder.path()).await;
    let other = SYSTEM + 1;
    put_segments(&today, other, 1, 1..3).await;
    let report = execute(&today, &policy(2), &input).await.unwrap();
    // What the store says of its age is of now.
    assert_eq!(report.wal.systems[1].reason, WalReason::NoBackup);
    assert_eq!(stored(&today, other, 1).await, [(1, 3)]);
    age(&folder.path().join(format!("main/wal/{other}")));
    let report = execute(&today, &policy(2), &input).await.unwrap();
    let reason = &report.wal.systems[1].reason;
    assert!(
        matches!(reason, WalReason::Superseded { by, .. } if *by == SYSTEM),
        "{reason}"
    );
    assert_eq!(today.wal_systems().await.unwrap(), [SYSTEM]);
    assert_eq!(today.wal_segment_size(other).await.unwrap(), None);
}

/// As if all of it had been written in 1971.
fn age(folder: &Path) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            age(&entry.path());
        } else {
            let file = std::fs::File::options().append(true).open(entry.path()).unwrap();
            let then = std::time::UNIX_EPOCH + Duration::from_secs(365 * 24 * 3600);
            file.set_modified(then).unwrap();
        }
    }
}

/// Whatever request a prune comes to: each backup that is there has its WAL, and the next prune does the rest.
#[tokio::test]
async fn cut_off_at_any_request_every_backup_that_is_there_has_its_wal() {
    let mut after = 5;
    let mut cut_off = 0;
    loop {
        let folder = tempfile::tempdir().unwrap();
        let (today, input, ids) = filled(folder.path()).await;
        today.set_pin(&ids[0], true, "why").await.unwrap();
        let retry = RetryOptions {
            attempts_max: 1,
            attempts_min: 1,
            ..RetryOptions::default()
        };
        let options = StoreOptions {
            faults: Some(format!("outage={after}:600s").parse().unwrap()),
            retry,
            ..StoreOptions::default()
        };
        let faulty = open_with(folder.path(), today.now(), &options).await;
        let outcome = execute(&faulty, &policy(2), &input).await;
        let is_done = outcome.is_ok_and(|report| report.failures().count() == 0);

        let covered = today.wal_coverage(SYSTEM, timeline(1)).await.unwrap();
        let there = bases(&today).await;
        for id in &there {
            let extent = input.known[id].base.unwrap();
            let range = covered
                .iter()
                .find(|range| range.holds(extent.start, extent.stop));
            let range = range.unwrap_or_else(|| panic!("after {after} requests: {id} lacks its WAL"));
            // The window has no hole.
            assert!(*id < ids[2] || range.end >= Lsn::new(40 * MIB), "{id}: {range:?}");
        }
        assert!([0, 2, 3, 4].iter().all(|kept| there.contains(&ids[*kept])));
        // This process is alive, so its lease isn't broken: it runs out, or is taken away here.
        let _ = std::fs::remove_dir_all(folder.path().join("main/lease"));
        execute(&today, &policy(2), &input).await.unwrap();
        assert_eq!(stored(&today, SYSTEM, 1).await, [(6, 8), (18, 40)]);
        if is_done {
            break;
        }
        cut_off += 1;
        after += 3;
    }
    assert!(cut_off > 10, "{cut_off}");
}

/// Recovery fetches what is there as parts and whole while a prune takes the parts away.
#[tokio::test]
async fn a_fetch_beside_a_prune_gets_every_segment() {
    let folder = tempfile::tempdir().unwrap();
    let (today, input, _) = filled(folder.path()).await;
    let fetching = async {
        for round in 0..40_u64 {
            let number = 18 + round % 22;
            let found = today.fetch_wal(SYSTEM, &segment(1, number)).await.unwrap();
            assert_eq!(found.unwrap()[3], number as u8);
        }
    };
    let pruning = async {
        for _ in 0..10 {
            put_part(&today, 30, 0, 100).await;
            put_part(&today, 30, 100, 900).await;
            execute(&today, &policy(2), &input).await.unwrap();
        }
    };
    tokio::join!(fetching, pruning);
}
