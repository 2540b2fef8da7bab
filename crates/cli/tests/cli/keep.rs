//! `pgkeep prune` of base backups and WAL, with a real server whose WAL comes meanwhile.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pgkeep_testkit::{Cluster, ClusterOptions, StopMode, poll_until};

use crate::support::{Place, server_with};

const LIMIT: Duration = Duration::from_secs(90);

fn options() -> ClusterOptions {
    ClusterOptions::default()
        .initdb_arg("--data-checksums")
        .initdb_arg("--wal-segsize=1")
        .setting("autovacuum", "off")
}

fn stream(place: &Place) -> Child {
    let mut command = place.command(&["wal", "stream", "--set", "wal.flush_after=0.2s"]);
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn backup(place: &Place) -> String {
    let done = place.run(&["backup", "--quiet", "--fast-checkpoint"]).expect(0);
    done.stdout.trim().to_owned()
}

/// Writes over some segments, and waits until all is stored.
fn write(cluster: &Cluster, place: &Place, rows: u32) {
    cluster.psql(
        "app",
        &format!("INSERT INTO players SELECT (SELECT max(id) FROM players) + i, 'x', now() FROM generate_series(1, {rows}) i"),
    );
    cluster.psql("app", "SELECT pg_switch_wal()");
    let end: u64 = cluster
        .psql("postgres", "SELECT pg_current_wal_flush_lsn() - '0/0'")
        .parse()
        .unwrap();
    poll_until("all is stored", LIMIT, || {
        let status = place.run(&["wal", "status", "--json"]).json_lines();
        let ranges = status[0]["timelines"][0]["ranges"].as_array().unwrap().clone();
        ranges
            .last()
            .is_some_and(|range| position(&range["end"]) >= end - end % (1 << 20))
    });
}

fn position(lsn: &serde_json::Value) -> u64 {
    let (high, low) = lsn.as_str().unwrap().split_once('/').unwrap();
    let part = |digits| u64::from_str_radix(digits, 16).unwrap();
    part(high) << 32 | part(low)
}

#[test]
fn prune_lets_base_backups_and_their_wal_go_and_what_stays_restores() {
    let cluster = server_with(options());
    let place = Place::with(&cluster, None);
    let mut receiver = stream(&place);
    let pinned = backup(&place);
    write(&cluster, &place, 20_000);
    let going = backup(&place);
    write(&cluster, &place, 20_000);
    let staying = backup(&place);
    write(&cluster, &place, 20_000);
    place.run(&["pin", &pinned, "--reason", "kept"]).expect(0);

    check_plan(&place, &going, &staying);
    let done = place.run(&["prune", "--keep-window", "0s", "--json"]).expect(0);
    let wal = done
        .json_lines()
        .into_iter()
        .find(|line| line["wal"].is_string())
        .unwrap();
    // The pinned one's own, and what follows the one that stays.
    assert_eq!(wal["timelines"][0]["kept"].as_array().unwrap().len(), 2, "{wal}");
    let listed = place.run(&["list", "--json"]).expect(0).json_lines();
    let ids: Vec<&str> = listed.iter().map(|line| line["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [pinned.as_str(), staying.as_str()]);

    check_windows(&place, &listed, &pinned, &staying);

    // The receiver goes on as if nothing had been.
    write(&cluster, &place, 100);
    let rows = cluster.psql("app", "SELECT count(*) FROM players");
    let sent = Command::new("kill").arg(receiver.id().to_string()).status();
    assert!(sent.unwrap().success());
    receiver.wait().unwrap();
    check_restores(&cluster, &place, &pinned, &rows);
}

/// What a prune would do, for programs and for people.
fn check_plan(place: &Place, going: &str, staying: &str) {
    // The window is nothing but now, so it begins with the newest that has ended.
    let planned = place
        .run(&["prune", "--dry-run", "--keep-window", "0s", "--json"])
        .expect(0)
        .json_lines();
    let of = |id: &str| planned.iter().find(|line| line["id"] == *id).unwrap();
    assert_eq!(of(going)["keep"], false);
    let codes: Vec<&serde_json::Value> = of(staying)["reasons"]
        .as_array()
        .unwrap()
        .iter()
        .map(|reason| &reason["code"])
        .collect();
    assert!(codes.iter().any(|code| **code == "window_begins"), "{codes:?}");
    let wal = planned.iter().find(|line| line["wal"].is_string()).unwrap();
    assert_eq!(wal["reason"]["code"], "needed");
    assert!(wal["timelines"][0]["objects"].as_u64().unwrap() > 4, "{wal}");
    let told = place
        .run(&["prune", "--dry-run", "--keep-window", "0s"])
        .expect(0);
    for text in [
        "would go",
        "would stay",
        "1 backup would be removed",
        "where the window begins",
    ] {
        assert!(told.stdout.contains(text), "{text}: {}", told.stdout);
    }
}

/// What is told of the points that one can go back to.
fn check_windows(place: &Place, listed: &[serde_json::Value], pinned: &str, staying: &str) {
    // To these points one can go back, and what lies between them isn't lost but was let go: no attention.
    assert_eq!(listed[0]["recoverable"]["backups"][0], pinned);
    assert_eq!(listed[1]["recoverable"]["backups"][0], staying);
    assert!(listed[1]["recoverable"]["to_at"].is_string(), "{}", listed[1]);
    let status = place.run(&["wal", "status"]).expect(0).stdout;
    assert!(status.contains("One can go back to"), "{status}");
    let shown = place.run(&["show", staying]).expect(0).stdout;
    assert!(shown.contains("recoverable"), "{shown}");
    let into = place.path("nowhere").display().to_string();
    let planned = place
        .run(&["restore", pinned, "--into", &into, "--to-end", "--dry-run"])
        .expect(3);
    assert!(
        planned.stderr.contains("later points take a later backup"),
        "{}",
        planned.stderr
    );
    let far = listed[1]["recoverable"]["to_lsn"].as_str().unwrap();
    let refused = place
        .run(&["restore", pinned, "--into", &into, "--to-lsn", far, "--dry-run"])
        .expect(4);
    assert!(
        refused.stderr.contains(&format!("{staying} leads there")),
        "{}",
        refused.stderr
    );
}

/// The newest one to the end, and the pinned one to its own.
fn check_restores(cluster: &Cluster, place: &Place, pinned: &str, rows: &str) {
    for (id, target, expected) in [("latest", "--to-end", rows), (pinned, "--to-backup-end", "3000")] {
        let mut restored = Cluster::unmade(cluster.pg_bin(), cluster.major());
        let into = restored.data_dir().display().to_string();
        place.run(&["restore", id, "--into", &into, target]).expect(0);
        restored.start_restored();
        assert_eq!(
            restored.psql("app", "SELECT count(*) FROM players"),
            expected,
            "{id}"
        );
    }
}

/// A server starts from a backup that lacks none of its files alone.
#[test]
fn a_backup_that_lacks_files_never_stands_for_a_whole_one() {
    let mut cluster = server_with(options());
    let place = Place::with(&cluster, None);
    let whole = backup(&place);
    cluster.stop(StopMode::Fast);
    let (inside, outside) = (
        cluster.data_dir().join("pg_multixact"),
        cluster.socket_dir().join("elsewhere"),
    );
    std::fs::rename(&inside, &outside).unwrap();
    std::os::unix::fs::symlink(&outside, &inside).unwrap();
    cluster.start_again();
    for _ in 0..2 {
        place.run(&["backup", "--quiet", "--fast-checkpoint"]).expect(3);
    }
    let listed = place.run(&["list", "--json"]).expect(0).json_lines();
    let partial = listed.last().unwrap()["id"].as_str().unwrap().to_owned();
    let verified = place.run(&["verify", &partial]).expect(3);
    assert!(verified.stderr.contains("pg_multixact"), "{}", verified.stderr);

    place.run(&["prune", "--keep-window", "0s"]).expect(0);
    let listed = place.run(&["list", "--json"]).expect(0).json_lines();
    let ids: Vec<&str> = listed.iter().map(|line| line["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [whole.as_str(), partial.as_str()]);
}
