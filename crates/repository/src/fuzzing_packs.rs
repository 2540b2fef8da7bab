//! What the fuzz target of packs, and of what says where files lie in them, does with outside bytes: they are read or refused,
//! and what is read is written the same. The test runs the committed corpus through it.
#![allow(clippy::unwrap_used, reason = "here a panic is how a defect is reported")]

use crate::map::{PackTable, RecordContents, RecordReader, RecordWriter, blocks_of};
use crate::pack::{FRAME_CONTENT_BYTES_MAX, PackIndex, PackReader};

const BLOCK_BYTES: u32 = 1024;

/// The first byte says what the rest is taken for.
pub fn packs(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else {
        return;
    };
    match kind % 3 {
        0 => pack(data),
        1 => records(data),
        _ => {
            if let Ok(table) = PackTable::parse(data) {
                // Backups may be named that no pack is of, or in another order.
                assert_eq!(PackTable::parse(&table.encode().unwrap()), Ok(table));
            }
        }
    }
}

fn pack(data: &[u8]) {
    let Ok(reader) = PackReader::new(data.to_vec()) else {
        return;
    };
    let index = reader.index();
    // Without its beginning it is the same, or nothing.
    for start in [1, data.len() / 2, data.len().saturating_sub(40)] {
        if let Ok(end) = PackIndex::parse_end(&data[start..], data.len() as u64) {
            assert_eq!(end, *index);
        }
    }
    let mut blocks = 0;
    for (number, entry) in index.frames().iter().enumerate() {
        assert_eq!(index.frame_of(blocks), Some((number, blocks)));
        blocks += entry.blocks();
        if let Ok(contents) = reader.frame(number) {
            assert!(contents.len() <= FRAME_CONTENT_BYTES_MAX);
            let ranges = entry.block_ranges(index.block_bytes());
            assert_eq!(ranges.last().unwrap().end, contents.len());
        }
    }
    assert_eq!((index.blocks(), index.frame_of(blocks)), (blocks, None));
}

fn records(data: &[u8]) {
    let (mut writer, mut written, mut read) = (RecordWriter::default(), Vec::new(), Vec::new());
    for record in RecordReader::new(data, BLOCK_BYTES).flatten() {
        assert!(record.path.len() <= data.len());
        if let RecordContents::File { size, extents, .. } = &record.contents {
            let blocks: u64 = extents.iter().map(crate::map::Extent::blocks).sum();
            assert_eq!(blocks, blocks_of(*size, BLOCK_BYTES));
        }
        writer.append(&record, BLOCK_BYTES, &mut written).unwrap();
        read.push(record);
    }
    let again: Vec<_> = RecordReader::new(&written, BLOCK_BYTES)
        .map(Result::unwrap)
        .collect();
    assert_eq!(again, read);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_of_the_fuzzer_is_read_or_refused() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/packs");
        let entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(Result::unwrap).collect();
        assert!(!entries.is_empty(), "{folder}");
        for entry in entries {
            packs(&std::fs::read(entry.path()).unwrap());
        }
    }
}
