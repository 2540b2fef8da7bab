//! Databases that are there already, and hold nothing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::Arc;

use pgkeep_base::{BackupId, Classified};
use pgkeep_dump::DumpError;
use pgkeep_dump::restore::restore;
use pgkeep_pg::{Conninfo, Environment};
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

/// Whatever is restored into a template would be in every new database.
#[tokio::test(flavor = "multi_thread")]
async fn templates_are_refused_whatever_the_user_gives_up() {
    let cluster = require!(Cluster::start(ClusterOptions::default()));
    let (_folder, repository, id) = dumped(&cluster).await;
    for name in ["template0", "template1"] {
        let mut options = common::restore_options(&cluster);
        options.target_database = Some(name.to_owned());
        options.overwrite = true;
        let refused = common::restore(&repository, &id, &cluster, &options)
            .await
            .unwrap_err();
        assert!(matches!(refused, DumpError::Refused { .. }), "{refused}");
    }
}

/// What an interrupted DROP DATABASE left can be replaced, and what takes no connections.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_can_connect_to_is_refused_or_replaced() {
    let cluster = require!(Cluster::start(ClusterOptions::default()));
    let (_folder, repository, id) = dumped(&cluster).await;
    let mut options = common::restore_options(&cluster);
    options.target_database = Some("there".to_owned());
    for (state, words, mend) in [
        (
            "UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'there'",
            "is what an interrupted DROP DATABASE left",
            "DROP DATABASE \"there\"",
        ),
        (
            "ALTER DATABASE there ALLOW_CONNECTIONS false",
            "takes no connections",
            "ALLOW_CONNECTIONS true",
        ),
    ] {
        cluster.create_database("there");
        cluster.psql("postgres", state);
        options.overwrite = false;
        let refused = common::restore(&repository, &id, &cluster, &options)
            .await
            .unwrap_err();
        assert!(matches!(refused, DumpError::Refused { .. }), "{refused}");
        let hint = refused.hint().unwrap().to_string();
        assert!(refused.to_string().contains(words), "{refused}");
        assert!(hint.contains(mend) && hint.contains("--overwrite"), "{hint}");
        options.overwrite = true;
        let plan = common::check(&repository, &id, &cluster, &options).await.unwrap();
        let does = &plan.databases[0].does;
        assert!(
            does.starts_with("is dropped and made again") && does.contains(words),
            "{does}"
        );
        common::restore(&repository, &id, &cluster, &options)
            .await
            .unwrap();
        assert_eq!(cluster.psql("there", "SELECT text FROM t").trim(), "ä");
        cluster.psql("postgres", "DROP DATABASE there");
    }
}

const ROLES: &str = "
    CREATE ROLE app_owner; CREATE ROLE app_group; CREATE ROLE app_login LOGIN; CREATE ROLE reader; CREATE ROLE policy_role;
    CREATE ROLE other_owner; CREATE ROLE other_group; CREATE ROLE nobody;
    GRANT app_group TO app_owner; GRANT app_owner, other_group TO app_login; GRANT app_group TO nobody;
    CREATE DATABASE app OWNER app_owner; CREATE DATABASE other OWNER other_owner";

/// One database brings the roles that it uses and their members; the next one, the rest, with what was missing of memberships.
#[tokio::test(flavor = "multi_thread")]
async fn one_database_brings_its_roles_and_no_others() {
    let source = require!(Cluster::start(ClusterOptions::default()));
    let destination = require!(Cluster::start(ClusterOptions::default()));
    source.psql("postgres", ROLES);
    source.psql(
        "app",
        "CREATE TABLE t (n int); ALTER TABLE t OWNER TO app_owner; GRANT SELECT ON t TO reader;
         ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON t TO policy_role USING (true)",
    );
    source.psql(
        "other",
        "CREATE TABLE t (n int); GRANT SELECT ON t TO other_group",
    );
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), false).await;
    let report = common::dump(&repository, &source, &common::dump_options(&source))
        .await
        .unwrap();
    let mut options = common::restore_options(&destination);
    options.databases = vec!["app".to_owned()];
    let expected = ["app_group", "app_login", "app_owner", "policy_role", "reader"];
    let left_out = ["nobody", "other_group", "other_owner"];
    let plan = common::check(&repository, &report.id, &destination, &options)
        .await
        .unwrap();
    assert_eq!(plan.roles, expected);
    assert_eq!(plan.roles_left_out, left_out);
    let restored = common::restore(&repository, &report.id, &destination, &options)
        .await
        .unwrap();
    assert!(restored.attention.is_empty(), "{:?}", restored.attention);
    assert_eq!(restored.roles_created, expected);
    assert_eq!(restored.roles_left_out, left_out);
    options.databases = vec!["other".to_owned()];
    let restored = common::restore(&repository, &report.id, &destination, &options)
        .await
        .unwrap();
    assert_eq!(restored.roles_created, ["other_group", "other_owner"]);
    let member = "SELECT pg_has_role('app_login', 'other_group', 'MEMBER')";
    assert_eq!(destination.psql("postgres", member).trim(), "t");
    options.all_roles = true;
    let plan = common::check(&repository, &report.id, &destination, &{
        let mut options = options.clone();
        options.target_database = Some("third".to_owned());
        options
    })
    .await
    .unwrap();
    assert_eq!(plan.roles, ["nobody"]);
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

const POST_DATA: &str = "
    CREATE SCHEMA shop; CREATE DOMAIN shop.positive AS int;
    CREATE TABLE shop.t (a int PRIMARY KEY, b shop.positive); INSERT INTO shop.t VALUES (-1, 2);
    ALTER DOMAIN shop.positive ADD CONSTRAINT above CHECK (value > 0) NOT VALID;
    CREATE INDEX a ON shop.t (a); CREATE INDEX \"a b\" ON shop.t (a, b);
    CREATE STATISTICS shop.s ON a, b FROM shop.t;
    CREATE PUBLICATION tables FOR TABLE shop.t; CREATE PUBLICATION schemas FOR TABLES IN SCHEMA shop;
    CREATE SUBSCRIPTION elsewhere CONNECTION 'host=nowhere.invalid' PUBLICATION p WITH (connect = false)";

/// Killed when all was made and nothing of it noted: what is there isn't made again, and what isn't there is.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_is_resumed_whatever_of_the_post_data_is_there() {
    let source = require!(Cluster::start(ClusterOptions::default()));
    let destination = require!(Cluster::start(ClusterOptions::default()));
    source.create_database("app");
    source.psql("app", POST_DATA);
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), false).await;
    let mut options = common::dump_options(&source);
    options.databases = vec!["app".to_owned()];
    let report = common::dump(&repository, &source, &options).await.unwrap();
    let mut options = common::restore_options(&destination);
    common::restore(&repository, &report.id, &destination, &options)
        .await
        .unwrap();
    destination.psql(
        "app",
        &format!(
            "DROP INDEX shop.\"a b\"; {}; UPDATE pgkeep_restore.restore SET dump = '{}', database = 'app';
             INSERT INTO pgkeep_restore.step VALUES ('pre-data'), ('configuration'), ('data'), ('sequences'), ('post-data begun')",
            common::HALF_RESTORED, report.id
        ),
    );
    options.resume = true;
    let restored = common::restore(&repository, &report.id, &destination, &options).await;
    restored.unwrap();
    let there = "SELECT string_agg(indexrelid::regclass::text, ',' ORDER BY indexrelid::regclass::text) FROM pg_index WHERE indrelid = 'shop.t'::regclass";
    assert_eq!(destination.psql("app", there), source.psql("app", there));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_is_replaced_like_any_other_database() {
    let cluster = require!(Cluster::start(ClusterOptions::default()));
    let (_folder, repository, id) = dumped(&cluster).await;
    cluster.psql("postgres", "CREATE DATABASE model IS_TEMPLATE true");
    cluster.psql("model", "CREATE TABLE other AS SELECT 1 AS n");
    let mut options = common::restore_options(&cluster);
    options.target_database = Some("model".to_owned());
    options.overwrite = true;
    common::restore(&repository, &id, &cluster, &options)
        .await
        .unwrap();
    assert_eq!(cluster.psql("model", "SELECT count(*) FROM t"), "1");
}

/// Roles that the target refused to make are told as refused, and not as made.
#[tokio::test(flavor = "multi_thread")]
async fn roles_that_were_refused_are_not_said_to_be_made() {
    let source = require!(Cluster::start(ClusterOptions::default()));
    let destination = require!(Cluster::start(ClusterOptions::default()));
    source.create_database("app");
    source.psql(
        "app",
        "CREATE ROLE owner_of_all; CREATE TABLE t AS SELECT 1 AS n; ALTER TABLE t OWNER TO owner_of_all",
    );
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), false).await;
    let mut options = common::dump_options(&source);
    options.databases = vec!["app".to_owned()];
    let report = common::dump(&repository, &source, &options).await.unwrap();
    destination.psql("postgres", "CREATE ROLE weak LOGIN CREATEDB");
    let conninfo = destination
        .conninfo("postgres")
        .replace("user=postgres", "user=weak");
    let target = Conninfo::parse(&conninfo)
        .unwrap()
        .resolve(&Environment::empty())
        .unwrap();
    let mut options = common::restore_options(&destination);
    (options.owners, options.privileges) = (false, false);
    let (progress, never) = (Arc::default(), std::future::pending());
    let restored = restore(
        &repository,
        &report.id,
        &report.manifest,
        &target,
        &options,
        &progress,
        never,
    )
    .await
    .unwrap();
    let refused = |text: &String| text.contains("CREATE ROLE owner_of_all");
    assert!(restored.attention.iter().any(refused), "{:?}", restored.attention);
    assert!(restored.roles_created.is_empty(), "{:?}", restored.roles_created);
}
