//! Databases, roles and servers whose own settings would stop a restore.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use pgkeep_testkit::{Cluster, ClusterOptions, require};

/// What comes with the dump.
const DUMPED: &str = "
    ALTER DATABASE app SET default_transaction_read_only = on;
    ALTER DATABASE app SET default_transaction_isolation = 'serializable';
    ALTER DATABASE app SET lock_timeout = '1ms';
    ALTER DATABASE app SET standard_conforming_strings = off;
    ALTER DATABASE app SET session_replication_role = 'replica'";

/// What only a database in the target has: no time, another role, other operators.
const HOSTILE: &str = "
    CREATE ROLE nobody NOLOGIN;
    ALTER DATABASE app SET statement_timeout = '15ms';
    ALTER DATABASE app SET idle_in_transaction_session_timeout = '1ms';
    ALTER DATABASE app SET idle_session_timeout = '50ms';
    ALTER DATABASE app SET search_path = 'hidden', 'pg_catalog';
    ALTER ROLE postgres IN DATABASE app SET role = 'nobody'";

const CONTENTS: &str = "
    CREATE TABLE parent (id int PRIMARY KEY); INSERT INTO parent VALUES (1);
    CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent, path text DEFAULT E'a\\\\b');
    INSERT INTO child SELECT i, 1 FROM generate_series(1, 20000) i;
    CREATE SCHEMA hidden;
    CREATE FUNCTION hidden.never(name, text) RETURNS boolean LANGUAGE sql RETURN false;
    CREATE OPERATOR hidden.= (LEFTARG = name, RIGHTARG = text, FUNCTION = hidden.never);
    SELECT lo_from_bytea(77, 'a large object') \\g /dev/null";

/// Connects without those settings.
fn look(cluster: &Cluster, sql: &str) -> String {
    let reset = "SET statement_timeout = 0; SET search_path = public; RESET ROLE; SET role = none; \
                 SET default_transaction_read_only = off; SET idle_session_timeout = 0";
    cluster.psql("app", &format!("{reset}; {sql}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_settings_of_a_database_keep_no_restore_from_its_end() {
    let source = require!(Cluster::start(ClusterOptions::default()));
    source.create_database("app");
    source.psql("app", CONTENTS);
    source.psql("postgres", DUMPED);
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), false).await;
    let mut dumping = common::dump_options(&source);
    dumping.databases = vec!["app".to_owned()];
    let id = common::dump(&repository, &source, &dumping).await.unwrap().id;

    let mut options = ClusterOptions::default();
    options
        .settings
        .push(("statement_timeout".to_owned(), "20ms".to_owned()));
    let destination = require!(Cluster::start(options));
    let mut options = common::restore_options(&destination);
    let report = common::restore(&repository, &id, &destination, &options)
        .await
        .unwrap();
    assert_eq!(report.databases.len(), 1);
    assert_eq!(
        look(
            &destination,
            "SHOW session_replication_role; SELECT count(*) FROM child"
        ),
        "replica\n20000"
    );
    assert_eq!(
        look(
            &destination,
            "SELECT count(*) FROM pg_namespace WHERE nspname = 'pgkeep_restore'"
        ),
        "0"
    );

    // Now they are there from the beginning, and worse ones.
    destination.psql("postgres", HOSTILE);
    look(&destination, "DROP TABLE child");
    options.tables = vec!["public.child".to_owned()];
    common::restore(&repository, &id, &destination, &options)
        .await
        .unwrap();
    assert_eq!(
        look(
            &destination,
            "SELECT (SELECT count(*) FROM child), (SELECT count(*) FROM pg_constraint WHERE conrelid = 'child'::regclass AND contype = 'f'),
               (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'child'::regclass)"
        ),
        "20000|1|postgres"
    );

    // And a restore that is gone on with after they came.
    look(
        &destination,
        &format!(
            "{}; UPDATE pgkeep_restore.restore SET dump = '{id}', database = 'app';
             INSERT INTO pgkeep_restore.step VALUES ('pre-data'), ('configuration'), ('data'), ('sequences'), ('post-data begun')",
            common::HALF_RESTORED
        ),
    );
    options.tables.clear();
    options.resume = true;
    common::restore(&repository, &id, &destination, &options)
        .await
        .unwrap();
    assert_eq!(
        look(&destination, "SELECT convert_from(lo_get(77), 'UTF8')"),
        "a large object"
    );
}
