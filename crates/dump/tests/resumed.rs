//! Restores of several databases that are gone on with.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use pgkeep_base::{BackupId, Classified};
use pgkeep_dump::restore::RestoreOptions;
use pgkeep_repository::Repository;
use pgkeep_testkit::{Cluster, ClusterOptions, Missing, require};

/// Only refreshed where the role is there: without it a restore stops near its end.
const BLESSED: &str = "
    CREATE ROLE blessing;
    CREATE FUNCTION blessed() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
      PERFORM 'blessing'::regrole; RETURN true; END $$;
    CREATE MATERIALIZED VIEW blessed AS SELECT blessed();
    DROP ROLE blessing";
const MARKS: &str = "SELECT count(*) FROM pg_namespace WHERE nspname = 'pgkeep_restore'";

struct Scene {
    source: Cluster,
    destination: Cluster,
    repository: Repository,
    id: BackupId,
    options: RestoreOptions,
    _folder: tempfile::TempDir,
}

/// Three databases, of which `b` can't be restored yet; `part` has only a part of its tables in the dump.
async fn scene() -> Result<Scene, Missing> {
    let source = Cluster::start(ClusterOptions::default())?;
    let destination = Cluster::start(ClusterOptions::default())?;
    for name in ["a", "b", "c d"] {
        source.create_database(name);
        source.psql(
            name,
            "CREATE TABLE t (n int PRIMARY KEY); INSERT INTO t VALUES (1)",
        );
    }
    source.psql("b", BLESSED);
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), false).await;
    let mut dumping = common::dump_options(&source);
    dumping.databases = ["a", "b", "c d"].map(str::to_owned).to_vec();
    let id = common::dump(&repository, &source, &dumping).await.unwrap().id;
    let options = common::restore_options(&destination);
    Ok(Scene {
        source,
        destination,
        repository,
        id,
        options,
        _folder: folder,
    })
}

impl Scene {
    async fn refused(&self) -> (String, String) {
        let error = common::restore(&self.repository, &self.id, &self.destination, &self.options)
            .await
            .unwrap_err();
        let hint = error.hint().map(|hint| hint.to_string()).unwrap_or_default();
        (error.to_string(), hint)
    }

    /// What the restore leaves as it is.
    async fn restored(&self) -> Vec<String> {
        let report = common::restore(&self.repository, &self.id, &self.destination, &self.options)
            .await
            .unwrap();
        for name in ["a", "b", "c d"] {
            assert_eq!(self.destination.psql(name, MARKS), "0", "{name}");
        }
        assert_eq!(self.destination.psql("b", "SELECT blessed FROM blessed"), "t");
        assert_eq!(self.destination.psql("c d", "SELECT count(*) FROM t"), "1");
        report.notes
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_attempt_completed_is_left_as_it_is() {
    let mut scene = require!(scene().await);
    let (text, hint) = scene.refused().await;
    assert!(
        text.contains("'b' stopped half-way") && hint.contains("--resume"),
        "{text}: {hint}"
    );
    assert_eq!(scene.destination.psql("a", MARKS), "1");
    // It lives on already.
    scene.destination.psql("a", "INSERT INTO t VALUES (2)");

    let (text, hint) = scene.refused().await;
    assert!(text.contains("'a' belongs to an unfinished restore"), "{text}");
    assert!(hint.contains("--resume"), "{hint}");
    let mut dumping = common::dump_options(&scene.destination);
    dumping.databases = vec!["a".to_owned()];
    let other = common::repository(scene._folder.path().join("other").as_path(), false).await;
    let error = common::dump(&other, &scene.destination, &dumping)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("'a' belongs to an unfinished restore"),
        "{error}"
    );
    let hint = error.hint().unwrap().to_string();
    assert!(
        hint.contains("--resume") && !hint.contains("DROP DATABASE"),
        "{hint}"
    );

    scene.options.resume = true;
    let plan = common::check(&scene.repository, &scene.id, &scene.destination, &scene.options)
        .await
        .unwrap();
    let does: Vec<&str> = plan
        .databases
        .iter()
        .map(|database| database.does.as_str())
        .collect();
    assert_eq!(
        does,
        ["is complete, and left as it is", "is gone on with", "is made"]
    );
    scene.destination.psql("postgres", "CREATE ROLE blessing");
    let notes = scene.restored().await;
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].contains("'a' is left as it is"), "{notes:?}");
    assert_eq!(scene.destination.psql("a", "SELECT count(*) FROM t"), "2");

    // All is complete: nothing is to be gone on with.
    let (text, hint) = scene.refused().await;
    assert!(text.contains("'a' is there already"), "{text}");
    assert!(
        hint.contains("--resume --database b --database 'c d' ..."),
        "{hint}"
    );
    drop(scene.source);
}

/// Killed while the marks are taken away, one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_was_killed_at_its_very_end_is_complete() {
    let mut scene = require!(scene().await);
    scene.destination.psql("postgres", "CREATE ROLE blessing");
    scene.restored().await;
    scene.destination.psql("a", "INSERT INTO t VALUES (2)");
    let mark = format!(
        "{}; UPDATE pgkeep_restore.restore SET dump = '{}', database = current_database();
         INSERT INTO pgkeep_restore.step VALUES ('pre-data'), ('complete')",
        common::HALF_RESTORED,
        scene.id
    );
    scene.destination.psql("c d", &mark);
    scene.options.resume = true;
    let (text, _) = scene.refused().await;
    assert!(text.contains("'a' is there already"), "{text}");
    scene.destination.psql(
        "c d",
        "CREATE TABLE pgkeep_restore.completed (database text, target text);
         INSERT INTO pgkeep_restore.completed VALUES ('a', 'a'), ('b', 'b'), ('c d', 'c d')",
    );
    assert_eq!(scene.restored().await.len(), 3);
    assert_eq!(scene.destination.psql("a", "SELECT count(*) FROM t"), "2");
}

/// What an earlier version left: the finished database has no mark.
#[tokio::test(flavor = "multi_thread")]
async fn the_hint_names_what_is_gone_on_with() {
    let mut scene = require!(scene().await);
    scene.refused().await;
    scene.destination.psql("a", "DROP SCHEMA pgkeep_restore CASCADE");
    scene.destination.psql("postgres", "CREATE ROLE blessing");
    scene.options.resume = true;
    let (text, hint) = scene.refused().await;
    assert!(text.contains("'a' is there already"), "{text}");
    assert!(
        hint.contains(&format!(
            "pgkeep restore {} --resume --database b --database 'c d' ...",
            scene.id
        )),
        "{hint}"
    );
    scene.options.databases = vec!["b".to_owned(), "c d".to_owned()];
    assert_eq!(scene.restored().await.len(), 0);
}

/// Of a dump of some tables only.
#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_is_complete_is_left_as_it_is_too() {
    let mut scene = require!(scene().await);
    let mut dumping = common::dump_options(&scene.source);
    dumping.databases = ["a", "b", "c d"].map(str::to_owned).to_vec();
    dumping.filters.tables = vec!["t".to_owned()];
    scene.id = common::dump(&scene.repository, &scene.source, &dumping)
        .await
        .unwrap()
        .id;
    // In the second one, the key has its name taken.
    scene.destination.create_database("b");
    scene.destination.psql("b", "CREATE TABLE t_pkey ()");
    let (text, _) = scene.refused().await;
    assert!(
        text.contains("stopped half-way") && text.contains("'b'"),
        "{text}"
    );
    assert_eq!(scene.destination.psql("a", MARKS), "1");
    scene.destination.psql("b", "DROP TABLE t_pkey");
    scene.options.resume = true;
    let report = common::restore(&scene.repository, &scene.id, &scene.destination, &scene.options)
        .await
        .unwrap();
    assert_eq!(report.notes.len(), 1, "{:?}", report.notes);
    for name in ["a", "b", "c d"] {
        assert_eq!(scene.destination.psql(name, MARKS), "0", "{name}");
        assert_eq!(scene.destination.psql(name, "SELECT count(*) FROM t"), "1");
    }
}
