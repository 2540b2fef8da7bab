//! The points that can be come to, and those that can't, with what is said of them.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use pgkeep_base::Classified;
use pgkeep_pgformat::Timeline;
use pgkeep_physical::PhysicalError;
use pgkeep_physical::restore::{RecoveryTarget, TimelineChoice};
use pgkeep_repository::Repository;
use pgkeep_testkit::{Cluster, StopMode, require};

use super::support::{Streaming, backup, contents, lsn, repository, restore, restore_on, server, session};

async fn restored(
    repository: &Repository,
    origin: &Cluster,
    text: &str,
    target: RecoveryTarget,
) -> Result<(Cluster, Vec<String>), PhysicalError> {
    let mut cluster = Cluster::unmade(origin.pg_bin(), origin.major());
    let report = restore(repository, text, &cluster, target, BTreeMap::new()).await?;
    cluster.start_restored();
    Ok((cluster, report.attention))
}

async fn refused(
    repository: &Repository,
    origin: &Cluster,
    text: &str,
    target: RecoveryTarget,
) -> (String, String) {
    let cluster = Cluster::unmade(origin.pg_bin(), origin.major());
    let error = restore(repository, text, &cluster, target, BTreeMap::new())
        .await
        .unwrap_err();
    assert!(matches!(error, PhysicalError::Refused { .. }), "{error}");
    assert!(!cluster.data_dir().exists(), "something was touched: {error}");
    (error.to_string(), error.hint().unwrap().to_string())
}

async fn now(cluster: &Cluster) -> Timestamp {
    let mut session = session(cluster, "postgres").await;
    let rows = session
        .query("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
        .await
        .unwrap();
    let text: String = rows[0].get(0).unwrap();
    text.parse().unwrap()
}

/// A time after the last transaction makes PostgreSQL itself fail ("recovery ended before configured recovery target was
/// reached").
#[tokio::test(flavor = "multi_thread")]
async fn a_time_after_the_last_transaction_is_the_end_and_is_told() {
    let origin = require!(Cluster::start(server(17)));
    origin.psql("postgres", "CREATE TABLE a AS SELECT generate_series(1, 100) i");
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path(), true, None).await;
    let streaming = Streaming::start(&repository, &origin).await;
    let report = backup(&repository, &origin).await.unwrap();
    origin.psql("postgres", "INSERT INTO a VALUES (101)");
    let expected = contents(&origin).await;
    let later = now(&origin)
        .await
        .checked_add(SignedDuration::from_secs(5))
        .unwrap();
    let end = streaming.end(&origin).await;

    let target = RecoveryTarget::Time(later);
    let (cluster, attention) = restored(&repository, &origin, "latest", target).await.unwrap();
    assert_eq!(contents(&cluster).await, expected);
    let [told] = attention.as_slice() else {
        panic!("{attention:?}")
    };
    assert!(
        told.contains(&later.to_string()) && told.contains("the last one that is stored"),
        "{told}"
    );

    // The very end of the WAL is a position like others: nothing begins there.
    let target = RecoveryTarget::Lsn(end);
    let (cluster, attention) = restored(&repository, &origin, "latest", target).await.unwrap();
    assert_eq!((contents(&cluster).await, attention), (expected, vec![]));

    // Beyond and before, it is refused with the nearest point, and nothing is touched.
    let system = report.manifest.system_identifier.parse().unwrap();
    let covered = repository
        .wal_coverage(system, report.manifest.stop_timeline)
        .await
        .unwrap();
    let covered_to = covered.last().unwrap().end;
    let beyond = covered_to.checked_add(1).unwrap();
    let (message, hint) = refused(&repository, &origin, "latest", RecoveryTarget::Lsn(beyond)).await;
    assert!(
        message.contains("behind the WAL") && hint.contains(&format!("--to-lsn {covered_to}")),
        "{message} {hint}"
    );
    let before = report.manifest.stop_lsn.as_u64() - 8;
    let before = RecoveryTarget::Lsn(pgkeep_pgformat::Lsn::new(before));
    for text in ["latest", &report.id.to_string()] {
        let (message, hint) = refused(&repository, &origin, text, before.clone()).await;
        let nearest = format!("--to-lsn {}", report.manifest.stop_lsn);
        assert!(
            message.contains("before the end") && hint.contains(&nearest),
            "{message} {hint}"
        );
    }
    let early = report
        .manifest
        .checkpoint_at
        .checked_sub(SignedDuration::from_secs(1))
        .unwrap();
    let (message, hint) = refused(&repository, &origin, "latest", RecoveryTarget::Time(early)).await;
    assert!(
        message.contains("before the end") && hint.contains("--to-time 20"),
        "{message} {hint}"
    );
}

/// Each backup has the WAL that it needs; what lies between them nobody received.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_restored_by_its_own_wal_whatever_gap_follows() {
    let origin = require!(Cluster::start(server(16)));
    origin.psql("postgres", "CREATE TABLE a AS SELECT generate_series(1, 100) i");
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path(), false, None).await;
    let first = backup(&repository, &origin).await.unwrap();
    let held = contents(&origin).await;
    // Several segments that nobody receives, and a stop in the middle of one.
    for _ in 0..3 {
        origin.psql(
            "postgres",
            "INSERT INTO a SELECT generate_series(1, 20000); SELECT pg_switch_wal()",
        );
    }
    let between = lsn(
        &mut session(&origin, "postgres").await,
        "pg_current_wal_insert_lsn()",
    )
    .await;
    // No transaction ended while it was taken, so nothing tells its end more exactly than its checkpoint, to the second.
    let told = first
        .manifest
        .checkpoint_at
        .checked_add(SignedDuration::from_secs(1))
        .unwrap();
    let mut between_at = now(&origin).await;
    while between_at < told {
        between_at = now(&origin).await;
    }
    let second = backup(&repository, &origin).await.unwrap();
    assert!(first.manifest.stop_lsn < between && between <= second.manifest.start_lsn);

    for target in [RecoveryTarget::BackupEnd, RecoveryTarget::End] {
        let id = first.id.to_string();
        let (cluster, _) = restored(&repository, &origin, &id, target.clone()).await.unwrap();
        assert_eq!(contents(&cluster).await, held, "{target}");
    }
    let target = RecoveryTarget::End;
    let (cluster, _) = restored(&repository, &origin, "latest", target).await.unwrap();
    assert_eq!(contents(&cluster).await, contents(&origin).await);

    // `latest` is the latest that can come there.
    let (message, hint) = refused(&repository, &origin, "latest", RecoveryTarget::Lsn(between)).await;
    assert!(
        message.contains("there is a gap") && message.contains(&first.id.to_string()),
        "{message}"
    );
    assert!(hint.contains("--to-end"), "{hint}");
    // Nor is a time that lies in the gap: what happened then nobody knows. An earlier one is come to from the backup before.
    let cluster = Cluster::unmade(origin.pg_bin(), origin.major());
    let time = RecoveryTarget::Time(between_at);
    let error = restore(&repository, "latest", &cluster, time, BTreeMap::new())
        .await
        .unwrap_err();
    assert!(
        matches!(error, PhysicalError::Refused { .. }) && error.to_string().contains("is not stored"),
        "{error}"
    );
    assert_eq!(
        std::fs::read_dir(cluster.data_dir()).unwrap().count(),
        0,
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_point_and_a_transaction_are_come_to_or_refused() {
    let origin = require!(Cluster::start(server(16)));
    origin.psql("postgres", "CREATE TABLE a AS SELECT generate_series(1, 100) i");
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path(), true, None).await;
    let streaming = Streaming::start(&repository, &origin).await;
    backup(&repository, &origin).await.unwrap();
    origin.psql("postgres", "INSERT INTO a VALUES (101)");
    let at_name = contents(&origin).await;
    let name = "it's a \\ \"point\" ü";
    origin.psql(
        "postgres",
        "SELECT pg_create_restore_point('it''s a \\ \"point\" ü')",
    );
    let id = origin.psql(
        "postgres",
        "BEGIN; INSERT INTO a VALUES (102); SELECT pg_current_xact_id(); COMMIT",
    );
    let id: u64 = id.lines().find_map(|line| line.trim().parse().ok()).unwrap();
    let at_id = contents(&origin).await;
    origin.psql("postgres", "INSERT INTO a VALUES (103)");
    streaming.end(&origin).await;

    let target = RecoveryTarget::Name(name.to_owned());
    let (cluster, _) = restored(&repository, &origin, "latest", target).await.unwrap();
    assert_eq!(contents(&cluster).await, at_name);
    let target = RecoveryTarget::Transaction(id);
    let (cluster, _) = restored(&repository, &origin, "latest", target).await.unwrap();
    assert_eq!(contents(&cluster).await, at_id);
    // What isn't there is told before a file is written, and nothing stays.
    for (target, said) in [
        (
            RecoveryTarget::Name("nowhere".to_owned()),
            "no restore point 'nowhere'",
        ),
        (RecoveryTarget::Transaction(id + 1000), "no transaction"),
    ] {
        let cluster = Cluster::unmade(origin.pg_bin(), origin.major());
        let error = restore(&repository, "latest", &cluster, target, BTreeMap::new())
            .await
            .unwrap_err();
        assert!(
            matches!(error, PhysicalError::Refused { .. }) && error.to_string().contains(said),
            "{error}"
        );
        assert_eq!(
            std::fs::read_dir(cluster.data_dir()).unwrap().count(),
            0,
            "{error}"
        );
    }
}

/// A server that fails over goes on with another timeline, and a backup from before leads there.
#[tokio::test(flavor = "multi_thread")]
async fn recovery_follows_a_promotion() {
    for major in [15, 18] {
        let mut origin = require!(Cluster::start(server(major)));
        origin.psql("postgres", "CREATE TABLE a AS SELECT generate_series(1, 100) i");
        let folder = tempfile::tempdir().unwrap();
        let repository = repository(folder.path(), major == 15, None).await;
        let streaming = Streaming::start(&repository, &origin).await;
        let first = backup(&repository, &origin).await.unwrap().id.to_string();
        origin.psql("postgres", "INSERT INTO a SELECT generate_series(101, 30000)");
        let end = lsn(
            &mut session(&origin, "postgres").await,
            "pg_current_wal_flush_lsn()",
        )
        .await;
        streaming.end_at(end).await;
        let before = contents(&origin).await;
        origin.stop(StopMode::Fast);
        origin.write_file("standby.signal", "");
        origin.start_again();
        origin.psql("postgres", "SELECT pg_promote()");
        let switch = origin.psql("postgres", "SELECT checkpoint_lsn FROM pg_control_checkpoint()");
        let timeline = Timeline::new(2).unwrap();
        let streaming = Streaming::start_on(&repository, &origin, switch.parse().unwrap(), timeline).await;
        origin.psql("postgres", "INSERT INTO a SELECT generate_series(30001, 60000)");
        let after = contents(&origin).await;
        streaming.end(&origin).await;
        assert_ne!(before, after);

        let at = async |choice| {
            let mut cluster = Cluster::unmade(origin.pg_bin(), origin.major());
            let place = (BTreeMap::new(), choice);
            let report = restore_on(&repository, &first, &cluster, RecoveryTarget::End, place).await?;
            cluster.start_restored();
            let timeline = cluster.psql(
                "postgres",
                "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)::int",
            );
            Ok::<_, PhysicalError>((contents(&cluster).await, timeline, report.attention))
        };
        let (found, now, attention) = at(TimelineChoice::Latest).await.unwrap();
        assert_eq!(
            (found, now.as_str(), attention),
            (after.clone(), "3", vec![]),
            "{major}"
        );
        let (found, ..) = at(TimelineChoice::Number(timeline)).await.unwrap();
        assert_eq!(found, after);
        // The way that was left, up to its end; the copy takes no number that is taken.
        let (found, now, attention) = at(TimelineChoice::Current).await.unwrap();
        assert_eq!((found, now.as_str()), (before.clone(), "3"));
        assert!(
            attention.iter().any(|told| told.contains("timeline 2")),
            "{attention:?}"
        );
        let refused = at(TimelineChoice::Number(Timeline::new(7).unwrap()))
            .await
            .unwrap_err();
        assert!(matches!(refused, PhysicalError::Refused { .. }), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn latest_is_the_latest_backup_that_leads_to_the_moment() {
    let origin = require!(Cluster::start(server(17)));
    origin.psql("postgres", "CREATE TABLE a AS SELECT generate_series(1, 100) i");
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path(), true, None).await;
    let streaming = Streaming::start(&repository, &origin).await;
    let first = backup(&repository, &origin).await.unwrap();
    // Its end is told by its checkpoint, to the second.
    let told = first.manifest.checkpoint_at;
    let told = told.checked_add(SignedDuration::from_secs(1)).unwrap();
    while now(&origin).await < told {}
    origin.psql("postgres", "INSERT INTO a VALUES (101)");
    let (expected, at) = (contents(&origin).await, now(&origin).await);
    origin.psql("postgres", "INSERT INTO a VALUES (102)");
    backup(&repository, &origin).await.unwrap();
    origin.psql("postgres", "INSERT INTO a VALUES (103)");
    streaming.end(&origin).await;
    let target = RecoveryTarget::Time(at);
    let (cluster, attention) = restored(&repository, &origin, "latest", target).await.unwrap();
    assert_eq!((contents(&cluster).await, attention), (expected, vec![]));
}
