//! A store that fails one request in five, loses answers, stalls, goes away, or is full.

use std::time::Duration;

use pgkeep_base::{Classified, RetryClass};
use pgkeep_dump::DumpError;
use pgkeep_repository::RepositoryError;
use pgkeep_store::fault::FaultPlan;
use pgkeep_store::{RetryOptions, StoreErrorKind, StoreOptions};
use pgkeep_testkit::{Cluster, require, requirements};

use crate::common::{self, dump_options, repository_through, repository_with_faults, whole_dumps};
use crate::{assert_no_orphans, compare, files, overwriting, plan, remove_dumps, servers, source};

/// Seeds tried by the tests whose faults are random.
fn seeds() -> impl Iterator<Item = u64> {
    let seeds = if requirements::long().is_ok() { 10 } else { 1 };
    let first = pgkeep_testkit::seed();
    (0..seeds).map(move |number| first.wrapping_add(number))
}

async fn dumps_and_restores_with(source: &Cluster, destination: &Cluster, writing: &str, reading: &str) {
    eprintln!("writing with {writing}, reading with {reading}");
    let folder = tempfile::tempdir().unwrap();
    let faulty = repository_with_faults(folder.path(), plan(writing)).await;
    // As long as the program's own: an outage that outlasts the lease loses it.
    let mut options = dump_options(source);
    options.lease_duration = Duration::from_secs(300);
    let report = common::dump(&faulty, source, &options).await.unwrap();
    let sound = repository_through(folder.path(), StoreOptions::default()).await;
    assert_eq!(whole_dumps(&sound).await, std::slice::from_ref(&report.id));
    let faulty = repository_with_faults(folder.path(), plan(reading)).await;
    common::restore(&faulty, &report.id, destination, &overwriting(destination))
        .await
        .unwrap();
    compare(source, destination);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_one_request_in_five_loses_answers_stalls_and_cuts() {
    let (source, destination) = require!(servers());
    for seed in seeds() {
        let faults = format!("seed={seed},fail=5,lose_ack=5,stall=10:300ms,cut=4,truncate=4");
        dumps_and_restores_with(&source, &destination, &faults, &faults).await;
    }
}

/// Half of all answers are lost, that to the manifest's too: it must not be taken for somebody else's.
#[tokio::test(flavor = "multi_thread")]
async fn lost_acknowledgements_are_not_taken_for_other_writers() {
    let (source, destination) = require!(servers());
    for seed in seeds() {
        let faults = format!("seed={seed},lose_ack=2");
        dumps_and_restores_with(&source, &destination, &faults, &faults).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_in_the_middle_is_waited_out() {
    let (source, destination) = require!(servers());
    let seconds = if requirements::long().is_ok() { 60 } else { 5 };
    // The dump makes about forty requests, the restore about twenty.
    dumps_and_restores_with(
        &source,
        &destination,
        &format!("outage=14:{seconds}s"),
        &format!("outage=6:{seconds}s"),
    )
    .await;
}

/// So many failed dumps at most are left for the next one to sweep: each takes it some requests, tombstones too, so that with
/// one more each time no dump would ever get through.
pub const FAILED_MAX: u32 = 3;

pub fn impatient(faults: FaultPlan) -> StoreOptions {
    StoreOptions {
        retry: RetryOptions {
            attempts_max: 3,
            elapsed_max: Duration::from_secs(1),
            backoff_max: Duration::from_millis(50),
            ..RetryOptions::default()
        },
        faults: Some(faults),
        ..StoreOptions::default()
    }
}

/// The store goes away at every fourth request (in the long test: at every one) and doesn't come back in time: the dump
/// fails, nothing is there, and the next dump succeeds.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_too_long_at_any_request_leaves_no_dump() {
    let (source, destination) = require!(servers());
    let folder = tempfile::tempdir().unwrap();
    let sound = repository_through(folder.path(), StoreOptions::default()).await;
    let mut failed = 0;
    let mut after = 3;
    loop {
        let faults = plan(&format!("outage={after}:600s"));
        let faulty = repository_through(folder.path(), impatient(faults)).await;
        let before = whole_dumps(&sound).await;
        let outcome = common::dump(&faulty, &source, &dump_options(&source)).await;
        let now = whole_dumps(&sound).await;
        eprintln!(
            "after {after} requests: {:?}",
            outcome.as_ref().err().map(ToString::to_string)
        );
        match outcome {
            Ok(report) => {
                assert_eq!(now.last(), Some(&report.id));
                break;
            }
            Err(error) => {
                assert_eq!(
                    now, before,
                    "after {after} requests: it failed ({error}) and is there"
                );
                assert_eq!(error.retry_class(), RetryClass::Transient, "{error}");
                assert!(error.hint().is_some(), "{error}");
                failed += 1;
            }
        }
        // This process is alive, so its lease isn't broken: it runs out, or is taken away here.
        for lease in files(&folder.path().join("test/lease")) {
            std::fs::remove_file(lease).unwrap();
        }
        if failed % FAILED_MAX == 0 {
            remove_dumps(folder.path());
        }
        after += if requirements::long().is_ok() { 1 } else { 4 };
    }
    assert!(failed >= 5, "only {failed} of the dumps failed");
    // The dump that succeeded has swept what the others left.
    assert_no_orphans(folder.path());
    let last = whole_dumps(&sound).await.pop().unwrap();
    common::restore(&sound, &last, &destination, &overwriting(&destination))
        .await
        .unwrap();
    compare(&source, &destination);
}

/// A disk on which the dump doesn't fit: what was written is cleared away at once, or nobody could write even a tombstone.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_with_the_mend_and_leaves_room() {
    let source = require!(source());
    let folder = tempfile::tempdir().unwrap();
    for disk_bytes in [20_000, 200_000, 1_000_000] {
        let full = repository_with_faults(folder.path(), plan(&format!("disk={disk_bytes}"))).await;
        let error = common::dump(&full, &source, &dump_options(&source))
            .await
            .unwrap_err();
        let DumpError::Repository(RepositoryError::Store(store)) = &error else {
            panic!("{error}")
        };
        assert_eq!(store.kind(), StoreErrorKind::NoSpace, "{error}");
        let hint = error.hint().unwrap();
        assert!(hint.as_str().contains("free space"), "{hint}");
        assert!(whole_dumps(&full).await.is_empty());
        assert_no_orphans(folder.path());
    }
    let sound = repository_through(folder.path(), StoreOptions::default()).await;
    let report = common::dump(&sound, &source, &dump_options(&source))
        .await
        .unwrap();
    assert_eq!(whole_dumps(&sound).await, [report.id]);
}

/// A disk that fails to make the manifest's name durable: the dump isn't there and isn't said to be.
#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_is_not_durable_is_no_dump() {
    let source = require!(source());
    let folder = tempfile::tempdir().unwrap();
    let failing = repository_with_faults(folder.path(), plan("unsynced=manifest")).await;
    let error = common::dump(&failing, &source, &dump_options(&source))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("not durable on purpose"), "{error}");
    let sound = repository_through(folder.path(), StoreOptions::default()).await;
    assert!(whole_dumps(&sound).await.is_empty());
    assert!(files(&folder.path().join("test/dump")).is_empty());
    let report = common::dump(&sound, &source, &dump_options(&source))
        .await
        .unwrap();
    assert_eq!(whole_dumps(&sound).await, [report.id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_nobody_could_read_is_refused() {
    let source = require!(source());
    let folder = tempfile::tempdir().unwrap();
    let repository = repository_through(folder.path(), StoreOptions::default()).await;
    let mut options = dump_options(&source);
    let note = "x".repeat(5 << 20);
    options.annotations.insert("note".to_owned(), note);
    let error = common::dump(&repository, &source, &options).await.unwrap_err();
    assert!(matches!(error, DumpError::Unreadable { .. }), "{error}");
    assert!(error.hint().is_some());
    assert!(whole_dumps(&repository).await.is_empty());
    assert_no_orphans(folder.path());
}

/// Whatever fails once the lease is taken, the next writer needn't wait for it to run out.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_fails_before_it_begins_gives_its_lease_back() {
    let source = require!(source());
    let folder = tempfile::tempdir().unwrap();
    let repository = repository_through(folder.path(), StoreOptions::default()).await;
    std::fs::create_dir_all(folder.path().join("test")).unwrap();
    std::fs::write(folder.path().join("test/dump"), "not a directory").unwrap();
    let error = common::dump(&repository, &source, &dump_options(&source))
        .await
        .unwrap_err();
    assert!(
        matches!(error, DumpError::Repository(RepositoryError::Store(_))),
        "{error}"
    );
    std::fs::remove_file(folder.path().join("test/dump")).unwrap();
    common::dump(&repository, &source, &dump_options(&source))
        .await
        .unwrap();
}
