//! After Ctrl-C: what a restore of parts has made and can take back.

use std::time::Duration;

use pgkeep_base::{quote_identifier, quote_literal};
use pgkeep_pg::{Session, Target};

use crate::error::{Context, DumpError};
use crate::manifest::QualifiedName;
use crate::restore::{Restore, connect, mark, prepare};

/// How long taking back may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// What has been made.
#[derive(Debug, Clone, Default)]
pub(crate) struct Undo {
    /// A scratch database.
    pub scratch: Option<String>,
    /// A database, for the chosen tables.
    pub database: Option<String>,
    /// The chosen tables, in a database that was there.
    pub tables: Option<MadeTables>,
}

/// Tables in a database that goes on living.
#[derive(Debug, Clone)]
pub(crate) struct MadeTables {
    /// The database.
    pub database: String,
    /// The tables; none of them was there before.
    pub tables: Vec<QualifiedName>,
    /// Schemas made for them.
    pub schemas: Vec<String>,
    /// Tables of the same name were dropped: there is no way back, so the mark stays.
    pub replaced: bool,
}

impl Undo {
    fn is_empty(&self) -> bool {
        self.scratch.is_none() && self.database.is_none() && self.tables.is_none()
    }

    /// What does by hand what couldn't be done.
    fn commands(&self) -> String {
        let databases = self.scratch.iter().chain(&self.database);
        let mut commands: Vec<String> = databases
            .map(|name| format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quote_identifier(name)))
            .collect();
        if let (Some(made), None) = (&self.tables, &self.database) {
            commands.push(format!("in database '{}': {}", made.database, made.statements()));
        }
        commands.join("; ")
    }
}

impl MadeTables {
    /// pg_restore is gone, but a session of it that builds an index only finds out when that is done. It is called as ours are.
    async fn end_sessions(&self, session: &mut Session) -> Result<(), DumpError> {
        let names: Vec<String> = self
            .tables
            .iter()
            .map(|table| format!("pg_catalog.to_regclass({})", quote_literal(&table.quoted())))
            .collect();
        let sql = format!(
            "SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity a
             WHERE a.datname = pg_catalog.current_database() AND a.usename = CURRENT_USER AND a.pid <> pg_catalog.pg_backend_pid()
               AND a.application_name = pg_catalog.current_setting('application_name')
               AND EXISTS (SELECT FROM pg_catalog.pg_locks l WHERE l.pid = a.pid AND l.relation IN ({}))",
            names.join(", ")
        );
        let context = || "ending the sessions of pg_restore".to_owned();
        session.execute(&sql).await.context(context)?;
        Ok(())
    }

    async fn drop(&self, target: &Target) -> Result<(), DumpError> {
        let context = || format!("dropping half-restored tables in database '{}'", self.database);
        let mut session = connect(target).await?;
        let tables: Vec<String> = self.tables.iter().map(QualifiedName::quoted).collect();
        if !tables.is_empty() {
            self.end_sessions(&mut session).await?;
            let drop = format!("DROP TABLE IF EXISTS {}", tables.join(", "));
            session.execute(&drop).await.context(context)?;
        }
        for schema in &self.schemas {
            // One that holds something by now is somebody else's, too.
            let drop = format!("DROP SCHEMA IF EXISTS {}", quote_identifier(schema));
            if let Err(error) = session.execute(&drop).await {
                tracing::debug!(%error, schema, "a schema stays");
            }
        }
        let drop = format!("DROP SCHEMA IF EXISTS {} CASCADE", mark::MARK_SCHEMA);
        session.execute(&drop).await.context(context)?;
        session.close().await;
        Ok(())
    }

    /// For whoever does it by hand. Never with CASCADE, but for the mark.
    fn statements(&self) -> String {
        let tables: Vec<String> = self.tables.iter().map(QualifiedName::quoted).collect();
        let mut statements = Vec::new();
        if !tables.is_empty() {
            statements.push(format!("DROP TABLE IF EXISTS {}", tables.join(", ")));
        }
        let schemas = self.schemas.iter().map(String::as_str).chain([mark::MARK_SCHEMA]);
        statements.extend(schemas.map(|schema| {
            let cascade = if schema == mark::MARK_SCHEMA {
                " CASCADE"
            } else {
                ""
            };
            format!("DROP SCHEMA IF EXISTS {}{cascade}", quote_identifier(schema))
        }));
        statements.join("; ")
    }
}

/// Takes back what an interrupted restore of parts made, and gives the error that says how it ended.
pub(crate) async fn after_interruption(restore: &Restore<'_>, outside: &Target) -> DumpError {
    let undo = restore.undo();
    if undo.is_empty() {
        return DumpError::Interrupted;
    }
    restore.progress.set_phase("cleaning up");
    let taken_back = tokio::time::timeout(DEADLINE, take_back(restore, outside, &undo)).await;
    let made = undo.tables.as_ref();
    let unfinished = |hint: String| DumpError::Unfinished {
        database: made.map_or_else(String::new, |made| made.database.clone()),
        source: Box::new(DumpError::Interrupted),
        hint,
    };
    match taken_back {
        Ok(Ok(())) if undo.database.is_none() && made.is_some_and(|made| made.replaced) => unfinished(
            "the tables that were to be replaced are gone: repeat the restore with --overwrite".to_owned(),
        ),
        Ok(Ok(())) => DumpError::Interrupted,
        Ok(Err(error)) => {
            tracing::warn!(%error, "not all that the restore made is taken back");
            unfinished(format!("remove what it made: {}", undo.commands()))
        }
        Err(_) => unfinished(format!("remove what it made: {}", undo.commands())),
    }
}

async fn take_back(restore: &Restore<'_>, outside: &Target, undo: &Undo) -> Result<(), DumpError> {
    let mut session = connect(outside).await?;
    for name in undo.scratch.iter().chain(&undo.database) {
        prepare::drop_database_if_exists(&mut session, name).await?;
    }
    session.close().await;
    if let (Some(made), None) = (&undo.tables, &undo.database)
        && !made.replaced
    {
        made.drop(&restore.target.with_database(&made.database)).await?;
    }
    Ok(())
}
