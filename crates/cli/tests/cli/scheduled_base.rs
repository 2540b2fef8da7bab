//! `pgkeep run` with base backups and the stream of WAL, in one process.

use std::time::Duration;

use pgkeep_testkit::{Cluster, ClusterOptions, poll_until};
use serde_json::Value;

use crate::scheduled::{Running, YEARLY, words};
use crate::support::{Place, server_with};

const LIMIT: Duration = Duration::from_secs(90);

fn options() -> ClusterOptions {
    ClusterOptions::default()
        .initdb_arg("--wal-segsize=1")
        .setting("autovacuum", "off")
        .setting("wal_keep_size", "0")
        // A checkpoint for a backup is spread over this part of five minutes.
        .setting("checkpoint_completion_target", "0")
        .setting("min_wal_size", "2MB")
        .setting("max_wal_size", "4MB")
}

fn with_all(cluster: &Cluster) -> Place {
    let mut place = Place::with(cluster, None);
    for (name, value) in [
        ("PGKEEP_BACKUP__SCHEDULE", YEARLY),
        ("PGKEEP_STREAM", "true"),
        ("PGKEEP_WAL__FLUSH_AFTER", "0.2s"),
        ("PGKEEP_KEEP__WINDOW", "30d"),
    ] {
        place.environment.push((name.to_owned(), value.to_owned()));
    }
    place
}

/// Whether a base backup was taken, and all that follows is done.
fn is_backed_up(events: &[Value]) -> bool {
    let mut of_bases = events.iter().filter(|event| event["kind"] == "base");
    of_bases.any(|event| event["event"] == "done") && of_bases.any(|event| event["event"] == "next")
}

fn position(cluster: &Cluster) -> u64 {
    let sql = "SELECT pg_current_wal_flush_lsn() - '0/0'";
    cluster.psql("postgres", sql).parse().unwrap()
}

#[test]
fn one_process_takes_base_backups_and_holds_the_stream_and_a_gap_makes_a_backup_due() {
    let cluster = server_with(options());
    let place = with_all(&cluster);
    let mut running = Running::start(&place, &["--json"]);
    running.wait_for("the first backup and the stream", |running| {
        let events = running.events();
        is_backed_up(&events) && words(&events).contains(&"streaming")
    });
    cluster.psql("app", "INSERT INTO players VALUES (-1, 'by the stream', now())");
    let written = position(&cluster);
    poll_until("it is stored", LIMIT, || {
        let status = place.run(&["wal", "status", "--json"]).json_lines();
        let slot = &status[0]["slot"];
        slot["lag_bytes"].as_u64().is_some_and(|lag| lag < 1 << 20)
            && status[0]["windows"][0]["to_lsn"]
                .as_str()
                .is_some_and(|lsn| lsn_of(lsn) >= written)
    });
    running.signal("TERM");
    assert_eq!(running.wait().code(), Some(0), "{}", running.said());

    // The slot is gone, and with it the WAL that the server wrote meanwhile.
    cluster.psql("postgres", "SELECT pg_drop_replication_slot('pgkeep')");
    for _ in 0..8 {
        cluster.psql(
            "postgres",
            "SELECT pg_logical_emit_message(false, 'x', repeat('y', 3000000)); CHECKPOINT",
        );
    }
    let mut place = place;
    // Without retention there is nothing to be done after the backup.
    place.environment.pop();
    let mut running = Running::start(&place, &["--json"]);
    running.wait_for("the gap, and the backup that it takes", |running| {
        let is_done = |event: &Value| event["kind"] == "base" && event["event"] == "done";
        running.events().iter().any(is_done)
    });
    let events = running.events();
    let lost = |event: &&Value| {
        event["message"]
            .as_str()
            .is_some_and(|text| text.contains(" is lost ("))
    };
    assert!(events.iter().any(|event| lost(&event)), "{events:?}");
    running.signal("INT");
    assert_eq!(running.wait().code(), Some(0), "{}", running.said());
    // The gap lies before the newest backup, and needs nobody's attention any more.
    place.run(&["wal", "status"]).expect(0);
    let mut restored = Cluster::unmade(cluster.pg_bin(), cluster.major());
    let into = restored.data_dir().display().to_string();
    place.run(&["restore", "latest", "--into", &into]).expect(0);
    restored.start_restored();
    assert_eq!(
        restored.psql("app", "SELECT name FROM players WHERE id = -1"),
        "by the stream"
    );
}

fn lsn_of(text: &str) -> u64 {
    let (high, low) = text.split_once('/').unwrap();
    let part = |digits| u64::from_str_radix(digits, 16).unwrap();
    part(high) << 32 | part(low)
}
