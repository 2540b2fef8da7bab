//! Against the Apache edition on every major version that has it, and against servers without TimescaleDB.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod common;

use common::migration::{self, Dumped};
use common::{apache_server, assert_same_state, block_on, connect, create_game, state};
use pgkeep_base::Classified;
use pgkeep_testkit::{Cluster, ClusterOptions, Missing, require};
use pgkeep_timescale::{
    Chunk, Hypertable, Inventory, Job, JobId, License, Severity, TimescaleError, Version, check_target,
};

fn whole_restore(major: u32) -> Result<(), Missing> {
    let cluster = apache_server(major)?;
    create_game(&cluster, "app");
    let before = state(&cluster, "app");
    block_on(async {
        let mut session = connect(&cluster, "app").await;
        let extension = pgkeep_timescale::detect(&mut session).await.unwrap().unwrap();
        assert_eq!(extension.license, License::Apache);
        assert!(extension.preloaded && extension.library_loaded && !extension.restoring);
        assert!(extension.version_parsed > Version::OLDEST);
        assert_eq!(extension.schema, "public");
        let inventory = pgkeep_timescale::inventory(&mut session).await.unwrap();
        let chunks: usize = inventory
            .hypertables
            .iter()
            .map(|hypertable| hypertable.chunks.len())
            .sum();
        assert_eq!(
            chunks.to_string(),
            cluster.psql("app", "SELECT count(*) FROM timescaledb_information.chunks")
        );
        assert!(!inventory.needs_community());
        let fingerprint = pgkeep_timescale::chunk_fingerprint(&mut session).await.unwrap();
        assert!(fingerprint.starts_with(&format!("{chunks}:")), "{fingerprint}");

        let foreign_keys = pgkeep_timescale::foreign_keys_to_hypertables(&mut session)
            .await
            .unwrap();
        let dumped = Dumped {
            inventory,
            foreign_keys,
        };
        assert_eq!(check_target(&mut session, &dumped.inventory).await.unwrap(), []);
        let held = migration::restore(&cluster, "app", "restored", &dumped).await;
        assert_eq!(held, []);
        cluster.psql("restored", "REFRESH MATERIALIZED VIEW game.total");
        assert_same_state(&state(&cluster, "restored"), &before);
        let mut session = connect(&cluster, "restored").await;
        assert_eq!(
            pgkeep_timescale::inventory(&mut session).await.unwrap(),
            dumped.inventory
        );
        let rows = pgkeep_timescale::hypertable_row_count(&mut session, "game", "Odd Näme")
            .await
            .unwrap();
        assert_eq!(rows, 50);
        assert_eq!(
            pgkeep_timescale::pending_deletions(&mut session).await.unwrap(),
            []
        );
    });
    cluster.psql("restored", "INSERT INTO game.metrics VALUES ('2031-01-01', 3, 4)");
    assert_eq!(
        cluster
            .psql(
                "restored",
                "SELECT drop_chunks('game.metrics', '2026-01-08'::timestamp)"
            )
            .lines()
            .count(),
        3
    );
    Ok(())
}

#[test]
fn a_database_is_restored_whole_16() {
    require!(whole_restore(16));
}

#[test]
fn a_database_is_restored_whole_17() {
    require!(whole_restore(17));
}

#[test]
fn a_database_is_restored_whole_18() {
    require!(whole_restore(18));
}

#[test]
fn a_database_whose_extension_has_a_schema_of_its_own_is_restored_whole() {
    let cluster = require!(apache_server(16));
    cluster.psql("postgres", "CREATE DATABASE app TEMPLATE template0");
    cluster.psql(
        "app",
        "SET client_min_messages = warning; CREATE SCHEMA \"Time série\"; \
         CREATE EXTENSION timescaledb SCHEMA \"Time série\"; CREATE SCHEMA game; \
         CREATE TABLE game.events (t timestamptz NOT NULL, v int); \
         SELECT \"Time série\".create_hypertable('game.events', 't'); \
         INSERT INTO game.events SELECT '2026-01-01Z'::timestamptz + i * interval '1 day', i FROM generate_series(1, 100) i",
    );
    let before = state(&cluster, "app");
    block_on(async {
        let mut session = connect(&cluster, "app").await;
        let inventory = pgkeep_timescale::inventory(&mut session).await.unwrap();
        assert_eq!(inventory.schema, "Time série");
        let dumped = Dumped {
            inventory,
            foreign_keys: Vec::new(),
        };
        migration::restore(&cluster, "app", "restored", &dumped).await;
        assert_same_state(&state(&cluster, "restored"), &before);
        let mut session = connect(&cluster, "restored").await;
        assert_eq!(
            pgkeep_timescale::inventory(&mut session).await.unwrap(),
            dumped.inventory
        );
        assert_eq!(
            pgkeep_timescale::pending_deletions(&mut session).await.unwrap(),
            []
        );
    });
}

/// Jobs can't be made in this edition, but can be in a catalog that was loaded.
#[test]
fn jobs_are_held_and_released_without_the_functions_for_it() {
    let cluster = require!(apache_server(16));
    create_game(&cluster, "app");
    cluster.psql(
        "app",
        "INSERT INTO _timescaledb_config.bgw_job (id, application_name, schedule_interval, max_runtime, max_retries, \
         retry_period, proc_schema, proc_name, owner, scheduled, fixed_schedule) \
         VALUES (1000, 'one', '1 day', '0', -1, '1 h', 'public', 'nothing', 'postgres', true, false), \
         (1001, 'two', '1 day', '0', -1, '1 h', 'public', 'nothing', 'postgres', false, false)",
    );
    let scheduled = || {
        cluster.psql(
            "app",
            "SELECT id FROM _timescaledb_config.bgw_job WHERE scheduled AND id >= 1000",
        )
    };
    block_on(async {
        let mut session = connect(&cluster, "app").await;
        let held = pgkeep_timescale::hold_jobs(&mut session).await.unwrap();
        assert_eq!(held, [JobId(1000)]);
        assert_eq!(scheduled(), "");
        pgkeep_timescale::release_jobs(&mut session, &held, &[])
            .await
            .unwrap();
        assert_eq!(scheduled(), "1000");
        let inventory = pgkeep_timescale::inventory(&mut session).await.unwrap();
        assert!(inventory.needs_community());
        cluster.psql("postgres", "CREATE ROLE somebody");
        let mut dumped = inventory.clone();
        for owner in ["somebody", "nobody's \"role\""] {
            dumped.jobs.push(Job {
                owner: owner.to_owned(),
                ..Job::default()
            });
        }
        let missing = pgkeep_timescale::missing_job_owners(&mut session, &dumped)
            .await
            .unwrap();
        assert_eq!(missing, ["nobody's \"role\""]);
        let findings = check_target(&mut session, &dumped).await.unwrap();
        let role = findings
            .iter()
            .find(|finding| finding.what.contains("nobody"))
            .unwrap();
        assert!(role.mend.contains("CREATE ROLE"), "{role:?}");
    });
}

fn community_dump(version: &str) -> Inventory {
    let chunk = Chunk {
        is_compressed: true,
        status: 1,
        ..Chunk::default()
    };
    Inventory {
        version: version.to_owned(),
        schema: "public".to_owned(),
        license: License::Timescale,
        hypertables: vec![Hypertable {
            chunks: vec![chunk],
            ..Hypertable::default()
        }],
        jobs: vec![Job {
            owner: "postgres".to_owned(),
            scheduled: true,
            ..Job::default()
        }],
        ..Inventory::default()
    }
}

async fn blocking(cluster: &Cluster, database: &str, dumped: &Inventory) -> String {
    let mut session = connect(cluster, database).await;
    let findings = check_target(&mut session, dumped).await.unwrap();
    assert!(
        findings
            .iter()
            .all(|finding| !finding.mend.is_empty() && !finding.why.is_empty())
    );
    let blocking = findings
        .iter()
        .filter(|finding| finding.severity == Severity::Blocking);
    blocking
        .map(|finding| format!("{} [{}]\n", finding.what, finding.mend))
        .collect()
}

#[test]
fn a_target_that_does_not_suit_the_dump_is_named_beforehand() {
    let cluster = require!(apache_server(16));
    create_game(&cluster, "app");
    let version = cluster.psql(
        "app",
        "SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'",
    );
    block_on(async {
        let text = blocking(&cluster, "postgres", &community_dump("2.14.9")).await;
        assert!(
            text.contains("2.14.9 is not available") && text.contains(&version),
            "{text}"
        );
        // Without the extension in the database the missing library tells; with it, the setting does.
        let text = blocking(&cluster, "postgres", &community_dump(&version)).await;
        assert!(text.contains("timescaledb-tsl-"), "{text}");
        let text = blocking(&cluster, "app", &community_dump(&version)).await;
        assert!(text.contains("timescaledb.license = apache"), "{text}");
        let apache = Inventory {
            version: version.clone(),
            license: License::Apache,
            ..Inventory::default()
        };
        assert_eq!(blocking(&cluster, "app", &apache).await, "");
        assert_eq!(blocking(&cluster, "postgres", &apache).await, "");
    });
}

#[test]
fn a_role_without_rights_is_told_which_it_lacks() {
    let cluster = require!(apache_server(16));
    cluster.psql("postgres", "CREATE ROLE \"re-storer\" LOGIN");
    let version = cluster.psql(
        "postgres",
        "SELECT default_version FROM pg_available_extensions WHERE name = 'timescaledb'",
    );
    let dumped = Inventory {
        version,
        license: License::Apache,
        ..Inventory::default()
    };
    block_on(async {
        let mut session = connect(&cluster, "postgres").await;
        session
            .execute("SET SESSION AUTHORIZATION \"re-storer\"")
            .await
            .unwrap();
        let findings = check_target(&mut session, &dumped).await.unwrap();
        assert_eq!(findings.len(), 1, "{findings:?}");
        let statement = "GRANT SET ON PARAMETER timescaledb.restoring TO \"re-storer\"";
        assert!(findings[0].mend.contains(statement), "{findings:?}");
        cluster.psql("postgres", statement);
        assert_eq!(check_target(&mut session, &dumped).await.unwrap(), []);
    });
}

#[test]
fn a_server_without_timescaledb_is_told_what_it_lacks() {
    let settings = [("shared_preload_libraries", "auto_explain")];
    let mut options = ClusterOptions::new(16);
    for (name, value) in settings {
        options = options.setting(name, value);
    }
    let cluster = require!(Cluster::start(options));
    block_on(async {
        let text = blocking(&cluster, "postgres", &community_dump("2.17.2")).await;
        assert!(
            text.contains("= '\\''auto_explain'\\'', '\\''timescaledb'\\''"),
            "{text}"
        );
        assert!(
            text.contains("2.17.2 is not available on this server (none is)"),
            "{text}"
        );
        let mut session = connect(&cluster, "postgres").await;
        assert_eq!(pgkeep_timescale::detect(&mut session).await.unwrap(), None);
        let error = pgkeep_timescale::inventory(&mut session).await.unwrap_err();
        assert!(matches!(error, TimescaleError::NotInstalled), "{error}");
        assert!(error.hint().is_some());
    });
}

#[test]
fn too_few_workers_are_a_warning() {
    let options = ClusterOptions::new(16)
        .timescaledb()
        .setting("timescaledb.max_background_workers", "0");
    let cluster = require!(Cluster::start(options));
    block_on(async {
        let mut session = connect(&cluster, "postgres").await;
        let version = cluster.psql(
            "postgres",
            "SELECT default_version FROM pg_available_extensions WHERE name = 'timescaledb'",
        );
        let findings = check_target(&mut session, &community_dump(&version))
            .await
            .unwrap();
        let warnings: Vec<_> = findings
            .iter()
            .filter(|finding| finding.severity == Severity::Warning)
            .collect();
        assert_eq!(warnings.len(), 1, "{findings:?}");
        assert!(warnings[0].what.contains("max_background_workers is 0"));
        assert_eq!(findings.last(), Some(warnings[0]));
    });
}

#[test]
fn the_extension_is_created_as_dumped_or_not_at_all() {
    let cluster = require!(apache_server(16));
    let version = cluster.psql(
        "postgres",
        "SELECT default_version FROM pg_available_extensions WHERE name = 'timescaledb'",
    );
    cluster.create_database("app");
    block_on(async {
        let mut session = connect(&cluster, "app").await;
        pgkeep_timescale::create_extension(&mut session, &version, "Time série")
            .await
            .unwrap();
        pgkeep_timescale::create_extension(&mut session, &version, "Time série")
            .await
            .unwrap();
        let extension = pgkeep_timescale::detect(&mut session).await.unwrap().unwrap();
        assert_eq!(
            (extension.version.as_str(), extension.schema.as_str()),
            (version.as_str(), "Time série")
        );
        for (other_version, other_schema) in [("2.13.0", "Time série"), (version.as_str(), "public")] {
            let error = pgkeep_timescale::create_extension(&mut session, other_version, other_schema)
                .await
                .unwrap_err();
            assert!(
                matches!(error, TimescaleError::OtherExtensionPresent { .. }),
                "{error}"
            );
        }
        pgkeep_timescale::pre_restore(&mut session).await.unwrap();
        assert!(
            pgkeep_timescale::detect(&mut connect(&cluster, "app").await)
                .await
                .unwrap()
                .unwrap()
                .restoring
        );
        pgkeep_timescale::post_restore(&mut session).await.unwrap();
        assert!(
            !pgkeep_timescale::detect(&mut connect(&cluster, "app").await)
                .await
                .unwrap()
                .unwrap()
                .restoring
        );

        let mut fresh = connect(&cluster, "app").await;
        assert_eq!(
            pgkeep_timescale::update_extension(&mut fresh).await.unwrap(),
            version
        );
        let mut used = connect(&cluster, "app").await;
        used.execute("SET datestyle = 'ISO'").await.unwrap();
        let error = pgkeep_timescale::update_extension(&mut used).await.unwrap_err();
        assert!(matches!(error, TimescaleError::AlreadyLoaded), "{error}");
    });
}

/// The server answers without the library of the version, and wrongly.
#[test]
fn an_extension_without_its_library_is_not_relied_upon() {
    let cluster = require!(apache_server(16));
    create_game(&cluster, "app");
    cluster.psql("app", "ALTER DATABASE app SET timescaledb.disable_load = on");
    block_on(async {
        let mut session = connect(&cluster, "app").await;
        let extension = pgkeep_timescale::detect(&mut session).await.unwrap().unwrap();
        assert!(!extension.library_loaded);
        let error = pgkeep_timescale::inventory(&mut session).await.unwrap_err();
        assert!(
            matches!(error, TimescaleError::LibraryNotLoaded { .. }),
            "{error}"
        );
    });
}
