use pgkeep_base::{quote_literal, quote_qualified};
use pgkeep_pg::Session;

use crate::TimescaleError;

/// A query with one row and one column: how many rows of a hypertable the rows of a compressed relation stand for. NULL if
/// the relation is none (it has no column `_ts_meta_count`), 0 if it is empty.
pub fn compressed_row_count_sql(schema: &str, relation: &str) -> String {
    // Where the relation has no such column, the name means the one outside, which is NULL; so no error, and no look into
    // the catalog beforehand.
    let relation = quote_qualified(schema, relation);
    format!(
        "SELECT CASE WHEN n.is_compressed THEN coalesce((SELECT sum(m)::bigint FROM (SELECT _ts_meta_count AS m \
         FROM ONLY {relation}) q), 0) END FROM (SELECT NULL::bigint AS _ts_meta_count, EXISTS (SELECT \
         FROM pg_catalog.pg_attribute WHERE attrelid = {literal}::pg_catalog.regclass AND attname = '_ts_meta_count' \
         AND NOT attisdropped) AS is_compressed) n",
        literal = quote_literal(&relation),
    )
}

/// How many rows a hypertable (or any table or view) has, read as its users read it: compressed rows included.
///
/// # Errors
/// [`TimescaleError::Restoring`] if this session wouldn't see compressed rows; [`TimescaleError::Pg`].
pub async fn hypertable_row_count(
    session: &mut Session,
    schema: &str,
    name: &str,
) -> Result<u64, TimescaleError> {
    let extension = crate::edition::require(session).await?;
    if extension.restoring {
        return Err(TimescaleError::Restoring);
    }
    count(session, &quote_qualified(schema, name)).await
}

/// Counts the rows of a quoted relation.
pub(crate) async fn count(session: &mut Session, relation: &str) -> Result<u64, TimescaleError> {
    let rows = session.query(&format!("SELECT count(*) FROM {relation}")).await?;
    let row = rows
        .first()
        .ok_or_else(|| TimescaleError::UnexpectedCatalog("no count".to_owned()))?;
    Ok(row.get(0)?)
}
