//! Parts of a dump: filters while dumping, single tables, hypertables and time ranges while restoring.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests are tests"
)]

mod common;

use pgkeep_base::BackupId;
use pgkeep_dump::restore::RestoreOptions;
use pgkeep_dump::{DumpError, read_manifest};
use pgkeep_repository::Repository;
use pgkeep_testkit::{Cluster, ClusterOptions, require};

const TABLES: &str = "
    CREATE SCHEMA shop;
    CREATE TABLE shop.customers (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL);
    CREATE TABLE shop.orders (id bigserial PRIMARY KEY, customer int REFERENCES shop.customers, total numeric DEFAULT 1);
    CREATE INDEX orders_customer ON shop.orders (customer);
    COMMENT ON COLUMN shop.orders.total IS 'in cents';
    CREATE TABLE shop.\"Odd \"\"name\"\"\" (x int PRIMARY KEY);
    CREATE TABLE shop.visits (at date NOT NULL, page text) PARTITION BY RANGE (at);
    CREATE TABLE shop.visits_1 PARTITION OF shop.visits FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
    CREATE TABLE shop.visits_2 PARTITION OF shop.visits FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
    CREATE INDEX visits_page ON shop.visits (page);
    INSERT INTO shop.customers (name) SELECT 'c' || i FROM generate_series(1, 100) i;
    INSERT INTO shop.orders (customer, total) SELECT 1 + i % 100, i FROM generate_series(1, 5000) i;
    INSERT INTO shop.\"Odd \"\"name\"\"\" SELECT generate_series(1, 7);
    INSERT INTO shop.visits SELECT '2026-01-01'::date + i % 59, 'p' || i FROM generate_series(1, 1000) i;";

#[tokio::test(flavor = "multi_thread")]
async fn single_tables_come_back_with_what_belongs_to_them() {
    let cluster = require!(Cluster::start(ClusterOptions::new(16)));
    cluster.create_database("shop");
    cluster.psql("shop", TABLES);
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), true).await;
    let report = common::dump(&repository, &cluster, &common::dump_options(&cluster))
        .await
        .unwrap();
    let hash = "SELECT count(*), sum(hashtextextended(o::text, 0)) FROM shop.orders o";
    let before = cluster.psql("shop", hash);

    // What is there is never touched without a word.
    let mut options = common::restore_options(&cluster);
    options.tables = vec!["shop.orders".to_owned(), "shop.visits".to_owned()];
    let refused = common::restore(&repository, &report.id, &cluster, &options)
        .await
        .unwrap_err();
    assert!(matches!(refused, DumpError::Refused { .. }), "{refused}");

    cluster.psql("shop", "DROP TABLE shop.orders, shop.visits");
    let restored = common::restore(&repository, &report.id, &cluster, &options)
        .await
        .unwrap();
    assert_eq!(restored.databases[0].rows, 6000);
    assert_eq!(cluster.psql("shop", hash), before);
    let indexes = "SELECT string_agg(indexname, ',' ORDER BY indexname) FROM pg_indexes WHERE schemaname = 'shop' \
        AND tablename IN ('orders', 'visits_1')";
    assert_eq!(
        cluster.psql("shop", indexes).trim(),
        "orders_customer,orders_pkey,visits_1_page_idx"
    );
    let next = "INSERT INTO shop.orders (customer) VALUES (1) RETURNING id, total";
    assert!(
        cluster.psql("shop", next).contains("5001"),
        "the sequence goes on"
    );
    assert_eq!(
        cluster
            .psql("shop", "SELECT count(*) FROM shop.visits WHERE page = 'p7'")
            .trim(),
        "1"
    );
    let comment = "SELECT col_description('shop.orders'::regclass, 3)";
    assert_eq!(cluster.psql("shop", comment).trim(), "in cents");
    assert_eq!(
        cluster
            .psql(
                "shop",
                "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'pgkeep%'"
            )
            .trim(),
        "0"
    );

    // Into another database that isn't there yet; the foreign key's other table is missing and so is the key.
    options.target_database = Some("elsewhere".to_owned());
    options.tables = vec!["shop.\"Odd \"\"name\"\"\"".to_owned(), "shop.orders".to_owned()];
    common::restore(&repository, &report.id, &cluster, &options)
        .await
        .unwrap();
    assert_eq!(
        cluster
            .psql("elsewhere", "SELECT count(*) FROM shop.\"Odd \"\"name\"\"\"")
            .trim(),
        "7"
    );
    assert_eq!(cluster.psql("elsewhere", hash), before);

    options.tables = vec!["shop.nothing".to_owned()];
    let usage = common::restore(&repository, &report.id, &cluster, &options)
        .await
        .unwrap_err();
    assert!(matches!(usage, DumpError::Usage { .. }), "{usage}");
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_leave_rows_out_and_the_manifest_says_so() {
    let cluster = require!(Cluster::start(ClusterOptions::new(16)));
    cluster.create_database("shop");
    cluster.psql("shop", TABLES);
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), false).await;
    let mut options = common::dump_options(&cluster);
    options.databases = vec!["shop".to_owned()];
    options.filters.tables = vec!["shop.visits".to_owned(), "shop.customers".to_owned()];
    options.filters.exclude_table_data = vec!["shop.visits_2".to_owned()];
    let report = common::dump(&repository, &cluster, &options).await.unwrap();
    let manifest = read_manifest(&repository, &report.id).await.unwrap();
    let relations: Vec<(String, u64, bool)> = manifest.databases[0]
        .relations
        .iter()
        .filter(|relation| relation.name.schema == "shop")
        .map(|relation| (relation.name.name.clone(), relation.rows, relation.data_excluded))
        .collect();
    let january = 31 * 17 - 1;
    assert_eq!(relations[0], ("customers".to_owned(), 100, false));
    assert_eq!((relations[1].0.as_str(), relations[1].2), ("visits_1", false));
    assert!(relations[1].1 > january - 60 && relations[1].1 < 1000);
    assert_eq!(relations[2], ("visits_2".to_owned(), 0, true));
    assert_eq!(relations.len(), 3);

    options.filters.tables = vec!["shop.visist".to_owned()];
    let nothing = common::dump(&repository, &cluster, &options).await.unwrap_err();
    assert!(matches!(nothing, DumpError::Usage { .. }), "{nothing}");

    // A filtered dump restores what it holds, and no empty shells of the rest.
    cluster.psql("shop", "DROP SCHEMA shop CASCADE");
    let restore = common::restore_options(&cluster);
    common::restore(&repository, &report.id, &cluster, &restore)
        .await
        .unwrap();
    let tables = "SELECT string_agg(relname, ',' ORDER BY relname) FROM pg_class WHERE relkind IN ('r','p') \
        AND relnamespace = 'shop'::regnamespace";
    assert_eq!(
        cluster.psql("shop", tables).trim(),
        "customers,visits,visits_1,visits_2"
    );
}

async fn hypertable(source: &Cluster, compressed: bool) {
    source.create_database("m");
    source.psql(
        "m",
        "CREATE EXTENSION timescaledb; CREATE SCHEMA s;
         CREATE TABLE s.metrics (at timestamptz NOT NULL, device int, value float8, note text DEFAULT 'x');
         SELECT create_hypertable('s.metrics', 'at', chunk_time_interval => interval '1 day');
         CREATE INDEX metrics_device ON s.metrics (device, at);
         INSERT INTO s.metrics SELECT '2026-01-01'::timestamptz + i * interval '10 minutes', i % 7, i FROM generate_series(0, 1439) i;",
    );
    if compressed {
        source.psql(
            "m",
            "ALTER TABLE s.metrics SET (timescaledb.compress, timescaledb.compress_segmentby = 'device');
             SELECT compress_chunk(c) FROM show_chunks('s.metrics', older_than => '2026-01-08'::timestamptz) c;
             INSERT INTO s.metrics VALUES ('2026-01-02 00:05+00', 99, 1)",
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), true).await;
    let report = common::dump(&repository, source, &common::dump_options(source))
        .await
        .unwrap();
    let hash = "SELECT count(*), sum(hashtextextended(m::text, 0)) FROM s.metrics m";
    let before = source.psql("m", hash);

    // A range that was deleted by mistake.
    let range = "at >= '2026-01-02 12:00+00' AND at < '2026-01-04 06:00+00'";
    source.psql("m", &format!("DELETE FROM s.metrics WHERE {range}"));
    assert_ne!(source.psql("m", hash), before);
    let mut options = common::restore_options(source);
    options.hypertable = Some(common::range(
        "s.metrics",
        "2026-01-02 12:00+00",
        "2026-01-04 06:00+00",
    ));
    let restored = common::restore(&repository, &report.id, source, &options)
        .await
        .unwrap();
    assert_eq!(source.psql("m", hash), before);
    let parts = restored.databases[0].rows;
    assert_eq!(
        source
            .psql("m", &format!("SELECT count(*) FROM s.metrics WHERE {range}"))
            .trim(),
        parts.to_string()
    );
    let refused = common::restore(&repository, &report.id, source, &options)
        .await
        .unwrap_err();
    assert!(matches!(refused, DumpError::Refused { .. }), "{refused}");

    options.hypertable = None;
    whole_beside(source, &repository, &report.id, options, hash, &before).await;
}

/// The whole hypertable, beside the old one, made anew.
async fn whole_beside(
    source: &Cluster,
    repository: &Repository,
    id: &BackupId,
    mut options: RestoreOptions,
    hash: &str,
    before: &str,
) {
    source.create_database("copy");
    source.psql("copy", "CREATE EXTENSION timescaledb");
    options.tables = vec!["s.metrics".to_owned()];
    options.target_database = Some("copy".to_owned());
    common::restore(repository, id, source, &options).await.unwrap();
    assert_eq!(source.psql("copy", hash), before);
    let chunks = "SELECT count(*) > 9 FROM timescaledb_information.chunks WHERE hypertable_name = 'metrics'";
    assert_eq!(source.psql("copy", chunks).trim(), "t");
    assert!(
        source
            .psql(
                "copy",
                "SELECT indexdef FROM pg_indexes WHERE indexname = 'metrics_device'"
            )
            .contains("device")
    );
    assert_eq!(
        source
            .psql(
                "postgres",
                "SELECT count(*) FROM pg_database WHERE datname LIKE 'pgkeep%'"
            )
            .trim(),
        "0"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_of_a_hypertable_comes_back() {
    let cluster = require!(Cluster::start(ClusterOptions::new(17).timescaledb()));
    hypertable(&cluster, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_of_a_compressed_hypertable_comes_back() {
    let cluster = require!(Cluster::start_community(None));
    hypertable(&cluster, true).await;
}
