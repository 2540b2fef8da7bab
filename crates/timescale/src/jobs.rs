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

/// Lets held jobs run again, none before its time: a restored job has no history, and would run at once. In one transaction
/// the jobs get the next start that they had when they were dumped, where that is still to come; those that had none, because
/// they never ran, their interval from now on; and then they are scheduled. What was due in between runs at once. Jobs that
/// aren't there any more are passed over.
///
/// # Errors
/// [`TimescaleError::Restoring`] before [`crate::post_restore`]; otherwise as [`hold_jobs`].
pub async fn release_jobs(
    session: &mut Session,
    ids: &[JobId],
    dumped: &[Job],
) -> Result<(), TimescaleError> {
    if ids.is_empty() && dumped.is_empty() {
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
        session.execute("BEGIN").await?;
        keep_next_starts(session, &schema, jobs, dumped).await?;
        if !ids.is_empty() {
            session
                .execute(&format!(
                    "SELECT {schema}.alter_job(id, scheduled => true, if_exists => true) FROM {jobs} WHERE id IN ({list}) ORDER BY id"
                ))
                .await?;
        }
        session.execute("COMMIT").await?;
    } else if !ids.is_empty() {
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

async fn keep_next_starts(
    session: &mut Session,
    schema: &str,
    jobs: &str,
    dumped: &[Job],
) -> Result<(), TimescaleError> {
    for job in dumped.iter().filter(|job| job.id >= FIRST_USER_JOB) {
        let dumped = job
            .next_start
            .as_ref()
            .map_or_else(|| "NULL".to_owned(), |start| quote_literal(start));
        // A start that isn't finite is that of a job that was running.
        session
            .execute(&format!(
                "SELECT {schema}.alter_job(j.id, next_start => n.next_start, if_exists => true) FROM {jobs} j \
                 CROSS JOIN LATERAL (SELECT CASE WHEN isfinite({dumped}::timestamptz) THEN {dumped}::timestamptz \
                 ELSE now() + j.schedule_interval END AS next_start) n WHERE j.id = {} AND n.next_start > now()",
                job.id
            ))
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
