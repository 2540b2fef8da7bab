//! Copying one backup to another repository, byte for byte, under the same id.
//!
//! No key is needed: `checksums.b3` names every object and its hash, so that each is verified on its way. The manifest
//! goes last, as when the backup was made; before that the backup doesn't exist at the destination. A copy that broke
//! off is taken up by the next: objects that are there and right stay.
//!
//! [`Repository::commit`] can't be used: it refuses what was begun long ago. What keeps a copier that was asleep from
//! committing after somebody else swept its objects is the destination's lease, the tombstone in the manifest's place,
//! and a last look at the objects after the manifest is there.

mod repair;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::StreamExt;
use pgkeep_base::{BackupId, Classified, Hint, RetryClass, quote_for_shell};
use pgkeep_store::{PutOutcome, StoreErrorKind};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::backups::BackupState;
use crate::error::RepositoryError;
use crate::integrity::{Checksum, names};
use crate::layout;
use crate::lease::Lease;
use crate::repo::Repository;

pub use repair::{RepairReport, is_repairable, repair};

/// Objects on their way at once.
const COPY_CONCURRENCY: usize = 4;
/// Memory for all of them together, in KiB. One that is larger goes alone.
const COPY_MEMORY_KIB: u32 = 64 << 10;
/// The largest object that is copied, in bytes. `pgkeep dump` makes few of more than about 20 MiB: the lists of very many
/// objects, and one with a single huge row, which isn't divided. PostgreSQL sends rows of up to a gibibyte; what can't be
/// compressed is a little larger when it is sealed.
const OBJECT_BYTES_MAX: u64 = 1280 << 20;
const _: () = assert!(OBJECT_BYTES_MAX > (1 << 30) + (1 << 27));

/// What a copy did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyReport {
    /// The backup was complete at the destination before anything was done.
    pub was_complete: bool,
    /// Objects written, the manifest among them.
    pub objects_copied: u64,
    /// Objects that were there already, and right.
    pub objects_present: u64,
    /// Bytes written.
    pub bytes_copied: u64,
}

/// A backup that is to be copied, and what there is of it.
pub struct Original<'a> {
    repository: &'a Repository,
    id: &'a BackupId,
    checksums: Vec<Checksum>,
    /// By name, in bytes; of all that lies in the folders.
    sizes: BTreeMap<String, u64>,
}

impl<'a> Original<'a> {
    /// Reads the backup's `checksums.b3`, and what is stored.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn read(repository: &'a Repository, id: &'a BackupId) -> Result<Self, CopyError> {
        let from = |error| from_source(repository, error);
        let checksums = repository.checksums(id).await.map_err(from)?;
        let sizes = repository.stored_sizes(id, names(&checksums)).await;
        Ok(Self {
            repository,
            id,
            sizes: sizes.map_err(from)?,
            checksums,
        })
    }

    /// Its size as stored, in bytes.
    pub fn bytes(&self) -> u64 {
        let names: BTreeSet<&str> = names(&self.checksums).chain([layout::CHECKSUMS]).collect();
        let sizes = names.iter().filter_map(|name| self.sizes.get(*name));
        sizes.sum()
    }
}

/// Why a copy failed.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The backup could not be read.
    #[error("reading from {url}: {source}")]
    Source {
        /// The repository copied from.
        url: String,
        /// What was wrong.
        source: Box<RepositoryError>,
    },
    /// The destination refused.
    #[error("copying to {url}: {source}")]
    Destination {
        /// The repository copied to.
        url: String,
        /// What was wrong.
        source: Box<RepositoryError>,
    },
    /// Both are the same.
    #[error("{url} is the repository that is copied from")]
    SameRepository {
        /// The repository.
        url: String,
    },
    /// What is at the destination can't be read as a backup.
    #[error("{id} is at {url}, with a damaged manifest")]
    DamagedThere {
        /// The repository copied to.
        url: String,
        /// The backup.
        id: String,
    },
    /// An unfinished copy at the destination, or a backup that this one refers to, holds something else.
    #[error("{key} is already at {url}, with other contents than here")]
    Differs {
        /// The repository copied to.
        url: String,
        /// The object.
        key: String,
    },
}

impl CopyError {
    /// Whether only this backup can't be copied, and the next one may be.
    pub fn concerns_one_backup(&self) -> bool {
        let cause = match self {
            Self::Source { source, .. } | Self::Destination { source, .. } => source.as_ref(),
            Self::SameRepository { .. } => return false,
            Self::Differs { .. } | Self::DamagedThere { .. } => return true,
        };
        cause.is_damage() || matches!(cause, RepositoryError::Removed { .. })
    }

    /// Whether the backup went at the source, so that there is nothing to copy.
    pub fn is_removed(&self) -> bool {
        matches!(self, Self::Source { source, .. } if matches!(source.as_ref(), RepositoryError::Removed { .. }))
    }
}

impl Classified for CopyError {
    fn retry_class(&self) -> RetryClass {
        match self {
            Self::Source { source, .. } | Self::Destination { source, .. } => source.retry_class(),
            Self::SameRepository { .. } => RetryClass::Usage,
            Self::Differs { .. } | Self::DamagedThere { .. } => RetryClass::Permanent,
        }
    }

    fn hint(&self) -> Option<Hint> {
        match self {
            Self::Source { source, .. } | Self::Destination { source, .. } => source.hint(),
            Self::SameRepository { .. } => Some(Hint::new("name another repository with --to URL")),
            Self::DamagedThere { .. } => Some(Hint::new(
                "the same with --repair writes anew what is damaged there",
            )),
            Self::Differs { url, .. } => Some(Hint::new(format!(
                "remove the unfinished copy with 'pgkeep prune --repository {}', then copy again; if it is a complete backup that \
                 is damaged there: 'pgkeep copy all --to {0} --repair'",
                quote_for_shell(url)
            ))),
        }
    }
}

/// Copies one backup. `lease` is the destination's, so that nobody sweeps there meanwhile; `progress` gets 0 before each
/// object that is written, and the bytes of each that is done with.
///
/// # Errors
/// The store's on either side; an object that isn't what `checksums.b3` says. The destination then has no such backup,
/// and the same call goes on where this one stopped.
pub async fn copy(
    original: &Original<'_>,
    destination: &Repository,
    lease: &Lease,
    progress: impl Fn(u64) + Sync,
) -> Result<CopyReport, CopyError> {
    let Original {
        repository: source,
        id,
        checksums,
        ..
    } = original;
    let from = |error| from_source(source, error);
    let to = |error| to_destination(destination, error);
    match destination.state(id).await.map_err(to)? {
        BackupState::Complete => {
            return Ok(CopyReport {
                was_complete: true,
                ..CopyReport::default()
            });
        }
        BackupState::Swept => give_back(destination, lease, id).await.map_err(to)?,
        BackupState::Incomplete => {}
        BackupState::Damaged => {
            return Err(CopyError::DamagedThere {
                url: destination.store().url().to_owned(),
                id: id.to_string(),
            });
        }
    }
    match source.state(id).await.map_err(from)? {
        BackupState::Complete => {}
        BackupState::Damaged => return Err(from(no_manifest(source, id))),
        BackupState::Swept | BackupState::Incomplete => {
            return Err(from(RepositoryError::Removed { id: id.to_string() }));
        }
    }
    claim_identities(source, destination).await?;
    let copying = Copying::new(original, destination, lease).await?;
    make_room(destination, checksums).await.map_err(to)?;
    let mut report = CopyReport::default();
    let objects = checksums
        .iter()
        .filter(|checksum| checksum.name != layout::MANIFEST);
    let mut running = futures::stream::iter(objects)
        .map(|checksum| copying.object(checksum, &progress))
        .buffer_unordered(COPY_CONCURRENCY);
    while let Some(done) = running.next().await {
        report.add(done?);
    }
    drop(running);
    // Not among its own sums.
    report.add(copying.small(layout::CHECKSUMS, None).await?);
    lease.check().map_err(to)?;
    let manifest = checksums
        .iter()
        .find(|checksum| checksum.name == layout::MANIFEST);
    report.add(copying.small(layout::MANIFEST, manifest).await?);
    copying.look_again(checksums).await?;
    Ok(report)
}

fn no_manifest(repository: &Repository, id: &BackupId) -> RepositoryError {
    RepositoryError::Malformed {
        key: layout::backup_object(repository.cluster(), id, layout::MANIFEST),
        reason: "it is no manifest".to_owned(),
    }
}

fn from_source(repository: &Repository, source: RepositoryError) -> CopyError {
    CopyError::Source {
        url: repository.store().url().to_owned(),
        source: Box::new(source),
    }
}

fn to_destination(repository: &Repository, source: RepositoryError) -> CopyError {
    CopyError::Destination {
        url: repository.store().url().to_owned(),
        source: Box::new(source),
    }
}

/// Takes away the tombstone of an unfinished copy that was swept: with the lease in hand, whoever made that copy has
/// lost it.
async fn give_back(destination: &Repository, lease: &Lease, id: &BackupId) -> Result<(), RepositoryError> {
    lease.check()?;
    let key = layout::backup_object(destination.cluster(), id, layout::MANIFEST);
    Ok(destination.store().delete(&key).await?)
}

/// Objects of earlier backups lie in those backups' folders, also where the backups themselves aren't copied: then a
/// tombstone says that these are no unfinished backups. One that has lost its manifest there gets none: it may come back.
async fn make_room(destination: &Repository, checksums: &[Checksum]) -> Result<(), RepositoryError> {
    let owners: BTreeSet<BackupId> = names(checksums)
        .filter_map(|name| layout::reference(name).map(|(owner, _)| owner))
        .collect();
    for owner in owners {
        let is_incomplete = destination.state(&owner).await? == BackupState::Incomplete;
        if is_incomplete && !destination.has_lost_manifest(&owner).await? {
            // Somebody else's says the same.
            let _ = destination
                .put_tombstone(&owner, "not here; other backups need what is")
                .await?;
        }
    }
    Ok(())
}

/// The destination must be free, or belong to the same database cluster.
async fn claim_identities(source: &Repository, destination: &Repository) -> Result<(), CopyError> {
    let ours = identities(source)
        .await
        .map_err(|error| from_source(source, error))?;
    let theirs = identities(destination)
        .await
        .map_err(|error| to_destination(destination, error))?;
    let related = theirs.is_empty() || ours.iter().any(|identity| theirs.contains(identity));
    for identity in ours {
        let claimed = destination.claim_identity(identity, related).await;
        claimed.map_err(|error| to_destination(destination, error))?;
    }
    Ok(())
}

async fn identities(repository: &Repository) -> Result<Vec<u64>, RepositoryError> {
    let prefix = layout::identity_prefix(repository.cluster());
    let objects = repository.store().list(&prefix).await?;
    Ok(objects
        .iter()
        .filter_map(|object| object.key.strip_prefix(&prefix)?.parse().ok())
        .collect())
}

/// What became of one object.
struct Done {
    copied: bool,
    bytes: u64,
}

impl CopyReport {
    fn add(&mut self, done: Done) {
        if done.copied {
            self.objects_copied += 1;
            self.bytes_copied += done.bytes;
        } else {
            self.objects_present += 1;
        }
    }
}

struct Copying<'a> {
    source: &'a Repository,
    destination: &'a Repository,
    lease: &'a Lease,
    id: &'a BackupId,
    /// At the source.
    sizes: &'a BTreeMap<String, u64>,
    /// At the destination before the copy began.
    present: BTreeMap<String, u64>,
    memory: Semaphore,
}

impl<'a> Copying<'a> {
    async fn new(
        original: &'a Original<'_>,
        destination: &'a Repository,
        lease: &'a Lease,
    ) -> Result<Self, CopyError> {
        let id = original.id;
        let present = destination.stored_sizes(id, names(&original.checksums)).await;
        Ok(Self {
            source: original.repository,
            destination,
            lease,
            id,
            sizes: &original.sizes,
            present: present.map_err(|error| to_destination(destination, error))?,
            memory: Semaphore::new(COPY_MEMORY_KIB as usize),
        })
    }
}

impl Copying<'_> {
    /// Waits for the memory of an object of so many bytes.
    async fn memory_for(&self, bytes: u64) -> Result<SemaphorePermit<'_>, CopyError> {
        let kib = u32::try_from(bytes.div_ceil(1 << 10))
            .unwrap_or(u32::MAX)
            .min(COPY_MEMORY_KIB);
        let permit = self.memory.acquire_many(kib).await;
        permit.map_err(|error| {
            let reason = format!("the copy's memory budget is gone: {error}");
            to_destination(self.destination, RepositoryError::Internal(reason))
        })
    }

    fn source_key(&self, name: &str) -> String {
        layout::backup_object(self.source.cluster(), self.id, name)
    }

    fn destination_key(&self, name: &str) -> String {
        layout::backup_object(self.destination.cluster(), self.id, name)
    }

    fn differs(&self, name: &str) -> CopyError {
        CopyError::Differs {
            url: self.destination.store().url().to_owned(),
            key: self.destination_key(name),
        }
    }

    /// The stored bytes, which must be what `checksums.b3` says.
    async fn read(&self, name: &str, checksum: Option<&Checksum>) -> Result<Bytes, CopyError> {
        let key = self.source_key(name);
        let body = match self.source.store().get(&key, OBJECT_BYTES_MAX).await {
            Ok(body) => body,
            Err(error) => return Err(from_source(self.source, self.source.unread(self.id, error).await)),
        };
        let found = blake3::hash(&body).to_hex();
        match checksum {
            Some(checksum) if found.as_str() != checksum.hash => {
                let (found, expected) = (found.to_string(), checksum.hash.clone());
                let error = RepositoryError::HashMismatch { key, found, expected };
                Err(from_source(self.source, error))
            }
            _ => Ok(body),
        }
    }

    async fn object(&self, checksum: &Checksum, progress: &(impl Fn(u64) + Sync)) -> Result<Done, CopyError> {
        let to = |error| to_destination(self.destination, error);
        self.lease.check().map_err(to)?;
        let bytes = self.sizes.get(&checksum.name).copied().unwrap_or(0);
        if self.present.contains_key(&checksum.name) {
            let damages = self
                .destination
                .verify_stored(self.id, std::slice::from_ref(checksum), |_| {})
                .await;
            if !damages.map_err(to)?.is_empty() {
                return Err(self.differs(&checksum.name));
            }
            progress(bytes);
            return Ok(Done { copied: false, bytes });
        }
        let _memory = self.memory_for(bytes).await?;
        let body = self.read(&checksum.name, Some(checksum)).await?;
        let length = body.len() as u64;
        // From here on something of it may be there, even if the copy is broken off before it hears so.
        progress(0);
        let put = self
            .destination
            .store()
            .put_new(&self.destination_key(&checksum.name), body)
            .await;
        match put.map_err(|error| to(error.into()))? {
            PutOutcome::Created => {}
            PutOutcome::AlreadyExists => return Err(self.differs(&checksum.name)),
        }
        progress(bytes);
        Ok(Done {
            copied: true,
            bytes: length,
        })
    }

    /// `checksums.b3`, and the manifest: where one is there already, it is compared byte by byte.
    async fn small(&self, name: &str, checksum: Option<&Checksum>) -> Result<Done, CopyError> {
        let to = |error| to_destination(self.destination, error);
        let body = self.read(name, checksum).await?;
        let bytes = body.len() as u64;
        let key = self.destination_key(name);
        let put = self.destination.store().put_new(&key, body.clone()).await;
        if put.map_err(|error| to(error.into()))? == PutOutcome::Created {
            return Ok(Done { copied: true, bytes });
        }
        let there = self.destination.store().get(&key, OBJECT_BYTES_MAX).await;
        if there.map_err(|error| to(error.into()))? == body {
            return Ok(Done { copied: false, bytes });
        }
        if name == layout::MANIFEST {
            return Err(to(RepositoryError::Fenced {
                id: self.id.to_string(),
            }));
        }
        Err(self.differs(name))
    }

    /// Whether everything that the manifest names is there, now that the manifest is. If this process was asleep long
    /// enough for another one to sweep the copy, the manifest goes again.
    async fn look_again(&self, checksums: &[Checksum]) -> Result<(), CopyError> {
        let to = |error| to_destination(self.destination, error);
        let there = self
            .destination
            .stored_sizes(self.id, names(checksums))
            .await
            .map_err(to)?;
        // What was there before was compared by its hash, and may be sound where the source's isn't.
        let expected = |name: &str| self.present.get(name).or(self.sizes.get(name));
        let whole = names(checksums).all(|name| there.get(name) == expected(name));
        if whole {
            return Ok(());
        }
        let deleted = self
            .destination
            .store()
            .delete(&self.destination_key(layout::MANIFEST))
            .await;
        if let Err(error) = deleted
            && error.kind() != StoreErrorKind::NotFound
        {
            return Err(to(error.into()));
        }
        Err(to(RepositoryError::Fenced {
            id: self.id.to_string(),
        }))
    }
}

/// Refuses to copy a repository onto itself, by whatever URL it is reached.
///
/// # Errors
/// [`CopyError::SameRepository`].
pub fn check_different(source: &Repository, destination: &Repository) -> Result<(), CopyError> {
    if source.marker().repository == destination.marker().repository {
        return Err(CopyError::SameRepository {
            url: destination.store().url().to_owned(),
        });
    }
    Ok(())
}
