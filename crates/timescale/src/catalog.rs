//! Which form the catalog has. It changed in 2.14, 2.19, 2.25, 2.26, 2.28 and 2.29; every change shows in the columns.

use std::collections::BTreeSet;

use pgkeep_pg::Session;

use crate::TimescaleError;

/// The catalog's form, and the pieces of SQL that follow from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CatalogForm {
    /// `schema.table.column` of the tables whose columns changed.
    columns: BTreeSet<String>,
}

/// The tables whose form matters.
const TABLES: &str = "'hypertable', 'chunk', 'chunk_constraint', 'dimension_slice', 'compression_settings', \
                      'continuous_agg', 'bgw_job'";

impl CatalogForm {
    /// Asks the catalog.
    pub(crate) async fn read(session: &mut Session) -> Result<Self, TimescaleError> {
        let rows = session
            .query(&format!(
                "SELECT n.nspname || '.' || c.relname || '.' || a.attname FROM pg_catalog.pg_attribute a \
                 JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 WHERE n.nspname IN ('_timescaledb_catalog', '_timescaledb_config') AND c.relkind = 'r' \
                 AND c.relname IN ({TABLES}) AND a.attnum > 0 AND NOT a.attisdropped"
            ))
            .await?;
        let columns = rows
            .iter()
            .map(|row| row.get::<String>(0))
            .collect::<Result<_, _>>()?;
        Ok(Self { columns })
    }

    fn has(&self, table_and_column: &str) -> bool {
        self.columns
            .contains(&format!("_timescaledb_catalog.{table_and_column}"))
    }

    /// The jobs' table: in `_timescaledb_config` before 2.25.
    pub(crate) fn job_table(&self) -> &'static str {
        if self.has("bgw_job.id") {
            "_timescaledb_catalog.bgw_job"
        } else {
            "_timescaledb_config.bgw_job"
        }
    }

    /// A join that adds the chunk `c`'s relation as `r` (`pg_class`) and its schema as `rn`, NULL where it is missing.
    pub(crate) fn chunk_relation_join(&self) -> &'static str {
        if self.has("chunk.relid") {
            "LEFT JOIN pg_catalog.pg_class r ON r.oid = c.relid \
             LEFT JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace"
        } else {
            "LEFT JOIN pg_catalog.pg_namespace rn ON rn.nspname = c.schema_name \
             LEFT JOIN pg_catalog.pg_class r ON r.relnamespace = rn.oid AND r.relname = c.table_name"
        }
    }

    /// How the chunk `c` is called where its relation is missing.
    pub(crate) fn chunk_label(&self) -> &'static str {
        if self.has("chunk.relid") {
            "c.relid::text"
        } else {
            "format('%I.%I', c.schema_name, c.table_name)"
        }
    }

    /// A condition that leaves out chunks whose data is gone (`dropped`, before 2.26).
    pub(crate) fn chunk_alive(&self) -> &'static str {
        if self.has("chunk.dropped") {
            "NOT c.dropped"
        } else {
            "true"
        }
    }

    /// A join that adds the compressed relation of the chunk `c` (relation `r`) as `k` and its schema as `kn`; NULL
    /// where the chunk isn't compressed. After [`CatalogForm::chunk_relation_join`].
    pub(crate) fn compressed_relation_join(&self) -> &'static str {
        if self.has("chunk.compressed_chunk_id") {
            "LEFT JOIN _timescaledb_catalog.chunk cc ON cc.id = c.compressed_chunk_id \
             LEFT JOIN pg_catalog.pg_namespace kn ON kn.nspname = cc.schema_name \
             LEFT JOIN pg_catalog.pg_class k ON k.relnamespace = kn.oid AND k.relname = cc.table_name"
        } else {
            "LEFT JOIN _timescaledb_catalog.compression_settings cs ON cs.relid = r.oid \
             LEFT JOIN pg_catalog.pg_class k ON k.oid = cs.compress_relid \
             LEFT JOIN pg_catalog.pg_namespace kn ON kn.oid = k.relnamespace"
        }
    }

    /// Does the catalog say that the chunk `c` has a compressed relation? After
    /// [`CatalogForm::compressed_relation_join`].
    pub(crate) fn compressed_recorded(&self) -> &'static str {
        if self.has("chunk.compressed_chunk_id") {
            "(c.compressed_chunk_id IS NOT NULL)"
        } else {
            "(cs.compress_relid IS NOT NULL)"
        }
    }

    /// A join that adds the slice of the chunk `c` in the dimension `d` as `s`.
    pub(crate) fn slice_join(&self) -> &'static str {
        if self.has("dimension_slice.chunk_id") {
            "LEFT JOIN _timescaledb_catalog.dimension_slice s ON s.chunk_id = c.id AND s.dimension_id = d.id"
        } else {
            "LEFT JOIN (SELECT x.chunk_id, y.dimension_id, y.range_start, y.range_end \
             FROM _timescaledb_catalog.chunk_constraint x \
             JOIN _timescaledb_catalog.dimension_slice y ON y.id = x.dimension_slice_id) s \
             ON s.chunk_id = c.id AND s.dimension_id = d.id"
        }
    }

    /// Is the hypertable `h` one that holds the compressed rows of another (before 2.29)?
    pub(crate) fn is_compressed_hypertable(&self) -> &'static str {
        if self.has("hypertable.compressed_hypertable_id") {
            "EXISTS (SELECT FROM _timescaledb_catalog.hypertable p WHERE p.compressed_hypertable_id = h.id)"
        } else {
            "false"
        }
    }

    /// Is compression enabled for the hypertable `h`? Bit 4 of `status` since the compressed hypertables are gone.
    pub(crate) fn compression_enabled(&self) -> &'static str {
        if self.has("hypertable.compression_state") {
            "(h.compression_state = 1 OR (h.status & 4) = 4)"
        } else {
            "((h.status & 4) = 4)"
        }
    }

    /// Is the continuous aggregate `ca` of the finalized form? The only one since 2.25.
    pub(crate) fn finalized(&self) -> &'static str {
        if self.has("continuous_agg.finalized") {
            "ca.finalized"
        } else {
            "true"
        }
    }
}
