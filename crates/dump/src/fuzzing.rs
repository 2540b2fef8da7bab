//! What the fuzz targets of fuzz/ do with outside bytes: each must read or refuse them, and may not panic, hang or take
//! something for what it isn't. The tests run the committed corpus through it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "here a panic is how a defect is reported"
)]

use bytes::Bytes;
use pgkeep_base::BackupId;
use pgkeep_repository::object::{Contents, ObjectRef};

use crate::binary;
use crate::blocks::{BlockReader, Piece, copy_in_statement};
use crate::manifest::{
    DataObject, DumpManifest, DumpSummary, QualifiedName, Relation, RelationKind, RowFormat, Segment,
};
use crate::pack::BLOCK_END;
use crate::pattern::Pattern;
use crate::{objects, read, restore, verify};

/// The size of one block of contents in [`blocks`], at most.
const BLOCK_BYTES_MAX: usize = 64;

/// Manifests and summaries, and what is planned by them.
pub fn manifest(data: &[u8]) {
    if let Ok(summary) = serde_json::from_slice::<DumpSummary>(data) {
        let again = serde_json::to_vec(&summary).unwrap();
        assert!(serde_json::from_slice::<DumpSummary>(&again).is_ok());
    }
    let Ok(manifest) = serde_json::from_slice::<DumpManifest>(data) else {
        return;
    };
    let Ok(id) = manifest.id.parse::<BackupId>() else {
        return;
    };
    if read::check(&manifest, &id).is_err() {
        return;
    }
    let again = serde_json::to_vec(&manifest).unwrap();
    let again: DumpManifest = serde_json::from_slice(&again).unwrap();
    assert_eq!(read::check(&again, &id), Ok(()));
    let _ = objects::totals(&manifest, &objects::object_refs(&manifest));
    restore::fuzzing::planned(&id, &manifest);
    for fraction in [None, Some(0.5)] {
        verify::choose_work(&manifest, fraction);
    }
}

fn relation(name: &str, columns: &str) -> Relation {
    Relation {
        name: QualifiedName {
            schema: "s".to_owned(),
            name: name.to_owned(),
        },
        kind: RelationKind::Table,
        oid: 1,
        columns: columns.to_owned(),
        load_into: None,
        partition_of: None,
        column_types: Vec::new(),
        rows: 0,
        compressed_rows: None,
        format: RowFormat::Text,
        hash: String::new(),
        plain_bytes: 0,
        disk_bytes: None,
        data_excluded: false,
    }
}

/// Data objects. The first byte is the number of blocks, then come relation and size of each, then the contents.
pub fn blocks(data: &[u8]) {
    let mut relations = [relation("t", "\"a\""), relation("u", ""), relation("b", "")];
    relations[2].format = RowFormat::Binary;
    let Some((count, mut data)) = data.split_first() else {
        return;
    };
    let mut segments = Vec::new();
    for _ in 0..count % 4 {
        let Some(([place, bytes], rest)) = data.split_first_chunk() else {
            return;
        };
        data = rest;
        segments.push(Segment {
            relation: u32::from(place % 4),
            rows: 0,
            bytes: u64::from(*bytes),
        });
    }
    let object = DataObject {
        object: ObjectRef {
            name: "d1/1".to_owned(),
            stored_bytes: 0,
            hash: String::new(),
            plain_bytes: 0,
        },
        segments: segments.clone(),
    };
    let length = usize::from(*count).clamp(1, BLOCK_BYTES_MAX);
    let contents = Contents::of(data.chunks(length).map(Bytes::copy_from_slice).collect());
    let mut reader = BlockReader::new(&object, &relations, contents);
    let (mut read, mut end) = (Vec::new(), BLOCK_END);
    let ended = futures::executor::block_on(async {
        loop {
            match reader.next().await {
                Ok(Some(Piece::Begin(segment))) => {
                    let relation = relations.get(segment.relation as usize).unwrap();
                    if relation.format == RowFormat::Binary {
                        read.extend_from_slice(binary::HEADER);
                        end = binary::TRAILER;
                        continue;
                    }
                    end = BLOCK_END;
                    let line = copy_in_statement(&relation.name, &relation.columns, RowFormat::Text, false);
                    read.extend_from_slice(format!("{line};\n").as_bytes());
                }
                Ok(Some(Piece::Rows(rows))) => read.extend_from_slice(&rows),
                Ok(Some(Piece::End(_))) => read.extend_from_slice(end),
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    });
    if ended {
        // Without the settings, which a block may begin with, it is the contents.
        assert!(read.len() <= data.len());
        assert!(data.starts_with(b"SET ") || read.is_empty() == data.is_empty());
        assert!(data.windows(4).any(|window| window == b"SET ") || read == data);
    }
}

/// Rows in COPY's binary format. The first byte is the size of the pieces.
pub fn binary_rows(data: &[u8]) {
    let Some((size, rows)) = data.split_first() else {
        return;
    };
    let count = |size: usize| {
        let mut counter = binary::RowCounter::default();
        let fed: Result<(), _> = rows.chunks(size).try_for_each(|piece| counter.feed(piece));
        fed.map(|()| (counter.rows(), counter.is_between_rows(), counter.has_ended()))
    };
    // However the pieces are cut, the rows are the same.
    assert_eq!(count(usize::from(*size).max(1)), count(rows.len().max(1)));
    let _ = binary::RowStream::default().rows(rows);
}

/// A table of contents and, after a NUL, a list of dependents.
pub fn archive(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (list, dependents) = text.split_once('\0').unwrap_or((&text, ""));
    restore::fuzzing::archive(list, dependents, &relation("t", "\"a\""));
}

/// Patterns.
pub fn pattern(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(pattern) = Pattern::relation(&text) {
        let _ = (pattern.fits("public", "games"), pattern.condition("a", "b"));
    }
    let _ = Pattern::schema(&text);
    let quoted = pgkeep_base::quote_identifier(&text);
    let name = Pattern::relation(&quoted).unwrap();
    assert_eq!(name.fits("any", &text), Ok(true));
    assert_eq!(name.fits("any", &format!("{text}x")), Ok(false));
    let both = Pattern::relation(&pgkeep_base::quote_qualified(&text, &text)).unwrap();
    assert_eq!(both.fits(&text, &text), Ok(true));
}

/// The globals.
pub fn globals(data: &[u8]) {
    restore::fuzzing::globals(&String::from_utf8_lossy(data));
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_corpus_of_the_fuzzers_is_read_or_refused() {
        type Target = (&'static str, fn(&[u8]));
        let targets: [Target; 6] = [
            ("manifest", manifest),
            ("blocks", blocks),
            ("binary_rows", binary_rows),
            ("archive", archive),
            ("pattern", pattern),
            ("globals", globals),
        ];
        for (name, target) in targets {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../../fuzz/corpus")
                .join(name);
            let entries: Vec<_> = std::fs::read_dir(&folder).unwrap().map(Result::unwrap).collect();
            assert!(!entries.is_empty(), "{}", folder.display());
            for entry in entries {
                target(&std::fs::read(entry.path()).unwrap());
            }
        }
    }
}
