//! The mark of an unfinished restore: a schema in the target database that says what is done. It goes when all is.

use std::collections::BTreeSet;

use pgkeep_base::{quote_identifier, quote_literal};
use pgkeep_pg::Session;

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
}

impl Mark {
    /// Whether a step is done.
    pub fn has(&self, step: Step) -> bool {
        self.steps.contains(step.name())
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
    let exists = format!("SELECT pg_catalog.to_regclass('{MARK_SCHEMA}.restore') IS NOT NULL");
    let rows = session.query(&exists).await.context(context)?;
    if rows
        .first()
        .map(|row| row.get::<bool>(0))
        .transpose()
        .context(context)?
        != Some(true)
    {
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
    let exists = format!("SELECT pg_catalog.to_regclass('{MARK_SCHEMA}.made') IS NOT NULL");
    let rows = session.query(&exists).await.context(context)?;
    let names_tables: Option<bool> = rows.first().map(|row| row.get(0)).transpose().context(context)?;
    if names_tables == Some(true) {
        let made = format!("SELECT schema, name FROM {MARK_SCHEMA}.made");
        for row in session.query(&made).await.context(context)? {
            mark.made.insert(QualifiedName {
                schema: row.get(0).context(context)?,
                name: row.get(1).context(context)?,
            });
        }
    }
    Ok(Some(mark))
}

/// Refuses to dump a database that is being restored, or that a restore left half-way: by its mark, or by TimescaleDB's
/// restore mode, in which compressed rows can't be seen.
///
/// # Errors
/// [`DumpError::HalfRestored`]; PostgreSQL's.
pub async fn refuse(session: &mut Session, database: &str) -> Result<(), DumpError> {
    if let Some(mark) = read(session).await? {
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
