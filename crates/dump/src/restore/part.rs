//! Parts of a database: single tables, hypertables, time ranges.

use pgkeep_pg::Session;

use crate::error::DumpError;
use crate::manifest::DatabaseManifest;
use crate::restore::options::{HypertableRange, RestoredDatabase};
use crate::restore::selection::{Selection, select};
use crate::restore::{Restore, hypertable, plan, prepare, properties, tables};

/// Restores the chosen tables into one database.
///
/// # Errors
/// The choice fits no database, or several; see [`tables::restore`] and [`hypertable::restore`].
pub(crate) async fn restore(
    restore: &Restore<'_>,
    outside: &mut Session,
    attention: &mut Vec<String>,
) -> Result<RestoredDatabase, DumpError> {
    let (database, selection) = choose(restore)?;
    let target_name = restore
        .options
        .target_database
        .as_deref()
        .unwrap_or(&database.name);
    restore_selection(restore, outside, database, target_name, &selection, attention).await
}

/// Restores a database of which only a part was dumped: what the dump holds, and no empty shells of the rest.
///
/// # Errors
/// As [`restore`].
pub(crate) async fn restore_filtered(
    restore: &Restore<'_>,
    outside: &mut Session,
    database: &DatabaseManifest,
    target_name: &str,
    attention: &mut Vec<String>,
) -> Result<RestoredDatabase, DumpError> {
    let selection = Selection::of_filtered(database)?;
    restore_selection(restore, outside, database, target_name, &selection, attention).await
}

async fn restore_selection(
    restore: &Restore<'_>,
    outside: &mut Session,
    database: &DatabaseManifest,
    target_name: &str,
    selection: &Selection,
    attention: &mut Vec<String>,
) -> Result<RestoredDatabase, DumpError> {
    let made = prepare::make_if_missing(restore, outside, database, target_name).await?;
    let target = restore.target.with_database(target_name);
    let mut restored = RestoredDatabase {
        name: database.name.clone(),
        target_name: target_name.to_owned(),
        relations: 0,
        rows: 0,
        counted: 0,
    };
    let mut add = |part: RestoredDatabase| {
        restored.relations += part.relations;
        restored.rows += part.rows;
        restored.counted += part.counted;
    };
    if !selection.places.is_empty() || !selection.schemas.is_empty() {
        add(tables::restore(restore, database, &target, selection).await?);
    }
    let whole = HypertableRange {
        pattern: String::new(),
        from: None,
        to: None,
    };
    let range = restore.options.hypertable.as_ref().unwrap_or(&whole);
    for name in &selection.hypertables {
        add(hypertable::restore(restore, outside, database, &target, name, range, attention).await?);
    }
    if made {
        properties::apply(restore, outside, database, target_name, attention).await?;
    }
    Ok(restored)
}

/// The one database that has what was asked for.
fn choose<'a>(restore: &Restore<'a>) -> Result<(&'a DatabaseManifest, Selection), DumpError> {
    let options = restore.options;
    let mut patterns = options.tables.clone();
    patterns.extend(options.hypertable.iter().map(|range| range.pattern.clone()));
    let candidates = plan::choose_databases(restore.manifest, &options.databases)?;
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
    Ok((database, selection))
}
