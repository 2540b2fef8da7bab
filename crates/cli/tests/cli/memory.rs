//! Memory depends on settings, not on what is asked of it.

use std::process::Stdio;
use std::time::{Duration, Instant};

use pgkeep_testkit::{Cluster, ClusterOptions};

use crate::support::{Done, Place};

const LIMIT: Duration = Duration::from_secs(600);
/// What docs/benchmarks.md promises for every command.
const MEMORY_BYTES_MAX: u64 = 256 << 20;
/// Values that don't compress and are larger than any buffer, in as many tables as there are jobs.
const WIDE: &str = "
    CREATE TABLE wide_1 (value text);
    ALTER TABLE wide_1 ALTER value SET STORAGE EXTERNAL;
    INSERT INTO wide_1 SELECT (SELECT string_agg(md5((n * 100000 + m)::text), '') FROM generate_series(1, 32768) m)
      FROM generate_series(1, 2) n;
    DO $$ BEGIN
      FOR n IN 2..64 LOOP
        EXECUTE format('CREATE TABLE wide_%s (LIKE wide_1 INCLUDING STORAGE)', n);
        EXECUTE format('INSERT INTO wide_%s TABLE wide_1', n);
      END LOOP;
    END $$;";

/// Runs a command; how it ended, and how much memory it had at most (VmHWM).
pub fn measured(place: &Place, args: &[&str]) -> (Done, u64) {
    let mut command = place.command(args);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let (begun, mut peak_kib) = (Instant::now(), 0);
    while child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < LIMIT, "{args:?} doesn't end");
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        peak_kib = peak_kib.max(kib.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(2));
    }
    (place.done(child.wait_with_output().unwrap()), peak_kib << 10)
}

#[test]
fn more_jobs_than_memory_permits_are_not_run() {
    let cluster = Cluster::start(ClusterOptions::default().setting("max_connections", "200")).unwrap();
    cluster.create_database("app");
    cluster.psql("app", WIDE);
    let place = Place::with(&cluster, None);
    let into = cluster.tcp_conninfo("postgres");
    let restore = [
        "restore",
        "--into",
        &into,
        "-d",
        "app",
        "--target-database",
        "again",
        "--jobs",
        "64",
    ];
    for args in [
        &["dump", "--jobs", "64"][..],
        &["verify", "--jobs", "64"],
        &restore,
    ] {
        let (done, peak_bytes) = measured(&place, args);
        let done = done.expect(0);
        assert!(
            done.stderr.contains("jobs instead of 64") && done.stderr.contains("limits.memory"),
            "{}",
            done.stderr
        );
        assert!(peak_bytes > 1 << 20, "{args:?}: nothing was measured");
        assert!(
            peak_bytes < MEMORY_BYTES_MAX,
            "{args:?}: {} MiB",
            peak_bytes >> 20
        );
    }
    let little = place
        .run(&[
            "dump",
            "-d",
            "postgres",
            "--jobs",
            "2",
            "--set",
            "limits.memory=32MiB",
        ])
        .expect(0);
    assert!(little.stderr.contains("1 job instead of 2"), "{}", little.stderr);
}

/// Of bytes that can't be compressed, more than all packs together that are in memory at once.
const INCOMPRESSIBLE: &str = "
    CREATE TABLE noise (value bytea);
    ALTER TABLE noise ALTER value SET STORAGE EXTERNAL;
    INSERT INTO noise SELECT (SELECT string_agg(decode(md5((n * 100000 + m)::text), 'hex'), '') FROM generate_series(1, 1024) m)
      FROM generate_series(1, 14000) n;
    CHECKPOINT;";

#[test]
fn base_backups_stay_within_the_limit_too() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql("postgres", INCOMPRESSIBLE);
    let place = Place::with(&cluster, None);
    let (done, peak_bytes) = measured(&place, &["backup", "--json", "--fast-checkpoint", "--jobs", "64"]);
    let done = done.expect(0);
    assert!(done.stderr.contains("jobs instead of 64"), "{}", done.stderr);
    let taken = done.json();
    assert!(taken["totals"]["packs"].as_u64().unwrap() >= 6, "{taken}");
    let mut peaks = vec![("backup", peak_bytes)];
    // By the cache, then with what is read of the backup before.
    for cached in [true, false] {
        if !cached {
            std::fs::remove_dir_all(place.path(".cache/pgkeep")).unwrap();
        }
        let (done, peak_bytes) = measured(&place, &["backup", "--json", "--fast-checkpoint"]);
        let again = done.expect(0).json();
        assert!(
            again["totals"]["reused_objects"].as_u64().unwrap() >= 6,
            "{again}"
        );
        peaks.push(("backup again", peak_bytes));
    }
    let into = place.path("restored").display().to_string();
    for args in [
        &["verify", taken["id"].as_str().unwrap(), "--jobs", "64"][..],
        &["restore", "--into", &into, "--jobs", "64"],
    ] {
        let (done, peak_bytes) = measured(&place, args);
        // With 3, the files belong to root, as nobody else does here.
        assert!(matches!(done.code, 0 | 3), "{}", done.stderr);
        peaks.push((args[0], peak_bytes));
    }
    eprintln!("{peaks:?}");
    let excess = peaks
        .iter()
        .find(|(_, bytes)| !(1 << 20..MEMORY_BYTES_MAX).contains(bytes));
    assert!(excess.is_none(), "{peaks:?}");
}
