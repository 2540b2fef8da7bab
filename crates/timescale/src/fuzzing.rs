//! What a fuzz target of fuzz/ does with outside bytes: they are read or refused. The test runs the committed corpus
//! through it.

use std::str::FromStr;

use crate::Inventory;
use crate::edition::Version;

/// Inventories in a manifest, and versions.
pub fn inventory(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(version) = Version::from_str(text)
    {
        assert_eq!(Version::from_str(&version.to_string()), Ok(version));
    }
    let Ok(inventory) = serde_json::from_slice::<Inventory>(data) else {
        return;
    };
    let _ = inventory.needs_community();
    let _ = Version::from_str(&inventory.version);
    let chunks = inventory.hypertables.iter().flat_map(|table| &table.chunks);
    let _ = chunks.filter(|chunk| chunk.is_partial()).count();
    let again = serde_json::to_vec(&inventory).and_then(|text| serde_json::from_slice::<Inventory>(&text));
    assert!(again.is_ok(), "{again:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_of_the_fuzzer_is_read_or_refused() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/inventory");
        let entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(Result::unwrap).collect();
        assert!(!entries.is_empty(), "{folder}");
        for entry in entries {
            inventory(&std::fs::read(entry.path()).unwrap());
        }
    }
}
