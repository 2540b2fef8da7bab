//! Ctrl-C: nothing half there, and the next run works.

use std::process::Stdio;
use std::time::Duration;

use pgkeep_testkit::poll_until;

use crate::support::{Place, files, server};

const LIMIT: Duration = Duration::from_secs(60);

fn signal(name: &str, pid: u32) {
    let sent = std::process::Command::new("kill")
        .args(["-s", name, &pid.to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
}

#[test]
fn an_interrupted_dump_leaves_nothing_and_the_next_one_succeeds() {
    let cluster = server();
    // Rows that don't compress, so that a slow upload gives time.
    cluster.psql(
        "app",
        "CREATE TABLE noise AS SELECT i, md5(random()::text) FROM generate_series(1, 20000) i",
    );
    let place = Place::with(&cluster, None);
    let is_data = |path: &std::path::PathBuf| path.to_string_lossy().contains("/d2/");
    for name in ["INT", "TERM"] {
        let args = ["dump", "--jobs", "1", "--upload-limit", "100kB/s"];
        let mut command = place.command(&args);
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        poll_until("the dump's first objects", LIMIT, || {
            files(&place.path("repository")).iter().any(is_data)
        });
        signal(name, child.id());
        let done = place.done(child.wait_with_output().unwrap()).expect(1);
        assert!(done.stderr.contains("error: interrupted"), "{}", done.stderr);
        assert_eq!(
            place.run(&["list", "--json"]).expect(0).stdout,
            "",
            "no dump is there"
        );
        let left: Vec<_> = files(&place.path("repository"))
            .into_iter()
            .filter(is_data)
            .collect();
        assert!(left.is_empty(), "its objects are gone: {left:?}");
    }
    let id = place.dump();
    let listed = place.run(&["list", "--json"]).expect(0).json_lines();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["id"], id.as_str());
    place.run(&["verify"]).expect(0);
}

/// Unlike a dump's, a copy's objects stay: the next one goes on with them. That they do is said.
#[test]
fn an_interrupted_copy_says_what_it_left_and_how_it_goes() {
    let cluster = server();
    cluster.psql(
        "app",
        "CREATE TABLE noise AS SELECT i, md5(random()::text) FROM generate_series(1, 20000) i;
         CREATE TABLE more AS SELECT i, md5(random()::text) FROM generate_series(1, 20000) i",
    );
    let place = Place::with(&cluster, None);
    let id = place.dump();
    let second = place.path("second");
    let to = format!("file://{}", second.display());
    let slowly = "limits.upload_bytes_per_second=100kB/s";
    let copy = ["copy", "all", "--to", &to];
    let mut command = place.command(&[&copy[..], &["--set", slowly]].concat());
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let is_data = |path: &std::path::PathBuf| path.to_string_lossy().contains("/d2/");
    poll_until("the copy's first objects", LIMIT, || {
        files(&second).iter().any(is_data)
    });
    signal("INT", child.id());
    let done = place.done(child.wait_with_output().unwrap()).expect(1);
    let prune = format!("pgkeep prune --repository {to}");
    for says in [
        "error: interrupted",
        &format!("a part of {id} may be at {to}"),
        &prune,
    ] {
        assert!(done.stderr.contains(says), "no '{says}' in {}", done.stderr);
    }
    // As it says.
    assert_eq!(
        place
            .run(&["list", "--json", "--repository", &to])
            .expect(0)
            .stdout,
        ""
    );
    place.run(&["prune", "--repository", &to]).expect(0);
    assert!(!files(&second).iter().any(is_data), "{:?}", files(&second));
    let again = place.run(&copy).expect(0);
    assert!(!again.stderr.contains("a part of"), "{}", again.stderr);
    place.run(&["verify", "all", "--repository", &to]).expect(0);
}
