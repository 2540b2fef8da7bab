//! The WAL of a base backup, from real servers of each version.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use pgkeep_base::{Classified, RetryClass};
use pgkeep_pg::Target;
use pgkeep_pgformat::{Lsn, Timeline};
use pgkeep_repository::Repository;
use pgkeep_testkit::{Cluster, require, requirements};
use pgkeep_wal::{RangeReceiver, RangeReport, WalError};
use support::{LIMIT, Place, compare, current_lsn, options, size, system_identifier, target};
use tokio::sync::watch;
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_is_what_the_server_has() {
    for major in requirements::MAJORS {
        let cluster = require!(Cluster::start(options(major)));
        let place = Place::new();
        let repository = place.open().await;
        let receiver = RangeReceiver::connect(&target(&cluster), &repository, false)
            .await
            .unwrap();
        assert_eq!(receiver.segment_size(), size());
        assert_eq!(receiver.identity().system_identifier, system_identifier(&cluster));
        let start = current_lsn(&cluster);
        let (stop_sender, stop) = watch::channel(None);
        let receiving = tokio::spawn(receiver.receive(start, Timeline::FIRST, stop));
        cluster.psql(
            "postgres",
            "CREATE TABLE t AS SELECT g, md5(g::text) FROM generate_series(1, 60000) g",
        );
        let stop = current_lsn(&cluster);
        cluster.psql("postgres", "INSERT INTO t SELECT 0, 'behind'");
        stop_sender.send(Some(stop)).unwrap();
        let report = timeout(LIMIT, receiving).await.unwrap().unwrap().unwrap();
        assert!(report.start <= start && stop <= report.end && report.objects > 2);
        compare(&repository, &cluster, Timeline::FIRST, report.start, stop).await;
        let system = system_identifier(&cluster);
        let coverage = repository.wal_coverage(system, Timeline::FIRST).await.unwrap();
        assert_eq!(coverage.len(), 1);
        assert_eq!((coverage[0].start, coverage[0].end), (report.start, report.end));
        let slots = cluster.psql("postgres", "SELECT count(*) FROM pg_replication_slots");
        assert_eq!(slots, "0", "the slot goes with its connection");
    }
}

/// Both steps in one, where it is known already where to begin, and the server still has it.
async fn receive_range(
    target: &Target,
    repository: &Repository,
    from: Lsn,
    timeline: Timeline,
    stop: watch::Receiver<Option<Lsn>>,
) -> Result<RangeReport, WalError> {
    let receiver = RangeReceiver::connect(target, repository, false).await?;
    receiver.receive(from, timeline, stop).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_goes_on_where_others_have_been() {
    let cluster = require!(Cluster::start(options(requirements::DEFAULT_MAJOR)));
    let place = Place::new();
    let repository = place.open().await;
    let start = current_lsn(&cluster);
    for round in 0..3 {
        cluster.psql(
            "postgres",
            "SELECT pg_logical_emit_message(false, 'x', repeat('y', 700000))",
        );
        let stop = current_lsn(&cluster);
        let (_sender, stop_receiver) = watch::channel(Some(stop));
        let target = target(&cluster);
        let receiving = receive_range(&target, &repository, start, Timeline::FIRST, stop_receiver);
        let report = timeout(LIMIT, receiving).await.unwrap().unwrap();
        assert!(report.objects <= 2 + round, "it stores again what is there");
        compare(&repository, &cluster, Timeline::FIRST, start, stop).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_is_given_up_ends_it() {
    let cluster = require!(Cluster::start(options(requirements::DEFAULT_MAJOR)));
    let place = Place::new();
    let repository = place.open().await;
    let (sender, stop) = watch::channel(None);
    let start = current_lsn(&cluster);
    let target = target(&cluster);
    let receiving =
        tokio::spawn(async move { receive_range(&target, &repository, start, Timeline::FIRST, stop).await });
    drop(sender);
    let error = timeout(LIMIT, receiving).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, WalError::GivenUp), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_is_refused() {
    let first = require!(Cluster::start(options(requirements::DEFAULT_MAJOR)));
    let second = require!(Cluster::start(options(requirements::DEFAULT_MAJOR)));
    let place = Place::new();
    let repository = place.open().await;
    RangeReceiver::connect(&target(&first), &repository, false)
        .await
        .unwrap();
    let Err(error) = RangeReceiver::connect(&target(&second), &repository, false).await else {
        panic!("the other cluster may write");
    };
    assert_eq!(error.retry_class(), RetryClass::Refused, "{error}");
}
