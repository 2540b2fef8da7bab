//! Which backups exist, and how they come and go.
//!
//! - **Commit**: the manifest is put last, create-only. It exists, so the backup exists.
//! - **Tombstone**: before an orphan (a folder without a manifest) is swept, a tombstone is put in the manifest's place,
//!   create-only. Its writer, if it still lives, finds its commit refused.
//! - **Removal**: the manifest goes first, then the rest. Killed half-way, an orphan remains, never a torn backup. Objects
//!   that other backups refer to stay, under a tombstone, until the last of those goes.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use pgkeep_base::{BackupId, BackupKind, Classified};
use pgkeep_store::{ObjectInfo, PutOutcome, StoreError, StoreErrorKind};
use serde::{Deserialize, Serialize};

use crate::error::RepositoryError;
use crate::layout;
use crate::object::SealedObject;
use crate::records::{Evidence, Pin};
use crate::references::References;
use crate::repo::{Repository, to_json};

/// A backup is committed within this time of its start, or not at all; so that a tombstone may go some time later.
pub const COMMIT_DEADLINE: SignedDuration = SignedDuration::from_hours(72);

/// Tombstones stay this long: well beyond [`COMMIT_DEADLINE`] and any clock's error.
const TOMBSTONE_LIFETIME: SignedDuration = SignedDuration::from_hours(14 * 24);

/// A part of an object that nobody has written to for this long has lost its writer.
const LEFTOVER_IDLE: Duration = Duration::from_secs(3600);

/// What a tombstone begins with.
const TOMBSTONE_FIRST_BYTE: u8 = b'{';

/// What a manifest begins with: age's or zstd's magic.
const MANIFEST_FIRST_BYTES: [u8; 2] = [b'a', 0x28];

/// What lies in a backup's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupState {
    /// Its manifest is there.
    Complete,
    /// No manifest: being written, an orphan, or a backup that has lost it ([`BackupEntry::has_lost_manifest`]).
    Incomplete,
    /// Given up: a tombstone in the manifest's place.
    Swept,
    /// There is something in the manifest's place that is no manifest: nothing at all, or what a broken disk made of it.
    Damaged,
}

impl BackupState {
    /// Whether the backup was committed, and not removed since. Whether it is also good is another question.
    pub fn is_there(self) -> bool {
        matches!(self, Self::Complete | Self::Damaged)
    }
}

/// One backup's folder.
#[derive(Debug, Clone)]
pub struct BackupEntry {
    /// Its id.
    pub id: BackupId,
    /// What lies there.
    pub state: BackupState,
    /// It is incomplete, and yet it was a backup: a pin or the evidence of a verification says so, and no removal was
    /// begun. Somebody else deleted the manifest, which may come back.
    pub has_lost_manifest: bool,
    /// The newest pin, if it is pinned.
    pub pin: Option<Pin>,
    /// The newest verification's outcome, if there was one.
    pub evidence: Option<Evidence>,
}

impl BackupEntry {
    /// Whether it never was a backup, or is on its way out: being written, or an orphan.
    pub fn is_unfinished(&self) -> bool {
        self.state == BackupState::Incomplete && !self.has_lost_manifest
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Tombstone {
    swept_at: Timestamp,
    reason: String,
}

/// What a sweep did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Swept {
    /// Folders without a manifest that were removed.
    pub backups: Vec<BackupId>,
    /// Objects removed with them.
    pub objects: u64,
}

/// What came of giving an unfinished backup up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivenUp {
    /// It was committed meanwhile: it is a backup, and stays.
    Committed,
    /// So many objects were removed.
    Now(u64),
    /// Another process had given it up before, and so many objects were left to be removed.
    Before(u64),
}

impl GivenUp {
    fn objects(self) -> u64 {
        match self {
            Self::Committed => 0,
            Self::Now(objects) | Self::Before(objects) => objects,
        }
    }
}

impl Repository {
    /// Every backup's folder of a kind, oldest first.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn backups(&self, kind: BackupKind) -> Result<Vec<BackupEntry>, RepositoryError> {
        self.backups_of(&[kind]).await
    }

    /// The same of several kinds, of which what is said beside the backups is read once.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn backups_of(&self, kinds: &[BackupKind]) -> Result<Vec<BackupEntry>, RepositoryError> {
        let mut pins = self.newest_pins().await?;
        let mut evidence = self.evidence().await?;
        let mut ids = Vec::new();
        for kind in kinds {
            // A folder that isn't ours is left alone.
            ids.extend(self.ids(*kind).await?);
        }
        let mut entries = Vec::new();
        for id in ids {
            let state = self.state(&id).await?;
            if state == BackupState::Incomplete && self.is_empty(&id).await? {
                continue;
            }
            let has_lost_manifest = state == BackupState::Incomplete && self.was_a_backup(&id).await?;
            entries.push(BackupEntry {
                state,
                has_lost_manifest,
                pin: pins.remove(&id).filter(|pin| pin.pinned),
                evidence: evidence.remove(&id),
                id,
            });
        }
        entries.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(entries)
    }

    /// What lies in one backup's folder.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn state(&self, id: &BackupId) -> Result<BackupState, RepositoryError> {
        let key = layout::backup_object(&self.cluster, id, layout::MANIFEST);
        match self.store.get_range(&key, 0..1).await {
            Ok(first) => Ok(match first.first() {
                Some(&TOMBSTONE_FIRST_BYTE) => BackupState::Swept,
                Some(byte) if MANIFEST_FIRST_BYTES.contains(byte) => BackupState::Complete,
                _ => BackupState::Damaged,
            }),
            Err(error) if error.kind() == StoreErrorKind::NotFound => Ok(BackupState::Incomplete),
            // Of an empty object not even the first byte can be had.
            Err(error) => match self.store.head(&key).await {
                Ok(Some(object)) if object.size == 0 => Ok(BackupState::Damaged),
                _ => Err(error.into()),
            },
        }
    }

    /// Why an object of a backup couldn't be read: one that isn't there may have gone with its backup.
    pub(crate) async fn unread(&self, id: &BackupId, error: StoreError) -> RepositoryError {
        if error.kind() == StoreErrorKind::NotFound
            && self.state(id).await.is_ok_and(|state| !state.is_there())
        {
            return RepositoryError::Removed { id: id.to_string() };
        }
        error.into()
    }

    /// The ids of every backup's folder of a kind, newest first, whatever lies there.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn ids(&self, kind: BackupKind) -> Result<Vec<BackupId>, RepositoryError> {
        let prefix = layout::kind_prefix(&self.cluster, kind);
        let names = self.store.list_directories(&prefix).await?;
        let mut ids: Vec<BackupId> = names
            .iter()
            .filter_map(|name| layout::backup_of(kind, name))
            .collect();
        ids.sort_by(|a, b| b.cmp(a));
        Ok(ids)
    }

    /// The backup that `text` names: an id, the beginning of one, or `latest`.
    ///
    /// # Errors
    /// [`RepositoryError::NoBackup`], [`RepositoryError::NoSuchBackup`], [`RepositoryError::AmbiguousId`].
    pub async fn find(&self, kind: BackupKind, text: &str) -> Result<BackupId, RepositoryError> {
        let mut complete = Vec::new();
        for id in self.ids(kind).await? {
            let fits = text == "latest" || id.to_string().starts_with(text);
            if fits && self.state(&id).await?.is_there() {
                complete.push(id);
                if text == "latest" {
                    break;
                }
            }
        }
        match complete.len() {
            1 => Ok(complete.remove(0)),
            0 if text == "latest" => Err(self.no_backup()),
            0 => {
                let newest = Box::pin(self.find(kind, "latest")).await?;
                Err(RepositoryError::NoSuchBackup {
                    text: text.to_owned(),
                    cluster: self.cluster.clone(),
                    newest: newest.to_string(),
                })
            }
            _ => Err(RepositoryError::AmbiguousId {
                text: text.to_owned(),
                candidates: complete.iter().map(ToString::to_string).collect(),
            }),
        }
    }

    /// What to say where there is none at all.
    pub fn no_backup(&self) -> RepositoryError {
        RepositoryError::NoBackup {
            cluster: self.cluster.clone(),
            url: self.store.url().to_owned(),
        }
    }

    /// Makes a backup exist: puts its manifest, which must name only objects that are durable.
    ///
    /// # Errors
    /// [`RepositoryError::Fenced`] when it was swept meanwhile; [`RepositoryError::TooLate`] when it took longer than
    /// [`COMMIT_DEADLINE`].
    pub async fn commit(&self, id: &BackupId, manifest: SealedObject) -> Result<(), RepositoryError> {
        let fenced = || RepositoryError::Fenced { id: id.to_string() };
        if self.now().duration_since(id.started_at()) > COMMIT_DEADLINE {
            return Err(RepositoryError::TooLate { id: id.to_string() });
        }
        let key = layout::backup_object(&self.cluster, id, layout::MANIFEST);
        match self.store.put_new_parts(&key, manifest.body).await? {
            PutOutcome::Created => Ok(()),
            PutOutcome::AlreadyExists => Err(fenced()),
        }
    }

    /// Removes a backup: its manifest first, then all the rest that no other backup needs, then its pins and evidence.
    /// Returns the number of objects that went.
    ///
    /// # Errors
    /// Whatever the store says; what remains is an orphan, which a sweep removes.
    pub async fn remove(&self, id: &BackupId, references: &mut References) -> Result<u64, RepositoryError> {
        let manifest = layout::backup_object(&self.cluster, id, layout::MANIFEST);
        self.store.delete(&manifest).await?;
        references.forget(id);
        let objects = self.store.list(&layout::backup_prefix(&self.cluster, id)).await?;
        let needed = objects.iter().any(|object| references.need(id, &object.key));
        let (mut removed, mut gone) = (1, objects);
        if needed {
            let why = "removed; other backups need what is left";
            removed += self.sweep_one(id, why, references).await?.objects();
            gone.clear();
        }
        // The claim goes last: as long as anything is left, it says that somebody meant to remove it.
        for prefix in [
            layout::backup_evidence_prefix(&self.cluster, id),
            layout::pin_prefix(&self.cluster, id),
        ] {
            let said = self.store.list(&prefix).await?;
            let before = std::mem::replace(&mut gone, said);
            removed += self.delete(before).await?;
        }
        Ok(removed + self.delete(gone).await?)
    }

    async fn delete(&self, objects: Vec<ObjectInfo>) -> Result<u64, RepositoryError> {
        let keys = objects.into_iter().map(|object| object.key);
        Ok(self.store.delete_all(keys.collect()).await?)
    }

    /// Removes what unfinished backups left. The caller holds the cluster's lease, so no backup of ours is running;
    /// one that runs all the same is fenced off by the tombstone.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn sweep(&self, kind: BackupKind) -> Result<Swept, RepositoryError> {
        self.sweep_of(&[kind]).await
    }

    /// The same of several kinds, which looks through the rest of the cluster's folder once.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn sweep_of(&self, kinds: &[BackupKind]) -> Result<Swept, RepositoryError> {
        let mut swept = Swept::default();
        // What killed writers left of objects that were never whole; only local directories have such. Whoever writes to
        // a backup has the lease; to the rest of the cluster's folder, anybody may just be writing.
        let of_kinds = kinds
            .iter()
            .map(|kind| (layout::kind_prefix(&self.cluster, *kind), Duration::ZERO));
        for (prefix, idle) in of_kinds.chain([(format!("{}/", self.cluster), LEFTOVER_IDLE)]) {
            swept.objects += self.store.remove_leftovers(&prefix, idle).await?;
        }
        for kind in kinds {
            self.sweep_unfinished(*kind, &mut swept).await?;
        }
        Ok(swept)
    }

    async fn sweep_unfinished(&self, kind: BackupKind, swept: &mut Swept) -> Result<(), RepositoryError> {
        let mut gone = Vec::new();
        for id in self.ids(kind).await?.into_iter().rev() {
            match self.state(&id).await? {
                BackupState::Complete | BackupState::Damaged => {}
                BackupState::Incomplete if self.is_empty(&id).await? => {}
                state => gone.push((id, state)),
            }
        }
        if gone.is_empty() {
            return Ok(());
        }
        self.retain_unfinished(&mut gone).await?;
        let references = self.references(kind).await?;
        for (id, state) in gone {
            if state == BackupState::Swept {
                swept.objects += self.finish_sweep(&id, &references).await?;
                continue;
            }
            let given_up = self.sweep_one(&id, "orphan", &references).await?;
            swept.objects += given_up.objects();
            if given_up != GivenUp::Committed {
                swept.backups.push(id);
            }
        }
        Ok(())
    }

    /// Leaves those alone that were backups once. A host that only takes backups may not be allowed to read what is said
    /// about them: what it can't tell of, it leaves to others, and says so.
    async fn retain_unfinished(
        &self,
        gone: &mut Vec<(BackupId, BackupState)>,
    ) -> Result<(), RepositoryError> {
        let (mut stay, mut denied) = (Vec::new(), Vec::new());
        for (id, _) in gone.iter().filter(|(_, state)| *state == BackupState::Incomplete) {
            match self.was_a_backup(id).await {
                Ok(false) => continue,
                Ok(true) => {
                    tracing::warn!("{id} has lost its manifest, and stays: 'pgkeep list' says what to do");
                }
                Err(RepositoryError::Store(error)) if error.kind() == StoreErrorKind::PermissionDenied => {
                    denied.push(error);
                }
                Err(error) => return Err(error),
            }
            stay.push(id.clone());
        }
        // The same line at every dump is noise enough without one for each of them.
        if let Some(error) = denied.first() {
            let hint = error.hint().map(|hint| format!("; or {hint}"));
            tracing::warn!(
                %error,
                "unfinished backups stay ({}), as these credentials may not read what is said about them: run 'pgkeep prune' \
                 with those that may{}",
                denied.len(),
                hint.unwrap_or_default()
            );
        }
        gone.retain(|(id, _)| !stay.contains(id));
        Ok(())
    }

    /// Whether what has no manifest had one: a pin says so, or the evidence of a verification, be it readable or not, and
    /// no removal was begun.
    ///
    /// The pin is read first: a removal's claim is there before the manifest goes, and goes after the evidence.
    async fn was_a_backup(&self, id: &BackupId) -> Result<bool, RepositoryError> {
        if let Some(pin) = self.newest_pin(id).await? {
            return Ok(!pin.is_removal());
        }
        let evidence = layout::backup_evidence_prefix(&self.cluster, id);
        Ok(self.store.list_each(&evidence, |_| false).await? > 0)
    }

    /// Whether it was a backup until somebody else deleted its manifest. Where that may not be read, it may have been.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn has_lost_manifest(&self, id: &BackupId) -> Result<bool, RepositoryError> {
        if self.state(id).await? != BackupState::Incomplete || self.is_empty(id).await? {
            return Ok(false);
        }
        match self.was_a_backup(id).await {
            Err(RepositoryError::Store(error)) if error.kind() == StoreErrorKind::PermissionDenied => {
                Ok(true)
            }
            was => was,
        }
    }

    /// Some stores go on naming a folder whose last object is gone.
    async fn is_empty(&self, id: &BackupId) -> Result<bool, RepositoryError> {
        let seen = self
            .store
            .list_each(&layout::backup_prefix(&self.cluster, id), |_| false)
            .await?;
        Ok(seen == 0)
    }

    /// Gives up a backup whose writer is this process, and has stopped: as [`Repository::sweep_one`], but a full disk is
    /// no obstacle, because nobody is left to be fenced off before its objects go.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn sweep_own(&self, id: &BackupId, reason: &str) -> Result<GivenUp, RepositoryError> {
        // It doesn't exist, so nobody refers to it.
        let none = References::default();
        match self.sweep_one(id, reason, &none).await {
            Err(RepositoryError::Store(error)) if error.kind() == StoreErrorKind::NoSpace => {
                if self.state(id).await?.is_there() {
                    return Ok(GivenUp::Committed);
                }
                let objects = self.store.list(&layout::backup_prefix(&self.cluster, id)).await?;
                let keys = objects.into_iter().map(|object| object.key);
                self.store.delete_all(keys.collect()).await?;
                self.sweep_one(id, reason, &none).await
            }
            given_up => given_up,
        }
    }

    /// Gives one unfinished backup up: tombstone, then the rest.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn sweep_one(
        &self,
        id: &BackupId,
        reason: &str,
        references: &References,
    ) -> Result<GivenUp, RepositoryError> {
        match self.put_tombstone(id, reason).await? {
            PutOutcome::Created => self.finish_sweep(id, references).await.map(GivenUp::Now),
            PutOutcome::AlreadyExists if self.state(id).await?.is_there() => Ok(GivenUp::Committed),
            PutOutcome::AlreadyExists => self.finish_sweep(id, references).await.map(GivenUp::Before),
        }
    }

    /// Puts a tombstone where the manifest would be, create-only.
    pub(crate) async fn put_tombstone(
        &self,
        id: &BackupId,
        reason: &str,
    ) -> Result<PutOutcome, RepositoryError> {
        let key = layout::backup_object(&self.cluster, id, layout::MANIFEST);
        let tombstone = Tombstone {
            swept_at: self.now(),
            reason: reason.to_owned(),
        };
        Ok(self.store.put_new(&key, to_json(&tombstone)?).await?)
    }

    async fn finish_sweep(&self, id: &BackupId, references: &References) -> Result<u64, RepositoryError> {
        let manifest = layout::backup_object(&self.cluster, id, layout::MANIFEST);
        let prefix = layout::backup_prefix(&self.cluster, id);
        let objects = self.store.list(&prefix).await?;
        let (needed, keys): (Vec<String>, Vec<String>) = objects
            .into_iter()
            .map(|object| object.key)
            .filter(|key| *key != manifest)
            .partition(|key| references.need(id, key));
        let mut removed = self.store.delete_all(keys).await?;
        // Whoever still writes here is fenced off, so half-written files have no future either.
        removed += self.store.remove_leftovers(&prefix, Duration::ZERO).await?;
        // As long as something is left, it says why.
        if needed.is_empty() && self.now().duration_since(id.started_at()) > TOMBSTONE_LIFETIME {
            self.store.delete(&manifest).await?;
        }
        Ok(removed)
    }
}
