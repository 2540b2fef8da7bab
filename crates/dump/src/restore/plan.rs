//! What a restore would do, before it does anything.

use std::collections::BTreeMap;

use pgkeep_base::{BackupId, list_names, one_line};

use crate::error::DumpError;
use crate::manifest::{DataObject, DatabaseManifest, DumpManifest, QualifiedName, RelationKind};
use crate::restore::options::RestoreOptions;
use crate::restore::range::Range;
use crate::restore::selection::Selection;
use crate::restore::{hypertable, left_out, part};

/// One database of the plan.
#[derive(Debug, Clone)]
pub struct PlannedDatabase {
    /// Its name in the dump.
    pub name: String,
    /// Its name in the target.
    pub target_name: String,
    /// Tables, partitions and chunks with rows, of those that are asked for.
    pub relations: u64,
    /// Their rows, counted as the restore counts them; of ranges at most so many, because whole chunks are counted.
    pub rows: u64,
    /// Bytes to fetch.
    pub stored_bytes: u64,
    /// Bytes of rows to load.
    pub plain_bytes: u64,
    /// Objects to fetch.
    pub objects: u64,
    /// TimescaleDB's version, where the database has it.
    pub timescaledb: Option<String>,
    /// The ranges of hypertables that are asked for.
    pub ranges: Vec<PlannedRange>,
    /// What the dump's filters left out of it, in plain words, but for the excluded tables themselves.
    pub left_out: Vec<String>,
}

/// A range of a hypertable, in absolute terms.
#[derive(Debug, Clone)]
pub struct PlannedRange {
    /// The hypertable.
    pub name: QualifiedName,
    /// The first value; none for the very first.
    pub from: Option<String>,
    /// The first value that isn't in it; none for no end.
    pub to: Option<String>,
    /// Both in words.
    pub words: String,
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
    /// What of the request comes to nothing, in plain words.
    pub attention: Vec<String>,
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
    /// What the restore would say at its end that needs attention.
    pub attention: Vec<String>,
    /// What depends on rows, and shows only when they are there.
    pub notes: Vec<String>,
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
            message: format!("dump {} has no database '{}'", manifest.id, one_line(missing)),
            hint: Some(format!("it has: {}", list_names(names))),
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
        let (database, _) = part::choose(manifest, options)?;
        let name = options.target_database.as_ref().unwrap_or(&database.name);
        return Ok(vec![(database, name.clone())]);
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
///
/// # Errors
/// As [`choose`].
pub fn plan(
    id: &BackupId,
    manifest: &DumpManifest,
    options: &RestoreOptions,
) -> Result<RestorePlan, DumpError> {
    let chosen = choose(manifest, options)?;
    let mut attention = Vec::new();
    let databases = if options.is_partial() {
        let (database, selection) = part::choose(manifest, options)?;
        let mut planned = whole(
            database,
            &options.target_database.clone().unwrap_or(database.name.clone()),
        );
        narrow(&mut planned, database, &selection, options, &mut attention)?;
        vec![planned]
    } else {
        let databases = chosen.iter();
        databases
            .map(|(database, target_name)| whole(database, target_name))
            .collect()
    };
    let taken_at = chosen
        .iter()
        .map(|(database, _)| database.snapshot_at)
        .min()
        .unwrap_or(manifest.started_at);
    Ok(RestorePlan {
        id: id.clone(),
        taken_at,
        server_version: manifest.server_version.clone(),
        databases,
        omissions: manifest.omissions.clone(),
        attention,
    })
}

/// All of a database.
fn whole(database: &DatabaseManifest, target_name: &str) -> PlannedDatabase {
    let objects = database
        .data
        .iter()
        .map(|data| &data.object)
        .chain(&database.schema)
        .chain(&database.large_objects);
    PlannedDatabase {
        name: database.name.clone(),
        target_name: target_name.to_owned(),
        relations: database.relations.len() as u64,
        rows: database.rows(),
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
        ranges: Vec::new(),
        left_out: left_out::notes(database),
    }
}

/// Only what was chosen of it. Objects are fetched whole, and so hold more than that.
fn narrow(
    planned: &mut PlannedDatabase,
    database: &DatabaseManifest,
    selection: &Selection,
    options: &RestoreOptions,
    attention: &mut Vec<String>,
) -> Result<(), DumpError> {
    let mut places = selection.places.clone();
    let mut rows_of_hypertables: u64 = 0;
    for name in &selection.hypertables {
        let hypertable = hypertable::find(database, name)?;
        let range = Range::of(hypertable, name, options.hypertable.as_ref())?;
        let rows = hypertable::rows_at_most(database, hypertable, &range);
        // A manifest may give two of them the same chunks.
        rows_of_hypertables = rows.saturating_add(rows_of_hypertables);
        places.extend(hypertable::places(database, hypertable, &range));
        if range.is_all() {
            continue;
        }
        if rows == 0 {
            attention.push(hypertable::nothing_in_range(name, &range));
        }
        planned.ranges.push(PlannedRange {
            name: name.clone(),
            from: range.from().map(str::to_owned),
            to: range.to().map(str::to_owned),
            words: range.to_string(),
        });
    }
    let relations = || {
        let relation = |place: &u32| database.relations.get(*place as usize);
        let relations = places.iter().filter_map(relation);
        relations.filter(|relation| relation.kind != RelationKind::Configuration)
    };
    let tables = relations().filter(|relation| relation.kind == RelationKind::Table);
    let rows: u64 = tables.map(|relation| relation.rows).sum();
    planned.rows = rows.saturating_add(rows_of_hypertables);
    planned.relations = relations().count() as u64;
    planned.plain_bytes = relations().map(|relation| relation.plain_bytes).sum();
    let wanted = |data: &&DataObject| {
        let mut segments = data.segments.iter();
        segments.any(|segment| places.contains(&segment.relation))
    };
    let objects = database
        .data
        .iter()
        .filter(wanted)
        .map(|data| &data.object)
        .chain(&database.schema);
    planned.stored_bytes = objects.clone().map(|object| object.stored_bytes).sum();
    planned.objects = objects.count() as u64;
    Ok(())
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
