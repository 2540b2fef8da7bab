//! What the tests of WAL share.
#![allow(dead_code, reason = "each test file uses a part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use pgkeep_pg::replication::StreamLimits;
use pgkeep_pg::{Conninfo, Environment, Target};
use pgkeep_pgformat::{Lsn, SegmentName, SegmentSize, Timeline};
use pgkeep_repository::encryption::Encryption;
use pgkeep_repository::keys;
use pgkeep_repository::{Access, Repository};
use pgkeep_store::fault::FaultPlan;
use pgkeep_store::{Store, StoreOptions};
use pgkeep_testkit::{Cluster, ClusterOptions};
use pgkeep_wal::{Receiver, ReceiverOptions, StreamState, WalError};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;

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
    Conninfo::parse(&conninfo)
        .unwrap()
        .resolve(&Environment::empty())
        .unwrap()
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

    /// The secret key in a file, beside the repository's own.
    pub fn write_key(&self) -> PathBuf {
        let path = self.folder.path().join("key.txt");
        fs::write(&path, self.access.identities[0].to_secret().expose()).unwrap();
        path
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

/// A receiver at work.
pub struct Running {
    pub state: watch::Receiver<StreamState>,
    stop: watch::Sender<bool>,
    pub task: JoinHandle<Result<(), WalError>>,
}

/// Options of a receiver that doesn't wait for long.
pub fn quick() -> ReceiverOptions {
    ReceiverOptions {
        flush_after: Duration::from_millis(100),
        limits: StreamLimits {
            status_interval: Duration::from_millis(500),
            ..StreamLimits::default()
        },
        // A receiver that was aborted holds its lease, because its process lives.
        lease_duration: Duration::from_millis(600),
        ..ReceiverOptions::default()
    }
}

pub fn start(target: Target, repository: Repository, options: ReceiverOptions) -> Running {
    let (receiver, state) = Receiver::new(target, repository, options);
    let (stop, told) = watch::channel(false);
    let task = tokio::spawn(receiver.run(told));
    Running { state, stop, task }
}

impl Running {
    /// Waits until its state is such.
    pub async fn until(&mut self, what: &str, condition: impl FnMut(&StreamState) -> bool) -> StreamState {
        let reached = tokio::time::timeout(LIMIT, self.state.wait_for(condition)).await;
        let reached = reached.map(|state| state.map(|state| state.clone()));
        match reached {
            Ok(Ok(state)) => state,
            Ok(Err(_)) => panic!("{what}: it ended with {:?}", (&mut self.task).await),
            Err(_) => panic!("{what}: {:?}", *self.state.borrow()),
        }
    }

    pub async fn durable(&mut self, lsn: Lsn) -> StreamState {
        self.until(&format!("durable up to {lsn}"), |state| state.durable >= lsn)
            .await
    }

    pub async fn stop(self) {
        self.stop.send(true).unwrap();
        let ended = tokio::time::timeout(LIMIT, self.task).await;
        ended.expect("it stops").unwrap().unwrap();
    }
}

/// Rows for as long as it lives, by several sessions.
pub struct Load(Vec<Child>);

impl Load {
    pub fn start(cluster: &Cluster) -> Self {
        cluster.psql(
            "postgres",
            "CREATE TABLE IF NOT EXISTS load(at timestamptz DEFAULT now(), t text)",
        );
        let script = "INSERT INTO load(t) SELECT md5(random()::text) FROM generate_series(1, 200);";
        let path = cluster.socket_dir().join("load.sql");
        fs::write(&path, script).unwrap();
        let child = cluster
            .client_command("pgbench")
            .args(["-n", "-c", "2", "-j", "1", "-T", "120", "-R", "150", "-f"])
            .arg(&path)
            .arg("postgres")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(vec![child])
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The position that a slot holds.
pub fn slot_restart(cluster: &Cluster) -> Lsn {
    let sql = "SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'pgkeep'";
    cluster.psql("postgres", sql).parse().unwrap()
}

/// What is stored of a timeline, which must have no gap.
pub async fn one_range(repository: &Repository, system: u64, timeline: Timeline) -> (Lsn, Lsn) {
    let coverage = repository.wal_coverage(system, timeline).await.unwrap();
    assert_eq!(coverage.len(), 1, "{coverage:?}");
    (coverage[0].start, coverage[0].end)
}
