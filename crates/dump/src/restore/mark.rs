//! The mark of an unfinished restore: a schema in the target database that says what is done. It goes when all is, in every
//! database of the restore (`whole.rs`).

use std::collections::BTreeSet;

use pgkeep_base::{quote_identifier, quote_literal};
use pgkeep_pg::{PgError, Session};

use crate::error::{Context, DumpError};
use crate::manifest::QualifiedName;

/// The schema's name.
pub const MARK_SCHEMA: &str = "pgkeep_restore";

/// Steps that are noted when they are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The pre-data section is there.
    PreData,
    /// The configuration tables are loaded.
    Configuration,
    /// All rows are loaded.
    Data,
    /// Sequences are set.
    Sequences,
    /// The post-data section has been begun. (It isn't one transaction.)
    PostDataBegun,
    /// Indexes and constraints are there.
    PostData,
    /// Large objects are there.
    LargeObjects,
    /// The database is complete; others of the same restore may not be.
    Complete,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::PreData => "pre-data",
            Self::Configuration => "configuration",
            Self::Data => "data",
            Self::Sequences => "sequences",
            Self::PostDataBegun => "post-data begun",
            Self::PostData => "post-data",
            Self::LargeObjects => "large objects",
            Self::Complete => "complete",
        }
    }
}

/// What an unfinished restore has done.
#[derive(Debug, Clone, Default)]
pub struct Mark {
    /// The dump it restores.
    pub dump: String,
    /// Its database's name in the dump.
    pub database: String,
    /// The whole database is the restore's, not only some tables in it. Only such a one may be dropped to start over.
    pub whole: bool,
    steps: BTreeSet<String>,
    /// Relations loaded, by place.
    pub relations: BTreeSet<u32>,
    /// Tables that a restore of single tables has made, or was about to; none of them was there before.
    pub made: BTreeSet<QualifiedName>,
    /// Databases that are complete, by their names in the dump and in the target: of the restore whose marks are being taken
    /// away, which some of them have lost already.
    pub completed: BTreeSet<(String, String)>,
}

impl Mark {
    /// Whether a step is done.
    pub fn has(&self, step: Step) -> bool {
        self.steps.contains(step.name())
    }

    /// Whether only others of the same restore are unfinished.
    pub fn is_complete(&self) -> bool {
        self.has(Step::Complete)
    }
}

/// Makes the mark.
///
/// # Errors
/// PostgreSQL's.
pub async fn make(session: &mut Session, dump: &str, database: &str, whole: bool) -> Result<(), DumpError> {
    let sql = format!(
        "CREATE SCHEMA {MARK_SCHEMA};
         CREATE TABLE {MARK_SCHEMA}.restore (dump text NOT NULL, database text NOT NULL, whole boolean NOT NULL, begun_at timestamptz NOT NULL DEFAULT now());
         CREATE TABLE {MARK_SCHEMA}.step (name text PRIMARY KEY, done_at timestamptz NOT NULL DEFAULT now());
         CREATE TABLE {MARK_SCHEMA}.relation (place bigint NOT NULL, rows bigint NOT NULL);
         COMMENT ON SCHEMA {MARK_SCHEMA} IS 'pgkeep: this database is being restored and is not complete';
         INSERT INTO {MARK_SCHEMA}.restore (dump, database, whole) VALUES ({}, {}, {whole})",
        quote_literal(dump),
        quote_literal(database)
    );
    session
        .execute(&sql)
        .await
        .context(|| "marking the database as being restored".to_owned())?;
    Ok(())
}

/// Makes the mark of a restore of single tables, which names them.
///
/// # Errors
/// PostgreSQL's.
pub async fn make_for_tables(
    session: &mut Session,
    dump: &str,
    database: &str,
    tables: &BTreeSet<QualifiedName>,
) -> Result<(), DumpError> {
    make(session, dump, database, false).await?;
    let values: Vec<String> = tables
        .iter()
        .map(|table| {
            format!(
                "({}, {})",
                quote_literal(&table.schema),
                quote_literal(&table.name)
            )
        })
        .collect();
    let sql = format!(
        "CREATE TABLE {MARK_SCHEMA}.made (schema text NOT NULL, name text NOT NULL);
         INSERT INTO {MARK_SCHEMA}.made VALUES {}",
        values.join(", ")
    );
    session
        .execute(&sql)
        .await
        .context(|| "marking the database as being restored".to_owned())?;
    Ok(())
}

/// Reads the mark, where there is one.
///
/// # Errors
/// PostgreSQL's.
pub async fn read(session: &mut Session) -> Result<Option<Mark>, DumpError> {
    let context = || "looking for the mark of an unfinished restore".to_owned();
    if !has_table(session, "restore").await.context(context)? {
        return Ok(None);
    }
    let mut mark = Mark::default();
    let restore = format!("SELECT dump, database, whole FROM {MARK_SCHEMA}.restore");
    for row in session.query(&restore).await.context(context)? {
        mark.dump = row.get(0).context(context)?;
        mark.database = row.get(1).context(context)?;
        mark.whole = row.get(2).context(context)?;
    }
    for row in session
        .query(&format!("SELECT name FROM {MARK_SCHEMA}.step"))
        .await
        .context(context)?
    {
        mark.steps.insert(row.get(0).context(context)?);
    }
    for row in session
        .query(&format!("SELECT DISTINCT place FROM {MARK_SCHEMA}.relation"))
        .await
        .context(context)?
    {
        mark.relations.insert(row.get(0).context(context)?);
    }
    if has_table(session, "made").await.context(context)? {
        let made = format!("SELECT schema, name FROM {MARK_SCHEMA}.made");
        for row in session.query(&made).await.context(context)? {
            mark.made.insert(QualifiedName {
                schema: row.get(0).context(context)?,
                name: row.get(1).context(context)?,
            });
        }
    }
    if has_table(session, "completed").await.context(context)? {
        let completed = format!("SELECT database, target FROM {MARK_SCHEMA}.completed");
        for row in session.query(&completed).await.context(context)? {
            let names = (row.get(0).context(context)?, row.get(1).context(context)?);
            mark.completed.insert(names);
        }
    }
    Ok(Some(mark))
}

async fn has_table(session: &mut Session, name: &str) -> Result<bool, PgError> {
    let exists = format!("SELECT pg_catalog.to_regclass('{MARK_SCHEMA}.{name}') IS NOT NULL");
    let rows = session.query(&exists).await?;
    let found: Option<bool> = rows.first().map(|row| row.get(0)).transpose()?;
    Ok(found == Some(true))
}

/// Refuses to dump a database that is being restored, or that a restore left half-way: by its mark, or by TimescaleDB's
/// restore mode, in which compressed rows can't be seen.
///
/// # Errors
/// [`DumpError::HalfRestored`]; PostgreSQL's.
pub async fn refuse(session: &mut Session, database: &str) -> Result<(), DumpError> {
    if let Some(mark) = read(session).await? {
        if mark.is_complete() {
            return Err(DumpError::HalfRestored {
                database: database.to_owned(),
                what: format!("belongs to an unfinished restore of dump {}", mark.dump),
                mend: format!(
                    "finish it with 'pgkeep restore {} --resume ...'; or, as this database itself is complete, take its mark \
                     away: DROP SCHEMA {MARK_SCHEMA} CASCADE",
                    mark.dump
                ),
            });
        }
        let mend = match mark.whole {
            true => format!(
                "finish it with 'pgkeep restore {} --resume ...', or drop it: DROP DATABASE {}",
                mark.dump,
                quote_identifier(database)
            ),
            false => format!(
                "repeat that restore with --overwrite, or give it up with: DROP SCHEMA {MARK_SCHEMA} CASCADE"
            ),
        };
        return Err(DumpError::HalfRestored {
            database: database.to_owned(),
            what: format!("holds an unfinished restore of dump {}", mark.dump),
            mend,
        });
    }
    let detected = pgkeep_timescale::detect(session).await;
    let extension = detected.map_err(|source| DumpError::Timescale {
        database: database.to_owned(),
        source,
    })?;
    match extension {
        Some(extension) if extension.restoring => Err(DumpError::HalfRestored {
            database: database.to_owned(),
            what: "is in TimescaleDB's restore mode (it is being restored, or a restore stopped)".to_owned(),
            mend: "finish the restore, or end the mode with: SELECT timescaledb_post_restore()".to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Notes a step as done.
///
/// # Errors
/// PostgreSQL's.
pub async fn note(session: &mut Session, step: Step) -> Result<(), DumpError> {
    let sql = format!(
        "INSERT INTO {MARK_SCHEMA}.step (name) VALUES ({}) ON CONFLICT DO NOTHING",
        quote_literal(step.name())
    );
    session
        .execute(&sql)
        .await
        .context(|| "noting the progress".to_owned())?;
    Ok(())
}

/// Notes, in the same transaction, that rows of a relation were loaded.
pub fn relation_done_statement(place: u32, rows: u64) -> String {
    format!("INSERT INTO {MARK_SCHEMA}.relation VALUES ({place}, {rows})")
}

/// Notes that a part of a database is complete, in its mark, or in one that is made for that.
///
/// # Errors
/// PostgreSQL's.
pub async fn note_part(
    session: &mut Session,
    dump: &str,
    database: &str,
    is_marked: bool,
) -> Result<(), DumpError> {
    let context = || "noting that the tables are complete".to_owned();
    session.execute("BEGIN").await.context(context)?;
    if !is_marked {
        make(session, dump, database, false).await?;
    }
    note(session, Step::Complete).await?;
    session.execute("COMMIT").await.context(context)?;
    Ok(())
}

/// Notes that all databases of the restore are complete, given by their names in the dump and in the target.
///
/// # Errors
/// PostgreSQL's.
pub async fn note_completed<'a>(
    session: &mut Session,
    names: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<(), DumpError> {
    let values: Vec<String> = names
        .map(|(database, target)| format!("({}, {})", quote_literal(database), quote_literal(target)))
        .collect();
    let sql = format!(
        "DROP TABLE IF EXISTS {MARK_SCHEMA}.completed;
         CREATE TABLE {MARK_SCHEMA}.completed (database text NOT NULL, target text NOT NULL);
         INSERT INTO {MARK_SCHEMA}.completed VALUES {}",
        values.join(", ")
    );
    session
        .execute(&sql)
        .await
        .context(|| "noting that all databases are complete".to_owned())?;
    Ok(())
}

/// Takes the mark away: the restore is complete.
///
/// # Errors
/// PostgreSQL's.
pub async fn remove(session: &mut Session) -> Result<(), DumpError> {
    let sql = format!("DROP SCHEMA {MARK_SCHEMA} CASCADE");
    session
        .execute(&sql)
        .await
        .context(|| "taking the mark of the restore away".to_owned())?;
    Ok(())
}
