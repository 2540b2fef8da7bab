//! What the tests of replication share.

use std::time::Duration;

use pgkeep_pg::replication::{ReplicationSession, StreamLimits};
use pgkeep_testkit::{Cluster, ClusterOptions};

use super::resolve;

pub const LIMIT: Duration = Duration::from_secs(60);

pub fn options(major: u32) -> ClusterOptions {
    ClusterOptions::new(major)
        .initdb_arg("--data-checksums")
        .initdb_arg("--wal-segsize=1")
        .setting("autovacuum", "off")
}

pub async fn connect(cluster: &Cluster) -> ReplicationSession {
    ReplicationSession::connect(&resolve(&cluster.conninfo("postgres")))
        .await
        .unwrap()
}

/// Quick to check the server, and to find it silent.
pub fn impatient() -> StreamLimits {
    StreamLimits {
        status_interval: Duration::from_millis(50),
        silence_max: Duration::from_millis(500),
        reply_max: Duration::from_millis(500),
    }
}
