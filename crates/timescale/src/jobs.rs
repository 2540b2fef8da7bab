use std::collections::BTreeSet;
use std::fmt;

use pgkeep_base::{quote_identifier, quote_literal};
use pgkeep_pg::Session;
use serde::{Deserialize, Serialize};

use crate::catalog::CatalogForm;
use crate::edition::require;
use crate::{Inventory, Job, License, TimescaleError};

/// A background job's id. A restore keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub i32);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Jobs below are the extension's own (telemetry, the log's retention); every database has them.
const FIRST_USER_JOB: i32 = 1000;

/// Keeps the jobs from running: call it after the catalog is loaded and before [`crate::post_restore`], which would start
/// them. Returns those that were scheduled, for [`release_jobs`]. A second call finds none: keep the list where a restore
/// that is resumed finds it.
///
/// It writes to the catalog's table, because the functions for it don't work while restoring.
///
/// # Errors
/// [`TimescaleError::Pg`] (the table belongs to the extension's owner, usually a superuser);
/// [`TimescaleError::NotInstalled`], [`TimescaleError::UnsupportedVersion`], [`TimescaleError::LibraryNotLoaded`].
pub async fn hold_jobs(session: &mut Session) -> Result<Vec<JobId>, TimescaleError> {
    require(session).await?;
    let jobs = CatalogForm::read(session).await?.job_table();
    let rows = session
        .query(&format!(
            "UPDATE {jobs} SET scheduled = false WHERE scheduled AND id >= {FIRST_USER_JOB} RETURNING id"
        ))
        .await?;
    let mut held = rows
        .iter()
        .map(|row| row.get(0).map(JobId))
        .collect::<Result<Vec<_>, _>>()?;
    held.sort_unstable();
    tracing::debug!(jobs = held.len(), "holds TimescaleDB's jobs");
    Ok(held)
}

/// Gives jobs the next start they had when they were dumped, where that is still to come: a restored job has no history,
/// and would run at once. Call it before [`release_jobs`]. Nothing is done on the Apache edition, which runs no policies.
///
/// # Errors
/// As [`release_jobs`].
pub async fn keep_next_starts(session: &mut Session, dumped: &[Job]) -> Result<(), TimescaleError> {
    let extension = require(session).await?;
    if extension.restoring {
        return Err(TimescaleError::Restoring);
    }
    if extension.license != License::Timescale {
        return Ok(());
    }
    let schema = quote_identifier(&extension.schema);
    for job in dumped.iter().filter(|job| job.id >= FIRST_USER_JOB) {
        let Some(next_start) = &job.next_start else {
            continue;
        };
        let next_start = quote_literal(next_start);
        session
            .execute(&format!(
                "SELECT {schema}.alter_job({}, next_start => {next_start}::timestamptz, if_exists => true) \
                 WHERE {next_start}::timestamptz > now() AND isfinite({next_start}::timestamptz)",
                job.id
            ))
            .await?;
    }
    Ok(())
}

/// Lets held jobs run again. Jobs that aren't there any more are passed over.
///
/// # Errors
/// [`TimescaleError::Restoring`] before [`crate::post_restore`]; otherwise as [`hold_jobs`].
pub async fn release_jobs(session: &mut Session, ids: &[JobId]) -> Result<(), TimescaleError> {
    if ids.is_empty() {
        return Ok(());
    }
    let extension = require(session).await?;
    if extension.restoring {
        return Err(TimescaleError::Restoring);
    }
    let list = ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let jobs = CatalogForm::read(session).await?.job_table();
    if extension.license == License::Timescale {
        let schema = quote_identifier(&extension.schema);
        session
            .execute(&format!(
                "SELECT {schema}.alter_job(id, scheduled => true, if_exists => true) FROM {jobs} WHERE id IN ({list}) ORDER BY id"
            ))
            .await?;
    } else {
        // The Apache edition refuses alter_job. The scheduler reads the table when it starts.
        session
            .execute(&format!(
                "UPDATE {jobs} SET scheduled = true WHERE id IN ({list})"
            ))
            .await?;
        session
            .execute("SELECT _timescaledb_functions.restart_background_workers()")
            .await?;
    }
    Ok(())
}

/// The owners of the dump's jobs that are no roles of this server. One of them missing makes the load of the whole jobs
/// table fail, even with `--no-owner`: restore the roles first.
///
/// # Errors
/// [`TimescaleError::Pg`].
pub async fn missing_job_owners(
    session: &mut Session,
    dumped: &Inventory,
) -> Result<Vec<String>, TimescaleError> {
    let mut owners: BTreeSet<&str> = dumped.jobs.iter().map(|job| job.owner.as_str()).collect();
    if owners.is_empty() {
        return Ok(Vec::new());
    }
    session
        .query_each("SELECT rolname FROM pg_catalog.pg_roles", |row| {
            owners.remove(row.text(0).unwrap_or_default());
            Ok::<(), TimescaleError>(())
        })
        .await?;
    Ok(owners.into_iter().map(str::to_owned).collect())
}
