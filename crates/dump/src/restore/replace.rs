//! A database that is replaced: the new one is made beside it and takes its name in one transaction. A restore that is killed in
//! between never leaves a server without its database `postgres`, to which the next restore, and all the world, connects.

use pgkeep_base::{quote_identifier, quote_literal};
use pgkeep_pg::Session;

use crate::error::{Context, DumpError};
use crate::manifest::DatabaseManifest;
use crate::restore::prepare::{DROP_ATTEMPTS_MAX, DROP_PAUSE, SQLSTATE_OBJECT_IN_USE};
use crate::restore::{Restore, prepare, scratch};

/// False for one that is in nobody's way (nobody can connect to it), and for one that the server refuses to drop: that has to
/// show before it has lost its name.
///
/// # Errors
/// PostgreSQL's.
pub(crate) async fn takes_a_place(session: &mut Session, name: &str) -> Result<bool, DumpError> {
    let context = || format!("looking at what keeps database '{name}'");
    if !matches!(prepare::openness(session, name).await?, Some(None)) {
        return Ok(false);
    }
    let sql = "SELECT NOT EXISTS (SELECT FROM pg_catalog.pg_subscription s WHERE s.subdbid = d.oid)
          AND NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots s WHERE s.datoid = d.oid AND s.active)
          AND NOT EXISTS (SELECT FROM pg_catalog.pg_prepared_xacts x WHERE x.database = d.datname)
        FROM pg_catalog.pg_database d WHERE d.datname = $1";
    let rows = session.query_params(sql, &[Some(name)]).await.context(context)?;
    let can_go: Option<bool> = rows.first().map(|row| row.get(0)).transpose().context(context)?;
    Ok(can_go == Some(true))
}

/// Replaces it by a new one with the mark of this restore. `outside` is connected to neither.
///
/// # Errors
/// PostgreSQL's.
pub(crate) async fn replace(
    restore: &Restore<'_>,
    outside: &mut Session,
    database: &DatabaseManifest,
    name: &str,
) -> Result<(), DumpError> {
    let owner = prepare::owner(restore, outside, database).await?;
    // From here on, a scratch database of that name goes with Ctrl-C, or with the next restore: first the new one, then the old.
    let beside = scratch::make(restore, outside, database, owner).await?;
    prepare::make_mark(restore, database, &beside).await?;
    swap(outside, name, &beside).await?;
    scratch::remove(restore, outside, &beside).await
}

/// Both are renamed, or neither. Sessions in the old one are ended, as `DROP DATABASE ... WITH (FORCE)` would.
async fn swap(outside: &mut Session, name: &str, beside: &str) -> Result<(), DumpError> {
    let context = || format!("replacing database '{name}'");
    let passing = quote_identifier(&format!("{beside}_old"));
    let (quoted, quoted_beside) = (quote_identifier(name), quote_identifier(beside));
    let end_sessions = "SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity a
        WHERE a.datname = $1 AND a.pid <> pg_catalog.pg_backend_pid()";
    let rename = format!(
        "BEGIN;
         ALTER DATABASE {quoted} RENAME TO {passing};
         ALTER DATABASE {quoted_beside} RENAME TO {quoted};
         ALTER DATABASE {passing} RENAME TO {quoted_beside};
         COMMENT ON DATABASE {quoted} IS NULL;
         COMMENT ON DATABASE {quoted_beside} IS {};
         COMMIT",
        quote_literal(scratch::COMMENT)
    );
    let mut attempt = 1;
    loop {
        outside
            .query_params(end_sessions, &[Some(name)])
            .await
            .context(context)?;
        let Err(source) = outside.execute(&rename).await else {
            return Ok(());
        };
        let in_use = source.sqlstate() == Some(SQLSTATE_OBJECT_IN_USE);
        if source.sqlstate().is_some() {
            outside.execute("ROLLBACK").await.context(context)?;
        }
        if !in_use || attempt == DROP_ATTEMPTS_MAX {
            return Err(source).context(context);
        }
        attempt += 1;
        tokio::time::sleep(DROP_PAUSE).await;
    }
}
