use std::collections::BTreeMap;

use pgkeep_pg::{Row, Session};

use crate::catalog::CatalogForm;
use crate::edition::require;
use crate::{
    Chunk, ContinuousAggregate, Dimension, Hypertable, HypertableKind, Inventory, Job, OrderBy, RelationName,
    TimescaleError,
};

/// A time of TimescaleDB as text in UTC, whatever the session's TimeZone and DateStyle.
pub(crate) fn utc_text_sql(timestamptz: &str) -> String {
    // to_char has no sign for years before 1 and no infinity.
    format!(
        "CASE WHEN isfinite({timestamptz}) AND {timestamptz} >= '0001-01-02 00:00:00+00' \
         THEN to_char({timestamptz} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') ELSE ({timestamptz})::text END"
    )
}

/// Reads what a dump records, under the session's snapshot: call it in the transaction that the data is read in.
///
/// # Errors
/// [`TimescaleError::NotInstalled`], [`TimescaleError::UnsupportedVersion`], [`TimescaleError::LibraryNotLoaded`];
/// [`TimescaleError::UnexpectedCatalog`] if a chunk is in the catalog and its table isn't there.
pub async fn inventory(session: &mut Session) -> Result<Inventory, TimescaleError> {
    let extension = require(session).await?;
    let form = CatalogForm::read(session).await?;
    let mut hypertables = read_hypertables(session, &form).await?;
    read_dimensions(session, &mut hypertables).await?;
    read_compression_settings(session, &mut hypertables).await?;
    read_chunks(session, &form, &mut hypertables).await?;
    Ok(Inventory {
        version: extension.version,
        schema: extension.schema,
        license: extension.license,
        hypertables: hypertables.into_values().collect(),
        continuous_aggregates: read_continuous_aggregates(session, &form).await?,
        jobs: read_jobs(session, &form).await?,
    })
}

/// A text that changes when a chunk appears, vanishes, or is compressed or decompressed: for noticing that what was listed
/// isn't what the snapshot holds. Empty database or not, it is short (a count and a hash).
///
/// # Errors
/// As [`inventory`].
pub async fn chunk_fingerprint(session: &mut Session) -> Result<String, TimescaleError> {
    require(session).await?;
    let form = CatalogForm::read(session).await?;
    let rows = session
        .query(&format!(
            "SELECT count(*) || ':' || md5(coalesce(string_agg(concat_ws(' ', c.id, c.status, r.oid, k.oid), ',' \
             ORDER BY c.id), '')) FROM _timescaledb_catalog.chunk c {relation} {compressed} WHERE {alive}",
            relation = form.chunk_relation_join(),
            compressed = form.compressed_relation_join(),
            alive = form.chunk_alive(),
        ))
        .await?;
    let row = rows
        .first()
        .ok_or_else(|| TimescaleError::UnexpectedCatalog("no fingerprint".to_owned()))?;
    Ok(row.get(0)?)
}

/// Hypertables by id.
type Hypertables = BTreeMap<i32, Hypertable>;

fn hypertable_of(hypertables: &mut Hypertables, id: i32) -> Result<&mut Hypertable, TimescaleError> {
    hypertables.get_mut(&id).ok_or_else(|| {
        TimescaleError::UnexpectedCatalog(format!("something belongs to hypertable {id}, which isn't there"))
    })
}

async fn read_hypertables(session: &mut Session, form: &CatalogForm) -> Result<Hypertables, TimescaleError> {
    let sql = format!(
        "SELECT h.id, h.schema_name, h.table_name, pg_get_userbyid(r.relowner), \
         EXISTS (SELECT FROM _timescaledb_catalog.continuous_agg ca WHERE ca.mat_hypertable_id = h.id), {compressed}, {enabled} \
         FROM _timescaledb_catalog.hypertable h JOIN pg_catalog.pg_namespace n ON n.nspname = h.schema_name \
         JOIN pg_catalog.pg_class r ON r.relnamespace = n.oid AND r.relname = h.table_name ORDER BY h.id",
        compressed = form.is_compressed_hypertable(),
        enabled = form.compression_enabled(),
    );
    let mut hypertables = Hypertables::new();
    for row in session.query(&sql).await? {
        let kind = match (row.get(4)?, row.get(5)?) {
            (true, _) => HypertableKind::Materialization,
            (_, true) => HypertableKind::Compressed,
            _ => HypertableKind::User,
        };
        let hypertable = Hypertable {
            schema: row.get(1)?,
            name: row.get(2)?,
            owner: row.get(3)?,
            kind,
            compression_enabled: row.get(6)?,
            ..Hypertable::default()
        };
        hypertables.insert(row.get(0)?, hypertable);
    }
    Ok(hypertables)
}

async fn read_dimensions(session: &mut Session, hypertables: &mut Hypertables) -> Result<(), TimescaleError> {
    let rows = session
        .query(
            "SELECT hypertable_id, column_name, format_type(column_type, NULL), interval_length, num_slices, \
             integer_now_func_schema, integer_now_func FROM _timescaledb_catalog.dimension ORDER BY hypertable_id, id",
        )
        .await?;
    for row in rows {
        let dimension = Dimension {
            column: row.get(1)?,
            column_type: row.get(2)?,
            interval_length: row.get(3)?,
            partitions: row.get(4)?,
            integer_now: relation_name(&row, 5)?,
        };
        hypertable_of(hypertables, row.get(0)?)?
            .dimensions
            .push(dimension);
    }
    Ok(())
}

/// From the view, which is the same in every version. It has no ids.
async fn read_compression_settings(
    session: &mut Session,
    hypertables: &mut Hypertables,
) -> Result<(), TimescaleError> {
    let rows = session
        .query(
            "SELECT h.id, s.attname, s.segmentby_column_index IS NOT NULL, s.orderby_asc, s.orderby_nullsfirst \
             FROM timescaledb_information.compression_settings s JOIN _timescaledb_catalog.hypertable h \
             ON h.schema_name = s.hypertable_schema AND h.table_name = s.hypertable_name \
             ORDER BY h.id, s.segmentby_column_index, s.orderby_column_index",
        )
        .await?;
    for row in rows {
        let column = row.get(1)?;
        let hypertable = hypertable_of(hypertables, row.get(0)?)?;
        if row.get(2)? {
            hypertable.segment_by.push(column);
        } else {
            // The view has NULL for "no" in some versions.
            let descending = !row.get::<Option<bool>>(3)?.unwrap_or_default();
            let nulls_first = row.get::<Option<bool>>(4)?.unwrap_or_default();
            hypertable.order_by.push(OrderBy {
                column,
                descending,
                nulls_first,
            });
        }
    }
    Ok(())
}

fn chunks_sql(form: &CatalogForm) -> String {
    format!(
        "WITH d AS (SELECT DISTINCT ON (hypertable_id) hypertable_id, id, \
         column_type = ANY ('{{timestamptz,timestamp,date,uuid}}'::regtype[]) AS is_time \
         FROM _timescaledb_catalog.dimension ORDER BY hypertable_id, id) \
         SELECT c.hypertable_id, rn.nspname, r.relname, c.status, c.osm_chunk, s.range_start, s.range_end, \
         CASE WHEN d.is_time THEN {start} END, CASE WHEN d.is_time THEN {end} END, {recorded}, kn.nspname, k.relname, {label} \
         FROM _timescaledb_catalog.chunk c {relation} {compressed} LEFT JOIN d ON d.hypertable_id = c.hypertable_id {slice} \
         WHERE {alive} ORDER BY c.hypertable_id, s.range_start, c.id",
        start = utc_text_sql("_timescaledb_functions.to_timestamp(s.range_start)"),
        end = utc_text_sql("_timescaledb_functions.to_timestamp(s.range_end)"),
        recorded = form.compressed_recorded(),
        label = form.chunk_label(),
        relation = form.chunk_relation_join(),
        compressed = form.compressed_relation_join(),
        slice = form.slice_join(),
        alive = form.chunk_alive(),
    )
}

async fn read_chunks(
    session: &mut Session,
    form: &CatalogForm,
    hypertables: &mut Hypertables,
) -> Result<(), TimescaleError> {
    session
        .query_each(&chunks_sql(form), |row| {
            let missing = |what: &str| {
                let label = row.text(12).unwrap_or("?");
                TimescaleError::UnexpectedCatalog(format!(
                    "the chunk {label} is in the catalog, but {what} is not there"
                ))
            };
            let relation = relation_name(&row, 1)?.ok_or_else(|| missing("its table"))?;
            let is_compressed = row.get(9)?;
            let compressed_relation = relation_name(&row, 10)?;
            if is_compressed && compressed_relation.is_none() {
                return Err(missing("its compressed relation"));
            }
            let chunk = Chunk {
                schema: relation.schema,
                name: relation.name,
                range_start: row.get(7)?,
                range_end: row.get(8)?,
                range_start_internal: row.get(5)?,
                range_end_internal: row.get(6)?,
                is_compressed,
                status: row.get(3)?,
                compressed_relation,
                tiered: row.get(4)?,
            };
            hypertable_of(hypertables, row.get(0)?)?.chunks.push(chunk);
            Ok(())
        })
        .await?;
    Ok(())
}

async fn read_continuous_aggregates(
    session: &mut Session,
    form: &CatalogForm,
) -> Result<Vec<ContinuousAggregate>, TimescaleError> {
    let sql = format!(
        "SELECT ca.user_view_schema, ca.user_view_name, pg_get_userbyid(v.relowner), raw.schema_name, raw.table_name, \
         mat.schema_name, mat.table_name, pg_get_viewdef(direct.oid), ca.materialized_only, {finalized} \
         FROM _timescaledb_catalog.continuous_agg ca \
         JOIN _timescaledb_catalog.hypertable raw ON raw.id = ca.raw_hypertable_id \
         JOIN _timescaledb_catalog.hypertable mat ON mat.id = ca.mat_hypertable_id \
         LEFT JOIN pg_catalog.pg_namespace vn ON vn.nspname = ca.user_view_schema \
         LEFT JOIN pg_catalog.pg_class v ON v.relnamespace = vn.oid AND v.relname = ca.user_view_name \
         LEFT JOIN pg_catalog.pg_namespace dn ON dn.nspname = ca.direct_view_schema \
         LEFT JOIN pg_catalog.pg_class direct ON direct.relnamespace = dn.oid AND direct.relname = ca.direct_view_name \
         ORDER BY ca.mat_hypertable_id",
        finalized = form.finalized(),
    );
    let rows = session.query(&sql).await?;
    rows.iter()
        .map(|row| {
            let name: String = row.get(1)?;
            let missing = || {
                TimescaleError::UnexpectedCatalog(format!(
                    "a view of the continuous aggregate {name} is not there"
                ))
            };
            Ok(ContinuousAggregate {
                schema: row.get(0)?,
                owner: row.get::<Option<String>>(2)?.ok_or_else(missing)?,
                source: relation_name(row, 3)?.unwrap_or_default(),
                materialization: relation_name(row, 5)?.unwrap_or_default(),
                view_definition: row.get::<Option<String>>(7)?.ok_or_else(missing)?,
                materialized_only: row.get(8)?,
                finalized: row.get(9)?,
                name,
            })
        })
        .collect()
}

async fn read_jobs(session: &mut Session, form: &CatalogForm) -> Result<Vec<Job>, TimescaleError> {
    let sql = format!(
        "SELECT j.id, j.application_name, j.schedule_interval::text, j.proc_schema, j.proc_name, pg_get_userbyid(j.owner), \
         j.scheduled, coalesce(ca.user_view_schema, h.schema_name), coalesce(ca.user_view_name, h.table_name), \
         j.config::text, {next_start} FROM {jobs} j \
         LEFT JOIN _timescaledb_catalog.hypertable h ON h.id = j.hypertable_id \
         LEFT JOIN _timescaledb_catalog.continuous_agg ca ON ca.mat_hypertable_id = j.hypertable_id \
         LEFT JOIN _timescaledb_internal.bgw_job_stat s ON s.job_id = j.id WHERE j.id >= 1000 ORDER BY j.id",
        next_start = utc_text_sql("s.next_start"),
        jobs = form.job_table(),
    );
    let rows = session.query(&sql).await?;
    rows.iter()
        .map(|row| {
            let config = row.text(9).map(serde_json::from_str).transpose();
            Ok(Job {
                id: row.get(0)?,
                application_name: row.get(1)?,
                schedule_interval: row.get(2)?,
                procedure_schema: row.get(3)?,
                procedure_name: row.get(4)?,
                owner: row.get(5)?,
                scheduled: row.get(6)?,
                hypertable: relation_name(row, 7)?,
                config: config.map_err(|error| {
                    TimescaleError::UnexpectedCatalog(format!("a job's settings: {error}"))
                })?,
                next_start: row.get(10)?,
            })
        })
        .collect()
}

/// A schema and a name from two columns; `None` if both or one is NULL.
pub(crate) fn relation_name(row: &Row, schema_index: usize) -> Result<Option<RelationName>, TimescaleError> {
    let schema: Option<String> = row.get(schema_index)?;
    let name: Option<String> = row.get(schema_index + 1)?;
    Ok(schema
        .zip(name)
        .map(|(schema, name)| RelationName { schema, name }))
}
