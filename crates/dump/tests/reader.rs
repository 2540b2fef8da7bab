//! What docs/FORMAT.md says is true and enough: a reader in another language, written from it alone, gets every row out.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests are tests"
)]

mod common;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pgkeep_repository::{Repository, keys};
use pgkeep_testkit::fixtures::{Events, GameData};
use pgkeep_testkit::requirements::{Missing, tool};
use pgkeep_testkit::{Cluster, ClusterOptions, require, run};
use serde_json::Value;

const READER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/reader/pgkeep_reader.py");

/// More than fits into one object, so that it goes on in a second one.
const LARGE_TABLE: &str = "CREATE TABLE game.large AS
    SELECT n, md5(n::text) || md5((-n)::text) AS text FROM generate_series(1, 400000) n";

/// As docs/FORMAT.md has them.
const SETTINGS: &str = "SET client_encoding = 'UTF8'; SET datestyle = ISO; SET intervalstyle = postgres;
    SET extra_float_digits = 3; SET timezone = 'UTC'; SET bytea_output = hex; SET search_path = '';
    SET synchronize_seqscans = off; SET row_security = off;\n";

struct Reader {
    path: OsString,
    repository: PathBuf,
}

impl Reader {
    fn new(repository: &Path) -> Result<Self, Missing> {
        let mut path = OsString::new();
        for name in ["age", "zstd", "b3sum"] {
            let directory = tool(name)?.parent().map(Path::to_path_buf).unwrap_or_default();
            path.push(directory);
            path.push(":");
        }
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let version = Command::new("python3").arg("--version").output();
        if !version.is_ok_and(|output| output.status.success()) {
            return Err(Missing("python3".to_owned()));
        }
        Ok(Self {
            path,
            repository: repository.to_owned(),
        })
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new("python3")
            .args(["-B", READER])
            .arg(&self.repository)
            .args(arguments)
            .env("PATH", &self.path)
            .output()
            .unwrap()
    }

    fn works(&self, arguments: &[&str]) -> Value {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && said.is_empty(),
            "{arguments:?}: {said}"
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn fails(&self, arguments: &[&str], why: &str) {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains(why),
            "{arguments:?} said {said:?}, not {why:?}"
        );
        assert!(!said.contains("Traceback"), "{said}");
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// Every extracted relation holds what COPY gives.
fn compare(source: &Cluster, database: &str, folder: &Path) -> usize {
    let listed = fs::read(folder.join("relations.json")).unwrap();
    let mut relations: Vec<Value> = serde_json::from_slice(&listed).unwrap();
    // Of an extension's tables only some rows are in a dump.
    relations.retain(|relation| relation["kind"] != "configuration");
    let field = |relation: &Value, name: &str| relation[name].as_str().unwrap().to_owned();
    let binary = |relation: &Value| relation["format"] == "binary";
    let expected = |relation: &Value| folder.join(format!("{}.expected", field(relation, "file")));
    let mut script = SETTINGS.to_owned();
    for relation in &relations {
        let quoted = pgkeep_base::quote_qualified(&field(relation, "schema"), &field(relation, "name"));
        let columns = match field(relation, "columns") {
            columns if columns.is_empty() => String::new(),
            columns => format!(" ({columns})"),
        };
        script.push_str(&format!(
            "\\o {}\nCOPY {quoted}{columns} TO STDOUT{};\n",
            text(&expected(relation)),
            if binary(relation) {
                " WITH (FORMAT binary)"
            } else {
                ""
            }
        ));
    }
    source.psql(database, &script);
    for relation in &relations {
        let extracted = fs::read(folder.join(field(relation, "file"))).unwrap();
        assert!(
            extracted == fs::read(expected(relation)).unwrap(),
            "other rows than the server's: {relation}"
        );
    }
    relations.len()
}

fn restored_schema(source: &Cluster, folder: &Path) -> String {
    let mut command = source.client_command("pg_restore");
    run(command.args(["--list", &text(&folder.join("schema.dump"))]))
}

async fn read(encrypted: bool) {
    let source = require!(Cluster::start(ClusterOptions::new(16).timescaledb()));
    let work = tempfile::tempdir().unwrap();
    let place = work.path().join("repository");
    let reader = require!(Reader::new(&place));
    GameData::new(Events::Hypertables).load(&source);
    source.psql("app", LARGE_TABLE);
    let repository = common::repository(&place, encrypted).await;
    let report = common::dump(&repository, &source, &common::dump_options(&source))
        .await
        .unwrap();
    let id = report.id.to_string();
    let key = text(&work.path().join("key"));
    keys::write_key_file(
        Path::new(&key),
        &repository.access().identities[0],
        repository.now(),
    )
    .unwrap();

    let line = reader.works(&["list", "--identity", &key]);
    assert_eq!(
        (&line["id"], &line["state"]),
        (&Value::from(id.clone()), &Value::from("complete"))
    );
    assert_eq!(line["summary"]["totals"]["rows"], report.manifest.totals.rows);

    let into = work.path().join("extracted");
    let extracted = reader.works(&["extract", "latest", "--identity", &key, "--into", &text(&into)]);
    assert_eq!(extracted["rows"], report.manifest.totals.rows);
    assert_eq!(extracted["strangers"], Value::Array(Vec::new()));
    assert!(extracted["hashes_compared"].as_u64() > Some(report.manifest.totals.objects));
    let databases: BTreeMap<String, String> = serde_json::from_value(extracted["databases"].clone()).unwrap();
    let mut compared = 0;
    for (folder, database) in &databases {
        compared += compare(&source, database, &into.join(folder));
    }
    assert!(compared > 40, "{compared} tables were compared");
    let app = databases.iter().find(|(_, name)| *name == "app").unwrap().0;
    assert!(restored_schema(&source, &into.join(app)).contains("TABLE game players"));
    let globals = fs::read_to_string(into.join("globals.sql")).unwrap();
    assert!(globals.contains("CREATE ROLE app_owner"));
    several_objects(&report.manifest);
    notices_what_is_wrong(&reader, &repository, &place, &id, &key, encrypted);
}

/// The reader was tried on a table that goes on from object to object.
fn several_objects(manifest: &pgkeep_dump::manifest::DumpManifest) {
    let app = manifest
        .databases
        .iter()
        .find(|database| database.name == "app")
        .unwrap();
    let large = app
        .relations
        .iter()
        .position(|relation| relation.name.name == "large")
        .unwrap();
    let holds = |data: &&pgkeep_dump::manifest::DataObject| {
        data.segments
            .iter()
            .any(|segment| segment.relation as usize == large)
    };
    assert!(app.data.iter().filter(holds).count() > 1);
}

fn notices_what_is_wrong(
    reader: &Reader,
    repository: &Repository,
    place: &Path,
    id: &str,
    key: &str,
    encrypted: bool,
) {
    let into = text(&place.with_file_name("not-extracted"));
    let extract = ["extract", &id[..12], "--identity", key, "--into", &into];
    reader.fails(
        &["extract", "d1999", "--identity", key, "--into", &into],
        "names 0 complete dumps",
    );
    if encrypted {
        reader.fails(&["extract", id, "--into", &into], "give the key file");
    }
    let folder = place.join(format!("{}/dump/{id}", repository.cluster()));
    let first = |name: &str| name.starts_with("000001.");
    let object = fs::read_dir(folder.join("d2"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| first(path.file_name().unwrap().to_str().unwrap()))
        .unwrap();
    let whole = fs::read(&object).unwrap();
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    fs::write(&object, &flipped).unwrap();
    reader.fails(&extract, "000001.");
    fs::remove_dir_all(&into).unwrap();
    fs::write(&object, &whole[..whole.len() - 1]).unwrap();
    reader.fails(&extract, "bytes, not");
    fs::remove_dir_all(&into).unwrap();
    fs::remove_file(&object).unwrap();
    reader.fails(&extract, "is missing");
    fs::remove_dir_all(&into).unwrap();
    let marker = place.join("pgkeep.json");
    let newer = fs::read_to_string(&marker)
        .unwrap()
        .replace("\"format\": 1", "\"format\": 2");
    fs::write(&marker, newer).unwrap();
    reader.fails(&["list"], "format is 2");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_is_read_from_an_encrypted_repository() {
    read(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_is_read_from_an_open_repository() {
    read(false).await;
}
