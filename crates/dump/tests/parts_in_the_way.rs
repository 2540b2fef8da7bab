//! Parts of a dump into databases that go on living: what is refused, what is said beforehand, and what an interrupted or
//! killed restore leaves.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests are tests"
)]

mod common;

use pgkeep_base::{BackupId, Classified};
use pgkeep_dump::restore::{RestoreOptions, TableAction};
use pgkeep_dump::{DumpError, read_manifest};
use pgkeep_repository::Repository;
use pgkeep_testkit::{Cluster, ClusterOptions, require};

const TABLES: &str = "
    CREATE ROLE clerk; CREATE SCHEMA shop; GRANT USAGE ON SCHEMA shop TO clerk;
    CREATE TABLE shop.customers (id int PRIMARY KEY, name text);
    CREATE TABLE shop.orders (id bigserial PRIMARY KEY, customer int CONSTRAINT to_customers REFERENCES shop.customers);
    GRANT USAGE, SELECT ON SEQUENCE shop.orders_id_seq TO clerk; COMMENT ON SEQUENCE shop.orders_id_seq IS 'numbers';
    INSERT INTO shop.customers SELECT i, 'c' || i FROM generate_series(1, 100) i;
    INSERT INTO shop.orders (customer) SELECT 1 + i % 100 FROM generate_series(1, 500) i;";

async fn dumped(cluster: &Cluster, database: &str, sql: &str) -> (tempfile::TempDir, Repository, BackupId) {
    cluster.create_database(database);
    cluster.psql(database, sql);
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), false).await;
    let mut options = common::dump_options(cluster);
    options.databases = vec![database.to_owned()];
    let report = common::dump(&repository, cluster, &options).await.unwrap();
    (folder, repository, report.id)
}

fn orders(cluster: &Cluster) -> RestoreOptions {
    RestoreOptions {
        tables: vec!["shop.orders".to_owned()],
        ..common::restore_options(cluster)
    }
}

/// A dry run and the restore refuse the same.
async fn refused(
    repository: &Repository,
    id: &BackupId,
    cluster: &Cluster,
    options: &RestoreOptions,
) -> String {
    let dry = common::check(repository, id, cluster, options).await.unwrap_err();
    let error = common::restore(repository, id, cluster, options)
        .await
        .unwrap_err();
    assert!(matches!(error, DumpError::Refused { .. }), "{error}");
    assert_eq!(dry.to_string(), error.to_string());
    assert_eq!(dry.retry_class(), error.retry_class());
    format!("{error}: {}", error.hint().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_sequences_of_single_tables_come_back_or_are_told() {
    let cluster = require!(Cluster::start(ClusterOptions::default()));
    let (_folder, repository, id) = dumped(&cluster, "shop", TABLES).await;
    let options = orders(&cluster);
    let sequence =
        "SELECT relacl, obj_description(oid, 'pg_class') FROM pg_class WHERE relname = 'orders_id_seq'";
    let before = cluster.psql("shop", sequence);
    assert!(before.contains("clerk=rU"), "{before}");
    cluster.psql("shop", "DROP TABLE shop.orders");
    let restored = common::restore(&repository, &id, &cluster, &options)
        .await
        .unwrap();
    assert!(restored.attention.is_empty(), "{:?}", restored.attention);
    assert_eq!(cluster.psql("shop", sequence), before);
    let key = "SELECT convalidated FROM pg_constraint WHERE conname = 'to_customers'";
    assert_eq!(cluster.psql("shop", key).trim(), "t");

    // The other table's rows are gone: the key is told, with a statement that makes it.
    cluster.psql(
        "shop",
        "DROP TABLE shop.orders; DELETE FROM shop.customers WHERE id = 7",
    );
    let restored = common::restore(&repository, &id, &cluster, &options)
        .await
        .unwrap();
    let [told] = restored.attention.as_slice() else {
        panic!("{:?}", restored.attention);
    };
    let (_, statement) = told.split_once("mended: ").unwrap();
    assert!(
        told.contains("violates foreign key constraint") && statement.contains("ADD CONSTRAINT to_customers"),
        "{told}"
    );
    cluster.psql("shop", "INSERT INTO shop.customers VALUES (7, 'again')");
    cluster.psql("shop", statement);
    assert_eq!(cluster.psql("shop", key).trim(), "t");

    // Whether they agree, a dry run can't know; that there is no such table, it can.
    let dry = RestoreOptions {
        overwrite: true,
        ..options.clone()
    };
    let plan = common::check(&repository, &id, &cluster, &dry).await.unwrap();
    assert!(plan.attention.is_empty(), "{:?}", plan.attention);
    assert!(
        plan.notes.len() == 1 && plan.notes[0].contains("if shop.customers has all rows"),
        "{:?}",
        plan.notes
    );
    let elsewhere = RestoreOptions {
        target_database: Some("elsewhere".to_owned()),
        ..options
    };
    let plan = common::check(&repository, &id, &cluster, &elsewhere)
        .await
        .unwrap();
    assert!(
        plan.attention.len() == 1
            && plan.attention[0].contains("database 'elsewhere' has no table shop.customers")
            && plan.attention[0].contains("ADD CONSTRAINT to_customers FOREIGN KEY"),
        "{:?}",
        plan.attention
    );
    let restored = common::restore(&repository, &id, &cluster, &elsewhere)
        .await
        .unwrap();
    assert_eq!(restored.attention.len(), 1, "{:?}", restored.attention);
    assert!(restored.attention[0].contains("\"shop.customers\" does not exist"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_the_restore_does_and_refuses() {
    let cluster = require!(Cluster::start(ClusterOptions::default()));
    let sql = format!(
        "{TABLES} CREATE TABLE shop.visits (at date) PARTITION BY RANGE (at);
         CREATE TABLE shop.visits_1 PARTITION OF shop.visits FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');"
    );
    let (_folder, repository, id) = dumped(&cluster, "shop", &sql).await;
    let mut options = orders(&cluster);
    let text = refused(&repository, &id, &cluster, &options).await;
    assert!(text.contains("has \"shop\".\"orders\" already"), "{text}");

    options.overwrite = true;
    let plan = common::check(&repository, &id, &cluster, &options).await.unwrap();
    let [table] = plan.databases[0].tables.as_slice() else {
        panic!("{plan:?}");
    };
    assert_eq!((table.rows, table.action), (500, TableAction::Replace));

    // What would go with it.
    cluster.psql("shop", "CREATE VIEW shop.late AS SELECT * FROM shop.orders");
    let text = refused(&repository, &id, &cluster, &options).await;
    assert!(text.contains("view shop.late would be lost"), "{text}");
    cluster.psql(
        "shop",
        "DROP VIEW shop.late; CREATE TABLE shop.visits_2 PARTITION OF shop.visits FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
         INSERT INTO shop.visits VALUES ('2026-02-02')",
    );
    options.tables = vec!["shop.visits".to_owned()];
    let text = refused(&repository, &id, &cluster, &options).await;
    assert!(text.contains("table shop.visits_2 would be lost"), "{text}");
    options.tables = vec!["shop.customers".to_owned()];
    let text = refused(&repository, &id, &cluster, &options).await;
    assert!(
        text.contains("constraint to_customers on table shop.orders would be lost"),
        "{text}"
    );
    assert_eq!(
        cluster.psql("shop", "SELECT count(*) FROM shop.orders").trim(),
        "500"
    );

    options.target_database = Some("elsewhere".to_owned());
    let plan = common::check(&repository, &id, &cluster, &options).await.unwrap();
    assert_eq!(plan.databases[0].tables[0].action, TableAction::Make);
    assert!(plan.databases[0].does.starts_with("is made"), "{plan:?}");
    let made = "SELECT count(*) FROM pg_database WHERE datname = 'elsewhere'";
    assert_eq!(cluster.psql("postgres", made).trim(), "0", "nothing was done");

    // A database that is half dropped takes nothing.
    cluster.create_database("elsewhere");
    cluster.psql(
        "postgres",
        "UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'elsewhere'",
    );
    let text = refused(&repository, &id, &cluster, &options).await;
    assert!(text.contains("DROP DATABASE \"elsewhere\""), "{text}");
    // A whole restore that is half done keeps its mark.
    cluster.create_database("half");
    cluster.psql("half", &mark(&id, true));
    options.target_database = Some("half".to_owned());
    let text = refused(&repository, &id, &cluster, &options).await;
    assert!(text.contains("--resume"), "{text}");
}

/// What a killed restore leaves.
fn mark(id: &BackupId, whole: bool) -> String {
    format!(
        "CREATE SCHEMA pgkeep_restore;
         CREATE TABLE pgkeep_restore.restore (dump text NOT NULL, database text NOT NULL, whole boolean NOT NULL, begun_at timestamptz NOT NULL DEFAULT now());
         CREATE TABLE pgkeep_restore.step (name text PRIMARY KEY, done_at timestamptz NOT NULL DEFAULT now());
         CREATE TABLE pgkeep_restore.relation (place bigint NOT NULL, rows bigint NOT NULL);
         INSERT INTO pgkeep_restore.restore (dump, database, whole) VALUES ('{id}', 'shop', {whole})"
    )
}

/// Makes every CREATE INDEX of a database wait for a lock that the session holds.
fn hold_indexes(cluster: &Cluster, database: &str) -> pgkeep_testkit::Session {
    cluster.psql(
        database,
        "CREATE FUNCTION public.hold() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_advisory_xact_lock(7); END$$;
         CREATE EVENT TRIGGER hold ON ddl_command_end WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION public.hold()",
    );
    let mut holder = cluster.session(database);
    holder.run("SELECT pg_advisory_lock(7);");
    holder
}

const HELD: &str =
    "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND NOT granted)";
const LEFT: &str = "SELECT (SELECT count(*) FROM pg_namespace WHERE nspname IN ('pgkeep_restore')), to_regclass('shop.orders')";

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_restore_of_tables_leaves_nothing() {
    let cluster = require!(Cluster::start(ClusterOptions::default()));
    let (_folder, repository, id) = dumped(&cluster, "shop", TABLES).await;
    cluster.psql("shop", "DROP TABLE shop.orders");
    let holder = hold_indexes(&cluster, "shop");
    let held = common::until_query(&cluster, "shop", HELD);
    let error = common::restore_until(&repository, &id, &cluster, &orders(&cluster), held)
        .await
        .unwrap_err();
    assert!(matches!(error, DumpError::Interrupted), "{error}");
    assert_eq!(cluster.psql("shop", LEFT).trim(), "0|");
    drop(holder);

    // A database that was made for them goes, too.
    let elsewhere = RestoreOptions {
        target_database: Some("elsewhere".to_owned()),
        ..orders(&cluster)
    };
    let made = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = 'elsewhere')";
    let begun = common::until_query(&cluster, "postgres", made);
    let ended = common::restore_until(&repository, &id, &cluster, &elsewhere, begun).await;
    if ended.is_err() {
        assert_eq!(cluster.psql("postgres", made).trim(), "f");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_killed_restore_of_tables_another_one_replaces_them() {
    let cluster = require!(Cluster::start(ClusterOptions::default()));
    let (_folder, repository, id) = dumped(&cluster, "shop", TABLES).await;
    cluster.psql("shop", "DROP TABLE shop.orders");
    let holder = hold_indexes(&cluster, "shop");
    let mut options = orders(&cluster);
    // Dropped without a word, as a process is that gets killed.
    tokio::select! {
        restored = common::restore(&repository, &id, &cluster, &options) => panic!("{restored:?}"),
        () = common::until_query(&cluster, "shop", HELD) => {}
    }
    drop(holder);
    cluster.psql("shop", "DROP EVENT TRIGGER hold");
    assert!(cluster.psql("shop", LEFT).contains("shop.orders"));
    let text = refused(&repository, &id, &cluster, &options).await;
    assert!(
        text.contains(&format!("unfinished restore of dump {id}")) && text.contains("(\"shop\".\"orders\")"),
        "{text}"
    );
    options.overwrite = true;
    let restored = common::restore(&repository, &id, &cluster, &options)
        .await
        .unwrap();
    assert!(restored.attention.is_empty(), "{:?}", restored.attention);
    assert_eq!(cluster.psql("shop", LEFT).trim(), "0|shop.orders");
    assert_eq!(
        cluster.psql("shop", "SELECT count(*) FROM shop.orders").trim(),
        "500"
    );
}

const METRICS: &str = "CREATE EXTENSION timescaledb; CREATE SCHEMA s;
    CREATE TABLE s.metrics (at timestamptz NOT NULL, device int, note text);
    SELECT create_hypertable('s.metrics', 'at', chunk_time_interval => interval '1 day');
    INSERT INTO s.metrics SELECT '2026-01-01'::timestamptz + i * interval '1 hour', i, 'n' FROM generate_series(0, 239) i;";

const SCRATCH: &str = "SELECT count(*) FROM pg_database WHERE datname LIKE 'pgkeep%'";

fn range(cluster: &Cluster) -> RestoreOptions {
    RestoreOptions {
        hypertable: Some(common::range("s.metrics", "2026-01-03", "2026-01-05")),
        ..common::restore_options(cluster)
    }
}

/// Nobody's rows are deleted for a range of which the dump has nothing, whether by its chunks or only by its rows.
#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_holds_nothing_is_told_and_deletes_nothing() {
    let cluster = require!(Cluster::start(ClusterOptions::new(17).timescaledb()));
    let (_folder, repository, id) = dumped(&cluster, "m", METRICS).await;
    cluster.psql(
        "m",
        "CREATE TABLE s.days (at timestamptz PRIMARY KEY); INSERT INTO s.days SELECT DISTINCT at FROM s.metrics;
         INSERT INTO s.days VALUES ('2027-01-05 00:00+00'), ('2026-01-03 00:15+00');
         INSERT INTO s.metrics SELECT at, -1, 'kept' FROM s.days WHERE at > '2027-01-01' OR at = '2026-01-03 00:15+00';
         ALTER TABLE s.metrics ADD CONSTRAINT to_days FOREIGN KEY (at) REFERENCES s.days",
    );
    let manifest = read_manifest(&repository, &id).await.unwrap();
    for (from, to, by_chunks) in [
        ("2027-01-01", "2027-02-01", true),
        ("2026-01-03T02:10+02", "2026-01-03 00:20", false),
    ] {
        let mut options = range(&cluster);
        options.hypertable = Some(common::range("s.metrics", from, to));
        options.overwrite = true;
        let plan = pgkeep_dump::restore::plan(&id, &manifest, &options).unwrap();
        assert_eq!(
            plan.attention.len(),
            usize::from(by_chunks),
            "{:?}",
            plan.attention
        );
        let checked = common::check(&repository, &id, &cluster, &options).await.unwrap();
        assert_eq!(
            checked.databases[0].tables[0].action,
            TableAction::Fill { deletes: !by_chunks }
        );
        assert!(checked.notes[0].contains("to_days"), "{:?}", checked.notes);
        let restored = common::restore(&repository, &id, &cluster, &options)
            .await
            .unwrap();
        assert_eq!(restored.databases[0].rows, 0);
        let [told] = restored.attention.as_slice() else {
            panic!("{:?}", restored.attention);
        };
        assert!(
            told.starts_with("the dump has no rows of s.metrics from 2")
                && told.contains("nothing in it was changed"),
            "{told}"
        );
    }
    let kept = "SELECT count(*) FROM s.metrics WHERE note = 'kept'";
    assert_eq!(cluster.psql("m", kept).trim(), "2");
}

/// Dimensions of every type that ranges are known of, in a database whose own settings read dates the other way round.
#[tokio::test(flavor = "multi_thread")]
async fn ranges_of_numbers_dates_and_local_times_come_back() {
    const TYPES: [(&str, &str, &str, &str); 5] = [
        ("int", "i - 120", "-5", "7"),
        ("bigint", "i - 120", "-5", "7"),
        ("date", "'2026-01-01'::date + i", "2026-02-03", "2026-02-15"),
        (
            "timestamp",
            "'2026-01-01'::timestamp + i * interval '1 day'",
            "2026-02-03",
            "2026-02-15",
        ),
        (
            "timestamptz",
            "'2026-01-01 00:00+00'::timestamptz + i * interval '1 day'",
            "2026-02-03",
            "2026-02-14T20:00-04",
        ),
    ];
    let cluster = require!(Cluster::start(ClusterOptions::new(17).timescaledb()));
    let mut sql = "CREATE EXTENSION timescaledb; ALTER DATABASE m SET datestyle = 'SQL, DMY';
        ALTER DATABASE m SET timezone = 'America/New_York';"
        .to_owned();
    for (kind, value, _, _) in TYPES {
        let interval = if value.starts_with('i') {
            "50"
        } else {
            "interval '7 days'"
        };
        sql.push_str(&format!(
            "CREATE TABLE of_{kind} (at {kind} NOT NULL, n int);
             SELECT create_hypertable('of_{kind}', 'at', chunk_time_interval => {interval});
             INSERT INTO of_{kind} SELECT {value}, i FROM generate_series(0, 239) i;"
        ));
    }
    let (_folder, repository, id) = dumped(&cluster, "m", &sql).await;
    for (kind, _, from, to) in TYPES {
        let first = if kind.ends_with("int") { 115 } else { 33 };
        let deleted = cluster.psql(
            "m",
            &format!("WITH gone AS (DELETE FROM of_{kind} WHERE n BETWEEN {first} AND {first} + 11 RETURNING 1) SELECT count(*) FROM gone"),
        );
        assert_eq!(deleted.trim(), "12");
        let mut options = range(&cluster);
        options.hypertable = Some(common::range(&format!("public.of_{kind}"), from, to));
        let restored = common::restore(&repository, &id, &cluster, &options)
            .await
            .unwrap();
        assert_eq!(restored.databases[0].rows, 12, "{kind}");
        assert!(restored.attention.is_empty(), "{:?}", restored.attention);
        let whole = cluster.psql("m", &format!("SELECT count(DISTINCT n) FROM of_{kind}"));
        assert_eq!(whole.trim(), "240", "{kind}");
    }
}

/// What is announced is the part, and where it goes.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_of_a_part_counts_the_part() {
    let cluster = require!(Cluster::start(ClusterOptions::new(17).timescaledb()));
    let sql = format!("{METRICS} {TABLES}");
    let (_folder, repository, id) = dumped(&cluster, "m", &sql).await;
    let manifest = read_manifest(&repository, &id).await.unwrap();
    let mut options = range(&cluster);
    options.target_database = Some("copy".to_owned());
    let plan = |options: &RestoreOptions| {
        pgkeep_dump::restore::plan(&id, &manifest, options)
            .unwrap()
            .databases
    };
    let [part] = plan(&options).try_into().unwrap();
    assert_eq!(
        (
            part.name.as_str(),
            part.target_name.as_str(),
            part.relations,
            part.rows
        ),
        ("m", "copy", 2, 48)
    );
    assert_eq!(
        part.ranges[0].words,
        "from 2026-01-03 00:00:00 UTC on and before 2026-01-05 00:00:00 UTC"
    );
    let [table] = plan(&orders(&cluster)).try_into().unwrap();
    assert_eq!((table.relations, table.rows), (1, 500));
    let [whole] = plan(&common::restore_options(&cluster)).try_into().unwrap();
    assert!(
        whole.rows > 840 && whole.stored_bytes > part.stored_bytes,
        "{whole:?}"
    );
    assert!(table.objects < whole.objects && table.plain_bytes < whole.plain_bytes);

    for pattern in ["s.metrics", "shop.orders"] {
        options.hypertable = Some(common::range(pattern, "1", "2"));
        let usage = pgkeep_dump::restore::plan(&id, &manifest, &options).unwrap_err();
        assert!(matches!(usage, DumpError::Usage { .. }), "{usage}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_do_not_fit_are_refused_before_any_is_deleted() {
    let cluster = require!(Cluster::start(ClusterOptions::new(17).timescaledb()));
    let (_folder, repository, id) = dumped(&cluster, "m", METRICS).await;
    let mut options = range(&cluster);
    let text = refused(&repository, &id, &cluster, &options).await;
    assert!(text.contains("has rows in that range"), "{text}");
    options.overwrite = true;
    let plan = common::check(&repository, &id, &cluster, &options).await.unwrap();
    let table = &plan.databases[0].tables[0];
    assert_eq!(
        (table.rows, table.action),
        (48, TableAction::Fill { deletes: true })
    );
    cluster.psql("m", "ALTER TABLE s.metrics ALTER COLUMN device TYPE text");
    let text = refused(&repository, &id, &cluster, &options).await;
    assert!(
        text.contains("has a column 'device' of type text, and in the dump it is integer"),
        "{text}"
    );
    cluster.psql(
        "m",
        "ALTER TABLE s.metrics ALTER COLUMN device TYPE int USING device::int; ALTER TABLE s.metrics DROP COLUMN note",
    );
    let text = refused(&repository, &id, &cluster, &options).await;
    assert!(text.contains("has no column 'note' (text in the dump)"), "{text}");

    // An older dump doesn't know the types: they are seen where the chunks are made ready.
    let mut manifest = read_manifest(&repository, &id).await.unwrap();
    for relation in &mut manifest.databases[0].relations {
        relation.column_types.clear();
    }
    let progress = std::sync::Arc::default();
    let target = common::target(&cluster, "postgres");
    let never = std::future::pending();
    let error =
        pgkeep_dump::restore::restore(&repository, &id, &manifest, &target, &options, &progress, never)
            .await
            .unwrap_err();
    assert!(error.to_string().contains("has no column 'note'"), "{error}");
    assert_eq!(cluster.psql("m", "SELECT count(*) FROM s.metrics").trim(), "240");
    assert_eq!(cluster.psql("postgres", SCRATCH).trim(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn scratch_databases_go_with_ctrl_c_and_after_a_kill_with_the_next_restore() {
    let cluster = require!(Cluster::start(ClusterOptions::new(17).timescaledb()));
    let (_folder, repository, id) = dumped(&cluster, "m", METRICS).await;
    cluster.psql(
        "m",
        "DELETE FROM s.metrics WHERE at >= '2026-01-03 00:00+00' AND at < '2026-01-05 00:00+00'",
    );
    let left = cluster.psql("m", "SELECT count(*) FROM s.metrics");
    let mut holder = cluster.session("m");
    holder.run("BEGIN; LOCK TABLE s.metrics IN EXCLUSIVE MODE;");
    let waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 's.metrics'::regclass)";
    let options = range(&cluster);
    let error = common::restore_until(
        &repository,
        &id,
        &cluster,
        &options,
        common::until_query(&cluster, "m", waits),
    )
    .await
    .unwrap_err();
    assert!(matches!(error, DumpError::Interrupted), "{error}");
    assert_eq!(cluster.psql("postgres", SCRATCH).trim(), "0");

    // The server finds out about the first one only when the lock is given up.
    let waits = "SELECT count(*) = 2 FROM pg_locks WHERE NOT granted AND relation = 's.metrics'::regclass";
    tokio::select! {
        restored = common::restore(&repository, &id, &cluster, &options) => panic!("{restored:?}"),
        () = common::until_query(&cluster, "m", waits) => {}
    }
    assert_eq!(cluster.psql("postgres", SCRATCH).trim(), "1");
    drop(holder);
    // A dump of everything passes over it, and it goes when the server knows that its restore has gone.
    let whole = common::dump(&repository, &cluster, &common::dump_options(&cluster))
        .await
        .unwrap();
    assert!(whole.attention.is_empty(), "{:?}", whole.attention);
    assert_eq!(whole.manifest.databases.len(), 2);
    let gone = "SELECT NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory') AND NOT EXISTS (
        SELECT FROM pg_stat_activity WHERE datname LIKE 'pgkeep%' AND backend_type = 'client backend')";
    common::until_query(&cluster, "postgres", gone).await;
    // Not surely one of ours.
    cluster.create_database("pgkeep_scratch_of_mine");
    let restored = common::restore(&repository, &id, &cluster, &options)
        .await
        .unwrap();
    assert_eq!(restored.attention.len(), 1, "{:?}", restored.attention);
    assert!(
        restored.attention[0].contains("DROP DATABASE \"pgkeep_scratch_of_mine\" WITH (FORCE)"),
        "{:?}",
        restored.attention
    );
    assert_eq!(cluster.psql("postgres", SCRATCH).trim(), "1");
    assert_ne!(cluster.psql("m", "SELECT count(*) FROM s.metrics"), left);
}
