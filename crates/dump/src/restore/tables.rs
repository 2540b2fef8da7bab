//! Single tables into a database that goes on living.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use pgkeep_base::BackupId;
use pgkeep_pg::{Session, Target};
use pgkeep_repository::Repository;
use pgkeep_repository::object::ObjectRef;

use crate::error::{Context, DumpError};
use crate::limits;
use crate::manifest::{DatabaseManifest, DumpManifest, QualifiedName};
use crate::restore::archive::{Archive, ArchiveOptions, Entry};
use crate::restore::database::archive_major;
use crate::restore::load::{self, LoadPhase, client_encoding, loading_session};
use crate::restore::options::{RestoreOptions, RestoredDatabase};
use crate::restore::part::PartPlan;
use crate::restore::selection::{Picker, Selection};
use crate::restore::{Restore, connect, counts, foreign_keys, left_out};

/// Restores the chosen tables with their indexes, constraints, triggers, sequences and privileges. What they need and
/// don't own (types, functions) must be there; keys to other tables are made where those are there.
///
/// # Errors
/// Whatever PostgreSQL, pg_restore and the store say.
pub(crate) async fn restore(
    restore: &Restore<'_>,
    plan: &PartPlan<'_>,
    attention: &mut Vec<String>,
) -> Result<RestoredDatabase, DumpError> {
    let (database, selection) = (plan.database, &plan.selection);
    let target = &restore.target.with_database(&plan.target_name);
    let mut session = connect(target).await?;
    restore
        .progress
        .set_phase(format!("{}: making tables", target.database()));
    let mut archive = fetch_archive(restore, database).await?;
    let dependents = read_text(restore, &database.dependents).await?;
    let schemas = missing_schemas(&mut session, selection).await?;
    let mut selection = selection.clone();
    selection.without_rows = left_out::oids_without_rows(database, &archive.entries);
    let picker = Picker::new(&archive.entries, &selection, &dependents, schemas);
    let context = || format!("making tables in database '{}'", target.database());
    archive
        .restore(target, Some("pre-data"), 1, |entry| picker.picks(entry))
        .await?
        .context(context)?;
    restore
        .progress
        .set_phase(format!("{}: loading rows", target.database()));
    let phase = load_phase(restore, database, target, selection.places.clone());
    let rows = load::load_all(phase).await?;
    set_sequences(restore, database, target, &selection).await?;
    restore
        .progress
        .set_phase(format!("{}: building indexes and constraints", target.database()));
    archive.session_settings = vec!["synchronous_commit=off".to_owned()];
    let context = || {
        format!(
            "building indexes and constraints in database '{}'",
            target.database()
        )
    };
    let jobs = restore.options.jobs;
    archive
        .restore(target, Some("post-data"), jobs, |entry| picker.picks(entry))
        .await?
        .context(context)?;
    let counted = counts::compare(database, target, jobs, Some(&selection.places)).await?;
    if restore.options.analyze {
        for table in &selection.tables {
            let sql = format!("ANALYZE {}", table.quoted());
            session
                .execute(&sql)
                .await
                .context(|| "collecting the planner's statistics".to_owned())?;
        }
    }
    let wanted = |entry: &Entry| picker.outside_keys.contains(&entry.oid);
    foreign_keys::attempt(&archive, &mut session, wanted, false, attention).await?;
    session.close().await;
    Ok(RestoredDatabase {
        name: database.name.clone(),
        target_name: target.database().to_owned(),
        relations: selection.places.len() as u64,
        rows,
        counted,
    })
}

fn load_phase(
    restore: &Restore<'_>,
    database: &DatabaseManifest,
    target: &Target,
    places: BTreeSet<u32>,
) -> LoadPhase {
    LoadPhase {
        repository: restore.repository.clone(),
        id: restore.id.clone(),
        database: Arc::new(database.clone()),
        target: target.clone(),
        jobs: restore.options.jobs,
        done: BTreeSet::new(),
        wanted: Some(places),
        special_storage: BTreeSet::new(),
        progress: Arc::clone(restore.progress),
    }
}

/// The schema's archive, with owners and privileges as the options have it.
pub(crate) async fn fetch_archive(
    restore: &Restore<'_>,
    database: &DatabaseManifest,
) -> Result<Archive, DumpError> {
    fetch_archive_as(restore, database, true).await
}

/// The same; `with_roles` is off for a database in which roles mean nothing.
pub(crate) async fn fetch_archive_as(
    restore: &Restore<'_>,
    database: &DatabaseManifest,
    with_roles: bool,
) -> Result<Archive, DumpError> {
    restore.schemas().archive(database, with_roles).await
}

pub(crate) async fn read_text(restore: &Restore<'_>, object: &ObjectRef) -> Result<String, DumpError> {
    restore.schemas().text(object).await
}

/// What is needed to read of a dump what isn't rows.
pub(crate) struct SchemaReader<'a> {
    pub repository: &'a Repository,
    pub id: &'a BackupId,
    pub manifest: &'a DumpManifest,
    pub options: &'a RestoreOptions,
    /// The target's major version.
    pub server_major: u32,
}

impl SchemaReader<'_> {
    /// The schema's archive.
    ///
    /// # Errors
    /// As [`Archive::fetch`].
    pub async fn archive(&self, database: &DatabaseManifest, with_roles: bool) -> Result<Archive, DumpError> {
        let options = self.options;
        let mut archive = Archive::fetch(
            self.repository,
            self.id,
            &database.schema,
            archive_major(database, self.manifest.server_version_num / 10_000),
            &options.programs,
            options.work_directory.as_deref(),
            ArchiveOptions {
                owners: options.owners && with_roles,
                privileges: options.privileges && with_roles,
                tablespaces: false,
                server_major: self.server_major,
            },
        )
        .await?;
        archive.left_out = left_out::lines(database, &archive.entries);
        Ok(archive)
    }

    /// An object that is text.
    ///
    /// # Errors
    /// The store's, the key's; it isn't UTF-8.
    pub async fn text(&self, object: &ObjectRef) -> Result<String, DumpError> {
        let contents = self.repository.contents(self.id, object).await?;
        String::from_utf8(contents.collect(limits::TEXT.size_max()).await?).map_err(|_| DumpError::Object {
            name: object.name.clone(),
            reason: "it isn't UTF-8".to_owned(),
        })
    }
}

pub(crate) async fn missing_schemas(
    session: &mut Session,
    selection: &Selection,
) -> Result<HashSet<String>, DumpError> {
    let context = || "listing the schemas".to_owned();
    let rows = session
        .query("SELECT nspname FROM pg_catalog.pg_namespace")
        .await
        .context(context)?;
    let mut schemas: HashSet<String> = selection
        .tables
        .iter()
        .chain(&selection.hypertables)
        .map(|table| table.schema.clone())
        .collect();
    for row in rows {
        schemas.remove(&row.get::<String>(0).context(context)?);
    }
    Ok(schemas)
}

/// Sets the sequences that belong to the restored tables.
async fn set_sequences(
    restore: &Restore<'_>,
    database: &DatabaseManifest,
    target: &Target,
    selection: &Selection,
) -> Result<(), DumpError> {
    let Some(object) = &database.sequences else {
        return Ok(());
    };
    let context = || "setting the tables' sequences".to_owned();
    let mut session = loading_session(target, client_encoding(database)).await?;
    let script = read_text(restore, object).await?;
    let sql = "SELECT n.nspname, c.relname, rn.nspname, rc.relname FROM pg_catalog.pg_depend d
        JOIN pg_catalog.pg_class c ON c.oid = d.objid AND c.relkind = 'S'
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_catalog.pg_class rc ON rc.oid = d.refobjid JOIN pg_catalog.pg_namespace rn ON rn.oid = rc.relnamespace
        WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.deptype IN ('a', 'i')
          AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass";
    let mut wanted: HashSet<String> = HashSet::new();
    for row in session.query(sql).await.context(context)? {
        let owner = QualifiedName {
            schema: row.get(2).context(context)?,
            name: row.get(3).context(context)?,
        };
        if selection.tables.contains(&owner) {
            let sequence = QualifiedName {
                schema: row.get(0).context(context)?,
                name: row.get(1).context(context)?,
            };
            wanted.insert(format!(
                "SELECT pg_catalog.setval({}, ",
                pgkeep_base::quote_literal(&sequence.quoted())
            ));
        }
    }
    // A name may hold line feeds, so the script is taken apart as SQL.
    let statements = pgkeep_pg::script::statements(&script).map_err(|error| DumpError::Object {
        name: object.name.clone(),
        reason: error.to_string(),
    })?;
    for statement in statements {
        if wanted
            .iter()
            .any(|beginning| statement.trim_start().starts_with(beginning))
        {
            session.execute(statement).await.context(context)?;
        }
    }
    session.close().await;
    Ok(())
}
