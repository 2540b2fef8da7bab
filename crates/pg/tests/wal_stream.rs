//! WAL by replication, with real servers of each version: slots, promotion, and connections that end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgkeep_base::{Classified, RetryClass};
use pgkeep_pg::PgError;
use pgkeep_pg::replication::{
    Lifetime, ReplicationSession, StandbyStatus, StreamLimits, WalEvent, WalStream,
};
use pgkeep_pgformat::{ControlFile, Lsn, SegmentName, SegmentSize, Timeline, TimelineHistory};
use pgkeep_testkit::{Cluster, StopMode, poll_until, require, requirements};
use support::walsender::{LIMIT, connect, impatient, options};
use tokio::time::timeout;

/// Receives until this position is reached, confirming all.
async fn receive(stream: &mut WalStream<'_>, all: &mut Vec<u8>, until: Lsn) {
    while stream.position() < until {
        if let WalEvent::Data { bytes, .. } = timeout(LIMIT, stream.next()).await.unwrap().unwrap().unwrap() {
            all.extend_from_slice(bytes);
        }
    }
    confirm(stream).await;
}

/// All that was received is durable.
async fn confirm(stream: &mut WalStream<'_>) {
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

/// A slot's life.
async fn slots_come_and_go(session: &mut ReplicationSession) {
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
}

/// Ended by this side with more under way, the session and the slot can be used again.
async fn an_ended_stream_can_be_begun_again(
    cluster: &Cluster,
    session: &mut ReplicationSession,
    from: (Lsn, Timeline),
) {
    let (position, timeline) = from;
    let mut other = connect(cluster).await;
    let again = session
        .start(Some("pgkeep"), position, timeline, impatient())
        .await
        .unwrap();
    let used = other
        .start(Some("pgkeep"), position, timeline, impatient())
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
        slots_come_and_go(&mut session).await;
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
        cluster.psql("postgres", "INSERT INTO a TABLE a");
        stream.finish().await.unwrap();
        assert_eq!(
            session.identify().await.unwrap().system_identifier,
            identity.system_identifier
        );
        an_ended_stream_can_be_begun_again(&cluster, &mut session, (position, identity.timeline)).await;
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
        let cluster = require!(Cluster::start(
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
        let until = an_administrator_ends_it(&cluster, (identity.flushed, identity.timeline)).await;
        a_shutdown_waits_for_it(cluster, (until, identity.timeline)).await;
    }
}

/// In the middle of a flood; returns how far it came.
async fn an_administrator_ends_it(cluster: &Cluster, from: (Lsn, Timeline)) -> Lsn {
    let (start, timeline) = from;
    let mut session = connect(cluster).await;
    let mut stream = session.start(None, start, timeline, impatient()).await.unwrap();
    cluster.psql(
        "postgres",
        "CREATE TABLE a AS SELECT i, repeat('x', 500) t FROM generate_series(1, 20000) i",
    );
    let mut all = Vec::new();
    let until = start.checked_add(1 << 20).unwrap();
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
    until
}

/// A new connection goes on where the old one ended, and the server's shutdown waits for it.
async fn a_shutdown_waits_for_it(mut cluster: Cluster, from: (Lsn, Timeline)) {
    let (start, timeline) = from;
    let mut session = connect(&cluster).await;
    let mut stream = session.start(None, start, timeline, impatient()).await.unwrap();
    let stopped = tokio::task::spawn_blocking(move || {
        cluster.stop(StopMode::Fast);
        cluster
    });
    let shutdown = timeout(LIMIT, async {
        loop {
            match stream.next().await.unwrap().unwrap() {
                WalEvent::Shutdown => break,
                _ => confirm(&mut stream).await,
            }
        }
    });
    shutdown.await.unwrap();
    let cluster = stopped.await.unwrap();
    assert!(session.session().is_broken());
    // The checkpoint of the shutdown came before the end.
    let control = fs::read(cluster.data_dir().join("global/pg_control")).unwrap();
    assert!(ControlFile::parse(&control).unwrap().checkpoint > start);
}
