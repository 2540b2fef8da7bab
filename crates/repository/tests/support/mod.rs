//! Small repositories in temporary folders.
#![allow(dead_code, reason = "each test file uses a part")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use pgkeep_base::{BackupId, BackupKind, ManualClock};
use pgkeep_repository::backups::BackupState;
use pgkeep_repository::destinations::Destinations;
use pgkeep_repository::encryption::Encryption;
use pgkeep_repository::integrity::format_checksums;
use pgkeep_repository::object::{ObjectRef, SealedObject};
use pgkeep_repository::records::Evidence;
use pgkeep_repository::{Access, Repository, layout};
use pgkeep_store::fault::FaultPlan;
use pgkeep_store::{Store, StoreOptions};
use tempfile::TempDir;

pub const CLUSTER: &str = "main";

/// A repository in a folder that goes with it.
pub struct Folder {
    pub repository: Repository,
    pub folder: TempDir,
}

impl Folder {
    /// Makes one whose clock stands at `now`.
    pub async fn new(now: Timestamp) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let repository = open(folder.path(), now).await;
        Self { repository, folder }
    }

    /// The file of one object of a backup.
    pub fn file(&self, id: &BackupId, name: &str) -> PathBuf {
        self.folder.path().join(layout::backup_object(CLUSTER, id, name))
    }

    /// The names of all files, for comparison.
    pub fn files(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut folders = vec![self.folder.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                } else {
                    let path = entry.path();
                    names.push(
                        path.strip_prefix(self.folder.path())
                            .unwrap()
                            .to_str()
                            .unwrap()
                            .to_owned(),
                    );
                }
            }
        }
        names.sort();
        names
    }
}

/// Opens the repository in a folder, with a clock that stands still.
pub async fn open(folder: &Path, now: Timestamp) -> Repository {
    open_with(folder, now, &StoreOptions::default()).await
}

/// The same, for somebody who may not read what has this in its key.
pub async fn open_denied(folder: &Path, now: Timestamp, denied: &str) -> Repository {
    let faults = FaultPlan {
        denied: Some(denied.to_owned()),
        ..FaultPlan::default()
    };
    let options = StoreOptions {
        faults: Some(faults),
        ..StoreOptions::default()
    };
    open_with(folder, now, &options).await
}

/// The same through a store with these options.
pub async fn open_with(folder: &Path, now: Timestamp, options: &StoreOptions) -> Repository {
    let store = Store::open(&format!("file://{}", folder.display()), options)
        .await
        .unwrap();
    let access = Access {
        encryption: Encryption::None,
        identities: Vec::new(),
        compression_level: 1,
    };
    let repository = Repository::open_or_create(store, CLUSTER, access).await.unwrap();
    repository.with_clock(Arc::new(ManualClock::new(now)))
}

/// Stores the objects of a backup that was begun when the repository's clock stands, and returns its id.
pub async fn unfinished(repository: &Repository, objects: usize) -> BackupId {
    uncommitted(repository, BackupKind::Dump, objects, None).await.0
}

/// The same, with the manifest that is still to be put.
async fn uncommitted(
    repository: &Repository,
    kind: BackupKind,
    objects: usize,
    reused: Option<ObjectRef>,
) -> (BackupId, SealedObject) {
    let id = BackupId::new(kind, repository.now()).unwrap();
    let prefix = layout::backup_prefix(CLUSTER, &id);
    let destinations = Destinations::from(repository.clone());
    let mut stored = Vec::new();
    for number in 0..objects {
        let contents = Bytes::from(format!("rows of object {number} of {id}\n"));
        stored.push(
            destinations
                .put_contents(&prefix, &format!("d1/{number:06}.sql.zst"), contents)
                .await
                .unwrap(),
        );
    }
    let manifest = repository
        .seal(Bytes::from_static(b"{\"format\":1}"))
        .await
        .unwrap();
    stored.extend(reused);
    stored.push(manifest.as_object(layout::MANIFEST));
    let checksums = format_checksums(stored.iter());
    destinations
        .put_plain(&prefix, layout::CHECKSUMS, checksums)
        .await
        .unwrap();
    (id, manifest)
}

/// A whole one.
pub async fn backup(repository: &Repository, objects: usize) -> BackupId {
    whole(repository, BackupKind::Dump, objects, None).await
}

/// A whole base backup.
pub async fn base_backup(repository: &Repository) -> BackupId {
    whole(repository, BackupKind::Base, 2, None).await
}

async fn whole(
    repository: &Repository,
    kind: BackupKind,
    objects: usize,
    reused: Option<ObjectRef>,
) -> BackupId {
    let (id, manifest) = uncommitted(repository, kind, objects, reused).await;
    repository.commit(&id, manifest).await.unwrap();
    id
}

/// Of a backup of several objects, the one that an [`incremental`] one needs.
pub const REUSED: &str = "d1/000001.sql.zst";

/// A whole one that needs [`REUSED`] of another, too.
pub async fn incremental(repository: &Repository, objects: usize, base: &BackupId) -> BackupId {
    let checksums = repository.checksums(base).await.unwrap();
    let of_base = checksums.iter().find(|checksum| checksum.name == REUSED).unwrap();
    let reused = ObjectRef {
        name: layout::reference_to(base, REUSED),
        stored_bytes: 0,
        hash: of_base.hash.clone(),
        plain_bytes: 0,
    };
    whole(repository, BackupKind::Dump, objects, Some(reused)).await
}

/// Whether its manifest is there, and all that it needs, as it was written.
pub async fn is_whole(repository: &Repository, id: &BackupId) -> bool {
    let checksums = repository.checksums(id).await.unwrap();
    repository.state(id).await.unwrap() == BackupState::Complete
        && repository
            .verify_stored(id, &checksums, |_| {})
            .await
            .unwrap()
            .is_empty()
}

/// Says that it was verified, and found good or not.
pub async fn record(repository: &Repository, id: &BackupId, passed: bool) {
    let (at, depth) = (repository.now(), "contents".to_owned());
    let evidence = Evidence {
        at,
        depth,
        objects: 1,
        objects_total: 1,
        passed,
        failures: Vec::new(),
    };
    repository.record_evidence(id, &evidence).await.unwrap();
}

/// `2026-11-DDT02:00:00Z`
pub fn day(day: u32) -> Timestamp {
    format!("2026-11-{day:02}T02:00:00Z").parse().unwrap()
}
