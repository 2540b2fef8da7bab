//! Scratch databases: made for a restore of a hypertable, gone when it ends; or to take the place of one that is replaced. One that a killed restore left is known by its
//! name and comment, and that nobody lives who uses it by the lock that its restore holds for as long as it is connected.

use std::hash::{BuildHasher, Hasher};

use pgkeep_base::{quote_identifier, quote_literal};
use pgkeep_pg::Session;

use crate::error::{Context, DumpError};
use crate::manifest::DatabaseManifest;
use crate::restore::{Restore, prepare};
use crate::sql;

/// How their names begin.
pub(crate) const PREFIX: &str = "pgkeep_scratch_";
/// Their comment.
pub(crate) const COMMENT: &str = "pgkeep: scratch database of a restore";
/// The first key of the advisory locks; the second is the hash of the name.
const LOCK_CLASS: u32 = 1_885_828_979;

/// Makes one, with that owner; `outside` holds its lock.
///
/// # Errors
/// PostgreSQL's.
pub(crate) async fn make(
    restore: &Restore<'_>,
    outside: &mut Session,
    database: &DatabaseManifest,
    owner: Option<&str>,
) -> Result<String, DumpError> {
    // Two restores of one dump at the same time don't share theirs.
    let random = std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish();
    let id = restore.id.to_string().replace('-', "_").to_lowercase();
    let name = format!("{PREFIX}{id}_{:08x}", random & 0xffff_ffff);
    let context = || format!("creating the scratch database '{name}'");
    let lock = format!(
        "SELECT pg_catalog.pg_advisory_lock({LOCK_CLASS}, pg_catalog.hashtext({}))",
        quote_literal(&name)
    );
    outside.execute(&lock).await.context(context)?;
    restore.note_undo(|undo| undo.scratch = Some(name.clone()));
    let create = sql::create_database(&name, &database.properties, owner);
    outside.execute(&create).await.context(context)?;
    let comment = format!(
        "COMMENT ON DATABASE {} IS {}",
        quote_identifier(&name),
        quote_literal(COMMENT)
    );
    outside.execute(&comment).await.context(context)?;
    Ok(name)
}

/// Drops one, and gives its lock back.
///
/// # Errors
/// PostgreSQL's.
pub(crate) async fn remove(
    restore: &Restore<'_>,
    outside: &mut Session,
    name: &str,
) -> Result<(), DumpError> {
    prepare::drop_database_if_exists(outside, name).await?;
    restore.note_undo(|undo| undo.scratch = None);
    let unlock = format!(
        "SELECT pg_catalog.pg_advisory_unlock({LOCK_CLASS}, pg_catalog.hashtext({}))",
        quote_literal(name)
    );
    outside
        .execute(&unlock)
        .await
        .context(|| "giving a lock back".to_owned())?;
    Ok(())
}

/// Drops what restores left that were killed, and names what can't be dropped, or isn't surely one of them.
///
/// # Errors
/// The connection fails.
pub(crate) async fn sweep(outside: &mut Session, attention: &mut Vec<String>) -> Result<(), DumpError> {
    let context = || "looking for scratch databases of killed restores".to_owned();
    let sql = format!(
        "SELECT d.datname, coalesce(pg_catalog.shobj_description(d.oid, 'pg_database') = {}, false)
             AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_activity a WHERE a.datid = d.oid AND a.backend_type = 'client backend')
         FROM pg_catalog.pg_database d
         WHERE pg_catalog.starts_with(d.datname::pg_catalog.text, {}) AND NOT EXISTS (
           SELECT FROM pg_catalog.pg_locks l WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.classid = {LOCK_CLASS}
             AND l.objid::pg_catalog.int8 = (pg_catalog.hashtext(d.datname::pg_catalog.text)::pg_catalog.int8 & 4294967295))",
        quote_literal(COMMENT),
        quote_literal(PREFIX)
    );
    for row in outside.query(&sql).await.context(context)? {
        let (name, is_dead): (String, bool) = (row.get(0).context(context)?, row.get(1).context(context)?);
        let drop = format!("DROP DATABASE {} WITH (FORCE)", quote_identifier(&name));
        if !is_dead {
            attention.push(format!(
                "database '{name}' looks like what a killed restore left: if no restore is at work, remove it with: {drop}"
            ));
            continue;
        }
        match outside.execute(&drop).await {
            Ok(_) => tracing::info!("dropped the scratch database '{name}' of a restore that was killed"),
            Err(error) if error.sqlstate().is_some() => attention.push(format!(
                "the scratch database '{name}' of a restore that was killed can't be dropped: {error}; remove it with: {drop}"
            )),
            Err(source) => return Err(source).context(context),
        }
    }
    Ok(())
}
