//! Logical backups of a cluster, and their restore. docs/design-dump.md has the decisions and the traps they answer.

mod binary;
mod blocks;
mod catalog;
pub mod check;
mod choose;
mod claim;
mod columns;
mod commit;
mod connect;
mod data;
mod database;
mod databases;
mod error;
mod excluded;
mod export;
mod files;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod giving_way;
mod hidden;
mod indispensable;
mod limits;
pub mod manifest;
pub mod memory;
mod objects;
mod output;
mod pack;
mod partial;
mod pattern;
pub mod presence;
mod read;
pub mod restore;
mod reuse;
mod roles;
mod run;
mod schema;
mod sequences;
mod snapshot;
mod sql;
mod unfit;
pub mod verify;
mod way_out;

pub use choose::{Chosen, Found, Skipped, Wanted, choose, find};
pub use error::DumpError;
pub use export::{ExportFormat, ExportOptions, export};
pub use files::{FileFormat, FileOptions, FileReport, write_files};
pub use pgkeep_base::Progress;
pub use read::{read_manifest, read_summary};
pub use reuse::ReuseOptions;
pub use run::{DumpOptions, DumpReport, dump};
