//! What a dump's manifest says about TimescaleDB.

mod read;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::License;

pub use read::{chunk_fingerprint, inventory};
pub(crate) use read::{relation_name, utc_text_sql};

/// Everything that a dump records. Fields may be added in later versions; unknown ones are ignored, missing ones are
/// empty.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Inventory {
    /// The extension's version, such as `2.17.2`: the one a restore needs.
    pub version: String,
    /// The schema of the extension's functions.
    pub schema: String,
    /// The edition.
    pub license: License,
    /// All hypertables, internal ones too, in the order of their ids.
    pub hypertables: Vec<Hypertable>,
    /// All continuous aggregates.
    pub continuous_aggregates: Vec<ContinuousAggregate>,
    /// All jobs that somebody added (ids from 1000), policies among them.
    pub jobs: Vec<Job>,
}

impl Inventory {
    /// Is there something in it that the Apache edition refuses?
    pub fn needs_community(&self) -> bool {
        !self.continuous_aggregates.is_empty()
            || !self.jobs.is_empty()
            || self.hypertables.iter().any(|hypertable| {
                hypertable.compression_enabled || hypertable.chunks.iter().any(|chunk| chunk.is_compressed)
            })
    }
}

/// A schema and a name in it, unquoted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RelationName {
    /// The schema.
    pub schema: String,
    /// The name.
    pub name: String,
}

/// What a hypertable is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HypertableKind {
    /// Somebody made it.
    #[default]
    User,
    /// It holds the rows of a continuous aggregate.
    Materialization,
    /// It stands for the compressed relations of another one (before 2.29). Its chunks are those relations.
    Compressed,
    /// Something that only later versions of this program know.
    #[serde(other)]
    Unknown,
}

/// One hypertable.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Hypertable {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Its owner.
    pub owner: String,
    /// What it is for.
    pub kind: HypertableKind,
    /// The dimensions it is partitioned by, the primary one first.
    pub dimensions: Vec<Dimension>,
    /// Is compression enabled (which says nothing about any chunk)?
    pub compression_enabled: bool,
    /// The columns that compressed rows are grouped by.
    pub segment_by: Vec<String>,
    /// The columns that compressed rows are ordered by.
    pub order_by: Vec<OrderBy>,
    /// Its chunks, ordered by their start.
    pub chunks: Vec<Chunk>,
}

/// A dimension of a hypertable.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Dimension {
    /// The column.
    pub column: String,
    /// Its type, as `format_type` has it.
    pub column_type: String,
    /// The length of a chunk, for a dimension of time or integers: microseconds, or the column's own unit.
    pub interval_length: Option<i64>,
    /// The number of partitions, for a dimension by hash.
    pub partitions: Option<i32>,
    /// The function that gives the current "time" of an integer column.
    pub integer_now: Option<RelationName>,
}

/// A column in an order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct OrderBy {
    /// The column.
    pub column: String,
    /// From the largest to the smallest?
    pub descending: bool,
    /// Are NULLs first?
    pub nulls_first: bool,
}

/// One chunk.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Chunk {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// The first time in the primary dimension, in UTC (`2026-01-01T00:00:00.000000Z`, or `-infinity`); none for
    /// integers and for compressed relations.
    pub range_start: Option<String>,
    /// The end of it; the chunk holds what is before.
    pub range_end: Option<String>,
    /// The start as TimescaleDB has it: microseconds since 1970 (UTC) for times, the integer itself for integers.
    pub range_start_internal: Option<i64>,
    /// The end as TimescaleDB has it.
    pub range_end_internal: Option<i64>,
    /// Has it a compressed relation?
    pub is_compressed: bool,
    /// The bits of `_timescaledb_catalog.chunk.status`: 1 compressed, 2 unordered, 4 frozen, 8 partially compressed.
    pub status: i32,
    /// The relation that holds its compressed rows.
    pub compressed_relation: Option<RelationName>,
    /// Is its data in an object store (Tiger Cloud), out of any dump's reach?
    pub tiered: bool,
}

impl Chunk {
    /// Has it both compressed rows and others?
    pub fn is_partial(&self) -> bool {
        self.status & 8 != 0
    }
}

/// One continuous aggregate.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContinuousAggregate {
    /// The view's schema.
    pub schema: String,
    /// The view's name.
    pub name: String,
    /// The view's owner.
    pub owner: String,
    /// The hypertable (or the materialization of another aggregate) that it reads.
    pub source: RelationName,
    /// The hypertable that holds its rows.
    pub materialization: RelationName,
    /// The query as its author wrote it.
    pub view_definition: String,
    /// Does it leave out what isn't materialized yet?
    pub materialized_only: bool,
    /// Is it of the form that is the only one since 2.25?
    pub finalized: bool,
}

/// A background job.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Job {
    /// Its id, which a restore keeps.
    pub id: i32,
    /// Its name in `pg_stat_activity`.
    pub application_name: String,
    /// How often it runs, as PostgreSQL writes an interval.
    pub schedule_interval: String,
    /// The schema of its procedure.
    pub procedure_schema: String,
    /// Its procedure, such as `policy_retention`.
    pub procedure_name: String,
    /// The role it runs as. The restore fails for all jobs if it is missing.
    pub owner: String,
    /// Does it run?
    pub scheduled: bool,
    /// The hypertable or continuous aggregate it works on.
    pub hypertable: Option<RelationName>,
    /// Its settings.
    pub config: Option<Value>,
    /// When it would have run next, in UTC.
    pub next_start: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_manifest_with_unknown_fields_is_read() {
        let text = r#"{"version":"2.40.0","license":"something new","hypertables":[{"schema":"s","name":"h","kind":"new kind",
            "color":"red","chunks":[{"name":"c","status":9,"range_start_internal":5}]}],"extra":{}}"#;
        let inventory: Inventory = serde_json::from_str(text).unwrap();
        assert_eq!(inventory.license, License::Unknown);
        assert_eq!(inventory.hypertables[0].kind, HypertableKind::Unknown);
        assert!(inventory.hypertables[0].chunks[0].is_partial());
        assert!(!inventory.needs_community());
    }

    #[test]
    fn the_names_in_the_manifest_are_stable() {
        let inventory = Inventory {
            version: "2.17.2".to_owned(),
            schema: "public".to_owned(),
            license: License::Timescale,
            hypertables: vec![Hypertable {
                kind: HypertableKind::Materialization,
                ..Hypertable::default()
            }],
            continuous_aggregates: vec![ContinuousAggregate::default()],
            jobs: vec![Job {
                id: 1000,
                ..Job::default()
            }],
        };
        let json = serde_json::to_value(&inventory).unwrap();
        assert_eq!(json["license"], "timescale");
        assert_eq!(json["hypertables"][0]["kind"], "materialization");
        assert_eq!(json["jobs"][0]["id"], 1000);
        assert!(json["continuous_aggregates"][0]["materialization"]["schema"].is_string());
        assert_eq!(serde_json::from_value::<Inventory>(json).unwrap(), inventory);
        assert!(inventory.needs_community());
    }
}
