//! What a backup holds at each place of each file: fingerprint and address of every block, in a local file of 16 bytes a block.
//! In memory there are 16 bytes for each file of the backup, and 4 for each pack, however large the cluster is.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use pgkeep_repository::pack::{BlockAddress, Fingerprint};

/// What the local file has for each block: its fingerprint; the place of its pack, counted from 1, so that a hole says that
/// nothing is stored there; its number in the pack.
const ENTRY_BYTES: usize = 16;
/// The file begins so.
pub const MAGIC: &[u8; 16] = b"PGKHELD1\0\0\0\0\0\0\0\0";
/// Files beyond these are stored anew by each backup: 16 MiB of memory.
const FILES_MAX: usize = 1 << 20;
/// Entries read or written at once.
const ENTRIES_AT_ONCE: usize = 8192;

/// Which file of a backup: a hash of its root and its path. Should two have the same, nothing is wrong: a block is taken over
/// for its fingerprint, wherever it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileKey(pub u64);

impl FileKey {
    /// Of a record's root and path.
    pub fn of(root: u32, path: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&root.to_le_bytes());
        hasher.update(path);
        let mut first = [0; 8];
        hasher.finalize_xof().fill(&mut first);
        Self(u64::from_le_bytes(first))
    }
}

/// A block that a backup holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    pub fingerprint: Fingerprint,
    /// By that backup's list of packs.
    pub at: BlockAddress,
}

impl Held {
    /// Blocks that lie one after another in a pack, with their fingerprints.
    pub fn following(at: BlockAddress, fingerprints: &[Fingerprint]) -> Vec<Self> {
        let held = fingerprints
            .iter()
            .zip(at.block..)
            .map(|(fingerprint, block)| Self {
                fingerprint: *fingerprint,
                at: BlockAddress { pack: at.pack, block },
            });
        held.collect()
    }
}

/// Where a file's entries are.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    first: u64,
    blocks: u64,
}

/// Writes what a backup holds, file by file, and of each the blocks in any order.
#[derive(Debug)]
pub struct BlockMapWriter {
    file: File,
    next: u64,
    files: Vec<(FileKey, u64)>,
    needed: Vec<u32>,
}

impl BlockMapWriter {
    /// Into an empty file.
    pub fn new(file: File) -> io::Result<Self> {
        file.write_all_at(MAGIC, 0)?;
        Ok(Self {
            file,
            next: MAGIC.len() as u64,
            files: Vec::new(),
            needed: Vec::new(),
        })
    }

    /// How large it is for so many blocks, in bytes, but for what each file takes.
    pub fn bytes_of(blocks: u64) -> u64 {
        blocks.saturating_mul(ENTRY_BYTES as u64)
    }

    /// Makes room for a file of so many blocks. `None`: there are more files than it takes.
    pub fn begin(&mut self, key: FileKey, blocks: u64) -> io::Result<Option<Room>> {
        let too_large = || io::Error::other("a file has more blocks than can be");
        if self.files.len() >= FILES_MAX {
            return Ok(None);
        }
        if blocks == 0 {
            return Ok(Some(Room { first: 0, blocks }));
        }
        let first = self.next + ENTRY_BYTES as u64;
        let bytes = blocks.checked_mul(ENTRY_BYTES as u64).ok_or_else(too_large)?;
        self.file.write_all_at(&blocks.to_le_bytes(), self.next)?;
        self.files.push((key, self.next));
        self.next = first.checked_add(bytes).ok_or_else(too_large)?;
        Ok(Some(Room { first, blocks }))
    }

    /// Adds blocks of a file one after another, from its block `from` on.
    pub fn put(&mut self, room: Room, from: u64, held: &[Held]) -> io::Result<()> {
        let fits = from
            .checked_add(held.len() as u64)
            .is_some_and(|end| end <= room.blocks);
        if !fits {
            return Err(io::Error::other("a block lies behind the end of its file"));
        }
        let mut bytes = Vec::with_capacity(held.len().min(ENTRIES_AT_ONCE) * ENTRY_BYTES);
        let mut at = room.first + from * ENTRY_BYTES as u64;
        for some in held.chunks(ENTRIES_AT_ONCE) {
            bytes.clear();
            for Held { fingerprint, at } in some {
                bytes.extend_from_slice(fingerprint);
                bytes.extend_from_slice(&at.pack.saturating_add(1).to_le_bytes());
                bytes.extend_from_slice(&at.block.to_le_bytes());
                let pack = at.pack as usize;
                if self.needed.len() <= pack {
                    self.needed.resize(pack + 1, 0);
                }
                if let Some(needed) = self.needed.get_mut(pack) {
                    *needed = needed.saturating_add(1);
                }
            }
            self.file.write_all_at(&bytes, at)?;
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// What was written, to be read.
    pub fn finish(mut self) -> io::Result<BlockMap> {
        // Nothing need be written for zeros at the end.
        self.file.set_len(self.next)?;
        self.files.sort_unstable();
        Ok(BlockMap {
            file: self.file,
            bytes: self.next,
            files: self.files,
            needed: self.needed,
        })
    }
}

/// What a backup holds.
#[derive(Debug)]
pub struct BlockMap {
    pub file: File,
    /// The size of it, without what follows it in the file.
    pub bytes: u64,
    /// Where the entries of each begin, with their number before them; sorted.
    pub files: Vec<(FileKey, u64)>,
    /// How many blocks it needs of each pack; the last ones may be missing, and are 0.
    pub needed: Vec<u32>,
}

impl BlockMap {
    /// How many blocks it needs of a pack.
    pub fn needed(&self, pack: usize) -> u32 {
        self.needed.get(pack).copied().unwrap_or(0)
    }

    /// What it holds of a file's blocks from `from` on: `count` of them, or as many as there are.
    pub fn read(&self, key: FileKey, from: u64, count: usize) -> io::Result<Vec<Option<Held>>> {
        let place = self.files.partition_point(|(other, _)| *other < key);
        let Some((_, start)) = self.files.get(place).filter(|(found, _)| *found == key) else {
            return Ok(Vec::new());
        };
        let mut blocks = [0; 8];
        self.file.read_exact_at(&mut blocks, *start)?;
        let there = u64::from_le_bytes(blocks).saturating_sub(from);
        let count = usize::try_from(there).unwrap_or(usize::MAX).min(count);
        let mut bytes = vec![0; count * ENTRY_BYTES];
        let at = start + ENTRY_BYTES as u64 + from * ENTRY_BYTES as u64;
        self.file.read_exact_at(&mut bytes, at)?;
        let (entries, _) = bytes.as_chunks::<ENTRY_BYTES>();
        Ok(entries.iter().map(entry).collect())
    }
}

fn entry(bytes: &[u8; ENTRY_BYTES]) -> Option<Held> {
    let [a, b, c, d, e, f, g, h, pack @ .., i, j, k, l] = *bytes;
    let pack = u32::from_le_bytes(pack).checked_sub(1)?;
    Some(Held {
        fingerprint: [a, b, c, d, e, f, g, h],
        at: BlockAddress {
            pack,
            block: u32::from_le_bytes([i, j, k, l]),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(number: u32) -> Held {
        Held {
            fingerprint: u64::from(number).to_le_bytes(),
            at: BlockAddress {
                pack: number % 3,
                block: number,
            },
        }
    }

    #[test]
    fn what_was_put_in_any_order_is_found_at_its_place() {
        let mut writer = BlockMapWriter::new(tempfile::tempfile().unwrap()).unwrap();
        let keys: Vec<FileKey> = ["base/1/2", "base/1/3", "empty", "base/1/4"]
            .iter()
            .map(|path| FileKey::of(0, path.as_bytes()))
            .collect();
        let large = u64::from(u32::try_from(ENTRIES_AT_ONCE).unwrap()) + 5;
        let sizes = [10, large, 0, 3];
        let rooms: Vec<Room> = keys
            .iter()
            .zip(sizes)
            .map(|(key, size)| writer.begin(*key, size).unwrap().unwrap())
            .collect();
        let all: Vec<Held> = (0..u32::try_from(large).unwrap()).map(held).collect();
        writer.put(rooms[1], 0, &all).unwrap();
        writer.put(rooms[0], 8, &[held(8), held(9)]).unwrap();
        writer.put(rooms[0], 2, &[held(2)]).unwrap();
        assert!(writer.put(rooms[3], 2, &[held(2), held(3)]).is_err());
        let map = writer.finish().unwrap();
        let read = |key: FileKey, from, count| map.read(key, from, count).unwrap();
        assert_eq!(read(keys[0], 1, 3), [None, Some(held(2)), None]);
        assert_eq!(read(keys[0], 8, 100), [Some(held(8)), Some(held(9))]);
        assert_eq!(
            read(keys[1], large - 1, 2),
            [Some(held(u32::try_from(large - 1).unwrap()))]
        );
        assert_eq!(read(keys[3], 0, 5), [None; 3]);
        assert_eq!(read(keys[2], 0, 5), []);
        assert_eq!(read(keys[0], 10, 5), []);
        assert_eq!(read(FileKey::of(1, b"base/1/2"), 0, 5), []);
        let sum: u32 = (0..4).map(|pack| map.needed(pack)).sum();
        assert_eq!(sum, u32::try_from(large).unwrap() + 3);
    }
}
