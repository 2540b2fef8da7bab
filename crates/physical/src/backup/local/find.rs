//! Whether the server's data directory can be read here: it is found, readable, and proven to be the server's own.

use std::path::{Path, PathBuf};

use pgkeep_pg::{Session, Target};
use pgkeep_pgformat::ControlFile;

use super::list::{Link, links};
use crate::backup::collect::CONTROL_FILE;
use crate::error::{Context, PhysicalError};

/// A data directory that this process reads, and a session of the server that it belongs to.
pub struct Found {
    pub session: Session,
    pub directory: PathBuf,
}

/// Looks for it. The inner error says in words why the directory can't be read.
///
/// # Errors
/// The server fails otherwise than by saying no.
pub async fn find(
    target: &Target,
    directory: Option<&Path>,
    system_identifier: u64,
) -> Result<Result<Found, String>, PhysicalError> {
    let mut session = match Session::connect(target).await {
        Ok(session) => session,
        Err(error) => return Ok(Err(format!("no session for SQL: {error}"))),
    };
    let found = look(&mut session, directory, system_identifier).await;
    match found {
        Ok(Ok(directory)) => Ok(Ok(Found { session, directory })),
        Ok(Err(reason)) => {
            session.close().await;
            Ok(Err(reason))
        }
        Err(error) => Err(error),
    }
}

async fn look(
    session: &mut Session,
    directory: Option<&Path>,
    system_identifier: u64,
) -> Result<Result<PathBuf, String>, PhysicalError> {
    let asking = || "asking the server for its data directory".to_owned();
    let permitted = "SELECT has_function_privilege('pg_backup_start(text, boolean)', 'EXECUTE')
        AND has_function_privilege('pg_backup_stop(boolean)', 'EXECUTE')";
    if !truth(session, permitted).await.context(asking)? {
        return Ok(Err(
            "the role may not call pg_backup_start and pg_backup_stop: GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean) TO it".to_owned(),
        ));
    }
    let directory = match directory {
        Some(directory) => directory.to_owned(),
        None => {
            // NULL where the role may not see it.
            let setting = "SELECT setting FROM pg_settings WHERE name = 'data_directory'";
            let rows = session.query(setting).await.context(asking)?;
            match rows.first().and_then(|row| row.text(0)) {
                Some(path) => PathBuf::from(path),
                None => {
                    return Ok(Err(
                        "the role may not see data_directory: GRANT pg_read_all_settings TO it, or set backup.data_directory".to_owned(),
                    ));
                }
            }
        }
    };
    let directory = match directory.canonicalize() {
        Ok(directory) => directory,
        Err(error) => return Ok(Err(format!("{}: {error}", directory.display()))),
    };
    if let Err(reason) = is_of(&directory, system_identifier) {
        return Ok(Err(format!("{}: {reason}", directory.display())));
    }
    if !prove(session, &directory).await? {
        return Ok(Err(format!(
            "{} is another server's: a slot that was made to find that out doesn't show in it",
            directory.display()
        )));
    }
    for link in links(&directory)? {
        if let Err(reason) = prove_tablespace(session, &link).await? {
            return Ok(Err(format!("tablespace {}: {reason}", link.oid)));
        }
    }
    Ok(Ok(directory))
}

/// A tablespace lies where its link leads for the server, which may be another place for this process, or none: the session makes a
/// temporary table in it, whose file must show there, and takes it back.
async fn prove_tablespace(session: &mut Session, link: &Link) -> Result<Result<(), String>, PhysicalError> {
    let proving = || format!("making a table that proves whose tablespace {} is", link.oid);
    let oid = link.oid.to_string();
    let name = "SELECT quote_ident(spcname) FROM pg_tablespace WHERE oid = $1::oid";
    let rows = session.query_params(name, &[Some(&oid)]).await.context(proving)?;
    let Some(name) = rows.first().and_then(|row| row.text(0)) else {
        // Dropped meanwhile: its link goes, too.
        return Ok(Ok(()));
    };
    let make = format!("CREATE TEMPORARY TABLE pgkeep_proof (i int) TABLESPACE {name}");
    session.execute("BEGIN").await.context(proving)?;
    let made = match session.execute(&make).await {
        Ok(_) => {
            session
                .query("SELECT pg_relation_filepath('pg_temp.pgkeep_proof')")
                .await
        }
        Err(error) => Err(error),
    };
    let shows = made.as_ref().ok().and_then(|rows| {
        let path = rows.first()?.text(0)?;
        let below = path.strip_prefix("pg_tblspc/")?.split_once('/')?.1;
        Some(link.target.join(below).is_file())
    });
    session.execute("ROLLBACK").await.context(proving)?;
    Ok(match (made, shows) {
        (_, Some(true)) => Ok(()),
        (Err(error), _) => Err(format!(
            "whether {} is the server's can't be found out: {error}",
            link.target.display()
        )),
        _ => Err(format!(
            "{} isn't the server's: a table that was made to find that out doesn't show in it",
            link.target.display()
        )),
    })
}

/// Whether a directory is one of this cluster, or of a copy of it.
fn is_of(directory: &Path, system_identifier: u64) -> Result<(), String> {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let path = directory.join(OsStr::from_bytes(CONTROL_FILE));
    let contents = std::fs::read(&path).map_err(|error| format!("reading pg_control: {error}"))?;
    // It may be being written: the identifier is in its first bytes, which never change.
    let found = match ControlFile::parse(&contents) {
        Ok(control) => control.system_identifier,
        Err(_) => contents
            .first_chunk()
            .map_or(0, |bytes| u64::from_le_bytes(*bytes)),
    };
    match found == system_identifier {
        true => Ok(()),
        false => Err("it is another cluster's".to_owned()),
    }
}

/// A clone has the same identifier, so the server is asked to make a slot, which is a directory. It goes with the session, or
/// at once.
async fn prove(session: &mut Session, directory: &Path) -> Result<bool, PhysicalError> {
    let proving = || "making a slot that proves whose data directory it is".to_owned();
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(PhysicalError::internal)?;
    let slot = format!("pgkeep_proof_{:016x}", u64::from_le_bytes(random));
    let make = "SELECT pg_create_physical_replication_slot($1, false, true)";
    session
        .query_params(make, &[Some(&slot)])
        .await
        .context(proving)?;
    let shows = directory.join("pg_replslot").join(&slot).is_dir();
    let drop = "SELECT pg_drop_replication_slot($1)";
    session
        .query_params(drop, &[Some(&slot)])
        .await
        .context(proving)?;
    Ok(shows)
}

async fn truth(session: &mut Session, sql: &str) -> Result<bool, pgkeep_pg::PgError> {
    let rows = session.query(sql).await?;
    Ok(rows.first().and_then(|row| row.text(0)) == Some("t"))
}
