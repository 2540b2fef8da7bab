//! The receiver, with real servers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use pgkeep_base::{Classified, RetryClass};
use pgkeep_pgformat::Timeline;
use pgkeep_store::fault::FaultPlan;
use pgkeep_testkit::{Cluster, ClusterOptions, StopMode, poll_until, require, requirements, run, seed};
use pgkeep_wal::{Phase, ReceiverOptions, WalError};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::{
    LIMIT, Load, Place, compare, current_lsn, one_range, options, quick, slot_restart, start,
    system_identifier, target,
};

const WRITE: &str = "SELECT pg_logical_emit_message(false, 'x', repeat('y', 50000)); CHECKPOINT";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_is_stored_as_the_server_has_it() {
    for major in requirements::MAJORS {
        let cluster = require!(Cluster::start(options(major)));
        let place = Place::new();
        let repository = place.open().await;
        let mut running = start(target(&cluster), repository.clone(), quick());
        running
            .until("it streams", |state| state.phase == Phase::Streaming)
            .await;
        cluster.psql(
            "postgres",
            "CREATE TABLE t AS SELECT g, md5(g::text) FROM generate_series(1, 50000) g; SELECT pg_switch_wal()",
        );
        cluster.psql("postgres", "INSERT INTO t SELECT 0, 'last'");
        let end = current_lsn(&cluster);
        let state = running.durable(end).await;
        assert_eq!((state.reconnects, state.gaps.len()), (0, 0));
        running.stop().await;
        let system = system_identifier(&cluster);
        let (first, last) = one_range(&repository, system, Timeline::FIRST).await;
        assert!(last >= end);
        compare(&repository, &cluster, Timeline::FIRST, first, end).await;
        assert_eq!(
            slot_restart(&cluster),
            last,
            "all that is stored is confirmed, and nothing else"
        );
        against_pg_receivewal(&cluster, &place, first, end).await;
    }
}

/// What PostgreSQL's own receiver writes.
async fn against_pg_receivewal(
    cluster: &Cluster,
    place: &Place,
    first: pgkeep_pgformat::Lsn,
    end: pgkeep_pgformat::Lsn,
) {
    let directory = tempfile::tempdir().unwrap();
    run(cluster
        .client_command("pg_receivewal")
        .args(["--no-loop", "--endpos", &end.to_string(), "-D"])
        .arg(directory.path()));
    let repository = place.open().await;
    let mut compared = 0;
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_str().unwrap();
        let name = file.strip_suffix(".partial").unwrap_or(file);
        let name = pgkeep_pgformat::SegmentName::parse(name, support::size()).unwrap();
        if name.start() < first {
            continue;
        }
        let theirs = std::fs::read(&path).unwrap();
        let length = name.offset_of(end).map_or(theirs.len(), |offset| offset as usize);
        let ours = repository
            .fetch_wal(system_identifier(cluster), &name)
            .await
            .unwrap();
        assert!(ours.unwrap()[..length] == theirs[..length], "{file} differs");
        compared += 1;
    }
    assert!(compared > 0, "pg_receivewal wrote nothing to compare");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_is_cut_off_at_any_moment_loses_nothing() {
    let cluster = require!(Cluster::start(options(requirements::DEFAULT_MAJOR)));
    let place = Place::new();
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let load = Load::start(&cluster);
    for _ in 0..12 {
        let running = start(target(&cluster), place.open().await, quick());
        let moment = Duration::from_millis(random.random_range(0..1500));
        // The moment itself is what is tested.
        tokio::time::sleep(moment).await;
        running.task.abort();
    }
    drop(load);
    let repository = place.open().await;
    let mut running = start(target(&cluster), repository.clone(), quick());
    let end = current_lsn(&cluster);
    let state = running.durable(end).await;
    assert_eq!(state.gaps, []);
    running.stop().await;
    let system = system_identifier(&cluster);
    let (first, last) = one_range(&repository, system, Timeline::FIRST).await;
    assert!(last >= end, "seed {seed}");
    compare(&repository, &cluster, Timeline::FIRST, first, end).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_fails_often_and_is_away_for_a_while_delays_and_loses_nothing() {
    let cluster = require!(Cluster::start(options(requirements::DEFAULT_MAJOR)));
    let place = Place::new();
    let faults = FaultPlan {
        seed: seed(),
        fail_one_in: 5,
        lose_ack_one_in: 7,
        stall: Some((20, Duration::from_millis(700))),
        outage: Some((60, Duration::from_secs(4))),
        ..FaultPlan::default()
    };
    let repository = place.open_with(Some(faults)).await;
    let sound = place.open().await;
    let mut running = start(target(&cluster), repository, quick());
    running
        .until("it streams", |state| state.phase == Phase::Streaming)
        .await;
    let load = Load::start(&cluster);
    let system = system_identifier(&cluster);
    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    while began.elapsed() < Duration::from_secs(8) {
        let asked = Instant::now();
        // What is confirmed is stored: the position first, and then what there is.
        let confirmed = slot_restart(&cluster);
        slowest = slowest.max(asked.elapsed());
        let coverage = sound.wal_coverage(system, Timeline::FIRST).await.unwrap();
        if let Some(first) = coverage.first() {
            assert!(confirmed <= first.end, "{confirmed} is confirmed: {coverage:?}");
        }
    }
    drop(load);
    let end = current_lsn(&cluster);
    let state = running.durable(end).await;
    assert_eq!(state.gaps, []);
    running.stop().await;
    let (first, last) = one_range(&sound, system, Timeline::FIRST).await;
    assert!(last >= end);
    compare(&sound, &cluster, Timeline::FIRST, first, end).await;
    assert!(
        slowest < Duration::from_secs(5),
        "the database waited {slowest:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_shuts_down_does_not_wait_for_a_store_that_is_away() {
    let mut cluster = require!(Cluster::start(options(requirements::DEFAULT_MAJOR)));
    let place = Place::new();
    let faults = FaultPlan {
        outage: Some((30, Duration::from_secs(6))),
        ..FaultPlan::default()
    };
    let repository = place.open_with(Some(faults)).await;
    let options = ReceiverOptions {
        stall_max: Duration::from_secs(1),
        ..quick()
    };
    let mut running = start(target(&cluster), repository, options);
    running
        .until("it streams", |state| state.phase == Phase::Streaming)
        .await;
    while running.state.borrow().durable >= running.state.borrow().received {
        cluster.psql("postgres", WRITE);
    }
    let began = Instant::now();
    cluster.stop(StopMode::Fast);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    cluster.start_again();
    cluster.psql("postgres", WRITE);
    let end = current_lsn(&cluster);
    let state = running.durable(end).await;
    assert!(state.reconnects > 0);
    running.stop().await;
    let sound = place.open().await;
    let (first, _) = one_range(&sound, system_identifier(&cluster), Timeline::FIRST).await;
    compare(&sound, &cluster, Timeline::FIRST, first, end).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_crashes_and_restarts_is_found_again() {
    let mut cluster = require!(Cluster::start(options(requirements::DEFAULT_MAJOR)));
    let place = Place::new();
    let repository = place.open().await;
    let mut running = start(target(&cluster), repository.clone(), quick());
    for mode in [StopMode::Immediate, StopMode::Fast] {
        cluster.psql("postgres", WRITE);
        running.durable(current_lsn(&cluster)).await;
        cluster.restart(mode);
    }
    cluster.psql("postgres", WRITE);
    let end = current_lsn(&cluster);
    let state = running.durable(end).await;
    assert_eq!((state.gaps.len(), state.server_trouble), (0, None));
    running.stop().await;
    let (first, _) = one_range(&repository, system_identifier(&cluster), Timeline::FIRST).await;
    compare(&repository, &cluster, Timeline::FIRST, first, end).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_is_followed_onto_the_new_timeline() {
    for major in requirements::MAJORS {
        let mut cluster = require!(Cluster::start(options(major)));
        let place = Place::new();
        let repository = place.open().await;
        let mut running = start(target(&cluster), repository.clone(), quick());
        cluster.psql("postgres", WRITE);
        running.durable(current_lsn(&cluster)).await;
        cluster.stop(StopMode::Fast);
        cluster.write_file("standby.signal", "");
        cluster.start_again();
        running
            .until("it streams", |state| state.phase == Phase::Streaming)
            .await;
        cluster.psql("postgres", "SELECT pg_promote()");
        cluster.psql("postgres", WRITE);
        let end = current_lsn(&cluster);
        let two = Timeline::new(2).unwrap();
        running
            .until("it follows", |state| {
                state.timeline == Some(two) && state.durable >= end
            })
            .await;
        running.stop().await;
        let system = system_identifier(&cluster);
        let history = repository.fetch_wal_history(system, two).await.unwrap().unwrap();
        let theirs = std::fs::read(cluster.data_dir().join("pg_wal/00000002.history")).unwrap();
        assert_eq!(history, theirs);
        let history = pgkeep_pgformat::TimelineHistory::parse(two, &history).unwrap();
        let (switch, _) = history.switch_point(Timeline::FIRST).unwrap();
        let (first, last) = one_range(&repository, system, Timeline::FIRST).await;
        assert!(last >= switch);
        compare(&repository, &cluster, Timeline::FIRST, first, switch).await;
        let (first, last) = one_range(&repository, system, two).await;
        assert!(first <= switch && last >= end);
        compare(&repository, &cluster, two, first, end).await;
        // The history comes again with each start, and is the same.
        let mut running = start(target(&cluster), repository.clone(), quick());
        cluster.psql("postgres", WRITE);
        running.durable(current_lsn(&cluster)).await;
        running.stop().await;
    }
}

/// A second server with the files of the first, which must be stopped.
fn copy_of(cluster: &Cluster, options: ClusterOptions) -> Cluster {
    let mut copy = Cluster::start(options).unwrap();
    copy.stop(StopMode::Fast);
    std::fs::remove_dir_all(copy.data_dir()).unwrap();
    let copied = Command::new("cp")
        .arg("-a")
        .arg(cluster.data_dir())
        .arg(copy.data_dir())
        .status();
    assert!(copied.unwrap().success());
    copy.set("unix_socket_directories", copy.socket_dir().to_str().unwrap());
    copy.start_again();
    copy
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_servers_under_one_name_the_second_is_refused() {
    let options = || options(requirements::DEFAULT_MAJOR);
    let mut first = require!(Cluster::start(options()));
    first.psql("postgres", "CREATE TABLE t(i int)");
    first.stop(StopMode::Fast);
    let second = copy_of(&first, options());
    first.start_again();
    let place = Place::new();
    let repository = place.open().await;
    let mut running = start(target(&first), repository.clone(), quick());
    first.psql("postgres", "INSERT INTO t SELECT generate_series(1, 3000)");
    running.durable(current_lsn(&first)).await;
    running.stop().await;
    // It has come less far.
    let mut running = start(target(&second), repository.clone(), quick());
    let error = (&mut running.task).await.unwrap().unwrap_err();
    assert!(matches!(error, WalError::NotInHistory { .. }), "{error}");
    // It has come further, with other bytes.
    second.psql("postgres", "INSERT INTO t SELECT generate_series(1, 30000)");
    let before = one_range(&repository, system_identifier(&first), Timeline::FIRST).await;
    let mut running = start(target(&second), repository.clone(), quick());
    let error = (&mut running.task).await.unwrap().unwrap_err();
    assert!(matches!(error, WalError::OtherWal { .. }), "{error}");
    assert_eq!(error.retry_class(), RetryClass::Refused);
    let after = one_range(&repository, system_identifier(&first), Timeline::FIRST).await;
    assert_eq!(before, after, "it stored something");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_former_primary_that_comes_back_is_refused() {
    let options = || options(requirements::DEFAULT_MAJOR);
    let mut first = require!(Cluster::start(options()));
    first.stop(StopMode::Fast);
    let mut second = copy_of(&first, options());
    second.stop(StopMode::Fast);
    second.write_file("standby.signal", "");
    second.start_again();
    first.start_again();
    let place = Place::new();
    let repository = place.open().await;
    let mut running = start(target(&first), repository.clone(), quick());
    first.psql("postgres", WRITE);
    running.durable(current_lsn(&first)).await;
    running.stop().await;
    // A standby that lagged behind takes over: it has no slot, and branches off before what is stored.
    second.psql("postgres", "SELECT pg_promote()");
    second.psql("postgres", WRITE);
    let mut running = start(target(&second), repository.clone(), quick());
    let state = running.durable(current_lsn(&second)).await;
    assert_eq!(state.gaps, []);
    assert_eq!(state.timeline, Timeline::new(2));
    running.stop().await;
    let mut running = start(target(&first), repository.clone(), quick());
    let error = (&mut running.task).await.unwrap().unwrap_err();
    assert!(matches!(error, WalError::NotInHistory { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_was_lost_is_a_gap_that_is_told_at_once() {
    for major in requirements::MAJORS {
        let options = options(major)
            .setting("max_slot_wal_keep_size", "1MB")
            .setting("wal_keep_size", "0")
            .setting("min_wal_size", "2MB")
            .setting("max_wal_size", "4MB");
        let cluster = require!(Cluster::start(options));
        let place = Place::new();
        let repository = place.open().await;
        let mut running = start(target(&cluster), repository.clone(), quick());
        cluster.psql("postgres", WRITE);
        let first = running.durable(current_lsn(&cluster)).await.durable;
        running.stop().await;
        poll_until("the slot is lost", LIMIT, || {
            cluster.psql(
                "postgres",
                "SELECT pg_logical_emit_message(false, 'x', repeat('y', 3000000)); CHECKPOINT",
            );
            let sql = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'pgkeep'";
            cluster.psql("postgres", sql) == "lost"
        });
        let mut running = start(target(&cluster), repository.clone(), quick());
        cluster.psql("postgres", WRITE);
        let state = running.durable(current_lsn(&cluster)).await;
        assert_eq!(state.gaps.len(), 1, "{:?}", state.gaps);
        assert_eq!(state.gaps[0].start, first);
        running.stop().await;
        let system = system_identifier(&cluster);
        let coverage = repository.wal_coverage(system, Timeline::FIRST).await.unwrap();
        assert_eq!(coverage.len(), 2, "{coverage:?}");
        assert_eq!((coverage[0].end, coverage[1].start), (first, state.gaps[0].end));
        let sql = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'pgkeep'";
        assert_ne!(cluster.psql("postgres", sql), "lost");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_was_dropped_leaves_no_gap_where_the_server_still_has_the_wal() {
    let cluster = require!(Cluster::start(options(requirements::DEFAULT_MAJOR)));
    let place = Place::new();
    let repository = place.open().await;
    let mut running = start(target(&cluster), repository.clone(), quick());
    cluster.psql("postgres", WRITE);
    running.durable(current_lsn(&cluster)).await;
    running.stop().await;
    cluster.psql("postgres", "SELECT pg_drop_replication_slot('pgkeep')");
    for _ in 0..4 {
        cluster.psql("postgres", WRITE);
        cluster.psql("postgres", "SELECT pg_switch_wal(); CHECKPOINT");
    }
    let mut running = start(target(&cluster), repository.clone(), quick());
    cluster.psql("postgres", WRITE);
    let end = current_lsn(&cluster);
    let state = running.durable(end).await;
    assert_eq!(state.gaps, []);
    running.stop().await;
    let (first, _) = one_range(&repository, system_identifier(&cluster), Timeline::FIRST).await;
    compare(&repository, &cluster, Timeline::FIRST, first, end).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_server_costs_no_requests() {
    let cluster = require!(Cluster::start(options(requirements::DEFAULT_MAJOR)));
    let place = Place::new();
    let repository = place.open().await;
    let options = ReceiverOptions {
        lease_duration: Duration::from_secs(300),
        ..quick()
    };
    let mut running = start(target(&cluster), repository.clone(), options);
    cluster.psql("postgres", WRITE);
    running.durable(current_lsn(&cluster)).await;
    let before = repository.store().requests();
    let sum = |counts: &pgkeep_store::RequestCounts| {
        counts.puts + counts.gets + counts.lists + counts.heads + counts.deletes
    };
    // Idleness takes time; twenty times as long as a flush.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = repository.store().requests();
    // The server writes something by itself now and then.
    assert!(sum(&after) - sum(&before) <= 1, "{before:?} {after:?}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_receiver_waits_for_the_first() {
    let cluster = require!(Cluster::start(options(requirements::DEFAULT_MAJOR)));
    let place = Place::new();
    let mut first = start(target(&cluster), place.open().await, quick());
    first
        .until("it streams", |state| state.phase == Phase::Streaming)
        .await;
    let mut second = start(target(&cluster), place.open().await, quick());
    let state = second
        .until("it waits", |state| state.phase == Phase::Waiting)
        .await;
    assert!(state.server_trouble.is_some());
    first.stop().await;
    second
        .until("it streams", |state| state.phase == Phase::Streaming)
        .await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_too_large_for_memory_are_stored_in_parts_alone() {
    let options = ClusterOptions::new(requirements::DEFAULT_MAJOR)
        .initdb_arg("--wal-segsize=128")
        .setting("max_wal_size", "2GB")
        .setting("wal_keep_size", "1GB");
    let cluster = require!(Cluster::start(options));
    let place = Place::new();
    let repository = place.open().await;
    let mut running = start(target(&cluster), repository.clone(), quick());
    running
        .until("it streams", |state| state.phase == Phase::Streaming)
        .await;
    let name = cluster.psql("postgres", "SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    cluster.psql(
        "postgres",
        "CREATE TABLE t AS SELECT g, md5(g::text) FROM generate_series(1, 400000) g; SELECT pg_switch_wal()",
    );
    cluster.psql("postgres", WRITE);
    running.durable(current_lsn(&cluster)).await;
    running.stop().await;
    let system = system_identifier(&cluster);
    let size = pgkeep_pgformat::SegmentSize::new(128 << 20).unwrap();
    let segment = pgkeep_pgformat::SegmentName::parse(&name, size).unwrap();
    let stored = repository.wal_around(system, segment).await.unwrap();
    let of_it = stored
        .iter()
        .filter(|stored| stored.object.segment() == Some(segment));
    let parts: Vec<_> = of_it.filter_map(|stored| stored.object.offsets()).collect();
    assert!(parts.len() >= 8, "{parts:?}");
    assert!(parts.iter().all(|(from, to)| to - from <= 17 << 20), "{parts:?}");
    let ours = repository.fetch_wal(system, &segment).await.unwrap().unwrap();
    let theirs = std::fs::read(cluster.data_dir().join("pg_wal").join(&name)).unwrap();
    assert!(ours == theirs);
}
