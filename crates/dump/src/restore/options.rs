use std::path::PathBuf;
use std::time::Duration;

use pgkeep_base::BackupId;
use pgkeep_pg::programs::ProgramSearch;

use crate::restore::range::RangeBound;

/// What to restore, and how.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// The databases' names as they were dumped; empty for all.
    pub databases: Vec<String>,
    /// Single tables, by patterns as `pg_restore` and `pg_dump` take them; empty for all.
    pub tables: Vec<String>,
    /// One hypertable, whole or a range of its time dimension.
    pub hypertable: Option<HypertableRange>,
    /// Restore the one chosen database under another name, or single tables into another database.
    pub target_database: Option<String>,
    /// Drop what is in the way. Without it, nothing that holds anything is touched.
    pub overwrite: bool,
    /// Go on with a restore that stopped half-way.
    pub resume: bool,
    /// Tables loaded and indexes built at once.
    pub jobs: usize,
    /// Make the roles that are missing: of chosen databases those that they use, otherwise all.
    pub roles: bool,
    /// Make all of them in any case.
    pub all_roles: bool,
    /// Give objects to their owners; without it all belongs to the connecting role.
    pub owners: bool,
    /// Grant privileges.
    pub privileges: bool,
    /// Collect the planner's statistics at the end.
    pub analyze: bool,
    /// Turn TimescaleDB's jobs on again even if they are about to delete restored rows.
    pub enable_jobs: bool,
    /// Update TimescaleDB to the target's version when all is restored.
    pub update_extensions: bool,
    /// Where to look for PostgreSQL's client programs.
    pub programs: ProgramSearch,
    /// Where temporary files (the schema's archive) go.
    pub work_directory: Option<PathBuf>,
}

impl RestoreOptions {
    /// Whether single tables are asked for, instead of whole databases.
    pub fn is_partial(&self) -> bool {
        !self.tables.is_empty() || self.hypertable.is_some()
    }
}

/// A hypertable, or a part of it; made by [`HypertableRange::new`], which refuses ranges that can hold nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HypertableRange {
    /// `schema.name` or `name`, as a pattern.
    pub(crate) pattern: String,
    /// From this value of its first dimension on.
    pub(crate) from: Option<RangeBound>,
    /// Up to, and without, this value.
    pub(crate) to: Option<RangeBound>,
}

/// What a restore did.
#[derive(Debug)]
pub struct RestoreReport {
    /// The dump.
    pub id: BackupId,
    /// What became of each database, but for those that an earlier attempt had completed.
    pub databases: Vec<RestoredDatabase>,
    /// Roles that were made.
    pub roles_created: Vec<String>,
    /// Roles of the dump that are missing and weren't made, because the databases don't use them.
    pub roles_left_out: Vec<String>,
    /// What needs attention, in plain words.
    pub attention: Vec<String>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
    /// How long it took.
    pub elapsed: Duration,
}

/// One database, restored and counted.
#[derive(Debug, Clone)]
pub struct RestoredDatabase {
    /// Its name in the dump.
    pub name: String,
    /// Its name in the target.
    pub target_name: String,
    /// Tables, partitions and chunks whose rows were loaded.
    pub relations: u64,
    /// Rows that came back. Of a whole database, those that the dump counted ([`Totals::rows`]): with those of extensions'
    /// configuration tables, and with what an attempt before this one had loaded. Of a part, those that this restore
    /// loaded into tables, decompressed where they go into a hypertable.
    ///
    /// [`Totals::rows`]: crate::manifest::Totals::rows
    pub rows: u64,
    /// Tables and hypertables counted again afterwards; all agreed with the manifest.
    pub counted: u64,
}
