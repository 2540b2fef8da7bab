//! Faults of the store, of the server, of the disk and of other processes: a dump is whole, or it doesn't exist and the
//! error says why; the next one succeeds.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests are tests"
)]

#[path = "../common/mod.rs"]
mod common;
mod processes;
mod server;
mod several;
mod store;

use std::path::{Path, PathBuf};

use common::{PATIENCE, repository_with_faults};
use pgkeep_base::BackupId;
use pgkeep_dump::restore::RestoreOptions;
use pgkeep_repository::Repository;
use pgkeep_store::fault::FaultPlan;
use pgkeep_testkit::compare::{Inventory, InventoryOptions, assert_same};
use pgkeep_testkit::requirements::Missing;
use pgkeep_testkit::{Cluster, ClusterOptions, poll_until};

const DATABASE: &str = "app";

fn plan(text: &str) -> FaultPlan {
    text.parse().unwrap()
}

/// A server with a database of several objects.
fn source() -> Result<Cluster, Missing> {
    let source = Cluster::start(ClusterOptions::default())?;
    source.create_database(DATABASE);
    source.psql(
        DATABASE,
        "CREATE TABLE large AS SELECT i, md5(i::text) || md5((-i)::text) AS t FROM generate_series(1, 40000) i;
         ALTER TABLE large ADD PRIMARY KEY (i);
         CREATE TABLE small (id serial PRIMARY KEY, i int REFERENCES large, note text);
         INSERT INTO small (i, note) SELECT i, E'tab\\t, line\\n, \\\\' FROM generate_series(1, 2000) i;
         SELECT lo_from_bytea(7, decode(repeat('00ff', 5000), 'hex')) \\g /dev/null",
    );
    Ok(source)
}

/// The same, and an empty one.
fn servers() -> Result<(Cluster, Cluster), Missing> {
    Ok((source()?, Cluster::start(ClusterOptions::default())?))
}

fn compare(source: &Cluster, destination: &Cluster) {
    let inventory =
        |cluster: &Cluster| Inventory::of_database(cluster, DATABASE, &InventoryOptions::default());
    assert_same(&inventory(source), &inventory(destination));
}

fn overwriting(destination: &Cluster) -> RestoreOptions {
    RestoreOptions {
        overwrite: true,
        ..common::restore_options(destination)
    }
}

/// A folder without its manifest holds nothing; one with a tombstone holds nothing else.
fn assert_no_orphans(folder: &Path) {
    for entry in std::fs::read_dir(folder.join("test/dump")).unwrap() {
        let path = entry.unwrap().path();
        let manifest = std::fs::read(path.join("manifest")).unwrap();
        if manifest.first() == Some(&b'{') {
            let found = files(&path);
            assert_eq!(found, [path.join("manifest")], "an orphan's objects stay");
        }
    }
}

/// What failed dumps left goes, where there is no other.
fn remove_dumps(folder: &Path) {
    let dumps = folder.join("test/dump");
    if dumps.exists() {
        std::fs::remove_dir_all(dumps).unwrap();
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

/// Waits until the running dump has stored rows, and returns its id.
fn wait_for_rows(folder: &Path) -> BackupId {
    let mut id = None;
    poll_until("an object with rows", PATIENCE, || {
        let objects = files(&folder.join("test/dump"));
        let mut data = objects.iter().filter(|path| {
            let folder = path.parent().and_then(Path::parent);
            path.to_string_lossy().contains("/d2/0")
                && folder.is_some_and(|folder| !folder.join("manifest").exists())
        });
        id = data
            .next()
            .and_then(|path| path.parent()?.parent()?.file_name()?.to_str()?.parse().ok());
        id.is_some()
    });
    id.unwrap()
}

/// Waits until a restore has made tables.
fn wait_for_tables(destination: &Cluster) {
    let tables = "SELECT count(*) FROM pg_class WHERE relname = 'large'";
    poll_until("restored tables", PATIENCE, || {
        destination
            .try_psql(DATABASE, tables)
            .is_ok_and(|count| count != "0")
    });
}

/// So slow that something can be done to a dump or restore in the middle.
async fn slow(folder: &Path) -> Repository {
    repository_with_faults(folder, plan("stall=1:250ms")).await
}
