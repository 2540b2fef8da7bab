//! What docs/FORMAT.md says of WAL is true and enough: a reader in another language, written from it alone, gets every
//! segment out.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::fs;
use std::process::Command;

use pgkeep_pgformat::{SegmentName, Timeline};
use pgkeep_testkit::requirements::{self, tool};
use pgkeep_testkit::{Cluster, StopMode, require, run};
use support::{Place, current_lsn, options, quick, size, start, system_identifier, target};

const READER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/reader/pgkeep_reader.py");
const WRITE: &str = "SELECT pg_logical_emit_message(false, 'x', repeat('y', 700000)); CHECKPOINT";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_in_another_language_gets_every_segment_out() {
    let tools = require!(tool("age")).parent().unwrap().display().to_string();
    let _ = (require!(tool("zstd")), require!(tool("b3sum")));
    let mut cluster = require!(Cluster::start(options(requirements::DEFAULT_MAJOR)));
    let place = Place::new();
    let key = place.write_key();
    let repository = place.open().await;
    let mut running = start(target(&cluster), repository.clone(), quick());
    for _ in 0..3 {
        cluster.psql("postgres", WRITE);
        running.durable(current_lsn(&cluster)).await;
    }
    cluster.stop(StopMode::Fast);
    cluster.write_file("standby.signal", "");
    cluster.start_again();
    cluster.psql("postgres", "SELECT pg_promote()");
    cluster.psql("postgres", WRITE);
    let end = current_lsn(&cluster);
    let two = Timeline::new(2).unwrap();
    running
        .until("it follows", |state| {
            state.timeline == Some(two) && state.durable >= end
        })
        .await;
    running.stop().await;

    let out = tempfile::tempdir().unwrap();
    let into = out.path().join("wal");
    let path = format!("{tools}:{}", std::env::var("PATH").unwrap());
    let report = run(Command::new("python3")
        .args(["-B", READER])
        .arg(place.path())
        .args(["wal", "--into"])
        .arg(&into)
        .arg("--identity")
        .arg(&key)
        .env("PATH", path));
    assert!(report.contains("\"00000002.history\""), "{report}");
    let system = system_identifier(&cluster);
    let into = into.join(system.to_string());
    let pg_wal = cluster.data_dir().join("pg_wal");
    assert_eq!(
        fs::read(into.join("00000002.history")).unwrap(),
        fs::read(pg_wal.join("00000002.history")).unwrap()
    );
    let mut partly = 0;
    for timeline in [Timeline::FIRST, two] {
        let covered = repository.wal_coverage(system, timeline).await.unwrap();
        assert_eq!(covered.len(), 1);
        let mut name = SegmentName::holding(timeline, covered[0].start, size());
        while name.start() < covered[0].end {
            let folder = format!("{:08X}", timeline.as_u32());
            let theirs = fs::read(into.join(folder).join(name.to_string())).unwrap();
            let ours = repository.fetch_wal(system, &name).await.unwrap().unwrap();
            assert!(theirs == ours, "{name}");
            partly += u32::from(name.end().unwrap() > covered[0].end);
            name = name.next().unwrap();
        }
    }
    assert!(partly > 0, "no segment was stored in parts alone");
}
