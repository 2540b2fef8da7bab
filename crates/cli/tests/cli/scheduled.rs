//! `pgkeep run`: what it does with a real server, store and clock. What is due when is tested with a simulated clock in
//! `crates/schedule`.

use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use pgkeep_testkit::{Missing, poll_until, require};
use serde_json::Value;

use crate::support::{Place, files, server};

const LIMIT: Duration = Duration::from_secs(60);
/// Due once a year: what happens in a test is what happens at the start.
pub const YEARLY: &str = "0 0 1 1 *";

/// `pgkeep run` in the background; gone at the end.
pub struct Running {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Running {
    pub fn start(place: &Place, args: &[&str]) -> Self {
        let (stdout, stderr) = (place.path("run.out"), place.path("run.err"));
        let mut command = place.command(&[&["run"], args].concat());
        command
            .stdout(File::create(&stdout).unwrap())
            .stderr(File::create(&stderr).unwrap());
        let child = command.spawn().unwrap();
        Self {
            child,
            stdout,
            stderr,
        }
    }

    pub fn said(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap()
    }

    /// The events of `--json` so far.
    pub fn events(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.stdout).unwrap();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    pub fn wait_for(&mut self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        poll_until(what, LIMIT, || {
            let done = condition(self);
            let ended = self.child.try_wait().unwrap();
            assert!(
                done || ended.is_none(),
                "it has ended: {ended:?}: {}",
                self.said()
            );
            done
        });
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status().unwrap();
        assert!(sent.success());
    }

    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        poll_until("its end", LIMIT, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(!self.said().contains("panicked"), "{}", self.said());
        status.unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn with_schedule(mut place: Place, schedule: &str) -> Place {
    let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    place.environment.extend([
        variable("PGKEEP_DUMP__SCHEDULE", schedule),
        variable("PGKEEP_TIMEZONE", "Asia/Kathmandu"),
    ]);
    place
}

/// The last line of a run that failed, or was interrupted in the middle of a dump, is its error, and no event.
pub fn words(events: &[Value]) -> Vec<&str> {
    events
        .iter()
        .filter_map(|event| event["event"].as_str())
        .collect()
}

fn dumps(place: &Place) -> usize {
    place.run(&["list", "--json"]).expect(0).json_lines().len()
}

#[test]
fn the_first_dump_is_made_at_once_and_sigterm_ends_an_idle_scheduler() {
    let cluster = server();
    let mut place = with_schedule(Place::with(&cluster, None), YEARLY);
    let socket = UnixDatagram::bind(place.path("notify")).unwrap();
    socket.set_nonblocking(true).unwrap();
    let plain = place.environment.clone();
    for (name, value) in [
        ("NOTIFY_SOCKET", place.path("notify").to_str().unwrap()),
        ("WATCHDOG_USEC", "200000"),
    ] {
        place.environment.push((name.to_owned(), value.to_owned()));
    }
    let mut running = Running::start(&place, &[]);
    let mut told = String::new();
    let receive = |told: &mut String| {
        let mut buffer = [0_u8; 4096];
        while let Ok(length) = socket.recv(&mut buffer) {
            told.push_str(&String::from_utf8_lossy(&buffer[..length]));
            told.push('\n');
        }
    };
    running.wait_for("the first dump's end, and what systemd is told", |running| {
        receive(&mut told);
        running.said().contains("  next  ") && told.contains("STATUS=main: next dump at ")
    });
    running.wait_for("the watchdog", |_| {
        receive(&mut told);
        told.matches("WATCHDOG=1").count() > 2
    });
    running.signal("TERM");
    assert_eq!(running.wait().code(), Some(0), "{}", running.said());
    receive(&mut told);
    assert!(told.starts_with("READY=1"), "{told}");
    assert!(told.contains("STATUS=main: dumping since "), "{told}");
    assert!(told.contains("STOPPING=1"), "{told}");
    let said = running.said();
    let lines: Vec<&str> = said.lines().filter(|line| line.contains("  main  ")).collect();
    assert_eq!(lines.len(), 3, "{said}");
    for (line, text) in lines.iter().zip([
        "  started      the first dump",
        "  done         d",
        "  next         dump at ",
    ]) {
        assert!(line.contains(text), "{line}");
        assert!(line.contains(" +05:45  main"), "in the schedule's zone: {line}");
    }
    assert!(lines[2].ends_with("-01-01 00:00:00 +05:45"), "{}", lines[2]);
    assert_eq!(dumps(&place), 1);

    // What is there covers what was due: nothing is done again, with the key or without.
    place.environment = plain;
    let once = place.run(&["run", "--once", "--json"]).expect(0);
    assert_eq!(words(&once.json_lines()), ["next"]);
    let text = fs::read_to_string(place.path("pgkeep.toml")).unwrap();
    let text = text.replace("identity_file = \"pgkeep.key\"", "keep = { daily = 1 }");
    fs::write(place.path("pgkeep.toml"), text).unwrap();
    let once = place.run(&["run", "--once"]).expect(0);
    assert!(
        once.stderr.contains("run 'pgkeep prune' where it is"),
        "{}",
        once.stderr
    );
    assert!(!once.stderr.contains("started"), "{}", once.stderr);
    assert_eq!(place.run(&["run", "--once", "--quiet"]).expect(0).stderr, "");
}

#[test]
fn what_is_asked_for_and_cannot_be_done_is_not_passed_over() {
    let cluster = server();
    let mut place = with_schedule(Place::with(&cluster, None), YEARLY);
    place.run(&["run", "--once", "--quiet"]).expect(0);
    // A setting that does nothing needs attention.
    let idle = ("PGKEEP_DRILL__SCHEDULE".to_owned(), "0 3 * * *".to_owned());
    place.environment.push(idle);
    let once = place.run(&["run", "--once", "--quiet"]).expect(3);
    assert!(
        once.stderr.contains("'drill.schedule' does nothing yet"),
        "{}",
        once.stderr
    );
    place.environment.pop();
    // A key that is configured and not there isn't the same as none.
    let missing = ("PGKEEP_IDENTITY_FILE".to_owned(), "nowhere.key".to_owned());
    place.environment.push(missing);
    for command in [["run", "--once"].as_slice(), &["prune", "--dry-run"]] {
        let refused = place.run(command);
        assert!([1, 2].contains(&refused.code), "{refused:?}");
        assert!(refused.stderr.contains("nowhere.key"), "{refused:?}");
    }
    let pinned = place.run(&["pin", "latest"]).expect(0);
    assert!(pinned.stderr.contains("nowhere.key"), "{}", pinned.stderr);
}

#[test]
fn a_dump_of_a_part_is_not_what_was_due() {
    let cluster = server();
    let place = with_schedule(Place::with(&cluster, None), YEARLY);
    place.run(&["dump", "--database", "app", "--quiet"]).expect(0);
    let once = place.run(&["run", "--once", "--json"]).expect(0);
    assert_eq!(words(&once.json_lines()), ["started", "done", "next"]);
}

#[test]
fn what_is_due_again_and_again_is_dumped_again_and_again_and_pruned() {
    let cluster = server();
    let mut place = with_schedule(Place::with(&cluster, None), "* * * * * *");
    place
        .environment
        .push(("PGKEEP_KEEP__DAILY".to_owned(), "1".to_owned()));
    let mut running = Running::start(&place, &["--json"]);
    running.wait_for("three dumps, and prunes after them", |running| {
        let events = running.events();
        let number = |word: &str| words(&events).iter().filter(|found| **found == word).count();
        number("done") >= 3 && number("pruned") >= 2
    });
    running.signal("INT");
    let status = running.wait();
    let events = running.events();
    // One at a time: between two starts there is an end.
    let turns: Vec<&str> = words(&events)
        .into_iter()
        .filter(|word| ["started", "done", "interrupted", "failed"].contains(word))
        .collect();
    assert!(turns.chunks(2).all(|turn| turn[0] == "started"), "{turns:?}");
    assert!(!turns.contains(&"failed"), "{events:#?}");
    // In the middle of a dump or between two: the exit code says which.
    let interrupted = words(&events).contains(&"interrupted");
    assert_eq!(status.code(), Some(i32::from(interrupted)), "{events:#?}");
    // A dump takes longer than a second now and then, which is told; no due time is dumped for twice.
    let mut due: Vec<&str> = events
        .iter()
        .filter(|event| event["event"] == "started")
        .filter_map(|event| event["due"].as_str())
        .collect();
    let number = due.len();
    due.dedup();
    assert_eq!(due.len(), number);
}

#[test]
fn sigterm_during_a_dump_ends_it_cleanly() {
    let cluster = server();
    // Rows that don't compress, so that a slow upload gives time.
    cluster.psql(
        "app",
        "CREATE TABLE noise AS SELECT i, md5(random()::text) FROM generate_series(1, 20000) i",
    );
    let mut place = with_schedule(Place::with(&cluster, None), YEARLY);
    let slowly = "PGKEEP_LIMITS__UPLOAD_BYTES_PER_SECOND".to_owned();
    place.environment.push((slowly, "100kB/s".to_owned()));
    let is_data = |path: &PathBuf| path.to_string_lossy().contains("/d2/");
    let mut running = Running::start(&place, &[]);
    let repository = place.path("repository");
    running.wait_for("the dump's first objects", |_| {
        files(&repository).iter().any(is_data)
    });
    running.signal("TERM");
    assert_eq!(running.wait().code(), Some(1), "{}", running.said());
    assert!(
        running.said().contains("  interrupted  the dump (interrupted)"),
        "{}",
        running.said()
    );
    assert_eq!(dumps(&place), 0);
    let left: Vec<_> = files(&repository).into_iter().filter(is_data).collect();
    assert!(left.is_empty(), "its objects are gone: {left:?}");
}

/// A store that hangs before anything was stored keeps nobody from ending, nor the lease from being given back.
#[test]
fn sigterm_during_a_dump_whose_store_hangs_ends_it_cleanly() {
    let cluster = server();
    let place = with_schedule(Place::with(&cluster, None), "* * * * * *");
    place.dump();
    // The remains of an old dump, which is looked at right after the lease is taken: opening a pipe takes for ever.
    let old = place.path("repository/main/dump/d20200101T000000Z-000000");
    fs::create_dir(&old).unwrap();
    let pipe = old.join("manifest");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let leases = place.path("repository/main/lease");
    let before = files(&leases);
    let mut running = Running::start(&place, &[]);
    running.wait_for("the dump's lease", |_| {
        files(&leases).iter().any(|lease| !before.contains(lease))
    });
    running.signal("TERM");
    assert_eq!(running.wait().code(), Some(1), "{}", running.said());
    assert!(
        !running.said().contains("didn't end in time"),
        "{}",
        running.said()
    );
    fs::remove_file(pipe).unwrap();
    assert_eq!(dumps(&place), 1);
    // It gave its lease back: nobody waits.
    place.dump();
}

#[test]
fn a_failure_is_told_with_its_mend_and_tried_again() {
    let place = Place::new();
    fs::write(
        place.path("pgkeep.toml"),
        format!(
            "[cluster.main]\nconnection = \"postgres://nobody@127.0.0.1:1/postgres\"\nencryption = \"none\"\n\
             repository = \"{}\"\ndump = {{ schedule = \"{YEARLY}\" }}\n\
             drill = {{ schedule = \"{YEARLY}\" }}\n",
            place.repository_url()
        ),
    )
    .unwrap();
    let mut running = Running::start(&place, &["--json"]);
    running.wait_for("the failure", |running| {
        words(&running.events()).contains(&"failed")
    });
    running.signal("TERM");
    assert_eq!(running.wait().code(), Some(0), "idle between two attempts");
    let events = running.events();
    assert_eq!(words(&events)[..3], ["attention", "started", "failed"]);
    assert!(
        events[0]["message"]
            .as_str()
            .unwrap()
            .contains("'drill.schedule' does nothing yet")
    );
    let failed = &events[2];
    assert_eq!(failed["attempt"], 1);
    let time = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let pause = time(&failed["again_at"]).duration_since(time(&failed["at"]));
    assert!((50..=60).contains(&pause.as_secs()), "{pause}");
    let once = place.run(&["run", "--once"]).expect(1);
    assert!(
        once.stderr.contains("  failed       the first dump: ") && !once.stderr.contains("again at"),
        "{}",
        once.stderr
    );
}

#[test]
fn what_cannot_work_is_refused_at_the_start() {
    let place = Place::new();
    let base = "connection = \"postgres://nobody@127.0.0.1:1/postgres\"\nencryption = \"none\"\n\
                repository = \"file:///nowhere\"\n";
    let refused = |text: &str, args: &[&str], expected: &[&str]| {
        fs::write(place.path("pgkeep.toml"), text).unwrap();
        let done = place.run(&[&["run"], args].concat()).expect(2);
        for part in expected {
            assert!(done.stderr.contains(part), "{part}: {}", done.stderr);
        }
    };
    let one = |dump: &str| format!("[cluster.a]\n{base}dump = {{ {dump} }}\n");
    let example = "write for example \"0 2 * * *\"";
    refused(
        &one("schedule = \"61 * * * *\""),
        &[],
        &["'dump.schedule' of cluster 'a'", "61", example],
    );
    refused(
        &one("schedule = \"0 0 30 2 *\""),
        &[],
        &["no time of any year", example],
    );
    refused(
        &one("jobs = 1"),
        &[],
        &["no cluster has the setting 'dump.schedule'"],
    );
    refused(
        &one("schedule = \"@daily\", format = \"plain\""),
        &[],
        &["dump.format"],
    );
    refused(
        &one("schedule = \"@daily\", exclude_databases = \"x\""),
        &[],
        &["exclude_databases"],
    );
    let encrypted = one("schedule = \"@daily\"").replace("encryption = \"none\"\n", "");
    refused(&encrypted, &[], &["recipient"]);
    let two = format!("{}[cluster.b]\n{base}", one("schedule = \"@daily\""));
    refused(
        &two,
        &["--connection", "host=elsewhere"],
        &["there are several clusters: a, b"],
    );
    refused(&two, &["--cluster", "b"], &["no cluster has the setting"]);

    fs::write(place.path("pgkeep.toml"), one("schedule = \"61 * * * *\"")).unwrap();
    let findings = place.run(&["doctor", "--json"]).expect(1).json_lines();
    let of_schedule = |findings: &[Value]| -> Value {
        findings
            .iter()
            .find(|finding| finding["area"] == "schedule")
            .unwrap()
            .clone()
    };
    assert_eq!(of_schedule(&findings)["severity"], "error");
    fs::write(place.path("pgkeep.toml"), one("schedule = \"0 2 * * *\"")).unwrap();
    let findings = place.run(&["doctor", "--json"]).expect(1).json_lines();
    let found = of_schedule(&findings);
    let what = found["what"].as_str().unwrap();
    assert_eq!(what.matches(" 02:00:00 +00:00").count(), 3, "{what}");
    assert!(what.ends_with("(0 2 * * *, UTC)"), "{what}");
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../infra/systemd");
    let analyze = Command::new("systemd-analyze").arg("--version").output();
    require!(analyze.map_err(|_| Missing("systemd-analyze".to_owned())));
    let folder = tempfile::tempdir().unwrap();
    let mut units = Vec::new();
    for entry in fs::read_dir(here).unwrap().flatten() {
        // Where the program would be installed there is none, which is all that would be found.
        let text = fs::read_to_string(entry.path()).unwrap();
        let text = text.replace("/usr/local/bin/pgkeep", env!("CARGO_BIN_EXE_pgkeep"));
        let unit = folder.path().join(entry.file_name());
        fs::write(&unit, text).unwrap();
        units.push(unit);
    }
    assert_eq!(units.len(), 3);
    let verified = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .args(&units)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    let ours = said
        .lines()
        .filter(|line| line.contains(folder.path().to_str().unwrap()));
    assert_eq!(ours.count(), 0, "{said}");
    assert!(verified.status.success(), "{said}");
}
