//! Base backups by replication, with real servers of each version.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use pgkeep_pg::replication::{BaseBackupOptions, BaseEvent, Checkpoint, ReplicationSession};
use pgkeep_pgformat::{BackupLabel, ControlFile, Lsn, TablespaceMap, Timeline};
use pgkeep_testkit::{Cluster, StopMode, require, requirements, server_user};
use support::walsender::{LIMIT, connect, options};
use tokio::time::timeout;

type Archives = BTreeMap<Option<u32>, Vec<u8>>;

/// Takes a backup: each archive's bytes, the manifest's, and the end with what was said of damage.
async fn take(
    session: &mut ReplicationSession,
    options: &BaseBackupOptions,
) -> (Archives, Vec<u8>, (Lsn, Timeline), Option<String>) {
    let mut backup = session.base_backup(options).await.unwrap();
    let sizes: Option<u64> = backup
        .tablespaces()
        .iter()
        .map(|tablespace| tablespace.size_kib)
        .sum();
    assert_eq!(sizes.is_some(), options.progress);
    let expected: Vec<_> = backup
        .tablespaces()
        .iter()
        .map(|space| space.tablespace.as_ref().map(|(oid, _)| *oid))
        .collect();
    let (mut archives, mut manifest) = (Archives::new(), Vec::new());
    let mut current = None;
    let mut done = 0;
    let mut end = None;
    while let Some(event) = backup.next().await.unwrap() {
        match event {
            BaseEvent::Archive { tablespace } => current = Some(archives.entry(tablespace).or_default()),
            BaseEvent::Manifest => current = Some(&mut manifest),
            BaseEvent::Data(bytes) => current.as_mut().unwrap().extend_from_slice(bytes),
            BaseEvent::Progress(bytes) => {
                assert!(bytes >= done);
                done = bytes;
            }
            BaseEvent::End {
                lsn,
                timeline,
                damage,
            } => {
                end = Some(((lsn, timeline), damage.map(|error| error.message)));
            }
        }
    }
    let (end, damage) = end.unwrap();
    assert!(backup.start().0 < end.0);
    assert_eq!(archives.keys().copied().collect::<Vec<_>>(), {
        let mut expected = expected;
        expected.sort_unstable();
        expected
    });
    assert_eq!(
        done,
        archives.values().map(|bytes| bytes.len() as u64).sum::<u64>()
    );
    (archives, manifest, end, damage)
}

/// Names, kinds and sizes of an archive's entries; what differs between any two backups has no size.
fn listed(archive: &[u8]) -> BTreeMap<PathBuf, (u8, u64)> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().unwrap().map(|entry| {
        let entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let size = if path == Path::new("backup_label") {
            0
        } else {
            entry.size()
        };
        (path, (entry.header().entry_type().as_byte(), size))
    });
    entries.collect()
}

fn file(archive: &[u8], name: &str) -> Vec<u8> {
    let mut archive = tar::Archive::new(archive);
    let entry = archive
        .entries()
        .unwrap()
        .map(Result::unwrap)
        .find(|entry| entry.path().unwrap() == Path::new(name));
    let mut contents = Vec::new();
    entry.unwrap().read_to_end(&mut contents).unwrap();
    contents
}

/// A tablespace and a table in it.
fn make_tablespace(cluster: &Cluster) -> u32 {
    let directory = cluster.socket_dir().join("a \\ tablespace");
    fs::create_dir(&directory).unwrap();
    if let Some((user, group)) = server_user() {
        chown(&directory, Some(user.as_raw()), Some(group.as_raw())).unwrap();
    }
    let path = directory.display();
    cluster.psql("postgres", &format!("CREATE TABLESPACE t LOCATION '{path}'"));
    let oid = cluster.psql("postgres", "SELECT oid FROM pg_tablespace WHERE spcname = 't'");
    oid.parse().unwrap()
}

fn pg_basebackup(cluster: &Cluster) -> Archives {
    let directory = cluster.socket_dir().join("reference");
    let mut command = cluster.client_command("pg_basebackup");
    let output = command
        .args(["-Ft", "-Xnone", "-cfast", "--no-manifest", "-D"])
        .arg(&directory)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let files = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let archives = files.map(|path| {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        (name.parse().ok(), fs::read(path).unwrap())
    });
    archives.collect()
}

#[tokio::test]
async fn a_base_backup_has_what_pg_basebackup_has() {
    for major in requirements::MAJORS {
        let cluster = require!(Cluster::start(options(major)));
        let oid = make_tablespace(&cluster);
        cluster.psql(
            "postgres",
            "CREATE TABLE a TABLESPACE t AS SELECT i, md5(i::text) t FROM generate_series(1, 50000) i;
             CREATE TABLE b AS TABLE a; CHECKPOINT",
        );
        let mut session = connect(&cluster).await;
        let wanted = BaseBackupOptions {
            label: "it's \\ a label".to_owned(),
            checkpoint: Checkpoint::Fast,
            ..BaseBackupOptions::default()
        };
        let (archives, manifest, end, damage) = take(&mut session, &wanted).await;
        assert_eq!((manifest.len(), damage), (0, None));
        let reference = pg_basebackup(&cluster);
        assert_eq!(
            archives.keys().collect::<Vec<_>>(),
            reference.keys().collect::<Vec<_>>()
        );
        for (tablespace, archive) in &archives {
            let (ours, theirs) = (listed(archive), listed(&reference[tablespace]));
            assert!(
                ours.len() > 2 && ours == theirs,
                "{major}: {tablespace:?}\n{ours:#?}\n{theirs:#?}"
            );
        }
        let base = &archives[&None];
        let identity = session.identify().await.unwrap();
        let control = ControlFile::parse(&file(base, "global/pg_control")).unwrap();
        assert_eq!(control.system_identifier, identity.system_identifier);
        let label = BackupLabel::parse(&file(base, "backup_label")).unwrap();
        assert_eq!(
            (label.label.as_str(), label.start_timeline),
            ("it's \\ a label", end.1)
        );
        assert!(label.start_lsn < end.0 && end.0 <= identity.flushed);
        let map = TablespaceMap::parse(&file(base, "tablespace_map")).unwrap();
        assert_eq!((map.tablespaces.len(), map.tablespaces[0].oid), (1, oid));
        // The same session, other options: its WAL and a manifest in it, no sizes.
        let more = BaseBackupOptions {
            wal: true,
            manifest: true,
            progress: false,
            rate_kib_max: Some(1_048_576),
            ..wanted
        };
        let (archives, manifest, ..) = take(&mut session, &more).await;
        assert!(manifest.starts_with(b"{ \"PostgreSQL-Backup-Manifest-Version\""));
        assert!(
            listed(&archives[&None])
                .keys()
                .any(|path| path.to_string_lossy().starts_with("pg_wal/0"))
        );
        session.close().await;
    }
}

#[tokio::test]
async fn damaged_pages_are_told_at_the_end_and_refusals_at_once() {
    for major in requirements::MAJORS {
        let mut cluster = require!(Cluster::start(options(major)));
        let path = cluster.psql(
            "postgres",
            "CREATE TABLE a AS SELECT generate_series(1, 50000) i; SELECT pg_relation_filepath('a')",
        );
        cluster.stop(StopMode::Fast);
        let mut data = fs::OpenOptions::new()
            .write(true)
            .open(cluster.data_dir().join(path))
            .unwrap();
        data.seek(SeekFrom::Start(3 * 8192 + 5000)).unwrap();
        data.write_all(&[0xA5; 3]).unwrap();
        cluster.start_again();
        let mut session = connect(&cluster).await;
        let wanted = BaseBackupOptions {
            checkpoint: Checkpoint::Fast,
            ..BaseBackupOptions::default()
        };
        let (archives, _, _, damage) = take(&mut session, &wanted).await;
        assert!(listed(&archives[&None]).len() > 100);
        assert!(damage.unwrap().contains("checksum verification failure"));
        let notices = session.session_mut().take_notices();
        assert!(
            notices.iter().any(|notice| notice.message.contains("block 3")),
            "{notices:?}"
        );
        let unchecked = BaseBackupOptions {
            verify_checksums: false,
            ..wanted.clone()
        };
        assert_eq!(take(&mut session, &unchecked).await.3, None);
        let refused = BaseBackupOptions {
            rate_kib_max: Some(1),
            ..wanted.clone()
        };
        let error = session.base_backup(&refused).await.unwrap_err();
        assert_eq!(error.sqlstate(), Some("22003"), "{error}");
        // Cancelled in the middle: the session goes on, the backup doesn't.
        let slow = BaseBackupOptions {
            rate_kib_max: Some(32),
            ..wanted
        };
        let handle = session.cancel_handle();
        let mut backup = session.base_backup(&slow).await.unwrap();
        backup.next().await.unwrap().unwrap();
        handle.cancel().await.unwrap();
        let error = loop {
            match timeout(LIMIT, backup.next()).await.unwrap() {
                Ok(event) => assert!(event.is_some()),
                Err(error) => break error,
            }
        };
        assert_eq!(error.sqlstate(), Some("57014"), "{error}");
        assert!(session.identify().await.is_ok());
    }
}
