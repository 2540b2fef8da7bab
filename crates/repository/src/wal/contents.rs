use bytes::Bytes;

use crate::compression::{FRAME_BYTES_MAX, FrameCompressor};
use crate::encryption::EncryptionError;
use crate::error::RepositoryError;

/// Contents of an object with WAL, compressed. A copy shares the bytes.
///
/// They are frames one after another: those of several parts are those of the whole.
#[derive(Debug, Clone)]
pub struct WalContents {
    frames: Vec<Bytes>,
    hash: blake3::Hash,
    plain_bytes: u64,
}

impl WalContents {
    /// Contents that were compressed frame by frame, in order; with their size and hash before that.
    pub fn new(frames: Vec<Bytes>, hash: blake3::Hash, plain_bytes: u64) -> Self {
        Self {
            frames,
            hash,
            plain_bytes,
        }
    }

    /// Compresses contents that are at hand. Blocking.
    ///
    /// # Errors
    /// The level is out of range.
    pub fn compress(level: i32, contents: &[u8]) -> Result<Self, RepositoryError> {
        let mut compressor = WalCompressor::new(level)?;
        let mut frames = Vec::new();
        for piece in contents.chunks(FRAME_BYTES_MAX) {
            frames.push(compressor.frame(piece)?);
        }
        if frames.is_empty() {
            // Even nothing is a frame.
            frames.push(compressor.frame(&[])?);
        }
        Ok(Self::new(frames, blake3::hash(contents), contents.len() as u64))
    }

    /// BLAKE3 of the contents.
    pub fn hash(&self) -> blake3::Hash {
        self.hash
    }

    /// Their size, in bytes.
    pub fn plain_bytes(&self) -> u64 {
        self.plain_bytes
    }

    /// Their size compressed, in bytes; encryption adds little.
    pub fn compressed_bytes(&self) -> u64 {
        self.frames.iter().map(|frame| frame.len() as u64).sum()
    }

    pub(super) fn into_frames(self) -> Vec<Bytes> {
        self.frames
    }
}

/// Compresses WAL as it comes.
pub struct WalCompressor {
    compressor: FrameCompressor,
    frame: Vec<u8>,
}

impl WalCompressor {
    /// The most bytes that a frame takes.
    pub const FRAME_BYTES_MAX: usize = FRAME_BYTES_MAX;

    /// Begins with a zstd level.
    ///
    /// # Errors
    /// The level is out of range.
    pub fn new(level: i32) -> Result<Self, RepositoryError> {
        Ok(Self {
            compressor: FrameCompressor::new(level).map_err(EncryptionError::Write)?,
            frame: Vec::new(),
        })
    }

    /// Compresses up to [`WalCompressor::FRAME_BYTES_MAX`] bytes into one frame. Blocking, a millisecond or so.
    ///
    /// # Errors
    /// zstd failed.
    pub fn frame(&mut self, contents: &[u8]) -> Result<Bytes, RepositoryError> {
        self.compressor
            .compress(contents, &mut self.frame)
            .map_err(EncryptionError::Write)?;
        // A copy, because the buffer is as large as what can't be compressed would need.
        Ok(Bytes::copy_from_slice(&self.frame))
    }
}
