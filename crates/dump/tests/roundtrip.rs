//! Dumped and restored: the target holds what the source holds.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests are tests"
)]

mod common;

use pgkeep_base::{Classified, RetryClass};
use pgkeep_dump::{DumpError, DumpOptions};
use pgkeep_testkit::compare::{Inventory, InventoryOptions, assert_same, assert_same_servers};
use pgkeep_testkit::fixtures::{DATABASES, Events, GameData};
use pgkeep_testkit::{Cluster, ClusterOptions, require, requirements};

async fn there_and_back(source: &Cluster, destination: &Cluster, encrypted: bool) {
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), encrypted).await;
    let report = common::dump(&repository, source, &common::dump_options(source))
        .await
        .unwrap();
    assert!(report.attention.is_empty(), "{:?}", report.attention);
    let options = common::restore_options(destination);
    let restored = common::restore(&repository, &report.id, destination, &options)
        .await
        .unwrap();
    assert!(
        restored
            .databases
            .iter()
            .all(|database| database.counted > 0 || database.name == "postgres")
    );
    let rows: u64 = restored.databases.iter().map(|database| database.rows).sum();
    assert_eq!(rows, report.manifest.totals.rows);
    let same_version = source.major() == destination.major();
    let compared = InventoryOptions {
        pg_bin: Some(destination.pg_bin().to_path_buf()),
        without_schema: !same_version,
        ..InventoryOptions::default()
    };
    if same_version {
        assert_same_servers(source, destination, &DATABASES, &compared);
        return;
    }
    // Memberships have more options in later versions; the databases must be equal all the same.
    for database in DATABASES {
        let inventory = |cluster| Inventory::of_database(cluster, database, &compared);
        assert_same(&inventory(source), &inventory(destination));
    }
}

async fn plain(from: u32, to: u32) {
    let Some((source, destination)) = servers(ClusterOptions::new(from), ClusterOptions::new(to)) else {
        return;
    };
    GameData::new(Events::Partitions).load(&source);
    there_and_back(&source, &destination, true).await;
}

async fn timescaledb(major: u32) {
    let options = || ClusterOptions::new(major).timescaledb();
    let Some((source, destination)) = servers(options(), options()) else {
        return;
    };
    GameData::new(Events::Hypertables).load(&source);
    there_and_back(&source, &destination, false).await;
}

fn servers(from: ClusterOptions, to: ClusterOptions) -> Option<(Cluster, Cluster)> {
    match (Cluster::start(from), Cluster::start(to)) {
        (Ok(source), Ok(destination)) => Some((source, destination)),
        (Err(missing), _) | (_, Err(missing)) => {
            pgkeep_testkit::skip(&missing);
            None
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_15() {
    plain(15, 15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_16() {
    plain(16, 16).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_17() {
    plain(17, 17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_18() {
    plain(18, 18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_15_to_18() {
    plain(15, 18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn timescaledb_on_16() {
    timescaledb(16).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn timescaledb_on_17() {
    timescaledb(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn timescaledb_on_18() {
    timescaledb(18).await;
}

/// Compressed and partly compressed chunks, continuous aggregates, policies and jobs.
#[tokio::test(flavor = "multi_thread")]
async fn timescaledb_community() {
    for server in require!(requirements::community(None)) {
        println!("{}", server.bin.display());
        let start = || Cluster::start_with(&server.bin, &ClusterOptions::new(server.major).timescaledb());
        let (source, destination) = (start(), start());
        GameData::new(Events::Community).load(&source);
        there_and_back(&source, &destination, true).await;
    }
}

/// What an interrupted DROP DATABASE leaves, and what takes no connections: named, with the mend, and in nobody's way.
#[tokio::test(flavor = "multi_thread")]
async fn databases_that_cannot_be_read_are_named() {
    let source = Cluster::start(ClusterOptions::default()).unwrap();
    for name in ["app", "half dropped", "closed"] {
        source.create_database(name);
    }
    source.psql("app", "CREATE TABLE t AS SELECT 1 AS n");
    // As DROP DATABASE marks it before it removes the files.
    source.psql(
        "postgres",
        "UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'half dropped';
         ALTER DATABASE closed ALLOW_CONNECTIONS false;",
    );
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), true).await;
    let report = common::dump(&repository, &source, &common::dump_options(&source))
        .await
        .unwrap();
    let dumped: Vec<&str> = report
        .manifest
        .databases
        .iter()
        .map(|database| database.name.as_str())
        .collect();
    assert_eq!(dumped, ["postgres", "app"]);
    assert_eq!(report.attention.len(), 2, "{:?}", report.attention);
    for (line, mend) in report.attention.iter().zip([
        "ALTER DATABASE \"closed\" ALLOW_CONNECTIONS true",
        "DROP DATABASE \"half dropped\"",
    ]) {
        assert!(
            line.starts_with("not in the dump: database '") && line.ends_with(mend),
            "{line}"
        );
    }

    let named = |name: &str| DumpOptions {
        databases: vec!["app".to_owned(), name.to_owned()],
        ..common::dump_options(&source)
    };
    for (name, mend) in [("half dropped", "DROP DATABASE"), ("closed", "ALTER DATABASE")] {
        let error = common::dump(&repository, &source, &named(name))
            .await
            .unwrap_err();
        let (text, hint) = (error.to_string(), error.hint().unwrap().to_string());
        assert!(
            text.contains(&format!("'{name}'")) && hint.contains(mend),
            "{text}: {hint}"
        );
    }
    // The mends are right.
    source.psql("postgres", "ALTER DATABASE \"closed\" ALLOW_CONNECTIONS true");
    source.psql("postgres", "DROP DATABASE \"half dropped\"");
    let report = common::dump(&repository, &source, &common::dump_options(&source))
        .await
        .unwrap();
    assert!(report.attention.is_empty(), "{:?}", report.attention);
    assert_eq!(report.manifest.databases.len(), 3);
}

/// It goes into every new database, and into none that is restored.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_put_into_template1_is_named() {
    let source = Cluster::start(ClusterOptions::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), true).await;
    let options = common::dump_options(&source);
    let report = common::dump(&repository, &source, &options).await.unwrap();
    assert!(report.attention.is_empty(), "{:?}", report.attention);
    source.psql("template1", "CREATE TABLE of_every_database ()");
    let report = common::dump(&repository, &source, &options).await.unwrap();
    let [line] = report.attention.as_slice() else {
        panic!("{:?}", report.attention)
    };
    assert!(line.contains("template1 (1 tables"), "{line}");
    assert!(line.contains("pg_dump --dbname=template1"), "{line}");
}

/// A database whose restore goes on, or stopped, is in nobody's way unless it is asked for by its name.
#[tokio::test(flavor = "multi_thread")]
async fn a_half_restored_database_is_left_out_and_named() {
    let source = Cluster::start(ClusterOptions::default()).unwrap();
    for name in ["app", "half", "zoo"] {
        source.create_database(name);
        source.psql(name, "CREATE TABLE t AS SELECT 1 AS n");
    }
    source.psql("half", common::HALF_RESTORED);
    // As a restore that goes on does.
    let mut restoring = source.session("half");
    restoring.run("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE;");
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), true).await;
    let report = common::dump(&repository, &source, &common::dump_options(&source))
        .await
        .unwrap();
    let databases = report.manifest.databases.iter();
    let dumped: Vec<(&str, &str)> = databases
        .map(|database| (database.name.as_str(), database.folder.as_str()))
        .collect();
    assert_eq!(dumped, [("postgres", "d1"), ("app", "d2"), ("zoo", "d3")]);
    assert_eq!(
        report.attention,
        [
            "not in the dump: database 'half', which holds an unfinished restore of dump d20261122T020000Z-7f3a9c; \
          finish it with 'pgkeep restore d20261122T020000Z-7f3a9c --resume ...', or drop it: DROP DATABASE \"half\""
        ]
    );
    assert_eq!(common::whole_dumps(&repository).await, [report.id]);

    let named = |names: &[&str]| DumpOptions {
        databases: names.iter().map(|name| (*name).to_owned()).collect(),
        ..common::dump_options(&source)
    };
    let error = common::dump(&repository, &source, &named(&["app", "half"]))
        .await
        .unwrap_err();
    assert_eq!(error.retry_class(), RetryClass::Refused, "{error}");
    let (text, hint) = (error.to_string(), error.hint().unwrap().to_string());
    assert!(
        text.contains("'half' holds an unfinished restore") && hint.contains("--resume"),
        "{text}: {hint}"
    );
    assert_eq!(common::whole_dumps(&repository).await.len(), 1);
    common::dump(&repository, &source, &named(&["app", "zoo"]))
        .await
        .unwrap();

    // Of nothing but such databases there is no dump.
    for name in ["postgres", "app", "zoo"] {
        source.psql(name, common::HALF_RESTORED);
    }
    let error = common::dump(&repository, &source, &common::dump_options(&source))
        .await
        .unwrap_err();
    assert!(matches!(error, DumpError::HalfRestored { .. }), "{error}");
}
