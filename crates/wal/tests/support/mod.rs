//! What the tests of WAL share.
#![allow(dead_code, reason = "each test file uses a part")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use pgkeep_pg::{Conninfo, Environment, Target};
use pgkeep_pgformat::{Lsn, SegmentName, SegmentSize, Timeline};
use pgkeep_repository::encryption::Encryption;
use pgkeep_repository::keys;
use pgkeep_repository::{Access, Repository};
use pgkeep_store::fault::FaultPlan;
use pgkeep_store::{Store, StoreOptions};
use pgkeep_testkit::{Cluster, ClusterOptions};
use tempfile::TempDir;

pub const LIMIT: Duration = Duration::from_secs(90);

/// Small segments, so that there are many of them.
pub fn options(major: u32) -> ClusterOptions {
    ClusterOptions::new(major)
        .initdb_arg("--wal-segsize=1")
        .setting("autovacuum", "off")
        .setting("max_wal_senders", "10")
        .setting("wal_keep_size", "512MB")
}

pub fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

pub fn target(cluster: &Cluster) -> Target {
    let conninfo = cluster.conninfo("postgres");
    let mut target = Conninfo::parse(&conninfo)
        .unwrap()
        .resolve(&Environment::empty())
        .unwrap();
    target.application_name = Some("pgkeep".to_owned());
    target
}

/// A repository in a folder, encrypted.
pub struct Place {
    pub folder: TempDir,
    access: Access,
}

impl Place {
    pub fn new() -> Self {
        let (identity, recipient) = keys::generate();
        Self {
            folder: tempfile::tempdir().unwrap(),
            access: Access {
                encryption: Encryption::Age {
                    recipients: vec![recipient],
                },
                identities: vec![identity],
                compression_level: 1,
            },
        }
    }

    pub async fn open(&self) -> Repository {
        self.open_with(None).await
    }

    /// The same with faults, and a store that tries again soon.
    pub async fn open_with(&self, faults: Option<FaultPlan>) -> Repository {
        let mut options = StoreOptions {
            faults,
            ..StoreOptions::default()
        };
        options.retry.backoff_base = Duration::from_millis(5);
        options.retry.backoff_max = Duration::from_millis(50);
        let url = format!("file://{}", self.folder.path().display());
        let store = Store::open(&url, &options).await.unwrap();
        Repository::open_or_create(store, "main", self.access.clone())
            .await
            .unwrap()
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

pub fn system_identifier(cluster: &Cluster) -> u64 {
    let found = cluster.psql("postgres", "SELECT system_identifier FROM pg_control_system()");
    found.parse().unwrap()
}

pub fn current_lsn(cluster: &Cluster) -> Lsn {
    cluster
        .psql("postgres", "SELECT pg_current_wal_flush_lsn()")
        .parse()
        .unwrap()
}

/// Compares what is stored between two positions with what the server has in `pg_wal`.
pub async fn compare(repository: &Repository, cluster: &Cluster, timeline: Timeline, start: Lsn, end: Lsn) {
    let system = system_identifier(cluster);
    let mut name = SegmentName::holding(timeline, start, size());
    let mut compared = 0;
    while name.start() < end {
        let fetched = repository.fetch_wal(system, &name).await.unwrap();
        let fetched = fetched.unwrap_or_else(|| panic!("{name} isn't stored"));
        let theirs = fs::read(cluster.data_dir().join("pg_wal").join(name.to_string()))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let length = name.offset_of(end).map_or(theirs.len(), |offset| offset as usize);
        assert!(fetched[..length] == theirs[..length], "{name} differs");
        compared += 1;
        name = name.next().unwrap();
    }
    assert!(compared > 0);
}
