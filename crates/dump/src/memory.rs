//! How many jobs a limit on memory permits. Memory depends on settings: on the jobs and on zstd's level, never on how
//! large the database or its tables are, nor on rows of usual sizes. Beyond it come a row of many megabytes, which is held
//! whole, up to PostgreSQL's own limit of a gibibyte, and the manifest of very many relations (`limits`).

use pgkeep_base::ByteCount;

use crate::data::{OBJECT_MEMORY_BYTES, OBJECTS_PER_WORKER, PART_BYTES_MIN};

/// What holds where nothing is set: with the program itself it stays under 256 MiB.
pub const MEMORY_DEFAULT: ByteCount = ByteCount(192 << 20);

/// A reader of a dump beside its compressor and its objects: the session's input, row buffers on their way, the frame that
/// is compressed and the unused ends of blocks.
const READER_BYTES: u64 = 6656 << 10;
/// A loader of a restore or a verification: pieces between store, decoder and session, and the session's two buffers.
const LOADER_BYTES: u64 = 4096 << 10;
/// `ZSTD_estimateCCtxSize_usingCParams` of zstd 1.5 for a frame's megabyte, in KiB, for each level from 1 on.
const COMPRESSOR_KIB: [u64; 19] = [
    569, 761, 889, 889, 3577, 3577, 6649, 6649, 12793, 12793, 12793, 12793, 16889, 16889, 16889, 17034,
    17034, 17664, 17664,
];
/// zstd's decoder for frames of up to 2 MiB; a dump has frames of a megabyte.
const DECODER_BYTES: u64 = 2560 << 10;

/// How many tables may be dumped at once within a limit: one at least.
pub fn dump_jobs_max(memory: ByteCount, compression_level: i32) -> usize {
    let last = COMPRESSOR_KIB.len() - 1;
    let level = usize::try_from(compression_level).unwrap_or(1).clamp(1, last + 1);
    let worker = READER_BYTES + compressor_bytes(level);
    let objects_min = (OBJECTS_PER_WORKER * PART_BYTES_MIN) as u64;
    let shared = OBJECT_MEMORY_BYTES as u64;
    // Up to a number of workers their objects share what is set aside for them; beyond, each takes its least.
    let sharing = memory.0.saturating_sub(shared) / worker;
    let jobs = if sharing * objects_min <= shared {
        sharing
    } else {
        (memory.0 / (worker + objects_min)).max(shared / objects_min)
    };
    at_least_one(jobs)
}

/// The compressor of a level, and beside a higher one that of the fastest, which is tried with it.
fn compressor_bytes(level: usize) -> u64 {
    let of_level = |level: usize| COMPRESSOR_KIB.get(level - 1).copied().unwrap_or(0) << 10;
    match level {
        1 => of_level(1),
        level => of_level(level) + of_level(1),
    }
}

/// How many objects may be loaded or verified at once within a limit: one at least.
pub fn load_jobs_max(memory: ByteCount) -> usize {
    at_least_one(memory.0 / (LOADER_BYTES + DECODER_BYTES))
}

fn at_least_one(jobs: u64) -> usize {
    usize::try_from(jobs).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_memory_and_lower_levels_permit_more_jobs() {
        assert!(
            dump_jobs_max(MEMORY_DEFAULT, 3) >= 8,
            "the default number of jobs fits"
        );
        assert!(load_jobs_max(MEMORY_DEFAULT) >= 8);
        assert_eq!(
            (dump_jobs_max(ByteCount(0), 3), load_jobs_max(ByteCount(0))),
            (1, 1)
        );
        for level in 1..19 {
            assert!(dump_jobs_max(MEMORY_DEFAULT, level) >= dump_jobs_max(MEMORY_DEFAULT, level + 1));
        }
        let mut last = 0;
        for mebibytes in (0..4096).step_by(16) {
            let jobs = dump_jobs_max(ByteCount(mebibytes << 20), 3);
            assert!(jobs >= last, "{mebibytes} MiB");
            last = jobs;
        }
        assert!(last >= 256, "4 GiB permit as many jobs as can be asked for");
    }

    #[test]
    fn a_worker_s_share_is_what_it_takes() {
        for (mebibytes, level) in [(192, 3), (192, 9), (1024, 3), (64, 3), (192, 19)] {
            let jobs = dump_jobs_max(ByteCount(mebibytes << 20), level) as u64;
            let compressor = compressor_bytes(usize::try_from(level).unwrap());
            let workers = jobs * (READER_BYTES + compressor);
            let objects =
                (OBJECT_MEMORY_BYTES as u64).max(jobs * (OBJECTS_PER_WORKER * PART_BYTES_MIN) as u64);
            assert!(
                jobs == 1 || workers + objects <= mebibytes << 20,
                "{mebibytes} MiB, level {level}: {jobs}"
            );
        }
    }
}
