//! A pooler between here and the server (PgBouncer, Supavisor, RDS Proxy), found by how it behaves.

use std::time::Duration;

use pgkeep_base::Severity;
use pgkeep_pg::{PgError, Session, Target};

use super::CheckReport;
use crate::error::{Context, DumpError};

/// A setting that no server knows: a session keeps it, and nobody minds.
const SETTING: &str = "pgkeep.kept";
/// How long a pooler without a free connection is waited for.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// Where the session was between two statements.
#[derive(PartialEq, Eq)]
struct Place {
    process_id: i32,
    setting: Option<String>,
}

async fn place(session: &mut Session) -> Result<Place, PgError> {
    let sql = format!("SELECT pg_catalog.pg_backend_pid(), pg_catalog.current_setting('{SETTING}', true)");
    let rows = session.query(&sql).await?;
    let row = rows
        .first()
        .ok_or_else(|| PgError::Statement("no process id".to_owned()))?;
    Ok(Place {
        process_id: row.get(0)?,
        setting: row.get(1)?,
    })
}

/// False if no session lasts longer than a transaction: nothing else can be relied upon then.
pub(super) async fn check(
    target: &Target,
    session: &mut Session,
    report: &mut CheckReport,
) -> Result<bool, DumpError> {
    session.set_statement_deadline(Some(SILENCE_MAX));
    let lasts = lasts(target, session).await;
    session.set_statement_deadline(None);
    let (lasts, process_id) = lasts.context(|| "looking for a pooler".to_owned())?;
    if !lasts {
        let what = format!(
            "a pooler at {} gives each transaction another session of the server",
            target.endpoint()
        );
        let why = "a dump's settings, locks and snapshot have to last: it would fail, or read with the wrong settings";
        report.add(Severity::Error, what, why, Some(direct(session).await));
        return Ok(false);
    }
    if process_id != session.backend_pid() {
        let what = format!(
            "a pooler or proxy at {} stands before the server",
            target.endpoint()
        );
        let why =
            "it keeps sessions together, which is enough; its limits of time and connections count as well";
        report.add(Severity::Info, what, why, Some(direct(session).await));
    }
    Ok(true)
}

/// Whether session state outlives a transaction while others are busy, and the process that serves the session.
async fn lasts(target: &Target, session: &mut Session) -> Result<(bool, i32), PgError> {
    session.execute(&format!("SET {SETTING} = 'kept'")).await?;
    let before = place(session).await?;
    if before.setting.as_deref() != Some("kept") {
        return Ok((false, before.process_id));
    }
    // Somebody else who holds what may have served this session: an idle pooler would give it back to us.
    let mut other = match Session::connect(target).await {
        Ok(other) => other,
        // All connections are taken, say; that is told elsewhere.
        Err(_) => return Ok((true, before.process_id)),
    };
    other.set_statement_deadline(Some(SILENCE_MAX));
    let after = match other.execute("BEGIN").await {
        Ok(_) => place(session).await,
        // A pooler by statement has no transactions at all.
        Err(_) => return Ok((false, before.process_id)),
    };
    other.close().await;
    let lasts = match after {
        Ok(after) => after == before,
        Err(PgError::Deadline { .. }) => false,
        Err(error) => return Err(error),
    };
    session.execute(&format!("RESET {SETTING}")).await?;
    Ok((lasts, before.process_id))
}

/// Where the server itself says that it is.
async fn direct(session: &mut Session) -> String {
    let sql = "SELECT pg_catalog.host(pg_catalog.inet_server_addr()), pg_catalog.inet_server_port()";
    let address = session.query(sql).await.ok().and_then(|rows| {
        let row = rows.first()?;
        let (address, port): (Option<String>, Option<i32>) = (row.get(0).ok()?, row.get(1).ok()?);
        address.zip(port)
    });
    let (user, database) = (session.target().user(), session.target().database());
    match address {
        Some((address, port)) => format!(
            "pgkeep doctor --connection 'host={address} port={port} user={user} dbname={database}'   # the server itself; \
             set connection so where that is well"
        ),
        None => {
            "connect to the server itself (its socket or its own port), or to a port of the pooler with pool_mode = session"
                .to_owned()
        }
    }
}
