//! Other pgkeeps at the same time, with right and wrong clocks.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use pgkeep_base::{BackupId, BackupKind, Classified, ManualClock, RetryClass};
use pgkeep_dump::verify::{self, VerifyDepth, VerifyOptions};
use pgkeep_dump::{DumpError, DumpOptions, Progress};
use pgkeep_repository::RepositoryError;
use pgkeep_repository::backups::{BackupState, GivenUp};
use pgkeep_repository::lease::Lease;
use pgkeep_repository::prune::{self, PruneError, PruneInput};
use pgkeep_repository::references::References;
use pgkeep_repository::retention::Policy;
use pgkeep_store::StoreOptions;
use pgkeep_testkit::{Cluster, ClusterOptions, Missing, Session, require};

use crate::common::{self, begin_dump, begin_restore, dump_options, repository_through, whole_dumps};
use crate::{
    DATABASE, assert_no_orphans, compare, overwriting, servers, slow, source, wait_for_rows, wait_for_tables,
};

/// Dumped after the others.
const LAST_DATABASE: &str = "last";

/// A server whose dump stops between its first rows and its end, until the session is dropped.
fn held_source() -> Result<(Cluster, Session), Missing> {
    let source = source()?;
    source.create_database(LAST_DATABASE);
    source.psql(LAST_DATABASE, "CREATE TABLE held ()");
    let mut holder = source.session(LAST_DATABASE);
    holder.run("BEGIN; LOCK TABLE held;");
    Ok((source, holder))
}

/// Waits until the running dump stops: it has stored rows, and stores nothing now. Returns its id.
fn wait_until_held(source: &Cluster, folder: &Path) -> BackupId {
    let id = wait_for_rows(folder);
    common::wait_for_waiter(source, LAST_DATABASE, "held", "AccessShareLock");
    id
}

/// What a dump beside it reads, which doesn't stop.
fn beside(source: &Cluster) -> DumpOptions {
    DumpOptions {
        databases: vec![DATABASE.to_owned()],
        ..dump_options(source)
    }
}

/// Another process took the slow dump for an orphan: its tombstone stands where the manifest would go.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_was_swept_while_it_ran_is_refused() {
    let (source, holder) = require!(held_source());
    let folder = tempfile::tempdir().unwrap();
    let sound = repository_through(folder.path(), StoreOptions::default()).await;
    let dump = begin_dump(&sound, &source, &dump_options(&source));
    let id = wait_until_held(&source, folder.path());
    let given_up = sound
        .sweep_one(&id, "orphan", &References::default())
        .await
        .unwrap();
    assert!(
        matches!(given_up, GivenUp::Now(objects) if objects > 0),
        "{given_up:?}"
    );
    drop(holder);
    let error = dump.await.unwrap().unwrap_err();
    assert!(
        matches!(error, DumpError::Repository(RepositoryError::Fenced { .. })),
        "{error}"
    );
    assert!(whole_dumps(&sound).await.is_empty());
    common::dump(&sound, &source, &dump_options(&source))
        .await
        .unwrap();
    assert_no_orphans(folder.path());
    assert_eq!(whole_dumps(&sound).await.len(), 1);
}

/// A host whose clock is an hour fast takes the lease of a live dump, sweeps and dumps itself. One of them succeeds, and
/// what it has is whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_whose_lease_is_taken_by_a_wrong_clock_fails_and_the_other_is_whole() {
    let (source, holder) = require!(held_source());
    let folder = tempfile::tempdir().unwrap();
    let sound = repository_through(folder.path(), StoreOptions::default()).await;
    let dump = begin_dump(&sound, &source, &dump_options(&source));
    let id = wait_until_held(&source, folder.path());
    let held = Lease::acquire(&sound, "test", Duration::from_secs(60)).await;
    assert!(
        matches!(held, Err(RepositoryError::LeaseHeld { .. })),
        "the running dump has the lease"
    );
    let clock = ManualClock::new(Timestamp::now() + SignedDuration::from_hours(1));
    let fast = sound.clone().with_clock(Arc::new(clock));
    let report = common::dump(&fast, &source, &beside(&source)).await.unwrap();
    assert_eq!(report.swept.backups, [id]);
    drop(holder);
    let error = dump.await.unwrap().unwrap_err();
    assert!(
        matches!(
            error,
            DumpError::Repository(RepositoryError::Fenced { .. } | RepositoryError::LeaseLost { .. })
        ),
        "{error}"
    );
    assert_eq!(error.retry_class(), RetryClass::Transient);
    assert_eq!(whole_dumps(&sound).await, [report.id]);
}

/// Two dumps at once: the second is told who writes, and the first isn't disturbed.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_dump_at_the_same_time_is_told_of_the_first() {
    let (source, holder) = require!(held_source());
    let folder = tempfile::tempdir().unwrap();
    let sound = repository_through(folder.path(), StoreOptions::default()).await;
    let dump = begin_dump(&sound, &source, &dump_options(&source));
    let id = wait_until_held(&source, folder.path());
    let error = common::dump(&sound, &source, &beside(&source)).await.unwrap_err();
    assert!(
        error.to_string().contains(&std::process::id().to_string()),
        "{error}"
    );
    assert!(error.hint().is_some());
    drop(holder);
    let report = dump.await.unwrap().unwrap();
    assert_eq!(report.id, id);
    assert_eq!(whole_dumps(&sound).await, [id]);
    assert_eq!(sound.backups(BackupKind::Dump).await.unwrap().len(), 1);
}

/// A prune on such a host takes the running dump for an orphan. What was whole before stays so.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_is_swept_by_a_prune_with_a_wrong_clock_fails_and_leaves_nothing() {
    let (source, holder) = require!(held_source());
    let folder = tempfile::tempdir().unwrap();
    let sound = repository_through(folder.path(), StoreOptions::default()).await;
    let whole = common::dump(&sound, &source, &beside(&source)).await.unwrap().id;
    let dump = begin_dump(&sound, &source, &dump_options(&source));
    let id = wait_until_held(&source, folder.path());
    let policy = Policy {
        daily: 1,
        ..Policy::default()
    };
    let never = std::future::pending();
    let (input, minute) = (PruneInput::default(), Duration::from_secs(60));
    let held = prune::execute(
        &sound,
        &policy,
        async { Ok::<_, PruneError>(input.clone()) },
        minute,
        |_| {},
        never,
    )
    .await;
    assert!(
        matches!(
            held,
            Err(PruneError::Repository(RepositoryError::LeaseHeld { .. }))
        ),
        "{held:?}"
    );
    let clock = ManualClock::new(Timestamp::now() + SignedDuration::from_hours(1));
    let fast = sound.clone().with_clock(Arc::new(clock));
    let never = std::future::pending();
    let report = prune::execute(
        &fast,
        &policy,
        async { Ok::<_, PruneError>(input.clone()) },
        minute,
        |_| {},
        never,
    )
    .await
    .unwrap();
    assert_eq!(report.swept.backups, [id]);
    drop(holder);
    let error = dump.await.unwrap().unwrap_err();
    assert!(
        matches!(
            error,
            DumpError::Repository(RepositoryError::Fenced { .. } | RepositoryError::LeaseLost { .. })
        ),
        "{error}"
    );
    assert_no_orphans(folder.path());
    assert_eq!(whole_dumps(&sound).await, [whole]);
}

/// They see what is whole, and nothing of what is being written.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_is_read_while_the_next_one_is_written() {
    let (source, holder) = require!(held_source());
    let destination = require!(Cluster::start(ClusterOptions::default()));
    let folder = tempfile::tempdir().unwrap();
    let sound = repository_through(folder.path(), StoreOptions::default()).await;
    let first = common::dump(&sound, &source, &beside(&source)).await.unwrap().id;
    let dump = begin_dump(&sound, &source, &dump_options(&source));
    let second = wait_until_held(&source, folder.path());
    let entries = sound.backups(BackupKind::Dump).await.unwrap();
    let states: Vec<_> = entries.iter().map(|entry| (&entry.id, entry.state)).collect();
    assert!(states.contains(&(&first, BackupState::Complete)), "{states:?}");
    assert!(states.contains(&(&second, BackupState::Incomplete)), "{states:?}");
    assert_eq!(sound.find(BackupKind::Dump, "latest").await.unwrap(), first);
    assert_eq!(whole_dumps(&sound).await, std::slice::from_ref(&first));
    common::restore(
        &sound,
        &first,
        &destination,
        &common::restore_options(&destination),
    )
    .await
    .unwrap();
    compare(&source, &destination);
    assert!(!dump.is_finished());
    drop(holder);
    assert_eq!(dump.await.unwrap().unwrap().id, second);
    assert_eq!(whole_dumps(&sound).await.len(), 2);
}

/// Nothing holds a prune back from what is being verified: the verification says that it is gone, and not that it is
/// damaged, and leaves no evidence of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_is_removed_while_it_is_verified_is_gone_and_not_damaged() {
    let source = require!(source());
    let folder = tempfile::tempdir().unwrap();
    let sound = repository_through(folder.path(), StoreOptions::default()).await;
    for depth in [VerifyDepth::Stored, VerifyDepth::Contents] {
        let id = common::dump(&sound, &source, &dump_options(&source))
            .await
            .unwrap()
            .id;
        let (slow, progress) = (slow(folder.path()).await, Progress::default());
        let options = VerifyOptions {
            depth,
            sample: None,
            jobs: 1,
        };
        let begun = async {
            while progress.bytes_done.load(Ordering::Relaxed) == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            sound.remove(&id, &mut References::default()).await.unwrap();
        };
        let (verified, ()) = tokio::join!(verify::verify(&slow, &id, &options, &progress), begun);
        let error = verified.expect_err("there is nothing left to verify");
        assert!(error.is_removed(), "{error}");
        assert!(error.hint().is_some());
        assert!(!folder.path().join("test/verify").exists(), "evidence of nothing");
    }
}

/// Nothing holds a prune back from what is being restored, either: the restore fails, says why, and what is there is
/// marked. Another dump can be restored over it.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_whose_dump_is_removed_says_so_and_another_one_replaces_it() {
    let (source, destination) = require!(servers());
    let folder = tempfile::tempdir().unwrap();
    let sound = repository_through(folder.path(), StoreOptions::default()).await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let report = common::dump(&sound, &source, &dump_options(&source)).await;
        ids.push(report.unwrap().id);
    }
    let options = common::restore_options(&destination);
    let restoring = begin_restore(&slow(folder.path()).await, &ids[0], &destination, &options);
    wait_for_tables(&destination);
    sound.remove(&ids[0], &mut References::default()).await.unwrap();
    let error = restoring.await.unwrap().unwrap_err();
    let DumpError::Unfinished { source: cause, .. } = &error else {
        panic!("{error}")
    };
    assert!(cause.is_removed(), "{error}");
    let hint = error.hint().unwrap();
    assert!(
        hint.as_str().contains("--overwrite") && !hint.as_str().contains("--resume"),
        "{hint}"
    );
    let refused = common::restore(&sound, &ids[1], &destination, &options)
        .await
        .unwrap_err();
    assert_eq!(refused.retry_class(), RetryClass::Refused, "{refused}");
    common::restore(&sound, &ids[1], &destination, &overwriting(&destination))
        .await
        .unwrap();
    compare(&source, &destination);
}
