//! The columns of tables and their types: what a dump notes, and what a table that is there must have to take rows.

use std::collections::HashMap;

use pgkeep_pg::Session;

use crate::error::{Context, DumpError};
use crate::manifest::{ColumnType, QualifiedName};

/// Types are written alike only under the same search path.
const COLUMNS_SQL: &str = "SELECT a.attrelid, a.attname, pg_catalog.format_type(a.atttypid, NULL),
      a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AND a.attgenerated = ''
    FROM pg_catalog.pg_attribute a
    WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''";

/// The columns of these relations, in their order. The session's search path must be empty.
///
/// # Errors
/// PostgreSQL's.
pub(crate) async fn of_relations(
    session: &mut Session,
    oids: &[u32],
) -> Result<HashMap<u32, Vec<ColumnType>>, DumpError> {
    let context = || "reading the columns' types".to_owned();
    let oids: Vec<String> = oids.iter().map(ToString::to_string).collect();
    let sql = format!(
        "{COLUMNS_SQL} AND a.attrelid = ANY ('{{{}}}'::pg_catalog.oid[]) ORDER BY a.attrelid, a.attnum",
        oids.join(",")
    );
    let mut columns: HashMap<u32, Vec<ColumnType>> = HashMap::new();
    for row in session.query(&sql).await.context(context)? {
        columns
            .entry(row.get(0).context(context)?)
            .or_default()
            .push(ColumnType {
                name: row.get(1).context(context)?,
                type_name: row.get(2).context(context)?,
            });
    }
    Ok(columns)
}

/// A column of a table that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Present {
    pub column: ColumnType,
    /// It takes no row that doesn't have it.
    pub is_required: bool,
}

/// The columns of a table that is there. Leaves the session's search path empty.
///
/// # Errors
/// PostgreSQL's.
pub(crate) async fn of_table(session: &mut Session, name: &QualifiedName) -> Result<Vec<Present>, DumpError> {
    let context = || format!("looking at the columns of {name}");
    session.execute("SET search_path = ''").await.context(context)?;
    let sql = format!("{COLUMNS_SQL} AND a.attrelid = pg_catalog.to_regclass($1) ORDER BY a.attnum");
    let rows = session
        .query_params(&sql, &[Some(&name.quoted())])
        .await
        .context(context)?;
    let mut columns = Vec::with_capacity(rows.len());
    for row in rows {
        columns.push(Present {
            column: ColumnType {
                name: row.get(1).context(context)?,
                type_name: row.get(2).context(context)?,
            },
            is_required: row.get(3).context(context)?,
        });
    }
    Ok(columns)
}

/// Why rows with the dumped columns don't fit into the table that is there; completes "table x ...".
pub(crate) fn misfit(dumped: &[ColumnType], present: &[Present]) -> Option<String> {
    for column in dumped {
        let name = &column.name;
        match present.iter().find(|present| present.column.name == *name) {
            None => {
                return Some(format!(
                    "has no column '{name}' ({} in the dump)",
                    column.type_name
                ));
            }
            Some(found) if found.column.type_name != column.type_name => {
                return Some(format!(
                    "has a column '{name}' of type {}, and in the dump it is {}",
                    found.column.type_name, column.type_name
                ));
            }
            Some(_) => {}
        }
    }
    let is_new = |present: &&Present| !dumped.iter().any(|column| column.name == present.column.name);
    let required = present
        .iter()
        .find(|present| present.is_required && is_new(present));
    required.map(|present| {
        format!(
            "has a column '{}', which may not be NULL, has no default, and isn't in the dump",
            present.column.name
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, type_name: &str) -> ColumnType {
        ColumnType {
            name: name.to_owned(),
            type_name: type_name.to_owned(),
        }
    }

    #[test]
    fn the_first_column_that_does_not_fit_is_named() {
        let present = |name, type_name, is_required| Present {
            column: column(name, type_name),
            is_required,
        };
        let dumped = [column("at", "date"), column("n", "integer")];
        let fits = [present("n", "integer", true), present("at", "date", true)];
        assert_eq!(misfit(&dumped, &fits), None);
        let more = [fits.to_vec(), vec![present("new", "text", false)]].concat();
        assert_eq!(misfit(&dumped, &more), None);
        for (table, expected) in [
            (vec![fits[0].clone()], "has no column 'at' (date in the dump)"),
            (
                vec![present("at", "text", false), fits[0].clone()],
                "has a column 'at' of type text, and in the dump it is date",
            ),
            (
                [fits.to_vec(), vec![present("new", "text", true)]].concat(),
                "has a column 'new', which may not be NULL, has no default, and isn't in the dump",
            ),
        ] {
            assert_eq!(misfit(&dumped, &table).as_deref(), Some(expected));
        }
    }
}
