//! Faults of servers, databases and roles.

use pgkeep_testkit::{Cluster, ClusterOptions, StopMode, require};

use super::{is_gone, problem, problems, run_mend};
use crate::support::{PASSWORD, Place, server_with};

/// A fault that SQL makes, and that the printed command mends.
struct Fault {
    /// Where it is made, and how.
    made: (&'static str, &'static str),
    /// As whom the doctor looks.
    role: &'static str,
    severity: &'static str,
    /// In the finding's text.
    says: &'static str,
    /// In the mend's.
    mend: &'static str,
    /// Undoes what the mend did, where that would hide the next fault.
    undo: &'static str,
}

const READER: Fault = Fault {
    made: ("app", ""),
    role: "reader",
    severity: "error",
    says: "",
    mend: "",
    undo: "",
};
const SUPERUSER: Fault = Fault {
    role: "postgres",
    severity: "warning",
    ..READER
};

const MARK: &str = "CREATE SCHEMA pgkeep_restore;
    CREATE TABLE pgkeep_restore.restore (dump text, database text, whole boolean);
    CREATE TABLE pgkeep_restore.step (name text);
    CREATE TABLE pgkeep_restore.relation (place bigint, rows bigint);";

const FAULTS: &[Fault] = &[
    Fault {
        made: ("app", "CREATE TABLE \"it's secret\" (i int)"),
        says: "'reader' may not read the table public.it's secret of database 'app'",
        mend: "GRANT SELECT ON \"public\".\"it",
        ..READER
    },
    Fault {
        made: (
            "app",
            "CREATE SCHEMA hidden; CREATE TABLE hidden.t (i int); GRANT SELECT ON hidden.t TO reader",
        ),
        says: "'reader' may not use the schema hidden of database 'app'",
        mend: "GRANT USAGE ON SCHEMA \"hidden\" TO \"reader\"",
        ..READER
    },
    Fault {
        made: ("app", "CREATE SEQUENCE counter"),
        says: "'reader' may not read the sequence public.counter",
        mend: "GRANT SELECT ON SEQUENCE",
        ..READER
    },
    Fault {
        made: ("app", "SELECT lo_create(4242)"),
        says: "'reader' may not read the large object 4242",
        mend: "GRANT SELECT ON LARGE OBJECT 4242",
        ..READER
    },
    Fault {
        made: ("app", "SELECT lo_create(4243), lo_create(4244)"),
        says: "'reader' may not read 2 large objects",
        mend: "pg_largeobject_metadata",
        ..READER
    },
    Fault {
        made: (
            "app",
            "CREATE TABLE a1 (i int); CREATE TABLE a2 (i int); CREATE TABLE a3 (i int); CREATE TABLE a4 (i int)",
        ),
        says: "may not read the tables public.a1, public.a2, public.a3 and 1 more",
        mend: "GRANT pg_read_all_data TO \"reader\"",
        undo: "REVOKE pg_read_all_data FROM reader; GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader",
        ..READER
    },
    Fault {
        made: ("app", "ALTER TABLE players ENABLE ROW LEVEL SECURITY"),
        says: "row-level security hides rows of public.players from 'reader'",
        mend: "ALTER ROLE \"reader\" BYPASSRLS",
        ..READER
    },
    Fault {
        made: ("app", "ALTER ROLE reader CONNECTION LIMIT 3"),
        says: "'reader' may have 3 connections",
        mend: "CONNECTION LIMIT -1",
        ..READER
    },
    Fault {
        made: ("postgres", "REVOKE CONNECT ON DATABASE app FROM PUBLIC"),
        says: "permission denied for database \"app\"",
        mend: "GRANT CONNECT ON DATABASE \"app\" TO \"reader\"",
        ..READER
    },
    Fault {
        made: ("postgres", "ALTER DATABASE app CONNECTION LIMIT 0"),
        says: "too many connections for database \"app\"",
        mend: "ALTER DATABASE \"app\" CONNECTION LIMIT -1",
        ..READER
    },
    Fault {
        made: ("postgres", "CREATE DATABASE closed ALLOW_CONNECTIONS false"),
        says: "database 'closed' takes no connections",
        mend: "ALTER DATABASE \"closed\" ALLOW_CONNECTIONS true",
        ..SUPERUSER
    },
    Fault {
        made: (
            "postgres",
            "CREATE DATABASE torn; UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'torn'",
        ),
        says: "database 'torn' is what an interrupted DROP DATABASE left",
        mend: "DROP DATABASE \"torn\"",
        ..SUPERUSER
    },
    Fault {
        made: (
            "half",
            "INSERT INTO pgkeep_restore.restore VALUES ('d1', 'half', false)",
        ),
        says: "database 'half' holds an unfinished restore of dump d1",
        mend: "DROP SCHEMA pgkeep_restore CASCADE",
        ..SUPERUSER
    },
    Fault {
        made: (
            "whole",
            "INSERT INTO pgkeep_restore.restore VALUES ('d2', 'whole', true)",
        ),
        says: "database 'whole' holds an unfinished restore of dump d2",
        mend: "DROP DATABASE \"whole\"",
        ..SUPERUSER
    },
];

fn as_role(cluster: &Cluster, role: &str) -> String {
    format!(
        "host=127.0.0.1 port={} user={role} dbname=postgres",
        cluster.port()
    )
}

/// A server whose databases `reader` may read, and a place whose repository is on another disk than its data, where there
/// is one in memory.
fn patient(options: ClusterOptions) -> (Cluster, Place) {
    let cluster = server_with(options);
    cluster.psql(
        "app",
        "CREATE ROLE reader LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader;
         GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO reader",
    );
    let place = Place::in_memory();
    place.configure(&cluster, &place.repository_url(), None);
    (cluster, place)
}

#[test]
fn what_is_wrong_with_databases_and_roles_is_found_and_mended_as_printed() {
    let (cluster, place) = patient(ClusterOptions::default());
    let sound = problems(
        &place,
        &[
            "--connection",
            &as_role(&cluster, "reader"),
            "--set",
            "dump.jobs=2",
        ],
    );
    assert!(
        sound.iter().all(|problem| problem.what.contains("same disk")),
        "{sound:#?}"
    );
    for database in ["half", "whole"] {
        cluster.create_database(database);
        cluster.psql(database, MARK);
        // Not a mark yet: nothing is in it.
        cluster.psql(
            database,
            "GRANT USAGE ON SCHEMA pgkeep_restore TO reader; \
            GRANT SELECT ON ALL TABLES IN SCHEMA pgkeep_restore TO reader",
        );
    }
    for fault in FAULTS {
        let (database, sql) = fault.made;
        cluster.psql(database, sql);
        let connection = as_role(&cluster, fault.role);
        let args = ["--connection", &connection, "--set", "dump.jobs=2"];
        let found = problem(&place, &args, fault.severity, fault.says);
        assert!(found.mend.contains(fault.mend), "{found:?}");
        run_mend(&place, &cluster, &found.mend);
        is_gone(&place, &args, fault.says);
        cluster.psql("app", fault.undo);
    }
}

#[test]
fn a_connection_that_fails_says_what_to_correct() {
    let options = ClusterOptions::default()
        .hba_line("host all guarded 127.0.0.1/32 scram-sha-256")
        .hba_line("host all barred 127.0.0.1/32 reject");
    let (cluster, place) = patient(options);
    cluster.psql(
        "postgres",
        &format!("CREATE ROLE guarded LOGIN SUPERUSER PASSWORD '{PASSWORD}'; CREATE ROLE barred LOGIN"),
    );
    let at = |rest: &str| format!("host=127.0.0.1 port={} {rest}", cluster.port());
    let found = |connection: &str, says: &str| problem(&place, &["--connection", connection], "error", says);

    let missing = found(
        &at("user=nobody dbname=postgres"),
        "role \"nobody\" does not exist",
    );
    assert!(
        missing.mend.contains("CREATE ROLE \"nobody\" LOGIN"),
        "{missing:?}"
    );
    let barred = found(&at("user=barred dbname=postgres"), "pg_hba.conf");
    assert!(barred.mend.contains("pg_hba.conf"), "{barred:?}");
    let wrong = found(
        &at("user=guarded dbname=postgres password=other"),
        "password authentication failed",
    );
    assert!(
        wrong.mend.contains("came from the connection string"),
        "{wrong:?}"
    );
    let none = found(&at("user=guarded dbname=postgres"), "guarded");
    assert!(none.mend.contains("~/.pgpass"), "{none:?}");
    let nowhere = found(
        &at("user=postgres dbname=nowhere"),
        "database \"nowhere\" does not exist",
    );
    assert!(nowhere.mend.starts_with("psql "), "{nowhere:?}");
    run_mend(&place, &cluster, &nowhere.mend);

    let named = ["--set", "dump.databases=nowhere,app"];
    let unnamed = problem(&place, &named, "error", "there is no database 'nowhere'");
    assert!(
        unnamed.mend.contains("app, postgres") || unnamed.mend.contains("postgres, app"),
        "{unnamed:?}"
    );

    // A password file that everybody may read isn't read by anybody.
    let passfile = place.path("passwords");
    std::fs::write(&passfile, format!("*:*:*:guarded:{PASSWORD}\n")).unwrap();
    let connection = at(&format!(
        "user=guarded dbname=postgres passfile={}",
        passfile.display()
    ));
    let args = ["--connection", &connection];
    let open = problem(
        &place,
        &args,
        "warning",
        "is not used: group or others have access",
    );
    run_mend(&place, &cluster, &open.mend);
    is_gone(&place, &args, "guarded");
    is_gone(&place, &args, "is not used");
}

#[test]
fn limits_that_a_dump_would_run_into_are_found() {
    let options = ClusterOptions::default()
        .setting("max_locks_per_transaction", "10")
        .setting("max_connections", "20");
    let (mut cluster, place) = patient(options);
    cluster.create_database("wide");
    let tables: String = (0..240)
        .map(|i| format!("CREATE TABLE t{i} (i int);\n"))
        .collect();
    cluster.psql("wide", &tables);
    let says = "the server has room for 200 locks";
    let found = problem(&place, &[], "warning", says);
    run_mend(&place, &cluster, &found.mend);
    assert!(found.mend.contains("then restart the server"), "{found:?}");
    cluster.restart(StopMode::Fast);
    is_gone(&place, &[], says);

    let many = problem(
        &place,
        &["--set", "dump.jobs=30"],
        "error",
        "lets 20 connections in",
    );
    assert!(many.mend.starts_with("pgkeep dump --jobs 18 "), "{many:?}");
    let _held: Vec<_> = (0..8).map(|_| cluster.session("postgres")).collect();
    let taken = problem(
        &place,
        &["--set", "dump.jobs=16"],
        "warning",
        "connections are taken now",
    );
    assert!(taken.mend.starts_with("pgkeep dump --jobs "), "{taken:?}");
    is_gone(&place, &["--set", "dump.jobs=4"], "connections");
    drop(_held);

    // Limits of time are no fault, because a dump's sessions switch them off; and it does.
    cluster.psql(
        "app",
        "GRANT pg_read_all_data TO reader; ALTER ROLE reader SET statement_timeout = '200ms';
         ALTER ROLE reader SET idle_in_transaction_session_timeout = '200ms'; ALTER ROLE reader SET lock_timeout = '200ms';
         ALTER ROLE reader SET idle_session_timeout = '200ms'; CREATE TABLE slow (i int);
         INSERT INTO slow SELECT generate_series(1, 400000)",
    );
    let connection = as_role(&cluster, "reader");
    let args = ["--connection", &connection, "--set", "dump.jobs=2"];
    is_gone(&place, &args, "timeout");
    let told = place.run(&[&["doctor"], &args[..]].concat());
    assert!(
        told.stdout.contains("statement_timeout = 200ms"),
        "{}",
        told.stdout
    );
    place
        .run(&[&["dump", "--upload-limit", "3MB/s"], &args[..]].concat())
        .expect(0);
}

#[test]
fn a_standby_is_dumped_and_its_cancelling_of_queries_is_told() {
    let (mut cluster, place) = patient(ClusterOptions::default());
    cluster.stop(StopMode::Fast);
    // Without a primary to follow it replays what it has, and waits.
    cluster.write_file("standby.signal", "");
    cluster.start_again();
    let says = "the standby ends queries that are in the way of replay after 30 s";
    let found = problem(&place, &[], "warning", says);
    run_mend(&place, &cluster, &found.mend);
    let reloaded = std::time::Duration::from_secs(30);
    pgkeep_testkit::poll_until("the new setting", reloaded, || {
        cluster.psql("postgres", "SHOW max_standby_streaming_delay") == "-1"
    });
    is_gone(&place, &[], says);
    let told = place.run(&["doctor"]);
    assert!(told.stdout.contains("the server is a standby"), "{}", told.stdout);
    place.dump();
}

#[test]
fn timescaledb_that_is_not_as_it_should_be_is_found() {
    let mut cluster = require!(Cluster::start(ClusterOptions::default().timescaledb()));
    cluster.create_database("app");
    cluster.psql(
        "app",
        "CREATE EXTENSION timescaledb; CREATE TABLE m (t timestamptz NOT NULL, v int);
         SELECT create_hypertable('m', 't'); INSERT INTO m SELECT now(), 1",
    );
    let place = Place::in_memory();
    place.configure(&cluster, &place.repository_url(), None);
    is_gone(&place, &[], "app");

    cluster.psql("app", "SELECT timescaledb_pre_restore()");
    let restoring = "is in TimescaleDB's restore mode";
    let found = problem(&place, &[], "warning", restoring);
    run_mend(&place, &cluster, &found.mend);
    is_gone(&place, &[], restoring);

    cluster.set("shared_preload_libraries", "");
    cluster.restart(StopMode::Fast);
    let unloaded = "and the server doesn't load it";
    let found = problem(&place, &[], "error", unloaded);
    run_mend(&place, &cluster, &found.mend);
    cluster.restart(StopMode::Fast);
    is_gone(&place, &[], unloaded);

    let version = cluster.psql(
        "app",
        "SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'",
    );
    let set_version = |version: &str| {
        let sql = format!("UPDATE pg_extension SET extversion = '{version}' WHERE extname = 'timescaledb'");
        cluster.psql("postgres", "ALTER DATABASE app SET timescaledb.disable_load = on");
        cluster.psql("app", &sql);
        cluster.psql("postgres", "ALTER DATABASE app RESET timescaledb.disable_load");
    };
    set_version("2.13.1");
    let other = problem(
        &place,
        &[],
        "error",
        "TimescaleDB's library of its version isn't on the server",
    );
    assert!(
        other.mend.contains("ALTER EXTENSION timescaledb UPDATE"),
        "{other:?}"
    );
    set_version(&version);
    is_gone(&place, &[], "TimescaleDB");
}

#[test]
fn a_server_that_would_wait_for_ever_or_not_at_all_is_told() {
    let cluster = server_with(ClusterOptions::default().setting("synchronous_commit", "remote_apply"));
    let place = Place::with(&cluster, None);
    let args = ["--set", "wal.synchronous=true"];
    let found = problem(&place, &args, "warning", "waits for ever");
    assert!(found.mend.contains("synchronous_commit = 'on'"), "{found:?}");
    let found = problem(&place, &args, "warning", "synchronous_standby_names lacks pgkeep");
    assert!(
        found.mend.contains("synchronous_standby_names = 'pgkeep'"),
        "{found:?}"
    );
    is_gone(&place, &[], "waits for ever");
}
