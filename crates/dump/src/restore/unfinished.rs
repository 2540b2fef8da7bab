//! What to do about a target that was left half-restored: go on, start over, or take another dump.

use pgkeep_base::{BackupId, Classified};

use super::MARK_SCHEMA;
use crate::error::DumpError;

const ANOTHER_REMOVED: &str = "restore another dump with --overwrite: 'pgkeep list' shows them; 'pgkeep pin ID' beforehand keeps \
                               it from being pruned";

/// An error of restoring a whole database that was begun.
pub(crate) fn of_database(id: &BackupId, target_name: &str, source: DumpError) -> DumpError {
    let cause = cause(&source);
    let go_on = format!(
        "{cause}go on with 'pgkeep restore {id} --resume ...' (what is loaded stays), or start over with --overwrite; until \
         then the database is marked by its schema {MARK_SCHEMA}"
    );
    of(id, target_name, source, go_on)
}

/// An error of restoring single tables that were begun.
pub(crate) fn of_tables(id: &BackupId, target_name: &str, source: DumpError) -> DumpError {
    let start_over = format!(
        "repeat it with --overwrite, which drops its tables and starts over; until then the database is marked by its schema \
         {MARK_SCHEMA}"
    );
    of(id, target_name, source, start_over)
}

fn of(id: &BackupId, target_name: &str, source: DumpError, same_dump: String) -> DumpError {
    if matches!(source, DumpError::Refused { .. } | DumpError::Usage { .. }) {
        return source;
    }
    let hint = if source.is_removed() {
        ANOTHER_REMOVED.to_owned()
    } else if source.is_damage() {
        // However often it is repeated, this dump has no more.
        format!(
            "restore another dump with --overwrite: 'pgkeep list' shows them; 'pgkeep verify {id}' says all that is damaged in \
             this one; until then the database is marked by its schema {MARK_SCHEMA}"
        )
    } else {
        same_dump
    };
    DumpError::Unfinished {
        database: target_name.to_owned(),
        source: Box::new(source),
        hint,
    }
}

fn cause(source: &DumpError) -> String {
    source
        .hint()
        .map(|hint| format!("{hint}; then "))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io;

    use pgkeep_repository::RepositoryError;
    use pgkeep_repository::encryption::EncryptionError;

    use super::*;

    fn open(source: EncryptionError) -> DumpError {
        let key = "main/dump/x/d1/000001.sql.zst.age".to_owned();
        RepositoryError::Open { key, source }.into()
    }

    fn hints(source: impl Fn() -> DumpError) -> [String; 2] {
        let id = "d20261122T020000Z-7f3a9c".parse().unwrap();
        [of_database, of_tables].map(|of| of(&id, "app", source()).hint().unwrap().to_string())
    }

    #[test]
    fn of_a_damaged_dump_nothing_is_gone_on_with() {
        let damaged: [fn() -> DumpError; 4] = [
            || DumpError::Object {
                name: "d1/000001.sql.zst.age".to_owned(),
                reason: "it ends early".to_owned(),
            },
            || open(EncryptionError::Corrupt("x".to_owned())),
            || open(EncryptionError::Truncated("x".to_owned())),
            || {
                let [key, found, expected] = ["k", "f", "e"].map(str::to_owned);
                RepositoryError::HashMismatch { key, found, expected }.into()
            },
        ];
        for source in damaged {
            for hint in hints(source) {
                for says in [
                    "another dump",
                    "--overwrite",
                    "pgkeep list",
                    "pgkeep verify d2026",
                ] {
                    assert!(hint.contains(says), "{hint}");
                }
                assert!(!hint.contains("--resume") && !hint.contains("repeat"), "{hint}");
            }
        }
    }

    #[test]
    fn of_a_sound_dump_it_is_gone_on_with() {
        let sound: [fn() -> DumpError; 3] = [
            || DumpError::Interrupted,
            || open(EncryptionError::Read(io::Error::other("reset"))),
            || {
                open(EncryptionError::NoIdentity {
                    recipients: Vec::new(),
                })
            },
        ];
        for source in sound {
            let [database, tables] = hints(source);
            assert!(database.contains("--resume ..."), "{database}");
            assert!(tables.contains("repeat it with --overwrite"), "{tables}");
        }
    }
}
