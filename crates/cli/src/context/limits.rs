//! How much of a command's work is done at once, and how hard it compresses.

use pgkeep_base::ByteCount;
use pgkeep_dump::memory::MEMORY_DEFAULT;
use pgkeep_repository::encryption::COMPRESSION_LEVEL_DEFAULT;

use super::Settings;
use crate::output::{Output, counted};

/// More workers than this are worth asking for by name.
const JOBS_DEFAULT_MAX: usize = 8;

impl Settings {
    /// How much is done at once.
    pub fn jobs(&self) -> usize {
        let by_cpus =
            || std::thread::available_parallelism().map_or(2, |cpus| cpus.get().clamp(2, JOBS_DEFAULT_MAX));
        self.cluster.dump.jobs.map_or_else(by_cpus, |jobs| jobs as usize)
    }

    /// How much memory the work may take.
    pub fn memory_limit(&self) -> ByteCount {
        self.cluster.limits.memory.unwrap_or(MEMORY_DEFAULT)
    }

    /// The same, as far as `limits.memory` permits; `jobs_max` tells how many jobs fit.
    pub fn jobs_in_memory(&self, output: &Output, jobs_max: impl Fn(ByteCount) -> usize) -> usize {
        let memory = self.memory_limit();
        let (wanted, permitted) = (self.jobs(), jobs_max(memory));
        if wanted > permitted {
            output.note(format!(
                "{} instead of {wanted}, to stay within limits.memory ({memory}); for more: --set limits.memory=1GiB",
                counted(permitted as u64, "job", "jobs")
            ));
        }
        wanted.min(permitted)
    }

    /// The settings as they are for base backups: their own number of jobs and level, flags first.
    pub fn of_base_backups(mut self, jobs: Option<u32>, compression_level: Option<i32>) -> Self {
        let cluster = &mut self.cluster;
        cluster.dump.jobs = jobs.or(cluster.backup.jobs);
        cluster.dump.compression_level = compression_level.or(cluster.backup.compression_level);
        self
    }

    /// zstd's level.
    pub fn compression_level(&self) -> i32 {
        self.cluster
            .dump
            .compression_level
            .unwrap_or(COMPRESSION_LEVEL_DEFAULT)
    }
}
