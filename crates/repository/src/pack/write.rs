use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{
    FRAME_CONTENT_BYTES_MAX, Fingerprint, FrameEntry, PACK_BLOCKS_MAX, PACK_STORED_BYTES, PackIndex,
    fingerprint,
};
use crate::compression::{FrameCompressor, LevelChoice};
use crate::encryption::{self, EncryptWriter, EncryptionError};
use crate::error::RepositoryError;
use crate::object::{SealedObject, Sink};
use crate::repo::Access;

/// A frame, compressed and not yet in a pack.
#[derive(Debug)]
pub struct Frame {
    /// The frame.
    pub compressed: Vec<u8>,
    /// What its pack's index will say of it.
    pub entry: FrameEntry,
    /// The size of its contents, in bytes.
    pub content_bytes: u64,
}

/// Blocks that aren't compressed yet, because they are too few for a frame of their own.
#[derive(Debug)]
pub struct LooseBlocks {
    contents: Vec<u8>,
    short: Vec<(u32, u32)>,
    fingerprints: Vec<Fingerprint>,
}

impl LooseBlocks {
    /// How many there are.
    pub fn blocks(&self) -> u32 {
        u32::try_from(self.fingerprints.len()).unwrap_or(u32::MAX)
    }
}

/// Makes frames of blocks; for a thread of its own, and one frame after another.
pub struct FrameBuilder {
    compressor: FrameCompressor,
    key: [u8; 32],
    block_bytes: u32,
    contents: Vec<u8>,
    /// Where a frame is made before its size is known.
    scratch: Vec<u8>,
    short: Vec<(u32, u32)>,
    fingerprints: Vec<Fingerprint>,
}

impl FrameBuilder {
    /// With a zstd level, the key of the fingerprints, and the size of blocks.
    ///
    /// # Errors
    /// zstd refuses the level.
    pub fn new(level: i32, key: [u8; 32], block_bytes: u32) -> std::io::Result<Self> {
        Ok(Self {
            compressor: FrameCompressor::new(level)?,
            key,
            block_bytes,
            contents: Vec::with_capacity(FRAME_CONTENT_BYTES_MAX),
            scratch: Vec::new(),
            short: Vec::new(),
            fingerprints: Vec::new(),
        })
    }

    /// Adds a block, of the usual size or shorter. False, and nothing is added, if the frame has no room for it.
    pub fn push(&mut self, block: &[u8]) -> bool {
        let fingerprint = self.fingerprint(block);
        self.push_known(block, fingerprint)
    }

    /// The fingerprint of a block.
    pub fn fingerprint(&self, block: &[u8]) -> Fingerprint {
        fingerprint(&self.key, block)
    }

    /// As [`FrameBuilder::push`], with the block's fingerprint.
    pub fn push_known(&mut self, block: &[u8], fingerprint: Fingerprint) -> bool {
        if self.contents.len() + block.len() > FRAME_CONTENT_BYTES_MAX || block.is_empty() {
            return false;
        }
        let bytes = u32::try_from(block.len()).unwrap_or(u32::MAX);
        if bytes < self.block_bytes {
            let slot = u32::try_from(self.fingerprints.len()).unwrap_or(u32::MAX);
            self.short.push((slot, bytes));
        }
        self.fingerprints.push(fingerprint);
        self.contents.extend_from_slice(block);
        true
    }

    /// How many blocks were added so far.
    pub fn blocks(&self) -> u32 {
        u32::try_from(self.fingerprints.len()).unwrap_or(u32::MAX)
    }

    /// What was added, if that is something and no more than so many bytes: as it is, for a frame with others.
    pub fn take_loose(&mut self, bytes_max: usize) -> Option<LooseBlocks> {
        if self.fingerprints.is_empty() || self.contents.len() > bytes_max {
            return None;
        }
        let contents = self.contents.as_slice().to_vec();
        self.contents.clear();
        Some(LooseBlocks {
            contents,
            short: std::mem::take(&mut self.short),
            fingerprints: std::mem::take(&mut self.fingerprints),
        })
    }

    /// Adds such blocks. False, and nothing is added, if the frame has no room for them.
    pub fn push_loose(&mut self, loose: &LooseBlocks) -> bool {
        if self.contents.len() + loose.contents.len() > FRAME_CONTENT_BYTES_MAX {
            return false;
        }
        let first = self.blocks();
        self.contents.extend_from_slice(&loose.contents);
        let short = loose.short.iter().map(|(slot, bytes)| (first + slot, *bytes));
        self.short.extend(short);
        self.fingerprints.extend_from_slice(&loose.fingerprints);
        true
    }

    /// The frame of what was added; `None` if that is nothing. It is compressed as `choice` has it.
    ///
    /// # Errors
    /// zstd fails.
    pub fn finish(&mut self, choice: &LevelChoice) -> std::io::Result<Option<Frame>> {
        if self.fingerprints.is_empty() {
            return Ok(None);
        }
        self.compressor
            .compress_as(&self.contents, &mut self.scratch, choice)?;
        let compressed = self.scratch.clone();
        let content_bytes = self.contents.len() as u64;
        self.contents.clear();
        let mut hash = [0; 16];
        hash.copy_from_slice(blake3::hash(&compressed).as_bytes().get(..16).unwrap_or(&[0; 16]));
        Ok(Some(Frame {
            entry: FrameEntry {
                compressed_bytes: u32::try_from(compressed.len()).map_err(std::io::Error::other)?,
                short: std::mem::take(&mut self.short),
                hash,
                fingerprints: std::mem::take(&mut self.fingerprints),
            },
            compressed,
            content_bytes,
        }))
    }
}

/// Makes one pack in memory.
pub struct PackWriter {
    writer: EncryptWriter<Sink>,
    stored_bytes: Arc<AtomicUsize>,
    block_bytes: u32,
    frames: Vec<FrameEntry>,
    blocks: u32,
    content_bytes: u64,
}

/// A pack that was made and not yet put.
pub struct SealedPack {
    /// What is stored.
    pub object: SealedObject,
    /// How many of its bytes are age's header.
    pub header_bytes: u32,
    /// How many of its bytes, inside age, are its compressed index.
    pub index_bytes: u32,
    /// Its blocks.
    pub blocks: u32,
}

impl PackWriter {
    /// Begins a pack.
    ///
    /// # Errors
    /// There is nobody to encrypt for.
    pub fn new(access: &Access, block_bytes: u32) -> Result<Self, RepositoryError> {
        let (sink, stored_bytes) = Sink::new();
        Ok(Self {
            writer: encryption::encrypt_writer(&access.encryption, sink)?,
            stored_bytes,
            block_bytes,
            frames: Vec::new(),
            blocks: 0,
            content_bytes: 0,
        })
    }

    /// Whether a frame of so many blocks still belongs into it.
    pub fn takes(&self, blocks: u32) -> bool {
        self.blocks.saturating_add(blocks) <= PACK_BLOCKS_MAX
            && self.stored_bytes.load(Ordering::Relaxed) < PACK_STORED_BYTES
    }

    /// How many blocks it has so far.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Appends a frame. Returns the number of its first block.
    ///
    /// # Errors
    /// age fails.
    pub fn append(&mut self, frame: Frame) -> Result<u32, RepositoryError> {
        self.writer
            .write_all(&frame.compressed)
            .map_err(EncryptionError::Write)?;
        let first = self.blocks;
        self.blocks = self.blocks.saturating_add(frame.entry.blocks());
        self.content_bytes += frame.content_bytes;
        self.frames.push(frame.entry);
        Ok(first)
    }

    /// Ends the pack.
    ///
    /// # Errors
    /// age or zstd fail.
    pub fn finish(mut self) -> Result<SealedPack, RepositoryError> {
        let index = PackIndex::new(self.block_bytes, self.frames);
        let index = index.map_err(|broken| RepositoryError::Internal(broken.to_string()))?;
        let (tail, index_bytes) = index.encode().map_err(EncryptionError::Write)?;
        self.writer.write_all(&tail).map_err(EncryptionError::Write)?;
        let sink = self.writer.finish().map_err(EncryptionError::Write)?;
        let object = sink.into_object(self.content_bytes);
        // The header is shorter than the sink's first block.
        let first = object.body.first().map_or(&[][..], |block| block.as_ref());
        let header_bytes = encryption::age_header_bytes(first)?;
        Ok(SealedPack {
            header_bytes: u32::try_from(header_bytes).unwrap_or(0),
            index_bytes,
            blocks: index.blocks(),
            object,
        })
    }
}
