//! Large tables travel in COPY's binary format where their types allow it, into databases whose own objects have other
//! oids, and into later versions.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests are tests"
)]

mod common;

use pgkeep_dump::manifest::{DatabaseManifest, RowFormat};
use pgkeep_testkit::compare::{Inventory, InventoryOptions, assert_same};
use pgkeep_testkit::{Cluster, ClusterOptions, require};

const DATABASE: &str = "Rows ü";

/// Every kind of type that is portable, with its edges; a table that splits into several objects; and types that name
/// oids, whose tables must go as text.
const TABLES: &str = r#"
CREATE TYPE mood AS ENUM ('sad', 'so ''lala''', 'glad');
CREATE TYPE pair AS (a mood, b int);
CREATE DOMAIN score AS int CHECK (VALUE >= 0);
CREATE DOMAIN high AS score CHECK (VALUE > 10);
CREATE TABLE "All Types" (id int PRIMARY KEY, flag bool, "one""char" "char", name name, small int2, large int8, o oid, f4 float4,
    f8 float8, n numeric, t text COLLATE "C", v varchar(40), b char(9), bytes bytea, d date, ti time, tz timetz, ts timestamp,
    tstz timestamptz, i interval, u uuid, net inet, c cidr, mac macaddr, mac8 macaddr8, j json, jb jsonb, bits bit(3),
    vbits varbit, m mood, s high, p point, bx box, ints int[], texts text[], matrix numeric[][], double_ bigint
    GENERATED ALWAYS AS (id * 2) STORED, dropped int);
ALTER TABLE "All Types" DROP COLUMN dropped;
INSERT INTO "All Types" (id, flag, "one""char", name, small, large, o, f4, f8, n, t, v, b, bytes, d, ti, tz, ts, tstz, i, u, net,
    c, mac, mac8, j, jb, bits, vbits, m, s, p, bx, ints, texts, matrix)
SELECT n, n % 2 = 0, chr(65 + n % 26)::"char", 'name ' || n, n % 30000, n * 10000000000, n,
    CASE n % 5 WHEN 0 THEN 'NaN' WHEN 1 THEN '-Infinity' ELSE n / 7.0 END, CASE n % 7 WHEN 0 THEN 'Infinity' ELSE -n / 3.0 END,
    CASE n % 9 WHEN 0 THEN 'NaN' ELSE n * 12345.678901234567890123456789 END, E'tab\tline\nüñ\\N \\. ' || n, 'v' || n, 'b', decode(md5(n::text), 'hex'),
    CASE n % 11 WHEN 0 THEN 'infinity' ELSE date '0044-03-15 BC' + n END, time '24:00', timetz '23:59:60+15:59',
    timestamp '4713-01-01 BC' + n * interval '1 day', CASE n % 13 WHEN 0 THEN '-infinity' ELSE timestamptz '2026-03-29 00:59:59.999999 UTC' + n * interval '1 s' END,
    interval '1 year -2 mons 3 days -04:05:06.7' * n, md5(n::text)::uuid, ('::' || to_hex(n % 65000))::inet, '10.0.0.0/8',
    '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05', '{"a": [1, null]}', jsonb_build_object('n', n, 'x', '"'), B'101', B'1', 
    (ARRAY['sad', 'so ''lala''', 'glad'])[1 + n % 3]::mood, 11 + n, point(n, -n), box(point(0, 0), point(n, n)),
    CASE n % 3 WHEN 0 THEN '{}' WHEN 1 THEN NULL ELSE ARRAY[n, NULL, -n] END, ARRAY['a,b', '"', NULL, ''], '[2:3][0:1]={{1,2},{3,NaN}}'
FROM generate_series(1, {rows}) n;
INSERT INTO "All Types" (id) VALUES (0);
CREATE TABLE plain_oids (id int, r regclass, filler text);
INSERT INTO plain_oids SELECT n, '"All Types"'::regclass, repeat(md5(n::text), 10) FROM generate_series(1, {rows}) n;
CREATE TABLE enum_arrays (id int, m mood[], p pair, filler text);
INSERT INTO enum_arrays SELECT n, ARRAY['sad', 'glad']::mood[], ROW('glad'::mood, n::int)::pair, repeat(md5(n::text), 10) FROM generate_series(1, {rows}) n;
CREATE TABLE small (id int);
INSERT INTO small VALUES (1);
CREATE TABLE no_columns ();
INSERT INTO no_columns DEFAULT VALUES;
CREATE TABLE by_mood (m mood, filler text) PARTITION BY HASH (m);
CREATE TABLE by_mood_0 PARTITION OF by_mood FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE by_mood_1 PARTITION OF by_mood FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO by_mood SELECT (ARRAY['sad', 'so ''lala''', 'glad'])[1 + n % 3]::mood, repeat(md5(n::text), 50) FROM generate_series(1, {rows}) n;
"#;
/// Makes every table but the small ones larger than 8 MiB.
const ROWS: u32 = 25_000;

fn load(cluster: &Cluster) {
    cluster.psql("postgres", &format!("CREATE DATABASE \"{DATABASE}\""));
    cluster.psql(DATABASE, &TABLES.replace("{rows}", &ROWS.to_string()));
}

fn formats(database: &DatabaseManifest, names: &[&str]) -> Vec<RowFormat> {
    let format = |name: &&str| {
        let mut relations = database.relations.iter();
        relations
            .find(|relation| relation.name.name == **name)
            .unwrap()
            .format
    };
    names.iter().map(format).collect()
}

async fn there_and_back(from: ClusterOptions, to: ClusterOptions) {
    let source = require!(Cluster::start(from));
    let destination = require!(Cluster::start(to));
    load(&source);
    // Oids there are others than here.
    destination.psql("template1", "DO $$ BEGIN FOR n IN 1..500 LOOP EXECUTE 'CREATE TYPE t' || n || ' AS (a int)'; EXECUTE 'DROP TYPE t' || n; END LOOP; END $$");
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), true).await;
    let options = common::dump_options(&source);
    let report = common::dump(&repository, &source, &options).await.unwrap();
    let database = report
        .manifest
        .databases
        .iter()
        .find(|database| database.name == DATABASE)
        .unwrap();
    let binary = ["All Types", "by_mood_0", "by_mood_1"];
    assert_eq!(formats(database, &binary), [RowFormat::Binary; 3]);
    let text = ["plain_oids", "enum_arrays", "small", "no_columns"];
    assert_eq!(formats(database, &text), [RowFormat::Text; 4]);
    assert_eq!(
        common::whole_dumps(&repository).await,
        std::slice::from_ref(&report.id)
    );

    let options = common::restore_options(&destination);
    common::restore(&repository, &report.id, &destination, &options)
        .await
        .unwrap();
    let compared = InventoryOptions {
        pg_bin: Some(destination.pg_bin().to_path_buf()),
        without_schema: source.major() != destination.major(),
        ..InventoryOptions::default()
    };
    let inventory = |cluster| Inventory::of_database(cluster, DATABASE, &compared);
    assert_same(&inventory(&source), &inventory(&destination));
}

#[tokio::test(flavor = "multi_thread")]
async fn binary_rows_come_back_in_a_database_of_other_oids() {
    there_and_back(ClusterOptions::new(16), ClusterOptions::new(16)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn binary_rows_come_back_in_later_versions() {
    there_and_back(ClusterOptions::new(15), ClusterOptions::new(18)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_request_everything_is_text() {
    let source = Cluster::start(ClusterOptions::new(16)).unwrap();
    load(&source);
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), false).await;
    let mut options = common::dump_options(&source);
    options.text_only = true;
    let report = common::dump(&repository, &source, &options).await.unwrap();
    let relations = report
        .manifest
        .databases
        .iter()
        .flat_map(|database| &database.relations);
    assert!(relations.clone().count() > 5);
    assert!(
        relations
            .into_iter()
            .all(|relation| relation.format == RowFormat::Text)
    );
}
