//! The fixture loads on every server, `pg_dump` and `pg_restore` bring it back equal in the referee's eyes, and the
//! referee sees every kind of change.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::process::Command;

use pgkeep_testkit::{
    Cluster, ClusterOptions, Missing,
    compare::{Inventory, InventoryOptions, assert_same_servers},
    fixtures::{DATABASES, Events, GameData},
    require, requirements,
};

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}

/// A second server with everything of the first, brought there by PostgreSQL's own programs.
fn copy_by_pg_dump(from: &Cluster, to: &Cluster, timescaledb: bool) {
    let scratch = tempfile::tempdir().unwrap();
    let globals = scratch.path().join("globals.sql");
    run(from
        .client_command("pg_dumpall")
        .arg("--globals-only")
        .arg("-f")
        .arg(&globals));
    // The superuser is there already.
    let text = std::fs::read_to_string(&globals)
        .unwrap()
        .replace("CREATE ROLE postgres;", "");
    to.psql("postgres", &text);
    // pg_dumpall leaves this one out; it would be a difference.
    to.psql("postgres", "ALTER ROLE ALL SET idle_session_timeout = '1d'");
    for database in DATABASES {
        let file = scratch.path().join(database);
        run(from
            .client_command("pg_dump")
            .args(["-Fc", "--create", "-f"])
            .arg(&file)
            .arg(database));
        let restore = || to.client_command("pg_restore");
        if timescaledb && database == "app" {
            // Two phases, because the extension has to be there before its catalog is filled.
            run(restore()
                .args([
                    "--create",
                    "--exit-on-error",
                    "-d",
                    "postgres",
                    "--section=pre-data",
                ])
                .arg(&file));
            to.psql("app", "SELECT public.timescaledb_pre_restore()");
            run(restore()
                .args([
                    "--exit-on-error",
                    "-d",
                    "app",
                    "--section=data",
                    "--section=post-data",
                ])
                .arg(&file));
            to.psql("app", "SELECT public.timescaledb_post_restore()");
        } else {
            run(restore()
                .args(["--create", "--exit-on-error", "-d", "postgres"])
                .arg(&file));
        }
    }
}

fn is_the_same_after_pg_dump(
    start: impl Fn() -> Result<Cluster, Missing>,
    events: Events,
) -> Result<(), Missing> {
    let (from, to) = (start()?, start()?);
    GameData::new(events).load(&from);
    copy_by_pg_dump(&from, &to, events != Events::Partitions);
    assert_same_servers(&from, &to, &DATABASES, &InventoryOptions::default());
    Ok(())
}

/// Jobs of a restored database run at once, whatever their first start was to be: here they would refresh a continuous
/// aggregate before it is compared.
fn community_without_jobs() -> Result<Cluster, Missing> {
    let server = requirements::community(None)?.swap_remove(0);
    let options = ClusterOptions::new(server.major)
        .timescaledb()
        .setting("timescaledb.max_background_workers", "0");
    Ok(Cluster::start_with(&server.bin, &options))
}

macro_rules! same_after_pg_dump {
    ($($name:ident: $start:expr, $events:expr;)*) => {
        $(#[test]
        fn $name() {
            require!(is_the_same_after_pg_dump(|| $start, $events));
        })*
    };
}

same_after_pg_dump! {
    postgresql_15: Cluster::start(ClusterOptions::new(15)), Events::Partitions;
    postgresql_16: Cluster::start(ClusterOptions::new(16)), Events::Partitions;
    postgresql_17: Cluster::start(ClusterOptions::new(17)), Events::Partitions;
    postgresql_18: Cluster::start(ClusterOptions::new(18)), Events::Partitions;
    timescaledb_on_16: Cluster::start(ClusterOptions::new(16).timescaledb()), Events::Hypertables;
    timescaledb_on_17: Cluster::start(ClusterOptions::new(17).timescaledb()), Events::Hypertables;
    timescaledb_on_18: Cluster::start(ClusterOptions::new(18).timescaledb()), Events::Hypertables;
    timescaledb_community: community_without_jobs(), Events::Community;
}

/// A change, and the item in which the referee must see it.
const CHANGES: &[(&str, &str)] = &[
    (
        "UPDATE game.players SET coins = coins + 1 WHERE id = 7",
        "table: game.players",
    ),
    (
        "UPDATE game.wide SET body = body || ' ' WHERE id = 3",
        "table: game.wide",
    ),
    (
        "INSERT INTO game.zero_columns DEFAULT VALUES",
        "table: game.zero_columns",
    ),
    ("DELETE FROM game.weapon WHERE id = 1001", "table: game.weapon"),
    (
        "UPDATE game.audit SET what = NULL WHERE id = 1",
        "table: game.audit",
    ),
    (
        "UPDATE game.purchase SET amount = 0 WHERE id = 1",
        "table: game.purchase",
    ),
    (
        "REFRESH MATERIALIZED VIEW game.not_populated",
        "table: game.not_populated",
    ),
    ("TRUNCATE game.unlogged", "table: game.unlogged"),
    (
        "DELETE FROM pgkeep_test_config.region WHERE name = 'us'",
        "table: pgkeep_test_config.region",
    ),
    (
        "SELECT setval('game.never_called', 7, true)",
        "sequence: game.never_called",
    ),
    ("SELECT lo_put(900003, 7, '\\x01')", "large object: 900003"),
    (
        "GRANT SELECT ON LARGE OBJECT 900001 TO grafana",
        "large object: 900001",
    ),
    ("COMMENT ON LARGE OBJECT 900002 IS 'x'", "large object: 900002"),
    (
        "DROP INDEX game.players_name_trgm",
        "schema: players_name_trgm; Type: INDEX; Schema: game; Owner: app_owner",
    ),
    (
        "ALTER TABLE game.empty OWNER TO dagster",
        "schema: empty; Type: TABLE; Schema: game; Owner: app_owner",
    ),
    (
        "REVOKE EXECUTE ON FUNCTION game.nested() FROM game_server",
        "schema: FUNCTION nested(); Type: ACL; Schema: game; Owner: app_owner",
    ),
    (
        "COMMENT ON FUNCTION game.nested() IS 'u'",
        "schema: FUNCTION nested(); Type: COMMENT; Schema: game; Owner: app_owner",
    ),
];

#[test]
fn the_referee_sees_every_change_and_nothing_else() {
    let cluster = require!(Cluster::start(ClusterOptions::default()));
    GameData::new(Events::Partitions).load(&cluster);
    cluster.psql("postgres", "CREATE DATABASE changed TEMPLATE app");
    let take = |database| Inventory::of_database(&cluster, database, &InventoryOptions::default());
    let before = take("app");
    assert_eq!(before.differences(&take("changed")), Vec::<String>::new());
    for (change, _) in CHANGES {
        cluster.psql("changed", change);
    }
    let differences = before.differences(&take("changed"));
    for (change, item) in CHANGES {
        let seen = differences.iter().any(|difference| difference.contains(item));
        assert!(seen, "{change} is not seen in {item}: {differences:#?}");
    }
    // The table with another owner, and what hangs on it, have other names: the only further ones.
    let unexpected: Vec<_> = differences
        .iter()
        .filter(|difference| !CHANGES.iter().any(|(_, item)| difference.contains(item)))
        .filter(|difference| !difference.contains("empty"))
        .collect();
    assert!(unexpected.is_empty(), "{unexpected:#?}");
}

#[test]
fn the_referee_sees_changes_of_hypertables() {
    let cluster = require!(Cluster::start(ClusterOptions::new(16).timescaledb()));
    GameData::new(Events::Hypertables).load(&cluster);
    let take = || Inventory::of_database(&cluster, "app", &InventoryOptions::default());
    let before = take();
    let chunks = before.names().filter(|name| name.starts_with("chunk: ")).count();
    assert!(chunks > 30, "{chunks} chunks");
    cluster.psql(
        "app",
        "SELECT drop_chunks('game.events', older_than => timestamptz '2024-03-02 UTC')",
    );
    cluster.psql("app", "SELECT set_chunk_time_interval('game.tick', 500)");
    let after = take();
    let differences = before.differences(&after).join("\n");
    for item in [
        "only in the first: chunk: _timescaledb_internal.",
        "differs: hypertable: game.events",
        "differs: table: game.events",
        "differs: dimension: game.tick 1",
    ] {
        assert!(differences.contains(item), "{item} is not in:\n{differences}");
    }
    let only_chunk = before
        .differences(&after)
        .iter()
        .filter(|difference| difference.contains("only in the first: chunk"))
        .count();
    assert_eq!(only_chunk, 1, "{differences}");
}

#[test]
fn the_referee_sees_changes_of_roles_and_databases() {
    let cluster = require!(Cluster::start(ClusterOptions::default()));
    GameData::new(Events::Partitions).load(&cluster);
    let before = Inventory::of_globals(&cluster);
    for (change, item) in [
        ("ALTER ROLE grafana PASSWORD 'other'", "role: grafana"),
        (
            "REVOKE app_read FROM app_write",
            "membership: app_write in app_read",
        ),
        (
            "ALTER ROLE dagster IN DATABASE dagster RESET ALL",
            "setting: dagster in dagster",
        ),
        ("ALTER DATABASE app CONNECTION LIMIT 7", "database: app"),
        (
            "GRANT CONNECT ON DATABASE dagster TO grafana",
            "database: dagster",
        ),
    ] {
        cluster.psql("postgres", change);
        let differences = before.differences(&Inventory::of_globals(&cluster));
        assert!(
            differences.iter().any(|difference| difference.contains(item)),
            "{change}: {differences:#?}"
        );
    }
    assert_eq!(before.differences(&Inventory::of_globals(&cluster)).len(), 5);
}
