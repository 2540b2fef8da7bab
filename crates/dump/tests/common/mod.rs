//! What the tests of dumps share: a repository in a temporary directory, and dumps and restores between two servers.
#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pgkeep_base::BackupId;
use pgkeep_dump::manifest::Filters;
use pgkeep_dump::restore::{RestoreOptions, RestoreReport};
use pgkeep_dump::{DumpError, DumpOptions, DumpReport, Progress, read_manifest};
use pgkeep_pg::programs::ProgramSearch;
use pgkeep_pg::{Conninfo, Environment, Target};
use pgkeep_repository::encryption::Encryption;
use pgkeep_repository::{Access, Repository, keys};
use pgkeep_store::{Store, StoreOptions};
use pgkeep_testkit::Cluster;

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
        databases: Vec::new(),
        filters: Filters::default(),
        jobs: 3,
        lock_timeout: Duration::from_secs(60),
        annotations: BTreeMap::new(),
        accept_new_identity: false,
        programs: ProgramSearch::only(cluster.pg_bin()),
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
        owners: true,
        privileges: true,
        analyze: true,
        enable_jobs: false,
        update_extensions: false,
        programs: ProgramSearch::only(cluster.pg_bin()),
        silence_max: None,
        work_directory: None,
    }
}

pub async fn dump(
    repository: &Repository,
    cluster: &Cluster,
    options: &DumpOptions,
) -> Result<DumpReport, DumpError> {
    let progress = Arc::new(Progress::default());
    pgkeep_dump::dump(
        repository,
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
