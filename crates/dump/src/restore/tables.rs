//! Single tables into a database that goes on living.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use pgkeep_pg::{Session, Target};

use crate::error::{Context, DumpError};
use crate::manifest::{DatabaseManifest, QualifiedName};
use crate::restore::archive::{Archive, ArchiveOptions};
use crate::restore::database::archive_major;
use crate::restore::load::{self, LoadPhase, client_encoding, loading_session};
use crate::restore::options::RestoredDatabase;
use crate::restore::selection::{Picker, Selection};
use crate::restore::{Restore, connect, counts, mark};

/// A list of dependents or sequences.
const TEXT_BYTES_MAX: usize = 256 << 20;

/// Restores the chosen tables with their indexes, constraints, triggers, sequences and privileges. What they need and
/// don't own (types, functions, other tables' keys) must be there.
///
/// # Errors
/// A table exists (without `--overwrite`); whatever PostgreSQL, pg_restore and the store say.
pub(crate) async fn restore(
    restore: &Restore<'_>,
    database: &DatabaseManifest,
    target: &Target,
    selection: &Selection,
) -> Result<RestoredDatabase, DumpError> {
    let mut session = connect(target).await?;
    clear_the_way(restore, &mut session, target, selection).await?;
    mark::make(&mut session, &restore.id.to_string(), &database.name, false).await?;
    restore
        .progress
        .set_phase(format!("{}: making tables", target.database()));
    let mut archive = fetch_archive(restore, database).await?;
    let dependents = read_text(restore, &database.dependents).await?;
    let schemas = missing_schemas(&mut session, selection).await?;
    let picker = Picker::new(&archive.entries, selection, &dependents, schemas);
    let context = || format!("making tables in database '{}'", target.database());
    archive
        .restore(target, Some("pre-data"), 1, |entry| picker.picks(entry))
        .await?
        .context(context)?;
    restore
        .progress
        .set_phase(format!("{}: loading rows", target.database()));
    let phase = LoadPhase {
        repository: restore.repository.clone(),
        prefix: restore.prefix.clone(),
        database: Arc::new(database.clone()),
        target: target.clone(),
        jobs: restore.options.jobs,
        done: BTreeSet::new(),
        wanted: Some(selection.places.clone()),
        special_storage: BTreeSet::new(),
        progress: Arc::clone(restore.progress),
    };
    let rows = load::load_all(phase).await?;
    set_sequences(restore, database, target, selection).await?;
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
    mark::remove(&mut session).await?;
    session.close().await;
    Ok(RestoredDatabase {
        name: database.name.clone(),
        target_name: target.database().to_owned(),
        relations: selection.places.len() as u64,
        rows,
        counted,
    })
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
    let options = &restore.options;
    Archive::fetch(
        restore.repository,
        &restore.prefix,
        &database.schema,
        archive_major(database, restore.manifest.server_version_num / 10_000),
        &options.programs,
        options.work_directory.as_deref(),
        ArchiveOptions {
            owners: options.owners && with_roles,
            privileges: options.privileges && with_roles,
            tablespaces: false,
            server_major: restore.server_major,
        },
    )
    .await
}

pub(crate) async fn read_text(
    restore: &Restore<'_>,
    object: &pgkeep_repository::object::ObjectRef,
) -> Result<String, DumpError> {
    let key = format!("{}{}", restore.prefix, object.name);
    let contents = restore
        .repository
        .contents(&key, object.plain_bytes, Some(&object.hash))
        .await?;
    String::from_utf8(contents.collect(&key, TEXT_BYTES_MAX).await?).map_err(|_| DumpError::Object {
        name: object.name.clone(),
        reason: "it isn't UTF-8".to_owned(),
    })
}

/// Tables of the same name are refused, or dropped when the user gave them up. Never with CASCADE: what depends on
/// them is nobody's to lose.
async fn clear_the_way(
    restore: &Restore<'_>,
    session: &mut Session,
    target: &Target,
    selection: &Selection,
) -> Result<(), DumpError> {
    let context = || "looking for tables of the same name".to_owned();
    if let Some(mark) = mark::read(session).await? {
        if !restore.options.overwrite {
            return Err(DumpError::Refused {
                message: format!(
                    "database '{}' holds an unfinished restore of dump {}",
                    target.database(),
                    mark.dump
                ),
                hint: "give --overwrite to drop the tables and start over".to_owned(),
            });
        }
        mark::remove(session).await?;
    }
    let mut existing = Vec::new();
    for table in &selection.tables {
        let rows = session
            .query_params("SELECT pg_catalog.to_regclass($1)", &[Some(&table.quoted())])
            .await;
        if rows
            .context(context)?
            .first()
            .and_then(|row| row.text(0))
            .is_some()
        {
            existing.push(table.clone());
        }
    }
    if existing.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = existing.iter().map(QualifiedName::quoted).collect();
    if !restore.options.overwrite {
        return Err(DumpError::Refused {
            message: format!("database '{}' has {} already", target.database(), names.join(", ")),
            hint: "restore into another database with --target-database NAME, or give --overwrite to drop and replace them"
                .to_owned(),
        });
    }
    let sql = format!("DROP TABLE IF EXISTS {}", names.join(", "));
    session
        .execute(&sql)
        .await
        .context(|| "dropping the tables to be replaced".to_owned())?;
    Ok(())
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
