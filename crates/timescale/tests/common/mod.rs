//! What the tests share: servers, sessions, game data in hypertables, and a whole restore step by step.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod migration;

use pgkeep_pg::{Conninfo, Environment, Session};
use pgkeep_testkit::requirements::{self, Missing};
use pgkeep_testkit::{Cluster, ClusterOptions};

/// A runtime for one test.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// A session with an empty `search_path`, as a dump's are: set at the start, so that no statement has run in it. Its
/// commits take a tenth of a second where the server has fsync on, which only a test that wants them slow asks for.
pub async fn connect(cluster: &Cluster, database: &str) -> Session {
    let text = format!(
        "{} options='-csearch_path= -ctimezone=America/St_Johns -csynchronous_commit=on -ccommit_delay=100000'",
        cluster.conninfo(database)
    );
    let target = Conninfo::parse(&text)
        .unwrap()
        .resolve(&Environment::new(|_| None, None, None))
        .unwrap();
    Session::connect(&target).await.unwrap()
}

/// Every Community server at hand, one after another.
pub fn community_servers() -> Result<impl Iterator<Item = Cluster>, Missing> {
    community_servers_with(&[])
}

/// The same with settings.
pub fn community_servers_with(
    settings: &'static [(&'static str, &'static str)],
) -> Result<impl Iterator<Item = Cluster>, Missing> {
    let servers = requirements::community(None)?;
    Ok(servers.into_iter().map(|server| {
        // Each database with the extension takes a worker for its jobs, besides those that run them.
        let options = ClusterOptions::new(server.major)
            .timescaledb()
            .setting("max_worker_processes", "24");
        let options = settings
            .iter()
            .fold(options, |options, (name, value)| options.setting(name, value));
        Cluster::start_with(&server.bin, &options)
    }))
}

/// The Apache edition on this major version.
pub fn apache_server(major: u32) -> Result<Cluster, Missing> {
    Cluster::start(ClusterOptions::new(major).timescaledb())
}

/// A database with hypertables of every kind that the Apache edition has.
pub fn create_game(cluster: &Cluster, database: &str) {
    cluster.psql(
        "postgres",
        &format!("CREATE DATABASE {database} TEMPLATE template0"),
    );
    cluster.psql(database, GAME);
}

/// The same with what only the Community edition has.
pub fn create_community_game(cluster: &Cluster, database: &str) {
    create_game(cluster, database);
    cluster.psql(database, COMMUNITY_GAME);
}

/// Times, integers, hash partitions, names that want quotes, a dropped and a late column, foreign keys, a trigger.
const GAME: &str = r#"
SET client_min_messages = warning;
CREATE EXTENSION timescaledb;
CREATE SCHEMA game;
CREATE TABLE game.players (id int PRIMARY KEY, name text);
INSERT INTO game.players SELECT i, 'player ' || i FROM generate_series(1, 100) i;
CREATE TABLE game.events (junk text, ts timestamptz NOT NULL, player int NOT NULL REFERENCES game.players,
    score float8 CHECK (score >= 0), payload jsonb, kind text DEFAULT 'x');
SELECT create_hypertable('game.events', 'ts', chunk_time_interval => interval '1 day');
ALTER TABLE game.events DROP COLUMN junk;
INSERT INTO game.events (ts, player, score, payload)
    SELECT '2026-01-01Z'::timestamptz + i * interval '10 min', 1 + i % 100, i % 37, jsonb_build_object('n', i)
    FROM generate_series(0, 1439) i;
ALTER TABLE game.events ADD COLUMN note text DEFAULT 'later';
CREATE UNIQUE INDEX ON game.events (player, ts, score);
CREATE TABLE game.metrics (t timestamp NOT NULL, device int NOT NULL, v numeric, PRIMARY KEY (t, device));
SELECT create_hypertable('game.metrics', 't', partitioning_column => 'device', number_partitions => 3,
    chunk_time_interval => interval '7 days', associated_schema_name => 'game', associated_table_prefix => 'mm');
INSERT INTO game.metrics SELECT '2026-01-01'::timestamp + i * interval '1 h', i % 17, i * 1.5 FROM generate_series(0, 500) i;
CREATE TABLE game.audit (n bigserial PRIMARY KEY, what text);
CREATE FUNCTION game.note() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO game.audit (what) VALUES ('event'); RETURN new; END $$;
CREATE TRIGGER metrics_note AFTER INSERT ON game.metrics FOR EACH ROW EXECUTE FUNCTION game.note();
CREATE TABLE counters (k bigint NOT NULL, v text);
SELECT create_hypertable('counters', 'k', chunk_time_interval => 1000);
INSERT INTO counters SELECT i, 'v' || i FROM generate_series(1, 5000) i;
CREATE FUNCTION counters_now() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT coalesce(max(k), 0) FROM public.counters';
SELECT set_integer_now_func('counters', 'counters_now');
CREATE TABLE game."Odd Näme" ("T s" date NOT NULL, "x""y" int);
SELECT create_hypertable('game."Odd Näme"', 'T s');
INSERT INTO game."Odd Näme" SELECT '2026-02-01'::date + i, i FROM generate_series(1, 50) i;
CREATE MATERIALIZED VIEW game.total AS SELECT count(*) AS n FROM game.events;
"#;

/// Compressed and partially compressed chunks, aggregates on aggregates, policies. Every policy has a first start in the
/// future, so that the tests decide what runs.
const COMMUNITY_GAME: &str = r#"
SET client_min_messages = error;
ALTER TABLE game.events SET (timescaledb.compress, timescaledb.compress_segmentby = 'player',
    timescaledb.compress_orderby = 'ts DESC, score');
SELECT compress_chunk(c) FROM show_chunks('game.events', older_than => '2026-01-06Z'::timestamptz) c;
INSERT INTO game.events SELECT '2026-01-03Z'::timestamptz + i * interval '77 s', 1 + i % 100, 5000 + i, '{}', 'late', 'n'
    FROM generate_series(0, 200) i;
ALTER TABLE game."Odd Näme" SET (timescaledb.compress);
SELECT compress_chunk(c) FROM show_chunks('game."Odd Näme"') c LIMIT 2;
CREATE MATERIALIZED VIEW game.hourly WITH (timescaledb.continuous) AS
    SELECT time_bucket('1 hour', ts) AS b, player, count(*) AS n, avg(score) AS a FROM game.events GROUP BY 1, 2 WITH NO DATA;
INSERT INTO game.events SELECT '2025-01-01Z'::timestamptz + i * interval '1 h', 1 + i % 100, 1, '{}' FROM generate_series(0, 99) i;
CALL refresh_continuous_aggregate('game.hourly', NULL, '2026-01-09Z');
CREATE MATERIALIZED VIEW game.daily WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS
    SELECT time_bucket('1 day', b) AS d, sum(n) AS n FROM game.hourly GROUP BY 1 WITH NO DATA;
CALL refresh_continuous_aggregate('game.daily', NULL, '2026-01-05Z');
CREATE MATERIALIZED VIEW game.blocks WITH (timescaledb.continuous) AS
    SELECT time_bucket(500::bigint, k) AS b, count(*) AS n FROM counters GROUP BY 1 WITH NO DATA;
CALL refresh_continuous_aggregate('game.blocks', NULL, NULL);
ALTER MATERIALIZED VIEW game.hourly SET (timescaledb.compress = true);
SELECT compress_chunk(c) FROM show_chunks('game.hourly') c LIMIT 1;
INSERT INTO game.events VALUES ('2026-01-05 00:00:01Z', 7, 1, '{}', 'z', 'not yet in the aggregate');
SELECT add_retention_policy('game.events', drop_after => interval '10 years', initial_start => now() + interval '1 day');
SELECT add_retention_policy('counters', drop_after => 3000::bigint, initial_start => now() + interval '1 day');
SELECT add_retention_policy('game.blocks', drop_after => 4000::bigint, initial_start => now() + interval '1 day');
SELECT add_retention_policy('game.metrics', drop_after => interval '1 day', initial_start => now() + interval '1 day');
SELECT add_compression_policy('game.events', compress_after => interval '20 years', initial_start => now() + interval '1 day');
SELECT add_continuous_aggregate_policy('game.hourly', start_offset => interval '1 month', end_offset => interval '1 hour',
    schedule_interval => interval '1 hour', initial_start => now() + interval '1 day');
CREATE PROCEDURE game.userjob(job_id int, config jsonb) LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO game.audit (what) VALUES ('job'); END $$;
SELECT add_job('game.userjob', '1 hour', config => '{"a": 1}', initial_start => now() + interval '1 day');
SELECT alter_job(add_job('game.userjob', '2 hours'), scheduled => false);
-- The aggregate keeps what its source has lost; before 2.26 such chunks stay in the catalog without their tables.
SELECT drop_chunks('game.events', older_than => '2025-06-01Z'::timestamptz);
REFRESH MATERIALIZED VIEW game.total;
"#;

/// Everything that must be equal before and after, as text: rows by count and hash, and what the catalogs say.
pub fn state(cluster: &Cluster, database: &str) -> String {
    let tables = cluster.psql(
        database,
        "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname IN ('game', 'public') AND c.relkind IN ('r', 'v', 'm') AND c.relname !~ '^mm_' AND NOT EXISTS \
         (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e') ORDER BY 1",
    );
    let mut script = String::from("SET timezone = 'UTC';\n");
    for table in tables.lines() {
        script.push_str(&format!(
            "SELECT '{}', count(*), sum(hashtextextended(x::text, 0)) FROM {table} x;\n",
            table.replace('\'', "''")
        ));
    }
    script.push_str(CATALOG_STATE);
    cluster.psql(database, &script)
}

const CATALOG_STATE: &str = "
SELECT 'chunk', hypertable_schema, hypertable_name, chunk_schema, chunk_name, range_start, range_end, range_start_integer,
    range_end_integer, is_compressed FROM timescaledb_information.chunks ORDER BY 2, 3, 4, 5;
SELECT 'dimension', d.* FROM timescaledb_information.dimensions d ORDER BY 2, 3, 4;
SELECT 'job', job_id, application_name, schedule_interval, proc_name, owner, config, hypertable_name
    FROM timescaledb_information.jobs ORDER BY 2;
SELECT 'aggregate', c.* FROM timescaledb_information.continuous_aggregates c ORDER BY 2, 3, 4, 5;
SELECT 'setting', c.* FROM timescaledb_information.compression_settings c ORDER BY 2, 3, 4;
SELECT 'index', indexdef FROM pg_indexes WHERE schemaname IN ('game', 'public', '_timescaledb_internal') ORDER BY 2;
SELECT 'trigger', pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal ORDER BY 2;
SELECT 'constraint', conrelid::regclass, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace::regnamespace::text IN ('game', 'public', '_timescaledb_internal')
    AND NOT (contype = 'f' AND conparentid <> 0) ORDER BY 2, 3;
";

/// Fails with the lines that differ between two of [`state`].
pub fn assert_same_state(restored: &str, original: &str) {
    let lines = |text: &str| {
        text.lines()
            .map(str::to_owned)
            .collect::<std::collections::BTreeSet<_>>()
    };
    // Some lines stand there more than once; their order may follow object ids.
    assert_eq!(restored.lines().count(), original.lines().count());
    let (restored, original) = (lines(restored), lines(original));
    let missing: Vec<_> = original.difference(&restored).collect();
    let surplus: Vec<_> = restored.difference(&original).collect();
    assert!(
        missing.is_empty() && surplus.is_empty(),
        "missing: {missing:#?}\nsurplus: {surplus:#?}"
    );
}
