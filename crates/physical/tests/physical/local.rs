//! The data directory itself as the source: it is proven to be the server's, and what is read of it is what the server sends.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgkeep_base::BackupKind;
use pgkeep_physical::{BackupOptions, PhysicalError, ReaderChoice};
use pgkeep_repository::Repository;
use pgkeep_repository::map::{ROOT_DATA, RecordContents, RecordReader};
use pgkeep_testkit::{Cluster, StopMode, require, requirements, run, server_user};
use tokio::time::timeout;

use super::support::{LIMIT, READERS, backup_options, backup_with, manifest, repository, server, session};

fn by(reader: ReaderChoice) -> BackupOptions {
    BackupOptions {
        reader,
        ..backup_options()
    }
}

fn given(directory: &Path) -> BackupOptions {
    BackupOptions {
        data_directory: Some(directory.to_owned()),
        ..by(ReaderChoice::Auto)
    }
}

/// Root and path of everything in a backup: its mode, and the size of a file.
type Listed = BTreeMap<(u32, String), (u32, Option<u64>)>;

async fn listed(repository: &Repository, text: &str) -> Listed {
    let id = repository.find(BackupKind::Base, text).await.unwrap();
    let manifest = manifest(repository, &id).await;
    let mut found = BTreeMap::new();
    for object in &manifest.files {
        let records = repository.file_records(&id, object).await.unwrap();
        for record in RecordReader::new(&records, manifest.block_bytes) {
            let record = record.unwrap();
            let size = match record.contents {
                RecordContents::File { size, .. } => Some(size),
                _ => None,
            };
            let path = String::from_utf8(record.path).unwrap();
            let twice = found.insert((record.root, path), (record.mode, size));
            assert_eq!(twice, None);
        }
    }
    found
}

/// What `pg_basebackup` wrote into a directory, as a backup lists it.
fn written(root: u32, top: &Path, below: &Path, found: &mut Listed) {
    // Its own, and the server's word on the backup, which the manifest has here.
    const ASIDE: [&str; 3] = ["backup_label", "tablespace_map", "backup_manifest"];
    for entry in fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(top).unwrap().to_str().unwrap().to_owned();
        let metadata = path.symlink_metadata().unwrap();
        if name.starts_with("pg_tblspc/") || ASIDE.contains(&name.as_str()) {
            continue;
        }
        if metadata.is_dir() {
            written(root, top, &path, found);
        }
        let size = metadata.is_file().then_some(metadata.len());
        found.insert((root, name), (metadata.mode() & 0o7777, size));
    }
}

fn own(path: &Path) {
    if let Some((user, group)) = server_user() {
        chown(path, Some(user.as_raw()), Some(group.as_raw())).unwrap();
    }
}

/// Files of each kind that belongs to no backup, and some that do.
fn litter(cluster: &Cluster, version_directory: &Path) {
    let data = cluster.data_dir();
    let base = data.join("base/1");
    for path in [
        data.join("postgresql.auto.conf.tmp"),
        data.join("current_logfiles.tmp"),
        data.join("postgresql.auto.conf.tmp2"),
        data.join("notes"),
        data.join("backup_manifest"),
        data.join("pg_stat_tmp/x"),
        data.join("pg_notify/x"),
        data.join("pg_subtrans/x"),
        data.join("pg_wal/x"),
        base.join("pg_internal.init.1"),
        base.join("t3_99999"),
        base.join("t3_99999_fsm.1"),
        base.join("99998"),
        base.join("99998_init"),
        base.join("99998_vm.1"),
        base.join("99997_vm"),
        base.join("t_99999"),
        version_directory.join("pgsql_tmp1"),
        version_directory.join("other"),
    ] {
        // A page that was never set up, which the server doesn't take for damage.
        fs::write(&path, [0; 8192]).unwrap();
        own(&path);
    }
    for path in [
        base.join("pgsql_tmp"),
        data.join("empty"),
        data.join("pg_replslot/x"),
        data.join("below/pg_notify/x"),
    ] {
        fs::create_dir_all(&path).unwrap();
        own(&path);
        own(path.parent().unwrap());
    }
}

/// What PostgreSQL's own program takes, by root and path.
fn taken_by_pg_basebackup(cluster: &Cluster, spaces: &[PathBuf; 2]) -> Listed {
    let copy = tempfile::tempdir_in(cluster.socket_dir()).unwrap();
    let (copied, copied_spaces) = (
        copy.path().join("data"),
        [copy.path().join("t"), copy.path().join("i")],
    );
    own(copy.path());
    let mut command = cluster.client_command("pg_basebackup");
    command.args([
        "--wal-method=none",
        "--checkpoint=fast",
        "--no-manifest",
        "--pgdata",
    ]);
    command.arg(&copied);
    for (space, copied) in spaces.iter().zip(&copied_spaces) {
        command.arg(format!(
            "--tablespace-mapping={}={}",
            space.display(),
            copied.display()
        ));
    }
    run(&mut command);
    let mut expected = BTreeMap::new();
    written(ROOT_DATA, &copied, &copied, &mut expected);
    for (root, copied) in (2..).zip(&copied_spaces) {
        written(root, copied, copied, &mut expected);
    }
    expected
}

async fn same_files(major: u32) -> Result<(), requirements::Missing> {
    let options = server(major)
        .setting("autovacuum", "off")
        .setting("bgwriter_lru_maxpages", "0");
    let cluster = Cluster::start(options)?;
    let spaces = [
        cluster.socket_dir().join("space"),
        cluster.data_dir().join("inside"),
    ];
    for space in &spaces {
        fs::create_dir(space).unwrap();
        own(space);
    }
    cluster.psql(
        "postgres",
        &format!("CREATE TABLESPACE t LOCATION '{}'", spaces[0].display()),
    );
    cluster.psql(
        "postgres",
        &format!("CREATE TABLESPACE i LOCATION '{}'", spaces[1].display()),
    );
    cluster.psql(
        "postgres",
        "CREATE TABLE a AS SELECT generate_series(1, 200000) i; CREATE UNLOGGED TABLE u AS SELECT 1 i;
         CREATE UNLOGGED TABLE v TABLESPACE t AS SELECT 1 i; CREATE TABLE b TABLESPACE t AS SELECT 1 i;
         CREATE TABLE c TABLESPACE i AS SELECT 1 i; VACUUM a; CHECKPOINT",
    );
    let mut temporary = session(&cluster, "postgres").await;
    temporary
        .execute("CREATE TEMPORARY TABLE x AS SELECT generate_series(1, 10000) i")
        .await
        .unwrap();
    let version = fs::read_dir(&spaces[0]).unwrap().next().unwrap().unwrap().path();
    litter(&cluster, &version);

    let expected = taken_by_pg_basebackup(&cluster, &spaces);
    assert!(expected.contains_key(&(0, "notes".to_owned())));

    for reader in READERS {
        let folder = tempfile::tempdir().unwrap();
        let repository = repository(folder.path(), false, None).await;
        let report = backup_with(&repository, &cluster, &by(reader)).await.unwrap();
        assert!(report.attention.is_empty(), "{:?}", report.attention);
        let found = listed(&repository, "latest").await;
        let differ: Vec<_> = found
            .iter()
            .filter(|(name, entry)| expected.get(name) != Some(entry))
            .chain(expected.iter().filter(|(name, _)| !found.contains_key(name)))
            .collect();
        assert!(differ.is_empty(), "{major}, {reader:?}: {differ:#?}");
        let totals = report.manifest.totals;
        let sizes: Vec<u64> = found.values().filter_map(|(_, size)| *size).collect();
        assert_eq!(
            (totals.files, totals.plain_bytes),
            (sizes.len() as u64, sizes.iter().sum())
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_reader_takes_the_files_that_pg_basebackup_takes() {
    for major in requirements::MAJORS {
        require!(same_files(major).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_not_the_servers_is_not_read() {
    let mut cluster = require!(Cluster::start(server(17)));
    let other = require!(Cluster::start(server(17)));
    cluster.stop(StopMode::Fast);
    let clone = tempfile::tempdir().unwrap();
    let clone = clone.path().join("clone");
    run(std::process::Command::new("cp")
        .arg("-a")
        .arg(cluster.data_dir())
        .arg(&clone));
    cluster.start_again();
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path(), false, None).await;
    let nowhere = PathBuf::from("/nowhere");
    for (directory, reason) in [
        (clone.as_path(), "is another server's"),
        (&other.data_dir(), "it is another cluster's"),
        (&nowhere, "/nowhere: No such file or directory"),
    ] {
        let report = backup_with(&repository, &cluster, &given(directory))
            .await
            .unwrap();
        assert_eq!(report.manifest.reader, "replication");
        let told = report.fallback.unwrap();
        assert!(told.contains(reason), "{told}");
        let only = BackupOptions {
            reader: ReaderChoice::Local,
            ..given(directory)
        };
        let error = backup_with(&repository, &cluster, &only).await.unwrap_err();
        assert!(
            matches!(&error, PhysicalError::Refused { message, .. } if message.contains(reason)),
            "{error}"
        );
    }
    // By another name it is its own all the same.
    let link = clone.with_file_name("link");
    std::os::unix::fs::symlink(cluster.data_dir(), &link).unwrap();
    let report = backup_with(&repository, &cluster, &given(&link)).await.unwrap();
    assert_eq!(
        (report.manifest.reader.as_str(), report.fallback),
        ("local", None)
    );
    assert_eq!(
        cluster.psql("postgres", "SELECT count(*) FROM pg_replication_slots"),
        "0"
    );
}

/// Where the data directory is at hand and a tablespace isn't, or only a copy of it, as in a container that mounts the one alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_tablespace_that_is_not_the_servers_is_not_read() {
    let cluster = require!(Cluster::start(server(15)));
    let space = cluster.socket_dir().join("space");
    fs::create_dir(&space).unwrap();
    own(&space);
    cluster.psql(
        "postgres",
        &format!("CREATE TABLESPACE \"a \"\"t\" LOCATION '{}'", space.display()),
    );
    cluster.psql("postgres", "CREATE TABLE b TABLESPACE \"a \"\"t\" AS SELECT 1 i");
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    run(std::process::Command::new("cp").arg("-a").arg(&space).arg(&copy));
    // The server's data directory in all but where the tablespace's link leads.
    let seen = folder.path().join("seen");
    fs::create_dir_all(seen.join("pg_tblspc")).unwrap();
    for entry in fs::read_dir(cluster.data_dir()).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "pg_tblspc" {
            std::os::unix::fs::symlink(entry.path(), seen.join(entry.file_name())).unwrap();
        }
    }
    let oid = cluster.psql("postgres", "SELECT max(oid) FROM pg_tablespace");
    let link = seen.join("pg_tblspc").join(oid);
    let repository = repository(&folder.path().join("repository"), false, None).await;
    for place in [&copy, &folder.path().join("nowhere")] {
        std::os::unix::fs::symlink(place, &link).unwrap();
        let report = backup_with(&repository, &cluster, &given(&seen)).await.unwrap();
        assert_eq!(report.manifest.reader, "replication");
        let told = report.fallback.unwrap();
        assert!(told.contains("isn't the server's"), "{told}");
        let only = BackupOptions {
            reader: ReaderChoice::Local,
            ..given(&seen)
        };
        let error = backup_with(&repository, &cluster, &only).await.unwrap_err();
        assert!(error.to_string().contains("isn't the server's"), "{error}");
        fs::remove_file(&link).unwrap();
    }
    let report = backup_with(&repository, &cluster, &given(&cluster.data_dir()))
        .await
        .unwrap();
    assert_eq!(
        (report.manifest.reader.as_str(), report.fallback),
        ("local", None)
    );
    assert_eq!(
        cluster.psql(
            "postgres",
            "SELECT count(*) FROM pg_class WHERE relname = 'pgkeep_proof'"
        ),
        "0"
    );
}

/// What a role lacks for the one way is told, and the other is taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_is_told_what_it_lacks() {
    let cluster = require!(Cluster::start(server(16)));
    cluster.psql("postgres", "CREATE ROLE keeper LOGIN REPLICATION");
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path(), false, None).await;
    let conninfo = cluster
        .conninfo("postgres")
        .replace("user=postgres", "user=keeper");
    let target = pgkeep_pg::Conninfo::parse(&conninfo)
        .unwrap()
        .resolve(&pgkeep_pg::Environment::empty())
        .unwrap();
    let steps = [
        (
            Some("pg_backup_start"),
            "GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean) TO keeper",
        ),
        (Some("data_directory"), "GRANT pg_read_all_settings TO keeper"),
        (None, "SELECT 1"),
    ];
    for (lacks, mend) in steps {
        let (progress, never) = (std::sync::Arc::default(), std::future::pending());
        let options = by(ReaderChoice::Auto);
        let report = pgkeep_physical::backup(&repository, &target, &options, &progress, never)
            .await
            .unwrap();
        match lacks {
            Some(lacks) => {
                assert!(report.fallback.unwrap().contains(lacks));
                assert_eq!(report.manifest.reader, "replication");
            }
            None => assert_eq!(
                (report.manifest.reader.as_str(), report.fallback),
                ("local", None)
            ),
        }
        cluster.psql("postgres", mend);
    }
}

/// Without its session the server isn't in backup mode, so there is no backup.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_ended_leaves_no_backup() {
    let cluster = require!(Cluster::start(server(15)));
    cluster.psql(
        "postgres",
        "CREATE TABLE a AS SELECT generate_series(1, 300000) i",
    );
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path(), false, None).await;
    let options = BackupOptions {
        rate_kib_max: Some(4096),
        ..by(ReaderChoice::Local)
    };
    let ending = async {
        let mut session = session(&cluster, "postgres").await;
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE query LIKE '%pg_backup_start%' AND state = 'idle' AND pid <> pg_backend_pid()";
        while session.query(end).await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (made, ended) = tokio::join!(
        backup_with(&repository, &cluster, &options),
        timeout(LIMIT, ending)
    );
    ended.expect("it is in backup mode");
    let error = made.unwrap_err();
    assert!(matches!(error, PhysicalError::Pg { .. }), "{error}");
    let entries = repository.backups(BackupKind::Base).await.unwrap();
    assert!(entries.iter().all(|entry| !entry.state.is_there()), "{entries:?}");
}
