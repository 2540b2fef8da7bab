//! How much of what is done at once fits into a limit of memory.

use pgkeep_base::ByteCount;

/// The packs that are filled and uploaded, the session's input, the segment of WAL that is received, the program, and where a
/// million files are in what the backup before holds, and in what this one does.
const BACKUP_BYTES: u64 = 152 << 20;
/// A piece, its frame's contents, the frame as it is made and as it is kept.
const WORKER_BYTES: u64 = 4 << 20;
/// A pack as it is stored, and decrypted.
const PACK_BYTES: u64 = 68 << 20;

/// How many pieces of a backup may be compressed at once within a limit: one at least.
pub fn backup_jobs_max(memory: ByteCount, compression_level: i32) -> usize {
    // As `ZSTD_estimateCCtxSize_usingCParams` of zstd 1.5 has it for a frame's megabyte, rounded up.
    let compressor: u64 = match compression_level {
        ..=4 => 1 << 20,
        5..=8 => 7 << 20,
        _ => 18 << 20,
    };
    at_least_one(memory.0.saturating_sub(BACKUP_BYTES) / (WORKER_BYTES + compressor))
}

/// How many packs may be read at once within a limit: one at least.
pub fn restore_jobs_max(memory: ByteCount) -> usize {
    at_least_one(memory.0 / PACK_BYTES)
}

fn at_least_one(jobs: u64) -> usize {
    usize::try_from(jobs).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_memory_and_lower_levels_permit_more_jobs() {
        let default = ByteCount(192 << 20);
        assert!(backup_jobs_max(default, 3) >= 8 && restore_jobs_max(default) >= 2);
        assert_eq!(
            (backup_jobs_max(ByteCount(0), 3), restore_jobs_max(ByteCount(0))),
            (1, 1)
        );
        assert!(backup_jobs_max(default, 3) > backup_jobs_max(default, 19));
    }
}
