//! The repository: where backups live, and the rules that keep them whole.
//!
//! | module | what it knows |
//! |---|---|
//! | `layout` | every key of the repository, in one place |
//! | `compression`, `encryption`, `keys` | zstd and age around an object; key pairs |
//! | `object` | sealed objects: written create-only with a BLAKE3 hash, read back as a stream |
//! | `repo` | opening and making a repository; which cluster may write |
//! | `lease`, `process` | one writer at a time for each cluster, and whether it still lives |
//! | `backups`, `commit` | which backups exist; commit, tombstones, removal |
//! | `pack`, `map` | base backups: blocks of files in packs, and where each block of each file lies |
//! | `records` | pins, and what verifications found |
//! | `retention` | the planner: what stays and why |
//! | `destinations` | several repositories that one backup is written to from one read |
//! | `prune`, `copy` | the plan carried out; one backup to another repository |
//! | `wal` | segments of the WAL, whole and in parts, and timeline histories |
//! | `references` | objects that more than one backup needs |
//! | `bucket` | what an S3 bucket should be for all this |
//! | `integrity` | `checksums.b3`, and verifying against it without a key |
//!
//! The manifest's presence is the backup's existence. See docs/FORMAT.md and docs/CONCURRENCY.md.

pub mod backups;
pub mod bucket;
pub mod commit;
pub mod compression;
pub mod copy;
pub mod destinations;
pub mod encryption;
mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing_packs;
pub mod integrity;
pub mod keys;
pub mod layout;
pub mod lease;
pub mod map;
pub mod object;
pub mod pack;
mod process;
pub mod prune;
pub mod records;
pub mod references;
mod repo;
pub mod retention;
mod varint;
pub mod wal;

pub use error::RepositoryError;
pub use repo::{Access, Repository, RepositoryMarker};
pub use varint::Broken;
