//! Client programs may be newer than the server that they dump and restore.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use pgkeep_dump::manifest::Filters;
use pgkeep_dump::{DumpError, ExportFormat, ExportOptions, FileFormat, FileOptions, Progress, read_manifest};
use pgkeep_pg::programs::ProgramSearch;
use pgkeep_repository::encryption::Encryption;
use pgkeep_store::StoreOptions;
use pgkeep_testkit::compare::{InventoryOptions, assert_same_servers};
use pgkeep_testkit::requirements::{self, Missing};
use pgkeep_testkit::{Cluster, ClusterOptions, require};

fn servers(major: u32) -> Result<(Cluster, Cluster), Missing> {
    let start = || Cluster::start(ClusterOptions::new(major));
    Ok((start()?, start()?))
}

async fn there_and_back(server: u32, programs: u32, jobs: usize) {
    let (source, destination) = require!(servers(server));
    let programs = ProgramSearch::only(require!(requirements::postgresql(programs)));
    source.create_database("app");
    source.psql("app", common::SMALL_SCHEMA);
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), false).await;
    let mut options = common::dump_options(&source);
    options.programs = programs.clone();
    let report = common::dump(&repository, &source, &options).await.unwrap();
    let mut options = common::restore_options(&destination);
    options.programs = programs;
    options.jobs = jobs;
    let restored = common::restore(&repository, &report.id, &destination, &options)
        .await
        .unwrap();
    assert!(restored.attention.is_empty(), "{:?}", restored.attention);
    assert_same_servers(&source, &destination, &["app"], &InventoryOptions::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_of_18_with_servers_of_16() {
    there_and_back(16, 18, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_of_17_with_servers_of_15() {
    there_and_back(15, 17, 1).await;
}

/// That the server doesn't know a setting is passed over; whatever else is wrong is not.
#[tokio::test(flavor = "multi_thread")]
async fn another_error_is_an_error_all_the_same() {
    let (source, destination) = require!(servers(16));
    let programs = ProgramSearch::only(require!(requirements::postgresql(18)));
    source.create_database("app");
    source.psql(
        "app",
        "CREATE ROLE owner_of_all; CREATE TABLE t AS SELECT 1 AS i; ALTER TABLE t OWNER TO owner_of_all",
    );
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), false).await;
    let mut options = common::dump_options(&source);
    options.programs = programs.clone();
    let report = common::dump(&repository, &source, &options).await.unwrap();
    let mut options = common::restore_options(&destination);
    options.programs = programs;
    options.roles = false;
    let error = common::restore(&repository, &report.id, &destination, &options)
        .await
        .unwrap_err();
    assert!(matches!(error, DumpError::Unfinished { .. }), "{error}");
    assert!(
        error.to_string().contains("role \"owner_of_all\" does not exist"),
        "{error}"
    );
}

/// Runs a script; the server's errors.
fn errors(cluster: &Cluster, script: &std::path::Path) -> Vec<String> {
    let mut psql = cluster.client_command("psql");
    let output = psql
        .args(["-X", "-q", "-d", "postgres", "-f"])
        .arg(script)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let errors = stderr.lines().filter(|line| line.contains("ERROR"));
    errors
        .filter(|line| !line.contains("role \"postgres\" already exists"))
        .map(str::to_owned)
        .collect()
}

/// Scripts hold nothing that the dumped server doesn't know.
#[tokio::test(flavor = "multi_thread")]
async fn scripts_by_programs_of_18_go_through_a_server_of_16() {
    let (source, destination) = require!(servers(16));
    let programs = ProgramSearch::only(require!(requirements::postgresql(18)));
    source.create_database("app");
    source.psql("app", common::SMALL_SCHEMA);
    let folder = tempfile::tempdir().unwrap();
    let progress = Arc::new(Progress::default());
    let plain = folder.path().join("plain.sql");
    let options = FileOptions {
        format: FileFormat::Plain,
        output: plain.display().to_string(),
        databases: Vec::new(),
        filters: Filters::default(),
        jobs: 1,
        lock_timeout: Duration::from_secs(60),
        encryption: Encryption::None,
        store: StoreOptions::default(),
        programs: programs.clone(),
    };
    let target = common::target(&source, "postgres");
    pgkeep_dump::write_files(&target, &options, &progress, std::future::pending())
        .await
        .unwrap();

    let repository = common::repository(&folder.path().join("repository"), false).await;
    let mut options = common::dump_options(&source);
    options.programs = programs.clone();
    let report = common::dump(&repository, &source, &options).await.unwrap();
    let manifest = read_manifest(&repository, &report.id).await.unwrap();
    let exported = folder.path().join("exported.sql");
    let options = ExportOptions {
        format: ExportFormat::Plain,
        output: exported.display().to_string(),
        databases: Vec::new(),
        encryption: Encryption::None,
        store: StoreOptions::default(),
        programs,
    };
    let (id, forever) = (&report.id, std::future::pending());
    pgkeep_dump::export(&repository, id, &manifest, &options, &progress, forever)
        .await
        .unwrap();

    for script in [plain, exported] {
        assert_eq!(errors(&destination, &script), [""; 0], "{}", script.display());
        assert_same_servers(&source, &destination, &["app"], &InventoryOptions::default());
        destination.psql("postgres", "DROP DATABASE app");
        destination.psql("postgres", "DROP ROLE app_owner");
    }
}
