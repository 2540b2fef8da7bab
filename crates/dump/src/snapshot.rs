//! Locks first, then the snapshot, then a second look: see docs/design-dump.md, "Lock first, then look".

use std::time::{Duration, Instant};

use jiff::Timestamp;
use pgkeep_pg::{PgError, Session, Target};

use crate::catalog::{self, CatalogRelation, READ_SETTINGS};
use crate::connect::{connect, connecting};
use crate::database::owners_query;
use crate::databases;
use crate::error::{Context, DumpError};
use crate::manifest::Filters;
use crate::restore::refuse_unfinished;

/// How often listing and locking start over when tables come and go in between.
const ATTEMPTS_MAX: u32 = 20;

/// Names in one `LOCK TABLE`: keeps statements under a few hundred kilobytes.
const LOCK_BATCH: usize = 1_000;

/// `lock_not_available`
pub const SQLSTATE_LOCK_NOT_AVAILABLE: &str = "55P03";

/// What may come up between listing and locking and is cured by starting over: undefined table, undefined schema,
/// deadlock, undefined object, wrong object type.
const SQLSTATES_STARTING_OVER: [&str; 5] = ["42P01", "3F000", "40P01", "42704", "42809"];

/// A transaction that holds every lock and exports its snapshot, and what it saw.
pub struct LockedSnapshot {
    /// The holder. As long as it lives, nothing that the dump reads can be truncated, altered or dropped.
    pub session: Session,
    /// What workers and pg_dump give to `SET TRANSACTION SNAPSHOT`.
    pub id: String,
    /// The relations, in the order of their oids; those with rows and those without.
    pub relations: Vec<CatalogRelation>,
    /// Their sizes on disk, in bytes, in the same order.
    pub sizes: Vec<u64>,
    /// When the snapshot was taken, by the server's clock.
    pub taken_at: Timestamp,
    /// The WAL position just after it.
    pub lsn: Option<String>,
}

/// A snapshot, as it was exported.
struct Exported {
    id: String,
    taken_at: Timestamp,
    lsn: Option<String>,
}

/// Opens a session that reads rows the way a dump must.
///
/// # Errors
/// PostgreSQL's.
pub async fn reading_session(target: &Target) -> Result<Session, DumpError> {
    let mut session = connect(target).await?;
    // SQL_ASCII means that nobody knows the encoding: then bytes must pass as they are.
    let raw = session.parameter("server_encoding") == Some("SQL_ASCII");
    let encoding = if raw {
        "SET client_encoding = 'SQL_ASCII'; "
    } else {
        "SET client_encoding = 'UTF8'; "
    };
    let versioned = catalog::versioned_settings(session.server_version_num());
    session
        .execute(&format!("{encoding}{READ_SETTINGS}{versioned}"))
        .await
        .context(|| connecting(target))?;
    Ok(session)
}

/// Lists, locks, takes the snapshot, lists again; starts over while the lists differ.
///
/// # Errors
/// [`DumpError::Unstable`], [`DumpError::LockTimeout`], [`DumpError::HalfRestored`], [`DumpError::DatabaseGone`], PostgreSQL's.
pub async fn take(
    target: &Target,
    filters: &Filters,
    lock_timeout: Duration,
) -> Result<LockedSnapshot, DumpError> {
    let connected = reading_session(target).await;
    let mut session = connected.map_err(|error| databases::gone_before(target.database(), error))?;
    // Before anything is waited for: a restore that goes on holds locks. And again under the snapshot.
    refuse_unfinished(&mut session, target.database()).await?;
    let deadline = Instant::now() + lock_timeout;
    let mut change = String::new();
    for attempt in 1..=ATTEMPTS_MAX {
        let listed = list(&mut session, filters, target.database()).await?;
        match lock_and_export(&mut session, &listed, deadline).await {
            Ok(exported) => {
                let after = list(&mut session, filters, target.database()).await?;
                if let Some(difference) = difference(&listed, &after) {
                    change = difference;
                } else {
                    refuse_unfinished(&mut session, target.database()).await?;
                    return finish(session, exported, listed).await;
                }
            }
            Err(DumpError::Pg { source, .. }) if starts_over(&source) => change = source.to_string(),
            Err(error) if error.sqlstate() == Some(SQLSTATE_LOCK_NOT_AVAILABLE) => {
                let blockers = blockers(target, &listed).await;
                let database = target.database().to_owned();
                return Err(DumpError::LockTimeout {
                    database,
                    waited_seconds: lock_timeout.as_secs(),
                    blockers,
                });
            }
            Err(error) => return Err(error),
        }
        tracing::debug!(attempt, %change, "the tables changed between listing and locking; starting over");
        session
            .execute("ROLLBACK")
            .await
            .context(|| "starting over".to_owned())?;
    }
    Err(DumpError::Unstable {
        database: target.database().to_owned(),
        attempts: ATTEMPTS_MAX,
        change,
    })
}

/// The relations to read, with chunks known by their hypertables as of now: those that came after the last look belong
/// to them as well.
///
/// # Errors
/// PostgreSQL's, or a malformed pattern.
pub(crate) async fn list(
    session: &mut Session,
    filters: &Filters,
    database: &str,
) -> Result<Vec<CatalogRelation>, DumpError> {
    let owners = owners_query(filters, session, database).await?;
    catalog::relations(session, filters, &owners).await
}

fn starts_over(error: &PgError) -> bool {
    error
        .sqlstate()
        .is_some_and(|state| SQLSTATES_STARTING_OVER.contains(&state))
}

async fn lock_and_export(
    session: &mut Session,
    listed: &[CatalogRelation],
    deadline: Instant,
) -> Result<Exported, DumpError> {
    let context = || "locking the tables for reading".to_owned();
    session
        .execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .await
        .context(context)?;
    for batch in listed.chunks(LOCK_BATCH) {
        let left_ms = deadline
            .saturating_duration_since(Instant::now())
            .as_millis()
            .max(1);
        session
            .execute(&format!("SET LOCAL lock_timeout = {left_ms}"))
            .await
            .context(context)?;
        session
            .execute(&lock_statement(batch, ""))
            .await
            .context(context)?;
    }
    session
        .execute("SET LOCAL lock_timeout = 0")
        .await
        .context(context)?;
    export(session).await
}

/// In one statement, so that nothing lies between the snapshot and what is said of its place in time. (The transaction's
/// own time is that of its BEGIN: before the locks were waited for.)
async fn export(session: &mut Session) -> Result<Exported, DumpError> {
    let context = || "exporting the snapshot".to_owned();
    let sql = "SELECT pg_catalog.pg_export_snapshot(),
        pg_catalog.to_char(pg_catalog.clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'),
        CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
             ELSE pg_catalog.pg_current_wal_lsn() END";
    let rows = session.query(sql).await.context(context)?;
    let row = rows
        .first()
        .ok_or_else(|| DumpError::Internal("no snapshot id".to_owned()))?;
    let text: String = row.get(1).context(context)?;
    let taken_at = text
        .parse()
        .map_err(|error| DumpError::Internal(format!("the server's time {text}: {error}")))?;
    Ok(Exported {
        id: row.get(0).context(context)?,
        taken_at,
        lsn: row.get(2).context(context)?,
    })
}

/// `LOCK TABLE` for reading; `suffix` may be `NOWAIT`. ONLY: a table's children are in the list themselves, or were
/// left out.
pub fn lock_statement(relations: &[CatalogRelation], suffix: &str) -> String {
    let names: Vec<String> = relations
        .iter()
        .map(|relation| format!("ONLY {}", relation.name.quoted()))
        .collect();
    format!("LOCK TABLE {} IN ACCESS SHARE MODE {suffix}", names.join(", "))
}

async fn finish(
    mut session: Session,
    exported: Exported,
    relations: Vec<CatalogRelation>,
) -> Result<LockedSnapshot, DumpError> {
    let sizes = catalog::sizes(&mut session, &relations).await?;
    Ok(LockedSnapshot {
        session,
        id: exported.id,
        relations,
        sizes,
        taken_at: exported.taken_at,
        lsn: exported.lsn,
    })
}

/// The first difference between two lists, in words.
fn difference(before: &[CatalogRelation], after: &[CatalogRelation]) -> Option<String> {
    let find = |list: &[CatalogRelation], oid: u32| {
        list.binary_search_by_key(&oid, |relation| relation.oid)
            .ok()
            .and_then(|place| list.get(place).cloned())
    };
    for relation in after {
        match find(before, relation.oid) {
            None => return Some(format!("{} appeared", relation.name)),
            Some(old) if old != *relation => return Some(format!("{} was altered", relation.name)),
            Some(_) => {}
        }
    }
    before
        .iter()
        .find(|old| find(after, old.oid).is_none())
        .map(|old| format!("{} was dropped", old.name))
}

/// Which sessions hold locks that reading conflicts with, or stand in line for them and so before us, and then whom
/// those wait for; best effort, for the error message.
async fn blockers(target: &Target, relations: &[CatalogRelation]) -> Option<String> {
    const NAMED_MAX: usize = 4;
    let mut session = Session::connect(target).await.ok()?;
    let sql = "WITH exclusive AS (
           SELECT l.relation, l.pid, l.granted FROM pg_catalog.pg_locks l
           JOIN pg_catalog.pg_database d ON d.oid = l.database AND d.datname = pg_catalog.current_database()
           WHERE l.mode = 'AccessExclusiveLock' AND l.relation IS NOT NULL),
         blocker AS (
           SELECT relation, pid, CASE WHEN granted THEN 'is locked by' ELSE 'is waited for by' END AS what
           FROM exclusive
           UNION ALL SELECT e.relation, b.pid, 'is in use by'
           FROM exclusive e, pg_catalog.unnest(pg_catalog.pg_blocking_pids(e.pid)) AS b(pid) WHERE NOT e.granted)
         SELECT DISTINCT b.relation, b.pid, b.what, pg_catalog.left(coalesce(a.query, ''), 80)
         FROM blocker b LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = b.pid ORDER BY 1, 3, 2 LIMIT 100";
    let mut named = Vec::new();
    for row in session.query(sql).await.ok()? {
        let oid: u32 = row.get(0).ok()?;
        if let Some(relation) = relations.iter().find(|relation| relation.oid == oid) {
            let (pid, what, query): (i32, String, String) =
                (row.get(1).ok()?, row.get(2).ok()?, row.get(3).ok()?);
            named.push(format!("{} {what} process {pid} ({query})", relation.name));
        }
    }
    session.close().await;
    named.truncate(NAMED_MAX);
    (!named.is_empty()).then(|| named.join("; "))
}
