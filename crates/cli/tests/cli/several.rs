//! Several repositories: each dump goes into all of them, and each command knows which to ask.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pgkeep_testkit::{Cluster, poll_until};

use crate::support::{Done, Place, server};

/// The folders of the dumps in a repository that have a manifest.
fn dumps(place: &Place, repository: &str) -> Vec<String> {
    let folder = place.path(repository).join("main/dump");
    let mut ids: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            fs::read(entry.path().join("manifest")).is_ok_and(|bytes| bytes.first() != Some(&b'{'))
        })
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    ids.sort();
    ids
}

fn url(place: &Place, repository: &str) -> String {
    format!("file://{}", place.path(repository).display())
}

/// `repository = [...]` in the place of the one.
fn with_two(place: &Place, second: &str) {
    let path = place.path("pgkeep.toml");
    let text = fs::read_to_string(&path).unwrap();
    let lines = text.lines().map(|line| match line.starts_with("repository") {
        true => format!("repository = [\"{}\", {second}]", url(place, "repository")),
        false => line.to_owned(),
    });
    fs::write(path, lines.collect::<Vec<_>>().join("\n")).unwrap();
}

/// Two repositories, the second with settings of its own, and further lines of the cluster's.
fn with_own(cluster: &Cluster, own: &str, lines: &str) -> Place {
    let place = Place::with(cluster, None);
    let second = url(&place, "second");
    with_two(&place, &format!("{{ url = \"{second}\", {own} }}"));
    let path = place.path("pgkeep.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(path, format!("{text}\n{lines}\n")).unwrap();
    place
}

/// A repository that can't be reached: there is a file in its place.
fn away(place: &Place, repository: &str) {
    fs::rename(place.path(repository), place.path("elsewhere")).unwrap();
    fs::write(place.path(repository), "").unwrap();
}

fn back(place: &Place, repository: &str) {
    fs::remove_file(place.path(repository)).unwrap();
    fs::rename(place.path("elsewhere"), place.path(repository)).unwrap();
}

/// `run --once` when another dump of a schedule of every second is due, which is so as soon as the clock has gone on.
fn run_once(place: &Place) -> Done {
    let seconds = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let before = seconds();
    poll_until("the next second", Duration::from_secs(10), || seconds() > before);
    place.run(&["run", "--once"])
}

#[test]
fn a_dump_goes_into_both_and_one_that_is_away_gets_it_later() {
    let cluster = server();
    let place = Place::with(&cluster, None);
    let second = url(&place, "second");
    with_two(&place, &format!("\"{second}\""));
    let first = place.dump();
    assert_eq!(dumps(&place, "repository"), std::slice::from_ref(&first));
    assert_eq!(dumps(&place, "second"), std::slice::from_ref(&first));

    away(&place, "second");
    let done = place.run(&["dump", "--json"]).expect(3);
    let report = done.json();
    let newer = report["id"].as_str().unwrap().to_owned();
    assert_eq!(report["repositories"].as_array().unwrap().len(), 1);
    assert_eq!(report["left_out"][0]["repository"], second);
    let mend = format!("pgkeep copy {newer} --to {second}");
    assert!(done.stderr.contains(&mend), "{}", done.stderr);
    // What is there is shown, what can't be asked is told.
    let listed = place.run(&["list"]).expect(3);
    assert!(
        listed.stdout.contains(&newer) && listed.stderr.contains("second"),
        "{listed:?}"
    );
    let restoring = place.run(&["restore", "--dry-run", "--json"]).expect(3);
    assert_eq!(restoring.json()["id"], newer.as_str());
    assert!(restoring.stderr.contains("second is left out"), "{restoring:?}");
    // What is mistyped is told as such, whatever else is wrong.
    let mistyped = place
        .run(&["restore", "--dry-run", "--database", "aap"])
        .expect(2);
    assert!(mistyped.stderr.contains("'aap'"), "{}", mistyped.stderr);
    assert!(
        mistyped.stderr.contains("second is left out"),
        "{}",
        mistyped.stderr
    );
    // A pin that isn't everywhere isn't one.
    let pinned = place.run(&["pin", &first, "--reason", "a b"]).expect(1).stderr;
    assert!(
        pinned.contains(&format!("pgkeep pin {first} --reason 'a b'")),
        "{pinned}"
    );
    place.run(&["unpin", &first]).expect(1);
    place.run(&["verify", &newer]).expect(3);

    back(&place, "second");
    place.run(&["copy", &newer, "--to", &second]).expect(0);
    assert_eq!(dumps(&place, "second"), [first.clone(), newer.clone()]);
    let again = place.run(&["copy", "all", "--to", &second]).expect(0);
    assert!(again.stdout.contains("is there already"), "{}", again.stdout);
    let listed = place.run(&["list", "--json"]).expect(0).json_lines();
    assert_eq!(listed.len(), 4);
    assert_eq!(listed[3]["repository"], second);
    let verified = place.run(&["verify", "all", "--json"]).expect(0).json_lines();
    assert_eq!(verified.len(), 4);
    // Both are on the server's own disk.
    let doctor = place.run(&["doctor"]).expect(3).stdout;
    for repository in ["repository", "second"] {
        let finding = format!("{}: the repository is on the same disk", url(&place, repository));
        assert!(doctor.contains(&finding), "{doctor}");
    }

    // The first one is away: the second has the same.
    away(&place, "repository");
    let newest = place.run(&["dump", "--json"]).expect(3).json();
    let newest = newest["id"].as_str().unwrap().to_owned();
    back(&place, "repository");
    let plan = place.run(&["restore", "--dry-run", "--json"]).expect(0);
    assert_eq!(plan.json()["id"], newest.as_str());
    assert!(plan.stderr.contains(&second), "{}", plan.stderr);
    place.run(&["pin", &first]).expect(0);
    for entry in place.run(&["list", "--json"]).expect(0).json_lines() {
        assert_eq!(!entry["pin"].is_null(), entry["id"] == first.as_str(), "{entry}");
    }
    place.run(&["show", &newest]).expect(0);
    let none = place.run(&["show", "d2020"]).expect(2);
    assert!(none.stderr.contains("no backup 'd2020'"), "{}", none.stderr);
}

#[test]
fn what_is_wrong_in_one_repository_is_no_reason_to_take_an_older_dump_silently() {
    let cluster = server();
    let place = Place::with(&cluster, None);
    let second = url(&place, "second");
    with_two(&place, &format!("\"{second}\""));
    let older = place.dump();
    // A part in the one, a whole one in the other: the whole one is the latest.
    let args = [
        "dump",
        "-d",
        "app",
        "--quiet",
        "--repository",
        &url(&place, "repository"),
    ];
    place.run(&args).expect(0);
    let newer = place.run(&["dump", "--quiet", "--repository", &second]).expect(0);
    let newer = newer.stdout.trim().to_owned();
    let planned = || place.run(&["restore", "--dry-run", "--json"]);
    assert_eq!(planned().expect(0).json()["id"], newer.as_str());
    // Damaged in the one, whole in the other.
    place
        .run(&["copy", &newer, "--to", &url(&place, "repository")])
        .expect(0);
    let manifest = |repository: &str| {
        place
            .path(repository)
            .join("main/dump")
            .join(&newer)
            .join("manifest")
    };
    let sound = fs::read(manifest("second")).unwrap();
    fs::write(manifest("repository"), "").unwrap();
    let plan = planned().expect(3);
    assert_eq!(plan.json()["id"], newer.as_str());
    assert!(plan.stderr.contains("can't be read there"), "{}", plan.stderr);
    // Damaged in both: refused, and the older one isn't taken in its place.
    fs::write(manifest("second"), "").unwrap();
    let refused = planned();
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains(&older), "{}", refused.stderr);
    fs::write(manifest("second"), sound).unwrap();
    assert_eq!(planned().expect(3).json()["id"], newer.as_str());
}

#[test]
fn a_dump_that_is_damaged_in_one_repository_is_read_from_the_other_and_mended_by_it() {
    let cluster = server();
    let place = Place::with(&cluster, None);
    let (first, second) = (url(&place, "repository"), url(&place, "second"));
    with_two(&place, &format!("\"{second}\""));
    let id = place.dump();
    let object = place.object("d2/000001.sql.zst.age");
    let mut bytes = fs::read(&object).unwrap();
    *bytes.last_mut().unwrap() ^= 0x40;
    fs::write(&object, bytes).unwrap();
    // As long as nobody knows, it is read, and where else it is is said.
    let into = cluster.tcp_conninfo("postgres");
    let restore = [
        "restore",
        "--into",
        &into,
        "-d",
        "app",
        "--target-database",
        "again",
        "--overwrite",
    ];
    let failed = place.run(&restore[..restore.len() - 1]).expect(1).stderr;
    let mend = format!("--repository {second} and --overwrite");
    assert!(failed.contains(&mend), "{failed}");
    let verified = place.run(&["verify"]).expect(1);
    let mend = format!("pgkeep copy {id} --repository {second} --to {first} --repair");
    assert!(
        verified.stdout.contains(&format!("at {first} is damaged"))
            && verified.stdout.contains(&format!("at {second} is good"))
            && verified.stderr.contains(&mend),
        "{verified:?}"
    );
    let restored = place.run(&restore).expect(3);
    assert!(restored.stderr.contains(&mend), "{restored:?}");
    assert!(
        restored.stderr.contains(&format!("reading from {second}")),
        "{restored:?}"
    );
    let pruned = place.run(&["prune", "--dry-run"]).expect(0).stdout;
    assert!(pruned.contains("DAMAGED"), "{pruned}");
    // A copy finds it there; as it says, it repairs it.
    let copy = ["copy", &id, "--repository", &second, "--to", &first];
    let copied = place.run(&copy).expect(3);
    assert!(copied.stderr.contains("--repair"), "{copied:?}");
    // What a verification of the contents has found, only another one takes back.
    let repaired = place.run(&[&copy[..], &["--repair"]].concat()).expect(3);
    let verify = format!("pgkeep verify {id} --repository {first}");
    assert!(
        repaired.stdout.contains("1 written anew") && repaired.stderr.contains(&verify),
        "{repaired:?}"
    );
    place.run(&["verify", &id, "--repository", &first]).expect(0);
    let restored = place.run(&restore).expect(0);
    assert!(
        restored.stderr.contains(&format!("reading from {first}")),
        "{restored:?}"
    );
}

/// A disk that isn't mounted looks like a repository that was never made.
#[test]
fn a_repository_that_is_gone_while_another_is_there_is_told() {
    let cluster = server();
    let place = Place::with(&cluster, None);
    let second = url(&place, "second");
    with_two(&place, &format!("\"{second}\""));
    place.dump();
    fs::rename(place.path("second"), place.path("elsewhere")).unwrap();
    let doctor = place.run(&["doctor"]).expect(3).stdout;
    assert!(
        doctor.contains(&format!("{second}: empty")) && doctor.contains("mounted"),
        "{doctor}"
    );
    for args in [&["list"][..], &["prune"], &["verify", "all"]] {
        let told = place.run(args).expect(3).stderr;
        assert!(
            told.contains(&format!("there is no repository at {second}")),
            "{told}"
        );
    }
    assert!(!place.path("second").exists());
    let dumped = place.run(&["dump"]).expect(3).stderr;
    let mend = format!("pgkeep copy all --to {second}");
    assert!(dumped.contains("made anew") && dumped.contains(&mend), "{dumped}");
    place.run(&["copy", "all", "--to", &second]).expect(0);
    assert_eq!(dumps(&place, "second"), dumps(&place, "repository"));
    place.run(&["dump"]).expect(0);
    // It is told even by a dump that fails, because the next one finds it there.
    fs::rename(place.path("second"), place.path("aside")).unwrap();
    cluster.psql("postgres", "DROP DATABASE app");
    let failed = place.run(&["dump", "--database", "app"]);
    assert!(
        failed.code != 0 && failed.stderr.contains("made anew"),
        "{failed:?}"
    );
    // All of them gone is no success.
    for repository in ["repository", "second"] {
        fs::rename(place.path(repository), place.path(&format!("{repository} away"))).unwrap();
    }
    for args in [&["list"][..], &["prune"], &["verify", "all", "--quiet"]] {
        place.run(args).expect(2);
    }
}

#[test]
fn another_server_is_refused_by_all_if_it_is_by_one() {
    let cluster = server();
    let place = Place::with(&cluster, None);
    place.dump();
    let other = server();
    place.configure(&other, &place.repository_url(), None);
    with_two(&place, &format!("\"{}\"", url(&place, "second")));
    place.run(&["dump"]).expect(4);
    assert_eq!(dumps(&place, "second"), Vec::<String>::new());
    assert!(!place.path("second/main/identity").exists());
}

#[test]
fn one_repository_by_two_names_is_refused() {
    let cluster = server();
    let place = Place::with(&cluster, None);
    place.dump();
    std::os::unix::fs::symlink(place.path("repository"), place.path("link")).unwrap();
    with_two(&place, &format!("\"{}\"", url(&place, "link")));
    let refused = place.run(&["dump"]).expect(2);
    assert!(
        refused.stderr.contains("are one repository"),
        "{}",
        refused.stderr
    );
}

#[test]
fn each_repository_keeps_what_it_is_told_to() {
    let cluster = server();
    let place = with_own(&cluster, "keep = { window = \"30d\" }", "keep = { daily = 1 }");
    let ids = [place.dump(), place.dump()];
    let dry = place.run(&["prune", "--dry-run", "--json"]).expect(0);
    assert_eq!(dry.json_lines().len(), 4);
    place.run(&["prune"]).expect(0);
    assert_eq!(dumps(&place, "repository"), ids[1..]);
    assert_eq!(dumps(&place, "second"), ids);
    // A flag is stronger than both.
    place.run(&["prune", "--keep-window", "0d"]).expect(0);
    assert_eq!(dumps(&place, "second"), ids[1..]);
}

#[test]
fn retention_of_one_repository_alone_is_carried_out() {
    let cluster = server();
    let place = with_own(
        &cluster,
        "keep = { daily = 1 }",
        "dump = { schedule = \"* * * * * *\" }",
    );
    place.dump();
    run_once(&place).expect(0);
    assert_eq!(dumps(&place, "repository").len(), 2);
    assert_eq!(dumps(&place, "second"), dumps(&place, "repository")[1..]);
}

#[test]
fn the_scheduler_dumps_into_both_and_prunes_each() {
    let cluster = server();
    let place = with_own(
        &cluster,
        "keep = { window = \"30d\" }",
        "keep = { daily = 1 }\ndump = { schedule = \"* * * * * *\" }",
    );
    let first = place.dump();
    let told = run_once(&place).expect(0);
    let both = dumps(&place, "second");
    assert_eq!(both.len(), 2, "{told:?}");
    assert_eq!(both[0], first);
    assert_eq!(dumps(&place, "repository"), both[1..]);

    away(&place, "second");
    let told = run_once(&place).expect(3);
    assert!(told.stderr.contains("pgkeep copy"), "{told:?}");
    back(&place, "second");
    // What it lacks is told, and what it has isn't pruned.
    let told = run_once(&place).expect(3);
    assert!(
        told.stderr.contains("lacks what another repository has"),
        "{told:?}"
    );
}

#[test]
fn what_is_wrong_with_a_repository_of_its_own_is_named() {
    let place = Place::new();
    let refused = |repository: &str, expected: &str| {
        let text = format!("[cluster.main]\nrepository = {repository}\n");
        fs::write(place.path("pgkeep.toml"), text).unwrap();
        let done = place.run(&["list"]).expect(2);
        assert!(done.stderr.contains(expected), "{repository}: {}", done.stderr);
    };
    refused("[{ keep = { window = \"1d\" } }]", "without its url");
    refused(
        "[{ url = \"file:///a\", kep = 1 }]",
        "'kep', which is no setting; did you mean 'keep'",
    );
    refused(
        "[{ url = \"file:///a\", zzzzzzzz = 1 }]",
        "no setting; what can be set for one repository: s3, gcs, azure, keep",
    );
    refused(
        "[{ url = \"file:///a\", dump = { jobs = 3 } }]",
        "'dump.jobs', which can't be set for one repository alone",
    );
    refused(
        "[{ url = \"file:///a\", keep = { daily = \"x\" } }]",
        "'keep.daily' must be a whole number",
    );
    refused("[{ url = \"a\" }]", "must be a URL");
    refused("[\"file:///a\", { url = \"file:///a/\" }]", "twice");
    refused("[\"file:///a\", 3]", "must be a string");
}
