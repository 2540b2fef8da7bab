//! Every dump restores without pgkeep: `restore.sh`, with nothing but stock tools in its PATH.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod carried;
#[path = "../common/mod.rs"]
mod common;
mod damage;
mod exported;

use std::process::Command;

use carried::{BASH, Carried, DASH, Way, assert_fails, assert_restores, drop_databases, messages, restore};
use pgkeep_pg::programs::ProgramSearch;
use pgkeep_testkit::compare::{Inventory, InventoryOptions, assert_same, assert_same_servers};
use pgkeep_testkit::fixtures::{DATABASES, Events, GameData};
use pgkeep_testkit::requirements::{self, Missing};
use pgkeep_testkit::{Cluster, ClusterOptions, require};

fn start() -> Result<(Cluster, Cluster), Missing> {
    let start = || Cluster::start(ClusterOptions::default());
    Ok((start()?, start()?))
}

async fn plain(encrypted: bool, way: &Way<'_>) {
    let (source, destination) = require!(start());
    GameData::new(Events::Partitions).load(&source);
    let carried = Carried::new(&source, encrypted).await;
    require!(assert_restores(&carried, &destination, way));
    assert_same_servers(&source, &destination, &DATABASES, &InventoryOptions::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_dump() {
    plain(true, &DASH).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unencrypted_dump_by_bash() {
    plain(false, &BASH).await;
}

/// The tools may be newer than both servers; what pg_restore says then is looked at.
#[tokio::test(flavor = "multi_thread")]
async fn tools_that_are_newer_than_the_servers() {
    let (source, destination) = require!(start());
    let programs = require!(requirements::postgresql(18));
    source.create_database("app");
    source.psql("app", common::SMALL_SCHEMA);
    let mut options = common::dump_options(&source);
    options.programs = ProgramSearch::only(&programs);
    let carried = Carried::by(&source, false, &options).await;
    let readme = std::fs::read_to_string(carried.folder().join("RESTORE.md")).unwrap();
    assert!(readme.contains("`pg_restore` (version 18 or later)"), "{readme}");
    let newer = Way {
        programs: Some(&programs),
        ..DASH
    };
    require!(assert_restores(&carried, &destination, &newer));
    assert_same_servers(&source, &destination, &["app"], &InventoryOptions::default());

    // Whatever else goes wrong is not passed over.
    drop_databases(&destination);
    destination.psql(
        "template1",
        "ALTER ROLE postgres SET default_transaction_read_only TO on",
    );
    require!(assert_fails(
        &carried,
        &destination,
        &newer,
        &["read-only transaction"]
    ));
}

/// Lets the jobs run again, as RESTORE.md says, which were scheduled in the source.
fn release_jobs(source: &Cluster, destination: &Cluster) {
    let scheduled = source.psql(
        "app",
        "SELECT string_agg(job_id::text, ', ') FROM timescaledb_information.jobs WHERE scheduled AND job_id >= 1000",
    );
    let held = "SELECT count(*) FROM timescaledb_information.jobs WHERE scheduled AND job_id >= 1000";
    assert_eq!(
        destination.psql("app", held),
        "0",
        "jobs run before anybody has looked"
    );
    destination.psql(
        "app",
        &format!(
            "SELECT alter_job(job_id, scheduled => true) FROM timescaledb_information.jobs WHERE job_id IN ({scheduled})"
        ),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn timescaledb() {
    let options = || ClusterOptions::default().timescaledb();
    let source = require!(Cluster::start(options()));
    let destination = require!(Cluster::start(options()));
    GameData::new(Events::Hypertables).load(&source);
    let carried = Carried::new(&source, false).await;
    require!(assert_restores(&carried, &destination, &DASH));
    assert_same_servers(&source, &destination, &DATABASES, &InventoryOptions::default());
}

/// Rows of chunks that haven't changed lie in the first dump's folder, which is beside this one's.
#[tokio::test(flavor = "multi_thread")]
async fn an_incremental_dump() {
    let options = || ClusterOptions::default().timescaledb();
    let source = require!(Cluster::start(options()));
    let destination = require!(Cluster::start(options()));
    GameData::new(Events::Hypertables).load(&source);
    let change = || {
        source.psql("app", "CREATE TABLE since AS SELECT 1 AS n");
    };
    let carried = Carried::incremental(&source, change).await;
    let readme = std::fs::read_to_string(carried.folder().join("RESTORE.md")).unwrap();
    assert!(readme.contains("lie in those dumps' folders"), "{readme}");
    require!(assert_restores(&carried, &destination, &DASH));
    assert_same_servers(&source, &destination, &DATABASES, &InventoryOptions::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn timescaledb_community() {
    let source = require!(Cluster::start_community(None));
    let destination = require!(Cluster::start_community(None));
    GameData::new(Events::Community).load(&source);
    let carried = Carried::new(&source, true).await;
    require!(assert_restores(&carried, &destination, &DASH));
    release_jobs(&source, &destination);
    assert_same_servers(&source, &destination, &DATABASES, &InventoryOptions::default());
}

/// Possible since 2.16; they can't be checked before TimescaleDB's restore mode has ended.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_keys_to_hypertables() {
    let options = || ClusterOptions::default().timescaledb();
    let source = require!(Cluster::start(options()));
    let destination = require!(Cluster::start(options()));
    source.create_database("app");
    source.psql(
        "app",
        "SET client_min_messages = error;
         CREATE SCHEMA \"time scale\"; CREATE EXTENSION timescaledb SCHEMA \"time scale\";
         CREATE TABLE event (id int, at timestamptz NOT NULL, PRIMARY KEY (id, at));
         SELECT \"time scale\".create_hypertable('event', 'at');
         INSERT INTO event SELECT n, '2024-03-01'::timestamptz + n * interval '1 day' FROM generate_series(1, 60) n;
         CREATE TABLE note AS SELECT id AS event_id, at FROM event;
         ALTER TABLE note ADD FOREIGN KEY (event_id, at) REFERENCES event;",
    );
    let carried = Carried::new(&source, false).await;
    require!(assert_restores(&carried, &destination, &DASH));
    let inventory = |cluster: &Cluster| Inventory::of_database(cluster, "app", &InventoryOptions::default());
    assert_same(&inventory(&source), &inventory(&destination));
    let orphan = destination.try_psql("app", "INSERT INTO note VALUES (1000, now())");
    assert!(orphan.unwrap_err().contains("foreign key"));
}

const ODD_NAMES: [&str; 14] = [
    "with  two spaces",
    " leading and trailing ",
    "double\"quote",
    "it's",
    "a=b",
    "host=nowhere",
    "postgres://nowhere/x",
    "tab\there",
    "line\nfeed",
    "trailing line feed\n",
    "back\\slash\\n",
    "Ünïcode データ",
    "-d",
    "$HOME *?[a] `x` %s",
];

#[tokio::test(flavor = "multi_thread")]
async fn odd_names_of_databases() {
    let (source, destination) = require!(start());
    for (number, name) in ODD_NAMES.iter().enumerate() {
        source.create_database(name);
        source.psql(
            name,
            &format!("CREATE TABLE t AS SELECT {number} AS n; SELECT lo_from_bytea({number} + 1, 'large object') \\g /dev/null"),
        );
    }
    let carried = Carried::new(&source, false).await;
    let one = Way {
        arguments: &["-d", "tab\there"],
        ..DASH
    };
    require!(assert_restores(&carried, &destination, &one));
    let names =
        "SELECT count(*) FROM pg_database WHERE datname NOT IN ('postgres', 'template0', 'template1')";
    assert_eq!(destination.psql("postgres", names), "1", "only one was asked for");
    destination.psql("postgres", "DROP DATABASE \"tab\there\"");
    require!(assert_restores(&carried, &destination, &DASH));
    for name in ODD_NAMES {
        let inventory =
            |cluster: &Cluster| Inventory::of_database(cluster, name, &InventoryOptions::default());
        assert_same(&inventory(&source), &inventory(&destination));
    }

    let missing = Way {
        arguments: &["-d", "nobody's"],
        ..DASH
    };
    let output = restore(&carried, &destination, &missing).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        messages(&output).contains("no database 'nobody's'"),
        "{}",
        messages(&output)
    );
}

/// Archives of the schema and of large objects come in pieces when they are large.
#[tokio::test(flavor = "multi_thread")]
async fn large_objects_in_pieces() {
    let (source, destination) = require!(start());
    source.create_database("app");
    source.psql(
        "app",
        "SELECT lo_from_bytea(77, (SELECT string_agg(sha512((n || 'x')::bytea), ''::bytea) FROM generate_series(1, 300000) n)) \\g /dev/null",
    );
    let carried = Carried::new(&source, false).await;
    let index = Command::new("zstd")
        .arg("-dc")
        .arg(carried.object("index.tsv"))
        .output()
        .unwrap();
    let index = String::from_utf8(index.stdout).unwrap();
    assert!(
        index
            .lines()
            .filter(|line| line.contains("\tlarge_objects\t"))
            .count()
            > 1,
        "{index}"
    );
    require!(assert_restores(&carried, &destination, &DASH));
    assert_same_servers(&source, &destination, &["app"], &InventoryOptions::default());
}

/// What is there already is left as it is: roles with their passwords, and databases that hold something.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_already_is_left_alone() {
    let (source, destination) = require!(start());
    GameData::new(Events::Partitions).load(&source);
    let carried = Carried::new(&source, false).await;
    destination.psql("postgres", "CREATE ROLE dagster PASSWORD 'mine' NOLOGIN; CREATE ROLE \"Odd \"\"Role\"\" mit Ümlaut\" NOBYPASSRLS");
    let roles = "SELECT rolname, rolpassword, rolbypassrls, rolcanlogin FROM pg_authid WHERE rolname IN ('dagster', 'postgres', 'Odd \"Role\" mit Ümlaut') ORDER BY 1";
    let before = destination.psql("postgres", roles);
    destination.create_database("dagster");
    destination.psql("dagster", "CREATE SCHEMA precious");
    let output = restore(&carried, &destination, &DASH);
    let output = require!(output);
    assert_eq!(output.status.code(), Some(1));
    let text = messages(&output);
    assert!(
        text.contains("database 'dagster' is there already and holds something"),
        "{text}"
    );
    assert!(!text.contains("NOT complete"), "nothing was begun: {text}");
    let found = "SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database WHERE NOT datistemplate";
    assert_eq!(
        destination.psql("postgres", found),
        "dagster postgres",
        "it made something before it refused"
    );
    assert_eq!(
        destination.psql(
            "postgres",
            "SELECT count(*) FROM pg_roles WHERE rolname = 'app_owner'"
        ),
        "0"
    );

    destination.psql("dagster", "DROP SCHEMA precious");
    require!(assert_restores(&carried, &destination, &DASH));
    assert_eq!(destination.psql("postgres", roles), before);
    let inventory =
        |cluster: &Cluster| Inventory::of_database(cluster, "dagster", &InventoryOptions::default());
    assert_same(&inventory(&source), &inventory(&destination));
}

#[test]
fn the_script_has_nothing_that_shellcheck_warns_of() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/restore.sh");
    let program = require!(requirements::tool("shellcheck"));
    let output = Command::new(program)
        .arg("--shell=sh")
        .arg(script)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}
