//! `pgkeep wal` with real servers: killed at any moment, as PostgreSQL's archive_command and restore_command, and how it ends.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pgkeep_testkit::{Cluster, ClusterOptions, StopMode, poll_until, require, requirements, server_user};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::{Done, Place, files};

const LIMIT: Duration = Duration::from_secs(90);
const KILLS: usize = 8;
const KILLS_LONG: usize = 100;
/// How `pgkeep wal fetch` ends when it isn't certain that there is nothing.
const UNCERTAIN: i32 = 255;

fn options() -> ClusterOptions {
    ClusterOptions::default()
        .initdb_arg("--wal-segsize=1")
        .setting("autovacuum", "off")
        .setting("wal_keep_size", "1GB")
}

/// Quick to store what comes.
const QUICK: [&str; 2] = ["--set", "wal.flush_after=0.2s"];

fn stream(place: &Place) -> Child {
    let mut command = place.command(&[&["wal", "stream", "--json"], &QUICK[..]].concat());
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn end(place: &Place, child: Child) -> Done {
    let sent = Command::new("kill").arg(child.id().to_string()).status();
    assert!(sent.unwrap().success());
    place.done(child.wait_with_output().unwrap())
}

fn position(cluster: &Cluster) -> u64 {
    let sql = "SELECT pg_current_wal_flush_lsn() - '0/0'";
    cluster.psql("postgres", sql).parse().unwrap()
}

fn bytes_of(lsn: &serde_json::Value) -> u64 {
    let (high, low) = lsn.as_str().unwrap().split_once('/').unwrap();
    let part = |digits| u64::from_str_radix(digits, 16).unwrap();
    part(high) << 32 | part(low)
}

/// The ranges that `pgkeep wal status` tells of the first timeline.
fn ranges(place: &Place, code: i32) -> Vec<(u64, u64)> {
    let status = place.run(&["wal", "status", "--json"]).expect(code);
    let Some(document) = status.json_lines().into_iter().next() else {
        return Vec::new();
    };
    let timelines = document["timelines"].as_array().unwrap().clone();
    let Some(first) = timelines.first() else {
        return Vec::new();
    };
    let ranges = first["ranges"].as_array().unwrap();
    ranges
        .iter()
        .map(|range| (bytes_of(&range["start"]), bytes_of(&range["end"])))
        .collect()
}

fn until_stored(place: &Place, end: u64) {
    poll_until("all is stored", LIMIT, || {
        ranges(place, 0).last().is_some_and(|(_, stored)| *stored >= end)
    });
}

#[test]
fn killed_at_any_moment_the_receiver_leaves_no_gap() {
    let cluster = require!(Cluster::start(options()));
    cluster.psql("postgres", "CREATE TABLE load(t text)");
    let script = cluster.socket_dir().join("load.sql");
    std::fs::write(
        &script,
        "INSERT INTO load SELECT md5(random()::text) FROM generate_series(1, 200);",
    )
    .unwrap();
    let mut load = cluster
        .client_command("pgbench")
        .args(["-n", "-c", "2", "-T", "600", "-R", "150", "-f"])
        .arg(&script)
        .arg("postgres")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let place = Place::with(&cluster, None);
    let kills = if requirements::long().is_ok() {
        KILLS_LONG
    } else {
        KILLS
    };
    let mut random = StdRng::seed_from_u64(pgkeep_testkit::seed());
    for _ in 0..kills {
        let mut child = stream(&place);
        // The moment itself is what is tested.
        std::thread::sleep(Duration::from_millis(random.random_range(0..1500)));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    load.kill().unwrap();
    load.wait().unwrap();
    let end_position = position(&cluster);
    let child = stream(&place);
    until_stored(&place, end_position);
    let done = end(&place, child).expect(0);
    let last = done.json_lines().pop().unwrap();
    assert_eq!(
        (&last["event"], &last["gaps"]),
        (&"ended".into(), &serde_json::json!([]))
    );
    let ranges = ranges(&place, 0);
    assert_eq!(ranges.len(), 1, "{ranges:?}");
    compare(&place, &cluster, ranges[0].0, end_position);
}

/// Fetches all segments, and compares them with the server's.
fn compare(place: &Place, cluster: &Cluster, start: u64, end: u64) {
    let out = place.path("fetched");
    for number in start >> 20..=(end - 1) >> 20 {
        let name = format!("00000001{:08X}{:08X}", number >> 12, number & 0xFFF);
        place
            .run(&["wal", "fetch", &name, out.to_str().unwrap()])
            .expect(0);
        let (ours, theirs) = (
            std::fs::read(&out).unwrap(),
            std::fs::read(cluster.data_dir().join("pg_wal").join(&name)).unwrap(),
        );
        assert_eq!(ours.len(), theirs.len());
        let length = usize::try_from((end - (number << 20)).min(1 << 20)).unwrap();
        assert!(ours[..length] == theirs[..length], "{name} differs");
    }
}

#[test]
fn a_receiver_that_is_told_to_end_stores_and_confirms_what_came() {
    let cluster = require!(Cluster::start(options()));
    let place = Place::with(&cluster, None);
    // Nothing goes by itself for an hour.
    let mut command = place.command(&["wal", "stream", "--json", "--set", "wal.flush_after=1h"]);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let sent = "SELECT count(*) FROM pg_stat_replication WHERE sent_lsn >= pg_current_wal_flush_lsn()";
    poll_until("it streams", LIMIT, || cluster.psql("postgres", sent) == "1");
    cluster.psql("postgres", "CREATE TABLE t AS SELECT generate_series(1, 1000)");
    poll_until("all was sent", LIMIT, || cluster.psql("postgres", sent) == "1");
    let end_position = position(&cluster);
    end(&place, child).expect(0);
    let stored = ranges(&place, 0);
    assert!(stored.len() == 1 && stored[0].1 >= end_position, "{stored:?}");
    let confirmed = cluster.psql(
        "postgres",
        "SELECT restart_lsn - '0/0' FROM pg_replication_slots WHERE slot_name = 'pgkeep'",
    );
    assert_eq!(confirmed.parse::<u64>().unwrap(), stored[0].1);
    compare(&place, &cluster, stored[0].0, end_position);
}

#[test]
fn what_is_wrong_from_the_start_ends_it_at_once() {
    let cluster = require!(Cluster::start(options()));
    let place = Place::with(&cluster, None);
    place
        .run(&["wal", "stream", "--set", "wal.slot=No-Such-Name"])
        .expect(2);
    place
        .run(&[
            "wal",
            "stream",
            "--repository",
            "file:///a",
            "--repository",
            "file:///b",
        ])
        .expect(2);
    let other = require!(Cluster::start(options()));
    let child = stream(&place);
    until_stored(&place, position(&cluster));
    end(&place, child).expect(0);
    let connection = other.tcp_conninfo("postgres");
    place
        .run(&["wal", "stream", "--connection", &connection])
        .expect(4);
}

#[test]
fn fetch_that_was_called_wrongly_is_not_taken_for_the_end() {
    let cluster = require!(Cluster::start(options()));
    let place = Place::with(&cluster, None);
    let (name, out) = ("000000010000000000000001", "out");
    // No repository, wrong usage, no configuration.
    place.run(&["wal", "fetch", name, out]).expect(UNCERTAIN);
    place.run(&["wal", "fetch", name]).expect(UNCERTAIN);
    place
        .run(&["wal", "fetch", name, out, "--nonsense"])
        .expect(UNCERTAIN);
    place
        .run(&["--config", "/nowhere.toml", "wal", "fetch", name, out])
        .expect(UNCERTAIN);
}

#[test]
fn fetch_ends_with_one_only_if_there_is_certainly_nothing() {
    let cluster = require!(Cluster::start(options()));
    let place = Place::with(&cluster, None);
    let out = place.path("out");
    let out = out.to_str().unwrap();
    let wal = cluster.data_dir().join("pg_wal");
    let data = cluster.data_dir();
    let data = data.to_str().unwrap();
    for _ in 0..3 {
        cluster.psql(
            "postgres",
            "SELECT pg_logical_emit_message(true, 'x', 'y'); SELECT pg_switch_wal()",
        );
    }
    // At a segment's edge, the one before would be told as the current one.
    cluster.psql("postgres", "SELECT pg_logical_emit_message(true, 'x', 'y')");
    let mut names: Vec<String> = std::fs::read_dir(&wal)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.len() == 24)
        .collect();
    names.sort();
    let current = cluster.psql("postgres", "SELECT pg_walfile_name(pg_current_wal_lsn())");
    names.retain(|name| *name < current);
    assert!(names.len() >= 3);
    let push = |name: &str| {
        place.run(&[
            "wal",
            "push",
            wal.join(name).to_str().unwrap(),
            "--data-directory",
            data,
        ])
    };
    for name in &names {
        push(name).expect(0);
        push(name).expect(0);
        place.run(&["wal", "fetch", name, out]).expect(0);
        assert_eq!(
            std::fs::read(out).unwrap(),
            std::fs::read(wal.join(name)).unwrap()
        );
    }
    // What comes next isn't there, nor is a history.
    for absent in [&current, "00000002.history"] {
        place.run(&["wal", "fetch", absent, out]).expect(1);
    }
    place.run(&["wal", "fetch", "nonsense", out]).expect(UNCERTAIN);
    let below_a_file = place.path("pgkeep.toml/out");
    let below_a_file = below_a_file.to_str().unwrap();
    place.run(&["wal", "fetch", &current, below_a_file]).expect(1);
    place
        .run(&["wal", "fetch", &names[0], below_a_file])
        .expect(UNCERTAIN);
    // Other contents under a name that is taken, and a file that isn't what its name says.
    let altered = place.path(&names[0]);
    let mut bytes = std::fs::read(wal.join(&names[0])).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(&altered, &bytes).unwrap();
    place.run(&["wal", "push", altered.to_str().unwrap()]).expect(4);
    let renamed = place.path(&names[1]);
    std::fs::write(&renamed, &bytes).unwrap();
    place.run(&["wal", "push", renamed.to_str().unwrap()]).expect(1);
    // A hole, and no key.
    std::fs::remove_file(place.object(&format!("{}.zst.age", names[1]))).unwrap();
    place.run(&["wal", "fetch", &names[1], out]).expect(UNCERTAIN);
    let status = place.run(&["wal", "status"]).expect(3);
    assert!(status.stderr.contains("is missing"), "{}", status.stderr);
    std::fs::remove_file(place.path("pgkeep.key")).unwrap();
    place.run(&["wal", "fetch", &names[0], out]).expect(UNCERTAIN);
}

/// A folder that the server's user may work in, with the binary, the configuration and the repository.
fn for_the_server(place: &Place) -> String {
    let folder = place.folder.path();
    let binary = folder.join("pgkeep");
    std::fs::copy(env!("CARGO_BIN_EXE_pgkeep"), &binary).unwrap();
    let script = folder.join("wal.sh");
    let text = format!(
        "#!/bin/sh\nexport HOME={folder} PGKEEP_IDENTITY_FILE={folder}/pgkeep.key\nexec {folder}/pgkeep --config \
         {folder}/pgkeep.toml wal \"$@\" 2>>{folder}/wal.log\n",
        folder = folder.display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::create_dir_all(place.path("repository")).unwrap();
    give(folder);
    script.display().to_string()
}

fn give(folder: &Path) {
    let Some((user, group)) = server_user() else {
        return;
    };
    let (user, group) = (Some(user.as_raw()), Some(group.as_raw()));
    chown(folder, user, group).unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            give(&path);
        } else {
            std::os::unix::fs::lchown(&path, user, group).unwrap();
        }
    }
}

#[test]
fn a_server_archives_by_push_and_recovers_by_fetch() {
    let cluster = require!(Cluster::start(
        options()
            .setting("archive_mode", "on")
            .setting("archive_command", "/bin/false")
    ));
    let place = Place::with(&cluster, None);
    let script = for_the_server(&place);
    cluster.set("archive_command", &format!("{script} push \"%p\""));
    cluster.psql("postgres", "SELECT pg_reload_conf()");
    let mut copy = Cluster::start(options()).unwrap();
    copy.stop(StopMode::Fast);
    std::fs::remove_dir_all(copy.data_dir()).unwrap();
    let backup = cluster
        .client_command("pg_basebackup")
        .args(["-Xnone", "-cfast", "-D"])
        .arg(copy.data_dir())
        .output()
        .unwrap();
    assert!(backup.status.success(), "{backup:?}\n{}", log(&place));
    cluster.psql(
        "postgres",
        "CREATE TABLE t AS SELECT generate_series(1, 30000) AS n",
    );
    let last = cluster.psql("postgres", "SELECT pg_walfile_name(pg_switch_wal())");
    poll_until("the last segment is archived", LIMIT, || {
        cluster.psql(
            "postgres",
            "SELECT coalesce(max(last_archived_wal), '') FROM pg_stat_archiver",
        ) >= last
    });
    copy.set("unix_socket_directories", copy.socket_dir().to_str().unwrap());
    copy.set("archive_mode", "off");
    copy.set("restore_command", &format!("{script} fetch %f \"%p\""));
    give(&copy.data_dir());
    copy.write_file("recovery.signal", "");
    copy.start_again();
    poll_until("it is promoted", LIMIT, || {
        copy.psql("postgres", "SELECT pg_is_in_recovery()") == "f"
    });
    assert_eq!(
        copy.psql("postgres", "SELECT count(*) FROM t"),
        "30000",
        "{}",
        log(&place)
    );
    assert!(!files(&place.path("repository")).is_empty());
}

fn log(place: &Place) -> String {
    std::fs::read_to_string(place.path("wal.log")).unwrap_or_default()
}
