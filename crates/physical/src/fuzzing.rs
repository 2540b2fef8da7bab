//! What the fuzz target of fuzz/ does with outside bytes: an archive as a server sends it, times as people write them, settings
//! as a server left them. They are read or refused. The test runs the committed corpus through it.
#![allow(clippy::unwrap_used, reason = "here a panic is how a defect is reported")]

use jiff::tz::TimeZone;
use pgkeep_base::Classified;

use crate::backup::collect_archive;
use crate::restore::{parse_time, settings_for_fuzzing};

/// The first byte says what the rest is taken for.
pub fn base(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(data);
    match kind % 3 {
        0 => {
            if let Err(error) = collect_archive(data, usize::from(*kind)) {
                drop((error.to_string(), error.retry_class(), error.hint()));
            }
        }
        1 => match parse_time(&text, &TimeZone::UTC) {
            Ok(time) => assert_eq!(parse_time(&time.to_string(), &TimeZone::UTC).unwrap(), time),
            Err(error) => drop((error.to_string(), error.hint())),
        },
        _ => {
            let once = settings_for_fuzzing(&text);
            assert_eq!(settings_for_fuzzing(&once), once);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_of_the_fuzzer_is_read_or_refused() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/base");
        let entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(Result::unwrap).collect();
        assert!(!entries.is_empty(), "{folder}");
        for entry in entries {
            base(&std::fs::read(entry.path()).unwrap());
        }
    }
}
