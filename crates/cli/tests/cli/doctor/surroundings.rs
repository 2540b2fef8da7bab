//! Faults of the configuration, the keys, the programs and the repository.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use pgkeep_testkit::stores::RcloneS3;
use pgkeep_testkit::{Cluster, ClusterOptions, require, requirements};

use super::{is_gone, problem, run_mend};
use crate::support::{PASSWORD, Place, server};

fn patient() -> (Cluster, Place) {
    let cluster = server();
    let place = Place::in_memory();
    place.configure(&cluster, &place.repository_url(), None);
    (cluster, place)
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn edit(place: &Place, change: impl FnOnce(String) -> String) {
    let path = place.path("pgkeep.toml");
    fs::write(&path, change(fs::read_to_string(&path).unwrap())).unwrap();
}

#[test]
fn faults_of_the_configuration_are_found() {
    let (cluster, mut place) = patient();
    // What can't be read at all ends it, with the nearest right word.
    let wrong = place.run(&["doctor", "--set", "dump.shedule=@daily"]).expect(2);
    assert!(
        wrong.stderr.contains("did you mean 'dump.schedule'?"),
        "{}",
        wrong.stderr
    );
    let wrong = place.run(&["doctor", "--set", "timezone=Europe/Zurig"]).expect(2);
    assert!(wrong.stderr.contains("timezone"), "{}", wrong.stderr);
    problem(
        &place,
        &["--set", "dump.schedule=61 * * * *"],
        "error",
        "dump.schedule",
    );
    problem(
        &place,
        &["--set", "dump.exclude_databases=x"],
        "error",
        "dump.exclude_databases",
    );
    let drill = ["--set", "drill.schedule=@weekly"];
    let drill = problem(&place, &drill, "warning", "'drill.schedule' is set");
    assert!(drill.mend.contains("take drill.schedule out"), "{drill:?}");

    place
        .environment
        .push(("PGKEEP_DUMP__SHEDULE".to_owned(), "@daily".to_owned()));
    let unknown = problem(&place, &[], "warning", "PGKEEP_DUMP__SHEDULE");
    assert!(
        unknown.mend.ends_with("unset PGKEEP_DUMP__SHEDULE"),
        "{unknown:?}"
    );
    place.environment.clear();

    edit(&place, |text| {
        text.replace("user=postgres", &format!("user=postgres password={PASSWORD}"))
    });
    set_mode(&place.path("pgkeep.toml"), 0o644);
    let says = "holds a password or a key and everybody may read it";
    let open = problem(&place, &[], "warning", says);
    run_mend(&place, &cluster, &open.mend);
    is_gone(&place, &[], says);
}

#[test]
fn faults_of_keys_and_programs_are_found() {
    let (cluster, place) = patient();
    set_mode(&place.path("pgkeep.key"), 0o644);
    let says = "holds a secret key and others may read it";
    let open = problem(&place, &[], "warning", says);
    run_mend(&place, &cluster, &open.mend);
    is_gone(&place, &[], says);

    problem(&place, &["--identity", "nothing.key"], "error", "nothing.key");
    place.run(&["key", "new", "--output", "other.key"]).expect(0);
    let other = problem(
        &place,
        &["--identity", "other.key"],
        "warning",
        "belongs to none of the recipients",
    );
    run_mend(&place, &cluster, &other.mend);
    edit(&place, |text| {
        text.lines()
            .filter(|line| !line.starts_with("recipients"))
            .collect::<Vec<_>>()
            .join("\n")
    });
    problem(&place, &["--encryption", "none"], "warning", "off");
    let none = problem(&place, &[], "error", "recipient");
    assert!(none.mend.contains("pgkeep key new"), "{none:?}");

    let nowhere = problem(&place, &["--set", "pg_bin=/nonexistent"], "error", "pg_dump");
    assert!(!nowhere.mend.is_empty(), "{nowhere:?}");
    if let Ok(older) = requirements::postgresql(15) {
        let set = format!("pg_bin={}", older.display());
        let old = problem(&place, &["--set", &set], "error", "pg_dump");
        assert!(old.what.contains("15") && !old.mend.is_empty(), "{old:?}");
    }
}

#[test]
fn a_key_in_the_repository_is_moved_away() {
    let (cluster, place) = patient();
    fs::create_dir(place.path("repository")).unwrap();
    fs::rename(place.path("pgkeep.key"), place.path("repository/lost.key")).unwrap();
    let says = "lies in the repository itself";
    let found = problem(&place, &["--identity", "repository/lost.key"], "warning", says);
    run_mend(&place, &cluster, &found.mend);
    is_gone(&place, &["--identity", "lost.key"], says);
}

/// Dumps as old as the name of their folder says.
fn make_older(place: &Place, id: &str) {
    let folder = place.path("repository/main/dump");
    fs::rename(
        folder.join(id),
        folder.join(format!("d20260101T020000Z-{}", &id[id.len() - 6..])),
    )
    .unwrap();
}

#[test]
fn faults_of_dumps_and_repositories_are_found() {
    let (cluster, place) = patient();
    let id = place.dump();
    is_gone(&place, &["--set", "dump.schedule=@daily"], "due since");
    make_older(&place, &id);
    let schedule = ["--set", "dump.schedule=0 2 * * *"];
    let late = problem(&place, &schedule, "warning", "others were due since");
    let never = problem(&place, &schedule, "warning", "no dump was ever verified");
    run_mend(&place, &cluster, &late.mend);
    is_gone(&place, &schedule, "due since");
    run_mend(&place, &cluster, &never.mend);
    is_gone(&place, &schedule, "ever verified");

    // What a verification found, and a manifest that is none.
    let newest = newest(&place);
    let damaged = place
        .path("repository/main/dump")
        .join(&newest)
        .join("globals.sql.zst.age");
    let whole = fs::read(&damaged).unwrap();
    fs::write(&damaged, &whole[..whole.len() - 1]).unwrap();
    place.run(&["verify", &newest]).expect(1);
    let says = format!("the last verification of {newest} found damage");
    problem(&place, &[], "error", &says);
    fs::write(&damaged, &whole).unwrap();
    place.run(&["verify", &newest]).expect(0);
    is_gone(&place, &[], &says);
    fs::write(
        place.path("repository/main/dump").join(&newest).join("manifest"),
        "",
    )
    .unwrap();
    problem(
        &place,
        &[],
        "error",
        &format!("the manifest of {newest} is damaged"),
    );

    let other = server();
    let connection = other.tcp_conninfo("postgres");
    let identity = problem(
        &place,
        &["--connection", &connection],
        "error",
        "are of another database cluster",
    );
    let accept = identity.mend.split('#').next().unwrap().trim();
    place
        .run(
            &[
                &accept.split(' ').skip(1).collect::<Vec<_>>()[..],
                &["--connection", &connection],
            ]
            .concat(),
        )
        .expect(0);
    is_gone(
        &place,
        &["--connection", &connection],
        "are of another database cluster",
    );

    let marker = place.path("repository/pgkeep.json");
    let text = fs::read_to_string(&marker).unwrap();
    fs::write(&marker, text.replace("\"format\": 1", "\"format\": 99")).unwrap();
    let newer = problem(&place, &[], "error", "format version 99");
    assert!(newer.mend.contains("a later one"), "{newer:?}");
}

fn newest(place: &Place) -> String {
    let listed = place.run(&["list", "--json"]).expect(0).json_lines();
    let ids = listed
        .iter()
        .map(|entry| entry["id"].as_str().unwrap().to_owned());
    ids.max().unwrap()
}

#[test]
fn faults_of_disks_and_stores_are_found() {
    let (cluster, mut place) = patient();
    // Beside the server's data.
    let beside = cluster.data_dir().parent().unwrap().join("repository");
    let url = format!("file://{}", beside.display());
    let same = problem(
        &place,
        &["--repository", &url],
        "warning",
        "on the same disk as the server's data",
    );
    assert!(same.mend.starts_with("pgkeep copy all --to"), "{same:?}");

    fs::write(place.path("file"), "").unwrap();
    let url = format!("file://{}", place.path("file").display());
    problem(&place, &["--repository", &url], "error", "file");
    let unreachable = [
        "--repository",
        "s3://bucket",
        "--set",
        "s3.endpoint=http://127.0.0.1:1",
    ];
    for (name, value) in [
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
        ("AWS_REGION", "us-east-1"),
    ] {
        place.environment.push((name.to_owned(), value.to_owned()));
    }
    let found = problem(&place, &unreachable, "error", "no connection");
    assert!(!found.mend.is_empty(), "{found:?}");

    let store = require!(RcloneS3::start());
    place.environment.clear();
    for (name, value) in [
        ("AWS_ACCESS_KEY_ID", store.access_key.as_str()),
        ("AWS_SECRET_ACCESS_KEY", store.secret_key.as_str()),
        ("PGKEEP_S3__ENDPOINT", store.endpoint.as_str()),
        ("PGKEEP_S3__REGION", "us-east-1"),
    ] {
        place.environment.push((name.to_owned(), value.to_owned()));
    }
    let url = store.bucket("bucket");
    let ignored = problem(
        &place,
        &["--repository", &url],
        "error",
        "a put of a name that was taken",
    );
    assert!(ignored.mend.contains("conditional writes"), "{ignored:?}");
    let missing = problem(&place, &["--repository", "s3://missing"], "error", "s3://missing");
    assert!(!missing.mend.is_empty(), "{missing:?}");
}

#[test]
fn a_disk_that_is_nearly_full_is_found() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    let place = Place::in_memory();
    place.configure(&cluster, &place.repository_url(), None);
    let unshare = require!(requirements::unshare(&["--mount"]));
    fs::create_dir(place.path("repository")).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=1m small {} && exec {} doctor",
        place.path("repository").display(),
        env!("CARGO_BIN_EXE_pgkeep")
    );
    let mut command: Command = place.command_of(Path::new(&unshare[0]), &[]);
    let done = place.done(
        command
            .args(&unshare[1..])
            .args(["sh", "-c", &script])
            .output()
            .unwrap(),
    );
    assert!(
        done.stdout
            .contains("the repository's disk has 1.0 MiB of 1.0 MiB left"),
        "{}{}",
        done.stdout,
        done.stderr
    );
}
