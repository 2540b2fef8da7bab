//! What containers bring with them: process ids that are counted anew, and file systems of one's own. Nothing of it
//! outlives the test, however that ends.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pgkeep_testkit::{poll_until, require, requirements};

use crate::support::{Place, files, server};

const LIMIT: Duration = Duration::from_secs(60);
/// A PID namespace of its own, as every container has one. What runs in it ends with `unshare`.
const PROCESSES: [&str; 4] = ["--pid", "--fork", "--mount-proc", "--kill-child"];
/// Time to look at a dump while it runs.
const SLOWLY: &str = "--upload-limit=200kB/s";

/// Rows that don't compress, so that a slow upload gives time.
const NOISE: &str = "CREATE TABLE noise AS SELECT i, md5(random()::text) FROM generate_series(1, 50000) i";

fn is_data(path: &Path) -> bool {
    path.to_string_lossy().contains("/d2/0")
}

fn wait_for_data(place: &Place, dump: &mut Child) {
    poll_until("the dump's first rows", LIMIT, || {
        assert_eq!(dump.try_wait().unwrap(), None, "the dump was too quick");
        files(&place.path("repository")).iter().any(|path| is_data(path))
    });
}

/// The binary with arguments, in namespaces of its own.
fn pgkeep(place: &Place, unshare: &[String], args: &[&str]) -> Command {
    let mut command = place.command_of(Path::new(&unshare[0]), &[]);
    command
        .args(&unshare[1..])
        .arg(env!("CARGO_BIN_EXE_pgkeep"))
        .args(args);
    command
}

/// Two containers on one machine with one host name: each has its own process 1, and neither may take the other's for
/// dead.
#[test]
fn a_dump_in_another_pid_namespace_is_not_taken_for_dead() {
    let unshare = require!(requirements::unshare(&PROCESSES));
    let cluster = server();
    cluster.psql("app", NOISE);
    let place = Place::with(&cluster, None);
    let mut dump = pgkeep(&place, &unshare, &["dump", "--quiet", SLOWLY])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_data(&place, &mut dump);
    for args in [&["dump"][..], &["prune", "--keep-daily", "1"]] {
        let other = pgkeep(&place, &unshare, args).output().unwrap();
        let other = place.done(other).expect(1);
        assert!(
            other.stderr.contains("pgkeep dump by process") && other.stderr.contains("the lease runs out at"),
            "{}",
            other.stderr
        );
    }
    let dump = place.done(dump.wait_with_output().unwrap());
    dump.expect(0);
    place.run(&["verify"]).expect(0);
    // It gave its lease back: nobody waits.
    let other = pgkeep(&place, &unshare, &["dump", "--quiet"]).output().unwrap();
    place.done(other).expect(0);
}

/// Killed, and its process id given to the next: that one must not take itself for the dead one.
#[test]
fn a_killed_dump_holds_nobody_up_in_its_own_pid_namespace() {
    let unshare = require!(requirements::unshare(&PROCESSES));
    let cluster = server();
    cluster.psql("app", NOISE);
    let place = Place::with(&cluster, None);
    let script = format!(
        "pgkeep=$1
         $pgkeep dump --quiet {SLOWLY} > killed.out 2>&1 &
         killed=$!
         until ls repository/main/dump/*/d2/0* > /dev/null 2>&1; do kill -0 $killed || exit 70; sleep 0.02; done
         kill -s KILL $killed
         wait $killed
         echo $((killed - 1)) > /proc/sys/kernel/ns_last_pid || exit 71
         $pgkeep dump --quiet &
         [ $! = $killed ] || exit 72
         wait $!"
    );
    let mut command = place.command_of(Path::new(&unshare[0]), &[]);
    command
        .args(&unshare[1..])
        .args(["sh", "-c", &script, "sh", env!("CARGO_BIN_EXE_pgkeep")]);
    place.done(command.output().unwrap()).expect(0);
    assert_eq!(place.run(&["list", "--json"]).expect(0).json_lines().len(), 1);
    place.run(&["verify"]).expect(0);
}

/// A disk that is really full, and larger afterwards.
#[test]
fn a_dump_that_fills_the_disk_fails_cleans_up_and_succeeds_with_more_room() {
    let unshare = require!(requirements::unshare(&["--mount"]));
    let cluster = server();
    cluster.psql("app", NOISE);
    let place = Place::with(&cluster, None);
    fs::create_dir(place.path("repository")).unwrap();
    let script = "pgkeep=$1
        mount -t tmpfs -o size=400k tmpfs repository || exit 70
        $pgkeep dump > full.out 2> full.err; echo $? > full.code
        find repository/main/dump -type f ! -name manifest > left
        $pgkeep list --json > list || exit 71
        $pgkeep prune --keep-daily 1 > prune.out 2>&1 || exit 72
        mount -o remount,size=64m repository || exit 73
        $pgkeep dump --quiet && $pgkeep verify --quiet && $pgkeep list --json";
    let mut command = place.command_of(Path::new(&unshare[0]), &[]);
    command
        .args(&unshare[1..])
        .args(["sh", "-c", script, "sh", env!("CARGO_BIN_EXE_pgkeep")]);
    let done = place.done(command.output().unwrap());
    let written = |name: &str| fs::read_to_string(place.path(name)).unwrap_or_default();
    assert_eq!(
        done.code,
        0,
        "{}{}{}",
        done.stderr,
        written("full.err"),
        written("prune.out")
    );
    assert_eq!(written("full.code"), "1\n");
    let error = written("full.err");
    assert!(
        error.contains("No space left on device") && error.contains("hint: free space under file://"),
        "{error}"
    );
    assert_eq!(written("full.out"), "");
    assert_eq!(written("left"), "", "objects of the failed dump fill the disk");
    assert_eq!(written("list"), "");
    assert!(done.stdout.contains("\"state\":\"complete\""), "{}", done.stdout);
}
