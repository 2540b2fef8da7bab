//! What the tests of dumps share: a repository in a temporary directory, and dumps and restores between two servers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests are tests"
)]
#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pgkeep_base::{BackupId, BackupKind};
use pgkeep_dump::manifest::{Filters, Narrowed};
use pgkeep_dump::restore::{HypertableRange, RestoreOptions, RestoreReport, TargetPlan};
use pgkeep_dump::verify::{self, VerifyDepth, VerifyOptions};
use pgkeep_dump::{DumpError, DumpOptions, DumpReport, Progress, read_manifest};
use pgkeep_pg::programs::ProgramSearch;
use pgkeep_pg::{Conninfo, Environment, Target};
use pgkeep_repository::backups::BackupState;
use pgkeep_repository::destinations::Destinations;
use pgkeep_repository::encryption::Encryption;
use pgkeep_repository::{Access, Repository, keys, layout};
use pgkeep_store::fault::FaultPlan;
use pgkeep_store::{Store, StoreOptions};
use pgkeep_testkit::Cluster;

/// A little of everything that comes before and after the rows.
pub const SMALL_SCHEMA: &str = "
    CREATE ROLE app_owner; CREATE SCHEMA shop AUTHORIZATION app_owner; SET ROLE app_owner;
    CREATE TYPE shop.state AS ENUM ('open', 'paid');
    CREATE TABLE shop.customers (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text UNIQUE);
    CREATE TABLE shop.orders (id bigserial PRIMARY KEY, customer int REFERENCES shop.customers, state shop.state DEFAULT 'open');
    CREATE INDEX ON shop.orders (customer); CREATE INDEX ON shop.orders (state, id);
    CREATE FUNCTION shop.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
    CREATE TRIGGER touch BEFORE INSERT ON shop.orders FOR EACH ROW EXECUTE FUNCTION shop.touch();
    CREATE VIEW shop.paid AS SELECT * FROM shop.orders WHERE state = 'paid';
    CREATE MATERIALIZED VIEW shop.counts AS SELECT state, count(*) FROM shop.orders GROUP BY 1 WITH NO DATA;
    GRANT SELECT ON shop.paid TO pg_monitor;
    INSERT INTO shop.customers (name) SELECT 'c' || i FROM generate_series(1, 100) i;
    INSERT INTO shop.orders (customer) SELECT 1 + i % 100 FROM generate_series(1, 1000) i;
    SELECT lo_from_bytea(77, 'a large object') \\g /dev/null
";

/// What an unfinished restore leaves in a database to tell so.
pub const HALF_RESTORED: &str = "
    CREATE SCHEMA pgkeep_restore;
    CREATE TABLE pgkeep_restore.restore (dump text, database text, whole boolean);
    CREATE TABLE pgkeep_restore.step (name text);
    CREATE TABLE pgkeep_restore.relation (place bigint, rows bigint);
    INSERT INTO pgkeep_restore.restore VALUES ('d20261122T020000Z-7f3a9c', 'half', true)";

pub async fn repository(folder: &Path, encrypted: bool) -> Repository {
    let store = Store::open(&format!("file://{}", folder.display()), &StoreOptions::default())
        .await
        .unwrap();
    let (identity, recipient) = keys::generate();
    let encryption = if encrypted {
        Encryption::Age {
            recipients: vec![recipient],
        }
    } else {
        Encryption::None
    };
    let access = Access {
        encryption,
        identities: vec![identity],
        compression_level: 3,
    };
    Repository::open_or_create(store, "test", access).await.unwrap()
}

pub fn target(cluster: &Cluster, database: &str) -> Target {
    Conninfo::parse(&cluster.conninfo(database))
        .unwrap()
        .resolve(&Environment::empty())
        .unwrap()
}

pub fn dump_options(cluster: &Cluster) -> DumpOptions {
    DumpOptions {
        programs: ProgramSearch::only(cluster.pg_bin()),
        ..options()
    }
}

/// Of a dump that finds no programs.
pub fn options() -> DumpOptions {
    DumpOptions {
        databases: Vec::new(),
        filters: Filters::default(),
        narrowed: Narrowed::default(),
        text_only: false,
        jobs: 3,
        lock_timeout: Duration::from_secs(60),
        reuse: None,
        annotations: BTreeMap::new(),
        accept_new_identity: false,
        programs: ProgramSearch::default(),
        lease_duration: Duration::from_secs(60),
    }
}

pub fn restore_options(cluster: &Cluster) -> RestoreOptions {
    RestoreOptions {
        databases: Vec::new(),
        tables: Vec::new(),
        hypertable: None,
        target_database: None,
        overwrite: false,
        resume: false,
        jobs: 3,
        roles: true,
        all_roles: false,
        owners: true,
        privileges: true,
        analyze: true,
        enable_jobs: false,
        update_extensions: false,
        programs: ProgramSearch::only(cluster.pg_bin()),
        work_directory: None,
    }
}

pub fn range(pattern: &str, from: &str, to: &str) -> HypertableRange {
    let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
    HypertableRange::new(pattern.to_owned(), Some(from), Some(to)).unwrap()
}

pub async fn dump(
    repository: &Repository,
    cluster: &Cluster,
    options: &DumpOptions,
) -> Result<DumpReport, DumpError> {
    dump_into(Destinations::from(repository.clone()), cluster, options).await
}

pub async fn dump_into(
    destinations: Destinations,
    cluster: &Cluster,
    options: &DumpOptions,
) -> Result<DumpReport, DumpError> {
    let progress = Arc::new(Progress::default());
    pgkeep_dump::dump(
        &Arc::new(destinations),
        &target(cluster, "postgres"),
        options,
        &progress,
        std::future::pending(),
    )
    .await
}

pub async fn restore(
    repository: &Repository,
    id: &BackupId,
    cluster: &Cluster,
    options: &RestoreOptions,
) -> Result<RestoreReport, DumpError> {
    let manifest = read_manifest(repository, id).await?;
    let progress = Arc::new(Progress::default());
    let target = target(cluster, "postgres");
    pgkeep_dump::restore::restore(
        repository,
        id,
        &manifest,
        &target,
        options,
        &progress,
        std::future::pending(),
    )
    .await
}

/// What a dry run says.
pub async fn check(
    repository: &Repository,
    id: &BackupId,
    cluster: &Cluster,
    options: &RestoreOptions,
) -> Result<TargetPlan, DumpError> {
    let manifest = read_manifest(repository, id).await?;
    let target = target(cluster, "postgres");
    pgkeep_dump::restore::check(repository, id, &manifest, &target, options).await
}

/// A restore that is interrupted, as by Ctrl-C, when `cancelled` ends.
pub async fn restore_until(
    repository: &Repository,
    id: &BackupId,
    cluster: &Cluster,
    options: &RestoreOptions,
    cancelled: impl Future<Output = ()>,
) -> Result<RestoreReport, DumpError> {
    let manifest = read_manifest(repository, id).await?;
    let progress = Arc::default();
    let target = target(cluster, "postgres");
    pgkeep_dump::restore::restore(repository, id, &manifest, &target, options, &progress, cancelled).await
}

/// Ends when the query says `t`.
pub async fn until_query(cluster: &Cluster, database: &str, query: &str) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while cluster.psql(database, query).trim() != "t" {
        assert!(std::time::Instant::now() < deadline, "never true: {query}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A dump that goes on while the test does something else.
pub fn begin_dump(
    repository: &Repository,
    cluster: &Cluster,
    options: &DumpOptions,
) -> tokio::task::JoinHandle<Result<DumpReport, DumpError>> {
    let options = options.clone();
    let destinations = Arc::new(Destinations::from(repository.clone()));
    let target = target(cluster, "postgres");
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || {
        let progress = Arc::new(Progress::default());
        let dump = pgkeep_dump::dump(
            &destinations,
            &target,
            &options,
            &progress,
            std::future::pending(),
        );
        runtime.block_on(dump)
    })
}

/// A restore that goes on while the test does something else.
pub fn begin_restore(
    repository: &Repository,
    id: &BackupId,
    cluster: &Cluster,
    options: &RestoreOptions,
) -> tokio::task::JoinHandle<Result<RestoreReport, DumpError>> {
    let (repository, id, options) = (repository.clone(), id.clone(), options.clone());
    let target = target(cluster, "postgres");
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || {
        runtime.block_on(async {
            let manifest = read_manifest(&repository, &id).await?;
            let progress = Arc::default();
            let never = std::future::pending();
            pgkeep_dump::restore::restore(&repository, &id, &manifest, &target, &options, &progress, never)
                .await
        })
    })
}

/// How long anything that must come may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Comes when the condition holds: a user who presses Ctrl-C at a certain moment.
pub async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

/// The names of what is in a folder.
pub fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Waits until a session stands in line for a lock of this mode on the relation.
pub fn wait_for_waiter(cluster: &Cluster, database: &str, relation: &str, mode: &str) {
    let sql = format!(
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = '{mode}' AND relation = '{relation}'::regclass
           AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    );
    pgkeep_testkit::poll_until(&format!("a session that waits for {relation}"), PATIENCE, || {
        cluster.psql(database, &sql) != "0"
    });
}

/// An unencrypted repository whose store makes mistakes; the requests are tried again as usual.
pub async fn repository_with_faults(folder: &Path, faults: FaultPlan) -> Repository {
    let options = StoreOptions {
        faults: Some(faults),
        ..StoreOptions::default()
    };
    repository_through(folder, options).await
}

/// Every object in the dump's folder is named by its list of checksums, beside that list itself.
pub async fn assert_no_strays(repository: &Repository, id: &BackupId) {
    let prefix = format!("test/dump/{id}/");
    let listed = repository.store().list(&prefix).await.unwrap();
    let stored: BTreeSet<String> = listed
        .iter()
        .map(|object| object.key[prefix.len()..].to_owned())
        .filter(|name| name != "checksums.b3")
        .collect();
    let named: BTreeSet<String> = repository
        .checksums(id)
        .await
        .unwrap()
        .into_iter()
        .map(|checksum| checksum.name)
        .filter(|name| layout::reference(name).is_none())
        .collect();
    assert_eq!(stored, named);
}

/// An unencrypted repository, reached in a special way.
pub async fn repository_through(folder: &Path, options: StoreOptions) -> Repository {
    let store = Store::open(&format!("file://{}", folder.display()), &options)
        .await
        .unwrap();
    let access = Access {
        encryption: Encryption::None,
        identities: Vec::new(),
        compression_level: 3,
    };
    Repository::open_or_create(store, "test", access).await.unwrap()
}

/// The dumps that exist; each is read to its end and found right.
pub async fn whole_dumps(repository: &Repository) -> Vec<BackupId> {
    let options = VerifyOptions {
        depth: VerifyDepth::Contents,
        sample: None,
        jobs: 2,
    };
    let mut ids = Vec::new();
    for entry in repository.backups(BackupKind::Dump).await.unwrap() {
        if entry.state == BackupState::Complete {
            let report = verify::verify(repository, &entry.id, &options, &Progress::default()).await;
            let report = report.unwrap();
            assert!(report.passed(), "{report:?}");
            assert_no_strays(repository, &entry.id).await;
            ids.push(entry.id);
        }
    }
    ids
}
