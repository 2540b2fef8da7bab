//! What a base backup says of itself; docs/FORMAT.md has the fields.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pgkeep_pgformat::{Lsn, Timeline};
use pgkeep_repository::object::ObjectRef;
use serde::{Deserialize, Serialize};

/// The only format this program writes, and the highest it reads.
pub const MANIFEST_FORMAT: u32 = 1;

/// A manifest is never longer, in bytes.
pub(crate) const MANIFEST_BYTES_MAX: usize = 4 << 20;
/// Nor a summary.
pub(crate) const SUMMARY_BYTES_MAX: usize = 4 << 20;
/// So many of the server's reports about damaged pages are kept.
pub(crate) const DAMAGE_REPORTS_MAX: usize = 10_000;

/// Everything about a base backup that isn't a file of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaseManifest {
    /// Version of the format.
    pub format: u32,
    /// The backup's id.
    pub id: String,
    /// The cluster's name in the repository.
    pub cluster: String,
    /// Of the program that wrote it.
    pub pgkeep_version: String,
    /// Which database cluster it is.
    pub system_identifier: String,
    /// As the server says it.
    pub server_version: String,
    /// The same as a number: `160015`.
    pub server_version_num: u32,
    /// The catalog's format: a server starts on its own only.
    pub catalog_version: u32,
    /// The size of pages, and of blocks, in bytes.
    pub block_bytes: u32,
    /// The size of the WAL's files, in bytes.
    pub wal_segment_bytes: u64,
    /// Pages have checksums, and they were compared while they were read.
    pub data_checksums: bool,
    /// How the files were read: `replication` or `local`.
    pub reader: String,
    /// The server was a standby.
    pub from_standby: bool,
    /// By the writer's clock, to the second.
    pub started_at: Timestamp,
    /// By the writer's clock.
    pub finished_at: Timestamp,
    /// When the checkpoint was made from which recovery begins, by the server's clock, to the second.
    pub checkpoint_at: Timestamp,
    /// Where recovery begins.
    #[serde(with = "lsn")]
    pub start_lsn: Lsn,
    /// The timeline of it.
    #[serde(with = "timeline")]
    pub start_timeline: Timeline,
    /// The record of that checkpoint.
    #[serde(with = "lsn")]
    pub checkpoint_lsn: Lsn,
    /// What recovery must reach.
    #[serde(with = "lsn")]
    pub stop_lsn: Lsn,
    /// The timeline of it.
    #[serde(with = "timeline")]
    pub stop_timeline: Timeline,
    /// The contents of `backup_label`.
    pub backup_label: String,
    /// Beside the data directory.
    #[serde(default)]
    pub tablespaces: Vec<Tablespace>,
    /// The key of the blocks' fingerprints: 64 hexadecimal digits.
    pub fingerprint_key: String,
    /// The public keys that its objects are encrypted for, sorted; empty without encryption.
    #[serde(default)]
    pub recipients: Vec<String>,
    /// The user's notes.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Pages that were found damaged; they are stored as they are.
    #[serde(default)]
    pub damaged_pages: DamagedPages,
    /// What was not captured, in words.
    #[serde(default)]
    pub omissions: Vec<String>,
    /// The records of its files.
    pub files: Vec<ObjectRef>,
    /// The list of packs that they refer to.
    pub packs: ObjectRef,
    /// Sums.
    pub totals: BaseTotals,
}

/// A directory outside the data directory that belongs to the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    /// The name of its link in `pg_tblspc`.
    pub oid: u32,
    /// Where it was; bytes that aren't UTF-8 are replaced.
    pub path: String,
}

/// What is known of pages whose checksum is wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedPages {
    /// How many reports there were.
    pub reports_total: u64,
    /// The first ones, in words: they name file and block. A server that compares stops naming the blocks of a file after a few.
    pub reports: Vec<String>,
}

/// Sums over a base backup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseTotals {
    /// Objects that it needs, manifest and `checksums.b3` not counted.
    pub objects: u64,
    /// Their size, in bytes.
    pub stored_bytes: u64,
    /// Files.
    pub files: u64,
    /// Their size, in bytes.
    pub plain_bytes: u64,
    /// How much of that is blocks of zeros, which are not stored, in bytes.
    pub zero_bytes: u64,
    /// Packs that it needs.
    pub packs: u64,
    /// Of the objects, those that lie in the folders of earlier backups: packs.
    #[serde(default)]
    pub reused_objects: u64,
    /// Their size as stored, in bytes.
    #[serde(default)]
    pub reused_bytes: u64,
}

/// What is read for a list of backups.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaseSummary {
    /// By the writer's clock.
    pub finished_at: Timestamp,
    /// Which database cluster it is.
    pub system_identifier: String,
    /// As the server says it.
    pub server_version: String,
    /// The user's notes.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Where recovery begins.
    #[serde(with = "lsn")]
    pub start_lsn: Lsn,
    /// What recovery must reach.
    #[serde(with = "lsn")]
    pub stop_lsn: Lsn,
    /// The timeline of both.
    #[serde(with = "timeline")]
    pub timeline: Timeline,
    /// Sums.
    pub totals: BaseTotals,
}

/// How an omission goes on that a server can do without: packages of distributions have their configuration elsewhere.
pub(crate) const CONFIGURATION_ELSEWHERE: &str =
    ": it isn't in the data directory, so it isn't sent; a restored server needs one there";

impl BaseManifest {
    /// What it lacks of the server's own files, in words: no server may start from it, or start whole.
    pub fn lacks(&self) -> impl Iterator<Item = &String> {
        let omissions = self.omissions.iter();
        omissions.filter(|omission| !omission.ends_with(CONFIGURATION_ELSEWHERE))
    }

    /// What is read for a list.
    pub fn summary(&self) -> BaseSummary {
        BaseSummary {
            finished_at: self.finished_at,
            system_identifier: self.system_identifier.clone(),
            server_version: self.server_version.clone(),
            annotations: self.annotations.clone(),
            start_lsn: self.start_lsn,
            stop_lsn: self.stop_lsn,
            timeline: self.start_timeline,
            totals: self.totals,
        }
    }
}

/// `"16/B374D848"`
mod lsn {
    use pgkeep_pgformat::Lsn;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(lsn: &Lsn, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(lsn)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Lsn, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

/// A number, never 0.
mod timeline {
    use pgkeep_pgformat::Timeline;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(timeline: &Timeline, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(timeline.as_u32())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timeline, D::Error> {
        let number = u32::deserialize(deserializer)?;
        Timeline::new(number).ok_or_else(|| D::Error::custom("0 is no timeline"))
    }
}

/// The key of a backup's fingerprints, as its manifest writes it.
pub(crate) fn key_of(hex: &str) -> Option<[u8; 32]> {
    let mut key = [0; 32];
    for (place, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(place * 2..place * 2 + 2)?, 16).ok()?;
    }
    Some(key)
}
