//! Base backups: the files of a whole cluster, and restoring them to any moment that the WAL covers.
//!
//! | module | what it knows |
//! |---|---|
//! | `backup` | taking one: the server's files, cut into blocks, compressed, packed and stored while they come |
//! | `manifest`, `read` | what a backup says of itself |
//! | `choose` | which backup is meant |
//! | `restore` | the plan, the files, the WAL that is staged for the server, its settings |
//! | `export` | a backup as `pg_basebackup` makes one |
//! | `windows` | to which points one can go back |
//! | `verify` | whether a backup is what was written |
//!
//! docs/design-base.md has the decisions, docs/FORMAT.md the bytes.

pub mod backup;
mod choose;
mod error;
pub mod export;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod manifest;
pub mod memory;
mod read;
pub mod restore;
pub mod verify;
mod windows;

pub use backup::{BackupOptions, BackupReport, ReaderChoice, backup};
pub use choose::{choose, find};
pub use error::PhysicalError;
pub use read::{read_manifest, read_summary};
pub use windows::{beginning, windows, windows_of};
