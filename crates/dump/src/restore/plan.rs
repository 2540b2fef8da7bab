//! What a restore would do, before it does anything.

use std::collections::BTreeMap;

use pgkeep_base::BackupId;

use crate::error::DumpError;
use crate::manifest::{DataObject, DatabaseManifest, DumpManifest, QualifiedName};
use crate::restore::left_out;
use crate::restore::options::RestoreOptions;

/// One database of the plan.
#[derive(Debug, Clone)]
pub struct PlannedDatabase {
    /// Its name in the dump.
    pub name: String,
    /// Its name in the target.
    pub target_name: String,
    /// Tables, partitions and chunks with rows.
    pub relations: u64,
    /// Rows.
    pub rows: u64,
    /// Bytes to fetch.
    pub stored_bytes: u64,
    /// Bytes of rows to load.
    pub plain_bytes: u64,
    /// Objects to fetch.
    pub objects: u64,
    /// TimescaleDB's version, where the database has it.
    pub timescaledb: Option<String>,
    /// What the dump's filters left out of it, in plain words, but for the excluded tables themselves.
    pub left_out: Vec<String>,
}

/// The whole plan.
#[derive(Debug, Clone)]
pub struct RestorePlan {
    /// The dump.
    pub id: BackupId,
    /// When its snapshot was taken: what was committed later is not in it.
    pub taken_at: jiff::Timestamp,
    /// The server that was dumped.
    pub server_version: String,
    /// The databases, in order.
    pub databases: Vec<PlannedDatabase>,
    /// What the dump doesn't hold, in plain words.
    pub omissions: Vec<String>,
}

/// What becomes of a table in the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableAction {
    /// It is made.
    Make,
    /// The one that is there is dropped, and it is made.
    Replace,
    /// A hypertable that is there takes the rows.
    Fill {
        /// Rows that are there in the same range are deleted.
        deletes: bool,
    },
}

impl TableAction {
    /// For the user.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Make => "made",
            Self::Replace => "dropped and made again",
            Self::Fill { deletes: false } => "filled",
            Self::Fill { deletes: true } => "filled; rows that are there in the range are deleted",
        }
    }
}

/// One table of a restore of parts.
#[derive(Debug, Clone)]
pub struct PlannedTable {
    /// Its name.
    pub name: QualifiedName,
    /// Rows that the dump has of it; of a range at most so many, because whole chunks are counted.
    pub rows: u64,
    /// Whether a range of it was asked for.
    pub is_range: bool,
    /// What is done.
    pub action: TableAction,
}

/// What a restore will do in one database of the target.
#[derive(Debug, Clone)]
pub struct TargetDatabase {
    /// Its name in the dump.
    pub name: String,
    /// Its name in the target.
    pub target_name: String,
    /// Completes "database 'x' ...".
    pub does: String,
    /// The tables, of a restore of parts.
    pub tables: Vec<PlannedTable>,
}

/// What a restore will do in this target, as far as it can be told.
#[derive(Debug, Clone, Default)]
pub struct TargetPlan {
    /// The databases, in order.
    pub databases: Vec<TargetDatabase>,
    /// Roles that are made.
    pub roles: Vec<String>,
    /// Roles of the dump that are missing and aren't made, because the databases don't use them.
    pub roles_left_out: Vec<String>,
}

/// The databases of those names; all for none.
///
/// # Errors
/// The dump doesn't have one of them.
pub fn choose_databases<'a>(
    manifest: &'a DumpManifest,
    named: &[String],
) -> Result<Vec<&'a DatabaseManifest>, DumpError> {
    let names: Vec<&str> = manifest
        .databases
        .iter()
        .map(|database| database.name.as_str())
        .collect();
    if let Some(missing) = named.iter().find(|name| !names.contains(&name.as_str())) {
        return Err(DumpError::Usage {
            message: format!("dump {} has no database '{missing}'", manifest.id),
            hint: Some(format!("it has: {}", names.join(", "))),
        });
    }
    let chosen = manifest.databases.iter();
    Ok(chosen
        .filter(|database| named.is_empty() || named.contains(&database.name))
        .collect())
}

/// Chooses databases and names.
///
/// # Errors
/// A database that the dump doesn't have; one new name for several databases.
pub fn choose<'a>(
    manifest: &'a DumpManifest,
    options: &RestoreOptions,
) -> Result<Vec<(&'a DatabaseManifest, String)>, DumpError> {
    let chosen = choose_databases(manifest, &options.databases)?;
    if let Some(name @ ("template0" | "template1")) = options.target_database.as_deref() {
        return Err(DumpError::Refused {
            message: format!(
                "'{name}' is what new databases are made of: each would hold what is restored into it"
            ),
            hint: "name another database with --target-database".to_owned(),
        });
    }
    if options.is_partial() {
        // The one database that has the tables is found later.
        return Ok(chosen
            .into_iter()
            .map(|database| (database, database.name.clone()))
            .collect());
    }
    match (&options.target_database, chosen.as_slice()) {
        (Some(name), [database]) => Ok(vec![(database, name.clone())]),
        (Some(_), _) => Err(DumpError::Usage {
            message: "--target-database names one database, and several are to be restored".to_owned(),
            hint: Some("choose one with --database".to_owned()),
        }),
        (None, _) => Ok(chosen
            .into_iter()
            .map(|database| (database, database.name.clone()))
            .collect()),
    }
}

/// Sums up what is to be done.
pub fn plan(id: &BackupId, manifest: &DumpManifest, chosen: &[(&DatabaseManifest, String)]) -> RestorePlan {
    let databases = chosen.iter().map(|(database, target_name)| {
        let objects = database
            .data
            .iter()
            .map(|data| &data.object)
            .chain(&database.schema)
            .chain(&database.large_objects);
        PlannedDatabase {
            name: database.name.clone(),
            target_name: target_name.clone(),
            relations: database.relations.len() as u64,
            rows: database.relations.iter().map(|relation| relation.rows).sum(),
            stored_bytes: objects.clone().map(|object| object.stored_bytes).sum(),
            plain_bytes: database
                .relations
                .iter()
                .map(|relation| relation.plain_bytes)
                .sum(),
            objects: objects.count() as u64,
            timescaledb: database
                .timescaledb
                .as_ref()
                .map(|inventory| inventory.version.clone()),
            left_out: left_out::notes(database),
        }
    });
    let taken_at = chosen
        .iter()
        .map(|(database, _)| database.snapshot_at)
        .min()
        .unwrap_or(manifest.started_at);
    RestorePlan {
        id: id.clone(),
        taken_at,
        server_version: manifest.server_version.clone(),
        databases: databases.collect(),
        omissions: manifest.omissions.clone(),
    }
}

/// Objects that one worker loads one after the other, because a relation goes on from one to the next.
#[derive(Debug, Clone, Default)]
pub struct LoadTask<'a> {
    /// In order.
    pub objects: Vec<&'a DataObject>,
    /// The size of their contents, in bytes.
    pub plain_bytes: u64,
    /// The one relation they hold, when it is only one.
    pub single_relation: Option<u32>,
}

/// Splits the objects (all but the configuration tables') into tasks that are independent of each other, the largest
/// first. `wanted` says which relations are to be loaded at all.
pub fn load_tasks<'a>(database: &'a DatabaseManifest, wanted: impl Fn(u32) -> bool) -> Vec<LoadTask<'a>> {
    // A relation is read by one worker, whose objects have ascending numbers: so objects that share a relation, taken
    // in the order of their names, form one chain.
    let mut chain_of_relation: BTreeMap<u32, usize> = BTreeMap::new();
    let mut chains: Vec<LoadTask<'a>> = Vec::new();
    let (_, mut objects) = crate::database::split_data(database);
    objects.sort_by(|a, b| a.object.name.cmp(&b.object.name));
    for object in objects {
        if !object.segments.iter().any(|segment| wanted(segment.relation)) {
            continue;
        }
        let first = object.segments.first().map(|segment| segment.relation);
        let existing = first.and_then(|relation| chain_of_relation.get(&relation).copied());
        let chain = existing.unwrap_or_else(|| {
            chains.push(LoadTask::default());
            chains.len() - 1
        });
        for segment in &object.segments {
            chain_of_relation.insert(segment.relation, chain);
        }
        if let Some(task) = chains.get_mut(chain) {
            task.objects.push(object);
            task.plain_bytes += object.object.plain_bytes;
        }
    }
    for task in &mut chains {
        let mut relations = task
            .objects
            .iter()
            .flat_map(|object| &object.segments)
            .map(|segment| segment.relation);
        let first = relations.next();
        task.single_relation = first.filter(|first| relations.all(|relation| relation == *first));
    }
    chains.sort_by_key(|task| std::cmp::Reverse(task.plain_bytes));
    chains
}
