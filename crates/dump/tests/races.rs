//! What other sessions do while a dump runs: nothing is lost, nothing hangs, nobody is cancelled.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests are tests"
)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{begin_dump, wait_for_waiter};
use pgkeep_base::Classified;
use pgkeep_dump::manifest::{DumpManifest, Filters};
use pgkeep_dump::{DumpError, FileFormat, FileOptions};
use pgkeep_pg::programs::ProgramSearch;
use pgkeep_repository::encryption::Encryption;
use pgkeep_store::StoreOptions;
use pgkeep_testkit::compare::{Inventory, InventoryOptions, assert_same};
use pgkeep_testkit::{Cluster, ClusterOptions, Session, poll_until, require};

const DATABASE: &str = "race";
const ROWS: u64 = 5_000;

fn rows_of(manifest: &DumpManifest, name: &str) -> u64 {
    let relations = manifest.databases.iter().flat_map(|database| &database.relations);
    let named: Vec<_> = relations.filter(|relation| relation.name.name == name).collect();
    assert_eq!(named.len(), 1, "{name} is in the manifest {} times", named.len());
    named[0].rows
}

fn count(cluster: &Cluster, table: &str) -> u64 {
    cluster
        .psql(DATABASE, &format!("SELECT count(*) FROM {table}"))
        .parse()
        .unwrap()
}

/// Only the database of the race, so that the holder of the locks is one session.
fn options(cluster: &Cluster) -> pgkeep_dump::DumpOptions {
    pgkeep_dump::DumpOptions {
        databases: vec![DATABASE.to_owned()],
        ..common::dump_options(cluster)
    }
}

/// Dumps while another session, which holds `locked` exclusively, does what `moving` says and commits only when the
/// dump stands in line for that table.
async fn dump_in_line(
    repository: &pgkeep_repository::Repository,
    cluster: &Cluster,
    locked: &str,
    moving: impl FnOnce(&mut Session),
) -> pgkeep_dump::DumpReport {
    let mut other = cluster.session(DATABASE);
    moving(&mut other);
    let dump = begin_dump(repository, cluster, &options(cluster));
    wait_for_waiter(cluster, DATABASE, locked, "AccessShareLock");
    other.run("COMMIT;");
    dump.await.unwrap().unwrap()
}

/// The same with stock pg_dump; the archive is restored into the database `stock` of the same server.
fn pg_dump_in_line(cluster: &Cluster, folder: &Path, locked: &str, moving: impl FnOnce(&mut Session)) {
    let mut other = cluster.session(DATABASE);
    moving(&mut other);
    let archive = folder.join("stock.dump");
    let mut pg_dump = cluster
        .client_command("pg_dump")
        .args(["--format=custom", "--dbname", DATABASE, "--file"])
        .arg(&archive)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for_waiter(cluster, DATABASE, locked, "AccessShareLock");
    other.run("COMMIT;");
    assert!(
        pg_dump.wait().unwrap().success(),
        "pg_dump fails, and so loses nothing silently"
    );
    cluster.create_database("stock");
    let restored = cluster
        .client_command("pg_restore")
        .args(["--exit-on-error", "--dbname", "stock"])
        .arg(&archive)
        .status()
        .unwrap();
    assert!(restored.success());
}

fn plain_table(cluster: &Cluster) {
    cluster.create_database(DATABASE);
    cluster.psql(
        DATABASE,
        &format!(
            "CREATE TABLE scores (id int PRIMARY KEY, note text);
             INSERT INTO scores SELECT n, md5(n::text) FROM generate_series(1, {ROWS}) n;
             CREATE TABLE quiet AS SELECT generate_series(1, 10) AS n;"
        ),
    );
}

fn move_scores(session: &mut Session) {
    session.run(
        "BEGIN; LOCK TABLE scores IN ACCESS EXCLUSIVE MODE; CREATE TABLE moved AS SELECT * FROM scores;
         TRUNCATE scores;",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_move_while_the_dump_waits_for_its_locks_are_all_there() {
    let cluster = require!(Cluster::start(ClusterOptions::default()));
    let destination = require!(Cluster::start(ClusterOptions::default()));
    plain_table(&cluster);
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), false).await;
    let report = dump_in_line(&repository, &cluster, "scores", move_scores).await;
    assert_eq!(rows_of(&report.manifest, "moved"), ROWS);
    assert_eq!(rows_of(&report.manifest, "scores"), 0);
    let restoring = common::restore_options(&destination);
    common::restore(&repository, &report.id, &destination, &restoring)
        .await
        .unwrap();
    let inventory =
        |cluster: &Cluster| Inventory::of_database(cluster, DATABASE, &InventoryOptions::default());
    assert_same(&inventory(&cluster), &inventory(&destination));
}

/// What the test before this one guards against is real, and that test can fail: pg_dump, which takes its snapshot
/// before its locks, loses every row and reports success.
#[tokio::test(flavor = "multi_thread")]
async fn stock_pg_dump_loses_the_rows_that_move() {
    let cluster = require!(Cluster::start(ClusterOptions::default()));
    plain_table(&cluster);
    let folder = tempfile::tempdir().unwrap();
    pg_dump_in_line(&cluster, folder.path(), "scores", move_scores);
    assert_eq!(cluster.psql("stock", "SELECT count(*) FROM scores"), "0");
    assert_eq!(cluster.psql("stock", "SELECT count(*) FROM quiet"), "10");
    assert_eq!(cluster.psql("stock", "SELECT to_regclass('moved') IS NULL"), "t");
}

/// A hypertable with three chunks; returns the second one's name.
fn hypertable(cluster: &Cluster) -> String {
    cluster.create_database(DATABASE);
    cluster.psql(
        DATABASE,
        &format!(
            "SET client_min_messages = error; CREATE EXTENSION timescaledb;
             CREATE TABLE events (at timestamptz NOT NULL, player int NOT NULL, value float8);
             SELECT create_hypertable('events', 'at', chunk_time_interval => interval '1 day');
             INSERT INTO events SELECT '2024-03-01'::timestamptz + n * interval '3 days' / {ROWS}, n % 50, n
               FROM generate_series(0, {ROWS} - 1) n;"
        ),
    );
    cluster.psql(
        DATABASE,
        "SELECT c FROM show_chunks('events') c ORDER BY c OFFSET 1 LIMIT 1",
    )
}

async fn chunk_race(
    cluster: &Cluster,
    destination: &Cluster,
    chunk: &str,
    moving: impl FnOnce(&mut Session),
) {
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), false).await;
    let report = dump_in_line(&repository, cluster, chunk, moving).await;
    let restoring = common::restore_options(destination);
    common::restore(&repository, &report.id, destination, &restoring)
        .await
        .unwrap();
    let inventory =
        |cluster: &Cluster| Inventory::of_database(cluster, DATABASE, &InventoryOptions::default());
    assert_same(&inventory(cluster), &inventory(destination));
}

/// What compress_chunk does, done by hand: the Apache edition has no compression.
#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_emptied_while_the_dump_waits_loses_nothing() {
    let cluster = require!(Cluster::start(ClusterOptions::default().timescaledb()));
    let destination = require!(Cluster::start(ClusterOptions::default().timescaledb()));
    let chunk = hypertable(&cluster);
    let in_chunk = count(&cluster, &format!("ONLY {chunk}"));
    chunk_race(&cluster, &destination, &chunk, |session| {
        session.run(&format!(
            "BEGIN; LOCK TABLE {chunk} IN ACCESS EXCLUSIVE MODE; CREATE TABLE moved AS SELECT * FROM ONLY {chunk};
             TRUNCATE {chunk};"
        ));
    })
    .await;
    assert!(in_chunk > 0);
    assert_eq!(count(&destination, "moved"), in_chunk);
    assert_eq!(count(&destination, "events"), ROWS - in_chunk);
}

fn compress(session: &mut Session, chunk: &str) {
    session.run(&format!("BEGIN; SELECT compress_chunk('{chunk}');"));
}

fn compressible(cluster: &Cluster) -> String {
    let chunk = hypertable(cluster);
    cluster.psql(
        DATABASE,
        "ALTER TABLE events SET (timescaledb.compress, timescaledb.compress_segmentby = 'player');",
    );
    chunk
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_compressed_while_the_dump_waits_loses_nothing() {
    let cluster = require!(Cluster::start_community(None));
    let destination = require!(Cluster::start_community(None));
    let chunk = compressible(&cluster);
    chunk_race(&cluster, &destination, &chunk, |session| {
        compress(session, &chunk)
    })
    .await;
    assert_eq!(count(&destination, "events"), ROWS);
    let compressed = "(SELECT 1 FROM timescaledb_information.chunks WHERE is_compressed) c";
    assert_eq!(count(&destination, compressed), 1);
}

/// Upstream issues 6842, 6841 and 10487: the reason for locking first.
#[tokio::test(flavor = "multi_thread")]
async fn stock_pg_dump_loses_a_chunk_that_is_compressed() {
    let cluster = require!(Cluster::start_community(None));
    let chunk = compressible(&cluster);
    let archive = tempfile::tempdir().unwrap();
    let mut other = cluster.session(DATABASE);
    compress(&mut other, &chunk);
    let path = archive.path().join("stock.sql");
    let mut pg_dump = cluster
        .client_command("pg_dump")
        .args(["--dbname", DATABASE, "--data-only", "--file"])
        .arg(&path)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for_waiter(&cluster, DATABASE, &chunk, "AccessShareLock");
    other.run("COMMIT;");
    assert!(pg_dump.wait().unwrap().success());
    let text = std::fs::read_to_string(&path).unwrap();
    let heading = format!("COPY {chunk} (");
    let (_, rows) = text
        .split_once(&heading)
        .unwrap_or_else(|| panic!("no '{heading}' in the dump"));
    assert_eq!(
        rows.lines().nth(1),
        Some("\\."),
        "the chunk's rows are in pg_dump's output after all"
    );
    assert!(
        !text.contains("compress_hyper_") && !text.contains("_compressed ("),
        "nor its compressed ones"
    );
}

/// A worker can't get its own lock behind an ALTER TABLE that stands in line; the holder of the snapshot, which has it,
/// reads the table.
#[tokio::test(flavor = "multi_thread")]
async fn an_alter_table_that_comes_during_the_dump_waits_and_then_succeeds() {
    let cluster = require!(Cluster::start(ClusterOptions::default()));
    plain_table(&cluster);
    let folder = tempfile::tempdir().unwrap();
    let gate = Gate::new(cluster.pg_bin(), "\"$program\" \"$@\" && $wait");
    let repository = common::repository(folder.path(), false).await;
    let dump = begin_dump(&repository, &cluster, &gate.options(&cluster));
    gate.wait_for_arrival();
    // pg_dump has read the schema; no row has been read yet.
    let mut other = cluster.session(DATABASE);
    other.begin("ALTER TABLE scores ADD COLUMN later int;");
    wait_for_waiter(&cluster, DATABASE, "scores", "AccessExclusiveLock");
    gate.open();
    let report = dump.await.unwrap().unwrap();
    other.finish();
    assert_eq!(rows_of(&report.manifest, "scores"), ROWS);
    let log = cluster.log();
    assert!(
        log.contains("could not obtain lock on relation"),
        "no worker met the waiting ALTER TABLE:\n{log}"
    );
    assert!(
        !log.contains("canceling statement"),
        "somebody was cancelled:\n{log}"
    );
    assert_eq!(count(&cluster, "scores WHERE later IS NULL"), ROWS);
}

/// The one gap: the request comes after the holder's locks and before pg_dump's. Everything starts over, and the dump
/// has what the ALTER TABLE made.
#[tokio::test(flavor = "multi_thread")]
async fn an_alter_table_that_comes_before_pg_dump_makes_the_dump_start_over() {
    let cluster = require!(Cluster::start(ClusterOptions::default()));
    plain_table(&cluster);
    let folder = tempfile::tempdir().unwrap();
    let gate = Gate::new(cluster.pg_bin(), "$wait; exec \"$program\" \"$@\"");
    let repository = common::repository(folder.path(), true).await;
    let dump = begin_dump(&repository, &cluster, &gate.options(&cluster));
    gate.wait_for_arrival();
    let mut other = cluster.session(DATABASE);
    other.begin("ALTER TABLE scores ADD COLUMN later int;");
    wait_for_waiter(&cluster, DATABASE, "scores", "AccessExclusiveLock");
    gate.open();
    let report = dump.await.unwrap().unwrap();
    other.finish();
    let database = &report.manifest.databases[0];
    let scores = database
        .relations
        .iter()
        .find(|relation| relation.name.name == "scores")
        .unwrap();
    assert!(
        scores.columns.contains("later"),
        "the dump is of the time before: {}",
        scores.columns
    );
    assert_eq!(scores.rows, ROWS);
    // What the first attempt stored is named by nobody and lies there no longer.
    common::assert_no_strays(&repository, &report.id).await;
}

/// PostgreSQL's programs, except that pg_dump stops at a gate when it reads a schema.
struct Gate {
    folder: tempfile::TempDir,
}

impl Gate {
    /// `run` is shell: `$program` is the real one, `$wait` waits at the gate.
    fn new(bin: &Path, run: &str) -> Self {
        Self::at(bin, "--schema-only", run)
    }

    /// The same, where pg_dump is called with this argument.
    fn at(bin: &Path, argument: &str, run: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for program in ["pg_dump", "pg_dumpall", "pg_restore"] {
            std::os::unix::fs::symlink(bin.join(program), folder.path().join(program)).unwrap();
        }
        let wait = "touch \"$gate/arrived\"; while [ ! -e \"$gate/open\" ]; do sleep 0.05; done";
        let script = format!(
            "#!/bin/sh\ngate='{}' program='{}/pg_dump'\ncase \"$*\" in *{argument}*) {} ;; \
             *) exec \"$program\" \"$@\" ;; esac\n",
            folder.path().display(),
            bin.display(),
            run.replace("$wait", wait)
        );
        let path = folder.path().join("pg_dump");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { folder }
    }

    fn options(&self, cluster: &Cluster) -> pgkeep_dump::DumpOptions {
        pgkeep_dump::DumpOptions {
            programs: ProgramSearch::only(self.folder.path()),
            ..options(cluster)
        }
    }

    fn wait_for_arrival(&self) {
        let arrived = self.folder.path().join("arrived");
        poll_until("pg_dump at the gate", common::PATIENCE, || arrived.exists());
    }

    fn open(&self) {
        std::fs::write(self.folder.path().join("open"), "").unwrap();
    }
}

/// Everything comes and goes all the time; whatever the dump says, it is true.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_amid_tables_that_come_and_go_is_whole_or_says_that_it_is_not() {
    const DUMPS: usize = 3;
    let cluster = require!(Cluster::start(ClusterOptions::default()));
    let destination = require!(Cluster::start(ClusterOptions::default()));
    plain_table(&cluster);
    cluster.psql(
        DATABASE,
        "CREATE TABLE pairs_a (n int); CREATE TABLE pairs_b (n int);",
    );
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), false).await;
    let stop = Arc::new(AtomicBool::new(false));
    let churners: Vec<_> = (0..2).map(|number| churn(&cluster, number, &stop)).collect();
    let mut whole = 0;
    for _ in 0..DUMPS {
        match common::dump(&repository, &cluster, &options(&cluster)).await {
            Ok(report) => {
                whole += 1;
                assert_eq!(rows_of(&report.manifest, "scores"), ROWS);
                // Both get their row in one transaction.
                assert_eq!(
                    rows_of(&report.manifest, "pairs_a"),
                    rows_of(&report.manifest, "pairs_b")
                );
                let restoring = pgkeep_dump::restore::RestoreOptions {
                    overwrite: true,
                    ..common::restore_options(&destination)
                };
                common::restore(&repository, &report.id, &destination, &restoring)
                    .await
                    .unwrap();
                assert_eq!(count(&destination, "scores"), ROWS);
            }
            Err(error @ (DumpError::Unstable { .. } | DumpError::LockTimeout { .. })) => {
                assert!(error.hint().is_some());
            }
            Err(error) => panic!("neither whole nor unstable: {error}"),
        }
    }
    stop.store(true, Ordering::Relaxed);
    for churner in churners {
        assert!(churner.join().unwrap() > 10, "hardly anything came and went");
    }
    let complete = repository.backups(pgkeep_base::BackupKind::Dump).await.unwrap();
    let complete = complete
        .iter()
        .filter(|entry| entry.state == pgkeep_repository::backups::BackupState::Complete);
    assert_eq!(complete.count(), whole);
    eprintln!("{whole} of {DUMPS} dumps found a quiet moment");
}

/// Makes and drops tables and all that hangs on them until it is stopped; returns how often.
fn churn(cluster: &Cluster, number: u32, stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<u32> {
    let mut session = cluster.session(DATABASE);
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        let mut rounds = 0;
        while !stop.load(Ordering::Relaxed) {
            session.run(&format!(
                "BEGIN; INSERT INTO pairs_a VALUES ({rounds}); INSERT INTO pairs_b VALUES ({rounds}); COMMIT;
                 CREATE TABLE coming_{number} (id serial PRIMARY KEY, n int REFERENCES scores);
                 CREATE INDEX ON coming_{number} (n);
                 INSERT INTO coming_{number} (n) SELECT generate_series(1, 10);
                 DROP TABLE coming_{number};"
            ));
            // As often as a busy application's temporary tables, not as fast as the machine can.
            std::thread::sleep(Duration::from_millis(100));
            rounds += 1;
        }
        rounds
    })
}

/// The same, of files in pg_dump's own formats, which would otherwise wait in vain as long as for the first locks.
#[tokio::test(flavor = "multi_thread")]
async fn an_alter_table_that_comes_before_pg_dump_makes_a_file_start_over() {
    let cluster = require!(Cluster::start(ClusterOptions::default()));
    plain_table(&cluster);
    for (format, column) in [
        (FileFormat::Plain, "later_1"),
        (FileFormat::Custom, "later_2"),
        (FileFormat::Directory, "later_3"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let gate = Gate::at(cluster.pg_bin(), "--snapshot", "$wait; exec \"$program\" \"$@\"");
        let output = folder.path().join("out");
        let options = FileOptions {
            format,
            output: output.display().to_string(),
            databases: vec![DATABASE.to_owned()],
            filters: Filters::default(),
            jobs: 2,
            lock_timeout: Duration::from_secs(600),
            encryption: Encryption::None,
            store: StoreOptions::default(),
            programs: ProgramSearch::only(gate.folder.path()),
        };
        let target = common::target(&cluster, "postgres");
        let dump = tokio::spawn(async move {
            pgkeep_dump::write_files(&target, &options, &Arc::default(), std::future::pending()).await
        });
        gate.wait_for_arrival();
        let mut other = cluster.session(DATABASE);
        other.begin(&format!("ALTER TABLE scores ADD COLUMN {column} int;"));
        wait_for_waiter(&cluster, DATABASE, "scores", "AccessExclusiveLock");
        gate.open();
        let written = tokio::time::timeout(common::PATIENCE, dump).await;
        written.unwrap().unwrap().unwrap();
        other.finish();
        let mut pg_restore = cluster.client_command("pg_restore");
        let script = match format {
            FileFormat::Plain => std::fs::read(&output).unwrap(),
            _ => pg_restore.arg("--file=-").arg(&output).output().unwrap().stdout,
        };
        let script = String::from_utf8(script).unwrap();
        assert_eq!(script.matches("CREATE TABLE public.scores").count(), 1);
        assert!(script.contains(column), "{format:?} is of the time before");
    }
}

/// However late pg_dump fails: what has nothing to do with locks is said as it is, and at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_pg_dump_that_fails_late_is_not_taken_for_one_without_its_locks() {
    let cluster = require!(Cluster::start(ClusterOptions::default()));
    plain_table(&cluster);
    let folder = tempfile::tempdir().unwrap();
    let run = "echo >> \"$gate/runs\"; sleep 2.5; echo 'pg_dump: error: cache lookup failed' >&2; exit 1";
    let gate = Gate::new(cluster.pg_bin(), run);
    let repository = common::repository(folder.path(), true).await;
    let error = common::dump(&repository, &cluster, &gate.options(&cluster))
        .await
        .unwrap_err();
    assert!(matches!(error, DumpError::Program { .. }), "{error}");
    assert!(error.to_string().contains("cache lookup failed"), "{error}");
    assert_eq!(std::fs::read(gate.folder.path().join("runs")).unwrap(), b"\n");
}

/// A dump's place in time is that of its snapshot, and not of its beginning, before it waited for locks.
#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_a_snapshot_is_when_it_was_taken() {
    let cluster = require!(Cluster::start(ClusterOptions::default()));
    plain_table(&cluster);
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), false).await;
    let mut holder = cluster.session(DATABASE);
    holder.run("BEGIN; LOCK TABLE scores IN ACCESS EXCLUSIVE MODE;");
    let dump = begin_dump(&repository, &cluster, &options(&cluster));
    wait_for_waiter(&cluster, DATABASE, "scores", "AccessShareLock");
    let now = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    let waiting_at: jiff::Timestamp = cluster.psql(DATABASE, now).parse().unwrap();
    holder.run("COMMIT;");
    let report = dump.await.unwrap().unwrap();
    let database = &report.manifest.databases[0];
    assert!(
        database.snapshot_at > waiting_at,
        "{} and {waiting_at}",
        database.snapshot_at
    );
    assert!(database.snapshot_lsn.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_cannot_be_had_is_told_with_its_holder() {
    let cluster = require!(Cluster::start(ClusterOptions::default()));
    plain_table(&cluster);
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), false).await;
    let options = pgkeep_dump::DumpOptions {
        lock_timeout: Duration::from_secs(1),
        ..options(&cluster)
    };
    let mut holder = cluster.session(DATABASE);
    holder.run("BEGIN; LOCK TABLE scores IN ACCESS EXCLUSIVE MODE;");
    let error = common::dump(&repository, &cluster, &options).await.unwrap_err();
    assert!(matches!(error, DumpError::LockTimeout { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("public.scores") && text.contains(&holder.backend_pid().to_string()),
        "{text}"
    );
    assert!(error.hint().unwrap().to_string().contains("--lock-timeout"));
    holder.run("ROLLBACK;");

    // A reader that never ends, and a request that stands in line behind it: both are told.
    let mut reader = cluster.session(DATABASE);
    reader.run("BEGIN; SELECT count(*) FROM scores;");
    holder.begin("ALTER TABLE scores ADD COLUMN later int;");
    wait_for_waiter(&cluster, DATABASE, "scores", "AccessExclusiveLock");
    let error = common::dump(&repository, &cluster, &options).await.unwrap_err();
    let text = error.to_string();
    for session in [&reader, &holder] {
        let pid = format!("process {}", session.backend_pid());
        assert!(
            text.contains("public.scores") && text.contains(&pid),
            "{pid} isn't told: {text}"
        );
    }
    // The dump has gone, and stands in nobody's way.
    reader.run("COMMIT;");
    holder.finish();
    let report = common::dump(&repository, &cluster, &options).await.unwrap();
    assert_eq!(rows_of(&report.manifest, "scores"), ROWS);
}
