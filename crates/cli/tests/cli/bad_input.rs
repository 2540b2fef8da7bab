//! One clear error each, that names the mend; the right exit code; no panic and no secret (`Place::run` looks for both).

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use pgkeep_testkit::{ClusterOptions, require, requirements};

use crate::support::{Done, PASSWORD, Place, server, server_with};

/// One error is told, with this text, and with this mend unless it is empty.
#[track_caller]
fn told(done: Done, code: i32, error: &str, mend: &str) {
    let done = done.expect(code);
    assert_eq!(
        done.stderr.matches("error:").count(),
        1,
        "one error: {}",
        done.stderr
    );
    assert!(done.stderr.contains(error), "no '{error}' in: {}", done.stderr);
    assert!(done.stderr.contains(mend), "no '{mend}' in: {}", done.stderr);
}

#[test]
fn the_server_s_refusals_are_told() {
    let options = ClusterOptions::default().hba_line("host all guarded 127.0.0.1/32 scram-sha-256");
    let cluster = server_with(options);
    cluster.psql("postgres", "CREATE ROLE guarded LOGIN SUPERUSER PASSWORD 'right'");
    let mut place = Place::with(&cluster, None);
    place
        .environment
        .push(("PGPASSWORD".to_owned(), PASSWORD.to_owned()));
    let (host, port) = ("127.0.0.1", cluster.port());

    let wrong = format!("host={host} port={port} user=guarded dbname=postgres");
    told(
        place.run(&["dump", "--connection", &wrong]),
        1,
        "password authentication failed",
        "PGPASSWORD",
    );
    let missing = format!("host={host} port={port} user=postgres dbname=nix");
    told(
        place.run(&["dump", "--connection", &missing]),
        1,
        "database \"nix\" does not exist",
        "psql -l",
    );
    told(
        place.run(&["dump", "--database", "nix"]),
        2,
        "there is no database 'nix'",
        "it has: postgres, app",
    );
    // In one line, whatever a name holds.
    cluster.create_database("odd\nname");
    told(
        place.run(&["dump", "--database", "no\nsuch"]),
        2,
        "there is no database 'no\\nsuch'",
        "it has: postgres, app, 'odd\\nname'",
    );
    told(
        place.run(&["dump", "--format", "plain", "--output", "nix/x.sql"]),
        2,
        "there is no folder nix",
        "mkdir -p nix",
    );
    let nobody = format!("host={host} port=1 user=postgres");
    told(
        place.run(&["dump", "--connection", &nobody]),
        1,
        "connection refused",
        "no server listens on 127.0.0.1:1",
    );
    assert!(
        !place.path("repository").join("main/dump").exists(),
        "nothing was begun"
    );
}

/// A dump that lacks rows without a word would be worse than none.
#[test]
fn rows_that_a_policy_hides_are_told() {
    let cluster = server();
    let place = Place::with(&cluster, None);
    cluster.psql(
        "app",
        "CREATE ROLE reader LOGIN; GRANT pg_read_all_data TO reader; CREATE TABLE hidden (a int);
         ALTER TABLE hidden ENABLE ROW LEVEL SECURITY",
    );
    let reader = format!("host=127.0.0.1 port={} user=reader dbname=app", cluster.port());
    for format in [&["--format", "custom", "--output", "x.dump"][..], &[]] {
        let args = [&["dump", "--database", "app", "--connection", &reader], format].concat();
        let done = place.run(&args).expect(1);
        assert!(
            done.stderr.contains("row-level security") && done.stderr.contains("BYPASSRLS"),
            "{}",
            done.stderr
        );
        assert!(!place.path("x.dump").exists());
    }
}

/// Runs a command line without blanks in its words, and expects exit code 2.
#[track_caller]
fn refused(place: &Place, line: &str, error: &str, mend: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    told(place.run(&words), 2, error, mend);
}

#[test]
fn mistyped_flags_are_told_with_what_was_meant() {
    let place = Place::new();
    refused(&place, "dump --conection x", "'--conection'", "'--connection'");
    refused(&place, "lst", "'lst'", "'list'");
    refused(&place, "verify --sample 0%", "--sample", "100%");
    refused(&place, "restore", "--into", "");
    refused(
        &place,
        "restore --into server:",
        "names no directory",
        "server:DIRECTORY",
    );
    refused(&place, "list --set dump.jbs=3", "'dump.jbs'", "'dump.jobs'");
    refused(&place, "list", "no repository is configured", "PGKEEP_REPOSITORY");
    refused(&place, "list --repository s4://bucket", "'s4'", "s3");
    refused(
        &place,
        "list --repository flie:///srv/x",
        "'flie'",
        "did you mean 'file://'?",
    );
    refused(
        &place,
        "dump --connection postgress://u@h/d --repository file:///srv/x --encryption none",
        "'postgress://'",
        "did you mean 'postgres://'?",
    );
    refused(
        &place,
        "restore --into files:/srv/x --table t --from 2026-01-01",
        "cannot be used with '--from <TIME>'",
        "--table",
    );
    for (from, to, error) in [
        ("yesterday", "2026-11-02", "'yesterday' for '--from <TIME>'"),
        ("2026-11-01", "2026-13-45", "'2026-13-45' for '--to <TIME>'"),
        ("2026-11-08", "2026-11-01", "ends before it begins"),
        ("-5", "-5", "ends where it begins"),
    ] {
        let line = format!("restore --into server:x --hypertable h --from {from} --to {to}");
        refused(&place, &line, error, "");
    }
    for target in ["fils:/srv/x", "flie:///srv/x"] {
        let line = format!("restore --into {target}");
        refused(
            &place,
            &line,
            "no kind of target",
            "did you mean 'files:DIRECTORY'?",
        );
    }
}

#[test]
fn mistyped_repositories_keys_and_connections_are_told() {
    let place = Place::new();
    let url = place.repository_url();
    let (dump, key) = (format!("dump --repository {url}"), place.recipient());
    refused(
        &place,
        &format!("list --repository {url}"),
        "there is no pgkeep repository",
        "pgkeep dump",
    );
    refused(&place, &dump, "no recipient", "pgkeep key new");
    refused(
        &place,
        &format!("{dump} --recipient age1x"),
        "age1x",
        "pgkeep key new",
    );
    let dump = format!("{dump} --recipient {key}");
    refused(&place, &format!("{dump} --connection hots=x"), "'hots'", "'host'");
    let line = format!("{dump} --connection host=a,port=1");
    refused(&place, &line, "',port=' stands in the value of 'host'", "blanks");
    refused(
        &place,
        "key new --output nix/pgkeep.key",
        "there is no folder nix",
        "mkdir -p -m 700 'nix'",
    );
    let uri = format!("postgres://u:{PASSWORD}@127.0.0.1:99999/x");
    refused(&place, &format!("{dump} --connection {uri}"), "port", "65535");
    assert!(!place.path("repository").exists(), "nothing was begun");
}

/// What did nothing because there is nothing must not pass for what has done it.
#[test]
fn that_there_is_no_backup_is_a_failure_of_whatever_needs_one() {
    let place = Place::new();
    std::fs::create_dir(place.path("repository")).unwrap();
    let marker =
        r#"{"format":1,"repository":"0123456789abcdef0123456789abcdef","created_at":"2026-11-22T02:00:00Z"}"#;
    std::fs::write(place.path("repository/pgkeep.json"), marker).unwrap();
    let (url, second) = (place.repository_url(), place.path("second"));
    for line in [
        "verify all",
        "verify all --stored-only",
        "verify",
        "copy latest --to SECOND",
        "copy all --to SECOND",
        "restore --into server:x",
        "export --output folder",
        "show",
        "pin latest",
        "show d20261122",
    ] {
        let line = line.replace("SECOND", &format!("file://{}", second.display()));
        let line = format!("{line} --repository {url}");
        let words: Vec<&str> = line.split(' ').collect();
        let error = format!("there is no backup of 'main' at {url}");
        told(place.run(&words), 1, &error, "take one with 'pgkeep dump'");
    }
    assert!(!second.exists(), "nothing was begun");
}

#[test]
fn a_wrong_configuration_file_is_told_with_the_place() {
    let place = Place::new();
    let write = |name: &str, text: &str| std::fs::write(place.path(name), text).unwrap();
    refused(&place, "list --config nix.toml", "nix.toml", "--config FILE");
    write("typo.toml", "[cluster.a]\nrepositry = \"file:///x\"\n");
    refused(&place, "list --config typo.toml", "typo.toml:2:1", "'repository'");
    write(
        "broken.toml",
        &format!("[cluster.a\nconnection = \"postgres://u:{PASSWORD}@h/d\"\n"),
    );
    refused(&place, "list --config broken.toml", "broken.toml:1", "");
    write("two.toml", "[cluster.a]\n[cluster.b]\n");
    refused(
        &place,
        "list --config two.toml",
        "several clusters",
        "--cluster NAME",
    );
    refused(&place, "list --config two.toml --cluster c", "'c'", "a, b");
}

/// With `--json` a program reads the same from standard output.
#[test]
fn programs_are_told_too() {
    let place = Place::new();
    let done = place.run(&["list", "--json"]).expect(2);
    let error = &done.json()["error"];
    assert_eq!(
        (&error["exit_code"], &error["message"]),
        (&2.into(), &"no repository is configured".into())
    );
    assert!(error["hint"].as_str().unwrap().contains("PGKEEP_REPOSITORY"));
}

/// A store that is away, with nothing behind it.
fn unreachable_bucket(place: &mut Place) -> Vec<String> {
    for (name, value) in [("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", PASSWORD)] {
        place.environment.push((name.to_owned(), value.to_owned()));
    }
    let line =
        "list --repository s3://bucket/x --set s3.endpoint=http://127.0.0.1:1 --set s3.region=eu-central-1";
    line.split(' ').map(str::to_owned).collect()
}

/// Who waits is told at once for what, and how long at most.
#[test]
fn that_a_bucket_does_not_answer_is_told_while_it_is_tried_again() {
    let mut place = Place::new();
    let line = unreachable_bucket(&mut place);
    let words: Vec<&str> = line.iter().map(String::as_str).collect();
    let mut command = place.command(&words);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut told = String::new();
    stderr.read_line(&mut told).unwrap();
    let running = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(running, "it goes on: {told}");
    assert!(
        told.starts_with("warning: could not ")
            && told.contains(" in s3://bucket/x: ")
            && told.contains("trying again for up to "),
        "{told}"
    );
}

/// It waits out a store that may only be restarting: a minute and a half.
#[test]
fn an_unreachable_bucket_is_told() {
    require!(requirements::long());
    let mut place = Place::new();
    let line = unreachable_bucket(&mut place);
    let words: Vec<&str> = line.iter().map(String::as_str).collect();
    let done = place.run(&words);
    told(
        done,
        1,
        "Connection refused",
        "check the network, the endpoint and the proxy settings",
    );
}
