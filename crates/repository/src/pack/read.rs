use bytes::Bytes;

use super::{PACK_STORED_BYTES_MAX, PackIndex};
use crate::encryption::{self, Encryption, EndRanges, OpenOptions};
use crate::error::RepositoryError;
use crate::map::PackInfo;
use crate::repo::{Access, Repository};
use crate::varint::Broken;

/// A whole pack in memory, decrypted.
pub struct PackReader {
    contents: Vec<u8>,
    index: PackIndex,
}

impl PackReader {
    /// Of a pack as it is inside age.
    ///
    /// # Errors
    /// It is none.
    pub fn new(contents: Vec<u8>) -> Result<Self, Broken> {
        let index = PackIndex::parse(&contents)?;
        Ok(Self { contents, index })
    }

    /// Of a pack as it is stored under `key`.
    ///
    /// # Errors
    /// The key is missing or wrong; it is damaged.
    pub fn open(key: &str, stored: &[u8], access: &Access) -> Result<Self, RepositoryError> {
        let contents = encryption::decrypt_bytes(stored, &options(access));
        let contents = contents.map_err(|source| RepositoryError::Open {
            key: key.to_owned(),
            source,
        })?;
        Self::new(contents).map_err(|broken| malformed(key, broken))
    }

    /// What lies in it.
    pub fn index(&self) -> &PackIndex {
        &self.index
    }

    /// The contents of one frame: its blocks one after another.
    ///
    /// # Errors
    /// There is no such frame, or it isn't what the index says.
    pub fn frame(&self, frame: usize) -> Result<Vec<u8>, Broken> {
        let missing = Broken("a frame lies behind its end");
        let entry = self.index.frames().get(frame).ok_or(missing)?;
        let range = self.index.frame_range(frame).ok_or(missing)?;
        let bounds = (usize::try_from(range.start), usize::try_from(range.end));
        let (Ok(start), Ok(end)) = bounds else {
            return Err(missing);
        };
        let compressed = self.contents.get(start..end).ok_or(missing)?;
        if blake3::hash(compressed).as_bytes().get(..16) != Some(&entry.hash) {
            return Err(Broken("a frame is not the one that its index names"));
        }
        let expected = usize::try_from(entry.content_bytes(self.index.block_bytes())).map_err(|_| missing)?;
        match zstd::bulk::decompress(compressed, expected) {
            Ok(contents) if contents.len() == expected => Ok(contents),
            _ => Err(Broken("a frame can't be decompressed into its blocks")),
        }
    }
}

impl Repository {
    /// Fetches what a pack says of the blocks in it, and none of them: its header and its end. That these are what was
    /// written is known by age; of a pack that isn't encrypted, by zstd's checksum alone.
    ///
    /// # Errors
    /// As [`Repository::open_pack`], but for the hash.
    pub async fn pack_index(&self, pack: &PackInfo) -> Result<PackIndex, RepositoryError> {
        let key = pack.key(&self.cluster);
        let ranges = EndRanges::of(
            pack.header_bytes,
            pack.stored_bytes,
            PackIndex::end_bytes(pack.index_bytes),
        );
        let ranges = ranges.ok_or_else(|| malformed(&key, Broken("it is shorter than its end")))?;
        let head = self.store.get_range(&key, ranges.head.clone());
        let end = self.store.get_range(&key, ranges.end.clone());
        let (head, end) = match tokio::try_join!(head, end) {
            Ok(fetched) => fetched,
            Err(error) => return Err(self.unread(&pack.owner, error).await),
        };
        let (access, stored_bytes) = (self.shared_access(), pack.stored_bytes);
        let opening = tokio::task::spawn_blocking(move || {
            let contents = encryption::decrypt_end(&head, &end, stored_bytes, &ranges, &options(&access));
            let contents = contents.map_err(|source| RepositoryError::Open {
                key: key.clone(),
                source,
            })?;
            PackIndex::parse_end(&contents, ranges.plain_bytes).map_err(|broken| malformed(&key, broken))
        });
        opening
            .await
            .map_err(|error| RepositoryError::Internal(error.to_string()))?
    }

    /// Fetches a pack whole, compares its hash, and opens it.
    ///
    /// # Errors
    /// [`RepositoryError::Removed`] if it went with its backup; [`RepositoryError::HashMismatch`]; a missing or wrong key;
    /// whatever the store says.
    pub async fn open_pack(&self, pack: &PackInfo) -> Result<PackReader, RepositoryError> {
        let key = pack.key(&self.cluster);
        let stored = match self.store.get(&key, pack.stored_bytes).await {
            Ok(stored) => stored,
            Err(error) => return Err(self.unread(&pack.owner, error).await),
        };
        let (repository, expected) = (self.clone(), pack.hash);
        let opened = tokio::task::spawn_blocking(move || open(&key, &stored, &expected, &repository.access));
        opened
            .await
            .map_err(|error| RepositoryError::Internal(error.to_string()))?
    }
}

fn options(access: &Access) -> OpenOptions<'_> {
    OpenOptions {
        identities: &access.identities,
        recipients: match &access.encryption {
            Encryption::Age { recipients } => recipients.as_slice(),
            Encryption::None => &[],
        },
        bytes_max: PACK_STORED_BYTES_MAX,
    }
}

fn malformed(key: &str, broken: Broken) -> RepositoryError {
    RepositoryError::Malformed {
        key: key.to_owned(),
        reason: broken.to_string(),
    }
}

fn open(
    key: &str,
    stored: &Bytes,
    expected: &blake3::Hash,
    access: &Access,
) -> Result<PackReader, RepositoryError> {
    let found = blake3::hash(stored);
    if found != *expected {
        return Err(RepositoryError::HashMismatch {
            key: key.to_owned(),
            found: found.to_hex().to_string(),
            expected: expected.to_hex().to_string(),
        });
    }
    PackReader::open(key, stored, access)
}
