use pgkeep_pg::Session;
use serde::{Deserialize, Serialize};

use crate::TimescaleError;

/// A foreign key of an ordinary table.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ForeignKey {
    /// The schema of the table that has it.
    pub schema: String,
    /// The table that has it.
    pub table: String,
    /// The constraint's name.
    pub name: String,
}

/// The foreign keys that reference a hypertable (possible since 2.16), as they stand in `pg_dump`'s archive: one for each,
/// not those of the chunks, which TimescaleDB makes itself.
///
/// A restore has to leave them out of the post-data section and to create them after [`crate::post_restore`], in a new
/// session: while `timescaledb.restoring` is on, the check looks for the keys in the root table, which is empty.
///
/// # Errors
/// [`TimescaleError::Pg`]; [`TimescaleError::NotInstalled`], [`TimescaleError::UnsupportedVersion`],
/// [`TimescaleError::LibraryNotLoaded`].
pub async fn foreign_keys_to_hypertables(session: &mut Session) -> Result<Vec<ForeignKey>, TimescaleError> {
    crate::edition::require(session).await?;
    let rows = session
        .query(
            "SELECT n.nspname, r.relname, f.conname FROM pg_catalog.pg_constraint f \
             JOIN pg_catalog.pg_class r ON r.oid = f.conrelid JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace \
             JOIN pg_catalog.pg_class t ON t.oid = f.confrelid JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace \
             JOIN _timescaledb_catalog.hypertable h ON h.schema_name = tn.nspname AND h.table_name = t.relname \
             WHERE f.contype = 'f' AND f.conparentid = 0 ORDER BY 1, 2, 3",
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(ForeignKey {
                schema: row.get(0)?,
                table: row.get(1)?,
                name: row.get(2)?,
            })
        })
        .collect()
}
