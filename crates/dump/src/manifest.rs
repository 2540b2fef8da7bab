//! What a dump's manifest and summary hold. docs/FORMAT.md describes the same for readers in other languages.
//!
//! Unknown fields are ignored on reading, so that later versions may add some; a changed meaning raises `format`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pgkeep_repository::object::ObjectRef;
use serde::{Deserialize, Serialize};

/// The version of the manifest's meaning.
pub const MANIFEST_FORMAT: u32 = 1;

/// Everything about one dump. Written last: it is the dump's existence.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DumpManifest {
    /// [`MANIFEST_FORMAT`].
    pub format: u32,
    /// The dump's id.
    pub id: String,
    /// The cluster's name in the repository.
    pub cluster: String,
    /// The version of pgkeep that wrote it.
    pub pgkeep_version: String,
    /// When it was begun.
    pub started_at: Timestamp,
    /// When the last object was durable.
    pub finished_at: Timestamp,
    /// `pg_control_system().system_identifier`, as text because JSON numbers end at 2^53.
    pub system_identifier: String,
    /// As `SHOW server_version` has it.
    pub server_version: String,
    /// As `SHOW server_version_num` has it.
    pub server_version_num: u32,
    /// What the user noted with `--annotate KEY=VALUE`.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Roles, memberships and tablespaces as `pg_dumpall --globals-only` prints them.
    pub globals: Option<ObjectRef>,
    /// Whether the globals hold the roles' password hashes (reading them needs superuser).
    #[serde(default)]
    pub globals_have_passwords: bool,
    /// The public keys that its objects are encrypted for; empty without encryption, unknown of older dumps.
    #[serde(default)]
    pub recipients: Option<Vec<String>>,
    /// Which part of the cluster was asked for; unknown of older dumps.
    #[serde(default)]
    pub asked: Option<Asked>,
    /// The databases, in the order they were dumped.
    pub databases: Vec<DatabaseManifest>,
    /// What was not captured, in plain words; empty when all was.
    #[serde(default)]
    pub omissions: Vec<String>,
    /// Sums over everything.
    pub totals: Totals,
}

/// Sums over a dump.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Objects in the store, the manifest not counted.
    pub objects: u64,
    /// Their size as stored, in bytes.
    pub stored_bytes: u64,
    /// The size of their contents, in bytes.
    pub plain_bytes: u64,
    /// Tables, partitions and chunks whose rows were read.
    pub relations: u64,
    /// Rows read: those of the users' tables, compressed ones as they are stored, and those of extensions' configuration
    /// tables (of TimescaleDB's catalog, for example).
    pub rows: u64,
    /// Of the objects, those of earlier dumps, whose rows haven't changed since.
    #[serde(default)]
    pub reused_objects: u64,
    /// Their size as stored, in bytes.
    #[serde(default)]
    pub reused_bytes: u64,
}

/// Small enough to be read for every line of `pgkeep list`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DumpSummary {
    /// When the last object was durable.
    pub finished_at: Timestamp,
    /// `pg_control_system().system_identifier`.
    pub system_identifier: String,
    /// As `SHOW server_version` has it.
    pub server_version: String,
    /// The databases' names.
    pub databases: Vec<String>,
    /// TimescaleDB's version, when any database has it.
    pub timescaledb: Option<String>,
    /// The user's notes.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Sums over everything.
    pub totals: Totals,
    /// Whether only a part of the databases or tables was asked for.
    #[serde(default)]
    pub partial: bool,
    /// Which part of the tables.
    #[serde(default)]
    pub filters: Filters,
    /// Less than what the cluster's configuration says was asked for; unknown of older dumps.
    #[serde(default)]
    pub narrowed: Option<Narrowed>,
}

/// Which part of a cluster a dump was asked to hold: the summary says the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Whether only a part of the databases or tables was asked for.
    #[serde(default)]
    pub partial: bool,
    /// Which part of the tables.
    #[serde(default)]
    pub filters: Filters,
    /// Less than what the cluster's configuration says.
    #[serde(default)]
    pub narrowed: Narrowed,
}

impl DumpSummary {
    /// Which part of the cluster was asked for.
    pub fn asked(&self) -> Asked {
        Asked {
            partial: self.partial,
            filters: self.filters.clone(),
            narrowed: self.narrowed(),
        }
    }

    /// What the dump lacks of what the cluster's dumps hold; for an older dump, of the cluster itself.
    pub fn narrowed(&self) -> Narrowed {
        self.narrowed.unwrap_or(Narrowed {
            databases: self.partial && self.filters == Filters::default(),
            tables: self.filters != Filters::default(),
        })
    }
}

/// In what a dump holds less than what is dumped as a rule: what was asked for by flags, not by the configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Narrowed {
    /// Databases were named.
    #[serde(default)]
    pub databases: bool,
    /// Tables or schemas were named, or left out.
    #[serde(default)]
    pub tables: bool,
}

/// One database of a dump.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DatabaseManifest {
    /// Its name.
    pub name: String,
    /// The folder of its objects in the dump's: `d1`, `d2`, ...
    pub folder: String,
    /// What `CREATE DATABASE` and `ALTER DATABASE` need.
    pub properties: DatabaseProperties,
    /// When the snapshot was taken that everything in it was read under.
    pub snapshot_at: Timestamp,
    /// The server's WAL position just after the snapshot (`pg_current_wal_lsn`, or the replayed one on a standby).
    pub snapshot_lsn: Option<String>,
    /// Installed extensions.
    pub extensions: Vec<ExtensionInfo>,
    /// The version of the `pg_dump` that wrote the schema.
    pub pg_dump_version: String,
    /// The schema: an archive in pg_dump's custom format, in pieces to be read one after the other.
    pub schema: Vec<ObjectRef>,
    /// Which catalog entry belongs to which table, for restoring single tables: lines of class oid, object oid,
    /// table oid and, for a foreign key, the referenced table's oid, separated by tabs.
    pub dependents: ObjectRef,
    /// Statements that set every sequence, as a psql script.
    pub sequences: Option<ObjectRef>,
    /// Large objects: an archive in pg_dump's custom format, in pieces; empty without large objects.
    pub large_objects: Vec<ObjectRef>,
    /// Populated materialized views, each after those it reads from.
    pub materialized_views: Vec<QualifiedName>,
    /// Tables, partitions, chunks and extensions' configuration tables.
    pub relations: Vec<Relation>,
    /// The objects with their rows.
    pub data: Vec<DataObject>,
    /// TimescaleDB's inventory, when the extension is there.
    pub timescaledb: Option<pgkeep_timescale::Inventory>,
    /// The oids of foreign keys that must be made after TimescaleDB's restore mode has ended.
    #[serde(default)]
    pub foreign_keys_to_hypertables: Vec<u32>,
    /// What was asked for, when it wasn't everything.
    #[serde(default)]
    pub filters: Filters,
    /// What the filters left out of the schema; unknown of older dumps, whose schema has everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excluded: Option<Excluded>,
    /// The roles that the database can't do without: owners, grantees, and whoever else its objects name. None where that
    /// can't be told, and of older dumps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roles: Option<Vec<String>>,
}

impl DatabaseManifest {
    /// Its rows, as [`Totals::rows`] counts them.
    pub fn rows(&self) -> u64 {
        self.relations.iter().map(|relation| relation.rows).sum()
    }
}

/// What excluded tables left out of a database's schema.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excluded {
    /// Relations that the schema doesn't have: those that fit, their sequences, and views that read them.
    #[serde(default)]
    pub relations: Vec<QualifiedName>,
    /// Objects that need one of those and therefore can't be made, whether the archive holds them or not.
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
    /// Relations that stay in the schema, without rows, because others are made from them.
    #[serde(default)]
    pub empty: Vec<EmptyRelation>,
    /// Hypertables: in the schema and in TimescaleDB's catalog, without rows, to be dropped at the end of a restore.
    #[serde(default)]
    pub hypertables: Vec<QualifiedName>,
}

/// An object that can't be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Its catalog's oid, as `pg_restore --list` shows it.
    pub class: u32,
    /// Its oid, likewise.
    pub oid: u32,
    /// What it is, as PostgreSQL says it; empty for what belongs to an excluded table.
    #[serde(default)]
    pub description: String,
}

/// An excluded relation that stays, without rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmptyRelation {
    /// The relation.
    #[serde(flatten)]
    pub name: QualifiedName,
    /// What is made from it, as PostgreSQL says it.
    pub needed_by: String,
}

/// `schema.name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct QualifiedName {
    /// The schema.
    pub schema: String,
    /// The relation's name in it.
    pub name: String,
}

impl QualifiedName {
    /// Quoted for SQL.
    pub fn quoted(&self) -> String {
        pgkeep_base::quote_qualified(&self.schema, &self.name)
    }
}

impl std::fmt::Display for QualifiedName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// What `pg_database` and its relatives say.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct DatabaseProperties {
    /// The owner's name.
    pub owner: String,
    /// The encoding's name.
    pub encoding: String,
    /// `c` libc, `i` ICU, `b` builtin (`pg_database.datlocprovider`).
    pub locale_provider: String,
    /// `LC_COLLATE`.
    pub collate: String,
    /// `LC_CTYPE`.
    pub ctype: String,
    /// The ICU or builtin locale.
    pub locale: Option<String>,
    /// ICU rules.
    pub icu_rules: Option<String>,
    /// `-1` for none.
    pub connection_limit: i32,
    /// Whether it is a template.
    pub is_template: bool,
    /// Its comment.
    pub comment: Option<String>,
    /// Settings (`ALTER DATABASE ... SET`, `ALTER ROLE ... IN DATABASE ... SET`).
    pub settings: Vec<DatabaseSetting>,
    /// Privileges on the database, `None` where they are the built-in ones.
    pub privileges: Option<Vec<DatabasePrivilege>>,
}

/// One row of `pg_db_role_setting`, one setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseSetting {
    /// The role it is for, or none for all.
    pub role: Option<String>,
    /// The setting's name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// One entry of a database's access control list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabasePrivilege {
    /// The role, or none for `PUBLIC`.
    pub grantee: Option<String>,
    /// `CONNECT`, `CREATE`, `TEMPORARY`.
    pub privilege: String,
    /// `WITH GRANT OPTION`.
    pub grantable: bool,
}

/// One installed extension.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtensionInfo {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The schema of its objects.
    pub schema: String,
}

/// What kind of relation rows belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RelationKind {
    /// An ordinary table, or a leaf partition.
    Table,
    /// A configuration table of an extension: loaded before everything else, in the manifest's order.
    Configuration,
    /// A chunk of a hypertable.
    Chunk,
    /// The relation with a chunk's compressed rows.
    CompressedChunk,
}

/// How a relation's rows are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowFormat {
    /// COPY's text format, in a psql script.
    #[default]
    Text,
    /// COPY's binary format, in objects of the relation's own.
    Binary,
}

impl RowFormat {
    /// Whether it is the one that needn't be named.
    fn is_text(&self) -> bool {
        *self == Self::Text
    }
}

/// One relation whose rows are in the dump.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Relation {
    /// Its name.
    #[serde(flatten)]
    pub name: QualifiedName,
    /// What it is.
    pub kind: RelationKind,
    /// `pg_class.oid` in the dumped database, as `pg_restore --list` shows it.
    pub oid: u32,
    /// The columns of the rows, as a quoted list for COPY; empty for a table without columns.
    pub columns: String,
    /// Where the rows must be loaded when not into the relation itself (the root of a partitioned table whose
    /// partitions depend on the oids of enum values).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_into: Option<QualifiedName>,
    /// For a partition: the partitioned table at the top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition_of: Option<QualifiedName>,
    /// Rows of this relation alone, without its children's.
    pub rows: u64,
    /// For a relation of compressed rows: how many rows they stand for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compressed_rows: Option<u64>,
    /// The columns' types, of what may be loaded into a table that is there: tables, but for partitions and chunks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub column_types: Vec<ColumnType>,
    /// How the rows are written.
    #[serde(default, skip_serializing_if = "RowFormat::is_text")]
    pub format: RowFormat,
    /// BLAKE3 of the rows in that format, in hexadecimal.
    pub hash: String,
    /// The size of the rows in that format, in bytes.
    pub plain_bytes: u64,
    /// The size on disk when it was dumped, in bytes, of relations with objects of their own; unknown of older dumps. The
    /// next dump tries first what this makes likely.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// The rows were left out on request (`--exclude-table-data`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub data_excluded: bool,
}

impl Relation {
    /// What the rows are loaded into.
    pub fn target(&self) -> &QualifiedName {
        self.load_into.as_ref().unwrap_or(&self.name)
    }
}

/// A column that rows have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnType {
    /// Its name, unquoted.
    pub name: String,
    /// Its type without length or precision, as PostgreSQL writes it with an empty search path.
    #[serde(rename = "type")]
    pub type_name: String,
}

/// One object with rows: a psql script of one or several COPY blocks, or one stream in COPY's binary format.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DataObject {
    /// The object.
    #[serde(flatten)]
    pub object: ObjectRef,
    /// Its COPY blocks, in order.
    pub segments: Vec<Segment>,
}

/// One COPY block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The relation, by its place in [`DatabaseManifest::relations`].
    pub relation: u32,
    /// Rows in the block.
    pub rows: u64,
    /// The size of the rows, in bytes, from after the COPY line up to the line `\.`, or between header and trailer.
    pub bytes: u64,
}

/// What was asked for, when it wasn't everything. Patterns as pg_dump takes them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filters {
    /// `--table`
    #[serde(default)]
    pub tables: Vec<String>,
    /// `--exclude-table`
    #[serde(default)]
    pub exclude_tables: Vec<String>,
    /// `--schema`
    #[serde(default)]
    pub schemas: Vec<String>,
    /// `--exclude-schema`
    #[serde(default)]
    pub exclude_schemas: Vec<String>,
    /// `--exclude-table-data`
    #[serde(default)]
    pub exclude_table_data: Vec<String>,
}

impl Filters {
    /// Whether only chosen tables or schemas are in the dump. What is merely excluded leaves a whole database, whose
    /// excluded tables come back empty.
    pub fn selects_a_part(&self) -> bool {
        !(self.tables.is_empty() && self.schemas.is_empty())
    }
}
