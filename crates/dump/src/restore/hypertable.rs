//! One hypertable, or a range of its time dimension, out of a dump of a whole database.
//!
//! Compressed rows can be read by TimescaleDB alone, and only with its catalog. So the chunks that are needed are
//! restored with the catalog into a scratch database of the same server, and from there the rows flow, read by
//! TimescaleDB itself, into the table where they are wanted.

use std::collections::BTreeSet;
use std::sync::Arc;

use pgkeep_base::{quote_identifier, quote_literal};
use pgkeep_pg::{Session, Target};
use pgkeep_repository::object::BLOCK_BYTES;
use pgkeep_timescale::{Dimension, Hypertable};

use crate::catalog;
use crate::columns::{self, Present};
use crate::error::{Context, DumpError};
use crate::manifest::{ColumnType, DatabaseManifest, QualifiedName, RelationKind};
use crate::progress::Progress;
use crate::restore::archive::Entry;
use crate::restore::load::{self, LoadPhase, client_encoding, loading_session};
use crate::restore::options::{HypertableRange, RestoreOptions, RestoredDatabase};
use crate::restore::part::PartPlan;
use crate::restore::selection::{Picker, Selection};
use crate::restore::{Restore, connect, foreign_keys, left_out, mark, scratch, tables};

/// Jobs refer to roles, which may be missing here, and are of no use in a scratch database.
const CONFIGURATION_NOT_NEEDED: [&str; 2] = ["bgw_job", "bgw_policy_chunk_stats"];

/// A bound of the range without a zone means UTC, in every session that reads it.
const ONE_TIME_ZONE: &str = "SET timezone = 'UTC'";

/// Triggers that TimescaleDB makes itself.
const OWN_TRIGGERS: [&str; 2] = ["ts_insert_blocker", "ts_cagg_invalidation_trigger"];

pub(crate) async fn restore(
    restore: &Restore<'_>,
    outside: &mut Session,
    plan: &PartPlan<'_>,
    name: &QualifiedName,
    attention: &mut Vec<String>,
) -> Result<RestoredDatabase, DumpError> {
    let (database, target) = (plan.database, restore.target.with_database(&plan.target_name));
    let one = One {
        restore,
        database,
        target: &target,
        name,
        hypertable: find(database, name)?,
        range: &range(restore.options),
        fills: plan.filled.contains(name),
    };
    let scratch = scratch::make(restore, outside, database).await?;
    let result = one.run(&restore.target.with_database(&scratch), attention).await;
    // The scratch database goes in any case; what went wrong before matters more than a failure to drop it.
    let dropped = scratch::remove(restore, outside, &scratch).await;
    let restored = result?;
    dropped?;
    Ok(restored)
}

/// The range that was asked for: all without one.
pub(crate) fn range(options: &RestoreOptions) -> HypertableRange {
    options.hypertable.clone().unwrap_or(HypertableRange {
        pattern: String::new(),
        from: None,
        to: None,
    })
}

fn find<'a>(database: &'a DatabaseManifest, name: &QualifiedName) -> Result<&'a Hypertable, DumpError> {
    let mut hypertables = database
        .timescaledb
        .iter()
        .flat_map(|inventory| &inventory.hypertables);
    hypertables
        .find(|table| table.schema == name.schema && table.name == name.name)
        .ok_or_else(|| DumpError::Internal(format!("hypertable {name} has no inventory")))
}

/// What the dump holds of the range, at most: whole chunks are counted.
///
/// # Errors
/// A bound isn't a value of the time dimension; PostgreSQL's.
pub(crate) async fn rows_at_most(
    session: &mut Session,
    database: &DatabaseManifest,
    name: &QualifiedName,
    range: &HypertableRange,
) -> Result<u64, DumpError> {
    let places = places(session, database, find(database, name)?, name, range).await?;
    let relations = places
        .iter()
        .filter_map(|place| database.relations.get(*place as usize));
    Ok(relations
        .map(|relation| match relation.kind {
            RelationKind::Chunk => relation.rows,
            RelationKind::CompressedChunk => relation.compressed_rows.unwrap_or(0),
            _ => 0,
        })
        .sum())
}

/// Whether rows of a hypertable that is there are in the way, which `--overwrite` deletes.
///
/// # Errors
/// [`DumpError::Refused`]: there are some and they weren't given up, or the columns don't fit.
pub(crate) async fn look_into(
    session: &mut Session,
    database: &DatabaseManifest,
    name: &QualifiedName,
    range: &HypertableRange,
    overwrite: bool,
) -> Result<bool, DumpError> {
    let context = || format!("looking at table {name} in the target");
    let relation = database.relations.iter().find(|relation| relation.name == *name);
    let dumped = relation.map_or(&[][..], |relation| &relation.column_types);
    let present = columns::of_table(session, name).await?;
    // Older dumps don't have the types; they are compared once the chunks are there.
    if !dumped.is_empty() {
        refuse_misfit(dumped, &present, name, session.target().database())?;
    }
    session.execute(ONE_TIME_ZONE).await.context(context)?;
    let filter = condition(find(database, name)?, range)
        .map(|condition| format!(" WHERE {condition}"))
        .unwrap_or_default();
    let exists = format!("SELECT EXISTS (SELECT FROM {}{filter})", name.quoted());
    let rows = session.query(&exists).await.context(context)?;
    let any: Option<bool> = rows.first().map(|row| row.get(0)).transpose().context(context)?;
    if any == Some(true) && !overwrite {
        return Err(DumpError::Refused {
            message: format!(
                "table {name} in database '{}' has rows in that range",
                session.target().database()
            ),
            hint:
                "give --overwrite to delete and replace them, or --target-database NAME to restore beside them"
                    .to_owned(),
        });
    }
    Ok(any == Some(true))
}

fn refuse_misfit(
    dumped: &[ColumnType],
    present: &[Present],
    name: &QualifiedName,
    database: &str,
) -> Result<(), DumpError> {
    match columns::misfit(dumped, present) {
        None => Ok(()),
        Some(misfit) => Err(DumpError::Refused {
            message: format!(
                "the dumped rows don't fit into the table that is there: {name} in database '{database}' {misfit}"
            ),
            hint: "restore beside it with --target-database NAME and bring the rows over by hand, or give the table its \
                   former columns (ALTER TABLE)"
                .to_owned(),
        }),
    }
}

/// `WHERE` for the range.
fn condition(hypertable: &Hypertable, range: &HypertableRange) -> Option<String> {
    let column = quote_identifier(&hypertable.dimensions.first()?.column);
    let from = range.from.as_ref();
    let from = from.map(|from| format!("{column} >= {}", quote_literal(from)));
    let to = range.to.as_ref();
    let to = to.map(|to| format!("{column} < {}", quote_literal(to)));
    let parts: Vec<String> = from.into_iter().chain(to).collect();
    (!parts.is_empty()).then(|| parts.join(" AND "))
}

/// The chunks that the range touches, their compressed relations, and the catalog.
async fn places(
    session: &mut Session,
    database: &DatabaseManifest,
    hypertable: &Hypertable,
    name: &QualifiedName,
    range: &HypertableRange,
) -> Result<BTreeSet<u32>, DumpError> {
    let context = || "setting the time zone".to_owned();
    session.execute(ONE_TIME_ZONE).await.context(context)?;
    let dimension = hypertable.dimensions.first();
    let from = internal_time(session, name, dimension, range.from.as_deref()).await?;
    let to = internal_time(session, name, dimension, range.to.as_deref()).await?;
    let mut wanted: BTreeSet<QualifiedName> = BTreeSet::new();
    for chunk in &hypertable.chunks {
        let before = to
            .zip(chunk.range_start_internal)
            .is_some_and(|(to, start)| start >= to);
        let after = from
            .zip(chunk.range_end_internal)
            .is_some_and(|(from, end)| end <= from);
        if before || after {
            continue;
        }
        wanted.insert(QualifiedName {
            schema: chunk.schema.clone(),
            name: chunk.name.clone(),
        });
        wanted.extend(chunk.compressed_relation.as_ref().map(|relation| QualifiedName {
            schema: relation.schema.clone(),
            name: relation.name.clone(),
        }));
    }
    let needed = (0_u32..)
        .zip(&database.relations)
        .filter(|(_, relation)| match relation.kind {
            RelationKind::Configuration => !CONFIGURATION_NOT_NEEDED.contains(&relation.name.name.as_str()),
            _ => wanted.contains(&relation.name),
        });
    Ok(needed.map(|(place, _)| place).collect())
}

/// A bound of the range as TimescaleDB has it inside: microseconds since 1970, or the integer itself.
async fn internal_time(
    session: &mut Session,
    name: &QualifiedName,
    dimension: Option<&Dimension>,
    text: Option<&str>,
) -> Result<Option<i64>, DumpError> {
    let (Some(text), Some(dimension)) = (text, dimension) else {
        return Ok(None);
    };
    let kind = dimension.column_type.as_str();
    let sql = if kind.starts_with("timestamp with time zone") {
        "SELECT (extract(epoch FROM $1::timestamptz) * 1000000)::bigint"
    } else if kind.starts_with("timestamp") || kind == "date" {
        "SELECT (extract(epoch FROM $1::timestamp) * 1000000)::bigint"
    } else {
        "SELECT $1::bigint"
    };
    let context = || format!("reading '{text}' as a value of {name}.{}", dimension.column);
    let rows = session.query_params(sql, &[Some(text)]).await.context(context)?;
    rows.first().map(|row| row.get(0)).transpose().context(context)
}

struct One<'a> {
    restore: &'a Restore<'a>,
    database: &'a DatabaseManifest,
    target: &'a Target,
    name: &'a QualifiedName,
    hypertable: &'a Hypertable,
    range: &'a HypertableRange,
    /// The table is there and takes the rows as it is.
    fills: bool,
}

impl One<'_> {
    async fn run(
        &self,
        scratch: &Target,
        attention: &mut Vec<String>,
    ) -> Result<RestoredDatabase, DumpError> {
        let mut inside = connect(self.target).await?;
        let places = places(&mut inside, self.database, self.hypertable, self.name, self.range).await?;
        let condition = condition(self.hypertable, self.range);
        self.fill_scratch(scratch, &places).await?;
        if self.fills {
            let mut session = connect(scratch).await?;
            let dumped = columns::of_table(&mut session, self.name).await?;
            session.close().await;
            let dumped: Vec<ColumnType> = dumped.into_iter().map(|present| present.column).collect();
            let present = columns::of_table(&mut inside, self.name).await?;
            refuse_misfit(&dumped, &present, self.name, self.target.database())?;
        }
        inside.close().await;
        let filled = self.fill_table(scratch, condition.as_deref(), attention).await;
        if filled.is_err() && !self.fills {
            // A table without its indexes would be taken for a good one by the next attempt.
            let mut session = connect(self.target).await?;
            let sql = format!("DROP TABLE IF EXISTS {}", self.name.quoted());
            session
                .execute(&sql)
                .await
                .context(|| format!("dropping the unfinished table {}", self.name))?;
        }
        Ok(RestoredDatabase {
            name: self.database.name.clone(),
            target_name: self.target.database().to_owned(),
            relations: places.len() as u64,
            rows: filled?,
            counted: 1,
        })
    }

    /// The rows, and where there is no table yet, the table with all that belongs to it.
    async fn fill_table(
        &self,
        scratch: &Target,
        condition: Option<&str>,
        attention: &mut Vec<String>,
    ) -> Result<u64, DumpError> {
        if self.fills {
            return self.flow(scratch, condition).await;
        }
        let archive = tables::fetch_archive(self.restore, self.database).await?;
        let mut selection = Selection::default();
        selection.add_table(self.database, self.name);
        selection.without_rows = left_out::oids_without_rows(self.database, &archive.entries);
        let dependents = tables::read_text(self.restore, &self.database.dependents).await?;
        let mut session = connect(self.target).await?;
        let schemas = tables::missing_schemas(&mut session, &selection).await?;
        let picker = Picker::new(&archive.entries, &selection, &dependents, schemas);
        let context = || format!("making hypertable {}", self.name);
        let made = archive.restore(self.target, Some("pre-data"), 1, |entry| picker.picks(entry));
        made.await?.context(context)?;
        self.make_hypertable(&mut session, attention).await?;
        session.close().await;
        let rows = self.flow(scratch, condition).await?;
        let own = |text: &str| {
            OWN_TRIGGERS.iter().any(|trigger| {
                text.starts_with(&format!(
                    "TRIGGER {} {} {trigger} ",
                    self.name.schema, self.name.name
                ))
            })
        };
        let picks = |entry: &Entry| picker.picks(entry) && !own(&entry.text);
        archive
            .restore(self.target, Some("post-data"), 1, picks)
            .await?
            .context(context)?;
        let mut session = connect(self.target).await?;
        let wanted = |entry: &Entry| picker.outside_keys.contains(&entry.oid);
        foreign_keys::attempt(&archive, &mut session, wanted, true, attention).await?;
        session.close().await;
        Ok(rows)
    }

    /// The needed chunks with the catalog, readable.
    async fn fill_scratch(&self, scratch: &Target, places: &BTreeSet<u32>) -> Result<(), DumpError> {
        let restore = self.restore;
        restore
            .progress
            .set_phase(format!("{}: preparing chunks", self.name));
        let error = |source| DumpError::Timescale {
            database: scratch.database().to_owned(),
            source,
        };
        let internal = || DumpError::Internal("no TimescaleDB inventory".to_owned());
        let inventory = self.database.timescaledb.as_ref().ok_or_else(internal)?;
        let mut session = connect(scratch).await?;
        pgkeep_timescale::create_extension(&mut session, &inventory.version, &inventory.schema)
            .await
            .map_err(error)?;
        session.close().await;
        let mut session = connect(scratch).await?;
        pgkeep_timescale::pre_restore(&mut session).await.map_err(error)?;
        session.close().await;
        let archive = tables::fetch_archive_as(restore, self.database, false).await?;
        let context = || format!("preparing chunks of {}", self.name);
        let made = archive.restore(scratch, Some("pre-data"), 1, |entry| {
            !entry.is_made_beforehand(Some(inventory))
        });
        made.await?.context(context)?;
        let mut session = loading_session(scratch, client_encoding(self.database)).await?;
        mark::make(&mut session, &restore.id.to_string(), &self.database.name, true).await?;
        let phase = LoadPhase {
            repository: restore.repository.clone(),
            prefix: restore.prefix.clone(),
            database: Arc::new(self.database.clone()),
            target: scratch.clone(),
            jobs: restore.options.jobs,
            done: BTreeSet::new(),
            wanted: Some(places.clone()),
            special_storage: places.clone(),
            progress: Arc::clone(restore.progress),
        };
        load::load_configuration(&phase, &mut session).await?;
        session.close().await;
        load::load_all(phase).await?;
        let mut session = connect(scratch).await?;
        pgkeep_timescale::post_restore(&mut session)
            .await
            .map_err(error)?;
        session.close().await;
        Ok(())
    }

    async fn make_hypertable(
        &self,
        session: &mut Session,
        attention: &mut Vec<String>,
    ) -> Result<(), DumpError> {
        let error = |source| DumpError::Timescale {
            database: self.target.database().to_owned(),
            source,
        };
        let Some(extension) = pgkeep_timescale::detect(session).await.map_err(error)? else {
            attention.push(format!(
                "{} is an ordinary table now: database '{}' has no TimescaleDB",
                self.name,
                self.target.database()
            ));
            return Ok(());
        };
        let schema = quote_identifier(&extension.schema);
        let table = quote_literal(&self.name.quoted());
        for (number, dimension) in self.hypertable.dimensions.iter().enumerate() {
            let column = quote_literal(&dimension.column);
            let interval = dimension
                .interval_length
                .map(|length| interval_literal(&dimension.column_type, length));
            let statement = match (number, &interval, dimension.partitions) {
                (0, Some(interval), _) => format!(
                    "SELECT {schema}.create_hypertable({table}, {column}, chunk_time_interval => {interval}, \
                     create_default_indexes => false)"
                ),
                (_, Some(interval), _) => {
                    format!(
                        "SELECT {schema}.add_dimension({table}, {column}, chunk_time_interval => {interval})"
                    )
                }
                (_, None, Some(partitions)) => {
                    format!(
                        "SELECT {schema}.add_dimension({table}, {column}, number_partitions => {partitions})"
                    )
                }
                (_, None, None) => continue,
            };
            session
                .execute(&statement)
                .await
                .context(|| format!("making {} a hypertable", self.name))?;
        }
        if self.hypertable.compression_enabled {
            attention.push(format!(
                "{} is restored uncompressed and without policies",
                self.name
            ));
        }
        Ok(())
    }

    /// Rows from the scratch database, read by TimescaleDB, into the table: all of them or none.
    async fn flow(&self, scratch: &Target, condition: Option<&str>) -> Result<u64, DumpError> {
        let restore = self.restore;
        restore.progress.set_phase(format!("{}: loading rows", self.name));
        let context = || format!("loading rows of {}", self.name);
        let columns = self
            .database
            .relations
            .iter()
            .find(|relation| relation.name == *self.name);
        let columns = columns
            .map(|relation| relation.columns.clone())
            .unwrap_or_default();
        let encoding = client_encoding(self.database);
        let mut source = connect(scratch).await?;
        let settings = format!(
            "SET client_encoding = {}; {}",
            quote_literal(encoding),
            catalog::READ_SETTINGS
        );
        source.execute(&settings).await.context(context)?;
        let mut sink = loading_session(self.target, encoding).await?;
        sink.execute(ONE_TIME_ZONE).await.context(context)?;
        let filter = condition
            .map(|condition| format!(" WHERE {condition}"))
            .unwrap_or_default();
        let table = self.name.quoted();
        sink.execute("BEGIN").await.context(context)?;
        if restore.options.overwrite {
            sink.execute(&format!("DELETE FROM {table}{filter}"))
                .await
                .context(context)?;
        }
        let mut read = source
            .copy_out(&format!("COPY (SELECT {columns} FROM {table}{filter}) TO STDOUT"))
            .await
            .context(context)?;
        let mut write = sink
            .copy_in(&format!("COPY {table} ({columns}) FROM STDIN"))
            .await
            .context(context)?;
        let mut buffer = Vec::with_capacity(BLOCK_BYTES * 2);
        loop {
            let more = read.read_into(&mut buffer, BLOCK_BYTES).await.context(context)?;
            write.send(&buffer).await.context(context)?;
            Progress::add(&restore.progress.bytes_done, buffer.len() as u64);
            buffer.clear();
            if !more {
                break;
            }
        }
        let expected = read.finish().await.context(context)?;
        let found = write.finish().await.context(context)?;
        if found != expected {
            return Err(DumpError::CountMismatch {
                what: format!("rows loaded into {}", self.name),
                found,
                expected,
            });
        }
        if condition.is_none() {
            self.compare_with_manifest(found)?;
        }
        sink.execute("COMMIT").await.context(context)?;
        source.close().await;
        sink.close().await;
        Ok(found)
    }

    fn compare_with_manifest(&self, found: u64) -> Result<(), DumpError> {
        let of = |schema: &str, name: &str| {
            self.database
                .relations
                .iter()
                .find(|relation| relation.name.schema == schema && relation.name.name == name)
        };
        let expected: u64 = self
            .hypertable
            .chunks
            .iter()
            .map(|chunk| {
                let heap = of(&chunk.schema, &chunk.name).map_or(0, |relation| relation.rows);
                let compressed = chunk
                    .compressed_relation
                    .as_ref()
                    .and_then(|name| of(&name.schema, &name.name));
                heap + compressed
                    .and_then(|relation| relation.compressed_rows)
                    .unwrap_or(0)
            })
            .sum();
        if found != expected {
            return Err(DumpError::CountMismatch {
                what: format!("rows of {} in the dump", self.name),
                found,
                expected,
            });
        }
        Ok(())
    }
}

/// A chunk's length: microseconds for times, the column's own unit for integers.
fn interval_literal(column_type: &str, length: i64) -> String {
    let time = column_type.starts_with("timestamp") || column_type == "date";
    if time {
        format!("INTERVAL '{length} microseconds'")
    } else {
        format!("{length}::bigint")
    }
}
