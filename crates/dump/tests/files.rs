//! Dumps in PostgreSQL's own formats restore with PostgreSQL's own tools.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests are tests"
)]

mod common;

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use pgkeep_base::Classified;
use pgkeep_dump::manifest::Filters;
use pgkeep_dump::{DumpError, FileFormat, FileOptions, FileReport, Progress};
use pgkeep_pg::programs::ProgramSearch;
use pgkeep_repository::encryption::Encryption;
use pgkeep_store::StoreOptions;
use pgkeep_testkit::compare::{Inventory, InventoryOptions, assert_same};
use pgkeep_testkit::fixtures::{Events, GameData};
use pgkeep_testkit::{Cluster, ClusterOptions, require, requirements};

fn options(cluster: &Cluster, format: FileFormat, output: &std::path::Path) -> FileOptions {
    FileOptions {
        format,
        output: output.display().to_string(),
        databases: Vec::new(),
        filters: Filters::default(),
        jobs: 2,
        lock_timeout: Duration::from_secs(60),
        encryption: Encryption::None,
        store: StoreOptions::default(),
        programs: ProgramSearch::only(cluster.pg_bin()),
    }
}

async fn write(cluster: &Cluster, options: &FileOptions) -> Result<FileReport, DumpError> {
    write_until(cluster, options, std::future::pending()).await
}

async fn write_until(
    cluster: &Cluster,
    options: &FileOptions,
    cancelled: impl Future<Output = ()>,
) -> Result<FileReport, DumpError> {
    let target = common::target(cluster, "postgres");
    pgkeep_dump::write_files(&target, options, &Arc::new(Progress::default()), cancelled).await
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn assert_same_database(first: &Cluster, second: &Cluster, database: &str) {
    let take = |cluster| Inventory::of_database(cluster, database, &InventoryOptions::default());
    assert_same(&take(first), &take(second));
}

/// The whole cluster in one script, through psql into an empty server.
async fn whole_cluster(source: &Cluster, destination: &Cluster, name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(name);
    let report = write(source, &options(source, FileFormat::Plain, &file))
        .await
        .unwrap();
    assert!(report.bytes > 10_000 && report.attention.is_empty(), "{report:?}");
    let tool = if name.ends_with(".gz") { "gzip" } else { "zstd" };
    let tool = requirements::tool(tool).unwrap_or_else(|_| tool.into());
    let script = folder.path().join("script.sql");
    let plain = Command::new(tool).arg("-dc").arg(&file).output().unwrap();
    assert!(plain.status.success());
    std::fs::write(&script, plain.stdout).unwrap();
    // The superuser exists already; everything else must go through.
    let mut psql = destination.client_command("psql");
    let output = psql
        .args(["-X", "-q", "-d", "postgres", "-f"])
        .arg(&script)
        .output()
        .unwrap();
    let errors: Vec<String> = String::from_utf8_lossy(&output.stderr)
        .lines()
        .filter(|line| line.contains("ERROR") && !line.contains("role \"postgres\" already exists"))
        .map(str::to_owned)
        .collect();
    assert!(errors.is_empty(), "{errors:#?}");
    for database in ["app", "dagster"] {
        assert_same_database(source, destination, database);
    }
    let exists = write(source, &options(source, FileFormat::Plain, &file))
        .await
        .unwrap_err();
    assert!(matches!(exists, DumpError::Refused { .. }), "{exists}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_dump_of_the_cluster_goes_through_psql() {
    let source = require!(Cluster::start(ClusterOptions::new(16)));
    let destination = require!(Cluster::start(ClusterOptions::new(16)));
    GameData::new(Events::Partitions).load(&source);
    whole_cluster(&source, &destination, "all.sql.gz").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_dump_with_timescaledb_goes_through_psql() {
    let source = require!(Cluster::start(ClusterOptions::new(17).timescaledb()));
    let destination = require!(Cluster::start(ClusterOptions::new(17).timescaledb()));
    GameData::new(Events::Hypertables).load(&source);
    whole_cluster(&source, &destination, "all.sql.zst").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_and_directory_dumps_go_through_pg_restore() {
    let source = require!(Cluster::start(ClusterOptions::new(16)));
    GameData::new(Events::Partitions).load(&source);
    let folder = tempfile::tempdir().unwrap();
    for (format, name) in [
        (FileFormat::Custom, "dagster.dump"),
        (FileFormat::Directory, "dagster.dir"),
    ] {
        let output = folder.path().join(name);
        let mut options = options(&source, format, &output);
        let several = write(&source, &options).await.unwrap_err();
        assert!(matches!(several, DumpError::Usage { .. }), "{several}");
        options.databases = vec!["dagster".to_owned()];
        write(&source, &options).await.unwrap();
        let copy = format!("copy_{}", name.replace('.', "_"));
        source.create_database(&copy);
        run(source
            .client_command("pg_restore")
            .args(["--exit-on-error", "-d", &copy])
            .arg(&output));
        let count = "SELECT sum((xpath('/row/c/text()', query_to_xml(format('select count(*) as c from %s', oid::regclass), \
            false, true, '')))[1]::text::bigint) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace";
        assert_eq!(source.psql(&copy, count), source.psql("dagster", count));
    }
}

/// No file, no directory, and no half of one; so the next one can be written.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_interrupted_or_fails_leaves_nothing() {
    let source = require!(Cluster::start(ClusterOptions::new(16)));
    source.create_database("app");
    source.psql("app", "CREATE TABLE held AS SELECT 1 AS n");
    let folder = tempfile::tempdir().unwrap();
    for format in [FileFormat::Plain, FileFormat::Custom, FileFormat::Directory] {
        let mut holder = source.session("app");
        holder.run("BEGIN; LOCK TABLE held;");
        let mut options = options(&source, format, &folder.path().join("out"));
        options.databases = vec!["app".to_owned()];
        // It waits for its locks then.
        let begun = common::until(|| common::names_in(folder.path()) == ["out.partial"]);
        let interrupted = write_until(&source, &options, begun).await.unwrap_err();
        assert!(matches!(interrupted, DumpError::Interrupted), "{interrupted}");
        assert!(common::names_in(folder.path()).is_empty(), "{format:?}");

        options.lock_timeout = Duration::from_millis(100);
        let failed = write(&source, &options).await.unwrap_err();
        assert!(matches!(failed, DumpError::LockTimeout { .. }), "{failed}");
        assert!(common::names_in(folder.path()).is_empty(), "{format:?}");

        drop(holder);
        options.lock_timeout = Duration::from_secs(60);
        write(&source, &options).await.unwrap();
        assert_eq!(common::names_in(folder.path()), ["out"]);
        if format == FileFormat::Directory {
            std::fs::remove_dir_all(folder.path().join("out")).unwrap();
        } else {
            std::fs::remove_file(folder.path().join("out")).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_restored_database_is_left_out_of_a_script_and_named() {
    let source = Cluster::start(ClusterOptions::default()).unwrap();
    for name in ["app", "half"] {
        source.create_database(name);
    }
    source.psql("half", common::HALF_RESTORED);
    let folder = tempfile::tempdir().unwrap();
    let all = options(&source, FileFormat::Plain, &folder.path().join("all.sql"));
    let report = write(&source, &all).await.unwrap();
    assert_eq!(report.databases, ["postgres", "app"]);
    assert!(
        report.attention[0].starts_with("not in the dump: database 'half', which"),
        "{:?}",
        report.attention
    );
    let script = std::fs::read_to_string(folder.path().join("all.sql")).unwrap();
    assert!(script.contains("CREATE DATABASE \"app\"") && !script.contains("CREATE DATABASE \"half\""));
    let mut one = options(&source, FileFormat::Plain, &folder.path().join("half.sql"));
    one.databases = vec!["half".to_owned()];
    let error = write(&source, &one).await.unwrap_err();
    assert!(matches!(error, DumpError::HalfRestored { .. }), "{error}");
    assert!(!folder.path().join("half.sql").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_without_one_of_the_hypertables_is_refused() {
    let source = require!(Cluster::start(ClusterOptions::new(17).timescaledb()));
    source.create_database("app");
    source.psql(
        "app",
        "SET client_min_messages = error; CREATE EXTENSION timescaledb; CREATE TABLE plain AS SELECT 1 AS n;
         CREATE TABLE events (at timestamptz NOT NULL); SELECT create_hypertable('events', 'at');
         INSERT INTO events SELECT '2026-11-01'::timestamptz + n * interval '5 days' FROM generate_series(1, 5) n",
    );
    let folder = tempfile::tempdir().unwrap();
    for format in [FileFormat::Plain, FileFormat::Custom, FileFormat::Directory] {
        let mut options = options(&source, format, &folder.path().join("out"));
        options.databases = vec!["app".to_owned()];
        options.filters.exclude_tables = vec!["events".to_owned()];
        let error = write(&source, &options).await.unwrap_err();
        assert!(matches!(error, DumpError::Usage { .. }), "{error}");
        assert!(
            error.to_string().contains("public.events is a hypertable"),
            "{error}"
        );
        assert!(common::names_in(folder.path()).is_empty(), "{format:?}");
    }
    let mut options = options(&source, FileFormat::Custom, &folder.path().join("out"));
    options.databases = vec!["app".to_owned()];
    options.filters.exclude_tables = vec!["_timescaledb_internal._hyper_*".to_owned()];
    let error = write(&source, &options).await.unwrap_err();
    let part = "is a part of hypertable public.events";
    assert!(error.to_string().contains(part), "{error}");
    // pg_dump finds none of the chunks by these.
    options.filters.exclude_tables = vec!["plain".to_owned(), "_hyper_*".to_owned()];
    write(&source, &options).await.unwrap();
    source.create_database("again");
    source.psql(
        "again",
        "CREATE EXTENSION timescaledb; SELECT timescaledb_pre_restore()",
    );
    run(source
        .client_command("pg_restore")
        .args(["--dbname", "again", &options.output]));
    source.psql("again", "SELECT timescaledb_post_restore()");
    assert_eq!(source.psql("again", "SELECT count(*) FROM events").trim(), "5");
}

/// What pg_dump says of it doesn't say how to write it.
#[tokio::test(flavor = "multi_thread")]
async fn a_pattern_of_what_to_dump_that_fits_nothing_is_told_with_the_mend() {
    let source = require!(Cluster::start(ClusterOptions::default()));
    source.create_database("app");
    source.psql(
        "app",
        "CREATE TABLE \"Upper Case\" AS SELECT 1 AS n; CREATE VIEW \"Seen\" AS SELECT 1 AS n; CREATE SCHEMA \"Empty\"",
    );
    let folder = tempfile::tempdir().unwrap();
    let filters = |tables: &[&str], schemas: &[&str]| Filters {
        tables: tables.iter().map(ToString::to_string).collect(),
        schemas: schemas.iter().map(ToString::to_string).collect(),
        ..Filters::default()
    };
    for format in [FileFormat::Plain, FileFormat::Custom, FileFormat::Directory] {
        let mut options = options(&source, format, &folder.path().join("out"));
        options.databases = vec!["app".to_owned()];
        for (asked, what, mend) in [
            (
                filters(&["Upper Case"], &[]),
                "no table",
                "write '\"Upper Case\"'",
            ),
            (filters(&["nix"], &[]), "no table", "--table 'schema.name*'"),
            (filters(&[], &["Empty"]), "no schema", "write '\"Empty\"'"),
        ] {
            options.filters = asked;
            let error = write(&source, &options).await.unwrap_err();
            let hint = error.hint().unwrap();
            assert_eq!(
                error.to_string(),
                format!("{what} of database 'app' fits what was asked for")
            );
            assert!(hint.as_str().contains(mend), "{hint}");
            assert!(common::names_in(folder.path()).is_empty(), "{format:?}");
        }
        // A view is no table with rows, and is dumped; a pattern that fits nothing beside one that does is pg_dump's affair.
        options.filters = filters(&["nix", "\"Seen\""], &[]);
        write(&source, &options).await.unwrap();
        options.filters = filters(&[], &["\"Empty\""]);
        options.output = folder.path().join("empty").display().to_string();
        write(&source, &options).await.unwrap();
        for name in common::names_in(folder.path()) {
            let path = folder.path().join(name);
            std::fs::remove_file(&path)
                .or_else(|_| std::fs::remove_dir_all(&path))
                .unwrap();
        }
    }
}
