//! The WAL in the repository.
//!
//! | key below `<cluster>/wal/<system identifier>/` | what |
//! |---|---|
//! | `segment_bytes` | the size of segments |
//! | `<timeline>/<log>/<segment>` | a whole segment |
//! | `<timeline>/<log>/<segment>.<from>-<to>` | its bytes [from, to), while the segment grows |
//! | `<timeline>.history` | where a timeline comes from |
//!
//! Parts stay beside the whole segment until a prune. Every object is put create-only, and carries the hash of its contents in
//! its header where it is encrypted: so whoever finds a name taken knows whether the same bytes are there. See docs/FORMAT.md.

mod contents;
mod coverage;
mod fetch;
mod name;
mod ranges;
pub(crate) mod walk;

use std::io::Write;

use bytes::Bytes;
use pgkeep_pgformat::{SegmentName, SegmentSize, Timeline, WalFileName};
use pgkeep_store::{PutOutcome, StoreErrorKind};

use crate::encryption::{EncryptionError, HASH_HEAD_BYTES, encrypt_writer_with_hash, hash_in_header};
use crate::error::RepositoryError;
use crate::layout;
use crate::repo::{Access, Repository, SMALL_OBJECT_BYTES_MAX, from_json, to_json};

pub use contents::{WalCompressor, WalContents};
pub use coverage::{Covered, StoredWal, TimelineWal};
pub use name::{WalObject, WalObjectError};
pub use ranges::Ranges;

/// A history of 100,000 timelines has some 5 MB.
const HISTORY_BYTES_MAX: u64 = 16 << 20;
/// A prune may take away what a put found taken.
const PUT_ATTEMPTS_MAX: u32 = 4;
/// What age adds, about: a header, and 16 bytes for each 64 KiB.
const AGE_BYTES: u64 = 32 << 10;

/// What became of a put of WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Stored {
    /// The object is there now, durable.
    Created,
    /// It was there, with the same contents, and is durable.
    SameBytes,
    /// It was there, with other contents: somebody else writes under this name.
    OtherBytes,
}

impl Repository {
    /// Makes sure that this WAL is stored in segments of this size. Whoever puts WAL calls it first.
    ///
    /// # Errors
    /// [`RepositoryError::OtherSegmentSize`]; whatever the store says.
    pub async fn claim_wal(
        &self,
        system_identifier: u64,
        segment_size: SegmentSize,
    ) -> Result<(), RepositoryError> {
        let found = match self.wal_segment_size(system_identifier).await? {
            Some(found) => found,
            None => {
                let key = layout::wal_segment_bytes(&self.cluster, system_identifier);
                match self.store.put_new(&key, to_json(&segment_size.bytes())?).await? {
                    PutOutcome::Created => return Ok(()),
                    // Somebody else was first.
                    PutOutcome::AlreadyExists => {
                        let found = self.wal_segment_size(system_identifier).await?;
                        found.unwrap_or(segment_size)
                    }
                }
            }
        };
        if found != segment_size {
            return Err(RepositoryError::OtherSegmentSize {
                cluster: self.cluster.clone(),
                found: found.bytes(),
                ours: segment_size.bytes(),
            });
        }
        Ok(())
    }

    /// The size of the segments that this WAL is stored in; `None` if none ever was.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn wal_segment_size(
        &self,
        system_identifier: u64,
    ) -> Result<Option<SegmentSize>, RepositoryError> {
        let key = layout::wal_segment_bytes(&self.cluster, system_identifier);
        let body = match self.store.get(&key, SMALL_OBJECT_BYTES_MAX).await {
            Ok(body) => body,
            Err(error) if error.kind() == StoreErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let bytes: u64 = from_json(&key, &body)?;
        match SegmentSize::new(bytes) {
            Ok(size) => Ok(Some(size)),
            Err(error) => Err(RepositoryError::Malformed {
                key,
                reason: error.to_string(),
            }),
        }
    }

    /// Puts a whole segment.
    ///
    /// # Errors
    /// It has another size; whatever the store says.
    pub async fn put_wal_segment(
        &self,
        system_identifier: u64,
        name: &SegmentName,
        bytes: Bytes,
    ) -> Result<Stored, RepositoryError> {
        let object = WalObject::File(WalFileName::Segment(*name));
        self.put_wal_bytes(system_identifier, object, bytes).await
    }

    /// Puts a segment's bytes from an offset on.
    ///
    /// # Errors
    /// They aren't within the segment; whatever the store says.
    pub async fn put_wal_part(
        &self,
        system_identifier: u64,
        name: &SegmentName,
        from: u32,
        bytes: Bytes,
    ) -> Result<Stored, RepositoryError> {
        let to = u64::from(from) + bytes.len() as u64;
        let object = WalObject::part(*name, u64::from(from), to)
            .ok_or_else(|| RepositoryError::Internal(format!("{name} has no part {from}-{to}")))?;
        self.put_wal_bytes(system_identifier, object, bytes).await
    }

    /// Puts the history of a timeline.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn put_wal_history(
        &self,
        system_identifier: u64,
        timeline: Timeline,
        bytes: Bytes,
    ) -> Result<Stored, RepositoryError> {
        let object = WalObject::File(WalFileName::History(timeline));
        self.put_wal_bytes(system_identifier, object, bytes).await
    }

    /// Puts any file of WAL, or part of one.
    ///
    /// # Errors
    /// It has a size that it can't have; whatever the store says.
    pub async fn put_wal_bytes(
        &self,
        system_identifier: u64,
        object: WalObject,
        bytes: Bytes,
    ) -> Result<Stored, RepositoryError> {
        let level = self.access.compression_level;
        let contents = blocking(move || WalContents::compress(level, &bytes)).await?;
        self.put_wal(system_identifier, object, contents).await
    }

    /// Puts contents that are compressed already. Encryption is done off the async threads.
    ///
    /// # Errors
    /// They have a size that the object can't have; whatever the store says.
    pub async fn put_wal(
        &self,
        system_identifier: u64,
        object: WalObject,
        contents: WalContents,
    ) -> Result<Stored, RepositoryError> {
        let plain_bytes = contents.plain_bytes();
        if object
            .plain_bytes()
            .is_some_and(|expected| expected != plain_bytes)
        {
            let reason = format!("{object} can't have {plain_bytes} bytes");
            return Err(RepositoryError::Internal(reason));
        }
        let suffix = self.access.sealed_suffix();
        let key = layout::wal_object(&self.cluster, system_identifier, &object, suffix);
        let hash = contents.hash();
        let access = self.shared_access();
        let body = blocking(move || seal(&access, contents)).await?;
        for _ in 0..PUT_ATTEMPTS_MAX {
            match self.store.put_new_parts(&key, body.clone()).await? {
                PutOutcome::Created => return Ok(Stored::Created),
                PutOutcome::AlreadyExists => {}
            }
            match self.compare_wal(&key, object, hash).await {
                // A prune has just taken it away.
                Err(RepositoryError::Store(error)) if error.kind() == StoreErrorKind::NotFound => {}
                compared => return compared,
            }
        }
        Err(RepositoryError::Malformed {
            key,
            reason: "it comes and goes".to_owned(),
        })
    }

    async fn compare_wal(
        &self,
        key: &str,
        object: WalObject,
        hash: blake3::Hash,
    ) -> Result<Stored, RepositoryError> {
        let found = self.wal_hash_at(key, object.plain_bytes_max()).await?;
        if found != hash {
            return Ok(Stored::OtherBytes);
        }
        self.store.ensure_durable(key).await?;
        Ok(Stored::SameBytes)
    }

    /// The hash of a stored object's contents: out of its header, or else by reading it.
    pub(crate) async fn wal_hash_at(
        &self,
        key: &str,
        bytes_max: u64,
    ) -> Result<blake3::Hash, RepositoryError> {
        if self.access.encryption.is_encrypted() {
            match self.store.get_range(key, 0..HASH_HEAD_BYTES).await {
                Ok(head) => {
                    if let Some(hash) = hash_in_header(&head) {
                        return Ok(hash);
                    }
                }
                // Too short for an encrypted one.
                Err(error) if error.kind() == StoreErrorKind::ShortBody => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut hasher = blake3::Hasher::new();
        let Some(mut contents) = self.contents_of_key(key, bytes_max).await? else {
            return Err(self.gone(key).await);
        };
        while let Some(block) = contents.next().await? {
            hasher.update(&block);
        }
        Ok(hasher.finalize())
    }
}

fn seal(access: &Access, contents: WalContents) -> Result<Vec<Bytes>, RepositoryError> {
    if !access.encryption.is_encrypted() {
        return Ok(contents.into_frames());
    }
    let hash = contents.hash();
    let room = contents.compressed_bytes() + AGE_BYTES;
    let output = Vec::with_capacity(usize::try_from(room).unwrap_or_default());
    let mut writer = encrypt_writer_with_hash(&access.encryption, hash, output)?;
    for frame in contents.into_frames() {
        writer.write_all(&frame).map_err(EncryptionError::Write)?;
    }
    let sealed = writer.finish().map_err(EncryptionError::Write)?;
    Ok(vec![Bytes::from(sealed)])
}

/// Work that is bound by the processor, off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RepositoryError> + Send + 'static,
) -> Result<T, RepositoryError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| RepositoryError::Internal(error.to_string()))?
}
