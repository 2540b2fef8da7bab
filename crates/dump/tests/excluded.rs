//! Dumps made with filters: what was excluded isn't there, what needs it is told, and what only lacks its rows is empty.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests are tests"
)]

mod common;

use std::process::Command;

use pgkeep_base::BackupId;
use pgkeep_dump::manifest::Filters;
use pgkeep_dump::{DumpReport, read_manifest};
use pgkeep_repository::Repository;
use pgkeep_testkit::{Cluster, ClusterOptions, require};

const TABLES: &str = "
    CREATE TABLE big (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, serial serial, a int, b int, UNIQUE (a));
    CREATE STATISTICS big_statistics ON a, b FROM big;
    CREATE INDEX ON big (b);
    COMMENT ON TABLE big IS 'big';
    CREATE TABLE parts (at date) PARTITION BY RANGE (at);
    CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
    CREATE TABLE parent (x int);
    CREATE TABLE child (y int) INHERITS (parent);
    CREATE TABLE orders (id int PRIMARY KEY, a int, CONSTRAINT to_big FOREIGN KEY (a) REFERENCES big (a));
    COMMENT ON CONSTRAINT to_big ON orders IS 'to what is excluded';
    CREATE TABLE lines (id int PRIMARY KEY, order_id int REFERENCES orders);
    CREATE VIEW of_big AS SELECT a FROM big;
    CREATE VIEW of_view AS SELECT a FROM of_big;
    CREATE MATERIALIZED VIEW counts AS SELECT count(*) FROM of_view;
    CREATE INDEX ON counts (count);
    CREATE FUNCTION biggest() RETURNS int BEGIN ATOMIC SELECT max(a) FROM big; END;
    COMMENT ON FUNCTION biggest() IS 'of all'; REVOKE ALL ON FUNCTION biggest() FROM PUBLIC;
    CREATE VIEW of_orders AS SELECT * FROM orders;
    CREATE TABLE kept_empty (id int PRIMARY KEY);
    CREATE TABLE needs_rows (id int CONSTRAINT to_empty REFERENCES kept_empty);
    INSERT INTO big (a, b) SELECT i, i FROM generate_series(1, 100) i;
    INSERT INTO parts VALUES ('2026-02-01'); INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2, 3);
    INSERT INTO orders SELECT i, i FROM generate_series(1, 50) i; INSERT INTO lines SELECT i, i FROM generate_series(1, 40) i;
    INSERT INTO kept_empty VALUES (1); INSERT INTO needs_rows VALUES (1);
    REFRESH MATERIALIZED VIEW counts;";

const RELATIONS: &str = "SELECT string_agg(relname, ',' ORDER BY relname) FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'S')";

const ROWS: &str =
    "SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM lines), (SELECT count(*) FROM ONLY parent),
    (SELECT count(*) FROM child), (SELECT count(*) FROM kept_empty), (SELECT count(*) FROM of_orders)";

/// What must be there, and nothing else.
const LEFT: &str = "child,kept_empty,lines,needs_rows,of_orders,orders,parent";

async fn dumped(source: &Cluster) -> (tempfile::TempDir, Repository, DumpReport) {
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), false).await;
    let mut options = common::dump_options(source);
    options.databases = vec!["app".to_owned()];
    options.filters = Filters {
        exclude_tables: ["big", "parts", "parent"].map(str::to_owned).to_vec(),
        exclude_table_data: vec!["kept_empty".to_owned()],
        ..Filters::default()
    };
    let report = common::dump(&repository, source, &options).await.unwrap();
    (folder, repository, report)
}

async fn excluded_tables(major: u32) {
    let start = || Cluster::start(ClusterOptions::new(major));
    let (source, destination) = (require!(start()), require!(start()));
    source.create_database("app");
    source.psql("app", TABLES);
    let (_folder, repository, report) = dumped(&source).await;
    let options = common::restore_options(&destination);
    let restored = common::restore(&repository, &report.id, &destination, &options)
        .await
        .unwrap();
    assert_eq!(destination.psql("app", RELATIONS).trim(), LEFT);
    assert_eq!(destination.psql("app", ROWS).trim(), "50|40|0|1|0|50");
    let told = restored.attention.join("\n");
    for expected in [
        "without constraint to_big on table public.orders, which needs",
        "without view public.of_big, which needs",
        "without view public.of_view, which needs",
        "without materialized view public.counts, which needs",
        "without function public.biggest(), which needs",
        "public.parent in database 'app' comes empty",
        "table public.child needs it",
        "a foreign key is not made",
        "ADD CONSTRAINT to_empty FOREIGN KEY (id) REFERENCES public.kept_empty(id)",
    ] {
        assert!(told.contains(expected), "no '{expected}' in {told}");
    }
    assert_eq!(restored.attention.len(), 7, "{told}");
    let keys = "SELECT string_agg(conname, ',' ORDER BY conname) FROM pg_constraint WHERE contype = 'f'";
    assert_eq!(destination.psql("app", keys).trim(), "lines_order_id_fkey");
    // The script passes over objects, not over their comments and privileges.
    source.psql(
        "app",
        "COMMENT ON FUNCTION biggest() IS NULL; GRANT EXECUTE ON FUNCTION biggest() TO PUBLIC;
         COMMENT ON CONSTRAINT to_big ON orders IS NULL",
    );
    let (folder, _, report) = dumped(&source).await;
    by_script(&folder, &report.id, &source, &destination);
}

/// Without pgkeep, too; but for the foreign key of rows without theirs, which no script can make.
fn by_script(folder: &tempfile::TempDir, id: &BackupId, source: &Cluster, destination: &Cluster) {
    destination.psql("postgres", "DROP DATABASE app");
    let script = folder.path().join(format!("test/dump/{id}/restore.sh"));
    let path = std::env::var("PATH").unwrap();
    let output = Command::new("sh")
        .arg(script)
        .args(["-n", "-d", "app"])
        .env("PATH", format!("{}:{path}", source.pg_bin().display()))
        .env("PGHOST", destination.socket_dir())
        .env("PGPORT", destination.port().to_string())
        .env("PGUSER", "postgres")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("to_empty") && !stderr.contains("to_big"),
        "{stderr}"
    );
    assert_eq!(destination.psql("app", RELATIONS).trim(), LEFT);
}

#[tokio::test(flavor = "multi_thread")]
async fn excluded_tables_are_not_there_on_15() {
    excluded_tables(15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn excluded_tables_are_not_there_on_18() {
    excluded_tables(18).await;
}

/// A hypertable is in TimescaleDB's catalog as well; chunks, policies and all go with it.
#[tokio::test(flavor = "multi_thread")]
async fn excluded_hypertables_are_not_there() {
    let start = || Cluster::start(ClusterOptions::new(17).timescaledb());
    let (source, destination) = (require!(start()), require!(start()));
    source.create_database("m");
    source.psql(
        "m",
        "CREATE EXTENSION timescaledb;
         CREATE TABLE gone (at timestamptz NOT NULL, n serial); SELECT create_hypertable('gone', 'at');
         CREATE TABLE stays (at timestamptz NOT NULL, n int); SELECT create_hypertable('stays', 'at');
         CREATE TABLE needed (at timestamptz NOT NULL); SELECT create_hypertable('needed', 'at');
         CREATE VIEW of_needed AS SELECT * FROM needed;
         INSERT INTO gone SELECT '2026-01-01'::timestamptz + i * interval '1 day' FROM generate_series(1, 30) i;
         INSERT INTO stays SELECT '2026-01-01'::timestamptz + i * interval '1 day', i FROM generate_series(1, 30) i;
         INSERT INTO needed VALUES ('2026-01-01');",
    );
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), false).await;
    let mut options = common::dump_options(&source);
    options.filters.exclude_tables = vec!["gone".to_owned(), "needed".to_owned()];
    let report = common::dump(&repository, &source, &options).await.unwrap();
    let options = common::restore_options(&destination);
    let restored = common::restore(&repository, &report.id, &destination, &options)
        .await
        .unwrap();
    let hypertables = "SELECT string_agg(hypertable_name, ',' ORDER BY hypertable_name) FROM timescaledb_information.hypertables";
    assert_eq!(destination.psql("m", hypertables).trim(), "needed,stays");
    let chunks = "SELECT DISTINCT hypertable_name FROM timescaledb_information.chunks ORDER BY 1";
    assert_eq!(destination.psql("m", chunks).trim(), "needed\nstays");
    assert_eq!(destination.psql("m", "SELECT count(*) FROM stays").trim(), "30");
    assert_eq!(restored.attention.len(), 1, "{:?}", restored.attention);
    assert!(
        restored.attention[0].contains("public.needed in database 'm' is empty")
            && restored.attention[0].contains("can't be dropped"),
        "{:?}",
        restored.attention
    );
}

/// The schema of older dumps has the excluded tables: they come back empty, and that is said.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_dump_says_which_tables_are_empty() {
    let cluster = require!(Cluster::start(ClusterOptions::default()));
    cluster.create_database("app");
    cluster.psql("app", "CREATE TABLE a AS SELECT 1 AS n; CREATE TABLE b (n int)");
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), false).await;
    let mut options = common::dump_options(&cluster);
    options.databases = vec!["app".to_owned()];
    options.filters.exclude_table_data = vec!["b".to_owned()];
    let report = common::dump(&repository, &cluster, &options).await.unwrap();
    let mut manifest = read_manifest(&repository, &report.id).await.unwrap();
    // As such a one was written: the schema has the table, and nothing else does.
    let database = &mut manifest.databases[0];
    assert_eq!(database.relations.pop().unwrap().name.name, "b");
    database.filters.exclude_tables = vec!["b".to_owned()];
    let mut options = common::restore_options(&cluster);
    options.target_database = Some("copy".to_owned());
    let progress = std::sync::Arc::default();
    let target = common::target(&cluster, "postgres");
    let (id, never) = (&report.id, std::future::pending());
    let restored =
        pgkeep_dump::restore::restore(&repository, id, &manifest, &target, &options, &progress, never)
            .await
            .unwrap();
    assert_eq!(
        restored.attention,
        ["public.b in database 'app' is empty: the dump was made without its rows (--exclude-table)"]
    );
}

/// Of several databases, only what fits in none of them is worth a word.
#[tokio::test(flavor = "multi_thread")]
async fn patterns_that_leave_nothing_out_are_told() {
    let source = require!(Cluster::start(ClusterOptions::default()));
    source.create_database("app");
    source.psql("app", TABLES);
    source.psql("app", "CREATE SCHEMA empty_one");
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), false).await;
    let mut options = common::dump_options(&source);
    let patterns = |patterns: &[&str]| patterns.iter().map(ToString::to_string).collect();
    options.filters = Filters {
        exclude_tables: patterns(&["big", "bgi", "pg_class", "parts"]),
        exclude_schemas: patterns(&["empty_one", "nix*"]),
        exclude_table_data: patterns(&["public.kept_empty", "s.kept_empty"]),
        ..Filters::default()
    };
    let told = |databases: &str| {
        [
            format!("--exclude-table 'bgi' leaves nothing out: it fits no table of {databases}"),
            format!("--exclude-table 'pg_class' leaves nothing out: it fits no table of {databases}"),
            format!("--exclude-schema 'nix*' leaves nothing out: it fits no schema of {databases}"),
            format!(
                "--exclude-table-data 's.kept_empty' leaves nothing out: it fits no table of {databases}"
            ),
        ]
    };
    let report = common::dump(&repository, &source, &options).await.unwrap();
    assert_eq!(report.attention, told("databases 'postgres', 'app'"));

    let options = pgkeep_dump::FileOptions {
        format: pgkeep_dump::FileFormat::Plain,
        output: folder.path().join("app.sql").display().to_string(),
        databases: vec!["app".to_owned()],
        filters: options.filters,
        jobs: 1,
        lock_timeout: options.lock_timeout,
        encryption: pgkeep_repository::encryption::Encryption::None,
        store: pgkeep_store::StoreOptions::default(),
        programs: options.programs,
    };
    let target = common::target(&source, "postgres");
    let never = std::future::pending();
    let report = pgkeep_dump::write_files(&target, &options, &std::sync::Arc::default(), never)
        .await
        .unwrap();
    assert_eq!(report.attention, told("database 'app'"));
    assert!(!report.with_roles);
}
