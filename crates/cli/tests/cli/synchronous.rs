//! A server that waits for the repository: what it has acknowledged is there, whatever is killed.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pgkeep_testkit::{Cluster, ClusterOptions, StopMode, poll_until, requirements, seed};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::{Place, server_with};

const LIMIT: Duration = Duration::from_secs(90);
const KILLS: u32 = 5;
const KILLS_LONG: u32 = 100;
/// More rows than any round gets to.
const ROWS_MAX: u32 = 5000;

fn options() -> ClusterOptions {
    ClusterOptions::default()
        .initdb_arg("--wal-segsize=1")
        .setting("autovacuum", "off")
        .setting("wal_keep_size", "512MB")
}

fn stream(place: &Place) -> Child {
    let mut command = place.command(&["wal", "stream", "--set", "wal.synchronous=true"]);
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Inserts rows, each a transaction of its own, and writes down each that was acknowledged.
fn insert(cluster: &Cluster, place: &Place, round: u32) -> Child {
    let (script, acknowledged) = (place.path("insert.sql"), place.path("acknowledged"));
    let statements = (0..ROWS_MAX).map(|row| {
        let id = round * ROWS_MAX + row;
        format!("INSERT INTO acknowledged VALUES ({id}) RETURNING id;\n")
    });
    fs::write(&script, statements.collect::<String>()).unwrap();
    cluster
        .client_command("psql")
        .args(["-X", "-q", "-A", "-t", "-d", "app", "-f"])
        .arg(&script)
        .stdout(File::create(acknowledged).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn acknowledged(place: &Place) -> Vec<u32> {
    let text = fs::read_to_string(place.path("acknowledged")).unwrap();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().filter_map(|line| line.parse().ok()).collect()
}

#[test]
fn killed_at_any_moment_every_acknowledged_row_is_restored() {
    let mut random = StdRng::seed_from_u64(seed());
    let mut cluster = server_with(options());
    cluster.psql("app", "CREATE TABLE acknowledged (id int PRIMARY KEY)");
    let place = Place::with(&cluster, None);
    let mut receiver = stream(&place);
    place.run(&["backup", "--quiet", "--fast-checkpoint"]).expect(0);
    cluster.psql("postgres", "ALTER SYSTEM SET synchronous_standby_names = pgkeep");
    cluster.psql("postgres", "SELECT pg_reload_conf()");
    let kills = if requirements::long().is_ok() {
        KILLS_LONG
    } else {
        KILLS
    };
    for round in 0..kills {
        let mut client = insert(&cluster, &place, round);
        let enough = random.random_range(3..80);
        poll_until("rows are acknowledged", LIMIT, || {
            acknowledged(&place).len() >= enough
        });
        let receiver_first = random.random();
        if receiver_first {
            receiver.kill().unwrap();
        }
        cluster.stop(StopMode::Immediate);
        receiver.kill().unwrap();
        receiver.wait().unwrap();
        client.kill().unwrap();
        client.wait().unwrap();

        let mut restored = Cluster::unmade(cluster.pg_bin(), cluster.major());
        let into = restored.data_dir().display().to_string();
        place.run(&["restore", "latest", "--into", &into]).expect(0);
        restored.start_restored();
        let found = restored.psql("app", "SELECT id FROM acknowledged");
        let found: std::collections::BTreeSet<u32> = found.lines().map(|id| id.parse().unwrap()).collect();
        let mut lost = acknowledged(&place);
        assert!(lost.len() >= enough);
        lost.retain(|id| !found.contains(id));
        assert!(lost.is_empty(), "round {round}: acknowledged and lost: {lost:?}");
        cluster.start_again();
        receiver = stream(&place);
    }
    let _ = Command::new("kill").arg(receiver.id().to_string()).status();
    receiver.wait().unwrap();
}
