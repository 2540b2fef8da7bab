//! Physical replication with real servers of each version: backups, WAL, slots, promotion, and connections that end.
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
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgkeep_base::{Classified, RetryClass};
use pgkeep_pg::PgError;
use pgkeep_pg::replication::{
    BaseBackupOptions, BaseEvent, Checkpoint, Lifetime, ReplicationSession, StandbyStatus, StreamLimits,
    WalEvent, WalStream,
};
use pgkeep_pgformat::{
    BackupLabel, ControlFile, Lsn, SegmentName, SegmentSize, TablespaceMap, Timeline, TimelineHistory,
};
use pgkeep_testkit::{Cluster, ClusterOptions, StopMode, poll_until, require, requirements, server_user};
use support::resolve;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(60);

fn options(major: u32) -> ClusterOptions {
    ClusterOptions::new(major)
        .initdb_arg("--data-checksums")
        .initdb_arg("--wal-segsize=1")
        .setting("autovacuum", "off")
}

async fn connect(cluster: &Cluster) -> ReplicationSession {
    ReplicationSession::connect(&resolve(&cluster.conninfo("postgres")))
        .await
        .unwrap()
}

/// Quick to check the server, and to find it silent.
fn impatient() -> StreamLimits {
    StreamLimits {
        status_interval: Duration::from_millis(50),
        silence_max: Duration::from_millis(500),
        reply_max: Duration::from_millis(500),
    }
}

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

/// Receives until this position is reached, confirming all.
async fn receive(stream: &mut WalStream<'_>, all: &mut Vec<u8>, until: Lsn) {
    while stream.position() < until {
        if let WalEvent::Data { bytes, .. } = timeout(LIMIT, stream.next()).await.unwrap().unwrap().unwrap() {
            all.extend_from_slice(bytes);
        }
    }
    let flushed = stream.position();
    stream
        .confirm(StandbyStatus {
            written: flushed,
            flushed,
        })
        .await
        .unwrap();
}

fn lsn(cluster: &Cluster, sql: &str) -> Lsn {
    cluster
        .psql("postgres", &format!("SELECT {sql}"))
        .parse()
        .unwrap()
}

#[tokio::test]
async fn wal_comes_as_it_lies_in_pg_wal_and_a_slot_follows_it() {
    let size = SegmentSize::new(1 << 20).unwrap();
    for major in requirements::MAJORS {
        let cluster = require!(Cluster::start(options(major)));
        let mut session = connect(&cluster).await;
        let identity = session.identify().await.unwrap();
        let shown = session.show("wal_segment_size").await.unwrap();
        assert_eq!(shown, "1MB");
        assert!(matches!(session.show("a; b").await, Err(PgError::Statement(_))));
        // A slot's life.
        assert_eq!(session.read_slot("9 \"lives\"").await.unwrap(), None);
        assert_eq!(
            session.drop_slot("pgkeep", false).await.unwrap_err().sqlstate(),
            Some("42704")
        );
        session
            .create_slot("pgkeep", Lifetime::Lasting, false)
            .await
            .unwrap();
        assert_eq!(session.read_slot("pgkeep").await.unwrap().unwrap().restart, None);
        session.drop_slot("pgkeep", true).await.unwrap();
        session
            .create_slot("9lives", Lifetime::Temporary, true)
            .await
            .unwrap();
        let taken = session
            .create_slot("9lives", Lifetime::Lasting, true)
            .await
            .unwrap_err();
        assert_eq!(taken.sqlstate(), Some("42710"));
        // A failed command ends temporary slots.
        assert_eq!(session.read_slot("9lives").await.unwrap(), None);
        session
            .create_slot("pgkeep", Lifetime::Lasting, true)
            .await
            .unwrap();
        let (restart, timeline) = session
            .read_slot("pgkeep")
            .await
            .unwrap()
            .unwrap()
            .restart
            .unwrap();
        assert_eq!(timeline, Some(identity.timeline));
        assert!(restart <= identity.flushed);
        // Three segments, the last one in the middle.
        let first = SegmentName::holding(identity.timeline, restart, size);
        let mut stream = session
            .start(
                Some("pgkeep"),
                first.start(),
                identity.timeline,
                StreamLimits::default(),
            )
            .await
            .unwrap();
        cluster.psql(
            "postgres",
            "CREATE TABLE a AS SELECT i, repeat(md5(i::text), 20) t FROM generate_series(1, 3000) i; SELECT pg_switch_wal();
             INSERT INTO a VALUES (0, 'last')",
        );
        let until = lsn(&cluster, "pg_current_wal_flush_lsn()");
        let mut all = Vec::new();
        receive(&mut stream, &mut all, until).await;
        let mut segment = first;
        for chunk in all.chunks(1 << 20) {
            let contents = fs::read(cluster.data_dir().join("pg_wal").join(segment.to_string())).unwrap();
            assert_eq!(contents.len(), 1 << 20);
            assert!(contents.starts_with(chunk), "{major}: {segment}");
            segment = segment.next().unwrap();
        }
        assert!(segment.number() - first.number() >= 3, "{segment}");
        let position = stream.position();
        let confirmed =
            format!("SELECT restart_lsn = '{position}' FROM pg_replication_slots WHERE slot_name = 'pgkeep'");
        poll_until("the slot follows", LIMIT, || {
            cluster.psql("postgres", &confirmed) == "t"
        });
        let state = "SELECT flush_lsn = write_lsn AND replay_lsn IS NULL FROM pg_stat_replication";
        assert_eq!(cluster.psql("postgres", state), "t");
        // Ended by this side, with more under way: the session and the slot can be used again.
        cluster.psql("postgres", "INSERT INTO a TABLE a");
        stream.finish().await.unwrap();
        assert_eq!(
            session.identify().await.unwrap().system_identifier,
            identity.system_identifier
        );
        let mut other = connect(&cluster).await;
        let again = session
            .start(Some("pgkeep"), position, identity.timeline, impatient())
            .await
            .unwrap();
        let used = other
            .start(Some("pgkeep"), position, identity.timeline, impatient())
            .await
            .unwrap_err();
        assert_eq!(used.sqlstate(), Some("55006"), "{used}");
        again.finish().await.unwrap();
        session.drop_slot("pgkeep", true).await.unwrap();
        // A timeline that the server never had.
        let unknown = Timeline::new(7).unwrap();
        let error = session
            .start(None, position, unknown, impatient())
            .await
            .unwrap_err();
        assert!(matches!(error, PgError::Server(_)), "{error}");
        assert!(session.identify().await.is_ok());
    }
}

#[tokio::test]
async fn a_standby_that_is_promoted_ends_its_timeline() {
    for major in requirements::MAJORS {
        let mut cluster = require!(Cluster::start(options(major)));
        cluster.psql("postgres", "CREATE TABLE a(i int)");
        cluster.stop(StopMode::Fast);
        cluster.write_file("standby.signal", "");
        cluster.start_again();
        let mut session = connect(&cluster).await;
        let identity = session.identify().await.unwrap();
        assert_eq!(identity.timeline, Timeline::FIRST);
        let mut all = Vec::new();
        let start = SegmentName::holding(
            identity.timeline,
            identity.flushed,
            SegmentSize::new(1 << 20).unwrap(),
        )
        .start();
        let mut stream = session
            .start(None, start, identity.timeline, StreamLimits::default())
            .await
            .unwrap();
        receive(&mut stream, &mut all, identity.flushed).await;
        cluster.psql("postgres", "SELECT pg_promote()");
        let (next, at) = loop {
            match timeout(LIMIT, stream.next()).await.unwrap().unwrap().unwrap() {
                WalEvent::TimelineEnd { next, at } => break (next, at),
                WalEvent::Data { bytes, .. } => all.extend_from_slice(bytes),
                WalEvent::Keepalive { .. } => {}
                WalEvent::Shutdown => panic!("it runs"),
            }
        };
        assert_eq!((next.as_u32(), at), (2, stream.position()));
        assert_eq!(stream.next().await.unwrap(), None);
        let (name, contents) = session.timeline_history(next).await.unwrap();
        assert_eq!(name, "00000002.history");
        let history = TimelineHistory::parse(next, &contents).unwrap();
        assert_eq!(history.switch_point(Timeline::FIRST), Some((at, next)));
        assert_eq!(
            session
                .timeline_history(Timeline::new(9).unwrap())
                .await
                .unwrap_err()
                .sqlstate(),
            Some("58P01")
        );
        // Asked again from where nothing follows: the end comes without a copy.
        let mut ended = session
            .start(None, at, Timeline::FIRST, StreamLimits::default())
            .await
            .unwrap();
        assert_eq!(
            ended.next().await.unwrap(),
            Some(WalEvent::TimelineEnd { next, at })
        );
        // The next timeline, from its segment's start: the same bytes up to the switch.
        let mut stream = session
            .start(None, start, next, StreamLimits::default())
            .await
            .unwrap();
        let mut again = Vec::new();
        let until = lsn(&cluster, "pg_current_wal_flush_lsn()");
        receive(&mut stream, &mut again, until).await;
        assert!(until > at && again.starts_with(&all));
    }
}

#[tokio::test]
async fn connections_that_end_or_fall_silent_are_told() {
    for major in requirements::MAJORS {
        let mut cluster = require!(Cluster::start(
            options(major)
                .setting("wal_sender_timeout", "2s")
                .setting("wal_keep_size", "200MB")
        ));
        let mut session = connect(&cluster).await;
        let identity = session.identify().await.unwrap();
        let pid = session.session().backend_pid();
        // Nothing to be sent for longer than the server waits: the statuses keep it alive.
        let mut stream = session
            .start(None, identity.flushed, identity.timeline, impatient())
            .await
            .unwrap();
        let quiet = timeout(Duration::from_secs(4), async {
            loop {
                stream.next().await.unwrap().unwrap();
            }
        });
        assert!(quiet.await.is_err());
        // A server that says nothing, though it is asked.
        kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
        let silent = timeout(LIMIT, async {
            loop {
                if let Err(error) = stream.next().await {
                    break error;
                }
            }
        });
        let silent = silent.await.unwrap();
        kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
        assert!(matches!(silent, PgError::Silent { .. }), "{silent}");
        assert_eq!(silent.retry_class(), RetryClass::Transient);
        assert!(session.session().is_broken());
        // Its connection has to go: a walsender that can't write what it still has holds up the server's shutdown.
        drop(session);
        // Ended by an administrator in the middle of a flood.
        let mut session = connect(&cluster).await;
        let mut stream = session
            .start(None, identity.flushed, identity.timeline, impatient())
            .await
            .unwrap();
        cluster.psql(
            "postgres",
            "CREATE TABLE a AS SELECT i, repeat('x', 500) t FROM generate_series(1, 20000) i",
        );
        let mut all = Vec::new();
        let until = identity.flushed.checked_add(1 << 20).unwrap();
        receive(&mut stream, &mut all, until).await;
        cluster.psql(
            "postgres",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_replication",
        );
        let ended = timeout(LIMIT, async {
            loop {
                if let Err(error) = stream.next().await {
                    break error;
                }
            }
        });
        let ended = ended.await.unwrap();
        assert_eq!(ended.sqlstate(), Some("57P01"), "{ended}");
        assert!(session.session().is_broken());
        // A new connection goes on where the old one ended, and a shutdown waits for it.
        let mut session = connect(&cluster).await;
        let mut stream = session
            .start(None, until, identity.timeline, impatient())
            .await
            .unwrap();
        let stopped = tokio::task::spawn_blocking(move || {
            cluster.stop(StopMode::Fast);
            cluster
        });
        let shutdown = timeout(LIMIT, async {
            loop {
                match stream.next().await.unwrap().unwrap() {
                    WalEvent::Shutdown => break,
                    _ => {
                        let flushed = stream.position();
                        stream
                            .confirm(StandbyStatus {
                                written: flushed,
                                flushed,
                            })
                            .await
                            .unwrap();
                    }
                }
            }
        });
        shutdown.await.unwrap();
        let cluster = stopped.await.unwrap();
        assert!(session.session().is_broken());
        // The checkpoint of the shutdown came before the end.
        let control = fs::read(cluster.data_dir().join("global/pg_control")).unwrap();
        assert!(ControlFile::parse(&control).unwrap().checkpoint > until);
    }
}
