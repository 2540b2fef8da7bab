//! What goes wrong while a backup is taken: then there is none, and the next one succeeds.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pgkeep_base::{BackupKind, Progress};
use pgkeep_physical::{BackupOptions, PhysicalError, ReaderChoice};
use pgkeep_repository::{Repository, layout};
use pgkeep_store::fault::FaultPlan;
use pgkeep_testkit::{Cluster, StopMode, require, requirements};
use tokio::time::timeout;

use super::support::{
    LIMIT, READERS, backup, backup_options, backup_with, manifest, repository, server, session, target,
};

const ROWS: &str =
    "CREATE TABLE a AS SELECT i, md5(i::text) || md5((-i)::text) t FROM generate_series(1, 100000) i";

/// Slow enough to be caught in the middle.
fn slow() -> BackupOptions {
    BackupOptions {
        rate_kib_max: Some(4096),
        ..backup_options()
    }
}

/// Nothing of a backup is there, and another one can be taken.
async fn assert_none_and_another(repository: &Repository, cluster: &Cluster) {
    let entries = repository.backups(BackupKind::Base).await.unwrap();
    assert!(entries.iter().all(|entry| !entry.state.is_there()), "{entries:?}");
    let prefix = layout::kind_prefix(repository.cluster(), BackupKind::Base);
    let left = repository.store().list(&prefix).await.unwrap();
    assert!(
        left.iter().all(|object| object.key.ends_with("/manifest")),
        "only tombstones: {left:?}"
    );
    let report = backup(repository, cluster).await.unwrap();
    assert_eq!(
        repository.find(BackupKind::Base, "latest").await.unwrap(),
        report.id
    );
}

/// Waits until the server sends a backup, and ends that session.
async fn cut(cluster: &Cluster) {
    let mut session = session(cluster, "postgres").await;
    let sending = "SELECT pg_terminate_backend(pid) FROM pg_stat_progress_basebackup
        WHERE phase = 'streaming database files' AND backup_streamed > 1000000";
    let cutting = async {
        while session.query(sending).await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, cutting).await.expect("the server sends a backup");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_cut_leaves_no_backup() {
    for major in requirements::MAJORS {
        let cluster = require!(Cluster::start(server(major)));
        cluster.psql("postgres", ROWS);
        let folder = tempfile::tempdir().unwrap();
        let repository = repository(folder.path(), true, None).await;
        let options = slow();
        let (made, ()) = tokio::join!(backup_with(&repository, &cluster, &options), cut(&cluster));
        let error = made.unwrap_err();
        assert!(matches!(error, PhysicalError::Pg { .. }), "{error}");
        assert_none_and_another(&repository, &cluster).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_backup_leaves_nothing() {
    let cluster = require!(Cluster::start(server(17)));
    cluster.psql("postgres", ROWS);
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path(), false, None).await;
    let progress = Arc::new(Progress::default());
    let (target, options) = (target(&cluster, "postgres"), slow());
    let interrupted = async {
        while progress.bytes_done.load(std::sync::atomic::Ordering::Relaxed) < 1_000_000 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let backing_up = pgkeep_physical::backup(&repository, &target, &options, &progress, interrupted);
    let error = timeout(LIMIT, backing_up).await.unwrap().unwrap_err();
    assert!(matches!(error, PhysicalError::Interrupted), "{error}");
    assert_none_and_another(&repository, &cluster).await;
    // Its slot went with it.
    assert_eq!(
        cluster.psql("postgres", "SELECT count(*) FROM pg_replication_slots"),
        "0"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_is_asked_again() {
    let cluster = require!(Cluster::start(server(16)));
    cluster.psql("postgres", ROWS);
    let folder = tempfile::tempdir().unwrap();
    let seed = pgkeep_testkit::seed();
    let faults: FaultPlan = format!("seed={seed},fail=5,lose_ack=5").parse().unwrap();
    let faulty = repository(folder.path(), true, Some(faults)).await;
    let report = backup(&faulty, &cluster).await.unwrap();
    assert_eq!(manifest(&faulty, &report.id).await, report.manifest);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_that_are_damaged_at_the_server_are_stored_and_told() {
    for major in requirements::MAJORS {
        let mut cluster = require!(Cluster::start(server(major)));
        let path = cluster.psql("postgres", &format!("{ROWS}; SELECT pg_relation_filepath('a')"));
        cluster.stop(StopMode::Fast);
        let file = cluster.data_dir().join(path);
        let mut data = fs::OpenOptions::new().write(true).open(&file).unwrap();
        data.seek(SeekFrom::Start(3 * 8192 + 5000)).unwrap();
        data.write_all(&[0xA5; 3]).unwrap();
        drop(data);
        let damaged = fs::read(&file).unwrap();
        cluster.start_again();
        for reader in READERS {
            damage_is_told(&cluster, &file, &damaged, reader).await;
        }
    }
}

async fn damage_is_told(cluster: &Cluster, file: &Path, damaged: &[u8], reader: ReaderChoice) {
    let major = cluster.major();
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path(), false, None).await;
    let mut options = backup_options();
    options.reader = reader;
    let report = backup_with(&repository, cluster, &options).await.unwrap();
    let pages = &report.manifest.damaged_pages;
    assert!(
        pages.reports_total > 0 && pages.reports[0].contains("block 3"),
        "{major}: {pages:?}"
    );
    assert!(report.attention[0].contains("block 3"), "{:?}", report.attention);
    assert!(
        report.manifest.omissions.is_empty(),
        "{:?}",
        report.manifest.omissions
    );
    // As it is: what can be saved of it is more than nothing.
    let into = Cluster::unmade(cluster.pg_bin(), major);
    let target = pgkeep_physical::restore::RecoveryTarget::BackupEnd;
    let restored = super::support::restore(&repository, "latest", &into, target, Default::default())
        .await
        .unwrap();
    assert!(
        restored.attention[0].contains("damaged at the server"),
        "{:?}",
        restored.attention
    );
    let same = fs::read(
        into.data_dir()
            .join(file.strip_prefix(cluster.data_dir()).unwrap()),
    )
    .unwrap();
    assert!(same == damaged);
    options.strict = true;
    let error = backup_with(&repository, cluster, &options).await.unwrap_err();
    assert!(error.to_string().contains("block 3"), "{error}");
    assert_eq!(
        repository.find(BackupKind::Base, "latest").await.unwrap(),
        report.id
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_in_the_data_directory_and_cannot_be_sent_is_named() {
    let cluster = require!(Cluster::start(server(18)));
    let elsewhere = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), cluster.data_dir().join("pg_elsewhere")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path(), false, None).await;
    for reader in READERS {
        let mut options = backup_options();
        options.reader = reader;
        let report = backup_with(&repository, &cluster, &options).await.unwrap();
        let [omission] = report.manifest.omissions.as_slice() else {
            panic!("{:?}", report.manifest.omissions);
        };
        assert!(omission.contains("pg_elsewhere"), "{omission}");
        assert!(
            report.attention[0].contains("pg_elsewhere"),
            "{:?}",
            report.attention
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_backup_or_dump_keeps_it_out() {
    let cluster = require!(Cluster::start(server(15)));
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path(), false, None).await;
    let held = pgkeep_repository::lease::Lease::acquire(&repository, "pgkeep dump", Duration::from_secs(60))
        .await
        .unwrap();
    let error = backup(&repository, &cluster).await.unwrap_err();
    assert!(error.to_string().contains("pgkeep dump"), "{error}");
    held.release().await.unwrap();
    assert_none_and_another(&repository, &cluster).await;
}

/// A standby's backup ends in another way, which isn't built yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_refused() {
    let mut cluster = require!(Cluster::start(server(17)));
    cluster.stop(StopMode::Fast);
    cluster.write_file("standby.signal", "");
    cluster.start_again();
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path(), false, None).await;
    let error = backup(&repository, &cluster).await.unwrap_err();
    assert!(error.to_string().contains("is a standby"), "{error}");
    cluster.psql("postgres", "SELECT pg_promote()");
    assert_none_and_another(&repository, &cluster).await;
}

/// Whoever may replicate, and nothing else, can take a backup.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_only_replicate_is_enough() {
    let cluster = require!(Cluster::start(server(16)));
    cluster.psql(
        "postgres",
        "CREATE ROLE keeper LOGIN REPLICATION; REVOKE ALL ON DATABASE postgres FROM public",
    );
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path(), false, None).await;
    let conninfo = cluster
        .conninfo("postgres")
        .replace("user=postgres", "user=keeper");
    let target = pgkeep_pg::Conninfo::parse(&conninfo)
        .unwrap()
        .resolve(&pgkeep_pg::Environment::empty())
        .unwrap();
    let progress = Arc::new(Progress::default());
    let (options, never) = (backup_options(), std::future::pending());
    let report = pgkeep_physical::backup(&repository, &target, &options, &progress, never)
        .await
        .unwrap();
    assert!(report.attention.is_empty(), "{:?}", report.attention);
}

/// One that says it is another database cluster under this name is refused before anything is stored.
#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_under_the_name_is_refused() {
    let (first, second) = (
        require!(Cluster::start(server(15))),
        require!(Cluster::start(server(15))),
    );
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path(), false, None).await;
    let id = backup(&repository, &first).await.unwrap().id;
    let error = backup(&repository, &second).await.unwrap_err();
    assert!(
        error.to_string().contains("belongs to another database cluster"),
        "{error}"
    );
    assert_eq!(repository.find(BackupKind::Base, "latest").await.unwrap(), id);
    let options = BackupOptions {
        accept_new_identity: true,
        ..backup_options()
    };
    let report = backup_with(&repository, &second, &options).await.unwrap();
    assert_ne!(
        report.manifest.system_identifier,
        manifest(&repository, &id).await.system_identifier
    );
}
