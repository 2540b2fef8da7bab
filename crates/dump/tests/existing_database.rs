//! Databases that are there already, and hold nothing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use pgkeep_base::BackupId;
use pgkeep_dump::DumpError;
use pgkeep_repository::Repository;
use pgkeep_testkit::{Cluster, ClusterOptions, require};

const PROPERTIES: &str = "
    CREATE ROLE \"Odd owner\"; CREATE ROLE reader; CREATE ROLE passing;
    CREATE DATABASE app OWNER \"Odd owner\" TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C';
    COMMENT ON DATABASE app IS 'it''s the app';
    ALTER DATABASE app SET app.motto TO 'it''s';
    ALTER ROLE passing IN DATABASE app SET work_mem TO '3MB';
    ALTER DATABASE app CONNECTION LIMIT 17;
    REVOKE ALL ON DATABASE app FROM PUBLIC;
    GRANT CONNECT ON DATABASE app TO reader";

fn properties(cluster: &Cluster, database: &str) -> String {
    cluster.psql(
        "postgres",
        &format!(
            "SELECT pg_get_userbyid(datdba), datacl, datconnlimit, shobj_description(oid, 'pg_database'), pg_encoding_to_char(encoding),
               datcollate, (SELECT array_agg((coalesce(rolname, '-'), setconfig)::text ORDER BY 1) FROM pg_db_role_setting
                 LEFT JOIN pg_roles r ON r.oid = setrole WHERE setdatabase = d.oid)
             FROM pg_database d WHERE datname = '{database}'"
        ),
    )
}

async fn dumped(cluster: &Cluster) -> (tempfile::TempDir, Repository, BackupId) {
    cluster.psql("postgres", PROPERTIES);
    cluster.psql("app", "CREATE TABLE t AS SELECT 'ä' AS text");
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), false).await;
    let mut options = common::dump_options(cluster);
    options.databases = vec!["app".to_owned()];
    let report = common::dump(&repository, cluster, &options).await.unwrap();
    (folder, repository, report.id)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_database_becomes_the_dumped_one() {
    let cluster = require!(Cluster::start(ClusterOptions::default()));
    let (_folder, repository, id) = dumped(&cluster).await;
    cluster.psql(
        "postgres",
        "CREATE DATABASE copy TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'",
    );
    let mut options = common::restore_options(&cluster);
    options.target_database = Some("copy".to_owned());
    let restored = common::restore(&repository, &id, &cluster, &options)
        .await
        .unwrap();
    assert!(restored.attention.is_empty(), "{:?}", restored.attention);
    assert_eq!(properties(&cluster, "copy"), properties(&cluster, "app"));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_locale_is_told_and_another_encoding_refused() {
    let cluster = require!(Cluster::start(ClusterOptions::default()));
    let (_folder, repository, id) = dumped(&cluster).await;
    let mut options = common::restore_options(&cluster);
    cluster.psql(
        "postgres",
        "CREATE DATABASE other TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C.UTF-8'; CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'",
    );
    options.target_database = Some("other".to_owned());
    let restored = common::restore(&repository, &id, &cluster, &options)
        .await
        .unwrap();
    assert_eq!(restored.attention.len(), 1, "{:?}", restored.attention);
    assert!(
        restored.attention[0].contains("its locale is libc C.utf8 C.utf8, and the dumped one's was libc C C"),
        "{:?}",
        restored.attention
    );

    options.target_database = Some("latin".to_owned());
    let refused = common::restore(&repository, &id, &cluster, &options)
        .await
        .unwrap_err();
    assert!(matches!(refused, DumpError::Refused { .. }), "{refused}");
    assert!(
        refused.to_string().contains("its encoding is LATIN1"),
        "{refused}"
    );
    options.overwrite = true;
    let restored = common::restore(&repository, &id, &cluster, &options)
        .await
        .unwrap();
    assert!(restored.attention.is_empty(), "{:?}", restored.attention);
    assert_eq!(properties(&cluster, "latin"), properties(&cluster, "app"));
}

/// Roles that are missing and aren't to be made are named.
#[tokio::test(flavor = "multi_thread")]
async fn what_needs_a_missing_role_is_told() {
    let cluster = require!(Cluster::start(ClusterOptions::default()));
    let destination = require!(Cluster::start(ClusterOptions::default()));
    let (_folder, repository, id) = dumped(&cluster).await;
    let mut options = common::restore_options(&destination);
    options.roles = false;
    let restored = common::restore(&repository, &id, &destination, &options)
        .await
        .unwrap();
    let told = restored.attention.join("\n");
    for expected in [
        "there is no role 'Odd owner': ALTER DATABASE \"app\" OWNER TO \"Odd owner\"",
        "there is no role 'passing': ALTER ROLE \"passing\" IN DATABASE \"app\" SET \"work_mem\"",
        "there is no role 'reader': GRANT CONNECT ON DATABASE \"app\" TO \"reader\"",
    ] {
        assert!(told.contains(expected), "no '{expected}' in {told}");
    }
}

/// A database that single tables made has the properties of the dumped one, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_made_for_single_tables_has_the_properties() {
    let cluster = require!(Cluster::start(ClusterOptions::default()));
    let (_folder, repository, id) = dumped(&cluster).await;
    let mut options = common::restore_options(&cluster);
    options.tables = vec!["t".to_owned()];
    options.target_database = Some("made".to_owned());
    common::restore(&repository, &id, &cluster, &options)
        .await
        .unwrap();
    assert_eq!(properties(&cluster, "made"), properties(&cluster, "app"));
}
