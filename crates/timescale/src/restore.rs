use pgkeep_base::{quote_identifier, quote_literal};
use pgkeep_pg::{PgError, Session};

use crate::TimescaleError;
use crate::edition::{detect, require};

/// How often `timescaledb_post_restore()` is called until it has done what it says.
const POST_RESTORE_CALLS_MAX: u32 = 3;

/// Installs the extension at exactly this version, in this schema (made if it isn't there), into an empty database.
/// Nothing is done if it is there already, as wanted.
///
/// # Errors
/// [`TimescaleError::OtherExtensionPresent`]: it is there in another version or schema, as in every database that is made
/// from a `template1` that has it (the vendor's container images do); make the database from `template0`.
/// [`TimescaleError::Pg`] if the server has no such version; [`crate::check_target`] finds that out beforehand.
pub async fn create_extension(
    session: &mut Session,
    version: &str,
    schema: &str,
) -> Result<(), TimescaleError> {
    if let Some(found) = detect(session).await? {
        if found.version == version && found.schema == schema {
            found.usable()?;
            return Ok(());
        }
        return Err(TimescaleError::OtherExtensionPresent {
            found_version: found.version,
            found_schema: found.schema,
            wanted_version: version.to_owned(),
            wanted_schema: schema.to_owned(),
        });
    }
    let quoted_schema = quote_identifier(schema);
    session
        .execute(&format!("CREATE SCHEMA IF NOT EXISTS {quoted_schema}"))
        .await?;
    session
        .execute(&format!(
            "CREATE EXTENSION timescaledb WITH SCHEMA {quoted_schema} VERSION {}",
            quote_identifier(version)
        ))
        .await?;
    require(session).await?;
    Ok(())
}

/// Begins the restore mode: for this database, every new session of it, and this session. Its background workers stop.
///
/// # Errors
/// [`TimescaleError::Pg`]: it needs a superuser, or the right to set `timescaledb.restoring` and to alter the database.
pub async fn pre_restore(session: &mut Session) -> Result<(), TimescaleError> {
    let extension = require(session).await?;
    let schema = quote_identifier(&extension.schema);
    session
        .execute(&format!("SELECT {schema}.timescaledb_pre_restore()"))
        .await?;
    if !require(session).await?.restoring {
        return Err(TimescaleError::UnexpectedCatalog(
            "timescaledb_pre_restore() did not set timescaledb.restoring".to_owned(),
        ));
    }
    Ok(())
}

/// Ends the restore mode and starts the background workers: [`crate::hold_jobs`] comes before. Other sessions that are
/// open keep the restore mode: close them.
///
/// `timescaledb_post_restore()` has been seen to answer true and to leave the mode on (upstream issues 5842, 9625), so
/// it is called until the mode is off, three times at most. It also starts the scheduler of the jobs before its own
/// transaction has ended the mode; a scheduler that is faster than the commit finds the mode on and ends for good, and no
/// job ever runs (seen on 2.13.1 and 2.17.2). So the workers are started once more.
///
/// # Errors
/// [`TimescaleError::StillRestoring`]; [`TimescaleError::Pg`] if the catalog is of another version than the library.
pub async fn post_restore(session: &mut Session) -> Result<(), TimescaleError> {
    let extension = require(session).await?;
    let schema = quote_identifier(&extension.schema);
    for _ in 0..POST_RESTORE_CALLS_MAX {
        session
            .execute(&format!("SELECT {schema}.timescaledb_post_restore()"))
            .await?;
        if !is_restoring(session).await? {
            session
                .execute("SELECT _timescaledb_functions.restart_background_workers()")
                .await?;
            return Ok(());
        }
    }
    Err(TimescaleError::StillRestoring {
        attempts: POST_RESTORE_CALLS_MAX,
    })
}

/// In this session, or in new ones of this database?
async fn is_restoring(session: &mut Session) -> Result<bool, TimescaleError> {
    if require(session).await?.restoring {
        return Ok(true);
    }
    let setting = quote_literal("timescaledb.restoring=on");
    let rows = session
        .query(&format!(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_db_role_setting s JOIN pg_catalog.pg_database d \
             ON d.oid = s.setdatabase WHERE d.datname = current_database() AND {setting} = ANY (s.setconfig))"
        ))
        .await?;
    let row = rows
        .first()
        .ok_or_else(|| TimescaleError::UnexpectedCatalog("no settings".to_owned()))?;
    Ok(row.get(0)?)
}

/// Updates the extension to the newest version that the server has, and returns that.
///
/// The session must be new: any statement before, even a `SET`, loads the old library, and the update is refused. What a
/// session needs set comes with its start (`options`), which is no statement.
///
/// # Errors
/// [`TimescaleError::AlreadyLoaded`]; [`TimescaleError::Pg`].
pub async fn update_extension(session: &mut Session) -> Result<String, TimescaleError> {
    if let Err(error) = session.execute("ALTER EXTENSION timescaledb UPDATE").await {
        return Err(match &error {
            PgError::Server(server) if server.message.contains("already been loaded") => {
                TimescaleError::AlreadyLoaded
            }
            _ => error.into(),
        });
    }
    Ok(require(session).await?.version)
}
