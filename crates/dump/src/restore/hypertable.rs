//! One hypertable, or a range of its time dimension, out of a dump of a whole database.
//!
//! Compressed rows can be read by TimescaleDB alone, and only with its catalog. So the chunks that are needed are
//! restored with the catalog into a scratch database of the same server, and from there the rows flow, read by
//! TimescaleDB itself, into the table where they are wanted.

use std::collections::BTreeSet;
use std::sync::Arc;

use pgkeep_base::{quote_identifier, quote_literal};
use pgkeep_pg::{PgError, Session, Target};
use pgkeep_repository::object::BLOCK_BYTES;
use pgkeep_timescale::Hypertable;

use crate::catalog;
use crate::columns::{self, Present};
use crate::error::{Context, DumpError};
use crate::manifest::{ColumnType, DatabaseManifest, QualifiedName, Relation, RelationKind};
use crate::restore::archive::Entry;
use crate::restore::load::{self, LoadPhase, client_encoding, loading_session};
use crate::restore::options::RestoredDatabase;
use crate::restore::part::PartPlan;
use crate::restore::range::Range;
use crate::restore::selection::{Picker, Selection};
use crate::restore::{Restore, connect, foreign_keys, left_out, mark, scratch, tables};
use pgkeep_base::Progress;

/// Jobs refer to roles, which may be missing here, and are of no use in a scratch database.
const CONFIGURATION_NOT_NEEDED: [&str; 2] = ["bgw_job", "bgw_policy_chunk_stats"];

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
    let hypertable = find(database, name)?;
    let one = One {
        restore,
        database,
        target: &target,
        name,
        hypertable,
        range: Range::of(hypertable, name, restore.options.hypertable.as_ref())?,
        fills: plan.filled.contains(name),
    };
    let scratch = scratch::make(restore, outside, database, None).await?;
    let result = one.run(&restore.target.with_database(&scratch), attention).await;
    // The scratch database goes in any case; what went wrong before matters more than a failure to drop it.
    let dropped = scratch::remove(restore, outside, &scratch).await;
    let restored = result?;
    dropped?;
    Ok(restored)
}

/// A hypertable in the inventory.
///
/// # Errors
/// It isn't there.
pub(crate) fn find<'a>(
    database: &'a DatabaseManifest,
    name: &QualifiedName,
) -> Result<&'a Hypertable, DumpError> {
    let mut hypertables = database
        .timescaledb
        .iter()
        .flat_map(|inventory| &inventory.hypertables);
    hypertables
        .find(|table| table.schema == name.schema && table.name == name.name)
        .ok_or_else(|| DumpError::Internal(format!("hypertable {name} has no inventory")))
}

/// What the dump holds of the range, at most: whole chunks are counted.
pub(crate) fn rows_at_most(database: &DatabaseManifest, hypertable: &Hypertable, range: &Range) -> u64 {
    chunks(database, &places(database, hypertable, range))
        .map(|relation| match relation.kind {
            RelationKind::Chunk => relation.rows,
            RelationKind::CompressedChunk => relation.compressed_rows.unwrap_or(0),
            _ => 0,
        })
        .sum()
}

/// Those of the relations that hold the hypertable's rows.
fn chunks<'a>(
    database: &'a DatabaseManifest,
    places: &'a BTreeSet<u32>,
) -> impl Iterator<Item = &'a Relation> {
    let relation = |place: &u32| database.relations.get(*place as usize);
    let relations = places.iter().filter_map(relation);
    relations.filter(|relation| relation.kind != RelationKind::Configuration)
}

/// Whether rows of a hypertable that is there are in the way, which `--overwrite` deletes.
///
/// # Errors
/// [`DumpError::Refused`]: there are some and they weren't given up, or the columns don't fit.
pub(crate) async fn look_into(
    session: &mut Session,
    database: &DatabaseManifest,
    name: &QualifiedName,
    range: &Range,
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
    let any = holds_any(session, name, range.condition().as_deref())
        .await
        .context(context)?;
    if any && !overwrite {
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
    Ok(any)
}

/// Whether a table has rows that fit.
async fn holds_any(
    session: &mut Session,
    name: &QualifiedName,
    condition: Option<&str>,
) -> Result<bool, PgError> {
    let sql = format!(
        "SELECT EXISTS (SELECT FROM {}{})",
        name.quoted(),
        filter(condition)
    );
    let rows = session.query(&sql).await?;
    Ok(rows.first().map(|row| row.get(0)).transpose()?.unwrap_or(false))
}

fn filter(condition: Option<&str>) -> String {
    condition
        .map(|condition| format!(" WHERE {condition}"))
        .unwrap_or_default()
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

/// The chunks that the range touches, their compressed relations, and the catalog.
pub(crate) fn places(database: &DatabaseManifest, hypertable: &Hypertable, range: &Range) -> BTreeSet<u32> {
    let mut wanted: BTreeSet<QualifiedName> = BTreeSet::new();
    for chunk in &hypertable.chunks {
        if !range.touches(chunk.range_start_internal, chunk.range_end_internal) {
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
    needed.map(|(place, _)| place).collect()
}

struct One<'a> {
    restore: &'a Restore<'a>,
    database: &'a DatabaseManifest,
    target: &'a Target,
    name: &'a QualifiedName,
    hypertable: &'a Hypertable,
    range: Range,
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
        let places = places(self.database, self.hypertable, &self.range);
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
        let filled = self.fill_table(scratch, attention).await;
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
            relations: chunks(self.database, &places).count() as u64,
            rows: filled?,
            counted: 1,
        })
    }

    /// The rows, and where there is no table yet, the table with all that belongs to it.
    async fn fill_table(&self, scratch: &Target, attention: &mut Vec<String>) -> Result<u64, DumpError> {
        if self.fills {
            return self.flow(scratch, attention).await;
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
        let rows = self.flow(scratch, attention).await?;
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
            id: restore.id.clone(),
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
    async fn flow(&self, scratch: &Target, attention: &mut Vec<String>) -> Result<u64, DumpError> {
        let restore = self.restore;
        restore.progress.set_phase(format!("{}: loading rows", self.name));
        let context = || format!("loading rows of {}", self.name);
        let columns = self.columns();
        let encoding = client_encoding(self.database);
        let mut source = connect(scratch).await?;
        let settings = format!(
            "SET client_encoding = {}; {}",
            quote_literal(encoding),
            catalog::READ_SETTINGS
        );
        source.execute(&settings).await.context(context)?;
        let condition = self.range.condition();
        let filter = filter(condition.as_deref());
        let sought = condition.as_deref();
        // Rows that are there aren't given up for nothing.
        if sought.is_some() && !holds_any(&mut source, self.name, sought).await.context(context)? {
            attention.push(self.nothing_in_range());
            source.close().await;
            return Ok(0);
        }
        let mut sink = loading_session(self.target, encoding).await?;
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

    /// Its columns, as SQL lists them.
    fn columns(&self) -> &str {
        let mut relations = self.database.relations.iter();
        let relation = relations.find(|relation| relation.name == *self.name);
        relation.map_or("", |relation| relation.columns.as_str())
    }

    fn nothing_in_range(&self) -> String {
        let left = if self.fills {
            "and nothing in it was changed"
        } else {
            "and it was made empty"
        };
        format!(
            "{}, {left} in database '{}'",
            nothing_in_range(self.name, &self.range),
            self.target.database()
        )
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

/// For the user.
pub(crate) fn nothing_in_range(name: &QualifiedName, range: &Range) -> String {
    format!("the dump has no rows of {name} {range}")
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
