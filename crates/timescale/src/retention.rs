use pgkeep_base::{quote_identifier, quote_literal, quote_qualified};
use pgkeep_pg::{Row, Session};
use serde::{Deserialize, Serialize};

use crate::catalog::CatalogForm;
use crate::edition::require;
use crate::inventory::{relation_name, utc_text_sql};
use crate::rows::count;
use crate::{JobId, RelationName, TimescaleError};

/// What one retention policy would delete if its job ran now.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PendingDeletion {
    /// The policy's job.
    pub job: JobId,
    /// Is the job scheduled (not held)?
    pub scheduled: bool,
    /// The hypertable or continuous aggregate.
    pub relation: RelationName,
    /// How old a chunk must be: an interval, or a number for integers.
    pub drop_after: String,
    /// Is the age that of the chunk's creation, instead of its data's?
    pub by_creation_time: bool,
    /// Chunks that end here or before are deleted (or that were created before): in UTC, or an integer.
    pub cutoff: String,
    /// Those chunks.
    pub chunks: Vec<PendingChunk>,
}

impl PendingDeletion {
    /// How many rows it would delete.
    pub fn rows(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.rows).sum()
    }
}

/// A chunk that a policy would delete.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PendingChunk {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Where its data starts: in UTC, or an integer.
    pub range_start: String,
    /// Where it ends.
    pub range_end: String,
    /// How many rows it has, counted.
    pub rows: u64,
}

/// What every retention policy would delete if its job ran now, policies without anything to delete included. For a
/// restored database, after [`crate::post_restore`], before [`crate::release_jobs`].
///
/// The chunks come from TimescaleDB's own `show_chunks`, with the cutoff computed as the policy does
/// (`policy_retention_read_and_validate_config` in `tsl/src/bgw_policy/job.c`). For a column without time zone that is in
/// the session's `TimeZone`, and the job's may be another: the cutoff then differs by their distance.
///
/// # Errors
/// [`TimescaleError::Restoring`]: chunks can't be read then; [`TimescaleError::Pg`], and the errors of
/// [`crate::inventory`].
pub async fn pending_deletions(session: &mut Session) -> Result<Vec<PendingDeletion>, TimescaleError> {
    let extension = require(session).await?;
    if extension.restoring {
        return Err(TimescaleError::Restoring);
    }
    let form = CatalogForm::read(session).await?;
    let policies = session.query(&policies_sql(&form)).await?;
    let mut pending = Vec::with_capacity(policies.len());
    for row in &policies {
        let policy = Policy::from_row(row)?;
        pending.push(policy.pending(session, &form, &extension.schema).await?);
    }
    Ok(pending)
}

/// A retention policy as the catalog has it.
struct Policy {
    job: JobId,
    scheduled: bool,
    relation: RelationName,
    drop_after: Option<String>,
    drop_created_before: Option<String>,
    column_type: String,
    integer_now: Option<RelationName>,
}

fn policies_sql(form: &CatalogForm) -> String {
    // The rows of an aggregate have no clock of their own: theirs is that of the hypertable it reads, however many
    // aggregates lie between.
    format!(
        "WITH RECURSIVE source AS (\
         SELECT h.id AS hypertable_id, h.id AS source_id, 0 AS depth FROM _timescaledb_catalog.hypertable h \
         UNION ALL SELECT s.hypertable_id, ca.raw_hypertable_id, s.depth + 1 FROM source s \
         JOIN _timescaledb_catalog.continuous_agg ca ON ca.mat_hypertable_id = s.source_id WHERE s.depth < 64), \
         now_function AS (SELECT DISTINCT ON (s.hypertable_id) s.hypertable_id, d.integer_now_func_schema, d.integer_now_func \
         FROM source s JOIN _timescaledb_catalog.dimension d ON d.hypertable_id = s.source_id \
         WHERE d.integer_now_func IS NOT NULL ORDER BY s.hypertable_id, s.depth), \
         d AS (SELECT DISTINCT ON (hypertable_id) hypertable_id, column_type FROM _timescaledb_catalog.dimension \
         WHERE interval_length IS NOT NULL ORDER BY hypertable_id, id) \
         SELECT j.id, j.scheduled, coalesce(ca.user_view_schema, h.schema_name), coalesce(ca.user_view_name, h.table_name), \
         j.config->>'drop_after', j.config->>'drop_created_before', format_type(d.column_type, NULL), \
         f.integer_now_func_schema, f.integer_now_func FROM {jobs} j \
         JOIN _timescaledb_catalog.hypertable h ON h.id = coalesce(j.hypertable_id, (j.config->>'hypertable_id')::int) \
         JOIN d ON d.hypertable_id = h.id LEFT JOIN now_function f ON f.hypertable_id = h.id \
         LEFT JOIN _timescaledb_catalog.continuous_agg ca ON ca.mat_hypertable_id = h.id \
         WHERE j.proc_name = 'policy_retention' AND j.proc_schema IN ('_timescaledb_functions', '_timescaledb_internal') \
         ORDER BY j.id",
        jobs = form.job_table(),
    )
}

/// What of a policy goes into SQL.
struct Cutoff {
    /// An expression of the column's type.
    expression: String,
    /// The same as text.
    text: String,
    by_creation_time: bool,
    drop_after: String,
    is_integer: bool,
}

impl Policy {
    fn from_row(row: &Row) -> Result<Self, TimescaleError> {
        Ok(Self {
            job: JobId(row.get(0)?),
            scheduled: row.get(1)?,
            relation: relation_name(row, 2)?.unwrap_or_default(),
            drop_after: row.get(4)?,
            drop_created_before: row.get(5)?,
            column_type: row.get(6)?,
            integer_now: relation_name(row, 7)?,
        })
    }

    fn cutoff(&self) -> Result<Cutoff, TimescaleError> {
        let is_integer = matches!(self.column_type.as_str(), "smallint" | "integer" | "bigint");
        if let Some(age) = &self.drop_created_before {
            let expression = format!("(now() - {}::interval)", quote_literal(age));
            let text = utc_text_sql(&expression);
            return Ok(Cutoff {
                expression,
                text,
                by_creation_time: true,
                drop_after: age.clone(),
                is_integer,
            });
        }
        let broken = |what| {
            TimescaleError::UnexpectedCatalog(format!("the retention policy {} has no {what}", self.job))
        };
        let age = self.drop_after.as_ref().ok_or_else(|| broken("drop_after"))?;
        let (expression, text) = if is_integer {
            let now = self
                .integer_now
                .as_ref()
                .ok_or_else(|| broken("function that gives the current integer"))?;
            // As wide as it takes, then cut to what the type holds: nothing is older than the smallest integer.
            let expression = format!(
                "greatest({}()::numeric - {}::numeric, {})::{}",
                quote_qualified(&now.schema, &now.name),
                quote_literal(age),
                smallest_integer(&self.column_type),
                self.column_type
            );
            let text = format!("({expression})::text");
            (expression, text)
        } else {
            let (start, target) = match self.column_type.as_str() {
                "timestamp without time zone" => ("now()::timestamp", "timestamp"),
                "date" => ("now()::timestamp", "date"),
                // timestamptz, and UUIDs of version 7.
                _ => ("now()", "timestamptz"),
            };
            let expression = format!("({start} - {}::interval)::{target}", quote_literal(age));
            // TimescaleDB takes a time without zone as one in UTC.
            let text = match target {
                "timestamptz" => utc_text_sql(&expression),
                _ => utc_text_sql(&format!("(({expression})::timestamp AT TIME ZONE 'UTC')")),
            };
            (expression, text)
        };
        Ok(Cutoff {
            expression,
            text,
            by_creation_time: false,
            drop_after: age.clone(),
            is_integer,
        })
    }

    async fn pending(
        self,
        session: &mut Session,
        form: &CatalogForm,
        extension_schema: &str,
    ) -> Result<PendingDeletion, TimescaleError> {
        let cutoff = self.cutoff()?;
        let rows = session.query(&format!("SELECT {}", cutoff.text)).await?;
        let cutoff_text = rows
            .first()
            .and_then(|row| row.text(0))
            .unwrap_or_default()
            .to_owned();
        let mut chunks = Vec::new();
        for row in session
            .query(&self.chunks_sql(&cutoff, form, extension_schema))
            .await?
        {
            let (schema, name): (String, String) = (row.get(0)?, row.get(1)?);
            let rows = count(session, &quote_qualified(&schema, &name)).await?;
            chunks.push(PendingChunk {
                schema,
                name,
                range_start: row.get(2)?,
                range_end: row.get(3)?,
                rows,
            });
        }
        Ok(PendingDeletion {
            job: self.job,
            scheduled: self.scheduled,
            relation: self.relation,
            drop_after: cutoff.drop_after,
            by_creation_time: cutoff.by_creation_time,
            cutoff: cutoff_text,
            chunks,
        })
    }

    fn chunks_sql(&self, cutoff: &Cutoff, form: &CatalogForm, extension_schema: &str) -> String {
        let end = |column: &str| match cutoff.is_integer {
            true => format!("s.{column}::text"),
            false => utc_text_sql(&format!("_timescaledb_functions.to_timestamp(s.{column})")),
        };
        // Frozen chunks (bit 4) are not dropped.
        format!(
            "SELECT rn.nspname, r.relname, {start}, {end} FROM {schema}.show_chunks({relation}::pg_catalog.regclass, \
             {argument} => {cutoff}) shown(relid) JOIN (_timescaledb_catalog.chunk c {chunk_relation}) ON r.oid = shown.relid \
             JOIN LATERAL (SELECT id FROM _timescaledb_catalog.dimension x WHERE x.hypertable_id = c.hypertable_id \
             ORDER BY x.id LIMIT 1) d ON true {slice} WHERE {alive} AND (c.status & 4) = 0 ORDER BY s.range_start, c.id",
            start = end("range_start"),
            end = end("range_end"),
            schema = quote_identifier(extension_schema),
            relation = quote_literal(&quote_qualified(&self.relation.schema, &self.relation.name)),
            argument = if cutoff.by_creation_time {
                "created_before"
            } else {
                "older_than"
            },
            cutoff = cutoff.expression,
            chunk_relation = form.chunk_relation_join(),
            slice = form.slice_join(),
            alive = form.chunk_alive(),
        )
    }
}

fn smallest_integer(column_type: &str) -> i64 {
    match column_type {
        "smallint" => i16::MIN.into(),
        "integer" => i32::MIN.into(),
        _ => i64::MIN,
    }
}
