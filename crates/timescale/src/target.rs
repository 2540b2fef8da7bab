//! Can this server take the dump?

use pgkeep_base::{quote_for_shell, quote_identifier, quote_literal};
use pgkeep_pg::{Row, Session};
use serde::{Deserialize, Serialize};

use crate::preload::preload_statement;
use crate::{Inventory, License, TimescaleError};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The restore works, and something needs attention.
    Warning,
    /// The restore would fail, or would lose something: don't begin.
    Blocking,
}

/// Something about the target that doesn't suit the dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What is the matter.
    pub what: String,
    /// Why it matters.
    pub why: String,
    /// The command that mends it.
    pub mend: String,
}

impl Finding {
    fn new(severity: Severity, what: impl Into<String>, why: &str, mend: impl Into<String>) -> Self {
        Self {
            severity,
            what: what.into(),
            why: why.to_owned(),
            mend: mend.into(),
        }
    }
}

/// What the server says about itself. Any database of it will do, one without the extension too.
struct Facts {
    preload_libraries: Option<String>,
    loader_loaded: bool,
    max_background_workers: Option<i64>,
    version_available: bool,
    versions_available: Vec<String>,
    license_setting: Option<String>,
    may_restore: bool,
    may_look_for_files: bool,
}

impl Facts {
    fn from_row(row: &Row) -> Result<Self, TimescaleError> {
        let versions: String = row.get(4)?;
        Ok(Self {
            preload_libraries: row.get(0)?,
            loader_loaded: row.get(1)?,
            max_background_workers: row.get(2)?,
            version_available: row.get(3)?,
            versions_available: versions
                .split(' ')
                .filter(|version| !version.is_empty())
                .map(str::to_owned)
                .collect(),
            license_setting: row.get(5)?,
            may_restore: row.get(6)?,
            may_look_for_files: row.get(7)?,
        })
    }
}

fn facts_sql(version: &str) -> String {
    // pg_settings hides what the role may not see; current_setting would be an error.
    format!(
        "SELECT (SELECT setting FROM pg_settings WHERE name = 'shared_preload_libraries'), \
         EXISTS (SELECT FROM pg_settings WHERE name = 'timescaledb.max_background_workers'), \
         (SELECT setting::bigint FROM pg_settings WHERE name = 'timescaledb.max_background_workers'), \
         EXISTS (SELECT FROM pg_available_extension_versions WHERE name = 'timescaledb' AND version = {version}), \
         coalesce((SELECT string_agg(version, ' ') FROM pg_available_extension_versions WHERE name = 'timescaledb'), ''), \
         current_setting('timescaledb.license', true), \
         (SELECT rolsuper OR has_parameter_privilege('timescaledb.restoring', 'SET') FROM pg_roles WHERE rolname = current_user), \
         has_function_privilege('pg_catalog.pg_config()', 'EXECUTE') \
         AND has_function_privilege('pg_catalog.pg_stat_file(text, boolean)', 'EXECUTE')",
        version = quote_literal(version),
    )
}

/// Does this server suit the dump? Returns what doesn't, worst first; empty if all is well. Any database of the server will
/// do, and nothing is changed.
///
/// Whether the Community edition is there can be seen for certain only in a database with the extension, or where the role
/// may look for the library's file; otherwise check [`crate::Extension::license`] after [`crate::create_extension`].
///
/// # Errors
/// [`TimescaleError::Pg`].
pub async fn check_target(session: &mut Session, dumped: &Inventory) -> Result<Vec<Finding>, TimescaleError> {
    let rows = session.query(&facts_sql(&dumped.version)).await?;
    let row = rows
        .first()
        .ok_or_else(|| TimescaleError::UnexpectedCatalog("no settings".to_owned()))?;
    let facts = Facts::from_row(row)?;
    let mut findings = Vec::new();
    findings.extend(check_preload(&facts));
    findings.extend(check_version(session, dumped, &facts).await?);
    findings.extend(check_license(session, dumped, &facts).await?);
    findings.extend(check_privilege(session, &facts).await?);
    findings.extend(check_workers(dumped, &facts));
    for owner in crate::missing_job_owners(session, dumped).await? {
        findings.push(Finding::new(
            Severity::Blocking,
            format!("the role {owner}, which owns background jobs, is missing"),
            "the whole table of jobs would not load",
            format!(
                "psql -c {}",
                quote_for_shell(&format!("CREATE ROLE {}", quote_identifier(&owner)))
            ),
        ));
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Ok(findings)
}

fn check_preload(facts: &Facts) -> Option<Finding> {
    if facts.loader_loaded {
        return None;
    }
    let others = facts.preload_libraries.as_deref().unwrap_or_default();
    let Some(statement) = preload_statement(others) else {
        return Some(Finding::new(
            Severity::Blocking,
            "timescaledb is in shared_preload_libraries, but no session has its loader",
            "hypertables would look like empty tables",
            "psql -c \"SHOW timescaledb.disable_load\"   # must be off; then see the server's log for timescaledb",
        ));
    };
    Some(Finding::new(
        Severity::Blocking,
        "timescaledb is not in shared_preload_libraries",
        "the extension can't be created, and restored hypertables would answer wrongly",
        format!(
            "psql -c {}   # then restart the server",
            quote_for_shell(&statement)
        ),
    ))
}

async fn check_version(
    session: &mut Session,
    dumped: &Inventory,
    facts: &Facts,
) -> Result<Option<Finding>, TimescaleError> {
    let version = &dumped.version;
    let why =
        "the catalog's rows fit only the version they were dumped from; after the restore it can be updated";
    let mend = format!("install the package of TimescaleDB {version} for this server's major version");
    if !facts.version_available {
        let available = if facts.versions_available.is_empty() {
            "none is".to_owned()
        } else {
            format!("available: {}", facts.versions_available.join(", "))
        };
        let what = format!("TimescaleDB {version} is not available on this server ({available})");
        return Ok(Some(Finding::new(Severity::Blocking, what, why, mend)));
    }
    // The control and SQL files of several versions are there at once, the libraries need not be.
    let library = format!("timescaledb-{version}.so");
    if library_exists(session, facts, &library).await? == Some(false) {
        let what = format!("the library {library} is missing on this server");
        return Ok(Some(Finding::new(Severity::Blocking, what, why, mend)));
    }
    Ok(None)
}

/// Is this library installed? `None`: the role may not look.
async fn library_exists(
    session: &mut Session,
    facts: &Facts,
    library: &str,
) -> Result<Option<bool>, TimescaleError> {
    if !facts.may_look_for_files {
        return Ok(None);
    }
    let sql = format!(
        "SELECT (pg_catalog.pg_stat_file(setting || {}, true)).size IS NOT NULL FROM pg_catalog.pg_config() \
         WHERE name = 'PKGLIBDIR'",
        quote_literal(&format!("/{library}"))
    );
    let rows = session.query(&sql).await?;
    Ok(rows.first().map(|row| row.get(0)).transpose()?)
}

async fn check_license(
    session: &mut Session,
    dumped: &Inventory,
    facts: &Facts,
) -> Result<Option<Finding>, TimescaleError> {
    if !dumped.needs_community() {
        return Ok(None);
    }
    let why =
        "the dump has compressed chunks, continuous aggregates or jobs, which the Apache edition refuses";
    if facts.license_setting.as_deref() == Some("apache") {
        return Ok(Some(Finding::new(
            Severity::Blocking,
            "this server runs TimescaleDB's Apache edition (timescaledb.license = apache)",
            why,
            "psql -c \"ALTER SYSTEM SET timescaledb.license = 'timescale'\" -c \"SELECT pg_reload_conf()\"   # with the \
             Community package installed",
        )));
    }
    let library = format!("timescaledb-tsl-{}.so", dumped.version);
    let finding = match (&dumped.license, library_exists(session, facts, &library).await?) {
        (License::Apache, _) => None,
        (_, Some(false)) => Some(Finding::new(
            Severity::Blocking,
            format!("the Community edition's library {library} is missing on this server"),
            why,
            format!("install the Community package of TimescaleDB {}", dumped.version),
        )),
        _ => None,
    };
    Ok(finding)
}

async fn check_privilege(session: &mut Session, facts: &Facts) -> Result<Option<Finding>, TimescaleError> {
    if facts.may_restore {
        return Ok(None);
    }
    let rows = session.query("SELECT current_user").await?;
    let role: String = rows
        .first()
        .map(|row| row.get(0))
        .transpose()?
        .unwrap_or_default();
    let statement = format!(
        "GRANT SET ON PARAMETER timescaledb.restoring TO {}",
        quote_identifier(&role)
    );
    Ok(Some(Finding::new(
        Severity::Blocking,
        format!("the role {role} may not set timescaledb.restoring"),
        "timescaledb_pre_restore() needs a superuser or this right",
        format!("psql -c {}   # as a superuser", quote_for_shell(&statement)),
    )))
}

fn check_workers(dumped: &Inventory, facts: &Facts) -> Option<Finding> {
    // One worker schedules the jobs of a database, another runs them.
    const WORKERS_MIN: i64 = 2;
    let scheduled = dumped.jobs.iter().filter(|job| job.scheduled).count();
    let workers = facts.max_background_workers?;
    if scheduled == 0 || workers >= WORKERS_MIN {
        return None;
    }
    Some(Finding::new(
        Severity::Warning,
        format!("timescaledb.max_background_workers is {workers}"),
        "the restored jobs (policies, refreshes) would never run",
        "psql -c \"ALTER SYSTEM SET timescaledb.max_background_workers = 16\"   # then restart the server",
    ))
}
