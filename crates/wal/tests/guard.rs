//! The guard of the server's disk: a store that is away, and a small limit.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests are tests"
)]

mod support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use pgkeep_pgformat::Timeline;
use pgkeep_testkit::{Cluster, poll_until, require, requirements};
use pgkeep_wal::{AtLimit, FillLevel, GuardOptions, ReceiverOptions};
use support::{LIMIT, Place, current_lsn, options, quick, start, system_identifier, target};

const WRITE: &str = "SELECT pg_logical_emit_message(false, 'x', repeat('y', 500000))";

fn guarded(at_limit: AtLimit) -> ReceiverOptions {
    ReceiverOptions {
        guard: GuardOptions {
            slot_bytes_max: Some(6 << 20),
            at_limit,
            interval: Duration::from_millis(200),
        },
        ..quick()
    }
}

/// Nothing can be put while a file stands where the folder of WAL was.
fn away(folder: &Path) {
    fs::rename(folder.join("main/wal"), folder.join("main/wal.away")).unwrap();
    fs::write(folder.join("main/wal"), "").unwrap();
}

fn back(folder: &Path) {
    fs::remove_file(folder.join("main/wal")).unwrap();
    fs::rename(folder.join("main/wal.away"), folder.join("main/wal")).unwrap();
}

fn server() -> pgkeep_testkit::ClusterOptions {
    options(requirements::DEFAULT_MAJOR)
        .setting("wal_keep_size", "0")
        .setting("min_wal_size", "2MB")
        .setting("max_wal_size", "4MB")
}

fn slots(cluster: &Cluster) -> String {
    cluster.psql("postgres", "SELECT count(*) FROM pg_replication_slots")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_limit_the_slot_is_released_and_the_gap_is_told() {
    let cluster = require!(Cluster::start(server()));
    let place = Place::new();
    let repository = place.open().await;
    let mut running = start(target(&cluster), repository.clone(), guarded(AtLimit::Release));
    cluster.psql("postgres", WRITE);
    running.durable(current_lsn(&cluster)).await;

    away(place.path());
    let mut levels = Vec::new();
    while running.state.borrow().releases == 0 {
        cluster.psql("postgres", WRITE);
        let fill = running.state.borrow().slot_fill;
        levels.extend(fill.map(|fill| fill.level));
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert!(levels.contains(&FillLevel::Half), "{levels:?}");
    assert!(levels.contains(&FillLevel::High), "{levels:?}");
    // The server is free to remove it, and does.
    assert_eq!(slots(&cluster), "0");
    poll_until("the WAL is removed", LIMIT, || {
        cluster.psql(
            "postgres",
            &format!("{WRITE}; SELECT pg_switch_wal(); CHECKPOINT"),
        );
        let names = fs::read_dir(cluster.data_dir().join("pg_wal")).unwrap();
        let oldest = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        oldest
            .min()
            .is_some_and(|name| name.as_str() > "000000010000000000000009")
    });

    back(place.path());
    let state = running
        .until("the gap is told", |state| !state.gaps.is_empty())
        .await;
    cluster.psql("postgres", WRITE);
    running.durable(current_lsn(&cluster)).await;
    assert_eq!(slots(&cluster), "1");
    running.stop().await;
    let system = system_identifier(&cluster);
    let coverage = repository.wal_coverage(system, Timeline::FIRST).await.unwrap();
    assert_eq!(coverage.len(), 2, "{coverage:?}");
    assert_eq!(
        (coverage[0].end, coverage[1].start),
        (state.gaps[0].start, state.gaps[0].end)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_the_server_keeps_all_and_nothing_is_lost() {
    let cluster = require!(Cluster::start(server()));
    let place = Place::new();
    let repository = place.open().await;
    let mut running = start(target(&cluster), repository.clone(), guarded(AtLimit::Hold));
    cluster.psql("postgres", WRITE);
    running.durable(current_lsn(&cluster)).await;
    away(place.path());
    for _ in 0..20 {
        cluster.psql("postgres", WRITE);
    }
    let is_full =
        |state: &pgkeep_wal::StreamState| state.slot_fill.is_some_and(|fill| fill.level == FillLevel::Full);
    running.until("it is full", is_full).await;
    cluster.psql("postgres", "CHECKPOINT");
    back(place.path());
    let state = running.durable(current_lsn(&cluster)).await;
    assert_eq!((state.releases, state.gaps.len()), (0, 0));
    running
        .until("there is room again", |state| state.slot_fill.is_none())
        .await;
    running.stop().await;
    support::one_range(&repository, system_identifier(&cluster), Timeline::FIRST).await;
}
