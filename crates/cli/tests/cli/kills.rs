//! Killed (SIGKILL) at any moment of a dump, a prune or a copy, the repository holds only whole dumps, and the next run
//! succeeds at once and sweeps what the dead one left.
//!
//! Twenty kills, two hundred with `PGKEEP_TEST_LONG=1`. The moments are spread evenly over the time that each command
//! took last, so that none of its steps is left out; every second time over the time from its first change on. `PGKEEP_TEST_SEED` repeats the choices of a run that failed; what a
//! command does at a moment depends on the machine all the same.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use pgkeep_testkit::compare::{Inventory, InventoryOptions, assert_same};
use pgkeep_testkit::{Cluster, ClusterOptions, poll_until, requirements};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::support::{Place, files};

const KILLS: usize = 20;
const KILLS_LONG: usize = 200;
/// A command that takes longer than this waits for something: a dead holder's lease, for one, lasts five minutes.
const AT_ONCE: Duration = Duration::from_secs(60);
/// How far the moments go beyond a command's usual end, as a share of its time: some hit its last steps on a slow day.
const BEYOND: f64 = 1.05;
/// Prunes and copies find something to do because dumps come first.
const ORDER: [Victim; 4] = [Victim::Dump, Victim::Dump, Victim::Copy, Victim::Prune];

/// What gets killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Dump,
    Prune,
    Copy,
}

/// From when on the moment counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Start,
    /// A dump mostly waits for pg_dump: its own writing is the shorter part of its time.
    FirstChange,
}

/// How far the command had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reached {
    /// Nothing of a dump had changed yet.
    Nothing,
    /// Something was half there: objects without a manifest, or dumps still to be removed or copied.
    Middle,
    /// All was done but the end of the process.
    All,
    /// It had ended before it was killed.
    End,
}

/// The dumps in a folder of them: those with a manifest, and those that have objects and none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Dumps {
    whole: Vec<String>,
    halves: Vec<String>,
}

struct Scene {
    cluster: Cluster,
    place: Place,
    second: String,
    /// How long each command takes when it's left alone.
    usual: BTreeMap<Victim, Duration>,
    /// Rows of the table that tells a new dump from an old one.
    rounds: u32,
}

#[test]
fn killed_at_any_moment_the_repository_holds_only_whole_dumps() {
    let kills = if requirements::long().is_ok() {
        KILLS_LONG
    } else {
        KILLS
    };
    let mut random = StdRng::seed_from_u64(pgkeep_testkit::seed());
    let victims: Vec<Victim> = ORDER.into_iter().cycle().take(kills).collect();
    let mut moments: BTreeMap<Victim, Vec<f64>> = BTreeMap::new();
    for victim in ORDER {
        let number = victims.iter().filter(|other| **other == victim).count();
        moments.insert(victim, spread(number, &mut random));
    }
    let mut scene = Scene::new();
    let mut counts: BTreeMap<(Victim, Reached), u32> = BTreeMap::new();
    for (number, victim) in victims.into_iter().enumerate() {
        let share = moments.get_mut(&victim).and_then(Vec::pop).unwrap();
        // Each of them in turn in both ways.
        let from = match (number / ORDER.len() + number) % 2 {
            0 => From::Start,
            _ => From::FirstChange,
        };
        *counts
            .entry((victim, scene.round(victim, share, from)))
            .or_default() += 1;
    }
    eprintln!("{kills} kills, by how far the command had come: {counts:?}");
    let of = |victim, reached| counts.get(&(victim, reached)).copied().unwrap_or(0);
    let ended: u32 = ORDER[1..].iter().map(|victim| of(*victim, Reached::End)).sum();
    // On a machine that others use the pace changes from one command to the next: then many are killed too late.
    assert!(
        ended as usize * 4 < kills * 3,
        "nearly all commands had ended before they were killed: {counts:?}"
    );
    assert!(
        of(Victim::Dump, Reached::Middle) > 0,
        "no dump was killed before its manifest: {counts:?}"
    );
    scene.finish();
}

/// Shares of a command's time, one from each of as many equal pieces, in any order.
pub fn spread(number: usize, random: &mut StdRng) -> Vec<f64> {
    let piece = BEYOND / number as f64;
    let mut shares: Vec<f64> = (0..number)
        .map(|place| (place as f64 + random.random::<f64>()) * piece)
        .collect();
    shares.shuffle(random);
    shares
}

impl Scene {
    fn new() -> Self {
        let cluster = Cluster::start(ClusterOptions::default()).unwrap();
        cluster.create_database("app");
        cluster.psql(
            "app",
            "CREATE TABLE rounds (n int PRIMARY KEY);
             CREATE TABLE noise AS SELECT i, md5(i::text) || md5((-i)::text) AS t FROM generate_series(1, 20000) i;
             CREATE TABLE small AS SELECT generate_series(1, 100) AS n; CREATE TABLE empty ();
             CREATE SEQUENCE tickets START 42",
        );
        let place = Place::in_memory();
        place.configure(&cluster, &place.repository_url(), None);
        // All that there is to dump, so that the latest dump is one of that.
        let path = place.path("pgkeep.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text + "dump = { databases = [\"app\"] }\n").unwrap();
        let second = format!("file://{}", place.path("second").display());
        let mut scene = Self {
            cluster,
            place,
            second,
            usual: BTreeMap::new(),
            rounds: 0,
        };
        // As much to do as later.
        for victim in ORDER {
            let begun = Instant::now();
            scene.place.run(&scene.arguments(victim)).expect(0);
            scene.usual.insert(victim, begun.elapsed());
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

    fn dumps(&self, repository: &str) -> Dumps {
        let mut dumps = Dumps::default();
        let folder = self.place.path(repository).join("main/dump");
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap();
            match std::fs::read(entry.path().join("manifest")) {
                Ok(manifest) if is_tombstone(&manifest) => {}
                Ok(_) => dumps.whole.push(name),
                Err(_) => dumps.halves.push(name),
            }
        }
        dumps.whole.sort();
        dumps.halves.sort();
        dumps
    }

    /// Kills one command, looks at what is left, and runs it again.
    fn round(&mut self, victim: Victim, share: f64, from: From) -> Reached {
        if victim == Victim::Dump {
            self.rounds += 1;
            self.cluster
                .psql("app", &format!("INSERT INTO rounds VALUES ({})", self.rounds));
        }
        let reached = self.kill(victim, share, from);
        self.assert_whole("repository");
        if victim == Victim::Copy {
            self.assert_whole("second");
        }
        let begun = Instant::now();
        self.place.run(&self.arguments(victim)).expect(0);
        if victim == Victim::Dump {
            // The machine is slower or faster than it was: the others are, too.
            let pace = begun.elapsed().as_secs_f64() / self.usual[&Victim::Dump].as_secs_f64();
            self.usual
                .values_mut()
                .for_each(|usual| *usual = usual.mul_f64(pace));
        }
        assert!(begun.elapsed() < AT_ONCE, "it took {:?}", begun.elapsed());
        self.assert_swept("repository");
        if victim == Victim::Copy {
            let dumps = self.dumps("second");
            assert!(
                dumps.halves.is_empty() && !dumps.whole.is_empty(),
                "copied: {dumps:?}"
            );
        }
        if victim == Victim::Dump {
            self.assert_newest_is_new();
        }
        reached
    }

    /// Starts a command and kills it when a share of its usual time is over; of a fifth of that from the first change on.
    fn kill(&self, victim: Victim, share: f64, from: From) -> Reached {
        let (before, copied) = (self.dumps("repository"), self.dumps("second"));
        let mut command = self.place.command(&self.arguments(victim));
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut wait = self.usual[&victim].mul_f64(share);
        if from == From::FirstChange {
            wait /= 5;
            poll_until("a change, or the end", AT_ONCE, || {
                let now = (self.dumps("repository"), self.dumps("second"));
                now != (before.clone(), copied.clone()) || child.try_wait().unwrap().is_some()
            });
        }
        // The one sleep of this test: the moment is what is tried.
        std::thread::sleep(wait);
        child.kill().unwrap();
        let status = child.wait().unwrap();
        if let Some(code) = status.code() {
            assert_eq!(code, 0, "{victim:?} failed before it was killed");
            return Reached::End;
        }
        let (after, copies) = (self.dumps("repository"), self.dumps("second"));
        match victim {
            Victim::Dump if after == before => Reached::Nothing,
            Victim::Dump if after.halves.is_empty() => Reached::All,
            Victim::Prune if after == before => Reached::Nothing,
            Victim::Prune if after.halves.is_empty() && after.whole.len() == 1 => Reached::All,
            Victim::Copy if copies == copied => Reached::Nothing,
            Victim::Copy
                if copies.whole.iter().filter(|id| before.whole.contains(id)).count()
                    == before.whole.len() =>
            {
                Reached::All
            }
            _ => Reached::Middle,
        }
    }

    /// Every dump that is listed is whole.
    fn assert_whole(&self, repository: &str) {
        let url = format!("file://{}", self.place.path(repository).display());
        let all = ["verify", "all", "--json", "--repository", &url];
        let verified = self.place.run(&all).expect(0).json_lines();
        let verified: Vec<&str> = verified
            .iter()
            .map(|report| report["id"].as_str().unwrap())
            .collect();
        assert_eq!(verified, self.dumps(repository).whole);
    }

    /// What the dead left is gone: a folder has its manifest and all that belongs to it, or a tombstone alone.
    fn assert_swept(&self, repository: &str) {
        let folder = self.place.path(repository).join("main/dump");
        let dumps = self.dumps(repository);
        assert!(
            dumps.halves.is_empty() && !dumps.whole.is_empty(),
            "orphans stay: {dumps:?}"
        );
        for entry in std::fs::read_dir(&folder).unwrap().flatten() {
            let found: Vec<String> = files(&entry.path())
                .iter()
                .map(|path| name_in(&entry.path(), path))
                .collect();
            if is_tombstone(&std::fs::read(entry.path().join("manifest")).unwrap()) {
                assert_eq!(found, ["manifest"], "an orphan's objects stay");
            } else {
                let checksums = std::fs::read_to_string(entry.path().join("checksums.b3")).unwrap();
                let expected = checksums.lines().count() + 1;
                assert_eq!(found.len(), expected, "{:?} holds {found:?}", entry.path());
            }
        }
    }

    /// The newest holds what the server held when it was made.
    fn assert_newest_is_new(&self) {
        let shown = self.place.run(&["show", "latest", "--json"]).expect(0).json();
        let databases = shown["manifest"]["databases"].as_array().unwrap();
        let app = databases
            .iter()
            .find(|database| database["name"] == "app")
            .unwrap();
        let relations = app["relations"].as_array().unwrap();
        let rounds = relations
            .iter()
            .find(|relation| relation["name"] == "rounds")
            .unwrap();
        assert_eq!(rounds["rows"], self.rounds);
    }

    /// At the end: all is read once more, and the last dump is restored and compared.
    fn finish(self) {
        self.place.run(&self.arguments(Victim::Copy)).expect(0);
        self.assert_whole("second");
        let destination = Cluster::start(ClusterOptions::default()).unwrap();
        let into = destination.tcp_conninfo("postgres");
        let restore = [
            "restore",
            "latest",
            "--quiet",
            "--database",
            "app",
            "--into",
            &into,
            "--repository",
            &self.second,
        ];
        self.place.run(&restore).expect(0);
        let inventory =
            |cluster: &Cluster| Inventory::of_database(cluster, "app", &InventoryOptions::default());
        assert_same(&inventory(&self.cluster), &inventory(&destination));
    }
}

/// A dump's manifest begins with age's or zstd's magic.
pub fn is_tombstone(manifest: &[u8]) -> bool {
    manifest.first() == Some(&b'{')
}

fn name_in(folder: &Path, path: &Path) -> String {
    path.strip_prefix(folder).unwrap().to_string_lossy().into_owned()
}
