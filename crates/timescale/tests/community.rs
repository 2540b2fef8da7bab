//! Against the Community edition: compression, continuous aggregates, policies, a whole restore. Each test runs on every
//! server that `PGKEEP_TEST_TIMESCALE_COMMUNITY` names.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod common;

use common::migration::{self, Dumped};
use common::{assert_same_state, block_on, community_servers, connect, create_community_game, state};
use pgkeep_testkit::{Cluster, require};
use pgkeep_timescale::{
    HypertableKind, Inventory, License, RelationName, TimescaleError, Version, compressed_row_count_sql,
};

fn relation(schema: &str, name: &str) -> RelationName {
    RelationName {
        schema: schema.to_owned(),
        name: name.to_owned(),
    }
}

async fn dumped(cluster: &Cluster, database: &str) -> Dumped {
    let mut session = connect(cluster, database).await;
    Dumped {
        inventory: pgkeep_timescale::inventory(&mut session).await.unwrap(),
        foreign_keys: pgkeep_timescale::foreign_keys_to_hypertables(&mut session)
            .await
            .unwrap(),
    }
}

fn version_of(inventory: &Inventory) -> Version {
    inventory.version.parse().unwrap()
}

#[test]
fn the_inventory_agrees_with_the_information_views() {
    for cluster in require!(community_servers()) {
        create_community_game(&cluster, "app");
        let inventory = block_on(dumped(&cluster, "app")).inventory;
        assert_eq!(inventory.license, License::Timescale);
        assert!(inventory.needs_community());
        assert_chunks_agree(&cluster, &inventory);
        assert_hypertables_agree(&cluster, &inventory);
        let jobs: Vec<String> = inventory
            .jobs
            .iter()
            .map(|job| {
                let on = job.hypertable.clone().unwrap_or_default();
                let scheduled = if job.scheduled { 't' } else { 'f' };
                format!(
                    "{}|{}|{}|{scheduled}|{}|{}",
                    job.id, job.procedure_name, job.owner, on.name, job.schedule_interval
                )
            })
            .collect();
        let expected = cluster.psql(
            "app",
            "SELECT job_id, proc_name, owner, scheduled, coalesce(view_name, j.hypertable_name), schedule_interval \
             FROM timescaledb_information.jobs j LEFT JOIN timescaledb_information.continuous_aggregates c \
             ON c.materialization_hypertable_name = j.hypertable_name WHERE job_id >= 1000 ORDER BY 1",
        );
        assert_eq!(jobs.join("\n"), expected);
        assert_eq!(inventory.jobs.len(), 8);
        let user_job = inventory
            .jobs
            .iter()
            .find(|job| job.procedure_name == "userjob" && job.scheduled)
            .unwrap();
        assert_eq!(user_job.config, Some(serde_json::json!({ "a": 1 })));
        let text = serde_json::to_string(&inventory).unwrap();
        assert_eq!(serde_json::from_str::<Inventory>(&text).unwrap(), inventory);
    }
}

fn assert_chunks_agree(cluster: &Cluster, inventory: &Inventory) {
    let mut chunks: Vec<String> = Vec::new();
    for hypertable in inventory
        .hypertables
        .iter()
        .filter(|hypertable| hypertable.kind != HypertableKind::Compressed)
    {
        for chunk in &hypertable.chunks {
            let is_time = chunk.range_start.is_some();
            let integer = |value: Option<i64>| {
                value
                    .filter(|_| !is_time)
                    .map_or(String::new(), |value| value.to_string())
            };
            let compressed = if chunk.is_compressed { 't' } else { 'f' };
            assert_eq!(chunk.is_compressed, chunk.compressed_relation.is_some());
            chunks.push(format!(
                "{}|{}|{}|{}|{}|{}|{compressed}",
                hypertable.name,
                chunk.name,
                chunk.range_start.clone().unwrap_or_default(),
                chunk.range_end.clone().unwrap_or_default(),
                integer(chunk.range_start_internal),
                integer(chunk.range_end_internal),
            ));
        }
    }
    chunks.sort();
    let format = r#"'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'"#;
    let mut expected: Vec<String> = cluster
        .psql(
            "app",
            &format!(
                "SET timezone = 'UTC'; SELECT hypertable_name, chunk_name, to_char(range_start, {format}), \
                 to_char(range_end, {format}), range_start_integer, range_end_integer, is_compressed \
                 FROM timescaledb_information.chunks"
            ),
        )
        .lines()
        .map(str::to_owned)
        .collect();
    expected.sort();
    assert!(expected.len() > 20, "{expected:?}");
    assert_eq!(chunks, expected);
    let compressed = chunks.iter().filter(|chunk| chunk.ends_with('t')).count();
    assert_eq!(compressed, 8, "{chunks:?}");
    let partial = inventory
        .hypertables
        .iter()
        .flat_map(|hypertable| &hypertable.chunks)
        .filter(|chunk| chunk.is_partial());
    assert_eq!(partial.count(), 2);
}

fn assert_hypertables_agree(cluster: &Cluster, inventory: &Inventory) {
    let of_kind = |kind| {
        inventory
            .hypertables
            .iter()
            .filter(move |hypertable| hypertable.kind == kind)
    };
    let mut users: Vec<String> = of_kind(HypertableKind::User)
        .map(|hypertable| {
            let enabled = if hypertable.compression_enabled { 't' } else { 'f' };
            format!(
                "{}|{}|{}|{enabled}",
                hypertable.name,
                hypertable.owner,
                hypertable.chunks.len()
            )
        })
        .collect();
    users.sort();
    let expected = cluster.psql(
        "app",
        "SELECT hypertable_name, owner, num_chunks, compression_enabled FROM timescaledb_information.hypertables \
         ORDER BY hypertable_name COLLATE \"C\"",
    );
    assert_eq!(users.join("\n"), expected);
    assert_eq!(of_kind(HypertableKind::Materialization).count(), 3);
    let events = inventory
        .hypertables
        .iter()
        .find(|hypertable| hypertable.name == "events")
        .unwrap();
    assert_eq!(events.segment_by, ["player"]);
    let order: Vec<_> = events
        .order_by
        .iter()
        .map(|order| (order.column.as_str(), order.descending))
        .collect();
    assert_eq!(order, [("ts", true), ("score", false)]);
    assert_eq!(events.dimensions[0].interval_length, Some(86_400_000_000));
    let counters = inventory
        .hypertables
        .iter()
        .find(|hypertable| hypertable.name == "counters")
        .unwrap();
    assert_eq!(
        counters.dimensions[0].integer_now,
        Some(relation("public", "counters_now"))
    );
    let metrics = inventory
        .hypertables
        .iter()
        .find(|hypertable| hypertable.name == "metrics")
        .unwrap();
    assert_eq!(metrics.dimensions[1].partitions, Some(3));

    let aggregates: Vec<_> = inventory
        .continuous_aggregates
        .iter()
        .map(|aggregate| aggregate.name.as_str())
        .collect();
    assert_eq!(aggregates, ["hourly", "daily", "blocks"]);
    let [hourly, daily, _] = inventory.continuous_aggregates.as_slice() else {
        panic!("{aggregates:?}")
    };
    assert_eq!(hourly.source, relation("game", "events"));
    assert_eq!(daily.source, hourly.materialization);
    assert!(
        hourly.view_definition.contains("game.events"),
        "{}",
        hourly.view_definition
    );
    assert!(!daily.materialized_only && hourly.finalized);
}

#[test]
fn compressed_and_other_rows_add_up() {
    for cluster in require!(community_servers()) {
        create_community_game(&cluster, "app");
        let inventory = block_on(dumped(&cluster, "app")).inventory;
        for hypertable in inventory
            .hypertables
            .iter()
            .filter(|hypertable| hypertable.kind != HypertableKind::Compressed)
        {
            let mut rows = 0_u64;
            for chunk in &hypertable.chunks {
                let heap = format!("COPY \"{}\".\"{}\" TO STDOUT", chunk.schema, chunk.name);
                rows += u64::try_from(cluster.psql("app", &heap).lines().count()).unwrap();
                if let Some(compressed) = &chunk.compressed_relation {
                    let sql = compressed_row_count_sql(&compressed.schema, &compressed.name);
                    rows += cluster.psql("app", &sql).parse::<u64>().unwrap();
                }
            }
            let counted = block_on(async {
                let mut session = connect(&cluster, "app").await;
                pgkeep_timescale::hypertable_row_count(&mut session, &hypertable.schema, &hypertable.name)
                    .await
                    .unwrap()
            });
            assert_eq!(rows, counted, "{}", hypertable.name);
        }
        assert_eq!(
            cluster.psql("app", &compressed_row_count_sql("game", "players")),
            ""
        );
    }
}

#[test]
fn compressing_a_chunk_changes_the_fingerprint() {
    for cluster in require!(community_servers()) {
        create_community_game(&cluster, "app");
        block_on(async {
            let mut session = connect(&cluster, "app").await;
            let fingerprint = pgkeep_timescale::chunk_fingerprint(&mut session).await.unwrap();
            cluster.psql(
                "app",
                "INSERT INTO game.events VALUES ('2026-01-09Z', 1, 1, '{}')",
            );
            assert_eq!(
                pgkeep_timescale::chunk_fingerprint(&mut session).await.unwrap(),
                fingerprint
            );
            let mut seen = vec![fingerprint];
            for statement in [
                "SELECT compress_chunk(c) FROM show_chunks('game.events', newer_than => '2026-01-09Z'::timestamptz) c LIMIT 1",
                "INSERT INTO game.events VALUES ('2026-01-02 00:00:07Z', 1, 1, '{}')",
                "SELECT decompress_chunk(c) FROM show_chunks('game.events', older_than => '2026-01-02 00:00Z'::timestamptz) c",
                "INSERT INTO game.events VALUES ('2030-01-01Z', 1, 1, '{}')",
                "SELECT drop_chunks('game.metrics', older_than => '2026-01-10'::timestamp)",
            ] {
                cluster.psql("app", statement);
                let fingerprint = pgkeep_timescale::chunk_fingerprint(&mut session).await.unwrap();
                assert!(!seen.contains(&fingerprint), "{statement}");
                seen.push(fingerprint);
            }
        });
    }
}

#[test]
fn the_fingerprint_and_the_inventory_follow_the_snapshot() {
    for cluster in require!(community_servers()) {
        create_community_game(&cluster, "app");
        block_on(async {
            let mut session = connect(&cluster, "app").await;
            session
                .execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                .await
                .unwrap();
            let before = pgkeep_timescale::chunk_fingerprint(&mut session).await.unwrap();
            let inventory = pgkeep_timescale::inventory(&mut session).await.unwrap();
            cluster.psql(
                "app",
                "INSERT INTO game.events VALUES ('2030-01-01Z', 1, 1, '{}')",
            );
            assert_eq!(
                pgkeep_timescale::chunk_fingerprint(&mut session).await.unwrap(),
                before
            );
            assert_eq!(
                pgkeep_timescale::inventory(&mut session).await.unwrap(),
                inventory
            );
            session.execute("COMMIT").await.unwrap();
            assert_ne!(
                pgkeep_timescale::chunk_fingerprint(&mut session).await.unwrap(),
                before
            );
        });
    }
}

#[test]
fn a_database_is_restored_whole_and_keeps_its_history() {
    for cluster in require!(community_servers()) {
        create_community_game(&cluster, "app");
        let before = state(&cluster, "app");
        block_on(async {
            let dumped = dumped(&cluster, "app").await;
            let held = migration::restore(&cluster, "app", "restored", &dumped).await;
            let scheduled = dumped.inventory.jobs.iter().filter(|job| job.scheduled).count();
            assert_eq!(held.len(), scheduled);
            cluster.psql("restored", "REFRESH MATERIALIZED VIEW game.total");
            assert_same_state(&state(&cluster, "restored"), &before);

            let mut session = connect(&cluster, "restored").await;
            let restored = pgkeep_timescale::inventory(&mut session).await.unwrap();
            assert!(restored.jobs.iter().all(|job| !job.scheduled));
            assert_eq!(strip_jobs(&restored), strip_jobs(&dumped.inventory));
            // Still held: a policy that ran meanwhile would make a difference.
            let answers = abilities(&cluster, "restored");
            assert_eq!(answers, abilities(&cluster, "app"));
            let good = answers.iter().filter(|answer| answer.contains("Ok(")).count();
            assert!(good >= 14 && good <= answers.len() - 3, "{answers:#?}");
            pgkeep_timescale::release_jobs(&mut session, &held, &[])
                .await
                .unwrap();
            let jobs = "SELECT count(*) FROM timescaledb_information.jobs WHERE scheduled AND job_id >= 1000";
            assert_eq!(cluster.psql("restored", jobs), scheduled.to_string());
        });
    }
}

fn strip_jobs(inventory: &Inventory) -> Inventory {
    let mut inventory = inventory.clone();
    for job in &mut inventory.jobs {
        job.scheduled = false;
        job.next_start = None;
    }
    inventory
}

/// What a database can do: the answers, for a comparison of the restored one with its original.
fn abilities(cluster: &Cluster, database: &str) -> Vec<String> {
    let mut answers = Vec::new();
    for statement in [
        "INSERT INTO game.events VALUES ('2026-01-02 00:00:09Z', 3, 1, '{}'), ('2031-01-01Z', 3, 1, '{}')",
        "SELECT count(*), sum(hashtextextended(e::text, 0)) FROM game.events e",
        "INSERT INTO game.events VALUES ('2026-01-02Z', 3000, 1, '{}')",
        "INSERT INTO game.events VALUES ('2026-01-04Z', 3, -1, '{}')",
        "INSERT INTO game.events SELECT * FROM game.events LIMIT 1",
        "DELETE FROM game.players WHERE id = 5",
        "INSERT INTO game.metrics VALUES ('2031-01-01', 3, 4)",
        "SELECT what FROM game.audit",
        "SELECT count(decompress_chunk(c, true)) FROM show_chunks('game.events') c",
        "SELECT count(*), sum(hashtextextended(e::text, 0)) FROM game.events e",
        "SELECT count(compress_chunk(c, true)) FROM show_chunks('game.events') c",
        "SELECT count(*), sum(hashtextextended(e::text, 0)) FROM game.events e",
        "CALL refresh_continuous_aggregate('game.hourly', NULL, NULL)",
        "SELECT sum(n) FROM game.hourly",
        "CREATE INDEX ON game.events (note)",
        "ALTER TABLE game.events ADD COLUMN latest int",
        "SELECT drop_chunks('game.metrics', older_than => '2026-01-10'::timestamp)",
        "SELECT count(*) FROM game.metrics",
        "DROP MATERIALIZED VIEW game.daily",
        "DROP TABLE game.\"Odd Näme\"",
    ] {
        let answer = cluster.try_psql(
            database,
            &format!("SET client_min_messages = error;\n{statement}"),
        );
        // Names of chunks and constraints, and which row is met first, are not what matters.
        let answer = answer.map_err(|error| error.split('"').next().unwrap_or_default().to_owned());
        answers.push(format!("{statement}: {answer:?}"));
    }
    answers
}

#[test]
fn foreign_keys_to_hypertables_come_after_the_restore_mode() {
    for cluster in require!(community_servers()) {
        create_community_game(&cluster, "app");
        let inventory = block_on(dumped(&cluster, "app")).inventory;
        if version_of(&inventory) < "2.16.0".parse().unwrap() {
            continue;
        }
        cluster.psql(
            "app",
            "CREATE TABLE game.refs (player int, ts timestamptz, score float8); \
             INSERT INTO game.refs SELECT player, ts, score FROM game.events WHERE ts >= '2026-01-08Z' LIMIT 100; \
             ALTER TABLE game.refs ADD CONSTRAINT to_events FOREIGN KEY (player, ts, score) \
             REFERENCES game.events (player, ts, score)",
        );
        let before = state(&cluster, "app");
        block_on(async {
            let dumped = dumped(&cluster, "app").await;
            let keys: Vec<_> = dumped
                .foreign_keys
                .iter()
                .map(|key| (key.table.as_str(), key.name.as_str()))
                .collect();
            assert_eq!(keys, [("refs", "to_events")]);
            migration::restore(&cluster, "app", "restored", &dumped).await;
        });
        cluster.psql("restored", "REFRESH MATERIALIZED VIEW game.total");
        assert_same_state(&state(&cluster, "restored"), &before);
        cluster
            .try_psql("restored", "INSERT INTO game.refs VALUES (1, '1999-01-01Z', 1)")
            .unwrap_err();
        cluster
            .try_psql("restored", "DELETE FROM game.events WHERE ts >= '2026-01-08Z'")
            .unwrap_err();
    }
}

#[test]
fn chunks_with_the_hypercore_access_method_are_restored_without_truncate() {
    let mut tried = 0;
    for cluster in require!(community_servers()) {
        create_community_game(&cluster, "app");
        let version = version_of(&block_on(dumped(&cluster, "app")).inventory);
        if version < "2.18.0".parse().unwrap() || version >= "2.22.0".parse().unwrap() {
            continue;
        }
        tried += 1;
        cluster.psql(
            "app",
            "SET client_min_messages = error; SELECT decompress_chunk(c, true) FROM show_chunks('game.events') c; \
             SELECT compress_chunk(c, hypercore_use_access_method => true) \
             FROM show_chunks('game.events', older_than => '2026-01-06Z'::timestamptz) c; \
             INSERT INTO game.events VALUES ('2026-01-02 00:00:09Z', 3, 1, '{}')",
        );
        let before = state(&cluster, "app");
        block_on(async {
            let dumped = dumped(&cluster, "app").await;
            migration::restore(&cluster, "app", "restored", &dumped).await;
        });
        cluster.psql("restored", "REFRESH MATERIALIZED VIEW game.total");
        cluster.psql("app", "REFRESH MATERIALIZED VIEW game.total");
        assert_eq!(state(&cluster, "restored").len(), before.len());
        let rows = "SELECT count(*), sum(hashtextextended(e::text, 0)) FROM game.events e";
        assert_eq!(cluster.psql("restored", rows), cluster.psql("app", rows));
    }
    if tried == 0 {
        pgkeep_testkit::skip(&pgkeep_testkit::Missing(
            "TimescaleDB 2.18 to 2.21, Community edition".to_owned(),
        ));
    }
}

#[test]
fn while_restoring_nothing_is_counted_and_nothing_released() {
    for cluster in require!(community_servers()) {
        create_community_game(&cluster, "app");
        block_on(async {
            let mut session = connect(&cluster, "app").await;
            pgkeep_timescale::pre_restore(&mut session).await.unwrap();
            let mut other = connect(&cluster, "app").await;
            for session in [&mut session, &mut other] {
                let counted = pgkeep_timescale::hypertable_row_count(session, "game", "events").await;
                assert!(matches!(counted, Err(TimescaleError::Restoring)), "{counted:?}");
                let pending = pgkeep_timescale::pending_deletions(session).await;
                assert!(matches!(pending, Err(TimescaleError::Restoring)), "{pending:?}");
            }
            let held = pgkeep_timescale::hold_jobs(&mut session).await.unwrap();
            assert!(
                pgkeep_timescale::hold_jobs(&mut session)
                    .await
                    .unwrap()
                    .is_empty()
            );
            let released = pgkeep_timescale::release_jobs(&mut session, &held, &[]).await;
            assert!(matches!(released, Err(TimescaleError::Restoring)), "{released:?}");
            pgkeep_timescale::post_restore(&mut session).await.unwrap();
            pgkeep_timescale::release_jobs(&mut session, &held, &[])
                .await
                .unwrap();
            assert_eq!(held.len(), 7);
            let extension = pgkeep_timescale::detect(&mut connect(&cluster, "app").await)
                .await
                .unwrap()
                .unwrap();
            assert!(!extension.restoring);
        });
    }
}
