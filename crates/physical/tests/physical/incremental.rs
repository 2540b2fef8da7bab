//! Base backups that refer to blocks of earlier ones: little is stored, and each stands on its own.

use std::path::Path;

use pgkeep_base::{BackupId, BackupKind};
use pgkeep_physical::restore::RecoveryTarget;
use pgkeep_physical::{BackupOptions, BackupReport};
use pgkeep_repository::{Repository, layout};
use pgkeep_testkit::{Cluster, require};

use super::support::{backup_options, backup_with, check_pages, contents, repository, restore, server};

/// Nothing is stored for pages that haven't changed, whatever the server writes by itself.
const LITTLE_BYTES: u64 = 1 << 20;

pub fn with_cache(directory: &Path) -> BackupOptions {
    BackupOptions {
        cache_directory: Some(directory.to_owned()),
        ..backup_options()
    }
}

fn new_bytes(report: &BackupReport) -> u64 {
    report.manifest.totals.stored_bytes - report.manifest.totals.reused_bytes
}

/// Restores to the backup's end, and gives back what the server holds.
async fn restored(
    repository: &Repository,
    origin: &Cluster,
    id: &BackupId,
) -> std::collections::BTreeMap<String, String> {
    let mut restored = Cluster::unmade(origin.pg_bin(), origin.major());
    let target = RecoveryTarget::BackupEnd;
    restore(repository, &id.to_string(), &restored, target, Default::default())
        .await
        .unwrap();
    restored.start_restored();
    let found = contents(&restored).await;
    check_pages(&mut restored);
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_not_changed_is_not_stored_again() {
    let cluster = require!(Cluster::start(server(17)));
    cluster.psql(
        "postgres",
        "CREATE TABLE a AS SELECT i, md5(i::text) t FROM generate_series(1, 100000) i",
    );
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(&folder.path().join("repository"), true, None).await;
    let options = with_cache(&folder.path().join("cache"));
    let first = backup_with(&repository, &cluster, &options).await.unwrap();
    assert_eq!(first.manifest.totals.reused_objects, 0);
    let second = backup_with(&repository, &cluster, &options).await.unwrap();
    println!("{:?}\n{:?}", first.manifest.totals, second.manifest.totals);
    assert!(new_bytes(&second) < LITTLE_BYTES, "{:?}", second.manifest.totals);
    assert!(second.manifest.totals.reused_objects > 0);
    let expected = contents(&cluster).await;
    assert_eq!(restored(&repository, &cluster, &second.id).await, expected);
    let progress = std::sync::Arc::default();
    let verified = pgkeep_physical::verify::verify(&repository, &second.id, 2, &progress).await;
    assert_eq!(verified.unwrap().failures, Vec::<String>::new());
    let prefix = layout::backup_prefix(repository.cluster(), &second.id);
    let own = repository.store().list(&prefix).await.unwrap();
    assert!(own.len() < 10, "{own:?}");
    assert_eq!(repository.ids(BackupKind::Base).await.unwrap().len(), 2);
}
