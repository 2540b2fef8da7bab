//! Dagster Pipes: what Dagster is told, by the file that it follows and by the streams that it catches. What Dagster makes
//! of it is looked at in integrations/dagster.

use std::io::Write as _;

use base64::Engine as _;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use pgkeep_testkit::ClusterOptions;
use serde_json::{Value, json};

use crate::support::{Done, PASSWORD, Place, server, server_with};

/// As Dagster encodes it.
fn encode(value: &Value) -> String {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(value.to_string().as_bytes()).unwrap();
    base64::engine::general_purpose::STANDARD.encode(encoder.finish().unwrap())
}

/// Lets the place's commands report to a file.
fn invite(place: &mut Place, asset_keys: &Value) {
    std::fs::write(place.path("messages"), "").unwrap();
    let context = json!({ "data": { "asset_keys": asset_keys, "run_id": "r", "extras": {} } });
    let messages = json!({ "path": place.path("messages") });
    place.environment.extend([
        ("DAGSTER_PIPES_CONTEXT".to_owned(), encode(&context)),
        ("DAGSTER_PIPES_MESSAGES".to_owned(), encode(&messages)),
    ]);
}

/// All messages so far: what they are, and their parameters.
#[track_caller]
fn messages(place: &Place) -> Vec<(String, Value)> {
    let text = std::fs::read_to_string(place.path("messages")).unwrap();
    assert!(!text.contains(PASSWORD), "a password is reported: {text}");
    read(&text)
}

#[track_caller]
fn read(lines: &str) -> Vec<(String, Value)> {
    let read = |line| {
        let mut message: Value = serde_json::from_str(line).unwrap();
        assert_eq!(message["__dagster_pipes_version"], "0.1");
        (
            message["method"].as_str().unwrap().to_owned(),
            message["params"].take(),
        )
    };
    lines.lines().map(read).collect()
}

/// The parameters of the messages of one kind.
fn of<'a>(messages: &'a [(String, Value)], method: &str) -> Vec<&'a Value> {
    let those = messages.iter().filter(|(name, _)| name == method);
    those.map(|(_, params)| params).collect()
}

/// A command that fails tells why, with the mend, and reports nothing as made.
#[track_caller]
fn failed(place: &Place, done: Done, code: i32, name: &str, texts: &[&str]) {
    done.expect(code);
    let messages = messages(place);
    assert!(of(&messages, "report_asset_materialization").is_empty());
    let (method, params) = messages.last().unwrap();
    assert_eq!(method, "closed");
    assert_eq!(params["exception"]["name"], name);
    let message = params["exception"]["message"].as_str().unwrap();
    let failure = json!({ "payload": { "failure": { "exit_code": code, "message": message } } });
    assert_eq!(of(&messages, "report_custom_message").last(), Some(&&failure));
    for text in texts {
        assert!(message.contains(text), "no '{text}' in: {message}");
    }
    let coloured = message.contains('\u{1b}') || message.contains("\\x1b");
    assert!(!coloured, "colours: {message:?}");
}

#[test]
fn a_dump_is_reported_with_its_facts() {
    let cluster = server();
    let mut place = Place::with(&cluster, None);
    invite(&mut place, &json!(["backups/postgres"]));
    let id = place.dump();

    let messages = messages(&place);
    assert_eq!(messages[0].0, "opened");
    assert_eq!(messages.last().unwrap(), &("closed".to_owned(), Value::Null));
    let documents = of(&messages, "report_custom_message");
    assert_eq!(documents.len(), 1);
    let document = &documents[0]["payload"];
    assert_eq!(document["id"], id.as_str());

    let made = of(&messages, "report_asset_materialization");
    assert_eq!(made.len(), 1);
    assert_eq!(made[0]["asset_key"], "backups/postgres");
    assert_eq!(made[0]["data_version"], id.as_str());
    let fact = |name: &str| made[0]["metadata"][name]["raw_value"].clone();
    assert_eq!(fact("dump_id"), id.as_str());
    assert_eq!(
        fact("url"),
        format!("{}/main/dump/{id}/", place.repository_url()).as_str()
    );
    for (name, of_totals) in [
        ("rows", "rows"),
        ("dagster/row_count", "rows"),
        ("tables", "relations"),
        ("plain_bytes", "plain_bytes"),
        ("stored_bytes", "stored_bytes"),
    ] {
        assert_eq!(fact(name), document["totals"][of_totals], "{name}");
        assert!(fact(name).as_u64().unwrap() > 0, "{name}");
    }
    assert_eq!(fact("databases"), document["databases"]);
    assert_eq!(fact("attention"), json!([]));
    assert_eq!(fact("elapsed_seconds"), document["elapsed_seconds"]);
}

#[test]
fn what_a_dump_lacks_is_reported_as_a_warning() {
    let cluster = server();
    // A role of its own can't read the passwords of others.
    cluster.psql(
        "app",
        "CREATE ROLE reader LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader;
         GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO reader",
    );
    let mut place = Place::with(&cluster, None);
    invite(&mut place, &json!(["backup"]));
    let reader = cluster
        .tcp_conninfo("postgres")
        .replace("user=postgres", "user=reader");
    place
        .run(&["dump", "--connection", &reader, "-d", "app"])
        .expect(3);

    let messages = messages(&place);
    assert_eq!(messages.last().unwrap(), &("closed".to_owned(), Value::Null));
    let made = of(&messages, "report_asset_materialization");
    let attention = made[0]["metadata"]["attention"]["raw_value"].as_array().unwrap();
    assert!(!attention.is_empty());
    for line in attention {
        let warning = json!({ "level": "WARNING", "message": line });
        assert!(of(&messages, "log").contains(&&warning), "{line}");
    }
}

#[test]
fn a_failure_is_reported_with_its_mend_and_without_passwords() {
    let options = ClusterOptions::default().hba_line("host all guarded 127.0.0.1/32 scram-sha-256");
    let cluster = server_with(options);
    cluster.psql("postgres", "CREATE ROLE guarded LOGIN SUPERUSER PASSWORD 'right'");
    let mut place = Place::with(&cluster, None);
    invite(&mut place, &json!(["backup"]));
    let wrong = format!(
        "postgres://guarded:{PASSWORD}@127.0.0.1:{}/postgres",
        cluster.port()
    );
    let told = ["password authentication failed", "hint:"];
    let done = place.run(&["dump", "--connection", &wrong]);
    failed(&place, done, 1, "PgkeepFailed", &told);

    let done = place.run(&["dump", "--database", "nix"]);
    failed(
        &place,
        done,
        2,
        "PgkeepUsageError",
        &["there is no database 'nix'"],
    );
    // What clap finds wrong is found before the program knows what it is asked for.
    let done = place.run(&["dump", "--connection", "host=h", &format!("password={PASSWORD}")]);
    failed(&place, done, 2, "PgkeepUsageError", &["[not shown]"]);
}

#[test]
fn a_verification_is_reported_as_a_document() {
    let cluster = server();
    let mut place = Place::with(&cluster, None);
    let id = place.dump();
    invite(&mut place, &json!([]));
    place.run(&["verify", "--stored-only"]).expect(0);
    let damaged = place.object("d1/schema.dump.zst.age");
    std::fs::write(&damaged, "damaged").unwrap();
    let done = place.run(&["verify", "--stored-only"]);
    failed(
        &place,
        done,
        1,
        "PgkeepFailed",
        &[&format!("backup {id} is damaged")],
    );

    let messages = messages(&place);
    let passed: Vec<_> = of(&messages, "report_custom_message")
        .iter()
        .map(|params| (&params["payload"]["id"], &params["payload"]["passed"]))
        .filter(|(id, _)| id.is_string())
        .collect();
    assert_eq!(passed, [(&json!(id), &json!(true)), (&json!(id), &json!(false))]);
}

/// Without an answer to where to report, nothing is begun.
#[test]
fn a_channel_that_cannot_be_opened_ends_it_at_once() {
    let cluster = server();
    let mut place = Place::with(&cluster, None);
    invite(&mut place, &json!(["backup"]));
    std::fs::remove_file(place.path("messages")).unwrap();
    let done = place.run(&["dump"]).expect(2);
    assert!(done.stderr.contains("DAGSTER_PIPES_MESSAGES"), "{}", done.stderr);
    assert!(done.stderr.contains("env -u"), "{}", done.stderr);
    assert!(!place.path("repository").exists());
}

/// As in Kubernetes, where Dagster reads the log of the container.
#[test]
fn messages_go_to_a_stream_where_dagster_catches_it() {
    let mut place = Place::new();
    for stream in ["stdout", "stderr"] {
        place.environment = vec![
            (
                "DAGSTER_PIPES_CONTEXT".to_owned(),
                encode(&json!({ "data": { "asset_keys": null } })),
            ),
            (
                "DAGSTER_PIPES_MESSAGES".to_owned(),
                encode(&json!({ "stdio": stream })),
            ),
        ];
        let done = place.run(&["version"]).expect(0);
        let text = if stream == "stdout" {
            done.stdout
        } else {
            done.stderr
        };
        let lines: String = text
            .lines()
            .filter(|line| line.starts_with('{'))
            .map(|line| format!("{line}\n"))
            .collect();
        let methods: Vec<String> = read(&lines).into_iter().map(|(method, _)| method).collect();
        assert_eq!(methods.first().unwrap(), "opened");
        assert_eq!(methods.last().unwrap(), "closed");
    }
}
