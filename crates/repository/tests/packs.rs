//! Packs, records of files and lists of packs: what was written is read, and whatever else is read is refused.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::io::Read;

use pgkeep_base::{BackupId, BackupKind};
use pgkeep_repository::encryption::Encryption;
use pgkeep_repository::map::{
    Extent, FileRecord, PackInfo, PackTable, RecordContents, RecordReader, RecordWriter,
};
use pgkeep_repository::pack::{
    BlockAddress, FrameBuilder, LevelChoice, PackIndex, PackReader, PackWriter, fingerprint,
};
use pgkeep_repository::{Access, keys};
use proptest::prelude::*;
use rand_lite::Random;

const BLOCK: u32 = 1024;
const KEY: [u8; 32] = [7; 32];

/// Numbers from a seed that proptest chooses and prints.
mod rand_lite {
    pub struct Random(pub u64);

    impl Random {
        pub fn below(&mut self, limit: usize) -> usize {
            // xorshift64*
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let number = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
            usize::try_from(number).unwrap() % limit.max(1)
        }

        pub fn bytes(&mut self, length: usize) -> Vec<u8> {
            let wide = self.below(2) == 0;
            (0..length)
                .map(|_| u8::try_from(self.below(if wide { 256 } else { 3 })).unwrap())
                .collect()
        }
    }
}

fn access(encrypted: bool) -> Access {
    let (identity, recipient) = keys::generate();
    let encryption = match encrypted {
        true => Encryption::Age {
            recipients: vec![recipient],
        },
        false => Encryption::None,
    };
    Access {
        encryption,
        identities: vec![identity],
        compression_level: 3,
    }
}

/// Blocks of random contents, some short, in frames of random sizes.
fn blocks(random: &mut Random) -> Vec<Vec<Vec<u8>>> {
    (0..1 + random.below(5))
        .map(|_| {
            let blocks = 0..1 + random.below(20);
            let sizes: Vec<usize> = blocks
                .map(|_| match random.below(4) {
                    0 => 1 + random.below(BLOCK as usize),
                    _ => BLOCK as usize,
                })
                .collect();
            sizes.into_iter().map(|size| random.bytes(size)).collect()
        })
        .collect()
}

fn pack_of(frames: &[Vec<Vec<u8>>], access: &Access) -> Vec<u8> {
    let mut builder = FrameBuilder::new(3, KEY, BLOCK).unwrap();
    let mut writer = PackWriter::new(access, BLOCK).unwrap();
    let mut first = 0;
    for blocks in frames {
        assert!(blocks.iter().all(|block| builder.push(block)));
        let frame = builder.finish(&LevelChoice::default()).unwrap().unwrap();
        assert!(writer.takes(frame.entry.blocks()));
        assert_eq!(writer.append(frame).unwrap(), first);
        first += u32::try_from(blocks.len()).unwrap();
    }
    let sealed = writer.finish().unwrap();
    assert_eq!(sealed.blocks, first);
    let stored = sealed.object.body.concat();
    assert_eq!(sealed.object.hash, blake3::hash(&stored));
    assert_eq!(sealed.header_bytes > 0, access.encryption.is_encrypted());
    stored
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn packs_survive_a_round_trip(seed in 1_u64.., encrypted: bool) {
        let mut random = Random(seed);
        let (frames, access) = (blocks(&mut random), access(encrypted));
        let stored = pack_of(&frames, &access);
        let reader = PackReader::open("p", &stored, &access).unwrap();
        let index = reader.index();
        prop_assert_eq!(index.frames().len(), frames.len());
        let mut number = 0;
        for (place, blocks) in frames.iter().enumerate() {
            let contents = reader.frame(place).unwrap();
            prop_assert_eq!(&contents, &blocks.concat());
            let entry = &index.frames()[place];
            let ranges = entry.block_ranges(BLOCK);
            let first = number;
            for (slot, block) in blocks.iter().enumerate() {
                prop_assert_eq!(index.frame_of(number), Some((place, first)));
                prop_assert_eq!(&contents[ranges[slot].clone()], block.as_slice());
                prop_assert_eq!(entry.fingerprints[slot], fingerprint(&KEY, block));
                number += 1;
            }
        }
        prop_assert_eq!(index.frame_of(number), None);
    }

    /// `zstd -dc` of a pack gives its blocks and nothing else.
    #[test]
    fn stock_tools_see_the_blocks_alone(seed in 1_u64..) {
        let frames = blocks(&mut Random(seed));
        let stored = pack_of(&frames, &access(false));
        let mut plain = Vec::new();
        zstd::stream::read::Decoder::new(stored.as_slice()).unwrap().read_to_end(&mut plain).unwrap();
        prop_assert_eq!(plain, frames.concat().concat());
    }

    #[test]
    fn damaged_packs_are_noticed(seed in 1_u64.., encrypted: bool) {
        let mut random = Random(seed);
        let (frames, access) = (blocks(&mut random), access(encrypted));
        let mut stored = pack_of(&frames, &access);
        match random.below(3) {
            0 => stored.truncate(random.below(stored.len())),
            1 => {
                let at = random.below(stored.len());
                stored[at] ^= 1 << random.below(8);
            }
            _ => {
                let at = random.below(stored.len());
                let inserted = random.bytes(1);
                stored.splice(at..at, inserted);
            }
        }
        let Ok(reader) = PackReader::open("p", &stored, &access) else { return Ok(()) };
        // What is said of a frame or a block may have been changed where nothing is encrypted, never the block.
        for place in 0..reader.index().frames().len() {
            if let (Ok(contents), Some(blocks)) = (reader.frame(place), frames.get(place)) {
                prop_assert_eq!(contents, blocks.concat());
            }
        }
    }

    #[test]
    fn any_bytes_are_a_pack_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(PackIndex::parse(&bytes).is_err());
        let mut framed = bytes.clone();
        framed.extend_from_slice(b"PGKPACK1");
        let _ = PackIndex::parse(&framed);
    }

    #[test]
    fn records_survive_a_round_trip(seed in 1_u64..) {
        let mut random = Random(seed);
        let records: Vec<FileRecord> = (0..random.below(20)).map(|_| record(&mut random)).collect();
        let (mut writer, mut output) = (RecordWriter::default(), Vec::new());
        for record in &records {
            writer.append(record, BLOCK, &mut output).unwrap();
        }
        let read: Result<Vec<_>, _> = RecordReader::new(&output, BLOCK).collect();
        prop_assert_eq!(read.as_ref(), Ok(&records));
        // Damaged, they are read or refused, and nothing else.
        if !output.is_empty() {
            let at = random.below(output.len());
            output[at] ^= 1 << random.below(8);
            let sum: usize = RecordReader::new(&output, BLOCK).flatten().map(|record| record.path.len()).sum();
            prop_assert!(sum <= output.len());
        }
    }

    #[test]
    fn any_bytes_are_records_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let read: Vec<_> = RecordReader::new(&bytes, BLOCK).collect();
        prop_assert!(read.iter().rev().skip(1).all(Result::is_ok));
        let _ = PackTable::parse(&bytes);
    }

    #[test]
    fn lists_of_packs_survive_a_round_trip(seed in 1_u64.., damage: bool) {
        let mut random = Random(seed);
        let owners: Vec<BackupId> = (0..3)
            .map(|day| BackupId::new(BackupKind::Base, format!("2026-11-2{day}T02:00:00Z").parse().unwrap()).unwrap())
            .collect();
        let packs = (0..random.below(30)).map(|_| PackInfo {
            owner: owners[random.below(3)].clone(),
            number: 1 + u32::try_from(random.below(2000)).unwrap(),
            stored_bytes: random.below(32 << 20) as u64,
            header_bytes: u32::try_from(random.below(300)).unwrap(),
            index_bytes: u32::try_from(random.below(30_000)).unwrap(),
            blocks: u32::try_from(random.below(65_537)).unwrap(),
            hash: blake3::hash(&random.bytes(8)),
        });
        let table = PackTable { packs: packs.collect() };
        let mut encoded = table.encode().unwrap();
        prop_assert_eq!(PackTable::parse(&encoded), Ok(table));
        if damage {
            let at = random.below(encoded.len());
            encoded[at] ^= 1 << random.below(8);
            let _ = PackTable::parse(&encoded);
            prop_assert!(PackTable::parse(&encoded[..random.below(encoded.len())]).is_err());
        }
    }
}

fn record(random: &mut Random) -> FileRecord {
    let contents = match random.below(6) {
        0 => RecordContents::Directory,
        1 => RecordContents::Link {
            target: b"/srv/elsewhere".to_vec(),
        },
        _ => {
            let mut extents: Vec<Extent> = Vec::new();
            let mut next = BlockAddress::default();
            for _ in 0..random.below(6) {
                let blocks = 1 + random.below(200);
                extents.push(match random.below(3) {
                    0 => Extent::Zeros(blocks as u64),
                    kind => {
                        if kind == 1 {
                            next = BlockAddress {
                                pack: u32::try_from(random.below(50)).unwrap(),
                                block: u32::try_from(random.below(60_000)).unwrap(),
                            };
                        }
                        let (at, blocks) = (next, u32::try_from(blocks).unwrap());
                        next.block += blocks;
                        Extent::Stored { at, blocks }
                    }
                });
            }
            let blocks: u64 = extents.iter().map(Extent::blocks).sum();
            let short = if blocks > 0 {
                random.below(BLOCK as usize) as u64
            } else {
                0
            };
            RecordContents::File {
                size: blocks * u64::from(BLOCK) - short,
                modified_at: random.below(2_000_000_000) as u64,
                extents,
            }
        }
    };
    FileRecord {
        root: u32::try_from(random.below(4)).unwrap(),
        path: format!("base/{}/{}", random.below(9), random.below(99_999)).into_bytes(),
        mode: 0o600,
        contents,
    }
}

#[test]
fn records_that_lead_out_of_their_directory_are_refused() {
    for path in [
        "",
        "/",
        "/etc/passwd",
        "a/../b",
        "..",
        "a//b",
        "./a",
        "a/",
        "a\0b",
    ] {
        let record = FileRecord {
            root: 0,
            path: path.as_bytes().to_vec(),
            mode: 0o700,
            contents: RecordContents::Directory,
        };
        let appended = RecordWriter::default().append(&record, BLOCK, &mut Vec::new());
        assert!(appended.is_err(), "{path}");
    }
}

#[test]
fn a_whole_full_pack_is_read() {
    let access = access(true);
    let mut builder = FrameBuilder::new(1, KEY, 8192).unwrap();
    let mut writer = PackWriter::new(&access, 8192).unwrap();
    let mut random = Random(42);
    let mut expected: BTreeMap<usize, blake3::Hash> = BTreeMap::new();
    let mut frames = 0;
    while writer.takes(128) {
        let block = random.bytes(8192);
        while builder.push(&block) {}
        let frame = builder.finish(&LevelChoice::default()).unwrap().unwrap();
        assert_eq!(frame.content_bytes, 1 << 20);
        expected.insert(frames, blake3::hash(&block.repeat(128)));
        frames += 1;
        writer.append(frame).unwrap();
    }
    let sealed = writer.finish().unwrap();
    assert_eq!(sealed.blocks, 65_536);
    let stored = sealed.object.body.concat();
    let reader = PackReader::open("p", &stored, &access).unwrap();
    for (frame, hash) in &expected {
        assert_eq!(blake3::hash(&reader.frame(*frame).unwrap()), *hash, "{frame}");
    }
}
