//! Which backups exist, and how they come and go.
//!
//! - **Commit**: the manifest is put last, create-only. It exists, so the backup exists.
//! - **Tombstone**: before an orphan (a folder without a manifest) is swept, a tombstone is put in the manifest's place,
//!   create-only. Its writer, if it still lives, finds its commit refused.
//! - **Removal**: the manifest goes first, then the rest. Killed half-way, an orphan remains, never a torn backup.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use pgkeep_base::{BackupId, BackupKind};
use pgkeep_store::{PutOutcome, StoreErrorKind};
use serde::{Deserialize, Serialize};

use crate::error::RepositoryError;
use crate::layout;
use crate::object::SealedObject;
use crate::repo::{Repository, SMALL_OBJECT_BYTES_MAX, from_json, to_json};

/// A backup is committed within this time of its start, or not at all; so that a tombstone may go some time later.
pub const COMMIT_DEADLINE: SignedDuration = SignedDuration::from_hours(72);

/// Tombstones stay this long: well beyond [`COMMIT_DEADLINE`] and any clock's error.
const TOMBSTONE_LIFETIME: SignedDuration = SignedDuration::from_hours(14 * 24);

/// A part of an object that nobody has written to for this long has lost its writer.
const LEFTOVER_IDLE: Duration = Duration::from_secs(3600);

/// What a tombstone begins with; a manifest begins with age's or zstd's magic.
const TOMBSTONE_FIRST_BYTE: u8 = b'{';

/// What lies in a backup's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupState {
    /// Its manifest is there.
    Complete,
    /// No manifest: being written, or an orphan.
    Incomplete,
    /// Given up: a tombstone in the manifest's place.
    Swept,
}

/// One backup's folder.
#[derive(Debug, Clone)]
pub struct BackupEntry {
    /// Its id.
    pub id: BackupId,
    /// What lies there.
    pub state: BackupState,
    /// The newest pin, if it is pinned.
    pub pin: Option<Pin>,
    /// The newest verification's outcome, if there was one.
    pub evidence: Option<Evidence>,
}

/// Keeps a backup from being pruned until it is unpinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// False in the object that takes a pin back.
    pub pinned: bool,
    /// Why, in the user's words.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// What a verification found. Written for each verification, read for the newest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// When it ended.
    pub at: Timestamp,
    /// How deep it went: `hashes` (stored bytes) or `contents` (decrypted, decompressed, counted).
    pub depth: String,
    /// Objects read.
    pub objects: u64,
    /// Objects of the backup.
    pub objects_total: u64,
    /// Everything read was right.
    pub passed: bool,
    /// What was wrong, the first few.
    pub failures: Vec<String>,
}

impl Evidence {
    /// Whether it looked at all that an earlier, failed one looked at.
    fn clears(&self, failed: &Self) -> bool {
        self.objects == self.objects_total && (self.depth == failed.depth || self.depth == "contents")
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

impl Repository {
    /// Every backup's folder of a kind, oldest first.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn backups(&self, kind: BackupKind) -> Result<Vec<BackupEntry>, RepositoryError> {
        let mut pins = self.newest_of::<Pin>(&layout::pins_prefix(&self.cluster)).await?;
        let mut evidence = self
            .newest_of::<Evidence>(&layout::evidence_prefix(&self.cluster))
            .await?;
        let mut entries = Vec::new();
        for name in self
            .store
            .list_directories(&layout::kind_prefix(&self.cluster, kind))
            .await?
        {
            // A folder that isn't ours is left alone.
            let Ok(id) = BackupId::from_str(&name) else {
                continue;
            };
            let state = self.state(&id).await?;
            if state == BackupState::Incomplete && self.is_empty(&id).await? {
                continue;
            }
            let pin = pins.remove(&id).filter(|pin| pin.pinned);
            entries.push(BackupEntry {
                state,
                pin,
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
            Ok(first) if first.first() == Some(&TOMBSTONE_FIRST_BYTE) => Ok(BackupState::Swept),
            Ok(_) => Ok(BackupState::Complete),
            Err(error) if error.kind() == StoreErrorKind::NotFound => Ok(BackupState::Incomplete),
            Err(error) => Err(error.into()),
        }
    }

    /// The backup that `text` names: an id, the beginning of one, or `latest`.
    ///
    /// # Errors
    /// [`RepositoryError::NoSuchBackup`], [`RepositoryError::AmbiguousId`].
    pub async fn find(&self, kind: BackupKind, text: &str) -> Result<BackupId, RepositoryError> {
        let mut complete = Vec::new();
        let prefix = layout::kind_prefix(&self.cluster, kind);
        let mut ids: Vec<BackupId> = self
            .store
            .list_directories(&prefix)
            .await?
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        ids.sort();
        for id in ids.into_iter().rev() {
            let fits = text == "latest" || id.to_string().starts_with(text);
            if fits && self.state(&id).await? == BackupState::Complete {
                complete.push(id);
                if text == "latest" {
                    break;
                }
            }
        }
        match complete.len() {
            1 => Ok(complete.remove(0)),
            0 => Err(RepositoryError::NoSuchBackup {
                text: text.to_owned(),
                cluster: self.cluster.clone(),
                known: if text == "latest" {
                    None
                } else {
                    Box::pin(self.find(kind, "latest"))
                        .await
                        .ok()
                        .map(|id| id.to_string())
                },
            }),
            _ => Err(RepositoryError::AmbiguousId {
                text: text.to_owned(),
                candidates: complete.iter().map(ToString::to_string).collect(),
            }),
        }
    }

    /// Makes a backup exist: puts its manifest, which must name only objects that are durable.
    ///
    /// # Errors
    /// [`RepositoryError::Fenced`] when it was swept meanwhile, or took longer than [`COMMIT_DEADLINE`].
    pub async fn commit(&self, id: &BackupId, manifest: SealedObject) -> Result<(), RepositoryError> {
        let fenced = || RepositoryError::Fenced { id: id.to_string() };
        if self.now().duration_since(id.started_at()) > COMMIT_DEADLINE {
            return Err(fenced());
        }
        let key = layout::backup_object(&self.cluster, id, layout::MANIFEST);
        match self.store.put_new_parts(&key, manifest.body).await? {
            PutOutcome::Created => Ok(()),
            PutOutcome::AlreadyExists => Err(fenced()),
        }
    }

    /// Removes a backup: its manifest first, then all the rest, then its pins and evidence.
    ///
    /// # Errors
    /// Whatever the store says; what remains is an orphan, which a sweep removes.
    pub async fn remove(&self, id: &BackupId) -> Result<u64, RepositoryError> {
        self.store
            .delete(&layout::backup_object(&self.cluster, id, layout::MANIFEST))
            .await?;
        let mut keys = Vec::new();
        for prefix in [
            layout::backup_prefix(&self.cluster, id),
            layout::pin_prefix(&self.cluster, id),
            layout::backup_evidence_prefix(&self.cluster, id),
        ] {
            keys.extend(
                self.store
                    .list(&prefix)
                    .await?
                    .into_iter()
                    .map(|object| object.key),
            );
        }
        Ok(1 + self.store.delete_all(keys).await?)
    }

    /// Removes what unfinished backups left. The caller holds the cluster's lease, so no backup of ours is running;
    /// one that runs all the same is fenced off by the tombstone.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn sweep(&self, kind: BackupKind) -> Result<Swept, RepositoryError> {
        let mut swept = Swept::default();
        // What killed writers left of objects that were never whole; only local directories have such.
        swept.objects += self
            .store
            .remove_leftovers(&format!("{}/", self.cluster), LEFTOVER_IDLE)
            .await?;
        for name in self
            .store
            .list_directories(&layout::kind_prefix(&self.cluster, kind))
            .await?
        {
            let Ok(id) = BackupId::from_str(&name) else {
                continue;
            };
            match self.state(&id).await? {
                BackupState::Complete => {}
                BackupState::Incomplete if self.is_empty(&id).await? => {}
                BackupState::Incomplete => {
                    swept.objects += self.sweep_one(&id, "orphan").await?;
                    swept.backups.push(id);
                }
                BackupState::Swept => swept.objects += self.finish_sweep(&id).await?,
            }
        }
        Ok(swept)
    }

    /// Some stores go on naming a folder whose last object is gone.
    async fn is_empty(&self, id: &BackupId) -> Result<bool, RepositoryError> {
        let seen = self
            .store
            .list_each(&layout::backup_prefix(&self.cluster, id), |_| false)
            .await?;
        Ok(seen == 0)
    }

    /// Gives one unfinished backup up: tombstone, then the rest.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn sweep_one(&self, id: &BackupId, reason: &str) -> Result<u64, RepositoryError> {
        let key = layout::backup_object(&self.cluster, id, layout::MANIFEST);
        let tombstone = Tombstone {
            swept_at: self.now(),
            reason: reason.to_owned(),
        };
        let outcome = self.store.put_new(&key, to_json(&tombstone)?).await?;
        if outcome == PutOutcome::AlreadyExists && self.state(id).await? == BackupState::Complete {
            // Committed between looking and sweeping: it is a backup now.
            return Ok(0);
        }
        self.finish_sweep(id).await
    }

    async fn finish_sweep(&self, id: &BackupId) -> Result<u64, RepositoryError> {
        let manifest = layout::backup_object(&self.cluster, id, layout::MANIFEST);
        let objects = self.store.list(&layout::backup_prefix(&self.cluster, id)).await?;
        let keys: Vec<String> = objects
            .into_iter()
            .map(|object| object.key)
            .filter(|key| *key != manifest)
            .collect();
        let removed = self.store.delete_all(keys).await?;
        if self.now().duration_since(id.started_at()) > TOMBSTONE_LIFETIME {
            self.store.delete(&manifest).await?;
        }
        Ok(removed)
    }

    /// Pins a backup or takes its pin back.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn set_pin(&self, id: &BackupId, pinned: bool, reason: &str) -> Result<(), RepositoryError> {
        let pin = Pin {
            pinned,
            reason: reason.to_owned(),
            at: self.now(),
        };
        self.put_numbered(&layout::pin_prefix(&self.cluster, id), &pin)
            .await
    }

    /// Records what a verification found.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn record_evidence(&self, id: &BackupId, evidence: &Evidence) -> Result<(), RepositoryError> {
        let prefix = layout::backup_evidence_prefix(&self.cluster, id);
        let mut earlier = self
            .newest_of::<Evidence>(&layout::evidence_prefix(&self.cluster))
            .await?;
        let mut evidence = evidence.clone();
        if let Some(failed) = earlier.remove(id).filter(|earlier| !earlier.passed)
            && evidence.passed
            && !evidence.clears(&failed)
        {
            // What this one didn't look at is as damaged as before.
            evidence.passed = false;
            evidence.failures = failed.failures;
        }
        self.put_numbered(&prefix, &evidence).await
    }

    /// Puts the next object of a numbered series, of which the highest counts.
    async fn put_numbered<T: Serialize>(&self, prefix: &str, value: &T) -> Result<(), RepositoryError> {
        const RACES_MAX: u32 = 16;
        let last = self
            .store
            .list(prefix)
            .await?
            .into_iter()
            .filter_map(|object| object.key.strip_prefix(prefix).and_then(series_number));
        let mut number = last.max().unwrap_or(0);
        for _ in 0..RACES_MAX {
            number += 1;
            let key = format!("{prefix}{number:06}");
            if self.store.put_new(&key, to_json(value)?).await? == PutOutcome::Created {
                return Ok(());
            }
        }
        Err(RepositoryError::ObjectExists {
            key: format!("{prefix}{number:06}"),
        })
    }

    /// The newest object of each backup's numbered series under a folder.
    async fn newest_of<T: for<'a> Deserialize<'a>>(
        &self,
        prefix: &str,
    ) -> Result<BTreeMap<BackupId, T>, RepositoryError> {
        let mut newest: BTreeMap<BackupId, (u64, String)> = BTreeMap::new();
        for object in self.store.list(prefix).await? {
            let name = object
                .key
                .strip_prefix(prefix)
                .and_then(|rest| rest.split_once('/'));
            let found = name.and_then(|(folder, name)| Some((folder.parse().ok()?, series_number(name)?)));
            let Some((id, number)) = found else { continue };
            if newest.get(&id).is_none_or(|(highest, _)| *highest < number) {
                newest.insert(id, (number, object.key));
            }
        }
        let mut values = BTreeMap::new();
        for (id, (_, key)) in newest {
            let body = self.store.get(&key, SMALL_OBJECT_BYTES_MAX).await?;
            values.insert(id, from_json(&key, &body)?);
        }
        Ok(values)
    }
}

/// The number in a series' name: six digits, and more of them only after a million. Anything else isn't ours, and must
/// neither pass for the newest nor make the next one overflow.
fn series_number(name: &str) -> Option<u64> {
    let digits = (6..=12).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_digit());
    name.parse().ok().filter(|_| digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_among_numbered_objects_are_passed_over() {
        assert_eq!(
            (series_number("000007"), series_number("1000000")),
            (Some(7), Some(1_000_000))
        );
        for stranger in ["7", "+00007", "zzzzzz", "000007.bak", "18446744073709551615", ""] {
            assert_eq!(series_number(stranger), None, "{stranger}");
        }
    }
}
