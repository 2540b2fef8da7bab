//! What a restore of parts would tell only at its end, found out beforehand for `--dry-run`.

use std::collections::{BTreeSet, HashSet};

use pgkeep_pg::{Session, Target};

use crate::error::{Context, DumpError};
use crate::manifest::QualifiedName;
use crate::restore::archive::Entry;
use crate::restore::part::PartPlan;
use crate::restore::plan::TargetPlan;
use crate::restore::selection::{Picker, Selection};
use crate::restore::tables::SchemaReader;
use crate::restore::{connect, foreign_keys, left_out};

/// Foreign keys whose other table isn't restored before them: without one in the target they aren't made; with one, its
/// rows decide. Those of a hypertable that is there decide about its rows.
///
/// # Errors
/// PostgreSQL's, the store's, pg_restore's.
pub(crate) async fn foreign_keys(
    schemas: &SchemaReader<'_>,
    part: &PartPlan<'_>,
    target: &Target,
    planned: &mut TargetPlan,
) -> Result<(), DumpError> {
    let mut inside = match part.makes_database {
        true => None,
        false => Some(connect(&target.with_database(&part.target_name)).await?),
    };
    let archive = schemas.archive(part.database, true).await?;
    let dependents = schemas.text(&part.database.dependents).await?;
    let without_rows = left_out::oids_without_rows(part.database, &archive.entries);
    let mut there: BTreeSet<QualifiedName> = BTreeSet::new();
    // In the restore's own order: what is made later isn't there for the keys of what is made earlier.
    let mut steps = vec![(part.selection.clone(), false)];
    let hypertables = part.selection.hypertables.iter();
    for name in hypertables.filter(|name| !part.filled.contains(*name)) {
        let mut selection = Selection::default();
        selection.add_table(part.database, name);
        steps.push((selection, true));
    }
    for (mut selection, on_hypertable) in steps {
        selection.without_rows.clone_from(&without_rows);
        there.extend(selection.tables.iter().cloned());
        let picker = Picker::new(&archive.entries, &selection, &dependents, HashSet::new());
        let wanted = |entry: &Entry| picker.outside_keys.contains(&entry.oid);
        for statement in foreign_keys::statements(&archive, wanted, on_hypertable).await? {
            let Some(table) = foreign_keys::referenced(&statement) else {
                continue;
            };
            let restored = there.iter().any(|name| is_named(name, table));
            let dropped = part.dropped.iter().any(|name| is_named(name, table));
            let exists = match &mut inside {
                _ if restored => true,
                Some(inside) if !dropped => is_there(inside, table).await?,
                _ => false,
            };
            if exists {
                planned.notes.push(format!(
                    "a foreign key is made if {table} has all rows that it refers to, and told otherwise: {statement}"
                ));
            } else {
                planned.attention.push(format!(
                    "a foreign key can't be made: database '{}' has no table {table}; make it when that is there: {statement}",
                    part.target_name
                ));
            }
        }
    }
    if let Some(mut inside) = inside {
        for name in &part.filled {
            planned.notes.extend(keys_of_filled(&mut inside, name).await?);
        }
        inside.close().await;
    }
    Ok(())
}

/// pg_restore quotes names only where they need it.
fn is_named(name: &QualifiedName, text: &str) -> bool {
    let forms = |part: &str| [pgkeep_base::quote_identifier(part), part.to_owned()];
    let names = forms(&name.name);
    forms(&name.schema)
        .iter()
        .any(|schema| names.iter().any(|name| format!("{schema}.{name}") == text))
}

async fn is_there(session: &mut Session, table: &str) -> Result<bool, DumpError> {
    let context = || format!("looking for table {table}, which a foreign key refers to");
    let sql = "SELECT pg_catalog.to_regclass($1) IS NOT NULL";
    let rows = session.query_params(sql, &[Some(table)]).await.context(context)?;
    let found: Option<bool> = rows.first().map(|row| row.get(0)).transpose().context(context)?;
    Ok(found == Some(true))
}

/// The keys of a hypertable that takes rows as it is: a row without its counterpart keeps all of them out.
async fn keys_of_filled(session: &mut Session, name: &QualifiedName) -> Result<Vec<String>, DumpError> {
    let context = || format!("looking for foreign keys of {name}");
    let sql = "SELECT k.conname, n.nspname, c.relname FROM pg_catalog.pg_constraint k
        JOIN pg_catalog.pg_class c ON c.oid = k.confrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE k.contype = 'f' AND k.conrelid = pg_catalog.to_regclass($1) ORDER BY 1";
    let mut notes = Vec::new();
    let rows = session.query_params(sql, &[Some(&name.quoted())]).await;
    for row in rows.context(context)? {
        let key: String = row.get(0).context(context)?;
        let other = QualifiedName {
            schema: row.get(1).context(context)?,
            name: row.get(2).context(context)?,
        };
        notes.push(format!(
            "rows of {name} need theirs in {other} (foreign key {key}): if one of those is missing, no row is restored"
        ));
    }
    Ok(notes)
}
