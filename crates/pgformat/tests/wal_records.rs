//! The records of real servers' WAL, walked over here and shown by pg_waldump.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs;

use pgkeep_pgformat::{Lsn, SegmentName, SegmentSize, Timeline, WalRecord, WalWalker};
use pgkeep_testkit::{Cluster, ClusterOptions, StopMode, require, requirements};

/// Transactions of every kind, records that are larger than a page or than a segment, and switches of segments.
const WORK: [&str; 8] = [
    "CREATE TABLE a (i int, t text); INSERT INTO a SELECT i, md5(i::text) FROM generate_series(1, 3000) i",
    "BEGIN; INSERT INTO a VALUES (1, 'x'); ROLLBACK",
    "BEGIN; INSERT INTO a VALUES (1, 'x'); PREPARE TRANSACTION 'one'; BEGIN; DELETE FROM a WHERE i < 50; PREPARE TRANSACTION 'two'",
    "COMMIT PREPARED 'one'; ROLLBACK PREPARED 'two'",
    "SELECT pg_logical_emit_message(false, 'p', repeat('y', 3000000))",
    "DO $$ BEGIN FOR n IN 1..70 LOOP EXECUTE format('CREATE TABLE many_%s ()', n); BEGIN EXECUTE 'INSERT INTO a VALUES (1)';
       EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$",
    "SELECT pg_switch_wal(); CHECKPOINT",
    "DROP TABLE a; CREATE DATABASE d",
];

/// What pg_waldump says of transactions: position and operation.
fn shown(cluster: &Cluster, start: Lsn, end: Lsn) -> Vec<(Lsn, String)> {
    let output = cluster
        .client_command("pg_waldump")
        .arg("--path")
        .arg(cluster.data_dir().join("pg_wal"))
        .args([
            "--rmgr=Transaction",
            "--start",
            &start.to_string(),
            "--end",
            &end.to_string(),
        ])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().filter_map(|line| {
        let lsn = line.split("lsn: ").nth(1)?.split(',').next()?;
        let operation = line.split("desc: ").nth(1)?.split(' ').next()?;
        Some((lsn.parse().unwrap(), operation.to_owned()))
    });
    lines.collect()
}

#[test]
fn transactions_are_found_where_pg_waldump_shows_them() {
    for major in requirements::MAJORS {
        let options = ClusterOptions::new(major)
            .initdb_arg("--wal-segsize=1")
            .setting("max_prepared_transactions", "5")
            .setting("wal_keep_size", "200MB");
        let mut cluster = require!(Cluster::start(options));
        let lsn = |cluster: &Cluster, function: &str| -> Lsn {
            cluster
                .psql("postgres", &format!("SELECT {function}"))
                .parse()
                .unwrap()
        };
        cluster.psql("postgres", "SELECT pg_switch_wal()");
        let size = SegmentSize::new(1 << 20).unwrap();
        let first = SegmentName::before(
            Timeline::FIRST,
            lsn(&cluster, "pg_current_wal_insert_lsn()"),
            size,
        );
        for statements in WORK {
            cluster.psql("postgres", statements);
        }
        // A crash, and what follows it.
        cluster.kill9();
        cluster.start_again();
        cluster.psql("postgres", "CREATE TABLE after ()");
        let end = lsn(&cluster, "pg_current_wal_flush_lsn()");
        cluster.stop(StopMode::Immediate);

        let (mut walker, mut found) = (WalWalker::new(), Vec::<WalRecord>::new());
        let mut segment = Some(first);
        while let Some(name) = segment.filter(|name| name.start() < end) {
            assert!(!walker.has_ended(), "{major}: before {name}");
            let bytes = fs::read(cluster.data_dir().join("pg_wal").join(name.to_string())).unwrap();
            walker.segment(name, &bytes, |record| found.push(record));
            segment = name.next();
        }
        found.retain(|record| record.start < end);
        assert!(found.windows(2).all(|pair| pair[0].end <= pair[1].start));
        let shown = shown(&cluster, first.start(), end);
        let ends: Vec<Lsn> = shown
            .iter()
            .filter(|(_, operation)| {
                ["COMMIT", "ABORT", "COMMIT_PREPARED", "ABORT_PREPARED"].contains(&operation.as_str())
            })
            .map(|(lsn, _)| *lsn)
            .collect();
        let operations: Vec<&str> = shown.iter().map(|(_, operation)| operation.as_str()).collect();
        assert!(
            operations.contains(&"COMMIT_PREPARED") && operations.contains(&"ABORT_PREPARED"),
            "{operations:?}"
        );
        let timed = found.iter().filter(|record| record.transaction_end.is_some());
        let timed: Vec<Lsn> = timed.map(|record| record.start).collect();
        assert_eq!(timed, ends, "{major}");
    }
}
