//! Faults of the store, of the server, of the disk and of other processes: a dump is whole, or it doesn't exist and the
//! error says why; the next one succeeds.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests are tests"
)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use common::{PATIENCE, begin_dump, dump_options, repository_through, repository_with_faults, whole_dumps};
use jiff::{SignedDuration, Timestamp};
use pgkeep_base::{BackupId, BackupKind, Classified, ManualClock, RetryClass};
use pgkeep_dump::DumpError;
use pgkeep_dump::restore::RestoreOptions;
use pgkeep_repository::lease::Lease;
use pgkeep_repository::{Repository, RepositoryError};
use pgkeep_store::fault::FaultPlan;
use pgkeep_store::{RetryOptions, StoreErrorKind, StoreOptions};
use pgkeep_testkit::compare::{Inventory, InventoryOptions, assert_same};
use pgkeep_testkit::requirements::{self, Missing};
use pgkeep_testkit::{Cluster, ClusterOptions, StopMode, poll_until, require};
use rand::Rng;

const DATABASE: &str = "app";

fn plan(text: &str) -> FaultPlan {
    text.parse().unwrap()
}

/// Seeds tried by the tests whose faults are random.
fn rounds() -> u32 {
    if requirements::long().is_ok() { 10 } else { 1 }
}

/// A server with a database of several objects, and an empty one.
fn servers() -> Result<(Cluster, Cluster), Missing> {
    let source = Cluster::start(ClusterOptions::default())?;
    let destination = Cluster::start(ClusterOptions::default())?;
    source.create_database(DATABASE);
    source.psql(
        DATABASE,
        "CREATE TABLE large AS SELECT i, md5(i::text) || md5((-i)::text) AS t FROM generate_series(1, 120000) i;
         ALTER TABLE large ADD PRIMARY KEY (i);
         CREATE TABLE small (id serial PRIMARY KEY, i int REFERENCES large, note text);
         INSERT INTO small (i, note) SELECT i, E'tab\\t, line\\n, \\\\' FROM generate_series(1, 2000) i;
         SELECT lo_from_bytea(7, decode(repeat('00ff', 5000), 'hex')) \\g /dev/null",
    );
    Ok((source, destination))
}

fn compare(source: &Cluster, destination: &Cluster) {
    let inventory =
        |cluster: &Cluster| Inventory::of_database(cluster, DATABASE, &InventoryOptions::default());
    assert_same(&inventory(source), &inventory(destination));
}

fn overwriting(destination: &Cluster) -> RestoreOptions {
    RestoreOptions {
        overwrite: true,
        ..common::restore_options(destination)
    }
}

async fn dumps_and_restores_with(source: &Cluster, destination: &Cluster, writing: &str, reading: &str) {
    eprintln!("writing with {writing}, reading with {reading}");
    let folder = tempfile::tempdir().unwrap();
    let faulty = repository_with_faults(folder.path(), plan(writing)).await;
    let report = common::dump(&faulty, source, &dump_options(source))
        .await
        .unwrap();
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
    for _ in 0..rounds() {
        let seed: u64 = rand::rng().random();
        let faults = format!("seed={seed},fail=5,lose_ack=5,stall=10:300ms,cut=4,truncate=4");
        dumps_and_restores_with(&source, &destination, &faults, &faults).await;
    }
}

/// Half of all answers are lost, that to the manifest's too: it must not be taken for somebody else's.
#[tokio::test(flavor = "multi_thread")]
async fn lost_acknowledgements_are_not_taken_for_other_writers() {
    let (source, destination) = require!(servers());
    for _ in 0..rounds() {
        let seed: u64 = rand::rng().random();
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

fn impatient(faults: FaultPlan) -> StoreOptions {
    StoreOptions {
        retry: RetryOptions {
            attempts_max: 4,
            elapsed_max: Duration::from_secs(2),
            backoff_max: Duration::from_millis(300),
            ..RetryOptions::default()
        },
        faults: Some(faults),
        ..StoreOptions::default()
    }
}

/// The store goes away at every possible request and doesn't come back in time: the dump fails, nothing is there, and
/// the next dump succeeds.
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
        after += 4;
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

/// A folder without its manifest holds nothing; one with a tombstone holds nothing else.
fn assert_no_orphans(folder: &Path) {
    for entry in std::fs::read_dir(folder.join("test/dump")).unwrap() {
        let path = entry.unwrap().path();
        let manifest = std::fs::read(path.join("manifest")).unwrap();
        if manifest.first() == Some(&b'{') {
            let found = files(&path);
            assert_eq!(found, [path.join("manifest")], "an orphan's objects stay");
        }
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

/// Waits until the running dump has stored rows, and returns its id.
fn wait_for_rows(folder: &Path) -> BackupId {
    let mut id = None;
    poll_until("an object with rows", PATIENCE, || {
        let objects = files(&folder.join("test/dump"));
        let data = objects
            .iter()
            .find(|path| path.to_string_lossy().contains("/d2/0"));
        id = data.and_then(|path| path.parent()?.parent()?.file_name()?.to_str()?.parse().ok());
        id.is_some()
    });
    id.unwrap()
}

/// Slow enough that something can be done to it in the middle.
async fn slow(folder: &Path) -> Repository {
    repository_with_faults(folder, plan("stall=1:250ms")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_crashes_in_the_middle_leaves_no_dump() {
    let (mut source, destination) = require!(servers());
    let folder = tempfile::tempdir().unwrap();
    let dump = begin_dump(&slow(folder.path()).await, &source, &dump_options(&source));
    wait_for_rows(folder.path());
    source.restart(StopMode::Immediate);
    let error = dump.await.unwrap().unwrap_err();
    assert!(matches!(error, DumpError::Pg { .. }), "{error}");
    let sound = repository_through(folder.path(), StoreOptions::default()).await;
    assert!(whole_dumps(&sound).await.is_empty());
    let report = common::dump(&sound, &source, &dump_options(&source))
        .await
        .unwrap();
    assert_no_orphans(folder.path());
    assert_eq!(whole_dumps(&sound).await, std::slice::from_ref(&report.id));
    common::restore(&sound, &report.id, &destination, &overwriting(&destination))
        .await
        .unwrap();
    compare(&source, &destination);
}

/// Any one of the dump's sessions may be ended by an administrator.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_terminated_fails_the_dump() {
    let (source, _destination) = require!(servers());
    for which in [
        "query LIKE 'COPY%'",
        "query LIKE '%pg_table_size%' OR query LIKE 'SELECT%'",
    ] {
        let folder = tempfile::tempdir().unwrap();
        source.psql(DATABASE, "DROP TABLE IF EXISTS wide; CREATE TABLE wide AS SELECT repeat(md5(i::text), 60) AS t FROM generate_series(1, 30000) i");
        let dump = begin_dump(&slow(folder.path()).await, &source, &dump_options(&source));
        wait_for_rows(folder.path());
        let terminate = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
             WHERE datname = '{DATABASE}' AND application_name = 'pgkeep' AND pid <> pg_backend_pid() AND ({which})"
        );
        poll_until("a session to terminate", PATIENCE, || {
            source.psql(DATABASE, &terminate) != "0" || dump.is_finished()
        });
        let error = dump.await.unwrap().expect_err("the dump of a terminated session");
        assert!(matches!(error, DumpError::Pg { .. }), "{error}");
        assert!(error.to_string().contains("terminating connection"), "{error}");
        let sound = repository_through(folder.path(), StoreOptions::default()).await;
        assert!(whole_dumps(&sound).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_into_a_server_that_crashes_goes_on_afterwards() {
    let (source, mut destination) = require!(servers());
    let folder = tempfile::tempdir().unwrap();
    let sound = repository_through(folder.path(), StoreOptions::default()).await;
    let report = common::dump(&sound, &source, &dump_options(&source))
        .await
        .unwrap();
    let options = common::restore_options(&destination);
    let restoring = {
        let (slow, target) = (
            slow(folder.path()).await,
            common::target(&destination, "postgres"),
        );
        let (options, id, runtime) = (
            options.clone(),
            report.id.clone(),
            tokio::runtime::Handle::current(),
        );
        tokio::task::spawn_blocking(move || {
            runtime.block_on(async {
                let manifest = pgkeep_dump::read_manifest(&slow, &id).await?;
                let progress = Arc::default();
                let never = std::future::pending();
                pgkeep_dump::restore::restore(&slow, &id, &manifest, &target, &options, &progress, never)
                    .await
            })
        })
    };
    let tables = "SELECT count(*) FROM pg_class WHERE relname = 'large'";
    poll_until("restored tables", PATIENCE, || {
        destination
            .try_psql(DATABASE, tables)
            .is_ok_and(|count| count != "0")
    });
    destination.restart(StopMode::Immediate);
    let error = restoring.await.unwrap().unwrap_err();
    assert!(matches!(error, DumpError::Unfinished { .. }), "{error}");
    assert!(error.hint().unwrap().as_str().contains("--resume"));
    let again = common::restore(&sound, &report.id, &destination, &options).await;
    let refused = again.unwrap_err();
    assert_eq!(refused.retry_class(), RetryClass::Refused, "{refused}");
    let resuming = RestoreOptions {
        resume: true,
        ..options
    };
    common::restore(&sound, &report.id, &destination, &resuming)
        .await
        .unwrap();
    compare(&source, &destination);
}

/// A file system of its own, unmounted at the end.
struct SmallDisk(
    PathBuf,
    #[allow(dead_code, reason = "removed at the end")] tempfile::TempDir,
);

impl SmallDisk {
    fn mount(bytes: u64) -> Result<Self, Missing> {
        requirements::root()?;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_path_buf();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(&path)
            .output();
        match mounted {
            Ok(output) if output.status.success() => Ok(Self(path, folder)),
            _ => Err(Missing("the right to mount a file system".to_owned())),
        }
    }

    fn resize(&self, bytes: u64) {
        let remounted = Command::new("mount")
            .args(["-o", &format!("remount,size={bytes}")])
            .arg(&self.0)
            .status();
        assert!(remounted.unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_with_the_mend_and_leaves_no_dump() {
    let disk = require!(SmallDisk::mount(1 << 20));
    let (source, destination) = require!(servers());
    let repository = repository_through(&disk.0, StoreOptions::default()).await;
    let error = common::dump(&repository, &source, &dump_options(&source))
        .await
        .unwrap_err();
    let DumpError::Repository(RepositoryError::Store(store)) = &error else {
        panic!("{error}")
    };
    assert_eq!(store.kind(), StoreErrorKind::NoSpace, "{error}");
    assert!(
        error.hint().unwrap().as_str().contains("free space"),
        "{:?}",
        error.hint()
    );
    assert!(whole_dumps(&repository).await.is_empty());
    // What was written is cleared away at once, or nobody could write even a tombstone.
    let left: u64 = files(&disk.0.join("test/dump"))
        .iter()
        .map(|path| path.metadata().unwrap().len())
        .sum();
    assert!(left < 4096, "{left} bytes of the dump stay on the full disk");
    disk.resize(256 << 20);
    let report = common::dump(&repository, &source, &dump_options(&source))
        .await
        .unwrap();
    assert_no_orphans(&disk.0);
    assert_eq!(whole_dumps(&repository).await, std::slice::from_ref(&report.id));
    common::restore(&repository, &report.id, &destination, &overwriting(&destination))
        .await
        .unwrap();
    compare(&source, &destination);
}

/// Another process took the slow dump for an orphan: its tombstone stands where the manifest would go.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_was_swept_while_it_ran_is_refused() {
    let (source, _destination) = require!(servers());
    let folder = tempfile::tempdir().unwrap();
    let sound = repository_through(folder.path(), StoreOptions::default()).await;
    let dump = begin_dump(&slow(folder.path()).await, &source, &dump_options(&source));
    let id = wait_for_rows(folder.path());
    assert!(sound.sweep_one(&id, "orphan").await.unwrap() > 0);
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
    let (source, _destination) = require!(servers());
    let folder = tempfile::tempdir().unwrap();
    let sound = repository_through(folder.path(), StoreOptions::default()).await;
    let dump = begin_dump(&slow(folder.path()).await, &source, &dump_options(&source));
    let id = wait_for_rows(folder.path());
    let held = Lease::acquire(&sound, "test", Duration::from_secs(60)).await;
    assert!(
        matches!(held, Err(RepositoryError::LeaseHeld { .. })),
        "the running dump has the lease"
    );
    let clock = ManualClock::new(Timestamp::now() + SignedDuration::from_hours(1));
    let fast = sound.clone().with_clock(Arc::new(clock));
    let report = common::dump(&fast, &source, &dump_options(&source))
        .await
        .unwrap();
    assert_eq!(report.swept.backups, [id]);
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
    let (source, _destination) = require!(servers());
    let folder = tempfile::tempdir().unwrap();
    let sound = repository_through(folder.path(), StoreOptions::default()).await;
    let dump = begin_dump(&slow(folder.path()).await, &source, &dump_options(&source));
    let id = wait_for_rows(folder.path());
    let error = common::dump(&sound, &source, &dump_options(&source))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains(&std::process::id().to_string()),
        "{error}"
    );
    assert!(error.hint().is_some());
    let report = dump.await.unwrap().unwrap();
    assert_eq!(report.id, id);
    assert_eq!(whole_dumps(&sound).await, [id]);
    assert_eq!(sound.backups(BackupKind::Dump).await.unwrap().len(), 1);
}
