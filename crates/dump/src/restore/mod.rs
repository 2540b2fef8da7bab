//! Bringing a dump back. The order is in docs/design-dump.md, "Restore"; each step says why it stands where it does.

mod archive;
mod complaints;
mod counts;
mod database;
mod foreign_keys;
mod foresee;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod hypertable;
mod left_out;
mod load;
mod mark;
mod options;
mod part;
mod plan;
mod prepare;
mod properties;
mod range;
mod replace;
mod roles;
pub(crate) mod scratch;
mod secrets;
mod selection;
mod session;
mod tables;
mod undo;
mod unfinished;
mod whole;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use pgkeep_base::BackupId;
use pgkeep_pg::{Session, Target};
use pgkeep_repository::Repository;
use pgkeep_timescale::Severity;

pub use options::{HypertableRange, RestoreOptions, RestoreReport, RestoredDatabase};
pub use plan::{
    PlannedDatabase, PlannedRange, PlannedTable, RestorePlan, TableAction, TargetDatabase, TargetPlan, plan,
};
pub use range::RangeBound;

pub(crate) use archive::{Archive, ArchiveOptions};
pub(crate) use complaints::without_refused_settings;
pub(crate) use database::archive_major;
pub(crate) use left_out::lines as lines_left_out;
pub(crate) use load::client_encoding;
pub(crate) use mark::{MARK_SCHEMA, read as read_mark, refuse as refuse_unfinished};
pub(crate) use plan::choose_databases;
pub(crate) use prepare::contents;
pub(crate) use selection::{Selection, select};
pub(crate) use session::connect;

use crate::error::{Context, DumpError};
use crate::limits;
use crate::manifest::{DatabaseManifest, DumpManifest};
use crate::presence;
use pgkeep_base::Progress;
use tables::SchemaReader;
use undo::Undo;

/// `invalid_catalog_name`
const SQLSTATE_NO_DATABASE: &str = "3D000";

/// Everything the steps share.
pub(crate) struct Restore<'a> {
    pub repository: &'a Repository,
    pub id: &'a BackupId,
    pub manifest: &'a DumpManifest,
    pub target: &'a Target,
    pub options: &'a RestoreOptions,
    pub progress: &'a Arc<Progress>,
    /// The target's major version.
    pub server_major: u32,
    /// The database being restored, for the error's hint.
    current: Mutex<Option<String>>,
    /// What goes when the user gives up.
    undo: Mutex<Undo>,
}

/// Looks whether the target would take the restore, without changing anything: its version, TimescaleDB, what is in
/// the way. Returns what would be done there.
///
/// # Errors
/// What stands against it, with the mend: what the restore itself would refuse.
pub async fn check(
    repository: &Repository,
    id: &BackupId,
    manifest: &DumpManifest,
    target: &Target,
    options: &RestoreOptions,
) -> Result<TargetPlan, DumpError> {
    examine(repository, id, manifest, target, options, true).await
}

/// The same; `foresees` what otherwise shows at the end of the restore, for which the schema has to be fetched.
async fn examine(
    repository: &Repository,
    id: &BackupId,
    manifest: &DumpManifest,
    target: &Target,
    options: &RestoreOptions,
    foresees: bool,
) -> Result<TargetPlan, DumpError> {
    let chosen = plan::choose(manifest, options)?;
    let mut planned = TargetPlan::default();
    let mut session = outside(manifest, target, options, &mut planned.notes).await?;
    check_server(&session, manifest)?;
    // Before anything is dropped or made.
    for (database, _) in &chosen {
        let major = archive_major(database, manifest.server_version_num / 10_000);
        let context = || format!("looking for pg_restore of PostgreSQL {major} or later");
        pgkeep_pg::programs::find("pg_restore", major, &options.programs)
            .await
            .context(context)?;
    }
    let schemas = foresees.then(|| SchemaReader {
        repository,
        id,
        manifest,
        options,
        server_major: session.server_version_num() / 10_000,
    });
    if options.is_partial() {
        let part = part::look_for_chosen(&mut session, target, manifest, options).await?;
        presence::require_selected(repository, id, part.database, &part.selection).await?;
        plan_part(&mut session, &part, schemas.as_ref(), target, &mut planned).await?;
        session.close().await;
        return Ok(planned);
    }
    let databases = chosen.iter().map(|(database, _)| *database);
    presence::require_databases(repository, id, manifest, databases).await?;
    if options.roles
        && let Some(globals) = read_globals(repository, id, manifest).await?
    {
        let used = used_roles(&chosen, options);
        let roles = roles::plan(&mut session, &globals, used.as_ref()).await?;
        planned.roles = roles.create.into_iter().collect();
        planned.roles_left_out = roles.left_out;
    }
    let completed = whole::completed(&mut session, target, id, &chosen, options).await?;
    for (database, target_name) in &chosen {
        if completed.contains_key(target_name) {
            planned.databases.push(TargetDatabase {
                name: database.name.clone(),
                target_name: target_name.clone(),
                does: "is complete, and left as it is".to_owned(),
                tables: Vec::new(),
            });
            continue;
        }
        let names = (*database, target_name.as_str());
        if database.filters.selects_a_part() {
            let part = part::look_for_filtered(&mut session, target, id, names, options).await?;
            plan_part(&mut session, &part, schemas.as_ref(), target, &mut planned).await?;
            continue;
        }
        check_timescaledb(&mut session, database, options.roles).await?;
        let way = prepare::state(&mut session, target, id, &chosen, names, options).await?;
        planned.databases.push(TargetDatabase {
            name: database.name.clone(),
            target_name: target_name.clone(),
            does: way.describe(),
            tables: Vec::new(),
        });
    }
    session.close().await;
    Ok(planned)
}

/// What of a part is done, and what of it can be foreseen to fail.
async fn plan_part(
    session: &mut Session,
    part: &part::PartPlan<'_>,
    schemas: Option<&SchemaReader<'_>>,
    target: &Target,
    planned: &mut TargetPlan,
) -> Result<(), DumpError> {
    check_part(session, part).await?;
    planned.databases.push(part.describe());
    if let Some(schemas) = schemas {
        foresee::foreign_keys(schemas, part, target, planned).await?;
    }
    Ok(())
}

/// A hypertable goes through a scratch database, which has TimescaleDB in the dumped version, and no jobs.
async fn check_part(session: &mut Session, part: &part::PartPlan<'_>) -> Result<(), DumpError> {
    if part.selection.hypertables.is_empty() {
        return Ok(());
    }
    check_timescaledb(session, part.database, true).await
}

/// Restores into a running server.
///
/// # Errors
/// Everything is checked before anything is written; what fails later leaves the database marked, and the error says
/// how to go on.
pub async fn restore(
    repository: &Repository,
    id: &BackupId,
    manifest: &DumpManifest,
    target: &Target,
    options: &RestoreOptions,
    progress: &Arc<Progress>,
    cancelled: impl Future<Output = ()>,
) -> Result<RestoreReport, DumpError> {
    let begun = Instant::now();
    progress.set_phase("checking the target");
    examine(repository, id, manifest, target, options, false).await?;
    let mut notes = Vec::new();
    let mut session = outside(manifest, target, options, &mut notes).await?;
    let outside = session.target().clone();
    let restore = Restore {
        repository,
        id,
        manifest,
        target,
        options,
        progress,
        server_major: session.server_version_num() / 10_000,
        current: Mutex::new(None),
        undo: Mutex::default(),
    };
    let mut report = RestoreReport {
        id: id.clone(),
        databases: Vec::new(),
        roles_created: Vec::new(),
        roles_left_out: Vec::new(),
        attention: Vec::new(),
        notes,
        elapsed: begun.elapsed(),
    };
    let restored = tokio::select! {
        result = everything(&restore, &mut session, &mut report) => result,
        () = cancelled => Err(restore.unfinished(undo::after_interruption(&restore, &outside).await)),
    };
    restored?;
    session.close().await;
    report.elapsed = begun.elapsed();
    Ok(report)
}

/// Connects to a database that isn't about to be dropped. One that this restore makes, or `postgres`, may be missing: a server
/// without it takes a restore like any other, and is told.
async fn outside(
    manifest: &DumpManifest,
    target: &Target,
    options: &RestoreOptions,
    notes: &mut Vec<String>,
) -> Result<Session, DumpError> {
    let chosen = plan::choose(manifest, options)?;
    let is_chosen = |name: &str| chosen.iter().any(|(_, target_name)| target_name == name);
    // The mere beginning of a restore is replaced by one that goes on.
    let replaces = options.overwrite || options.resume;
    let names = [target.database(), "postgres"].into_iter();
    for name in names.filter(|name| !(replaces && is_chosen(name))) {
        match connect(&target.with_database(name)).await {
            Err(error)
                if error.sqlstate() == Some(SQLSTATE_NO_DATABASE)
                    && (name == "postgres" || is_chosen(name)) =>
            {
                notes.push(format!(
                    "the server has no database '{name}' to connect to, so another one is used for that"
                ));
            }
            connected => return connected,
        }
    }
    connect(&target.with_database("template1")).await
}

async fn everything(
    restore: &Restore<'_>,
    session: &mut Session,
    report: &mut RestoreReport,
) -> Result<(), DumpError> {
    let (manifest, options) = (restore.manifest, restore.options);
    let omissions = manifest.omissions.iter();
    report
        .attention
        .extend(omissions.map(|omission| format!("the dump does not hold {omission}")));
    scratch::sweep(session, &mut report.attention).await?;
    if options.is_partial() {
        let part = part::look_for_chosen(session, restore.target, manifest, options).await?;
        let restored = part::restore(restore, session, part, &mut report.attention).await;
        let restored = restored.map_err(|source| restore.unfinished_tables(source))?;
        report.databases.push(restored);
        return Ok(());
    }
    let chosen = plan::choose(manifest, options)?;
    if options.roles {
        restore_roles(restore, session, &chosen, report).await?;
    }
    let relations = chosen.iter().flat_map(|(database, _)| &database.relations);
    let bytes: u64 = relations.map(|relation| relation.plain_bytes).sum();
    restore
        .progress
        .bytes_total
        .store(bytes, std::sync::atomic::Ordering::Relaxed);
    every_database(restore, session, &chosen, report).await
}

/// One after the other, and then all of them are complete.
async fn every_database(
    restore: &Restore<'_>,
    session: &mut Session,
    chosen: &whole::Chosen<'_>,
    report: &mut RestoreReport,
) -> Result<(), DumpError> {
    let (target, options) = (restore.target, restore.options);
    let completed = whole::completed(session, target, restore.id, chosen, options).await?;
    let mut marked: Vec<String> = Vec::new();
    for (database, target_name) in chosen {
        if let Some(has_mark) = completed.get(target_name) {
            report.notes.push(whole::note(target_name));
            marked.extend(has_mark.then(|| target_name.clone()));
            continue;
        }
        let attention = &mut report.attention;
        if database.filters.selects_a_part() {
            let names = (*database, target_name.as_str());
            let part = part::look_for_filtered(session, target, restore.id, names, options).await?;
            let restored = part::restore(restore, session, part, attention).await;
            let restored = restored.map_err(|source| restore.unfinished_tables(source))?;
            report.databases.push(restored);
        } else {
            restore.set_current(Some(target_name));
            let restored = database::restore(restore, session, database, target_name, attention).await;
            let restored = restored.map_err(|source| restore.unfinished(source))?;
            report.databases.push(restored);
            restore.set_current(None);
        }
        marked.push(target_name.clone());
    }
    let finished = whole::finish(target, chosen, &marked, |name| restore.set_current(Some(name))).await;
    finished.map_err(|source| restore.unfinished(source))
}

impl Restore<'_> {
    /// How to read the schema.
    pub(crate) fn schemas(&self) -> SchemaReader<'_> {
        SchemaReader {
            repository: self.repository,
            id: self.id,
            manifest: self.manifest,
            options: self.options,
            server_major: self.server_major,
        }
    }

    /// Notes what goes when the user gives up.
    pub(crate) fn note_undo(&self, change: impl FnOnce(&mut Undo)) {
        change(&mut self.undo.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn undo(&self) -> Undo {
        self.undo.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_current(&self, name: Option<&String>) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = name.cloned();
    }

    /// An error with how to go on, when tables were begun.
    fn unfinished_tables(&self, source: DumpError) -> DumpError {
        match self.undo().tables {
            Some(made) if self.options.is_partial() => unfinished::of_tables(self.id, &made.database, source),
            Some(made) => unfinished::of_database(self.id, &made.database, source),
            None => source,
        }
    }

    /// An error with how to go on, when a database was begun.
    fn unfinished(&self, source: DumpError) -> DumpError {
        let current = self
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        match current {
            Some(target_name) => unfinished::of_database(self.id, &target_name, source),
            None => source,
        }
    }
}

fn check_server(session: &Session, manifest: &DumpManifest) -> Result<(), DumpError> {
    let (ours, theirs) = (
        manifest.server_version_num / 10_000,
        session.server_version_num() / 10_000,
    );
    if theirs < ours {
        return Err(DumpError::Target {
            message: format!("the target is PostgreSQL {theirs}, and the dump is of PostgreSQL {ours}"),
            hint: Some(format!(
                "restore into PostgreSQL {ours} or later: a schema can't be taken to an older version safely"
            )),
        });
    }
    Ok(())
}

/// Before anything is written: the library, the version, the edition (see docs/design-dump.md).
async fn check_timescaledb(
    session: &mut Session,
    database: &DatabaseManifest,
    roles_come: bool,
) -> Result<(), DumpError> {
    let Some(inventory) = &database.timescaledb else {
        return Ok(());
    };
    let error = |source| DumpError::Timescale {
        database: database.name.clone(),
        source,
    };
    let findings = pgkeep_timescale::check_target(session, inventory)
        .await
        .map_err(error)?;
    for finding in findings {
        // The roles come before the database: a missing owner is about to be made.
        let role_comes = roles_come && finding.what.starts_with("the role ");
        if finding.severity == Severity::Blocking && !role_comes {
            return Err(DumpError::Target {
                message: format!(
                    "the target can't take database '{}': {}: {}",
                    database.name, finding.what, finding.why
                ),
                hint: Some(finding.mend),
            });
        }
    }
    Ok(())
}

/// The roles that chosen databases use; none for all of them.
fn used_roles(chosen: &[(&DatabaseManifest, String)], options: &RestoreOptions) -> Option<BTreeSet<String>> {
    if options.all_roles || options.databases.is_empty() {
        return None;
    }
    let mut used = BTreeSet::new();
    for (database, _) in chosen {
        used.extend(database.roles.iter().flatten().cloned());
        // It isn't known of every dump.
        database.roles.as_ref()?;
    }
    Some(used)
}

async fn read_globals(
    repository: &Repository,
    id: &BackupId,
    manifest: &DumpManifest,
) -> Result<Option<String>, DumpError> {
    let Some(globals) = &manifest.globals else {
        return Ok(None);
    };
    let contents = repository.contents(id, globals).await?;
    let bytes = contents.collect(limits::GLOBALS.size_max()).await?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

async fn restore_roles(
    restore: &Restore<'_>,
    session: &mut Session,
    chosen: &[(&DatabaseManifest, String)],
    report: &mut RestoreReport,
) -> Result<(), DumpError> {
    restore.progress.set_phase("roles");
    let globals = read_globals(restore.repository, restore.id, restore.manifest).await?;
    let Some(globals) = globals else {
        return Ok(());
    };
    let used = used_roles(chosen, restore.options);
    let planned = roles::plan(session, &globals, used.as_ref()).await?;
    let restored = roles::restore(session, &globals, &planned).await?;
    report.roles_created = restored.created;
    report.roles_left_out = planned.left_out;
    report.attention.extend(restored.attention);
    Ok(())
}
