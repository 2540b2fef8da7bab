//! Making good what is damaged of a backup, from a sound one in another repository.
//!
//! Here alone an object is replaced, for it isn't what was written: it is deleted and put again, after the sound one was
//! read. For the moment between it is missing, which is no worse than damaged. Before the first of them failed evidence is
//! recorded: whatever becomes of the repair, the backup counts as damaged until all of it is whole, and no sweep takes it
//! for an unfinished one should even its manifest be missing.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use pgkeep_base::BackupId;
use pgkeep_store::{PutOutcome, StoreErrorKind};
use tokio::sync::OnceCell;

use super::{
    COPY_CONCURRENCY, CopyError, Copying, OBJECT_BYTES_MAX, Original, claim_identities, from_source,
    make_room, to_destination,
};
use crate::backups::BackupState;
use crate::error::RepositoryError;
use crate::integrity::Checksum;
use crate::layout;
use crate::lease::Lease;
use crate::records::Evidence;
use crate::repo::Repository;

/// How deep a repair looks: as a verification of what is stored.
const DEPTH: &str = "hashes";

/// What a repair did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// Objects that were as they should be.
    pub objects_sound: u64,
    /// Objects that were damaged or missing, and are written anew.
    pub objects_repaired: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// The newest evidence says that the backup is damaged all the same: an earlier verification looked deeper than at
    /// hashes.
    pub evidence_remains: bool,
}

/// Compares all objects of a backup that is there with their hashes, and writes anew from the original what is damaged or
/// missing. `lease` is the destination's; `progress` gets the bytes of each object that is done with.
///
/// # Errors
/// There is no such backup at the destination; the store's on either side; what is damaged at both. All that can be made
/// good is, and the same call goes on with the rest.
pub async fn repair(
    original: &Original<'_>,
    destination: &Repository,
    lease: &Lease,
    progress: impl Fn(u64) + Sync,
) -> Result<RepairReport, CopyError> {
    let id = original.id;
    let to = |error| to_destination(destination, error);
    if !is_repairable(destination, id).await? {
        return Err(to(RepositoryError::Removed { id: id.to_string() }));
    }
    let repair = Repair {
        copying: Copying::new(original, destination, lease).await?,
        begun: OnceCell::new(),
        objects_total: original.checksums.len() as u64,
        repaired: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
    };
    // What the original says of itself is true, or nothing is touched.
    let (objects, manifest) = split_manifest(original)?;
    let manifest_body = repair.copying.read(layout::MANIFEST, Some(manifest)).await?;
    let list = repair.copying.read(layout::CHECKSUMS, None).await?;
    claim_identities(original.repository, destination).await?;
    make_room(destination, &original.checksums).await.map_err(to)?;

    // One that can't be repaired doesn't keep the others from it.
    let mut failure = None;
    let mut running = futures::stream::iter(objects)
        .map(|checksum| repair.object(checksum, &progress))
        .buffer_unordered(COPY_CONCURRENCY);
    while let Some(done) = running.next().await {
        failure = failure.or(done.err());
    }
    drop(running);
    if let Some(failure) = failure {
        return Err(failure);
    }
    repair.small(layout::CHECKSUMS, list).await?;
    repair.small(layout::MANIFEST, manifest_body).await?;
    let evidence_remains = repair.record_success().await?;
    let objects_repaired = repair.repaired.into_inner();
    Ok(RepairReport {
        // And the list itself.
        objects_sound: repair.objects_total + 1 - objects_repaired,
        objects_repaired,
        bytes_written: repair.bytes.into_inner(),
        evidence_remains,
    })
}

/// Whether a backup is there, be it damaged, or has lost its manifest alone. What isn't can be copied.
///
/// # Errors
/// Whatever the store says.
pub async fn is_repairable(destination: &Repository, id: &BackupId) -> Result<bool, CopyError> {
    let to = |error| to_destination(destination, error);
    match destination.state(id).await.map_err(to)? {
        BackupState::Incomplete => destination.has_lost_manifest(id).await.map_err(to),
        state => Ok(state.is_there()),
    }
}

fn split_manifest<'a>(original: &'a Original<'_>) -> Result<(&'a [Checksum], &'a Checksum), CopyError> {
    match original.checksums.split_last() {
        Some((manifest, objects)) if manifest.name == layout::MANIFEST => Ok((objects, manifest)),
        _ => Err(from_source(
            original.repository,
            RepositoryError::Internal("a list of checksums without the manifest's".to_owned()),
        )),
    }
}

struct Repair<'a> {
    copying: Copying<'a>,
    /// Something is being replaced, and that is on record.
    begun: OnceCell<()>,
    objects_total: u64,
    repaired: AtomicU64,
    bytes: AtomicU64,
}

impl Repair<'_> {
    fn id(&self) -> &BackupId {
        self.copying.id
    }

    async fn object(&self, checksum: &Checksum, progress: &(impl Fn(u64) + Sync)) -> Result<(), CopyError> {
        let copying = &self.copying;
        let to = |error| to_destination(copying.destination, error);
        let damages = copying
            .destination
            .verify_stored(self.id(), std::slice::from_ref(checksum), |_| {})
            .await;
        let bytes = copying.sizes.get(&checksum.name).copied().unwrap_or(0);
        if !damages.map_err(to)?.is_empty() {
            let _memory = copying.memory_for(bytes).await?;
            let body = copying.read(&checksum.name, Some(checksum)).await?;
            self.replace(&checksum.name, body).await?;
        }
        progress(bytes);
        Ok(())
    }

    /// `checksums.b3`, and the manifest.
    async fn small(&self, name: &str, body: Bytes) -> Result<(), CopyError> {
        let copying = &self.copying;
        let to = |error: RepositoryError| to_destination(copying.destination, error);
        let key = copying.destination_key(name);
        match copying.destination.store().get(&key, OBJECT_BYTES_MAX).await {
            Ok(there) if there == body => return Ok(()),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), StoreErrorKind::NotFound | StoreErrorKind::ShortBody) => {}
            Err(error) => return Err(to(error.into())),
        }
        // A tombstone is somebody's word: the backup was removed meanwhile.
        if name == layout::MANIFEST
            && copying.destination.state(self.id()).await.map_err(to)? == BackupState::Swept
        {
            let id = self.id().to_string();
            return Err(to(RepositoryError::Removed { id }));
        }
        self.replace(name, body).await
    }

    /// Puts the sound object, in the place of a damaged one if there is one. Whoever may not write has deleted nothing.
    async fn replace(&self, name: &str, body: Bytes) -> Result<(), CopyError> {
        let copying = &self.copying;
        let to = |error| to_destination(copying.destination, error);
        self.begun.get_or_try_init(|| self.record_begin(name)).await?;
        copying.lease.check().map_err(to)?;
        let (store, key) = (copying.destination.store(), copying.destination_key(name));
        let bytes = body.len() as u64;
        let mut put = store.put_new(&key, body.clone()).await;
        if matches!(put, Ok(PutOutcome::AlreadyExists)) {
            copying.lease.check().map_err(to)?;
            store.delete(&key).await.map_err(|error| to(error.into()))?;
            put = store.put_new(&key, body).await;
        }
        match put.map_err(|error| to(error.into()))? {
            PutOutcome::Created => {}
            PutOutcome::AlreadyExists => return Err(copying.differs(name)),
        }
        self.repaired.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the newest evidence speaks of damage.
    async fn is_failed(&self) -> Result<bool, CopyError> {
        let destination = self.copying.destination;
        let newest = destination.evidence_of(self.id()).await;
        let newest = newest.map_err(|error| to_destination(destination, error))?;
        Ok(newest.is_some_and(|newest| !newest.passed))
    }

    /// What is said from now on until the repair is complete, unless a verification has said so before.
    async fn record_begin(&self, name: &str) -> Result<(), CopyError> {
        let destination = self.copying.destination;
        let state = destination.state(self.id()).await;
        let state = state.map_err(|error| to_destination(destination, error))?;
        // Of what has lost its manifest nothing more can be said, and it isn't swept.
        if !state.is_there() || self.is_failed().await? {
            return Ok(());
        }
        let failures = vec![format!(
            "{name} was found damaged by a repair, which isn't complete"
        )];
        self.record(1, failures).await
    }

    /// Whether, after that, the newest evidence speaks of damage still.
    async fn record_success(&self) -> Result<bool, CopyError> {
        // What was right all the time needs no new evidence.
        if !self.begun.initialized() && !self.is_failed().await? {
            return Ok(false);
        }
        self.record(self.objects_total, Vec::new()).await?;
        self.is_failed().await
    }

    async fn record(&self, objects: u64, failures: Vec<String>) -> Result<(), CopyError> {
        let destination = self.copying.destination;
        let evidence = Evidence {
            at: destination.now(),
            depth: DEPTH.to_owned(),
            objects,
            objects_total: self.objects_total,
            passed: failures.is_empty(),
            failures,
        };
        let recorded = destination.record_evidence(self.id(), &evidence).await;
        recorded.map_err(|error| to_destination(destination, error))
    }
}
