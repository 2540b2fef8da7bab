//! Knowledge of TimescaleDB's catalog: what a dump must record, what a restore must do, and what would silently go wrong.
//!
//! Supported: TimescaleDB 2.13 and later, both editions. The catalog changed from release to release; instead of a table
//! of versions the code asks the catalog which columns it has (`catalog.rs`), so that releases
//! in between and development builds are read right too.
//!
//! # What was found by running it
//! On 2.13.1, 2.17.2, 2.19.3, 2.22.0, 2.26.4 and 2.29.2 (Community) with PostgreSQL 16 to 18; databases with plain,
//! compressed and partially compressed chunks, hierarchical continuous aggregates, policies, several kinds of dimensions
//! and foreign keys in both directions.
//!
//! - **Dumping a chunk** by `COPY chunk (columns) TO` gives the rows of its heap only: none of a compressed chunk, the
//!   uncompressed rest of a partial one. The compressed relation is a table of its own and is dumped like one; its values
//!   come as base64 text and go back unchanged. `COPY (SELECT ... FROM chunk)` decompresses, and would give rows twice.
//!   With the *hypercore* access method (2.18 to 2.21) even `SELECT ... FROM ONLY chunk` decompresses; plain `COPY` doesn't.
//! - **The catalog's rows** are those of the tables in `pg_extension.extconfig`, with its conditions. Loaded in the order
//!   of their foreign keys, between [`pre_restore`] and [`post_restore`] and after the tables they name exist
//!   (`regclass` columns), they equal the source's row for row, except for the installation's own id. They have to be read
//!   with an empty `search_path`, or a `regclass` loses its schema. Which tables, and from which to which the keys lead,
//!   differs by version: ask the catalog, don't list them. In 2.13 some have no columns.
//! - **Loading** with `TRUNCATE ONLY` and `COPY ... FREEZE` in one transaction is right for plain chunks, partial chunks
//!   and compressed relations, but not for chunks with the hypercore access method: there TRUNCATE empties the compressed
//!   relation too. So: only where the access method is heap.
//! - **While `timescaledb.restoring` is on, compressed rows are invisible.** A session that was opened before
//!   [`post_restore`] keeps the setting. Materialized views are refreshed and rows are counted afterwards, in new sessions.
//! - **Foreign keys that reference a hypertable** can't be created while restoring (the check looks into the root table,
//!   which is empty): they come after [`post_restore`]; see [`foreign_keys_to_hypertables`].
//! - Indexes, constraints and triggers of chunks are entries of their own in `pg_dump`'s archive; those of the root don't
//!   cascade while restoring. `pg_restore --section=post-data --jobs` is right once the data is there.
//! - [`post_restore`] starts the background jobs at once, and a retention policy that is overdue deletes the history that
//!   was just restored: [`hold_jobs`] before, [`pending_deletions`] after, then [`release_jobs`]. A first start in the
//!   future (`initial_start`) is no protection: when a job ran last isn't dumped, so it is due.
//! - The extension's schema, where it isn't `public`, is an entry of the archive too (`SCHEMA - name owner`), and is there
//!   already when the archive is restored, because the extension is.
//! - **Any statement, even `SET`, loads the extension's library into a session**, and `ALTER EXTENSION ... UPDATE` is
//!   refused from then on: see [`update_extension`].

mod catalog;
mod edition;
mod error;
mod foreign_keys;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod inventory;
mod jobs;
mod preload;
mod restore;
mod retention;
mod rows;
mod target;

pub use edition::{Extension, License, Version, detect};
pub use error::TimescaleError;
pub use foreign_keys::{ForeignKey, foreign_keys_to_hypertables};
pub use inventory::{
    Chunk, ContinuousAggregate, Dimension, Hypertable, HypertableKind, Inventory, Job, OrderBy, RelationName,
    chunk_fingerprint, inventory,
};
pub use jobs::{JobId, hold_jobs, missing_job_owners, release_jobs};
pub use preload::{preload, preload_statement};
pub use restore::{create_extension, post_restore, pre_restore, update_extension};
pub use retention::{PendingChunk, PendingDeletion, pending_deletions};
pub use rows::{compressed_row_count_sql, hypertable_row_count};
pub use target::{Finding, Severity, check_target};
