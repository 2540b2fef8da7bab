//! What `pgkeep export` writes.

use std::path::Path;

use pgkeep_dump::manifest::RowFormat;
use pgkeep_dump::{DumpError, ExportFormat};
use pgkeep_testkit::compare::{Inventory, InventoryOptions, assert_same, assert_same_servers};
use pgkeep_testkit::fixtures::{DATABASES, Events, GameData};
use pgkeep_testkit::{Cluster, ClusterOptions, require};

use crate::carried::{Carried, DASH, assert_restores, export, export_options};
use crate::{common, start};

/// Of databases.
const NAMES: [&str; 3] = ["back\\slash\\n", "double\"quote", "$HOME *?[a] `x` %s"];

/// The files' names that end so.
fn ending_in(folder: &Path, end: &str) -> usize {
    let mut found = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found += ending_in(&path, end);
        } else if path.to_string_lossy().ends_with(end) {
            found += 1;
        }
    }
    found
}

/// Chunks in the binary format, large objects, names of every kind: loaded by psql and pg_restore, with neither zstd nor
/// age nor b3sum.
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_restored_by_its_script() {
    let options = || ClusterOptions::default().timescaledb();
    let source = require!(Cluster::start(options()));
    let destination = require!(Cluster::start(options()));
    GameData::new(Events::Hypertables).load(&source);
    for name in NAMES {
        source.create_database(name);
        source.psql(
            name,
            "CREATE TABLE \"odd \t \\\\ table\" AS SELECT 1 AS \"n\"\"\"; SELECT lo_from_bytea(7, 'large object') \\g /dev/null",
        );
    }
    let carried = Carried::exported(&source, true, &common::dump_options(&source)).await;
    assert!(ending_in(&carried.folder(), ".copy") > 10, "no chunks are binary");
    for sealed in [".zst", ".age", ".partial"] {
        assert_eq!(ending_in(&carried.folder(), sealed), 0, "{sealed}");
    }
    let readme = std::fs::read_to_string(carried.folder().join("RESTORE.md")).unwrap();
    assert!(
        !readme.contains("{{") && readme.contains("Run `sh restore.sh -j 4`"),
        "{readme}"
    );
    require!(assert_restores(&carried, &destination, &DASH));
    assert_same_servers(&source, &destination, &DATABASES, &InventoryOptions::default());
    for name in NAMES {
        let inventory = |cluster| Inventory::of_database(cluster, name, &InventoryOptions::default());
        assert_same(&inventory(&source), &inventory(&destination));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_is_interrupted_or_fails_leaves_nothing() {
    let source = require!(Cluster::start(ClusterOptions::default()));
    source.create_database("app");
    source.psql("app", common::SMALL_SCHEMA);
    let stored = tempfile::tempdir().unwrap();
    let repository = common::repository(stored.path(), false).await;
    let mut options = common::dump_options(&source);
    options.databases = vec!["app".to_owned()];
    let report = common::dump(&repository, &source, &options).await.unwrap();
    let rows = stored
        .path()
        .join(format!("test/dump/{}/d1/000001.sql.zst", report.id));
    let whole = std::fs::read(&rows).unwrap();
    let place = tempfile::tempdir().unwrap();
    let left = || common::names_in(place.path());
    for (format, name) in [
        (ExportFormat::Files, "folder"),
        (ExportFormat::Plain, "all.sql.zst"),
    ] {
        let options = export_options(&source, format, &place.path().join(name));
        let before = left();
        let begun = common::until(|| left().iter().any(|name| name.ends_with(".partial")));
        let interrupted = export(&repository, &report, &options, begun).await.unwrap_err();
        assert!(matches!(interrupted, DumpError::Interrupted), "{interrupted}");
        assert_eq!(left(), before);

        std::fs::write(&rows, &whole[..whole.len() - 1]).unwrap();
        let never = std::future::pending();
        let failed = export(&repository, &report, &options, never).await.unwrap_err();
        assert!(failed.to_string().contains("000001.sql"), "{failed}");
        assert_eq!(left(), before);

        std::fs::write(&rows, &whole).unwrap();
        let never = std::future::pending();
        export(&repository, &report, &options, never).await.unwrap();
        assert!(place.path().join(name).exists());
    }
    assert_eq!(left(), ["all.sql.zst", "folder"]);
}

/// Every chunk and every large table is binary, and those without rows are in no script's way.
#[tokio::test(flavor = "multi_thread")]
async fn a_script_is_refused_for_binary_rows_and_not_for_tables_without_any() {
    let (source, destination) = require!(start());
    source.create_database("app");
    source.psql(
        "app",
        "CREATE TABLE emptied (n int, filler text) WITH (autovacuum_enabled = off);
         INSERT INTO emptied SELECT n, repeat('x', 1000) FROM generate_series(1, 10000) n;
         DELETE FROM emptied; CREATE TABLE small AS SELECT 1 AS n;",
    );
    let stored = tempfile::tempdir().unwrap();
    let repository = common::repository(stored.path(), false).await;
    let mut options = common::dump_options(&source);
    options.databases = vec!["app".to_owned()];
    let report = common::dump(&repository, &source, &options).await.unwrap();
    let mut relations = report.manifest.databases[0].relations.iter();
    assert!(relations.any(|relation| relation.format == RowFormat::Binary && relation.rows == 0));
    let script = stored.path().join("script.sql");
    let exporting = export_options(&source, ExportFormat::Plain, &script);
    let never = std::future::pending();
    export(&repository, &report, &exporting, never).await.unwrap();
    let mut psql = destination.client_command("psql");
    // The superuser, whom the script makes too, exists already.
    let loaded = psql
        .args(["-X", "-q", "-d", "postgres", "-f"])
        .arg(&script)
        .output();
    assert!(loaded.unwrap().status.success());
    let inventory = |cluster| Inventory::of_database(cluster, "app", &InventoryOptions::default());
    assert_same(&inventory(&source), &inventory(&destination));

    source.psql("app", "INSERT INTO emptied VALUES (1, 'a row')");
    let report = common::dump(&repository, &source, &options).await.unwrap();
    let exporting = export_options(&source, ExportFormat::Plain, &stored.path().join("refused.sql"));
    let never = std::future::pending();
    let refused = export(&repository, &report, &exporting, never).await.unwrap_err();
    assert!(matches!(refused, DumpError::Usage { .. }), "{refused}");
    let named = "rows of public.emptied in database 'app'";
    assert!(refused.to_string().contains(named), "{refused}");
    assert!(!stored.path().join("refused.sql.partial").exists());
}
