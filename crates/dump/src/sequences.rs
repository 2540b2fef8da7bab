//! Sequences: which there are, and how they are set again.

use pgkeep_base::{quote_literal, quote_qualified};
use pgkeep_pg::Session;

use crate::error::{Context, DumpError};
use crate::manifest::QualifiedName;

/// The user's and the extensions' configuration sequences for which a condition on `c` holds.
async fn list(session: &mut Session, condition: &str) -> Result<Vec<QualifiedName>, DumpError> {
    let context = || "listing the sequences".to_owned();
    let sql = format!(
        "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind = 'S' AND c.relpersistence IN ('p', 'u') AND n.nspname OPERATOR(pg_catalog.!~) '^pg_'
          AND n.nspname <> 'information_schema'
          AND (c.oid IN (SELECT pg_catalog.unnest(extconfig) FROM pg_catalog.pg_extension)
            OR NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
              WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid AND d.deptype = 'e'))
          AND {condition}
        ORDER BY n.nspname, c.relname"
    );
    let mut names = Vec::new();
    for row in session.query(&sql).await.context(context)? {
        names.push(QualifiedName {
            schema: row.get(0).context(context)?,
            name: row.get(1).context(context)?,
        });
    }
    Ok(names)
}

/// Sequences of a dump whose values the role may not read.
///
/// # Errors
/// PostgreSQL's.
pub async fn unreadable(session: &mut Session) -> Result<Vec<QualifiedName>, DumpError> {
    // The order of conditions is the planner's, and the function refuses what is no sequence.
    let condition =
        "CASE WHEN c.relkind = 'S' THEN NOT pg_catalog.has_sequence_privilege(c.oid, 'SELECT') END";
    list(session, condition).await
}

/// A psql script that sets every sequence as it is now: the user's and the extensions' configuration sequences.
/// Sequences aren't transactional: a value may be later than the snapshot, never earlier. Those that the schema doesn't have
/// (`excluded`) are left out.
///
/// # Errors
/// PostgreSQL's; a sequence that may not be read is an error, as it is for pg_dump.
pub async fn script(session: &mut Session, excluded: &[QualifiedName]) -> Result<Option<String>, DumpError> {
    let context = || "reading the sequences".to_owned();
    const BATCH: usize = 200;
    let mut names = Vec::new();
    for name in list(session, "true").await? {
        if excluded.binary_search(&name).is_err() {
            names.push((name.schema, name.name));
        }
    }
    let mut script = String::new();
    for batch in names.chunks(BATCH) {
        let selects: Vec<String> = batch
            .iter()
            .enumerate()
            .map(|(place, (schema, name))| {
                format!(
                    "SELECT {place}, last_value, is_called FROM {}",
                    quote_qualified(schema, name)
                )
            })
            .collect();
        let rows = session
            .query(&format!("{} ORDER BY 1", selects.join(" UNION ALL ")))
            .await
            .context(context)?;
        for (row, (schema, name)) in rows.iter().zip(batch) {
            let (value, called): (i64, bool) = (row.get(1).context(context)?, row.get(2).context(context)?);
            let sequence = quote_literal(&quote_qualified(schema, name));
            script.push_str(&format!(
                "SELECT pg_catalog.setval({sequence}, {value}, {called});\n"
            ));
        }
    }
    Ok((!script.is_empty()).then_some(script))
}
