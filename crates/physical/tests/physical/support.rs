//! What the tests share: a repository in a temporary directory, backups, restores into a server of their own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pgkeep_base::{BackupId, Progress};
use pgkeep_pg::replication::Checkpoint;
use pgkeep_pg::{Conninfo, Environment, Session, Target};
use pgkeep_pgformat::{Lsn, Timeline};
use pgkeep_physical::manifest::BaseManifest;
use pgkeep_physical::restore::{
    self, Existing, RecoveryTarget, RestoreOptions, RestoreReport, TablespaceName,
};
use pgkeep_physical::{BackupOptions, BackupReport, PhysicalError, ReaderChoice};
use pgkeep_repository::encryption::Encryption;
use pgkeep_repository::{Access, Repository, keys};
use pgkeep_store::fault::FaultPlan;
use pgkeep_store::{Store, StoreOptions};
use pgkeep_testkit::{Cluster, ClusterOptions, run};
use pgkeep_wal::{RangeReceiver, RangeReport, WalError};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// All ways of reading a cluster's files.
pub const READERS: [ReaderChoice; 2] = [ReaderChoice::Local, ReaderChoice::Replication];

/// Nothing in these tests takes longer.
pub const LIMIT: Duration = Duration::from_secs(180);

pub async fn repository(folder: &Path, encrypted: bool, faults: Option<FaultPlan>) -> Repository {
    let options = StoreOptions {
        faults,
        ..StoreOptions::default()
    };
    let store = Store::open(&format!("file://{}", folder.display()), &options)
        .await
        .unwrap();
    let (identity, recipient) = keys::generate();
    let encryption = match encrypted {
        true => Encryption::Age {
            recipients: vec![recipient],
        },
        false => Encryption::None,
    };
    let access = Access {
        encryption,
        identities: vec![identity],
        compression_level: 1,
    };
    Repository::open_or_create(store, "test", access).await.unwrap()
}

/// Small segments, so that there are many.
pub fn server(major: u32) -> ClusterOptions {
    ClusterOptions::new(major)
        .initdb_arg("--data-checksums")
        .initdb_arg("--wal-segsize=1")
        .setting("max_wal_size", "64MB")
        .setting("checkpoint_timeout", "30s")
}

pub fn target(cluster: &Cluster, database: &str) -> Target {
    Conninfo::parse(&cluster.conninfo(database))
        .unwrap()
        .resolve(&Environment::empty())
        .unwrap()
}

pub async fn session(cluster: &Cluster, database: &str) -> Session {
    Session::connect(&target(cluster, database)).await.unwrap()
}

pub fn backup_options() -> BackupOptions {
    BackupOptions {
        reader: ReaderChoice::Replication,
        data_directory: None,
        strict: false,
        jobs: 2,
        checkpoint: Checkpoint::Fast,
        full: false,
        cache_directory: None,
        rate_kib_max: None,
        annotations: BTreeMap::from([("why".to_owned(), "a test".to_owned())]),
        accept_new_identity: false,
        lease_duration: Duration::from_secs(60),
    }
}

pub async fn backup(repository: &Repository, cluster: &Cluster) -> Result<BackupReport, PhysicalError> {
    backup_with(repository, cluster, &backup_options()).await
}

pub async fn backup_with(
    repository: &Repository,
    cluster: &Cluster,
    options: &BackupOptions,
) -> Result<BackupReport, PhysicalError> {
    let progress = Arc::new(Progress::default());
    let never = std::future::pending();
    let target = target(cluster, "postgres");
    let backing_up = pgkeep_physical::backup(repository, &target, options, &progress, never);
    tokio::time::timeout(LIMIT, backing_up)
        .await
        .expect("the backup comes to an end")
}

pub fn by_oid(tablespaces: BTreeMap<u32, PathBuf>) -> BTreeMap<TablespaceName, PathBuf> {
    let places = tablespaces.into_iter();
    places
        .map(|(oid, place)| (TablespaceName::Oid(oid), place))
        .collect()
}

/// Restores into the place of a server, which isn't started.
pub async fn restore(
    repository: &Repository,
    text: &str,
    into: &Cluster,
    target: RecoveryTarget,
    tablespaces: BTreeMap<u32, PathBuf>,
) -> Result<RestoreReport, PhysicalError> {
    let options = RestoreOptions {
        directory: into.data_dir(),
        tablespaces: by_oid(tablespaces),
        target,
        jobs: 2,
        existing: Existing::Refuse,
    };
    let plan = restore::plan(repository, text, &options).await?;
    let progress = Arc::new(Progress::default());
    let restoring = restore::restore(repository, &plan, &progress, std::future::pending());
    tokio::time::timeout(LIMIT, restoring)
        .await
        .expect("the restore comes to an end")
}

/// Receives all WAL from now on, beside any backup, until it is told to end.
pub struct Streaming {
    stop: watch::Sender<Option<Lsn>>,
    receiving: JoinHandle<Result<RangeReport, WalError>>,
}

impl Streaming {
    pub async fn start(repository: &Repository, cluster: &Cluster) -> Self {
        let receiver = RangeReceiver::connect(&target(cluster, "postgres"), repository, false)
            .await
            .unwrap();
        let from = receiver.identity().flushed;
        let (stop, stopping) = watch::channel(None);
        let receiving = tokio::spawn(receiver.receive(from, Timeline::FIRST, stopping));
        Self { stop, receiving }
    }

    /// Ends when all up to here is stored.
    pub async fn end(self, cluster: &Cluster) -> Lsn {
        let mut session = session(cluster, "postgres").await;
        // So that the switch is one, and ends behind every position that was asked for before.
        let something = "SELECT pg_logical_emit_message(false, 'test', '')";
        session.query(something).await.unwrap();
        let end = lsn(&mut session, "pg_switch_wal()").await;
        self.stop.send(Some(end)).unwrap();
        tokio::time::timeout(LIMIT, self.receiving)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        end
    }
}

pub async fn lsn(session: &mut Session, expression: &str) -> Lsn {
    let rows = session
        .query(&format!("SELECT {expression}::text"))
        .await
        .unwrap();
    let text: String = rows[0].get(0).unwrap();
    text.parse().unwrap()
}

/// What every table of every database holds, by name: rows and a hash of them.
pub async fn contents(cluster: &Cluster) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut postgres = session(cluster, "postgres").await;
    let databases = "SELECT datname::text FROM pg_database WHERE datallowconn ORDER BY 1";
    for row in postgres.query(databases).await.unwrap() {
        let database: String = row.get(0).unwrap();
        let mut session = session(cluster, &database).await;
        let tables = "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
            WHERE relkind = 'r' AND relpersistence = 'p' AND nspname !~ '^pg_' AND nspname <> 'information_schema' ORDER BY 1";
        for row in session.query(tables).await.unwrap() {
            let table: String = row.get(0).unwrap();
            let sums = format!(
                "SELECT count(*) || ' ' || coalesce(md5(string_agg(md5(t::text), '' ORDER BY t::text)), '') FROM {table} t"
            );
            let sums: String = session.query(&sums).await.unwrap()[0].get(0).unwrap();
            all.insert(format!("{database} {table}"), sums);
        }
        session.close().await;
    }
    postgres.close().await;
    all
}

/// The key that opens a repository.
pub fn secret(repository: &Repository) -> String {
    repository.access().identities[0].to_secret().expose().to_owned()
}

pub async fn manifest(repository: &Repository, id: &BackupId) -> BaseManifest {
    pgkeep_physical::read_manifest(repository, id).await.unwrap()
}

/// Runs the server's own check of every page and every index.
pub fn check_pages(cluster: &mut Cluster) {
    run(cluster.client_command("pg_amcheck").args([
        "--all",
        "--install-missing",
        "--heapallindexed",
        "--parent-check",
    ]));
}
