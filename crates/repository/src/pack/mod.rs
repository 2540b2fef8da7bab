//! Packs: objects of some 32 MiB that hold blocks of files.
//!
//! Inside age, or bare: frames (each a zstd frame of up to [`FRAME_CONTENT_BYTES_MAX`] of blocks, one after another), then one
//! skippable frame with the index and the footer. So `age -d pack | zstd -dc` gives the blocks and nothing else. A block is a
//! page of the cluster's size; the last one of a file may be short. Its address is the pack's number and its own number in the
//! pack, frames aside. docs/FORMAT.md has the bytes.
//!
//! `index` is pure; `write` and `read` are bound by CPU: for threads of their own.

mod index;
mod read;
mod write;

pub use crate::compression::LevelChoice;
pub use index::{FrameEntry, PackIndex};
pub use read::PackReader;
pub use write::{Frame, FrameBuilder, LooseBlocks, PackWriter, SealedPack};

/// Contents of one frame, in bytes, at most.
pub const FRAME_CONTENT_BYTES_MAX: usize = 1 << 20;
/// A pack is closed when it has so many bytes as stored.
pub const PACK_STORED_BYTES: usize = 32 << 20;
/// And at so many blocks.
pub const PACK_BLOCKS_MAX: u32 = 65_536;
/// No pack is larger than this as stored: what a reader allows for. Frames that can't be compressed make one of 32 MiB and
/// another frame; the index of 65,536 blocks has up to 4 MiB.
pub const PACK_STORED_BYTES_MAX: u64 = 48 << 20;

/// The size of pages that PostgreSQL can be built with, in bytes (`BLCKSZ`).
pub const BLOCK_BYTES_RANGE: std::ops::RangeInclusive<u32> = 1024..=32_768;

/// The first bytes of the keyed BLAKE3 hash of a block.
pub type Fingerprint = [u8; 8];

/// Where a block lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BlockAddress {
    /// The pack's place in the backup's list of packs, from 0.
    pub pack: u32,
    /// The block's number in the pack, from 0.
    pub block: u32,
}

/// The fingerprint of a block.
pub fn fingerprint(key: &[u8; 32], block: &[u8]) -> Fingerprint {
    let hash = blake3::keyed_hash(key, block);
    let mut first = Fingerprint::default();
    first.copy_from_slice(hash.as_bytes().get(..8).unwrap_or(&[0; 8]));
    first
}

/// Whether a size of blocks is one that PostgreSQL has.
pub fn is_block_size(bytes: u32) -> bool {
    bytes.is_power_of_two() && BLOCK_BYTES_RANGE.contains(&bytes)
}
