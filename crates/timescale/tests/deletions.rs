//! What retention policies delete after a restore, on the Community edition: said beforehand, and held back.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod common;

use common::migration::{self, Dumped};
use common::{block_on, community_servers, community_servers_with, connect, create_community_game};
use pgkeep_testkit::{Cluster, require};

async fn dumped(cluster: &Cluster, database: &str) -> Dumped {
    let mut session = connect(cluster, database).await;
    Dumped {
        inventory: pgkeep_timescale::inventory(&mut session).await.unwrap(),
        foreign_keys: pgkeep_timescale::foreign_keys_to_hypertables(&mut session)
            .await
            .unwrap(),
    }
}

#[test]
fn pending_deletions_are_what_the_policies_delete() {
    for cluster in require!(community_servers()) {
        create_community_game(&cluster, "app");
        let pending = block_on(async {
            let mut session = connect(&cluster, "app").await;
            pgkeep_timescale::pending_deletions(&mut session).await.unwrap()
        });
        let names: Vec<_> = pending
            .iter()
            .map(|pending| pending.relation.name.as_str())
            .collect();
        assert_eq!(names, ["events", "counters", "blocks", "metrics"]);
        let [events, counters, blocks, metrics] = pending.as_slice() else {
            panic!("{pending:?}")
        };
        assert_eq!((events.chunks.len(), events.drop_after.as_str()), (0, "10 years"));
        assert!(pending.iter().all(|pending| pending.scheduled));
        assert_eq!(counters.cutoff, "2000");
        assert_eq!(counters.rows(), 1999);
        assert_eq!(
            (
                counters.chunks[0].range_start.as_str(),
                counters.chunks[0].range_end.as_str()
            ),
            ("0", "1000")
        );
        assert_eq!(blocks.cutoff, "1000");
        assert_eq!(metrics.rows(), 501);
        assert!(metrics.chunks[0].range_start.ends_with('Z'), "{metrics:?}");
        for (pending, table) in [
            (counters, "counters"),
            (metrics, "game.metrics"),
            (events, "game.events"),
        ] {
            let before: u64 = cluster
                .psql("app", &format!("SELECT count(*) FROM {table}"))
                .parse()
                .unwrap();
            cluster.psql(
                "app",
                &format!("SET client_min_messages = error; CALL run_job({})", pending.job),
            );
            let after: u64 = cluster
                .psql("app", &format!("SELECT count(*) FROM {table}"))
                .parse()
                .unwrap();
            assert_eq!(before - after, pending.rows(), "{table}");
        }
    }
}

/// The cutoff lies in the middle of a chunk, so that the time of day can't matter; four chunks end before it.
#[test]
fn the_cutoff_is_the_policies_own_for_every_type_of_time() {
    for cluster in require!(community_servers()) {
        cluster.psql("postgres", "CREATE DATABASE app TEMPLATE template0");
        let age = "now() - (date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' - interval '4 days 12 hours')";
        cluster.psql(
            "app",
            "SET client_min_messages = error; CREATE EXTENSION timescaledb",
        );
        for (table, column_type) in [("a", "timestamptz"), ("b", "timestamp"), ("c", "date")] {
            cluster.psql(
                "app",
                &format!(
                    "SET client_min_messages = error; SET timezone = 'UTC'; CREATE TABLE {table} (t {column_type} NOT NULL); \
                     SELECT create_hypertable('{table}', 't', chunk_time_interval => interval '1 day'); \
                     INSERT INTO {table} SELECT date_trunc('day', now()) - i * interval '1 day' FROM generate_series(0, 9) i; \
                     SELECT add_retention_policy('{table}', drop_after => {age}, initial_start => now() + interval '1 day')"
                ),
            );
        }
        cluster.psql(
            "app",
            "CREATE TABLE d (t timestamptz NOT NULL); SELECT create_hypertable('d', 't'); \
             INSERT INTO d SELECT '2030-01-01Z'::timestamptz + i * interval '30 days' FROM generate_series(0, 3) i; \
             UPDATE _timescaledb_catalog.chunk c SET creation_time = now() - interval '3 days' WHERE id IN (SELECT id FROM \
             _timescaledb_catalog.chunk x WHERE x.hypertable_id = c.hypertable_id ORDER BY id DESC LIMIT 3) \
             AND hypertable_id = (SELECT id FROM _timescaledb_catalog.hypertable WHERE table_name = 'd')",
        );
        let by_creation = cluster.try_psql(
            "app",
            "SELECT add_retention_policy('d', drop_created_before => interval '2 days', \
             initial_start => now() + interval '1 day')",
        );
        let pending = block_on(async {
            let mut session = connect(&cluster, "app").await;
            session.execute("SET timezone = 'UTC'").await.unwrap();
            pgkeep_timescale::pending_deletions(&mut session).await.unwrap()
        });
        // Versions before some 2.2x allow it only where the column has no clock of its own.
        assert_eq!(pending.len(), if by_creation.is_ok() { 4 } else { 3 });
        for policy in &pending {
            if policy.by_creation_time {
                // 2.13 takes the one that is new for an old one.
                assert!((3..=4).contains(&policy.rows()), "{policy:?}");
            } else {
                assert_eq!((policy.chunks.len(), policy.rows()), (4, 4), "{policy:?}");
            }
            let table = &policy.relation.name;
            let count = || {
                let count = cluster.psql("app", &format!("SELECT count(*) FROM {table}"));
                count.parse::<u64>().unwrap()
            };
            let before = count();
            let run = format!("SET timezone = 'UTC'; CALL run_job({})", policy.job);
            if let Err(error) = cluster.try_psql("app", &run) {
                // Before 2.28 a policy by creation time could be added and not run.
                assert!(
                    policy.by_creation_time && error.contains("could not find drop_after"),
                    "{error}"
                );
                continue;
            }
            assert_eq!(before - count(), policy.rows(), "{table}");
        }
    }
}

/// With these, the commits of the sessions of [`connect`] take a tenth of a second: time enough for the scheduler, which
/// is started before the commit that ends the restore mode, to find that mode on and to die of it.
const SLOW_COMMIT: &[(&str, &str)] = &[
    ("fsync", "on"),
    ("commit_siblings", "0"),
    ("synchronous_commit", "off"),
];

#[test]
fn without_holding_jobs_an_overdue_policy_deletes_the_restored_history() {
    for cluster in require!(community_servers_with(SLOW_COMMIT)) {
        create_community_game(&cluster, "app");
        // As most policies are: without a fixed schedule, so due at once where no statistics say when it ran.
        let jobs = cluster.psql(
            "app",
            "SELECT coalesce(to_regclass('_timescaledb_catalog.bgw_job'), to_regclass('_timescaledb_config.bgw_job'))",
        );
        cluster.psql(
            "app",
            &format!(
                "UPDATE {jobs} SET fixed_schedule = false, initial_start = NULL \
                 WHERE proc_name = 'policy_retention' AND config->>'drop_after' = '3000'"
            ),
        );
        block_on(async {
            let dumped = dumped(&cluster, "app").await;
            let held = migration::restore(&cluster, "app", "restored", &dumped).await;
            let count = || cluster.psql("restored", "SELECT count(*) FROM counters");
            assert_eq!(count(), "5000");
            let mut session = connect(&cluster, "restored").await;
            pgkeep_timescale::release_jobs(&mut session, &held, &[])
                .await
                .unwrap();
            pgkeep_testkit::poll_until("the policy runs", std::time::Duration::from_secs(60), || {
                count() == "3001"
            });
        });
    }
}
