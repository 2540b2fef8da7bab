//! Objects that more than one backup needs.
//!
//! A backup may name objects in the folders of earlier ones ([`layout::reference`]), directly: never by way of a third.
//! When such an earlier backup is removed, what others need of it stays in its folder, under a tombstone, until the last of
//! them goes. A backup that has lost its manifest needs them like any other: with its manifest it is whole again. What needs
//! what is told by the lists of checksums, which take no key.

use std::collections::{BTreeMap, BTreeSet};

use pgkeep_base::{BackupId, BackupKind};

use crate::backups::{BackupEntry, BackupState};
use crate::error::RepositoryError;
use crate::integrity::names;
use crate::layout;
use crate::repo::Repository;

/// Which objects backups need of others.
#[derive(Debug, Default)]
pub struct References {
    /// Who needs an object, by the object's key.
    by_key: BTreeMap<String, BTreeSet<BackupId>>,
    /// Backups whose lists can't be read: they may need whatever is older than they are.
    unknown: BTreeSet<BackupId>,
}

impl References {
    /// Whether an object in the folder of `owner` has to stay when its own backup doesn't need it any more.
    pub(crate) fn need(&self, owner: &BackupId, key: &str) -> bool {
        self.by_key.contains_key(key) || self.unknown.iter().any(|id| owner < id)
    }

    /// A backup goes, and needs nothing from now on.
    pub(crate) fn forget(&mut self, id: &BackupId) {
        self.unknown.remove(id);
        self.by_key.retain(|_, needed_by| {
            needed_by.remove(id);
            !needed_by.is_empty()
        });
    }
}

impl Repository {
    /// Reads what the backups of a kind need of others, also those that have lost their manifest.
    ///
    /// # Errors
    /// Whatever the store says. A list that is damaged is no error: it keeps all that its backup may need.
    pub async fn references(&self, kind: BackupKind) -> Result<References, RepositoryError> {
        let mut references = References::default();
        for id in self.ids(kind).await? {
            let needs_them = match self.state(&id).await? {
                BackupState::Incomplete => self.has_lost_manifest(&id).await?,
                state => state.is_there(),
            };
            if !needs_them {
                continue;
            }
            let checksums = match self.checksums(&id).await {
                Ok(checksums) => checksums,
                Err(RepositoryError::Removed { .. }) => {
                    // Removed since; or the list went with the manifest.
                    if self.has_lost_manifest(&id).await? {
                        references.unknown.insert(id);
                    }
                    continue;
                }
                Err(error) if error.is_damage() => {
                    references.unknown.insert(id);
                    continue;
                }
                Err(error) => return Err(error),
            };
            for checksum in &checksums {
                if layout::reference(&checksum.name).is_some() {
                    let key = layout::backup_object(&self.cluster, &id, &checksum.name);
                    references.by_key.entry(key).or_default().insert(id.clone());
                }
            }
        }
        Ok(references)
    }

    /// Backups whose newest verification failed, and those whose objects they refer to: what is damaged may lie in any of these
    /// folders, and may not go on into new backups. `there` are the backups of one kind.
    pub async fn suspects(&self, there: &[BackupEntry]) -> BTreeSet<BackupId> {
        let mut suspects = BTreeSet::new();
        for entry in there {
            if entry.evidence.as_ref().is_none_or(|evidence| evidence.passed) {
                continue;
            }
            suspects.insert(entry.id.clone());
            match self.checksums(&entry.id).await {
                Ok(checksums) => {
                    let names = names(&checksums);
                    suspects.extend(names.filter_map(|name| layout::reference(name).map(|(owner, _)| owner)));
                }
                // What it refers to can't be told, be it damaged or not for this host to read: whatever is older.
                Err(error) => {
                    tracing::debug!(%error, "nothing older than {} is taken over", entry.id);
                    let older = there.iter().filter(|other| other.id < entry.id);
                    suspects.extend(older.map(|other| other.id.clone()));
                }
            }
        }
        suspects
    }
}
