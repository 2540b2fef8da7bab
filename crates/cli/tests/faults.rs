//! Killed at any moment, the repository holds only whole dumps, and the next run succeeds at once.
//!
//! Twenty kills, two hundred with `PGKEEP_TEST_LONG=1`; `PGKEEP_TEST_SEED` repeats the choices of a run that failed (the
//! moments depend on the machine all the same).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[allow(dead_code, reason = "the other tests' support, of which this one uses a part")]
#[path = "cli/support.rs"]
mod support;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use pgkeep_testkit::compare::{Inventory, InventoryOptions, assert_same};
use pgkeep_testkit::{Cluster, ClusterOptions, poll_until, require, requirements};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::{Place, files};

const KILLS: u32 = 20;
const KILLS_LONG: u32 = 200;
/// A command that takes longer than this waits for something: a dead holder's lease, for one, lasts five minutes.
const AT_ONCE: Duration = Duration::from_secs(60);

/// What gets killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Dump,
    Prune,
    Copy,
}

struct Scene {
    cluster: Cluster,
    place: Place,
    second: String,
    random: StdRng,
    /// How long each command takes when it's left alone.
    durations: BTreeMap<Victim, Duration>,
    rounds: u32,
}

#[test]
fn killed_at_any_moment_the_repository_holds_only_whole_dumps() {
    let seed = std::env::var("PGKEEP_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| rand::rng().random());
    eprintln!("PGKEEP_TEST_SEED={seed}");
    let kills = if requirements::long().is_ok() {
        KILLS_LONG
    } else {
        KILLS
    };
    let mut scene = Scene::new(require!(Cluster::start(ClusterOptions::default())), seed);
    let mut outcomes: BTreeMap<(Victim, &str), u32> = BTreeMap::new();
    for _ in 0..kills {
        let (victim, outcome) = scene.round();
        *outcomes.entry((victim, outcome)).or_default() += 1;
    }
    eprintln!("{outcomes:?}");
    scene.finish(&require!(Cluster::start(ClusterOptions::default())));
}

impl Scene {
    fn new(cluster: Cluster, seed: u64) -> Self {
        cluster.create_database("app");
        cluster.psql(
            "app",
            "CREATE TABLE rounds (n int PRIMARY KEY);
             CREATE TABLE noise AS SELECT i, md5(i::text) || md5((-i)::text) AS t FROM generate_series(1, 60000) i;
             DO $$ BEGIN FOR i IN 1..40 LOOP
               EXECUTE format('CREATE TABLE small_%s AS SELECT generate_series(1, %s) AS n', i, i * 10);
             END LOOP; END $$;
             SELECT lo_from_bytea(7, 'large object') \\g /dev/null",
        );
        let place = Place::with(&cluster, None);
        let second = format!("file://{}", place.path("second").display());
        let mut scene = Self {
            cluster,
            place,
            second,
            random: StdRng::seed_from_u64(seed),
            durations: BTreeMap::new(),
            rounds: 0,
        };
        for victim in [Victim::Dump, Victim::Dump, Victim::Copy, Victim::Prune] {
            let begun = Instant::now();
            scene.place.run(&scene.arguments(victim)).expect(0);
            scene.durations.insert(victim, begun.elapsed());
        }
        scene
    }

    fn arguments(&self, victim: Victim) -> Vec<&str> {
        match victim {
            Victim::Dump => vec!["dump", "--quiet", "--jobs", "2"],
            Victim::Prune => vec!["prune", "--quiet", "--keep-daily", "1"],
            Victim::Copy => vec!["copy", "all", "--quiet", "--to", &self.second],
        }
    }

    /// Kills one command, and looks at what is left.
    fn round(&mut self) -> (Victim, &'static str) {
        self.rounds += 1;
        self.cluster
            .psql("app", &format!("INSERT INTO rounds VALUES ({})", self.rounds));
        let victim = match self.random.random_range(0..10) {
            0..6 => Victim::Dump,
            6..8 => Victim::Prune,
            _ => Victim::Copy,
        };
        if victim == Victim::Prune {
            // Something to prune.
            self.place.dump();
        }
        let outcome = self.kill(victim);
        self.assert_whole();
        // The command that was killed, again: at once, whatever the dead one held.
        let begun = Instant::now();
        self.place.run(&self.arguments(victim)).expect(0);
        if victim != Victim::Dump {
            self.place.dump();
        }
        assert!(begun.elapsed() < AT_ONCE, "it took {:?}", begun.elapsed());
        self.assert_no_orphans(Path::new("repository"));
        if victim == Victim::Copy {
            self.place
                .run(&["verify", "latest", "--quiet", "--repository", &self.second])
                .expect(0);
        }
        // The newest holds what the server held when it was made.
        let shown = self
            .place
            .run(&["show", "latest", "--json", "--tables"])
            .expect(0)
            .stdout;
        let rows = rows_of(&serde_json::from_str(&shown).unwrap(), "rounds");
        assert_eq!(rows, Some(u64::from(self.rounds)), "{shown}");
        self.place.run(&["verify", "latest", "--quiet"]).expect(0);
        (victim, outcome)
    }

    /// Starts a command and kills it at a random moment of its usual time.
    fn kill(&mut self, victim: Victim) -> &'static str {
        let usual = self.durations.get(&victim).copied().unwrap_or(AT_ONCE);
        let moment = usual.mul_f64(self.random.random_range(0.0..1.1));
        let gently = self.random.random_ratio(1, 6);
        let mut command = self.place.command(&self.arguments(victim));
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The one sleep of this test: the moment is what is tried.
        std::thread::sleep(moment);
        if gently {
            signal("TERM", &child);
        } else {
            child.kill().unwrap();
        }
        let status = wait(&mut child);
        match (status.code(), status.signal()) {
            (Some(0), None) => "had ended",
            (None, Some(9)) if !gently => "killed",
            // Before it listens for signals, SIGTERM ends it as it ends any program.
            (Some(1), None) | (None, Some(15)) if gently => "asked to end",
            other => panic!("{victim:?} ended with {other:?}"),
        }
    }

    /// Every dump that is listed is whole, in both repositories.
    fn assert_whole(&self) {
        for repository in [self.place.repository_url(), self.second.clone()] {
            let all = [
                "verify",
                "all",
                "--quiet",
                "--stored-only",
                "--repository",
                &repository,
            ];
            self.place.run(&all).expect(0);
            let listed = self
                .place
                .run(&["list", "--json", "--repository", &repository])
                .expect(0);
            for dump in listed.json_lines() {
                let id = dump["id"].as_str().unwrap();
                self.place
                    .run(&["show", id, "--quiet", "--repository", &repository])
                    .expect(0);
            }
        }
    }

    /// What the dead left is gone: a folder has its manifest and all that belongs to it, or a tombstone alone.
    fn assert_no_orphans(&self, repository: &Path) {
        let listed = self
            .place
            .run(&["list", "--all", "--json"])
            .expect(0)
            .json_lines();
        assert!(!listed.is_empty());
        for dump in &listed {
            let id = dump["id"].as_str().unwrap();
            let folder = self
                .place
                .path(&repository.join("main/dump").join(id).to_string_lossy());
            let found: Vec<String> = files(&folder)
                .iter()
                .map(|path| path.strip_prefix(&folder).unwrap().to_string_lossy().into_owned())
                // Half a file of a writer that was killed; it is no object, and `prune` removes it after a day.
                .filter(|name| !name.contains('#'))
                .collect();
            let tombstone = std::fs::read(folder.join("manifest")).unwrap().first() == Some(&b'{');
            if tombstone {
                assert_eq!(found, ["manifest"], "an orphan's objects stay: {dump}");
            } else {
                let checksums = std::fs::read_to_string(folder.join("checksums.b3")).unwrap();
                assert_eq!(found.len(), checksums.lines().count() + 2, "{id} holds {found:?}");
            }
        }
    }

    /// At the end: everything is read, and the last dump is restored and compared.
    fn finish(self, destination: &Cluster) {
        self.place.run(&["verify", "all", "--quiet"]).expect(0);
        self.place
            .run(&["copy", "all", "--quiet", "--to", &self.second])
            .expect(0);
        self.place
            .run(&["verify", "all", "--quiet", "--repository", &self.second])
            .expect(0);
        let into = destination.tcp_conninfo("postgres");
        self.place
            .run(&["restore", "latest", "--quiet", "--into", &into])
            .expect(0);
        let inventory =
            |cluster: &Cluster| Inventory::of_database(cluster, "app", &InventoryOptions::default());
        assert_same(&inventory(&self.cluster), &inventory(destination));
    }
}

fn signal(name: &str, child: &Child) {
    // It may have ended meanwhile.
    let _ = std::process::Command::new("kill")
        .args(["-s", name, &child.id().to_string()])
        .stderr(Stdio::null())
        .status()
        .unwrap();
}

fn wait(child: &mut Child) -> ExitStatus {
    let mut status = None;
    poll_until("the end of a killed command", AT_ONCE, || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

/// The rows of a table, wherever in the document it is described.
fn rows_of(value: &serde_json::Value, table: &str) -> Option<u64> {
    match value {
        serde_json::Value::Object(map) => {
            let named = map.get("name").and_then(|name| name.as_str());
            let is_it = named.is_some_and(|name| name == table || name == format!("public.{table}"));
            match map.get("rows").and_then(serde_json::Value::as_u64) {
                Some(rows) if is_it => Some(rows),
                _ => map.values().find_map(|value| rows_of(value, table)),
            }
        }
        serde_json::Value::Array(values) => values.iter().find_map(|value| rows_of(value, table)),
        _ => None,
    }
}
