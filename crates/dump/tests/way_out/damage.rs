//! A dump with damage never restores silently.

use pgkeep_testkit::compare::{Inventory, InventoryOptions, assert_same, assert_same_servers};
use pgkeep_testkit::fixtures::{DATABASES, Events, GameData};
use pgkeep_testkit::{Cluster, require};

use crate::carried::{
    BASH, Carried, DASH, Way, assert_fails, assert_restores, drop_databases, messages, restore,
};
use crate::{common, start};

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_with_damage_is_refused_with_the_reason() {
    let (source, destination) = require!(start());
    GameData::new(Events::Partitions).load(&source);
    for encrypted in [false, true] {
        let carried = Carried::new(&source, encrypted).await;
        let path = carried.object("d2/000002.sql");
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let whole = std::fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        let cut = &whole[..whole.len() - 1];
        for (bytes, reason) in [
            (Some(flipped.as_slice()), "cannot de"),
            (Some(cut), "cannot de"),
            (None, "is missing"),
        ] {
            match bytes {
                Some(bytes) => std::fs::write(&path, bytes).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            drop_databases(&destination);
            let half = [
                "cannot load the rows of 'app'",
                "database 'app' is NOT complete",
                &name,
            ];
            require!(assert_fails(&carried, &destination, &DASH, &half));
            require!(assert_fails(&carried, &destination, &DASH, &["there already"]));
            drop_databases(&destination);
            require!(assert_fails(&carried, &destination, &DASH, &[reason]));
            // With b3sum nothing is even begun.
            drop_databases(&destination);
            require!(assert_fails(
                &carried,
                &destination,
                &BASH,
                &["damaged or missing"]
            ));
            assert_eq!(
                destination.psql(
                    "postgres",
                    "SELECT count(*) FROM pg_database WHERE datname IN ('app', 'dagster')"
                ),
                "0"
            );
        }
        std::fs::write(&path, &whole).unwrap();
        require!(assert_restores(&carried, &destination, &BASH));
        assert_same_servers(&source, &destination, &DATABASES, &InventoryOptions::default());
        drop_databases(&destination);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_cannot_be_opened_is_refused_before_anything_is_made() {
    let (source, destination) = require!(start());
    source.create_database("app");
    let carried = Carried::new(&source, true).await;
    let key = std::fs::read(carried.key()).unwrap();
    let (other, _) = pgkeep_repository::keys::generate();
    std::fs::write(carried.key(), format!("{}\n", other.to_secret().expose())).unwrap();
    require!(assert_fails(
        &carried,
        &destination,
        &DASH,
        &["cannot decrypt index.tsv"]
    ));
    std::fs::remove_file(carried.key()).unwrap();
    require!(assert_fails(
        &carried,
        &destination,
        &DASH,
        &["there is no key file"]
    ));
    std::fs::write(carried.key(), key).unwrap();

    let manifest = carried.folder().join("manifest");
    let whole = std::fs::read(&manifest).unwrap();
    std::fs::write(&manifest, "{\n  \"swept_at\": \"2024-01-01T00:00:00Z\"\n}\n").unwrap();
    require!(assert_fails(
        &carried,
        &destination,
        &DASH,
        &["given up before it was finished"]
    ));
    std::fs::remove_file(&manifest).unwrap();
    require!(assert_fails(&carried, &destination, &DASH, &["never finished"]));
    std::fs::write(&manifest, whole).unwrap();

    let index = carried.object("index.tsv");
    std::fs::rename(&index, index.with_extension("away")).unwrap();
    require!(assert_fails(
        &carried,
        &destination,
        &DASH,
        &["index.tsv is missing"]
    ));
    std::fs::rename(index.with_extension("away"), &index).unwrap();
    assert_eq!(
        destination.psql(
            "postgres",
            "SELECT count(*) FROM pg_database WHERE datname = 'app'"
        ),
        "0"
    );
    require!(assert_restores(&carried, &destination, &DASH));
}

/// More than a megabyte of rows, so that an object has several frames.
const SEVERAL_FRAMES: &str = "CREATE TABLE numbers (id serial PRIMARY KEY, text text);
    INSERT INTO numbers (text) SELECT md5(n::text) FROM generate_series(1, 60000) n";

async fn app_alone(source: &Cluster, exported: bool) -> Carried {
    let mut options = common::dump_options(source);
    options.databases = vec!["app".to_owned()];
    if exported {
        Carried::exported(source, false, &options).await
    } else {
        Carried::by(source, false, &options).await
    }
}

fn assert_same_app(source: &Cluster, destination: &Cluster) {
    let inventory = |cluster| Inventory::of_database(cluster, "app", &InventoryOptions::default());
    assert_same(&inventory(source), &inventory(destination));
}

/// Objects, what is in their place (nothing, where they are gone), and what is said of it.
fn damages(carried: &Carried) -> Vec<(&'static str, Option<Vec<u8>>, &'static str)> {
    let compress = |contents: &[u8]| zstd::encode_all(contents, 3).unwrap();
    let read = |name: &str| std::fs::read(carried.object(name)).unwrap();
    let rows = read("d1/000001.sql");
    let frame = zstd::zstd_safe::find_frame_compressed_size(&rows).unwrap();
    assert!(frame < rows.len(), "there is one frame only");
    let mut flipped = rows.clone();
    flipped[rows.len() / 2] ^= 1;
    let index = zstd::decode_all(read("index.tsv").as_slice()).unwrap();
    let index: Vec<&[u8]> = index.split_inclusive(|byte| *byte == b'\n').collect();
    let without_end = index[..index.len() - 1].concat();
    let without_one = [&index[..3], &index[4..]].concat().concat();
    let schema = zstd::decode_all(read("d1/schema.dump").as_slice()).unwrap();
    vec![
        (
            "d1/000001.sql",
            Some(rows[..frame].to_vec()),
            "d1/000001.sql.zst holds 1048576 bytes",
        ),
        (
            "d1/000001.sql",
            Some(flipped),
            "cannot decompress d1/000001.sql.zst",
        ),
        ("d1/sequences.sql", None, "d1/sequences.sql.zst is missing"),
        (
            "d1/schema.dump",
            Some(compress(&schema[..schema.len() / 2])),
            "d1/schema.dump.zst holds",
        ),
        (
            "d1/after.sql",
            Some(compress(b"")),
            "d1/after.sql.zst holds 0 bytes",
        ),
        (
            "globals.sql",
            Some(compress(b"")),
            "globals.sql.zst holds 0 bytes",
        ),
        (
            "index.tsv",
            Some(compress(&without_end)),
            "index.tsv.zst is damaged: lines are missing",
        ),
        (
            "index.tsv",
            Some(compress(&without_one)),
            "index.tsv.zst is damaged: lines are missing",
        ),
        (
            "index.tsv",
            Some(compress(b"")),
            "index.tsv.zst is damaged: lines are missing",
        ),
    ]
}

/// What neither zstd notices, nor psql.
#[tokio::test(flavor = "multi_thread")]
async fn without_b3sum_what_was_cut_off_at_the_end_of_a_frame_is_noticed() {
    let (source, destination) = require!(start());
    source.create_database("app");
    source.psql("app", SEVERAL_FRAMES);
    let carried = app_alone(&source, false).await;
    for (name, contents, reason) in damages(&carried) {
        let path = carried.object(name);
        let whole = std::fs::read(&path).unwrap();
        match contents {
            Some(contents) => std::fs::write(&path, contents).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        require!(assert_fails(&carried, &destination, &DASH, &[reason]));
        std::fs::write(&path, whole).unwrap();
        drop_databases(&destination);
    }
    require!(assert_restores(&carried, &destination, &DASH));
    assert_same_app(&source, &destination);
}

/// Opened files have nothing in them that tells whether they are whole.
#[tokio::test(flavor = "multi_thread")]
async fn an_exported_folder_with_damage_is_refused() {
    let (source, destination) = require!(start());
    source.create_database("app");
    source.psql("app", SEVERAL_FRAMES);
    let carried = app_alone(&source, true).await;
    let nothing = Way {
        hidden: &["b3sum", "sha256sum"],
        ..DASH
    };
    let path = carried.object("d1/000001.sql");
    let whole = std::fs::read(&path).unwrap();
    let mut altered = whole.clone();
    // A letter of a row.
    altered[whole.len() / 2] ^= 1;
    for (contents, with_sizes) in [
        (Some(altered.as_slice()), None),
        (Some(&whole[..whole.len() / 2]), Some("d1/000001.sql holds")),
        (None, Some("d1/000001.sql is missing")),
    ] {
        match contents {
            Some(contents) => std::fs::write(&path, contents).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let named = ["d1/000001.sql: FAILED", "damaged or missing"];
        require!(assert_fails(&carried, &destination, &DASH, &named));
        require!(assert_fails(
            &carried,
            &destination,
            &BASH,
            &["damaged or missing"]
        ));
        if let Some(reason) = with_sizes {
            require!(assert_fails(&carried, &destination, &nothing, &[reason]));
            drop_databases(&destination);
        }
        std::fs::write(&path, &whole).unwrap();
    }
    let list = carried.object("checksums.sha256");
    std::fs::rename(&list, list.with_extension("away")).unwrap();
    require!(assert_fails(
        &carried,
        &destination,
        &DASH,
        &["damaged or missing"]
    ));
    std::fs::rename(list.with_extension("away"), &list).unwrap();

    let output = require!(restore(&carried, &destination, &nothing));
    let said = messages(&output);
    assert!(
        output.status.success() && said.contains("altered are NOT noticed"),
        "{said}"
    );
    assert_same_app(&source, &destination);
    drop_databases(&destination);
    for way in [&DASH, &BASH] {
        require!(assert_restores(&carried, &destination, way));
        drop_databases(&destination);
    }
}
