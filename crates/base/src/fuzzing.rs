//! What a fuzz target of fuzz/ does with outside bytes: they are read or refused, and what is read is written the same.
//! The test runs the committed corpus through it.

use crate::{BackupId, ByteCount};

/// Names of backups, and sizes.
pub fn names(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match text.parse::<BackupId>() {
        Ok(id) => assert_eq!(id.to_string(), text),
        Err(error) => drop(error.to_string()),
    }
    match text.parse::<ByteCount>() {
        Ok(bytes) => {
            // Shown with one digit after the dot, the rest cut off.
            let shown: Result<ByteCount, _> = bytes.to_string().parse();
            assert!(shown.is_ok_and(|shown| shown <= bytes), "{bytes:?}");
        }
        Err(error) => drop(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_of_the_fuzzer_is_read_or_refused() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/names");
        let entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(Result::unwrap).collect();
        assert!(!entries.is_empty(), "{folder}");
        for entry in entries {
            names(&std::fs::read(entry.path()).unwrap());
        }
    }
}
