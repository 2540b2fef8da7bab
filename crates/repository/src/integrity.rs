//! `checksums.b3`: BLAKE3 of every object of a backup as it is stored, in the form `b3sum --check` reads, in plain
//! text. A host without the private key verifies with it what the store holds. The last line is the manifest's: a list
//! without it is cut short.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use bytes::Bytes;
use futures::StreamExt;
use pgkeep_base::BackupId;
use pgkeep_store::StoreErrorKind;

use crate::error::RepositoryError;
use crate::layout;
use crate::object::ObjectRef;
use crate::repo::Repository;

/// A line takes about 100 bytes; a million objects fit.
pub const CHECKSUMS_BYTES_MAX: u64 = 256 << 20;

/// Objects read at once while verifying.
const VERIFY_CONCURRENCY: usize = 4;

/// Names the length of a BLAKE3 hash in hexadecimal.
const HASH_HEX_LENGTH: usize = 64;

/// Of a wrong line this much is shown, in characters.
const SHOWN_LENGTH_MAX: usize = 200;

/// Whether it can be the name of an object of a backup: it doesn't lead out of the backup's folder, unless it is a
/// [`layout::reference`] into another one's, and can be shown on a terminal.
pub fn is_object_name(name: &str) -> bool {
    is_own_object_name(layout::reference(name).map_or(name, |(_, name)| name))
}

/// The same, in the backup's own folder.
pub fn is_own_object_name(name: &str) -> bool {
    let inside = name.split('/').all(|part| !matches!(part, "" | "." | ".."));
    inside && !name.chars().any(char::is_control)
}

/// What is known of one stored object without the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksum {
    /// BLAKE3 of the stored bytes, in hexadecimal.
    pub hash: String,
    /// The name within the backup's folder.
    pub name: String,
}

/// The names of the objects in such a list.
pub fn names(checksums: &[Checksum]) -> impl Iterator<Item = &str> {
    checksums.iter().map(|checksum| checksum.name.as_str())
}

/// The file's text.
pub fn format_checksums<'a>(objects: impl Iterator<Item = &'a ObjectRef>) -> Bytes {
    let mut text = String::new();
    for object in objects {
        // Writing to a String can't fail.
        let _ = writeln!(text, "{}  {}", object.hash, object.name);
    }
    Bytes::from(text)
}

/// Reads the file's text. Names that would leave the backup's folder are refused.
///
/// # Errors
/// The first line that isn't a checksum.
pub fn parse_checksums(text: &str) -> Result<Vec<Checksum>, String> {
    let mut checksums = Vec::new();
    for line in text.lines() {
        let parsed = line.split_once("  ").filter(|(hash, name)| {
            let hexadecimal =
                hash.len() == HASH_HEX_LENGTH && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
            hexadecimal && is_object_name(name)
        });
        let Some((hash, name)) = parsed else {
            // Anybody who can write to the store may have written it: no control characters, and not much of it.
            let shown: String = line.chars().take(SHOWN_LENGTH_MAX).collect();
            return Err(format!("'{}' is not a checksum", shown.escape_debug()));
        };
        checksums.push(Checksum {
            hash: hash.to_owned(),
            name: name.to_owned(),
        });
    }
    Ok(checksums)
}

/// One object that isn't as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The object's name within the backup's folder.
    pub name: String,
    /// What is wrong, for a person.
    pub reason: String,
}

impl Repository {
    /// Reads a backup's list of checksums, the manifest's last.
    ///
    /// # Errors
    /// [`RepositoryError::Removed`]; whatever the store says; a list that can't be read, or that was cut short.
    pub async fn checksums(&self, id: &BackupId) -> Result<Vec<Checksum>, RepositoryError> {
        let key = layout::backup_object(&self.cluster, id, layout::CHECKSUMS);
        let body = match self.store.get(&key, CHECKSUMS_BYTES_MAX).await {
            Ok(body) => body,
            Err(error) => return Err(self.unread(id, error).await),
        };
        let malformed = |reason: String| RepositoryError::Malformed {
            key: key.clone(),
            reason,
        };
        let text = std::str::from_utf8(&body).map_err(|error| malformed(error.to_string()))?;
        let checksums = parse_checksums(text).map_err(malformed)?;
        if checksums.last().is_none_or(|last| last.name != layout::MANIFEST) {
            let reason = format!("it doesn't end with the {}: it is cut short", layout::MANIFEST);
            return Err(malformed(reason));
        }
        Ok(checksums)
    }

    /// The objects that lie in a backup's folder, and in those of other backups to which names among `names` refer: their
    /// size as stored, in bytes, by their name in this backup.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn stored_sizes<'a>(
        &self,
        id: &BackupId,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<BTreeMap<String, u64>, RepositoryError> {
        let owners: BTreeSet<BackupId> = names
            .filter_map(|name| layout::reference(name).map(|(owner, _)| owner))
            .collect();
        let mut sizes = BTreeMap::new();
        for owner in owners.iter().filter(|owner| *owner != id).chain([id]) {
            let prefix = layout::backup_prefix(&self.cluster, owner);
            for object in self.store.list(&prefix).await? {
                let Some(name) = object.key.strip_prefix(&prefix) else {
                    continue;
                };
                let name = if owner == id {
                    name.to_owned()
                } else {
                    layout::reference_to(owner, name)
                };
                sizes.insert(name, object.size);
            }
        }
        Ok(sizes)
    }

    /// Reads stored objects whole and compares their hashes. Needs no key. `progress` is called for each object with
    /// the bytes read.
    ///
    /// # Errors
    /// The store can't be read at all, or the backup was removed meanwhile; missing or damaged objects are the result, not
    /// an error.
    pub async fn verify_stored(
        &self,
        id: &BackupId,
        checksums: &[Checksum],
        progress: impl Fn(u64) + Sync,
    ) -> Result<Vec<Damage>, RepositoryError> {
        let progress = &progress;
        let checks = checksums.iter().map(|checksum| async move {
            let reason = match self.hash_stored(id, &checksum.name, progress).await {
                Ok(found) if found.to_hex().as_str() == checksum.hash => return Ok(None),
                Ok(found) => format!("its BLAKE3 hash is {}, not {}", found.to_hex(), checksum.hash),
                Err(RepositoryError::Store(error)) if error.kind() == StoreErrorKind::NotFound => {
                    "it is missing".to_owned()
                }
                Err(RepositoryError::Store(error)) if error.kind() == StoreErrorKind::ShortBody => {
                    error.to_string()
                }
                Err(error) => return Err(error),
            };
            Ok(Some(Damage {
                name: checksum.name.clone(),
                reason,
            }))
        });
        let mut damages = Vec::new();
        let mut running = futures::stream::iter(checks).buffer_unordered(VERIFY_CONCURRENCY);
        while let Some(check) = running.next().await {
            damages.extend(check?);
        }
        damages.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(damages)
    }

    pub(crate) async fn hash_stored(
        &self,
        id: &BackupId,
        name: &str,
        progress: impl Fn(u64),
    ) -> Result<blake3::Hash, RepositoryError> {
        let key = layout::backup_object(&self.cluster, id, name);
        let mut stored = match self.store.get_stream(&key).await {
            Ok(stored) => stored,
            Err(error) => return Err(self.unread(id, error).await),
        };
        let mut hasher = blake3::Hasher::new();
        while let Some(block) = stored.next().await? {
            hasher.update(&block);
            progress(block.len() as u64);
        }
        Ok(hasher.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_survive_a_round_trip_and_names_stay_inside_the_folder() {
        let object = ObjectRef {
            name: "d1/000001-0001.sql.zst".to_owned(),
            stored_bytes: 3,
            hash: blake3::hash(b"abc").to_hex().to_string(),
            plain_bytes: 3,
        };
        let text = format_checksums([&object].into_iter());
        let parsed = parse_checksums(std::str::from_utf8(&text).unwrap()).unwrap();
        assert_eq!(
            parsed,
            [Checksum {
                hash: object.hash.clone(),
                name: object.name
            }]
        );
        for bad in [
            "x",
            &format!("{}  ../x", object.hash),
            &format!("{}  /etc/passwd", object.hash),
            "zz  name",
            &format!("{}  ../d20261122T020000Z-7f3a9c/../x", object.hash),
            &format!("{}  ../../d20261122T020000Z-7f3a9c/x", object.hash),
            &format!("{}  ../d20261122T020000Z-7f3a9c/", object.hash),
            &format!("{}  summary\r", object.hash),
            &format!("{}  a\u{1b}[31mb", object.hash),
        ] {
            let said = parse_checksums(bad).expect_err(bad);
            assert!(!said.chars().any(char::is_control), "{said:?}");
        }
    }
}
