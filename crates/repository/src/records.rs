//! What is said about a backup beside it: pins, and what verifications found.
//!
//! Each is a numbered series of small objects, written once, create-only, of which the highest counts. So of two writers
//! of the next one, one learns that the other came first: that is how a pin and a removal in the same moment are told
//! apart ([`Repository::claim_removal`]).

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use pgkeep_base::{BackupId, BackupKind};
use pgkeep_store::{ObjectInfo, PutOutcome, StoreErrorKind};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::RepositoryError;
use crate::layout;
use crate::lease;
use crate::repo::{Repository, SMALL_OBJECT_BYTES_MAX, from_json, to_json};

/// Writers of one series in the same moment.
const RACES_MAX: u32 = 16;

/// Keeps a backup from being pruned until it is unpinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// False in the object that takes a pin back.
    pub pinned: bool,
    /// Why, in the user's words.
    pub reason: String,
    /// When.
    pub at: Timestamp,
    /// The last word before a prune removes the backup.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    removing: bool,
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

impl Pin {
    /// Whether it is no pin but what says that a prune was about to remove the backup.
    pub(crate) fn is_removal(&self) -> bool {
        self.removing
    }
}

impl Evidence {
    /// Whether it looked at all that an earlier, failed one looked at.
    fn clears(&self, failed: &Self) -> bool {
        self.objects == self.objects_total && (self.depth == failed.depth || self.depth == "contents")
    }
}

/// An object of a series.
trait Record: Serialize + DeserializeOwned {
    /// What one stands for that can't be read.
    fn unreadable(written_at: Timestamp) -> Option<Self>;
}

impl Record for Pin {
    /// Rather kept in vain than removed in error.
    fn unreadable(written_at: Timestamp) -> Option<Self> {
        Some(Self {
            pinned: true,
            reason: "its pin can't be read".to_owned(),
            at: written_at,
            removing: false,
        })
    }
}

impl Record for Evidence {
    /// Evidence of nothing.
    fn unreadable(_: Timestamp) -> Option<Self> {
        None
    }
}

impl Repository {
    /// Pins a backup or takes its pin back. False when there is no pin to be taken back.
    ///
    /// # Errors
    /// [`RepositoryError::LeaseHeld`] by a prune that is about to remove it, [`RepositoryError::Removed`] when it has;
    /// whatever the store says.
    pub async fn set_pin(&self, id: &BackupId, pinned: bool, reason: &str) -> Result<bool, RepositoryError> {
        let prefix = layout::pin_prefix(&self.cluster, id);
        let pin = Pin {
            pinned,
            reason: reason.to_owned(),
            at: self.now(),
            removing: false,
        };
        for _ in 0..RACES_MAX {
            let (number, newest) = self.newest::<Pin>(&prefix).await?;
            if !pinned && newest.as_ref().is_none_or(|newest| !newest.pinned) {
                return Ok(false);
            }
            // A prune that died left its claim behind, which then means nothing.
            if pinned
                && newest.is_some_and(|newest| newest.removing)
                && let Some(held) = lease::held(self).await?
            {
                return Err(held);
            }
            if self.put_after(&prefix, number, &pin).await? == PutOutcome::Created {
                if pinned {
                    self.check_there(id).await?;
                }
                return Ok(true);
            }
        }
        Err(RepositoryError::ObjectExists { key: prefix })
    }

    /// The last look before a removal: `None` if the backup isn't pinned. From then on it can't be, as long as the
    /// caller holds the lease. Otherwise the pin.
    pub(crate) async fn claim_removal(&self, id: &BackupId) -> Result<Option<Pin>, RepositoryError> {
        let prefix = layout::pin_prefix(&self.cluster, id);
        for _ in 0..RACES_MAX {
            let (number, newest) = self.newest::<Pin>(&prefix).await?;
            if let Some(pin) = newest.filter(|pin| pin.pinned) {
                return Ok(Some(pin));
            }
            let claim = Pin {
                pinned: false,
                reason: String::new(),
                at: self.now(),
                removing: true,
            };
            if self.put_after(&prefix, number, &claim).await? == PutOutcome::Created {
                return Ok(None);
            }
        }
        Err(RepositoryError::ObjectExists { key: prefix })
    }

    /// The newest of the pins of all backups, those that take one back included.
    pub(crate) async fn newest_pins(&self) -> Result<BTreeMap<BackupId, Pin>, RepositoryError> {
        self.newest_of(&layout::pins_prefix(&self.cluster)).await
    }

    /// The same of one backup.
    pub(crate) async fn newest_pin(&self, id: &BackupId) -> Result<Option<Pin>, RepositoryError> {
        let prefix = layout::pin_prefix(&self.cluster, id);
        Ok(self.newest::<Pin>(&prefix).await?.1)
    }

    /// The newest evidence of all backups.
    pub(crate) async fn evidence(&self) -> Result<BTreeMap<BackupId, Evidence>, RepositoryError> {
        self.newest_of(&layout::evidence_prefix(&self.cluster)).await
    }

    /// The newest evidence of one backup.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn evidence_of(&self, id: &BackupId) -> Result<Option<Evidence>, RepositoryError> {
        let prefix = layout::backup_evidence_prefix(&self.cluster, id);
        Ok(self.newest::<Evidence>(&prefix).await?.1)
    }

    /// Records what a verification found.
    ///
    /// # Errors
    /// [`RepositoryError::Removed`] when there is no such backup any more; whatever the store says.
    pub async fn record_evidence(&self, id: &BackupId, evidence: &Evidence) -> Result<(), RepositoryError> {
        self.check_there(id).await?;
        let prefix = layout::backup_evidence_prefix(&self.cluster, id);
        let mut evidence = evidence.clone();
        for _ in 0..RACES_MAX {
            let (number, earlier) = self.newest::<Evidence>(&prefix).await?;
            if let Some(failed) = earlier.filter(|earlier| !earlier.passed)
                && evidence.passed
                && !evidence.clears(&failed)
            {
                // What this one didn't look at is as damaged as before.
                evidence.passed = false;
                evidence.failures = failed.failures;
            }
            if self.put_after(&prefix, number, &evidence).await? == PutOutcome::Created {
                return Ok(());
            }
        }
        Err(RepositoryError::ObjectExists { key: prefix })
    }

    /// Removes what is said about backups that are gone: it came while they were being removed. Returns the number of
    /// objects.
    pub(crate) async fn forget_the_gone(&self) -> Result<u64, RepositoryError> {
        let prefixes = [
            layout::pins_prefix(&self.cluster),
            layout::evidence_prefix(&self.cluster),
        ];
        let mut said: Vec<(BackupId, String)> = Vec::new();
        for prefix in &prefixes {
            for object in self.store.list(prefix).await? {
                if let Some((id, _)) = series_name(prefix, &object.key) {
                    said.push((id, object.key));
                }
            }
        }
        // Looked at afterwards, or a new backup would be taken for a gone one.
        let mut there = BTreeSet::new();
        for kind in BackupKind::ALL {
            there.extend(self.ids(kind).await?);
        }
        said.retain(|(id, _)| !there.contains(id));
        let keys = said.into_iter().map(|(_, key)| key).collect();
        Ok(self.store.delete_all(keys).await?)
    }

    /// The highest number of a series, 0 for an empty one, and what stands there.
    async fn newest<T: Record>(&self, prefix: &str) -> Result<(u64, Option<T>), RepositoryError> {
        let numbered = |object: ObjectInfo| {
            let number = object.key.strip_prefix(prefix).and_then(series_number)?;
            Some((number, object))
        };
        let objects = self.store.list(prefix).await?.into_iter();
        let Some((number, object)) = objects.filter_map(numbered).max_by_key(|(number, _)| *number) else {
            return Ok((0, None));
        };
        Ok((number, self.record(&object).await?))
    }

    /// Puts the next object of a series, unless somebody else was quicker.
    async fn put_after<T: Record>(
        &self,
        prefix: &str,
        number: u64,
        value: &T,
    ) -> Result<PutOutcome, RepositoryError> {
        let key = format!("{prefix}{:06}", number + 1);
        Ok(self.store.put_new(&key, to_json(value)?).await?)
    }

    /// The newest object of each backup's series under a folder.
    async fn newest_of<T: Record>(&self, prefix: &str) -> Result<BTreeMap<BackupId, T>, RepositoryError> {
        let mut newest: BTreeMap<BackupId, (u64, ObjectInfo)> = BTreeMap::new();
        for object in self.store.list(prefix).await? {
            let Some((id, number)) = series_name(prefix, &object.key) else {
                continue;
            };
            if newest.get(&id).is_none_or(|(highest, _)| *highest < number) {
                newest.insert(id, (number, object));
            }
        }
        let mut values = BTreeMap::new();
        for (id, (_, object)) in newest {
            if let Some(value) = self.record(&object).await? {
                values.insert(id, value);
            }
        }
        Ok(values)
    }

    /// `None` when it went between listing and reading: a prune removed its backup.
    async fn record<T: Record>(&self, object: &ObjectInfo) -> Result<Option<T>, RepositoryError> {
        let body = match self.store.get(&object.key, SMALL_OBJECT_BYTES_MAX).await {
            Ok(body) => body,
            Err(error) if error.kind() == StoreErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        Ok(from_json(&object.key, &body).map_or_else(
            |error| {
                tracing::warn!(%error, "a record beside a backup can't be read");
                T::unreadable(object.modified_at)
            },
            Some,
        ))
    }

    async fn check_there(&self, id: &BackupId) -> Result<(), RepositoryError> {
        if self.state(id).await?.is_there() {
            Ok(())
        } else {
            Err(RepositoryError::Removed { id: id.to_string() })
        }
    }
}

/// The backup and the number that a key names.
fn series_name(prefix: &str, key: &str) -> Option<(BackupId, u64)> {
    let (folder, name) = key.strip_prefix(prefix)?.split_once('/')?;
    Some((folder.parse().ok()?, series_number(name)?))
}

/// The number in a series' name: six digits, and more of them only after a million. Anything else isn't ours, and must
/// neither pass for the newest nor make the next one overflow.
fn series_number(name: &str) -> Option<u64> {
    let digits = (6..=12).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_digit());
    name.parse().ok().filter(|_| digits)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use pgkeep_store::{Store, StoreOptions};

    use super::*;
    use crate::Access;
    use crate::encryption::Encryption;
    use crate::lease::Lease;

    /// A repository in memory with one backup.
    async fn repository() -> (Repository, BackupId) {
        let store = Store::open("memory://", &StoreOptions::default()).await.unwrap();
        let access = Access {
            encryption: Encryption::None,
            identities: Vec::new(),
            compression_level: 1,
        };
        let repository = Repository::open_or_create(store, "main", access).await.unwrap();
        let id = BackupId::new(BackupKind::Dump, repository.now()).unwrap();
        let manifest = repository.seal(Bytes::from_static(b"{}")).await.unwrap();
        repository.commit(&id, manifest).await.unwrap();
        (repository, id)
    }

    async fn pin_of(repository: &Repository, id: &BackupId) -> Option<String> {
        let pins = repository.newest_pins().await.unwrap();
        let pin = pins.get(id).filter(|pin| pin.pinned);
        pin.map(|pin| pin.reason.clone())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_pins_in_the_same_moment_none_is_lost() {
        const PINS: u64 = 8;
        let (repository, id) = repository().await;
        let pins = (0..PINS).map(|number| {
            let (repository, id) = (repository.clone(), id.clone());
            tokio::spawn(async move { repository.set_pin(&id, true, &number.to_string()).await })
        });
        for pinned in futures::future::join_all(pins).await {
            pinned.unwrap().unwrap();
        }
        let prefix = layout::pin_prefix("main", &id);
        let mut reasons = BTreeSet::new();
        let objects = repository.store.list(&prefix).await.unwrap();
        for object in &objects {
            reasons.insert(repository.record::<Pin>(object).await.unwrap().unwrap().reason);
        }
        assert_eq!((objects.len() as u64, reasons.len() as u64), (PINS, PINS));
        let last = objects.last().unwrap();
        assert_eq!(last.key, format!("{prefix}{PINS:06}"));
        let counts = repository.record::<Pin>(last).await.unwrap().unwrap().reason;
        assert_eq!(pin_of(&repository, &id).await, Some(counts));
    }

    #[tokio::test]
    async fn a_pin_keeps_a_backup_or_is_told_that_it_comes_too_late() {
        let (repository, id) = repository().await;
        assert!(!repository.set_pin(&id, false, "").await.unwrap());
        assert!(repository.set_pin(&id, true, "why").await.unwrap());
        assert_eq!(
            repository.claim_removal(&id).await.unwrap().unwrap().reason,
            "why"
        );
        assert!(repository.set_pin(&id, false, "").await.unwrap());
        assert!(!repository.set_pin(&id, false, "").await.unwrap());

        let prune = Lease::acquire(&repository, "pgkeep prune", Duration::from_secs(60))
            .await
            .unwrap();
        assert_eq!(repository.claim_removal(&id).await.unwrap(), None);
        let late = repository.set_pin(&id, true, "late").await.unwrap_err();
        assert!(matches!(late, RepositoryError::LeaseHeld { .. }), "{late}");
        assert_eq!(pin_of(&repository, &id).await, None);
        // The prune died before it removed anything: its claim is void.
        prune.release().await.unwrap();
        repository.set_pin(&id, true, "again").await.unwrap();
        assert_eq!(pin_of(&repository, &id).await.as_deref(), Some("again"));
        // It came to its end.
        repository
            .remove(&id, &mut crate::references::References::default())
            .await
            .unwrap();
        let late = repository.set_pin(&id, true, "too late").await.unwrap_err();
        assert!(matches!(late, RepositoryError::Removed { .. }), "{late}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_a_pin_and_a_removal_in_the_same_moment_one_succeeds() {
        for _ in 0..200 {
            let (repository, id) = repository().await;
            let _prune = Lease::acquire(&repository, "pgkeep prune", Duration::from_secs(60))
                .await
                .unwrap();
            let pin = {
                let (repository, id) = (repository.clone(), id.clone());
                tokio::spawn(async move { repository.set_pin(&id, true, "").await.is_ok() })
            };
            let claimed = tokio::spawn(async move { repository.claim_removal(&id).await.unwrap().is_none() });
            let (pinned, claimed) = (pin.await.unwrap(), claimed.await.unwrap());
            assert_ne!(pinned, claimed, "both think that they have it, or none");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_read_keeps_a_backup_and_is_no_evidence() {
        let (repository, id) = repository().await;
        for (prefix, body) in [
            (layout::pin_prefix("main", &id), ""),
            (layout::backup_evidence_prefix("main", &id), "{"),
        ] {
            let key = format!("{prefix}000001");
            let put = repository
                .store
                .put_new(&key, Bytes::from_static(body.as_bytes()));
            assert_eq!(put.await.unwrap(), PutOutcome::Created);
        }
        let entries = repository.backups(BackupKind::Dump).await.unwrap();
        assert_eq!(entries[0].pin.as_ref().unwrap().reason, "its pin can't be read");
        assert_eq!(entries[0].evidence, None);
        // And what comes after it counts.
        repository.set_pin(&id, false, "").await.unwrap();
        assert_eq!(pin_of(&repository, &id).await, None);
    }

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
