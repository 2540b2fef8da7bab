//! Base backups by the binary: taken, listed, restored to a moment, refused; killed at any moment, there is a whole one or none.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use pgkeep_testkit::{Cluster, ClusterOptions, requirements, run, seed};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::kills::spread;
use crate::support::{Place, files, server_with};

const KILLS: usize = 6;
const KILLS_LONG: usize = 60;
/// A command that takes longer than this waits for something: a dead holder's lease, for one, lasts five minutes.
const AT_ONCE: Duration = Duration::from_secs(60);

fn backup(place: &Place) -> String {
    let done = place.run(&["backup", "--quiet", "--fast-checkpoint"]).expect(0);
    done.stdout.trim().to_owned()
}

fn small_segments() -> ClusterOptions {
    ClusterOptions::default()
        .initdb_arg("--data-checksums")
        .initdb_arg("--wal-segsize=1")
}

#[test]
fn a_base_backup_is_taken_shown_verified_and_restored() {
    let cluster = server_with(small_segments());
    let place = Place::with(&cluster, None);
    let dump = place.dump();
    let taken = place
        .run(&[
            "backup",
            "--json",
            "--fast-checkpoint",
            "--annotate",
            "why=a test",
        ])
        .expect(0)
        .json();
    let id = taken["id"].as_str().unwrap();
    assert!(id.starts_with('b') && taken["kind"] == "base", "{taken}");
    cluster.psql("app", "INSERT INTO players VALUES (-1, 'too late', now())");

    let mut listed = place.run(&["list", "--json"]).expect(0).json_lines();
    // By time, and of one second by id.
    listed.sort_by_key(|entry| entry["kind"] != "dump");
    let kinds: Vec<_> = listed
        .iter()
        .map(|entry| (&entry["kind"], &entry["state"]))
        .collect();
    assert_eq!(
        format!("{kinds:?}"),
        r#"[(String("dump"), String("complete")), (String("base"), String("complete"))]"#
    );
    assert_eq!(listed[1]["summary"]["annotations"]["why"], "a test");
    let table = place.run(&["list"]).expect(0).stdout;
    assert!(table.contains(id) && table.contains("(base backup)"), "{table}");
    let shown = place.run(&["show", id]).expect(0).stdout;
    assert!(
        shown.contains("on timeline 1") && shown.contains("why=a test"),
        "{shown}"
    );
    let verified = place.run(&["verify", &id[..12]]).expect(0).stdout;
    assert!(verified.contains("is good"), "{verified}");
    assert_eq!(
        place
            .run(&["verify", "all", "--json"])
            .expect(0)
            .json_lines()
            .len(),
        2
    );
    place.run(&["pin", id, "--reason", "kept"]).expect(0);
    let shown = place.run(&["show", id]).expect(0).stdout;
    assert!(shown.contains("kept") && shown.contains("contents"), "{shown}");
    place.run(&["unpin", id]).expect(0);

    let mut restored = Cluster::unmade(cluster.pg_bin(), cluster.major());
    let into = restored.data_dir().display().to_string();
    let planned = place
        .run(&["restore", id, "--into", &into, "--to-backup-end", "--dry-run"])
        .expect(0);
    assert!(planned.stdout.contains("Nothing was done") && !restored.data_dir().exists());
    let done = place
        .run(&["restore", "latest", "--into", &into])
        .expect(0)
        .stdout;
    assert!(done.contains(id) && done.contains("pg_ctl -D"), "{done}");
    restored.start_restored();
    assert_eq!(restored.psql("app", "SELECT count(*) FROM players"), "3000");
    // It is somebody's directory now.
    let again = place.run(&["restore", "latest", "--into", &into]).expect(4);
    assert!(again.stderr.contains("is not empty"), "{}", again.stderr);
    assert_eq!(restored.psql("app", "SELECT count(*) FROM players"), "3000");
    // The dump is what it was.
    place.run(&["verify", &dump]).expect(0);
}

#[test]
fn an_export_is_what_postgresql_s_own_programs_know() {
    let cluster = server_with(small_segments());
    let place = Place::with(&cluster, None);
    let (id, dump) = (backup(&place), place.dump());
    let mut exported = Cluster::unmade(cluster.pg_bin(), cluster.major());
    let into = exported.data_dir().display().to_string();
    for (args, said) in [
        (vec![&*id, "--format", "plain"], "is a base backup"),
        (vec![&*id, "--database", "app"], "as a whole"),
        (vec![&*dump, "--format", "basebackup"], "is a dump"),
        (vec![&*dump, "--tablespace", "/a=/b"], "for base backups"),
        (vec![&*id, "--tablespace", "/a=/b"], "no tablespace /a"),
    ] {
        let args = [&["export"], args.as_slice(), &["--output", &into]].concat();
        let refused = place.run(&args).expect(2);
        assert!(refused.stderr.contains(said), "{args:?}: {}", refused.stderr);
        assert!(!exported.data_dir().exists(), "{args:?}");
    }
    let latest = ["export", "--format", "basebackup", "--output", &into];
    let done = place.run(&latest).expect(0).stdout;
    assert!(done.contains(&id) && done.contains("pg_verifybackup"), "{done}");
    run(exported.client_command("pg_verifybackup").arg(&into));
    exported.start_restored();
    assert_eq!(exported.psql("app", "SELECT count(*) FROM players"), "3000");
}

#[test]
fn what_belongs_to_the_other_kind_is_refused() {
    let cluster = server_with(small_segments());
    let place = Place::with(&cluster, None);
    let (id, dump) = (backup(&place), place.dump());
    let other = format!("file://{}", place.path("other").display());
    let connection = cluster.tcp_conninfo("postgres");
    let unplaced = "--to-lsn=FFFFFFFF/0";
    for (args, code, said) in [
        (vec!["copy", &id, "--to", &other], 2, "is a base backup"),
        (vec!["verify", &id, "--stored-only"], 2, "as a whole"),
        (vec!["restore", &id, "--into", &connection], 2, "into a directory"),
        (
            vec!["restore", &id, "--into", "./x", "--database", "app"],
            2,
            "--database is for dumps",
        ),
        (
            vec!["restore", &id, "--into", "./x", "--overwrite"],
            2,
            "--overwrite is for dumps",
        ),
        (
            vec!["restore", &id, "--into", "./x", "--to-time", "yesterday"],
            2,
            "is no time",
        ),
        (
            vec!["restore", &id, "--into", "./x", "--to-end", "--to-backup-end"],
            2,
            "cannot be used with",
        ),
        (
            vec!["restore", &id, "--into", "./x", unplaced],
            4,
            "behind the WAL",
        ),
        (
            vec!["restore", &id, "--into", "./x", "--to-time", "2001-01-01 00:00"],
            4,
            "before the end",
        ),
        (vec!["restore", &dump, "--into", "./x"], 2, "server:./x"),
        (
            vec!["restore", &dump, "--into", &connection, "--to-end"],
            2,
            "has no WAL",
        ),
        (
            vec!["backup", "--repository", "file:///a", "--repository", "file:///b"],
            2,
            "names 2 places",
        ),
    ] {
        let done = place.run(&args).expect(code);
        assert!(done.stderr.contains(said), "{args:?}: {}", done.stderr);
        assert!(!place.path("x").exists(), "{args:?}");
    }
}

#[test]
fn neither_a_prune_nor_a_copy_takes_dumps_for_base_backups() {
    let cluster = server_with(small_segments());
    let place = Place::with(&cluster, None);
    let (id, _) = (backup(&place), place.dump());
    let other = format!("file://{}", place.path("other").display());
    let copied = place.run(&["copy", "all", "--to", &other]).expect(3);
    assert!(copied.stderr.contains(&id), "{}", copied.stderr);
    assert!(
        files(&place.path("other"))
            .iter()
            .all(|path| !path.to_string_lossy().contains("/base/"))
    );
    // A prune lets neither the last base backup go, nor what it needs.
    let before = files(&place.path("repository"));
    place.run(&["prune", "--keep-daily", "1"]).expect(0);
    let after = files(&place.path("repository"));
    let of_bases = |path: &&PathBuf| {
        ["/base/", "/wal/"]
            .iter()
            .any(|part| path.to_string_lossy().contains(part))
    };
    assert_eq!(
        before.iter().filter(of_bases).count(),
        after.iter().filter(of_bases).count()
    );
    place.run(&["verify", &id]).expect(0);
}

/// The base backups that `list` shows, all of them complete.
fn listed(place: &Place) -> Vec<String> {
    let listed = place.run(&["list", "--json"]).expect(0).json_lines();
    let complete = listed.iter().map(|entry| {
        assert_eq!(entry["state"], "complete", "{entry}");
        entry["id"].as_str().unwrap().to_owned()
    });
    complete.collect()
}

#[test]
fn killed_at_any_moment_there_is_a_whole_backup_or_none() {
    let kills = match requirements::long() {
        Ok(()) => KILLS_LONG,
        Err(_) => KILLS,
    };
    let cluster = server_with(small_segments());
    let place = Place::with(&cluster, None);
    let begun = Instant::now();
    let mut there = vec![backup(&place)];
    let usual = begun.elapsed();
    for share in spread(kills, &mut StdRng::seed_from_u64(seed())) {
        let mut running = place
            .command(&["backup", "--quiet", "--fast-checkpoint"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(usual.mul_f64(share));
        running.kill().unwrap();
        running.wait().unwrap();
        let found = listed(&place);
        // Killed after its manifest, it is one more.
        assert!(
            found.starts_with(&there) && found.len() <= there.len() + 1,
            "{found:?} {there:?}"
        );
        there = found;
        let begun = Instant::now();
        there.push(backup(&place));
        assert!(begun.elapsed() < AT_ONCE, "it waited for something");
        assert_eq!(listed(&place), there);
        // The dead one's objects are gone.
        let folders = fs::read_dir(place.path("repository/main/base"))
            .unwrap()
            .map(|entry| entry.unwrap().path());
        for folder in folders {
            let name = folder.file_name().unwrap().to_string_lossy().into_owned();
            let objects = files(&folder);
            assert!(there.contains(&name) || objects.len() <= 1, "{objects:?}");
        }
        let slots = "SELECT count(*) FROM pg_replication_slots";
        pgkeep_testkit::poll_until("the dead one's slot is gone", AT_ONCE, || {
            cluster.psql("postgres", slots) == "0"
        });
    }
    for id in &there {
        place.run(&["verify", id]).expect(0);
    }
    // All the while, they referred to one another.
    let last = place
        .run(&["show", there.last().unwrap(), "--json"])
        .expect(0)
        .json();
    assert!(
        last["manifest"]["totals"]["reused_objects"].as_u64() > Some(0),
        "{last}"
    );
}

#[test]
fn what_was_stored_and_what_is_referred_to_is_told() {
    let cluster = server_with(small_segments());
    let place = Place::with(&cluster, None);
    let first = backup(&place);
    let second = place.run(&["backup", "--fast-checkpoint"]).expect(0).stdout;
    assert!(second.contains("in 1 pack of earlier backups"), "{second}");
    let totals = |arguments: &[&str]| {
        let taken = place.run(arguments).expect(0).json();
        let number = |name: &str| taken["totals"][name].as_u64().unwrap();
        (
            number("reused_bytes"),
            number("stored_bytes"),
            taken["id"].to_string(),
        )
    };
    let (reused, stored, _) = totals(&["backup", "--json", "--fast-checkpoint"]);
    assert!(
        reused > 0 && reused < stored && stored - reused < 1 << 20,
        "{reused} {stored}"
    );
    let (reused, stored, full) = totals(&["backup", "--json", "--fast-checkpoint", "--full"]);
    assert!(reused == 0 && stored > 1 << 20, "{stored}");
    let list = place.run(&["list"]).expect(0).stdout;
    assert_eq!(list.matches(" new").count(), 2, "{list}");
    let full = full.trim_matches('"');
    let shown = place.run(&["show", full]).expect(0).stdout;
    assert!(!shown.contains("of earlier backups"), "{shown}");
    let shown = place.run(&["show", &first]).expect(0).stdout;
    assert!(!shown.contains("of earlier backups"), "{shown}");
    // The cache may go at any time; with the secret key nothing is lost.
    fs::remove_dir_all(place.path(".cache/pgkeep")).unwrap();
    let (reused, ..) = totals(&["backup", "--json", "--fast-checkpoint"]);
    assert!(reused > 0);
}

/// A killed restore leaves a directory that no server starts from and no restore takes.
/// Names and contents of everything below a directory.
fn everything(directory: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut all = BTreeMap::new();
    let mut left = vec![PathBuf::new()];
    while let Some(below) = left.pop() {
        for entry in fs::read_dir(directory.join(&below)).unwrap() {
            let name = below.join(entry.unwrap().file_name());
            let is_directory = directory.join(&name).is_dir();
            let contents = (!is_directory).then(|| fs::read(directory.join(&name)).unwrap());
            all.insert(name.clone(), contents);
            left.extend(is_directory.then_some(name));
        }
    }
    all
}

#[test]
fn a_killed_restore_is_no_server() {
    let cluster = server_with(small_segments());
    let place = Place::with(&cluster, None);
    backup(&place);
    let restore = |into: &str| place.command(&["restore", "--into", into, "--quiet"]);
    let begun = Instant::now();
    // With 3, the files belong to root, as nobody else does here.
    let whole = restore("./whole").output().unwrap().status.code();
    assert!(matches!(whole, Some(0 | 3)), "{whole:?}");
    let usual = begun.elapsed();
    let mut marked = 0;
    for (number, share) in [0.0, 0.1, 0.3, 0.6].into_iter().enumerate() {
        let into = format!("./killed{number}");
        let mut running = restore(&into)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mark = place.path(&into).join("pgkeep.restore");
        pgkeep_testkit::poll_until("it begins", AT_ONCE, || mark.exists());
        std::thread::sleep(usual.mul_f64(share));
        running.kill().unwrap();
        running.wait().unwrap();
        let directory = place.path(&into);
        if directory.join("pgkeep.restore").exists() {
            marked += 1;
            let refused = place.run(&["restore", "--into", &into]).expect(4);
            assert!(refused.stderr.contains("stopped half-way"), "{}", refused.stderr);
            assert!(!directory.join("global/pg_control").exists() || directory.join("backup_label").exists());
            let gone_on = place
                .command(&["restore", "--into", &into, "--resume", "--quiet"])
                .output()
                .unwrap();
            assert_eq!(gone_on.status.code(), whole);
            assert_eq!(everything(&directory), everything(&place.path("whole")));
        } else if directory.exists() {
            let whole = directory.join("global/pg_control").exists();
            assert!(whole || fs::read_dir(&directory).unwrap().next().is_none());
        }
    }
    assert!(marked > 0, "every restore had ended before it was killed");
}
