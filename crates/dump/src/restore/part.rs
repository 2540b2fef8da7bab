//! Parts of a database: single tables, hypertables, time ranges. What the target holds is looked at first; the plan that comes
//! out of it is what `--dry-run` tells and what the restore carries out.

use std::collections::BTreeSet;

use pgkeep_base::{BackupId, quote_literal};
use pgkeep_pg::{Session, Target};

use crate::error::{Context, DumpError};
use crate::manifest::{DatabaseManifest, DumpManifest, QualifiedName};
use crate::restore::mark::{self, Mark};
use crate::restore::options::{RestoreOptions, RestoredDatabase};
use crate::restore::plan::{PlannedTable, TableAction, TargetDatabase};
use crate::restore::range::Range;
use crate::restore::selection::{Selection, select};
use crate::restore::undo::MadeTables;
use crate::restore::{Restore, connect, hypertable, plan, prepare, properties, tables};

/// What a restore of parts finds, and will do.
pub(crate) struct PartPlan<'a> {
    pub database: &'a DatabaseManifest,
    pub target_name: String,
    pub selection: Selection,
    /// There is no such database.
    pub makes_database: bool,
    /// There is the mark of a restore of tables that was killed, whose tables are among the dropped ones.
    pub removes_mark: bool,
    /// Tables that are dropped first.
    pub dropped: BTreeSet<QualifiedName>,
    /// Some of them were there before any restore.
    pub replaces: bool,
    /// Hypertables that are there and take rows as they are.
    pub filled: BTreeSet<QualifiedName>,
    /// For the user.
    pub tables: Vec<PlannedTable>,
}

impl PartPlan<'_> {
    /// For the user.
    pub fn describe(&self) -> TargetDatabase {
        let does = match (self.makes_database, self.removes_mark) {
            (true, _) => "is made, with these tables",
            (false, true) => {
                "holds an unfinished restore of tables, which are dropped; then these are restored"
            }
            (false, false) => "is there, and these tables are restored into it",
        };
        TargetDatabase {
            name: self.database.name.clone(),
            target_name: self.target_name.clone(),
            does: does.to_owned(),
            tables: self.tables.clone(),
        }
    }

    /// The tables that are made.
    fn made(&self) -> BTreeSet<QualifiedName> {
        let hypertables = self.selection.hypertables.iter();
        let made = hypertables.filter(|name| !self.filled.contains(*name));
        self.selection.tables.iter().chain(made).cloned().collect()
    }
}

/// Looks at the target and plans the restore of what was asked for by `--table` or `--hypertable`.
///
/// # Errors
/// As [`look`]; the choice fits no database, or several.
pub(crate) async fn look_for_chosen<'a>(
    outside: &mut Session,
    target: &Target,
    manifest: &'a DumpManifest,
    options: &RestoreOptions,
) -> Result<PartPlan<'a>, DumpError> {
    let (database, selection) = choose(manifest, options)?;
    let target_name = options.target_database.as_deref().unwrap_or(&database.name);
    look(outside, target, (database, target_name), selection, None, options).await
}

/// The same for a database of which only a part was dumped: what the dump holds, and no empty shells of the rest.
///
/// # Errors
/// As [`look`].
pub(crate) async fn look_for_filtered<'a>(
    outside: &mut Session,
    target: &Target,
    id: &BackupId,
    (database, target_name): (&'a DatabaseManifest, &str),
    options: &RestoreOptions,
) -> Result<PartPlan<'a>, DumpError> {
    let selection = Selection::of_filtered(database)?;
    let again = options.resume.then_some(id);
    look(
        outside,
        target,
        (database, target_name),
        selection,
        again,
        options,
    )
    .await
}

/// Finds out what is in the way. The unfinished restore of the dump `again` may be started over.
///
/// # Errors
/// [`DumpError::Refused`]: something is and the user didn't give it up, or it isn't the user's to give up.
async fn look<'a>(
    outside: &mut Session,
    target: &Target,
    (database, target_name): (&'a DatabaseManifest, &str),
    selection: Selection,
    again: Option<&BackupId>,
    options: &RestoreOptions,
) -> Result<PartPlan<'a>, DumpError> {
    let mut part = PartPlan {
        database,
        target_name: target_name.to_owned(),
        selection,
        makes_database: false,
        removes_mark: false,
        dropped: BTreeSet::new(),
        replaces: false,
        filled: BTreeSet::new(),
        tables: Vec::new(),
    };
    match prepare::openness(outside, target_name).await? {
        None => part.makes_database = true,
        Some(None) => {}
        Some(Some(closed)) => return Err(closed.refusal(target_name, "")),
    }
    let mut inside = match part.makes_database {
        true => None,
        false => Some(connect(&target.with_database(target_name)).await?),
    };
    let mut existing = BTreeSet::new();
    if let Some(inside) = &mut inside {
        let mark = mark::read(inside).await?;
        let mut leftover = Mark::default();
        if let Some(mark) = mark {
            let is_same =
                again.is_some_and(|id| mark.dump == id.to_string() && mark.database == database.name);
            refuse_mark(&mark, target_name, options.overwrite || is_same)?;
            part.removes_mark = true;
            leftover = mark;
        }
        existing = existing_tables(inside, &part.selection, &leftover).await?;
        part.dropped = existing.iter().cloned().collect();
        part.dropped
            .retain(|name| !part.selection.hypertables.contains(name) || leftover.made.contains(name));
        part.replaces = part.dropped.difference(&leftover.made).next().is_some();
        part.filled = existing.difference(&part.dropped).cloned().collect();
        let in_the_way: Vec<String> = part.dropped.iter().map(QualifiedName::quoted).collect();
        // What such a restore made was nobody else's.
        if !in_the_way.is_empty() && !options.overwrite && (again.is_none() || part.replaces) {
            return Err(DumpError::Refused {
                message: format!("database '{target_name}' has {} already", in_the_way.join(", ")),
                hint: "restore into another database with --target-database NAME, or give --overwrite to drop and replace them"
                    .to_owned(),
            });
        }
        refuse_losing_others(inside, target_name, &in_the_way).await?;
    }
    part.tables = ordinary_tables(&part, &existing);
    let hypertables = hypertables(inside.as_mut(), &part, options).await?;
    part.tables.extend(hypertables);
    if let Some(inside) = inside {
        inside.close().await;
    }
    Ok(part)
}

/// The hypertables, with what the dump has of the range; those that are there are looked into.
async fn hypertables(
    mut inside: Option<&mut Session>,
    part: &PartPlan<'_>,
    options: &RestoreOptions,
) -> Result<Vec<PlannedTable>, DumpError> {
    let mut planned = Vec::new();
    for name in &part.selection.hypertables {
        let dumped = hypertable::find(part.database, name)?;
        let range = Range::of(dumped, name, options.hypertable.as_ref())?;
        let rows = hypertable::rows_at_most(part.database, dumped, &range);
        let action = match &mut inside {
            Some(inside) if part.filled.contains(name) => {
                // Where the dump has nothing, nothing is deleted.
                let nothing = rows == 0 && !range.is_all();
                let overwrite = options.overwrite || nothing;
                let found = hypertable::look_into(inside, part.database, name, &range, overwrite).await?;
                TableAction::Fill {
                    deletes: found && !nothing,
                }
            }
            _ if part.dropped.contains(name) => TableAction::Replace,
            _ => TableAction::Make,
        };
        planned.push(PlannedTable {
            name: name.clone(),
            rows,
            is_range: !range.is_all(),
            action,
        });
    }
    Ok(planned)
}

fn refuse_mark(mark: &Mark, target_name: &str, overwrite: bool) -> Result<(), DumpError> {
    let message = format!(
        "database '{target_name}' holds an unfinished restore of dump {}",
        mark.dump
    );
    if mark.whole {
        // Without its mark it would be taken for a whole database.
        return Err(DumpError::Refused {
            message,
            hint: format!(
                "finish it with 'pgkeep restore {} --resume ...', or restore into another database with --target-database NAME",
                mark.dump
            ),
        });
    }
    if overwrite {
        return Ok(());
    }
    let tables: Vec<String> = mark.made.iter().map(QualifiedName::quoted).collect();
    Err(DumpError::Refused {
        message,
        hint: format!(
            "give --overwrite to drop its tables ({}) and start over, or give it up with: DROP SCHEMA {} CASCADE",
            tables.join(", "),
            mark::MARK_SCHEMA
        ),
    })
}

/// Which of the chosen tables are there, and those that a killed restore left.
async fn existing_tables(
    session: &mut Session,
    selection: &Selection,
    leftover: &Mark,
) -> Result<BTreeSet<QualifiedName>, DumpError> {
    let context = || "looking for tables of the same name".to_owned();
    let tables = selection.tables.iter().chain(&selection.hypertables);
    let mut existing = BTreeSet::new();
    for table in tables.chain(&leftover.made) {
        let sql = "SELECT pg_catalog.to_regclass($1)";
        let rows = session.query_params(sql, &[Some(&table.quoted())]).await;
        if rows
            .context(context)?
            .first()
            .and_then(|row| row.text(0))
            .is_some()
        {
            existing.insert(table.clone());
        }
    }
    Ok(existing)
}

/// What else would go with the tables, or keeps them from being dropped: never with CASCADE, because what depends on them is
/// nobody's to lose. Of a partitioned table all partitions go, those as well that came after the dump.
async fn refuse_losing_others(
    session: &mut Session,
    target_name: &str,
    tables: &[String],
) -> Result<(), DumpError> {
    if tables.is_empty() {
        return Ok(());
    }
    let context = || "looking for what depends on the tables to be replaced".to_owned();
    let names: Vec<String> = tables
        .iter()
        .map(|table| format!("pg_catalog.to_regclass({})", quote_literal(table)))
        .collect();
    let sql = LOST_SQL.replace("NAMES", &names.join(", "));
    let mut lost: Vec<String> = Vec::new();
    for row in session.query(&sql).await.context(context)? {
        lost.push(row.get(0).context(context)?);
    }
    if lost.is_empty() {
        return Ok(());
    }
    Err(DumpError::Refused {
        message: format!(
            "in database '{target_name}' {} can't be replaced: {} would be lost with them, and the dump doesn't hold it",
            tables.join(", "),
            lost.join(", ")
        ),
        hint: "restore beside them with --target-database NAME; or first drop those, or detach partitions"
            .to_owned(),
    })
}

const LOST_SQL: &str = "WITH RECURSIVE
    dropped AS (SELECT oid FROM pg_catalog.unnest(ARRAY[NAMES]::pg_catalog.oid[]) AS t(oid)),
    child AS (SELECT i.inhrelid AS oid FROM pg_catalog.pg_inherits i WHERE i.inhparent IN (SELECT oid FROM dropped)
      UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN child c ON c.oid = i.inhparent),
    gone AS (SELECT oid FROM dropped UNION
      SELECT c.oid FROM child c JOIN pg_catalog.pg_namespace n ON n.nspname = '_timescaledb_internal'
        JOIN pg_catalog.pg_class r ON r.oid = c.oid AND r.relnamespace = n.oid)
    SELECT pg_catalog.pg_describe_object('pg_catalog.pg_class'::pg_catalog.regclass, c.oid, 0)
    FROM child c JOIN pg_catalog.pg_class r ON r.oid = c.oid
    WHERE c.oid NOT IN (SELECT oid FROM gone) AND r.relkind NOT IN ('i', 'I')
    UNION SELECT pg_catalog.pg_describe_object('pg_catalog.pg_constraint'::pg_catalog.regclass, k.oid, 0)
    FROM pg_catalog.pg_constraint k
    WHERE k.contype = 'f' AND k.conparentid = 0 AND k.confrelid IN (SELECT oid FROM dropped)
      AND k.conrelid NOT IN (SELECT oid FROM gone)
    UNION SELECT pg_catalog.pg_describe_object('pg_catalog.pg_class'::pg_catalog.regclass, r.ev_class, 0)
    FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid
    WHERE d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
      AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid IN (SELECT oid FROM dropped)
      AND r.ev_class NOT IN (SELECT oid FROM gone)
    ORDER BY 1";

/// The chosen tables with their rows: partitions by themselves, the partitioned tables above them with none.
fn ordinary_tables(part: &PartPlan<'_>, existing: &BTreeSet<QualifiedName>) -> Vec<PlannedTable> {
    let relations = &part.database.relations;
    let places = &part.selection.places;
    let chosen = places.iter().filter_map(|place| relations.get(*place as usize));
    let planned = chosen.map(|relation| PlannedTable {
        name: relation.name.clone(),
        rows: relation.rows,
        is_range: false,
        action: if existing.contains(&relation.name) {
            TableAction::Replace
        } else {
            TableAction::Make
        },
    });
    planned.collect()
}

/// Carries the plan out.
///
/// # Errors
/// See [`tables::restore`] and [`hypertable::restore`].
pub(crate) async fn restore(
    restore: &Restore<'_>,
    outside: &mut Session,
    part: PartPlan<'_>,
    attention: &mut Vec<String>,
) -> Result<RestoredDatabase, DumpError> {
    let (database, target_name) = (part.database, part.target_name.as_str());
    if part.makes_database {
        restore.note_undo(|undo| undo.database = Some(target_name.to_owned()));
        prepare::create(restore, outside, database, target_name).await?;
    }
    let made = part.made();
    let target = restore.target.with_database(target_name);
    let mut session = connect(&target).await?;
    if !made.is_empty() {
        clear_the_way(restore, &mut session, &part, &made).await?;
    }
    let mut restored = RestoredDatabase {
        name: database.name.clone(),
        target_name: target_name.to_owned(),
        relations: 0,
        rows: 0,
        counted: 0,
    };
    let mut add = |one: RestoredDatabase| {
        restored.relations += one.relations;
        restored.rows += one.rows;
        restored.counted += one.counted;
    };
    if !part.selection.places.is_empty() || !part.selection.schemas.is_empty() {
        add(tables::restore(restore, &part, attention).await?);
    }
    for name in &part.selection.hypertables {
        add(hypertable::restore(restore, outside, &part, name, attention).await?);
    }
    if part.makes_database {
        properties::apply(restore, outside, database, target_name, attention).await?;
    }
    if !restore.options.is_partial() {
        // The mark itself goes when all databases are done.
        mark::note_part(
            &mut session,
            &restore.id.to_string(),
            &database.name,
            !made.is_empty(),
        )
        .await?;
    } else if !made.is_empty() {
        mark::remove(&mut session).await?;
    }
    session.close().await;
    restore.note_undo(|undo| {
        undo.tables = None;
        undo.database = None;
    });
    Ok(restored)
}

/// What is in the way goes and the mark comes, both or neither.
async fn clear_the_way(
    restore: &Restore<'_>,
    session: &mut Session,
    part: &PartPlan<'_>,
    made: &BTreeSet<QualifiedName>,
) -> Result<(), DumpError> {
    let schemas = tables::missing_schemas(session, &part.selection).await?;
    let context = || "dropping the tables to be replaced".to_owned();
    session.execute("BEGIN").await.context(context)?;
    if part.removes_mark {
        mark::remove(session).await?;
    }
    if !part.dropped.is_empty() {
        let names: Vec<String> = part.dropped.iter().map(QualifiedName::quoted).collect();
        let sql = format!("DROP TABLE IF EXISTS {}", names.join(", "));
        session.execute(&sql).await.context(context)?;
    }
    mark::make_for_tables(session, &restore.id.to_string(), &part.database.name, made).await?;
    restore.note_undo(|undo| {
        undo.tables = Some(MadeTables {
            database: part.target_name.clone(),
            tables: made.iter().cloned().collect(),
            schemas: schemas.into_iter().collect(),
            replaced: part.replaces,
        });
    });
    session.execute("COMMIT").await.context(context)?;
    Ok(())
}

/// The one database that has what was asked for.
///
/// # Errors
/// [`DumpError::Usage`]: there is none, or several; a range is none of its hypertable.
pub(crate) fn choose<'a>(
    manifest: &'a DumpManifest,
    options: &RestoreOptions,
) -> Result<(&'a DatabaseManifest, Selection), DumpError> {
    let mut patterns = options.tables.clone();
    patterns.extend(options.hypertable.iter().map(|range| range.pattern.clone()));
    let candidates = plan::choose_databases(manifest, &options.databases)?;
    let mut found = Vec::new();
    let mut failure = None;
    for database in candidates {
        match select(database, &patterns) {
            Ok(selection) => found.push((database, selection)),
            Err(error) => failure = Some(error),
        }
    }
    if found.len() > 1 {
        let names: Vec<&str> = found.iter().map(|(database, _)| database.name.as_str()).collect();
        return Err(DumpError::Usage {
            message: format!(
                "several databases of the dump have such tables: {}",
                names.join(", ")
            ),
            hint: Some("choose one with --database".to_owned()),
        });
    }
    let nothing = || DumpError::Usage {
        message: "the dump has no databases".to_owned(),
        hint: None,
    };
    let Some((database, selection)) = found.pop() else {
        return Err(failure.unwrap_or_else(nothing));
    };
    if options.hypertable.is_some() && selection.hypertables.is_empty() {
        return Err(DumpError::Usage {
            message: format!(
                "what --hypertable names in database '{}' is not a hypertable",
                database.name
            ),
            hint: Some("restore an ordinary table with --table".to_owned()),
        });
    }
    for name in &selection.hypertables {
        Range::of(
            hypertable::find(database, name)?,
            name,
            options.hypertable.as_ref(),
        )?;
    }
    Ok((database, selection))
}
