//! Databases that are replaced: that of the connection among them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use pgkeep_base::BackupId;
use pgkeep_dump::{DumpError, restore::RestoreReport};
use pgkeep_repository::Repository;
use pgkeep_testkit::{Cluster, ClusterOptions, Missing, require};

/// A killed restore leaves what is there at that moment.
const WATCH: &str = "DO $$ BEGIN
      FOR i IN 1 .. 100000000 LOOP
        IF NOT EXISTS (SELECT FROM pg_database WHERE datname = 'postgres') THEN RAISE EXCEPTION 'no database postgres'; END IF;
        IF EXISTS (SELECT FROM pg_database WHERE datname = 'done') THEN EXIT; END IF;
        IF clock_timestamp() > now() + interval '2 minutes' THEN RAISE EXCEPTION 'it takes too long'; END IF;
      END LOOP; END $$";

/// A dump of a database `postgres` with a table.
async fn dumped() -> Result<(tempfile::TempDir, Repository, BackupId), Missing> {
    let source = Cluster::start(ClusterOptions::default())?;
    source.psql("postgres", "CREATE TABLE t AS SELECT 1 AS n");
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), false).await;
    let report = common::dump(&repository, &source, &common::dump_options(&source))
        .await
        .unwrap();
    Ok((folder, repository, report.id))
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_a_database_postgres_at_every_moment() {
    let (_folder, repository, id) = require!(dumped().await);
    let destination = require!(Cluster::start(ClusterOptions::default()));
    destination.psql("postgres", "CREATE TABLE other AS SELECT 1 AS n");
    let mut options = common::restore_options(&destination);
    options.overwrite = true;
    // Somebody is at work there.
    let mut lingering = destination.session("postgres");
    lingering.run("SELECT count(*) FROM other;");
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| destination.try_psql("template1", WATCH));
        let runtime = tokio::runtime::Handle::current();
        let restored = tokio::task::block_in_place(|| {
            runtime.block_on(common::restore(&repository, &id, &destination, &options))
        });
        restored.unwrap();
        destination.psql("template1", "CREATE DATABASE done TEMPLATE template0");
        watching.join().unwrap().unwrap();
    });
    assert_eq!(destination.psql("postgres", "SELECT count(*) FROM t"), "1");
    let left = "SELECT string_agg(datname, ',' ORDER BY datname), (SELECT count(*) FROM pg_namespace WHERE nspname = 'pgkeep_restore')
        FROM pg_database";
    assert_eq!(
        destination.psql("postgres", left),
        "done,postgres,template0,template1|0"
    );
}

/// What an earlier version left when it was killed between DROP and CREATE.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_database_postgres_is_restored_into() {
    let (_folder, repository, id) = require!(dumped().await);
    let destination = require!(Cluster::start(ClusterOptions::default()));
    for resume in [false, true] {
        destination.psql("template1", "DROP DATABASE postgres");
        let mut options = common::restore_options(&destination);
        options.resume = resume;
        let report: Result<RestoreReport, DumpError> =
            common::restore(&repository, &id, &destination, &options).await;
        let report = report.unwrap();
        assert_eq!(destination.psql("postgres", "SELECT count(*) FROM t"), "1");
        // One that goes on may have to replace it, and so doesn't connect to it in any case.
        let told = report
            .notes
            .iter()
            .any(|note| note.contains("no database 'postgres'"));
        assert_eq!(told, !resume, "{:?}", report.notes);
    }
}

/// It is one of those that the restore goes on with, and may have to be replaced.
#[tokio::test(flavor = "multi_thread")]
async fn the_mere_beginning_of_a_restore_into_the_connections_database_is_replaced() {
    let (_folder, repository, id) = require!(dumped().await);
    let destination = require!(Cluster::start(ClusterOptions::default()));
    destination.psql(
        "postgres",
        &format!(
            "{}; UPDATE pgkeep_restore.restore SET dump = '{id}', database = 'postgres'; CREATE TABLE half ()",
            common::HALF_RESTORED
        ),
    );
    let mut options = common::restore_options(&destination);
    options.resume = true;
    common::restore(&repository, &id, &destination, &options)
        .await
        .unwrap();
    assert_eq!(
        destination.psql("postgres", "SELECT count(*), to_regclass('half') IS NULL FROM t"),
        "1|t"
    );
}
