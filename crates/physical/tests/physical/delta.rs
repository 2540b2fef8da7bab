//! Restores over what is there: only what differs is fetched, and what comes out is the backup, whatever lay there before.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pgkeep_base::{Classified, Progress};
use pgkeep_physical::PhysicalError;
use pgkeep_physical::restore::{
    self as restoring, Existing, RecoveryTarget, RestoreOptions, RestoreReport, TablespaceName,
    TimelineChoice,
};
use pgkeep_repository::Repository;
use pgkeep_testkit::{Cluster, StopMode, require, server_user};

use super::support::{
    LIMIT, Streaming, backup, check_pages, contents, lsn, repository, restore, server, session,
};

/// Where a data directory's links lead, told as a user does who knows that those are its own files.
fn own_spaces(directory: &Path) -> BTreeMap<TablespaceName, PathBuf> {
    let entries = fs::read_dir(directory.join("pg_tblspc")).into_iter().flatten();
    let links = entries.map(|entry| {
        let entry = entry.unwrap();
        let oid = entry.file_name().to_str().unwrap().parse().unwrap();
        (TablespaceName::Oid(oid), fs::read_link(entry.path()).unwrap())
    });
    links.collect()
}

/// Restores over what is there, as far as the backup's end. Gives back how many bytes of packs were fetched, too.
async fn over(
    repository: &Repository,
    text: &str,
    directory: &Path,
    existing: Existing,
    cancelled: impl Future<Output = ()>,
) -> Result<(RestoreReport, u64), PhysicalError> {
    let spaces = own_spaces(directory);
    over_with(repository, text, directory, (existing, spaces), cancelled).await
}

async fn over_with(
    repository: &Repository,
    text: &str,
    directory: &Path,
    (existing, tablespaces): (Existing, BTreeMap<TablespaceName, PathBuf>),
    cancelled: impl Future<Output = ()>,
) -> Result<(RestoreReport, u64), PhysicalError> {
    let options = RestoreOptions {
        directory: directory.to_owned(),
        tablespaces,
        target: RecoveryTarget::BackupEnd,
        jobs: 2,
        existing,
        timeline: TimelineChoice::Latest,
    };
    let plan = restoring::plan(repository, text, &options).await?;
    let progress = Arc::new(Progress::default());
    wait_for_the_one_before(directory).await;
    let restoring = restoring::restore(repository, &plan, &progress, cancelled);
    let restored = tokio::time::timeout(LIMIT, restoring)
        .await
        .expect("the restore comes to an end");
    Ok((restored?, progress.bytes_stored.load(Ordering::Relaxed)))
}

/// What was interrupted in this process may still be writing a file; a process of its own would have ended.
async fn wait_for_the_one_before(directory: &Path) {
    let Ok(mark) = fs::File::open(directory.join("pgkeep.restore")) else {
        return;
    };
    let free = async {
        while mark.try_lock().is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        mark.unlock().unwrap();
    };
    let _ = tokio::time::timeout(Duration::from_secs(5), free).await;
}

async fn replaced(repository: &Repository, text: &str, cluster: &Cluster) -> (RestoreReport, u64) {
    let never = std::future::pending();
    let done = over(repository, text, &cluster.data_dir(), Existing::Replace, never).await;
    done.unwrap()
}

fn give(path: &Path) {
    if let Some((user, group)) = server_user() {
        std::os::unix::fs::chown(path, Some(user.as_raw()), Some(group.as_raw())).unwrap();
    }
}

/// A server with enough in it for more than one frame, and a tablespace.
fn origin(major: u32) -> Result<Cluster, pgkeep_testkit::requirements::Missing> {
    let origin = Cluster::start(server(major))?;
    let place = origin.socket_dir().join("space");
    fs::create_dir(&place).unwrap();
    give(&place);
    origin.psql(
        "postgres",
        &format!("CREATE TABLESPACE t LOCATION '{}'", place.display()),
    );
    origin.psql(
        "postgres",
        "CREATE TABLE a (i int PRIMARY KEY, t text); CREATE TABLE gone AS SELECT 1 i;
         CREATE TABLE b (i int, t text) TABLESPACE t;
         INSERT INTO a SELECT i, md5(i::text) FROM generate_series(1, 60000) i;
         INSERT INTO b SELECT i, md5(i::text) FROM generate_series(1, 20000) i",
    );
    Ok(origin)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_out_is_the_backup_and_only_what_differs_is_fetched() {
    for (major, encrypted) in [(15, true), (18, false)] {
        let mut origin = require!(origin(major));
        let folder = tempfile::tempdir().unwrap();
        let repository = repository(folder.path(), encrypted, None).await;
        let first = backup(&repository, &origin).await.unwrap().id.to_string();
        let held = contents(&origin).await;
        origin.psql(
            "postgres",
            "DROP TABLE gone; UPDATE a SET t = t || 'x' WHERE i % 100 = 0; TRUNCATE b; CREATE TABLE new AS TABLE a; CHECKPOINT",
        );
        let second = backup(&repository, &origin).await.unwrap().id.to_string();
        let held_later = contents(&origin).await;
        // Things that no backup has: files, a directory, a link whose end must stay.
        origin.psql(
            "postgres",
            "INSERT INTO b SELECT i, 'later' FROM generate_series(1, 30000) i",
        );
        origin.stop(StopMode::Fast);
        let (data, outside) = (origin.data_dir(), tempfile::tempdir().unwrap());
        let kept = outside.path().join("kept");
        fs::write(&kept, "kept").unwrap();
        fs::write(data.join("a file"), "x").unwrap();
        fs::create_dir_all(data.join("base/a directory/below")).unwrap();
        std::os::unix::fs::symlink(outside.path(), data.join("base/link")).unwrap();

        let (report, fetched) = replaced(&repository, &first, &origin).await;
        assert!(report.removed >= 3 && fetched > 0, "{report:?}");
        assert!(kept.exists() && !data.join("a file").exists() && !data.join("base/link").exists());
        // It is the backup; nothing is left to do.
        let (report, fetched) = replaced(&repository, &first, &origin).await;
        assert_eq!(fetched, 0, "{report:?}");
        origin.start_restored();
        assert_eq!(contents(&origin).await, held, "{major}");
        check_pages(&mut origin);
        origin.psql(
            "postgres",
            "DROP TABLE a; INSERT INTO gone SELECT generate_series(1, 50000)",
        );
        origin.stop(StopMode::Immediate);

        let (_, fetched) = replaced(&repository, &second, &origin).await;
        assert!(fetched > 0);
        origin.start_restored();
        assert_eq!(contents(&origin).await, held_later, "{major}");
        check_pages(&mut origin);
    }
}

/// A single byte anywhere is found, and mended.
#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_mended() {
    let mut origin = require!(origin(17));
    let file = origin.psql("postgres", "SELECT pg_relation_filepath('a')");
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path(), true, None).await;
    backup(&repository, &origin).await.unwrap();
    let held = contents(&origin).await;
    origin.stop(StopMode::Fast);
    replaced(&repository, "latest", &origin).await;
    let path = origin.data_dir().join(file);
    let sound = fs::read(&path).unwrap();
    let handle = OpenOptions::new().write(true).open(&path).unwrap();
    for at in [0, 8191, 8192, 300_000, sound.len() as u64 - 1] {
        handle
            .write_all_at(&[sound[usize::try_from(at).unwrap()] ^ 0x10], at)
            .unwrap();
    }
    drop(handle);
    let (_, fetched) = replaced(&repository, "latest", &origin).await;
    assert!(fetched > 0 && fs::read(&path).unwrap() == sound);
    // What is cut off and what is too long, too.
    OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(sound.len() as u64 / 2)
        .unwrap();
    replaced(&repository, "latest", &origin).await;
    assert!(fs::read(&path).unwrap() == sound);
    OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(sound.len() as u64 * 2)
        .unwrap();
    replaced(&repository, "latest", &origin).await;
    assert!(fs::read(&path).unwrap() == sound);
    origin.start_restored();
    assert_eq!(contents(&origin).await, held);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_stopped_half_way_is_gone_on_with() {
    let origin = require!(origin(16));
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path(), true, None).await;
    backup(&repository, &origin).await.unwrap();
    let held = contents(&origin).await;
    drop(origin.psql("postgres", "DROP TABLE b; DROP TABLESPACE t"));
    let second = backup(&repository, &origin).await.unwrap().id.to_string();
    let held_later = contents(&origin).await;
    assert_ne!(held, held_later);
    let mut restored = Cluster::unmade(origin.pg_bin(), origin.major());
    let data = restored.data_dir();

    // Nothing there yet: there is nothing to go on with, and no reason to refuse.
    let stop = async {
        while !data.join("pgkeep.restore").exists() {
            tokio::task::yield_now().await;
        }
    };
    let error = over(&repository, &second, &data, Existing::Refuse, stop)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("interrupted"), "{error}");
    assert!(error.hint().unwrap().to_string().contains("--resume"), "{error}");
    assert!(!data.join("global/pg_control").exists());
    let never = std::future::pending;
    let error = over(&repository, &second, &data, Existing::Refuse, never())
        .await
        .unwrap_err();
    assert!(error.hint().unwrap().to_string().contains("--resume"), "{error}");
    over(&repository, &second, &data, Existing::Resume, never())
        .await
        .unwrap();
    restored.start_restored();
    assert_eq!(contents(&restored).await, held_later);
    check_pages(&mut restored);
}

/// In a copy of a data directory, links lead to the original's files.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_s_links_don_t_lead_a_restore_to_the_original() {
    let mut origin = require!(origin(17));
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path(), false, None).await;
    backup(&repository, &origin).await.unwrap();
    origin.psql(
        "postgres",
        "INSERT INTO b SELECT i, 'later' FROM generate_series(1, 30000) i",
    );
    let held = contents(&origin).await;
    origin.stop(StopMode::Fast);
    let (data, copy) = (origin.data_dir(), origin.socket_dir().join("copy"));
    pgkeep_testkit::run(std::process::Command::new("cp").arg("-a").args([&data, &copy]));
    let (wal, space) = (origin.socket_dir().join("wal"), origin.socket_dir().join("space"));
    let before = everything(&space);
    let never = std::future::pending;
    let told = async |spaces, existing| {
        let place = (existing, spaces);
        over_with(&repository, "latest", &copy, place, never()).await
    };

    let error = told(BTreeMap::new(), Existing::Replace).await.unwrap_err();
    let hint = error.hint().unwrap().to_string();
    assert!(
        matches!(error, PhysicalError::Usage { .. }) && hint.contains("is a copy"),
        "{error} {hint}"
    );
    // Somewhere else, where somebody's files lie.
    let oid: TablespaceName = own_spaces(&copy).into_keys().next().unwrap();
    let strange = folder.path().join("strange");
    fs::create_dir_all(strange.join("PG_17_1/5")).unwrap();
    let elsewhere = BTreeMap::from([(oid.clone(), strange)]);
    let error = told(elsewhere, Existing::Replace).await.unwrap_err();
    assert!(error.to_string().contains("isn't where"), "{error}");
    // The same of the WAL.
    fs::rename(copy.join("pg_wal"), &wal).unwrap();
    std::os::unix::fs::symlink(&wal, copy.join("pg_wal")).unwrap();
    let wal_before = everything(&wal);
    let new = origin.socket_dir().join("new space");
    let spaces = BTreeMap::from([(oid, new.clone())]);
    let error = told(spaces.clone(), Existing::Replace).await.unwrap_err();
    assert!(error.to_string().contains("pg_wal is a link"), "{error}");
    assert_eq!(
        (everything(&wal), everything(&space)),
        (wal_before, before.clone())
    );
    fs::remove_dir_all(&wal).unwrap();
    fs::create_dir(&wal).unwrap();
    give(&wal);
    // Stopped half-way and gone on with: what it has made itself it knows.
    let begun = async {
        while fs::read_dir(&new).is_err() || !copy.join("pgkeep_wal").exists() {
            tokio::task::yield_now().await;
        }
    };
    let error = over_with(&repository, "latest", &copy, (Existing::Replace, spaces), begun)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("interrupted"), "{error}");
    told(BTreeMap::new(), Existing::Resume).await.unwrap();
    assert!(wal.join("archive_status").exists() && new.read_dir().unwrap().count() > 0);
    assert_eq!(everything(&space), before);
    origin.start_restored();
    assert_eq!(contents(&origin).await, held);
}

/// Names, sizes and times of everything.
fn everything(directory: &Path) -> BTreeMap<String, (u64, std::time::SystemTime)> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            all.extend(everything(&path));
        }
        all.insert(
            path.display().to_string(),
            (metadata.len(), metadata.modified().unwrap()),
        );
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_is_in_use_or_somebody_else_s_is_refused_and_stays() {
    let (mut origin, mut other) = (require!(origin(18)), require!(Cluster::start(server(18))));
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path(), false, None).await;
    backup(&repository, &origin).await.unwrap();
    let strange = folder.path().join("strange");
    fs::create_dir(&strange).unwrap();
    fs::write(strange.join("a file"), "x").unwrap();
    other.stop(StopMode::Fast);
    let running = origin.data_dir();
    for (place, existing, said) in [
        (&running, Existing::Replace, "postmaster.pid"),
        (&other.data_dir(), Existing::Replace, "another database cluster"),
        (&strange, Existing::Replace, "not the data directory"),
        (&strange, Existing::Resume, "no restore stopped half-way"),
        (&other.data_dir(), Existing::Resume, "no restore stopped half-way"),
    ] {
        let before = (place != &running).then(|| everything(place));
        let error = over(&repository, "latest", place, existing, std::future::pending())
            .await
            .unwrap_err();
        assert!(
            error.to_string().contains(said) && error.hint().is_some(),
            "{error}"
        );
        assert!(matches!(error, PhysicalError::Refused { .. }), "{error}");
        if let Some(before) = before {
            assert_eq!(everything(place), before, "{said}");
        }
    }
    assert_eq!(origin.psql("postgres", "SELECT count(*) FROM gone"), "1");

    // What else lies in a tablespace's directory is nobody's to remove.
    origin.stop(StopMode::Fast);
    let space = origin.socket_dir().join("space");
    fs::write(space.join("a file"), "x").unwrap();
    let never = std::future::pending();
    let error = over(&repository, "latest", &running, Existing::Replace, never)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("more than a tablespace: a file"),
        "{error}"
    );
    fs::remove_file(space.join("a file")).unwrap();

    // Nobody restores where another one does.
    let mark = running.join("pgkeep.restore");
    let holding = fs::File::create(&mark).unwrap();
    holding.lock().unwrap();
    let before = everything(&running);
    let never = std::future::pending();
    let error = over(&repository, "latest", &running, Existing::Resume, never)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("another restore is writing"),
        "{error}"
    );
    assert_eq!(everything(&running), before);
    drop(holding);
    let never = std::future::pending();
    over(&repository, "latest", &running, Existing::Resume, never)
        .await
        .unwrap();
    origin.start_restored();
    assert_eq!(origin.psql("postgres", "SELECT count(*) FROM gone"), "1");
}

/// Recovery makes tablespaces where the original has them: beside a running server that would be in its files.
#[tokio::test(flavor = "multi_thread")]
async fn a_tablespace_made_since_the_backup_is_not_written_into_the_original_s() {
    let origin = require!(Cluster::start(server(16)));
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path(), false, None).await;
    let streaming = Streaming::start(&repository, &origin).await;
    backup(&repository, &origin).await.unwrap();
    origin.psql("postgres", "CREATE TABLE before AS SELECT 1 i");
    let point = lsn(
        &mut session(&origin, "postgres").await,
        "pg_current_wal_insert_lsn()",
    )
    .await;
    let place = origin.socket_dir().join("a \"space\" ü");
    fs::create_dir(&place).unwrap();
    give(&place);
    origin.psql(
        "postgres",
        &format!("CREATE TABLESPACE t LOCATION '{}'", place.display()),
    );
    origin.psql(
        "postgres",
        "CREATE TABLE b TABLESPACE t AS SELECT generate_series(1, 1000) i",
    );
    let held = contents(&origin).await;
    streaming.end(&origin).await;
    let before = everything(&place);

    let mut beside = Cluster::unmade(origin.pg_bin(), origin.major());
    let error = restore(
        &repository,
        "latest",
        &beside,
        RecoveryTarget::End,
        BTreeMap::new(),
    )
    .await
    .unwrap_err();
    assert!(matches!(error, PhysicalError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("original"), "{error}");
    assert_eq!(everything(&place), before);
    restore(
        &repository,
        "latest",
        &beside,
        RecoveryTarget::Lsn(point),
        BTreeMap::new(),
    )
    .await
    .unwrap();
    beside.start_restored();
    assert_eq!(beside.psql("postgres", "SELECT count(*) FROM before"), "1");
    assert_eq!((everything(&place), contents(&origin).await), (before, held));
}

/// Two restores that were given one directory for a tablespace.
#[tokio::test(flavor = "multi_thread")]
async fn a_tablespace_s_directory_is_one_restore_s() {
    let origin = require!(origin(17));
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path(), false, None).await;
    backup(&repository, &origin).await.unwrap();
    let (first, second) = (
        Cluster::unmade(origin.pg_bin(), origin.major()),
        Cluster::unmade(origin.pg_bin(), origin.major()),
    );
    let shared = origin.socket_dir().join("shared");
    let oid: TablespaceName = own_spaces(&origin.data_dir()).into_keys().next().unwrap();
    let spaces = BTreeMap::from([(oid, shared.clone())]);
    let at = async |cluster: &Cluster, existing, stop: &mut (dyn Future<Output = ()> + Unpin)| {
        let place = (existing, spaces.clone());
        over_with(&repository, "latest", &cluster.data_dir(), place, stop).await
    };
    let begun = std::pin::pin!(async {
        while !shared.join("pgkeep.restore").exists() {
            tokio::task::yield_now().await;
        }
    });
    let mut begun = begun;
    let error = at(&first, Existing::Refuse, &mut begun).await.unwrap_err();
    assert!(error.to_string().contains("interrupted"), "{error}");
    let mut never = std::future::pending();
    for existing in [Existing::Refuse, Existing::Resume] {
        let error = at(&second, existing, &mut never).await.unwrap_err();
        assert!(matches!(error, PhysicalError::Refused { .. }), "{error}");
        assert!(shared.join("pgkeep.restore").exists() && !second.data_dir().exists());
    }
    at(&first, Existing::Resume, &mut never).await.unwrap();
    assert!(!shared.join("pgkeep.restore").exists());
}
