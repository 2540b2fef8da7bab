//! Configuration: `pgkeep.toml`, the environment, flags.
//!
//! One table, [`SETTINGS`], holds every setting once: its name in the file, how a value is read and checked, its line in
//! the documentation. The variable's name follows from the setting's (`keep.window`, `PGKEEP_KEEP__WINDOW`). File,
//! environment and flags go through the same table, so that a value means the same and is refused with the same words
//! wherever it stands. What is said later wins: file, then environment, then flags; lists are replaced, not joined.
//!
//! An unknown key in the file is an error, because a mistyped `keep` would keep too little or too much. An unknown
//! `PGKEEP_` variable is a warning: the environment belongs to others too.
//!
//! No value is checked against the outside world here: whether a key is right, a bucket exists or a server answers is
//! for those to say who use it.

mod cluster;
mod error;
mod file;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod input;
mod reference;
mod repositories;
mod select;
mod settings;
mod written;

pub use cluster::{
    AtLimit, Azure, Backup, BackupReader, Cluster, Databases, Drill, Dump, DumpFormat, EncryptionMode, Gcs,
    Keep, Limits, RowFormatChoice, S3, Wal,
};
pub use error::{ConfigError, Origin, Warning};
pub use file::{Loaded, SEARCH_PATHS, load};
pub use reference::reference_markdown;
pub use select::{Config, DEFAULT_CLUSTER, Overrides, unknown_variables};
pub use settings::{GENERAL_VARIABLES, SETTINGS, Setting};
pub use written::Written;
