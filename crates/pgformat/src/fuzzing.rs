//! What the fuzz target of fuzz/ does with outside bytes: they are read or refused, and what is read is written the same.
//! The test runs the committed corpus through it.
#![allow(clippy::unwrap_used, reason = "here a panic is how a defect is reported")]

use pgkeep_base::Classified;

use crate::{
    BackupLabel, ControlFile, Lsn, SegmentName, SegmentSize, TablespaceMap, Timeline, TimelineHistory,
    WalFileName, WalHeader, WalWalker, verify_page,
};

fn told(error: &impl Classified) {
    drop((error.to_string(), error.retry_class(), error.hint()));
}

/// The first byte says what the rest is taken for.
pub fn pgformat(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(data);
    match kind % 6 {
        0 => match ControlFile::parse(data) {
            Ok(file) => drop(format!("{file:?}")),
            Err(error) => told(&error),
        },
        1 => match TimelineHistory::parse(Timeline::new(u32::MAX).unwrap(), data) {
            Ok(history) => {
                for entry in history.entries() {
                    assert!(history.contains(entry.timeline));
                    let holder = history.entry(history.timeline_of(entry.begin)).unwrap();
                    assert!(holder.begin <= entry.begin);
                }
            }
            Err(error) => told(&error),
        },
        2 => match BackupLabel::parse(data) {
            Ok(label) => drop(format!("{label:?}")),
            Err(error) => told(&error),
        },
        3 => match TablespaceMap::parse(data) {
            Ok(map) => assert_eq!(TablespaceMap::parse(&map.to_bytes()), Ok(map)),
            Err(error) => told(&error),
        },
        4 => {
            match WalFileName::parse(&text, SegmentSize::DEFAULT) {
                Ok(name) => assert_eq!(name.to_string(), text),
                Err(error) => told(&error),
            }
            match text.parse::<Lsn>() {
                Ok(lsn) => assert_eq!(lsn.to_string().parse(), Ok(lsn)),
                Err(error) => told(&error),
            }
        }
        _ => {
            match verify_page(data, 7) {
                Ok(verdict) => drop(format!("{verdict:?}")),
                Err(error) => told(&error),
            }
            match WalHeader::parse(data) {
                Ok(header) => {
                    let name = SegmentName::holding(header.timeline, header.start, header.segment_size);
                    assert_eq!(header.check(name).is_ok(), header.start == name.start());
                }
                Err(error) => told(&error),
            }
            walk(data);
        }
    }
}

/// Records, wherever they are said to lie: each behind the one before, whatever the bytes.
fn walk(data: &[u8]) {
    let address = data.get(8..16).and_then(|bytes| bytes.try_into().ok());
    let start = Lsn::new(address.map_or(0, u64::from_le_bytes) >> 20 << 20);
    let name = SegmentName::holding(Timeline::FIRST, start, SegmentSize::new(1 << 20).unwrap());
    let (mut walker, mut last) = (WalWalker::new(), start);
    walker.segment(name, data, |record| {
        assert!(last <= record.start && record.start < record.end);
        last = record.end;
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_of_the_fuzzer_is_read_or_refused() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/pgformat");
        let entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(Result::unwrap).collect();
        assert!(!entries.is_empty(), "{folder}");
        for entry in entries {
            pgformat(&std::fs::read(entry.path()).unwrap());
        }
    }
}
