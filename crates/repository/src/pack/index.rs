use std::ops::Range;

use super::{FRAME_CONTENT_BYTES_MAX, Fingerprint, PACK_BLOCKS_MAX, is_block_size};
use crate::varint::{Broken, Fields, put};

/// What follows a pack's frames begins so (RFC 8878, 3.1.2: 0x184D2A50, little-endian): decoders pass over it.
const SKIPPABLE_MAGIC: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];
const SKIPPABLE_HEADER_BYTES: usize = 8;
const FOOTER_MAGIC: &[u8; 8] = b"PGKPACK1";
const FOOTER_BYTES: usize = 24;
/// In the index for each frame at most, beside what its blocks take: three numbers and a hash.
const FRAME_ENTRY_BYTES_MAX: usize = 3 * 5 + HASH_BYTES;
/// In the index for each block at most: its fingerprint, and slot and size of a short one.
const BLOCK_ENTRY_BYTES_MAX: usize = 8 + 2 * 5;
const INDEX_LEVEL: i32 = 3;
const HASH_BYTES: usize = 16;

/// What the index says of one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameEntry {
    /// Its size, in bytes.
    pub compressed_bytes: u32,
    /// The blocks that are not as long as the others: place in the frame, from 0, ascending; size in bytes, at least 1.
    pub short: Vec<(u32, u32)>,
    /// The first bytes of the BLAKE3 hash of the compressed frame.
    pub hash: [u8; HASH_BYTES],
    /// Of each block in it.
    pub fingerprints: Vec<Fingerprint>,
}

impl FrameEntry {
    /// How many blocks it has.
    pub fn blocks(&self) -> u32 {
        u32::try_from(self.fingerprints.len()).unwrap_or(u32::MAX)
    }

    /// The size of its contents, in bytes.
    pub fn content_bytes(&self, block_bytes: u32) -> u64 {
        let short: u64 = self.short.iter().map(|(_, bytes)| u64::from(*bytes)).sum();
        let full = self.fingerprints.len().saturating_sub(self.short.len()) as u64;
        full * u64::from(block_bytes) + short
    }

    /// Where the contents of its blocks from `first` on lie in the frame's.
    pub fn block_ranges(&self, block_bytes: u32) -> Vec<Range<usize>> {
        let mut short = self.short.iter().peekable();
        let mut start = 0;
        (0..self.blocks())
            .map(|slot| {
                let bytes = match short.next_if(|(at, _)| *at == slot) {
                    Some((_, bytes)) => *bytes,
                    None => block_bytes,
                };
                let range = start..start + bytes as usize;
                start = range.end;
                range
            })
            .collect()
    }
}

/// What lies in a pack: its frames, and the blocks in each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackIndex {
    block_bytes: u32,
    frames: Vec<FrameEntry>,
    /// The number of each frame's first block, and the number of all blocks at the end.
    first_blocks: Vec<u32>,
    /// Where each frame begins, and the end of the last.
    starts: Vec<u64>,
}

impl PackIndex {
    /// Of frames one after another.
    ///
    /// # Errors
    /// There are more blocks than a pack has, or one of them isn't what it can be.
    pub fn new(block_bytes: u32, frames: Vec<FrameEntry>) -> Result<Self, Broken> {
        if !is_block_size(block_bytes) {
            return Err(Broken("its blocks have a size that PostgreSQL has not"));
        }
        let (mut first_blocks, mut starts) = (vec![0], vec![0]);
        let (mut blocks, mut end) = (0_u32, 0_u64);
        for frame in &frames {
            check(frame, block_bytes)?;
            blocks = blocks.saturating_add(frame.blocks());
            end += u64::from(frame.compressed_bytes);
            first_blocks.push(blocks);
            starts.push(end);
        }
        if blocks > PACK_BLOCKS_MAX {
            return Err(Broken("it has more blocks than a pack can"));
        }
        Ok(Self {
            block_bytes,
            frames,
            first_blocks,
            starts,
        })
    }

    /// Its frames in order.
    pub fn frames(&self) -> &[FrameEntry] {
        &self.frames
    }

    /// The size of blocks, in bytes.
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> u32 {
        self.first_blocks.last().copied().unwrap_or(0)
    }

    /// The frame that a block lies in, and the number of that frame's first block.
    pub fn frame_of(&self, block: u32) -> Option<(usize, u32)> {
        if block >= self.blocks() {
            return None;
        }
        let frame = self.first_blocks.partition_point(|first| *first <= block) - 1;
        Some((frame, *self.first_blocks.get(frame)?))
    }

    /// Where a frame's bytes lie in the pack.
    pub fn frame_range(&self, frame: usize) -> Option<Range<u64>> {
        Some(*self.starts.get(frame)?..*self.starts.get(frame + 1)?)
    }

    /// The end of the pack: skippable frame, index, footer. Returns also how many bytes of it are the index.
    ///
    /// # Errors
    /// zstd fails.
    pub fn encode(&self) -> std::io::Result<(Vec<u8>, u32)> {
        let mut entries = Vec::new();
        for frame in &self.frames {
            put(&mut entries, u64::from(frame.compressed_bytes));
            put(&mut entries, frame.fingerprints.len() as u64);
            put(&mut entries, frame.short.len() as u64);
            for (slot, bytes) in &frame.short {
                put(&mut entries, u64::from(*slot));
                put(&mut entries, u64::from(*bytes));
            }
            entries.extend_from_slice(&frame.hash);
            frame
                .fingerprints
                .iter()
                .for_each(|fingerprint| entries.extend_from_slice(fingerprint));
        }
        let mut compressor = zstd::bulk::Compressor::new(INDEX_LEVEL)?;
        compressor.include_checksum(true)?;
        let index = compressor.compress(&entries)?;
        let too_large = |_| std::io::Error::other("the index is too large");
        let index_bytes = u32::try_from(index.len()).map_err(too_large)?;
        let length = u32::try_from(index.len() + FOOTER_BYTES).map_err(too_large)?;
        let frames = u32::try_from(self.frames.len()).map_err(too_large)?;
        let mut tail = SKIPPABLE_MAGIC.to_vec();
        tail.extend_from_slice(&length.to_le_bytes());
        tail.extend_from_slice(&index);
        for number in [self.block_bytes, frames, self.blocks(), index_bytes] {
            tail.extend_from_slice(&number.to_le_bytes());
        }
        tail.extend_from_slice(FOOTER_MAGIC);
        Ok((tail, index_bytes))
    }

    /// Reads the index of a whole pack, as it is inside age.
    ///
    /// # Errors
    /// It isn't one.
    pub fn parse(pack: &[u8]) -> Result<Self, Broken> {
        Self::parse_end(pack, pack.len() as u64)
    }

    /// How many bytes [`PackIndex::parse_end`] needs of a pack whose compressed index has so many.
    pub fn end_bytes(index_bytes: u32) -> u64 {
        u64::from(index_bytes) + (SKIPPABLE_HEADER_BYTES + FOOTER_BYTES) as u64
    }

    /// Reads the index of a pack of `pack_bytes`, inside age, of which the last ones are at hand.
    ///
    /// # Errors
    /// It isn't one, or begins before them.
    pub fn parse_end(end: &[u8], pack_bytes: u64) -> Result<Self, Broken> {
        let missing_bytes = pack_bytes
            .checked_sub(end.len() as u64)
            .ok_or(Broken("it is shorter than its end"))?;
        let (before, footer) = end
            .split_last_chunk::<FOOTER_BYTES>()
            .ok_or(Broken("it is shorter than any pack"))?;
        let mut footer = Fields(footer);
        let mut number = || footer.array().map(u32::from_le_bytes);
        let (block_bytes, frames, blocks, index_bytes) = (number()?, number()?, number()?, number()?);
        if footer.0 != FOOTER_MAGIC {
            return Err(Broken("it doesn't end as a pack does"));
        }
        if frames > blocks || blocks > PACK_BLOCKS_MAX {
            return Err(Broken("it has more frames or blocks than a pack can"));
        }
        let index_start = before
            .len()
            .checked_sub(index_bytes as usize)
            .ok_or(Broken("its index begins before it does"))?;
        let (before, index) = before.split_at(index_start);
        let (frames_part, header) = before
            .split_last_chunk::<SKIPPABLE_HEADER_BYTES>()
            .ok_or(Broken("its index begins before it does"))?;
        let length = index_bytes as usize + FOOTER_BYTES;
        let expected_length = u32::try_from(length).unwrap_or(0).to_le_bytes();
        if header.get(..4) != Some(&SKIPPABLE_MAGIC) || header.get(4..) != Some(&expected_length) {
            return Err(Broken("what follows its frames is no index"));
        }
        let size_max = frames as usize * FRAME_ENTRY_BYTES_MAX + blocks as usize * BLOCK_ENTRY_BYTES_MAX;
        let entries = zstd::bulk::decompress(index, size_max.max(1))
            .map_err(|_| Broken("its index can't be decompressed"))?;
        let parsed = Self::new(block_bytes, parse_entries(&entries, frames)?)?;
        let frames_bytes = missing_bytes + frames_part.len() as u64;
        if parsed.blocks() != blocks || parsed.starts.last() != Some(&frames_bytes) {
            return Err(Broken("its index doesn't fit its frames"));
        }
        Ok(parsed)
    }
}

fn parse_entries(entries: &[u8], frames: u32) -> Result<Vec<FrameEntry>, Broken> {
    let mut fields = Fields(entries);
    let mut parsed = Vec::new();
    for _ in 0..frames {
        let compressed_bytes = fields.varint32()?;
        let blocks = fields.count(size_of::<Fingerprint>())?;
        let short = fields.count(2)?;
        let short = (0..short).map(|_| Ok((fields.varint32()?, fields.varint32()?)));
        let short = short.collect::<Result<_, Broken>>()?;
        let hash = fields.array()?;
        let fingerprints = (0..blocks).map(|_| fields.array());
        parsed.push(FrameEntry {
            compressed_bytes,
            short,
            hash,
            fingerprints: fingerprints.collect::<Result<_, Broken>>()?,
        });
    }
    match fields.is_empty() {
        true => Ok(parsed),
        false => Err(Broken("its index has more than its frames")),
    }
}

fn check(frame: &FrameEntry, block_bytes: u32) -> Result<(), Broken> {
    if frame.fingerprints.is_empty() {
        return Err(Broken("one of its frames has no block"));
    }
    let mut next = 0;
    for (slot, bytes) in &frame.short {
        if *slot < next || *slot >= frame.blocks() || !(1..block_bytes).contains(bytes) {
            return Err(Broken("a short block of one of its frames can't be"));
        }
        next = slot + 1;
    }
    match frame.content_bytes(block_bytes) <= FRAME_CONTENT_BYTES_MAX as u64 {
        true => Ok(()),
        false => Err(Broken("one of its frames is too large")),
    }
}
