//! The throwaway servers: every version starts, stops as told, and leaves nothing behind.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use pgkeep_testkit::{Cluster, ClusterOptions, StopMode, poll_until, require};

const LIMIT: Duration = Duration::from_secs(30);

fn starts(options: ClusterOptions) -> Result<(), pgkeep_testkit::Missing> {
    let major = options.major;
    let timescaledb = options.timescaledb;
    let cluster = Cluster::start(options)?;
    let version: u32 = cluster
        .psql("postgres", "SHOW server_version_num")
        .parse()
        .unwrap();
    assert_eq!(version / 10_000, major);
    if timescaledb {
        cluster.psql(
            "postgres",
            "SET client_min_messages = warning; CREATE EXTENSION timescaledb",
        );
        assert_eq!(cluster.psql("postgres", "SHOW timescaledb.license"), "apache");
    }
    Ok(())
}

macro_rules! every_server_starts {
    ($($name:ident: $options:expr;)*) => {
        $(#[test]
        fn $name() {
            require!(starts($options));
        })*
    };
}

every_server_starts! {
    postgresql_15_starts: ClusterOptions::new(15);
    postgresql_16_starts: ClusterOptions::new(16);
    postgresql_17_starts: ClusterOptions::new(17);
    postgresql_18_starts: ClusterOptions::new(18);
    timescaledb_on_16_starts: ClusterOptions::new(16).timescaledb();
    timescaledb_on_17_starts: ClusterOptions::new(17).timescaledb();
    timescaledb_on_18_starts: ClusterOptions::new(18).timescaledb();
}

#[test]
fn community_edition_starts() {
    let cluster = require!(Cluster::start_community(None));
    cluster.psql(
        "postgres",
        "SET client_min_messages = warning; CREATE EXTENSION timescaledb",
    );
    assert_eq!(cluster.psql("postgres", "SHOW timescaledb.license"), "timescale");
}

#[test]
fn every_connection_string_works_with_an_odd_database_name() {
    let cluster = require!(Cluster::start(ClusterOptions::default()));
    let name = "it's a \\ \"Datenbank\" ü";
    cluster.create_database(name);
    for conninfo in [
        cluster.conninfo(name),
        cluster.tcp_conninfo(name),
        cluster.uri(name),
    ] {
        let output = Command::new(cluster.pg_bin().join("psql"))
            .args(["-XAtc", "SELECT current_database()", "-d", &conninfo])
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout).trim_end(),
            name,
            "by {conninfo}"
        );
    }
}

#[test]
fn two_clusters_of_one_template_are_two_clusters() {
    let identifier =
        |cluster: &Cluster| cluster.psql("postgres", "SELECT system_identifier FROM pg_control_system()");
    let one = require!(Cluster::start(ClusterOptions::default()));
    let other = require!(Cluster::start(ClusterOptions::default()));
    assert_ne!(identifier(&one), identifier(&other));
    assert_ne!(one.port(), other.port());
}

#[test]
fn settings_arguments_and_hba_lines_are_used() {
    let options = ClusterOptions::default()
        .setting("work_mem", "3MB")
        .setting("search_path", "it's")
        .initdb_arg("--data-checksums")
        .hba_line("local refused all reject");
    let cluster = require!(Cluster::start(options));
    assert_eq!(
        cluster.psql("postgres", "SHOW work_mem; SHOW data_checksums; SHOW search_path"),
        "3MB\non\nit's"
    );
    cluster.create_database("refused");
    let error = cluster.try_psql("refused", "SELECT 1").unwrap_err();
    assert!(error.contains("pg_hba.conf rejects"), "{error}");
}

#[test]
fn a_failing_statement_is_an_error_with_its_message() {
    let cluster = require!(Cluster::start(ClusterOptions::default()));
    let error = cluster
        .try_psql("postgres", "SELECT 1; SELECT 1/0; SELECT 2")
        .unwrap_err();
    assert!(error.contains("division by zero"), "{error}");
}

#[test]
fn what_is_committed_outlives_kill_9_and_a_restart() {
    let mut cluster = require!(Cluster::start(ClusterOptions::default()));
    let port = cluster.port();
    cluster.psql(
        "postgres",
        "CREATE TABLE t AS SELECT generate_series(1, 1000) AS n",
    );
    cluster.kill9();
    assert!(cluster.try_psql("postgres", "SELECT 1").is_err());
    cluster.start_again();
    assert_eq!(cluster.psql("postgres", "SELECT sum(n) FROM t"), "500500");
    assert!(
        cluster.log().contains("automatic recovery in progress"),
        "{}",
        cluster.log()
    );
    cluster.set("work_mem", "5MB");
    cluster.restart(StopMode::Fast);
    assert_eq!(cluster.psql("postgres", "SHOW work_mem"), "5MB");
    assert_eq!(cluster.port(), port);
}

#[test]
fn a_session_keeps_its_transaction_and_its_locks() {
    let cluster = require!(Cluster::start(ClusterOptions::default()));
    cluster.psql("postgres", "CREATE TABLE t (n int)");
    let mut holder = cluster.session("postgres");
    assert_eq!(holder.run("BEGIN; LOCK TABLE t; SELECT 'held';"), "held");
    let mut waiter = cluster.session("postgres");
    waiter.begin("INSERT INTO t VALUES (1) RETURNING n;");
    let waits = format!(
        "SELECT wait_event_type FROM pg_stat_activity WHERE pid = {}",
        waiter.backend_pid()
    );
    poll_until("the insert to wait for the lock", LIMIT, || {
        cluster.psql("postgres", &waits) == "Lock"
    });
    holder.run("COMMIT;");
    assert_eq!(waiter.finish(), "1");
}

#[test]
fn a_dropped_cluster_leaves_nothing_behind() {
    let cluster = require!(Cluster::start(ClusterOptions::default()));
    let directory = cluster.data_dir().parent().unwrap().to_owned();
    assert!(directory.join("data/PG_VERSION").exists());
    drop(cluster);
    assert!(!directory.exists());
    assert!(!is_mentioned_by_a_process(&directory.to_string_lossy()));
}

#[test]
fn a_killed_test_leaves_nothing_behind() {
    // The test runs itself as a second process, whose cluster it then orphans.
    if let Some(report) = std::env::var_os("PGKEEP_TEST_REPORT") {
        return start_and_wait_to_be_killed(Path::new(&report));
    }
    let scratch = tempfile::tempdir().unwrap();
    let report = scratch.path().join("report");
    let mut test = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_test_leaves_nothing_behind"])
        .env("PGKEEP_TEST_REPORT", &report)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    poll_until("the other process's cluster", LIMIT, || report.exists());
    let data_dir = PathBuf::from(fs::read_to_string(&report).unwrap());
    assert!(is_mentioned_by_a_process(&data_dir.to_string_lossy()));
    test.kill().unwrap();
    test.wait().unwrap();
    let directory = data_dir.parent().unwrap();
    poll_until("the watchdog to clean up", LIMIT, || {
        !directory.exists() && !is_mentioned_by_a_process(&directory.to_string_lossy())
    });
}

fn start_and_wait_to_be_killed(report: &Path) {
    let cluster = require!(Cluster::start(ClusterOptions::default()));
    let partial = report.with_extension("partial");
    fs::write(&partial, cluster.data_dir().to_str().unwrap()).unwrap();
    fs::rename(&partial, report).unwrap();
    // Until its parent, which holds the other end of this pipe, kills it.
    let _ = std::io::stdin().lines().next();
}

fn is_mentioned_by_a_process(text: &str) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command)
            .replace('\0', " ")
            .contains(text)
    })
}
