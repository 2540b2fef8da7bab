//! One dump through all commands.

use pgkeep_testkit::stores::SeaweedFs;
use pgkeep_testkit::{Cluster, ClusterOptions, require};
use serde_json::Value;

use crate::support::{PASSWORD, PLAYERS, Place, server};

const ROWS: u64 = PLAYERS + 5000;

/// Every row of every table, in one hash.
fn fingerprint(cluster: &Cluster, database: &str) -> String {
    cluster.psql(
        database,
        "SELECT count(*), md5(string_agg(p::text, ',' ORDER BY id)) FROM players p;
         SELECT count(*), md5(string_agg(s::text, ',' ORDER BY score)) FROM scores s;
         SELECT count(*), sum(sum) FROM top; SELECT count(*) FROM empty; SELECT nextval('tickets');",
    )
}

#[test]
fn a_dump_is_listed_shown_verified_pinned_pruned_copied_and_restored() {
    let cluster = server();
    let place = Place::with(&cluster, None);
    let dump = place.run(&["dump", "--annotate", "why=test"]).expect(0);
    assert!(
        dump.stdout.contains("is complete.") && dump.stdout.contains("8,000 in 4 tables"),
        "{}",
        dump.stdout
    );
    let entries = place.run(&["list", "--json"]).expect(0).json_lines();
    let id = entries[0]["id"].as_str().unwrap().to_owned();
    assert!(dump.stdout.contains(&id));
    assert_eq!(entries[0]["state"], "complete");
    assert_eq!(
        entries[0]["summary"]["databases"],
        serde_json::json!(["postgres", "app"])
    );
    assert_eq!(entries[0]["summary"]["totals"]["rows"], ROWS);
    assert_eq!(entries[0]["verification"], Value::Null);

    let shown = place.run(&["show", &id[..12], "--json"]).expect(0).json();
    assert_eq!(shown["manifest"]["annotations"]["why"], "test");
    let text = place.run(&["show", "--tables"]).expect(0).stdout;
    assert!(
        text.contains(&id) && text.contains("public.players") && text.contains("why=test"),
        "{text}"
    );

    verified(&place, &id);
    pruned(&place, &id);
    copied(&place);
    restored(&cluster, &place);
}

fn verified(place: &Place, id: &str) {
    let report = place.run(&["verify", "--json"]).expect(0).json();
    assert_eq!(
        (&report["passed"], &report["depth"], &report["rows"]),
        (&true.into(), &"contents".into(), &ROWS.into())
    );
    assert_eq!(
        (&report["tables"], &report["recorded"]),
        (&report["tables_total"], &true.into())
    );
    let sample = place
        .run(&["verify", "all", "--sample", "1%", "--seed", "7"])
        .expect(0)
        .stdout;
    assert!(
        sample.contains("is good") && sample.contains("--seed 7"),
        "{sample}"
    );
    // Without the key there are still the hashes.
    std::fs::write(place.path("empty.toml"), "").unwrap();
    let url = place.repository_url();
    let stored = place.run(&[
        "verify",
        "--config",
        "empty.toml",
        "--repository",
        &url,
        "--stored-only",
        "--json",
    ]);
    assert_eq!(stored.expect(0).json()["depth"], "hashes");
    let listed = place
        .run(&["list", "--config", "empty.toml", "--repository", &url])
        .expect(0);
    assert!(
        listed.stdout.contains(id) && !listed.stdout.contains("app"),
        "{}",
        listed.stdout
    );
    assert!(listed.stderr.contains("--identity FILE"), "{}", listed.stderr);
}

fn pruned(place: &Place, id: &str) {
    place
        .run(&["pin", id, "--reason", "before the migration"])
        .expect(0);
    let second = place.dump();
    assert_eq!(second.len(), id.len(), "--quiet prints the id alone: {second}");
    let plan = place
        .run(&["prune", "--dry-run", "--keep-daily", "1"])
        .expect(0)
        .stdout;
    assert!(
        plan.contains("pinned: before the migration") && plan.contains("Nothing would be removed"),
        "{plan}"
    );
    place.run(&["unpin", id]).expect(0);
    let plan = place
        .run(&["prune", "--dry-run", "--keep-daily", "1", "--json"])
        .expect(0)
        .json_lines();
    assert_eq!(
        (&plan[0]["id"], &plan[0]["keep"], &plan[0]["state"]),
        (&id.into(), &false.into(), &"goes".into())
    );
    assert_eq!(
        (&plan[1]["id"], &plan[1]["reasons"][0]["code"]),
        (&second.as_str().into(), &"last_good".into())
    );
    assert_eq!(
        place.run(&["list", "--json"]).expect(0).json_lines().len(),
        2,
        "a dry run removes nothing"
    );
    let pruned = place.run(&["prune", "--keep-daily", "1"]).expect(0).stdout;
    assert!(pruned.contains("Removed 1 backup"), "{pruned}");
    let left = place.run(&["list", "--json"]).expect(0).json_lines();
    assert_eq!(
        left.iter().map(|entry| &entry["id"]).collect::<Vec<_>>(),
        [&Value::from(second)]
    );
}

fn copied(place: &Place) {
    let to = format!("file://{}", place.path("second").display());
    let first = place
        .run(&["copy", "all", "--to", &to, "--json"])
        .expect(0)
        .json();
    assert_eq!(first["was_complete"], false);
    let again = place
        .run(&["copy", "latest", "--to", &to, "--json"])
        .expect(0)
        .json();
    assert_eq!(
        (&again["was_complete"], &again["objects_copied"]),
        (&true.into(), &0.into())
    );
    place.run(&["verify", "all", "--repository", &to]).expect(0);
    let same = place
        .run(&["copy", "all", "--to", &place.repository_url()])
        .expect(2);
    assert!(same.stderr.contains("--to URL"), "{}", same.stderr);
}

fn restored(cluster: &Cluster, place: &Place) {
    let into = cluster.tcp_conninfo("postgres");
    let plan = place.run(&["restore", "--dry-run", "--json"]).expect(0).json();
    assert_eq!(
        (&plan["dry_run"], &plan["databases"][1]["name"]),
        (&true.into(), &"app".into())
    );
    let beside = [
        "restore",
        "latest",
        "--into",
        &into,
        "-d",
        "app",
        "--target-database",
        "app2",
    ];
    let report = place.run(&beside).expect(0).stdout;
    assert!(
        report.contains("is restored") && report.contains("8,000"),
        "{report}"
    );
    assert_eq!(fingerprint(cluster, "app2"), fingerprint(cluster, "app"));
    let refused = place.run(&beside).expect(4);
    assert!(refused.stderr.contains("--overwrite"), "{}", refused.stderr);
}

/// It is about the part that is asked for, and where that goes, and it knows what will need attention.
#[test]
fn a_dry_run_of_a_part_tells_what_the_restore_will() {
    let cluster = server();
    let place = Place::with(&cluster, None);
    place.dump();
    let into = cluster.tcp_conninfo("postgres");
    let args = [
        "restore",
        "--into",
        &into,
        "--table",
        "scores",
        "--target-database",
        "copy",
    ];
    let dry = [&args[..], &["--dry-run"]].concat();
    let told = place.run(&dry).expect(3);
    let line = |text: &str| {
        text.lines()
            .find(|line| line.starts_with("app "))
            .map(str::to_owned)
    };
    let row = line(&told.stdout).unwrap();
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(cells[..4], ["app", "copy", "1", "5,000"], "{}", told.stdout);
    assert!(
        told.stderr
            .contains("database 'copy' has no table public.players"),
        "{}",
        told.stderr
    );
    let done = place.run(&args).expect(3);
    assert!(
        done.stderr.contains("\"public.players\" does not exist") && done.stdout.contains("5,000 in 1 table"),
        "{done:?}"
    );
    let document = place
        .run(&[&dry[..], &["--overwrite", "--json"]].concat())
        .expect(3)
        .json();
    assert_eq!(document["databases"][0]["target_name"], "copy");
    assert_eq!(document["target"]["attention"].as_array().unwrap().len(), 1);
}

#[test]
fn a_new_server_is_made_for_a_restore() {
    use std::os::unix::fs::PermissionsExt;
    let cluster = server();
    let place = Place::with(&cluster, None);
    place.dump();
    // The server's user has to get there.
    std::fs::set_permissions(place.folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let into = format!("server:{}", place.path("data").display());
    let done = place.run(&["restore", "--into", &into]).expect(0);
    assert!(done.stdout.contains("pg_ctl start -D"), "{}", done.stdout);
    assert!(place.path("data/PG_VERSION").exists() && !place.path("data/postmaster.pid").exists());
    let again = place.run(&["restore", "--into", &into]).expect(4);
    assert!(again.stderr.contains("is not empty"), "{}", again.stderr);

    // It is started as the summary says, by whoever made it.
    let auto = place.path("data/postgresql.auto.conf");
    let text = std::fs::read_to_string(&auto).unwrap();
    let private = format!(
        "{text}\nlisten_addresses = ''\nunix_socket_directories = '{}'\nlogging_collector = on\n",
        place.path("data").display()
    );
    std::fs::write(&auto, private).unwrap();
    let lines = done.stdout.lines();
    let command = lines
        .filter_map(|line| line.strip_prefix("Start it with"))
        .next()
        .unwrap()
        .trim();
    let typed = |command: &str| {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", command]).current_dir("/");
        let quiet = std::process::Stdio::null;
        shell
            .stdin(quiet())
            .stdout(quiet())
            .stderr(quiet())
            .status()
            .unwrap()
            .success()
    };
    let started = typed(command);
    let running = place.path("data/postmaster.pid").exists();
    typed(&command.replacen(" start -D ", " stop -m immediate -D ", 1));
    assert!(started && running, "{command}");
}

/// What can't be captured is said, and the exit code says that something was.
#[test]
fn what_is_missing_from_a_dump_needs_attention() {
    let cluster = server();
    // pg_read_all_data would be enough for the passwords too.
    let grants =
        ["TABLES", "SEQUENCES"].map(|kind| format!("GRANT SELECT ON ALL {kind} IN SCHEMA public TO reader;"));
    cluster.psql("app", &format!("CREATE ROLE reader LOGIN; {}", grants.concat()));
    let place = Place::with(&cluster, None);
    let conninfo = cluster
        .tcp_conninfo("postgres")
        .replace("user=postgres", "user=reader");
    let done = place
        .run(&["dump", "--connection", &conninfo, "-d", "app"])
        .expect(3);
    assert!(done.stdout.contains("is complete."), "{}", done.stdout);
    assert!(
        done.stderr.starts_with("attention: ") && done.stderr.contains("password"),
        "{}",
        done.stderr
    );
    place.run(&["verify", "all"]).expect(0);
}

#[test]
fn a_dump_is_written_as_files_too() {
    let cluster = server();
    let place = Place::with(&cluster, None);
    place
        .run(&["dump", "--format", "plain", "--output", "all.sql.gz"])
        .expect(0);
    place
        .run(&["dump", "-F", "custom", "-o", "app.dump", "-d", "app"])
        .expect(0);
    place
        .run(&["dump", "-F", "directory", "-o", "app", "-d", "app"])
        .expect(0);
    for name in ["all.sql.gz", "app.dump", "app/toc.dat"] {
        assert!(std::fs::metadata(place.path(name)).unwrap().len() > 100, "{name}");
    }
    assert!(!place.path("repository").exists(), "files need no repository");
    place.dump();
    place.run(&["export", "--output", "folder"]).expect(0);
    place
        .run(&["export", "--format", "plain", "--output", "whole.sql"])
        .expect(0);
    place.run(&["restore", "--into", "files:again"]).expect(0);
    for folder in ["folder", "again"] {
        assert!(
            place.path(folder).join("restore.sh").exists()
                && place.path(folder).join("d2/schema.dump").exists()
        );
    }
    assert!(
        std::fs::read_to_string(place.path("whole.sql"))
            .unwrap()
            .contains("COPY \"public\".\"players\"")
    );
    place
        .run(&["export", "--output", "folder", "-d", "app"])
        .expect(2);
    place.run(&["dump", "-F", "custom", "-o", "all.dump"]).expect(2);
    place.run(&["dump", "-F", "plain"]).expect(2);
    place.run(&["dump", "-o", "x"]).expect(2);
}

/// A script goes straight into a bucket, which is reached as the repository is, and encrypted when its name says so.
fn exported_to(place: &Place, url: &str) {
    let encrypted = format!("{url}/whole.sql.zst.age");
    let export = ["export", "--format", "plain", "--output", &encrypted];
    let done = place.run(&export).expect(0);
    assert!(done.stdout.contains("It is encrypted"), "{}", done.stdout);
    let again = place.run(&export).expect(4);
    assert!(again.stderr.contains("exists"), "{}", again.stderr);
    for (command, folder) in [
        (vec!["export", "--output", url], "export"),
        (
            vec!["dump", "-F", "directory", "-d", "app", "--output", url],
            "dump",
        ),
        (vec!["restore", "--into", "files:s3://exports/files"], "restore"),
    ] {
        let refused = place.run(&command).expect(2);
        assert!(
            refused.stderr.contains("is a URL"),
            "{folder}: {}",
            refused.stderr
        );
    }
    assert!(
        !place.path("s3:").exists(),
        "it wrote into a directory called s3:"
    );
}

#[test]
fn the_doctor_finds_everything_in_place_and_says_what_is_not() {
    let cluster = server();
    // In memory: beside the server's data would be a finding.
    let place = Place::in_memory();
    place.configure(&cluster, &place.repository_url(), None);
    let findings = place.run(&["doctor", "--json"]).expect(0).json_lines();
    let areas: Vec<&str> = findings
        .iter()
        .map(|finding| finding["area"].as_str().unwrap())
        .collect();
    for area in ["configuration", "encryption", "repository", "server", "programs"] {
        assert!(areas.contains(&area), "{area}: {areas:?}");
    }
    let conninfo = "host=127.0.0.1 port=1";
    let sick = place
        .run(&["doctor", "--connection", conninfo, "--identity", "nothing.key"])
        .expect(1)
        .stdout;
    assert!(
        sick.contains("connection refused") && sick.contains("nothing.key"),
        "{sick}"
    );
    assert!(sick.contains("2 errors to mend"), "{sick}");
}

#[test]
fn a_bucket_works_like_a_folder() {
    let store = require!(SeaweedFs::start());
    let cluster = server();
    let mut place = Place::new();
    let url = format!("{}/backups", store.bucket("cli"));
    place.configure(&cluster, &url, None);
    for (name, value) in [
        ("AWS_ACCESS_KEY_ID", store.access_key.as_str()),
        ("AWS_SECRET_ACCESS_KEY", store.secret_key.as_str()),
        ("PGKEEP_S3__ENDPOINT", store.endpoint.as_str()),
        ("PGKEEP_S3__REGION", "us-east-1"),
    ] {
        place.environment.push((name.to_owned(), value.to_owned()));
    }
    place.dump();
    let second = place.dump();
    place.run(&["verify", "all"]).expect(0);
    place.run(&["prune", "--keep-daily", "1"]).expect(0);
    let left = place.run(&["list", "--json"]).expect(0).json_lines();
    assert_eq!(
        left.iter().map(|entry| &entry["id"]).collect::<Vec<_>>(),
        [&Value::from(second)]
    );
    let folder = format!("file://{}", place.path("second").display());
    place.run(&["copy", "all", "--to", &folder]).expect(0);
    place.run(&["verify", "--repository", &folder]).expect(0);
    exported_to(&place, &format!("{}/exported", store.bucket("exports")));
    let doctor = place.run(&["doctor"]);
    assert!(
        doctor.stdout.contains("is reachable"),
        "{}{}",
        doctor.stdout,
        doctor.stderr
    );
    let wrong = [
        format!("s3.access_key_id={}", store.access_key),
        format!("s3.secret_access_key={PASSWORD}"),
    ];
    let refused = place
        .run(&["dump", "--set", &wrong[0], "--set", &wrong[1]])
        .expect(1);
    assert!(
        refused.stderr.contains("AWS_SECRET_ACCESS_KEY"),
        "{}",
        refused.stderr
    );
}

/// TimescaleDB's catalog comes and goes as rows: they are counted on both ways, also those that its triggers turn into updates.
#[test]
fn a_dump_and_its_restore_count_the_same_rows() {
    let cluster = require!(Cluster::start(ClusterOptions::default().timescaledb()));
    cluster.create_database("app");
    cluster.psql(
        "app",
        "CREATE EXTENSION timescaledb; CREATE TABLE m (t timestamptz NOT NULL, v int);
         SELECT create_hypertable('m', 't');
         INSERT INTO m SELECT '2026-11-01'::timestamptz + n * interval '1 day', n FROM generate_series(1, 1000) n",
    );
    let place = Place::with(&cluster, None);
    let dump = ["dump", "-d", "app"];
    let dumped = place.run(&[&dump[..], &["--json"]].concat()).expect(0).json();
    let rows = dumped["totals"]["rows"].as_u64().unwrap();
    assert!(rows > 1000, "the catalog's are among them: {rows}");
    let said = |text: &str| {
        let line = text.lines().find(|line| line.trim_start().starts_with("rows "));
        line.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    let text = said(&place.run(&dump).expect(0).stdout).unwrap();
    let into = cluster.tcp_conninfo("postgres");
    let restore = |target, json| {
        let args = [
            "restore",
            "-d",
            "app",
            "--into",
            &into,
            "--target-database",
            target,
        ];
        place.run(&[&args[..], json].concat()).expect(0)
    };
    let restored = restore("one", &["--json"]).json();
    assert_eq!(restored["databases"][0]["rows"], rows);
    assert_eq!(said(&restore("two", &[]).stdout), Some(text));
}

/// pg_dump leaves subscriptions out with a warning, and what it may not see without a word.
#[test]
fn what_only_a_superuser_may_dump_is_told() {
    let cluster = server();
    cluster.psql(
        "app",
        "CREATE ROLE reader LOGIN IN ROLE pg_read_all_data;
         CREATE SUBSCRIPTION \"from afar\" CONNECTION 'host=nowhere' PUBLICATION p WITH (connect = false);
         CREATE FOREIGN DATA WRAPPER w; CREATE SERVER elsewhere FOREIGN DATA WRAPPER w;
         CREATE USER MAPPING FOR PUBLIC SERVER elsewhere OPTIONS (password 'x');
         CREATE USER MAPPING FOR reader SERVER elsewhere; GRANT USAGE ON FOREIGN SERVER elsewhere TO reader",
    );
    let place = Place::with(&cluster, None);
    let reader = format!("{} user=reader", cluster.tcp_conninfo("postgres"));
    let omitted = [
        "subscriptions from afar in app: dumping them takes a superuser",
        "of user mappings for PUBLIC on server elsewhere in app",
    ];
    let script = place.path("app.sql").display().to_string();
    for args in [
        &["dump", "--connection", &reader][..],
        &[
            "dump",
            "--connection",
            &reader,
            "--format",
            "plain",
            "--database",
            "app",
            "--output",
            &script,
        ],
    ] {
        let told = place.run(args).expect(3).stderr;
        assert!(omitted.iter().all(|omitted| told.contains(omitted)), "{told}");
    }
    let shown = place.run(&["show"]).expect(0).stderr;
    assert!(omitted.iter().all(|omitted| shown.contains(omitted)), "{shown}");
    // A superuser's has them, and one of chosen tables isn't asked for them.
    let all = place.run(&["dump"]).expect(0).stderr;
    assert!(!all.contains("subscriptions"), "{all}");
    let part = place.run(&[
        "dump",
        "--connection",
        &reader,
        "--database",
        "app",
        "--table",
        "players",
    ]);
    assert!(!part.stderr.contains("subscriptions"), "{part:?}");
}
