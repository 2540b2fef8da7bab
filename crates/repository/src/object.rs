//! Sealed objects: zstd, then age, then BLAKE3 of the stored bytes.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use pgkeep_base::BackupId;
use pgkeep_store::{ObjectReader, PutOutcome, StoreErrorKind};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::encryption::{self, Encryption, EncryptionError, OpenOptions};
use crate::error::RepositoryError;
use crate::layout;
use crate::repo::{Access, Repository};

/// The size of the blocks that travel between the stages of a pipeline, in bytes.
pub const BLOCK_BYTES: usize = 256 << 10;

/// Blocks waiting between two stages. Bounds the memory of one stream to about a megabyte beside the object itself.
const BLOCKS_WAITING_MAX: usize = 4;

/// What a manifest records of a stored object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRef {
    /// The name within the backup's folder.
    pub name: String,
    /// The size as stored (compressed, encrypted), in bytes.
    pub stored_bytes: u64,
    /// BLAKE3 of the stored bytes, in hexadecimal.
    pub hash: String,
    /// The size of the contents, in bytes.
    pub plain_bytes: u64,
}

/// An object that was sealed and not yet put. A copy shares the bytes.
#[derive(Clone)]
pub struct SealedObject {
    /// The bytes to store, in blocks.
    pub body: Vec<Bytes>,
    /// BLAKE3 of them.
    pub hash: blake3::Hash,
    /// The size of the contents, in bytes.
    pub plain_bytes: u64,
}

impl SealedObject {
    /// An object as it is, neither compressed nor encrypted: what a person must be able to read.
    pub fn plain(contents: Bytes) -> Self {
        Self {
            hash: blake3::hash(&contents),
            plain_bytes: contents.len() as u64,
            body: vec![contents],
        }
    }

    /// What a manifest or a list of checksums records of it under a name.
    pub fn as_object(&self, name: &str) -> ObjectRef {
        ObjectRef {
            name: name.to_owned(),
            stored_bytes: self.body.iter().map(|block| block.len() as u64).sum(),
            hash: self.hash.to_hex().to_string(),
            plain_bytes: self.plain_bytes,
        }
    }
}

/// Seals contents as they come, into memory. One object at a time; blocking, for a thread of its own.
pub struct Sealer {
    writer: encryption::SealWriter<Sink>,
    sealed_bytes: Arc<AtomicUsize>,
    plain_bytes: u64,
}

/// Memory in blocks, so that a growing object is never copied; tells how much it holds while the layers above own it.
pub(crate) struct Sink {
    blocks: Vec<Vec<u8>>,
    length: Arc<AtomicUsize>,
}

impl Sink {
    /// Empty, and what tells how much it holds.
    pub fn new() -> (Self, Arc<AtomicUsize>) {
        let length = Arc::new(AtomicUsize::new(0));
        let sink = Self {
            blocks: Vec::new(),
            length: Arc::clone(&length),
        };
        (sink, length)
    }

    /// What it holds, to be stored.
    pub fn into_object(self, plain_bytes: u64) -> SealedObject {
        let mut hasher = blake3::Hasher::new();
        for block in &self.blocks {
            hasher.update(block);
        }
        SealedObject {
            body: self.blocks.into_iter().map(Bytes::from).collect(),
            hash: hasher.finalize(),
            plain_bytes,
        }
    }
}

const FIRST_SINK_BLOCK_BYTES: usize = 64 << 10;
const SINK_BLOCK_BYTES: usize = 1 << 20;

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let full = self
            .blocks
            .last()
            .is_none_or(|block| block.len() == block.capacity());
        if full {
            // Small objects stay small.
            let capacity = if self.blocks.is_empty() {
                FIRST_SINK_BLOCK_BYTES
            } else {
                SINK_BLOCK_BYTES
            };
            self.blocks.push(Vec::with_capacity(capacity));
        }
        let Some(block) = self.blocks.last_mut() else {
            return Ok(0);
        };
        let length = bytes.len().min(block.capacity() - block.len());
        block.extend_from_slice(bytes.get(..length).unwrap_or_default());
        self.length.fetch_add(length, Ordering::Relaxed);
        Ok(length)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Sealer {
    /// Starts an object.
    ///
    /// # Errors
    /// No recipients, or the compressor could not be made.
    pub fn new(access: &Access) -> Result<Self, RepositoryError> {
        let (sink, sealed_bytes) = Sink::new();
        let writer = encryption::seal_writer(&access.encryption, access.compression_level, sink)?;
        Ok(Self {
            writer,
            sealed_bytes,
            plain_bytes: 0,
        })
    }

    /// Adds contents.
    ///
    /// # Errors
    /// The compressor failed.
    pub fn write(&mut self, contents: &[u8]) -> Result<(), RepositoryError> {
        self.plain_bytes += contents.len() as u64;
        Ok(self.writer.write_all(contents).map_err(EncryptionError::Write)?)
    }

    /// The contents so far, in bytes.
    pub fn plain_bytes(&self) -> u64 {
        self.plain_bytes
    }

    /// The bytes that have left compression and encryption so far; some more are inside.
    pub fn sealed_bytes(&self) -> usize {
        self.sealed_bytes.load(Ordering::Relaxed)
    }

    /// Ends the object.
    ///
    /// # Errors
    /// The compressor or age failed.
    pub fn finish(self) -> Result<SealedObject, RepositoryError> {
        let sink = self.writer.finish().map_err(EncryptionError::Write)?;
        Ok(sink.into_object(self.plain_bytes))
    }
}

/// Contents of an object, decrypted and decompressed, as they come.
pub struct Contents {
    /// Of which object.
    key: String,
    /// `None` marks the end: a channel that closes without it means that the stage before died.
    blocks: mpsc::Receiver<Result<Option<Bytes>, RepositoryError>>,
    /// Of an object whose hash wasn't known beforehand: where it is looked up.
    unchecked: Option<Unchecked>,
}

struct Unchecked {
    repository: Repository,
    id: BackupId,
    name: String,
}

impl Unchecked {
    /// Why no key opens it: where its bytes aren't what was written, that is why, and else it was written for another key.
    async fn explain(&self, error: RepositoryError) -> RepositoryError {
        let Ok(checksums) = self.repository.checksums(&self.id).await else {
            return error;
        };
        let Some(checksum) = checksums.into_iter().find(|checksum| checksum.name == self.name) else {
            return error;
        };
        match self.repository.hash_stored(&self.id, &self.name, |_| {}).await {
            Ok(found) if found.to_hex().as_str() != checksum.hash => RepositoryError::HashMismatch {
                key: layout::backup_object(self.repository.cluster(), &self.id, &self.name),
                found: found.to_hex().to_string(),
                expected: checksum.hash,
            },
            _ => error,
        }
    }
}

impl Contents {
    /// Contents that are at hand, for tests.
    #[doc(hidden)]
    pub fn of(blocks: Vec<Bytes>) -> Self {
        let (sender, receiver) = mpsc::channel(blocks.len() + 1);
        for block in blocks.into_iter().map(Some).chain([None]) {
            // There is room for all of them.
            let _ = sender.try_send(Ok(block));
        }
        Self {
            key: String::new(),
            blocks: receiver,
            unchecked: None,
        }
    }

    /// The next block, `None` at the end. The end is reported only after the stored bytes' hash was right (where one
    /// was given): act on the contents for good only then.
    ///
    /// # Errors
    /// Whatever the store, age, zstd or the hash say.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RepositoryError> {
        match self.blocks.recv().await {
            Some(Err(error)) => match self.unchecked.take().filter(|_| is_of_another_key(&error)) {
                Some(unchecked) => Err(unchecked.explain(error).await),
                None => Err(error),
            },
            Some(next) => next,
            None => Err(RepositoryError::Internal(
                "the thread that opens an object died".to_owned(),
            )),
        }
    }

    /// All of it, for objects that are known to be small.
    ///
    /// # Errors
    /// As [`Contents::next`], and when there are more than `bytes_max`.
    pub async fn collect(mut self, bytes_max: usize) -> Result<Vec<u8>, RepositoryError> {
        let mut all = Vec::new();
        while let Some(block) = self.next().await? {
            if all.len() + block.len() > bytes_max {
                return Err(RepositoryError::Malformed {
                    key: self.key,
                    reason: format!("its contents are larger than {bytes_max} bytes"),
                });
            }
            all.extend_from_slice(&block);
        }
        Ok(all)
    }
}

impl Repository {
    /// Puts a sealed object, create-only.
    ///
    /// # Errors
    /// [`RepositoryError::ObjectExists`] when there is another one of that name.
    pub async fn put_sealed(
        &self,
        prefix: &str,
        name: &str,
        object: SealedObject,
    ) -> Result<ObjectRef, RepositoryError> {
        let key = format!("{prefix}{name}");
        let recorded = object.as_object(name);
        match self.store.put_new_parts(&key, object.body).await? {
            PutOutcome::Created => Ok(recorded),
            PutOutcome::AlreadyExists => Err(RepositoryError::ObjectExists { key }),
        }
    }

    /// Seals contents that are at hand. The work is done off the async threads.
    ///
    /// # Errors
    /// As [`Sealer`].
    pub async fn seal(&self, contents: Bytes) -> Result<SealedObject, RepositoryError> {
        let repository = self.clone();
        tokio::task::spawn_blocking(move || {
            let mut sealer = Sealer::new(&repository.access)?;
            sealer.write(&contents)?;
            sealer.finish()
        })
        .await
        .map_err(|error| RepositoryError::Internal(error.to_string()))?
    }

    /// Opens the contents of one of a backup's objects, which must be what its manifest says.
    ///
    /// # Errors
    /// [`RepositoryError::Removed`] if the object went with its backup; whatever the store says.
    pub async fn contents(&self, id: &BackupId, object: &ObjectRef) -> Result<Contents, RepositoryError> {
        self.open_contents(id, &object.name, object.plain_bytes, Some(&object.hash))
            .await
    }

    /// The same for an object that no manifest names, of which there may be `bytes_max` bytes.
    ///
    /// # Errors
    /// As [`Repository::contents`].
    pub async fn contents_unchecked(
        &self,
        id: &BackupId,
        name: &str,
        bytes_max: u64,
    ) -> Result<Contents, RepositoryError> {
        let mut contents = self.open_contents(id, name, bytes_max, None).await?;
        contents.unchecked = Some(Unchecked {
            repository: self.clone(),
            id: id.clone(),
            name: name.to_owned(),
        });
        Ok(contents)
    }

    async fn open_contents(
        &self,
        id: &BackupId,
        name: &str,
        bytes_max: u64,
        hash: Option<&str>,
    ) -> Result<Contents, RepositoryError> {
        let key = layout::backup_object(&self.cluster, id, name);
        let stored = match self.store.get_stream(&key).await {
            Ok(stored) => stored,
            Err(error) => return Err(self.unread(id, error).await),
        };
        Ok(self.open_stored(key, stored, bytes_max, hash))
    }

    /// Opens an object's contents, of which there may be `bytes_max` bytes; `None` if there is no such object.
    ///
    /// # Errors
    /// Whatever the store says.
    pub(crate) async fn contents_of_key(
        &self,
        key: &str,
        bytes_max: u64,
    ) -> Result<Option<Contents>, RepositoryError> {
        match self.store.get_stream(key).await {
            Ok(stored) => Ok(Some(self.open_stored(key.to_owned(), stored, bytes_max, None))),
            Err(error) if error.kind() == StoreErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn open_stored(
        &self,
        key: String,
        mut stored: ObjectReader,
        bytes_max: u64,
        hash: Option<&str>,
    ) -> Contents {
        let (stored_sender, stored_receiver) =
            mpsc::channel::<Result<Bytes, RepositoryError>>(BLOCKS_WAITING_MAX);
        let (plain_sender, plain_receiver) = mpsc::channel(BLOCKS_WAITING_MAX);
        tokio::spawn(async move {
            loop {
                let next = stored.next().await.map_err(RepositoryError::from).transpose();
                let Some(next) = next else { return };
                let failed = next.is_err();
                // Nobody listens any more: the reader gave up.
                if stored_sender.send(next).await.is_err() || failed {
                    return;
                }
            }
        });
        let opening = Opening {
            access: Arc::clone(&self.access),
            key: key.clone(),
            bytes_max,
            hash: hash.map(str::to_owned),
        };
        tokio::task::spawn_blocking(move || {
            let opened = opening.run(stored_receiver, &plain_sender);
            // A reader that has given up needs no last word.
            let _ = plain_sender.blocking_send(opened.map(|()| None));
        });
        Contents {
            key,
            blocks: plain_receiver,
            unchecked: None,
        }
    }
}

fn is_of_another_key(error: &RepositoryError) -> bool {
    matches!(
        error,
        RepositoryError::Open {
            source: EncryptionError::WrongKey { .. },
            ..
        }
    )
}

/// The stored bytes as a blocking reader that hashes what it hands on.
struct StoredReader {
    blocks: mpsc::Receiver<Result<Bytes, RepositoryError>>,
    current: Bytes,
    hasher: blake3::Hasher,
    error: Option<RepositoryError>,
}

impl Read for StoredReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() {
            match self.blocks.blocking_recv() {
                None => return Ok(0),
                Some(Ok(block)) => {
                    self.hasher.update(&block);
                    self.current = block;
                }
                Some(Err(error)) => {
                    let message = error.to_string();
                    self.error = Some(error);
                    return Err(std::io::Error::other(message));
                }
            }
        }
        let length = self.current.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.current.split_to(length));
        Ok(length)
    }
}

struct Opening {
    access: Arc<Access>,
    key: String,
    bytes_max: u64,
    hash: Option<String>,
}

type PlainSender = mpsc::Sender<Result<Option<Bytes>, RepositoryError>>;

impl Opening {
    fn run(
        &self,
        blocks: mpsc::Receiver<Result<Bytes, RepositoryError>>,
        plain: &PlainSender,
    ) -> Result<(), RepositoryError> {
        let mut stored = StoredReader {
            blocks,
            current: Bytes::new(),
            hasher: blake3::Hasher::new(),
            error: None,
        };
        let opened = self.open_into(&mut stored, plain);
        if opened.is_err() && plain.is_closed() {
            return opened;
        }
        if let (Some(expected), None) = (&self.hash, &stored.error) {
            // Whatever the decoder left unread belongs to the hash too. A wrong hash explains a decoder's failure
            // better than the decoder can.
            let drained = std::io::copy(&mut stored, &mut std::io::sink());
            let found = stored.hasher.finalize().to_hex();
            if drained.is_ok() && found.as_str() != expected {
                return Err(RepositoryError::HashMismatch {
                    key: self.key.clone(),
                    found: found.to_string(),
                    expected: expected.clone(),
                });
            }
        }
        // The store's own error says more than what the decoder made of it.
        match stored.error.take() {
            Some(error) => Err(error),
            None => opened,
        }
    }

    fn open_into(&self, stored: &mut StoredReader, plain: &PlainSender) -> Result<(), RepositoryError> {
        let failed = |source: EncryptionError| RepositoryError::Open {
            key: self.key.clone(),
            source,
        };
        let recipients = match &self.access.encryption {
            Encryption::Age { recipients } => recipients.as_slice(),
            Encryption::None => &[],
        };
        let options = OpenOptions {
            identities: &self.access.identities,
            recipients,
            bytes_max: self.bytes_max,
        };
        let mut reader = encryption::open_reader_with(stored, &options).map_err(failed)?;
        loop {
            let mut block = vec![0; BLOCK_BYTES];
            let mut filled = 0;
            while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                match reader.read_typed(rest).map_err(failed)? {
                    0 => break,
                    length => filled += length,
                }
            }
            if filled == 0 {
                return Ok(());
            }
            block.truncate(filled);
            if plain.blocking_send(Ok(Some(Bytes::from(block)))).is_err() {
                return Err(RepositoryError::Internal(
                    "the reader of an object's contents gave up".to_owned(),
                ));
            }
        }
    }
}
