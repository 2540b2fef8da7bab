//! What holds for the whole server: version, role, limits.

use pgkeep_base::Severity;
use pgkeep_pg::{Row, Session, Target};

use super::{CheckOptions, CheckReport, Mender, ServerFacts};
use crate::catalog;
use crate::error::{Context, DumpError};
use crate::run::SERVER_VERSION_NUM_MIN;

/// The oldest major version that is supported.
pub(super) const MAJOR_MIN: u32 = SERVER_VERSION_NUM_MIN / 10_000;

/// Beside one connection for each table that is read at once: who holds the locks, and pg_dump.
const CONNECTIONS_BESIDE: i64 = 2;

/// Superusers of clouds, whom no customer can be.
const PROVIDERS: &str = "'rdsadmin', 'cloudsqladmin', 'azuresu', 'supabase_admin', 'cloud_admin'";

/// What is limited, and what the role is.
struct Limits {
    connections_max: i64,
    reserved: i64,
    used: i64,
    role_connections_max: i64,
    is_superuser: bool,
    may_replicate: bool,
}

/// How many locks fit.
pub(super) struct LockCapacity {
    pub locks_per_transaction: u64,
    pub transactions: u64,
}

impl LockCapacity {
    pub fn locks(&self) -> u64 {
        self.locks_per_transaction.saturating_mul(self.transactions)
    }
}

async fn row(session: &mut Session, sql: &str, what: &str) -> Result<Row, DumpError> {
    let mut rows = session.query(sql).await.context(|| what.to_owned())?;
    if rows.is_empty() {
        return Err(DumpError::Internal(format!("{what}: no row")));
    }
    Ok(rows.swap_remove(0))
}

pub(super) async fn check(
    target: &Target,
    session: &mut Session,
    options: &CheckOptions,
    report: &mut CheckReport,
) -> Result<(ServerFacts, Mender), DumpError> {
    let mender = mender(target, session).await?;
    let version = session.parameter("server_version").unwrap_or("?").to_owned();
    let major = session.server_version_num() / 10_000;
    let what = format!(
        "PostgreSQL {version} at {}, as '{}'",
        target.endpoint(),
        target.user()
    );
    let limits = limits(session).await?;
    let facts = ServerFacts {
        version,
        major,
        system_identifier: catalog::system_identifier(session).await.ok(),
        data_directory: data_directory(session).await,
        in_recovery: session.parameter("in_hot_standby") == Some("on"),
        is_superuser: limits.is_superuser,
        may_replicate: limits.may_replicate,
        databases: Vec::new(),
    };
    if major < MAJOR_MIN {
        let mend = "take a dump with that version's pg_dumpall, then upgrade the server";
        let why = format!("PostgreSQL {MAJOR_MIN} and later are supported");
        report.add(Severity::Error, what, why, Some(mend.to_owned()));
        return Ok((facts, mender));
    }
    report.ok(what);
    role(&limits, &mender, report);
    connections(&limits, options.jobs, &mender, report);
    standby(session, facts.in_recovery, &mender, report).await?;
    timeouts(session, report).await?;
    Ok((facts, mender))
}

/// Who could mend what the role can't: itself, if it is a superuser, else the first superuser, else who may make roles.
async fn mender(target: &Target, session: &mut Session) -> Result<Mender, DumpError> {
    let sql = format!(
        "SELECT r.rolname FROM pg_catalog.pg_roles r WHERE r.rolcanlogin AND (r.rolsuper OR r.rolcreaterole)
           AND r.rolname NOT IN ({PROVIDERS})
         ORDER BY r.rolsuper AND r.rolname = current_user DESC, NOT r.rolsuper, r.oid LIMIT 1"
    );
    let rows = session
        .query(&sql)
        .await
        .context(|| "looking for an administrator".to_owned())?;
    let administrator = rows.first().and_then(|row| row.get(0).ok());
    Ok(Mender {
        target: target.clone(),
        administrator: administrator.unwrap_or_else(|| "postgres".to_owned()),
    })
}

async fn limits(session: &mut Session) -> Result<Limits, DumpError> {
    const WHAT: &str = "reading the server's limits";
    let sql = "SELECT current_setting('max_connections')::bigint,
          current_setting('superuser_reserved_connections')::bigint
            + coalesce(current_setting('reserved_connections', true), '0')::bigint,
          (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE datid IS NOT NULL AND pid <> pg_catalog.pg_backend_pid()),
          r.rolconnlimit::bigint, r.rolsuper, r.rolreplication OR r.rolsuper
        FROM pg_catalog.pg_roles r WHERE r.rolname = current_user";
    let row = row(session, sql, WHAT).await?;
    let context = || WHAT.to_owned();
    Ok(Limits {
        connections_max: row.get(0).context(context)?,
        reserved: row.get(1).context(context)?,
        used: row.get(2).context(context)?,
        role_connections_max: row.get(3).context(context)?,
        is_superuser: row.get(4).context(context)?,
        may_replicate: row.get(5).context(context)?,
    })
}

/// None where the role may not see it.
async fn data_directory(session: &mut Session) -> Option<String> {
    let sql = "SELECT setting FROM pg_catalog.pg_settings WHERE name = 'data_directory'";
    session.query(sql).await.ok()?.first()?.get(0).ok()
}

pub(super) async fn lock_capacity(session: &mut Session) -> Result<LockCapacity, DumpError> {
    const WHAT: &str = "reading how many locks fit";
    let sql = "SELECT current_setting('max_locks_per_transaction')::bigint,
        current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint";
    let row = row(session, sql, WHAT).await?;
    Ok(LockCapacity {
        locks_per_transaction: row.get(0).context(|| WHAT.to_owned())?,
        transactions: row.get(1).context(|| WHAT.to_owned())?,
    })
}

fn role(limits: &Limits, mender: &Mender, report: &mut CheckReport) {
    if limits.is_superuser {
        report.ok("the role is a superuser: the dump holds everything, passwords of roles included");
        return;
    }
    let mend = format!(
        "{}   # or make those anew after a restore",
        mender.anywhere(&[&format!("ALTER ROLE {} SUPERUSER", mender.role())])
    );
    report.add(
        Severity::Info,
        format!("'{}' is no superuser", mender.target.user()),
        "passwords of roles are in the dump only with pg_read_all_data, and subscriptions and the options of others' user mappings not \
         at all; the dump says what it lacks",
        Some(mend),
    );
}

fn connections(limits: &Limits, jobs: usize, mender: &Mender, report: &mut CheckReport) {
    let needed = i64::try_from(jobs)
        .unwrap_or(i64::MAX)
        .saturating_add(CONNECTIONS_BESIDE);
    let jobs_for = |connections: i64| (connections - CONNECTIONS_BESIDE).max(1);
    let usable = match limits.is_superuser {
        true => limits.connections_max,
        false => limits.connections_max - limits.reserved,
    };
    let why = format!("a dump with {jobs} jobs takes {needed} connections");
    if usable < needed {
        report.add(
            Severity::Error,
            format!("the server lets {usable} connections in (max_connections)"),
            why,
            Some(format!(
                "pgkeep dump --jobs {}   # or set dump.jobs so, or raise max_connections",
                jobs_for(usable)
            )),
        );
    } else if usable - limits.used < needed {
        report.add(
            Severity::Warning,
            format!(
                "{} of the server's {usable} connections are taken now",
                limits.used
            ),
            why,
            Some(format!(
                "pgkeep dump --jobs {}   # or set dump.jobs so, or raise max_connections",
                jobs_for(usable - limits.used)
            )),
        );
    } else {
        report.ok(format!(
            "{} of {usable} connections are free, and a dump takes {needed}",
            usable - limits.used
        ));
    }
    let role_max = limits.role_connections_max;
    if !limits.is_superuser && (0..needed).contains(&role_max) {
        report.add(
            Severity::Error,
            format!(
                "'{}' may have {role_max} connections (CONNECTION LIMIT)",
                mender.target.user()
            ),
            format!("a dump with {jobs} jobs takes {needed}"),
            Some(mender.anywhere(&[&format!("ALTER ROLE {} CONNECTION LIMIT -1", mender.role())])),
        );
    }
}

async fn standby(
    session: &mut Session,
    in_recovery: bool,
    mender: &Mender,
    report: &mut CheckReport,
) -> Result<(), DumpError> {
    if !in_recovery {
        return Ok(());
    }
    let what = "the server is a standby";
    let why = "it is dumped like any other; its data is as old as what it has replayed";
    report.add(Severity::Info, what, why, None);
    const WHAT: &str = "reading the standby's settings";
    let sql =
        "SELECT greatest(a.setting::bigint, s.setting::bigint), least(a.setting::bigint, s.setting::bigint)
        FROM pg_catalog.pg_settings a, pg_catalog.pg_settings s
        WHERE a.name = 'max_standby_archive_delay' AND s.name = 'max_standby_streaming_delay'";
    let row = row(session, sql, WHAT).await?;
    let (longest, shortest): (i64, i64) = (
        row.get(0).context(|| WHAT.to_owned())?,
        row.get(1).context(|| WHAT.to_owned())?,
    );
    if longest < 0 && shortest < 0 {
        return Ok(());
    }
    // Milliseconds; -1 waits for ever.
    let limit_ms = if shortest < 0 { longest } else { shortest };
    let what = format!(
        "the standby ends queries that are in the way of replay after {} s (max_standby_streaming_delay, \
         max_standby_archive_delay)",
        limit_ms / 1000
    );
    let why = "a dump that runs longer may be cancelled; hot_standby_feedback doesn't keep its locks";
    let mend = mender.anywhere(&[
        "ALTER SYSTEM SET max_standby_streaming_delay = -1",
        "ALTER SYSTEM SET max_standby_archive_delay = -1",
        "SELECT pg_reload_conf()",
    ]);
    report.add(Severity::Warning, what, why, Some(mend));
    Ok(())
}

/// Limits of time that would break any other client. Sessions that read switch them off.
async fn timeouts(session: &mut Session, report: &mut CheckReport) -> Result<(), DumpError> {
    let sql =
        "SELECT pg_catalog.string_agg(name || ' = ' || pg_catalog.current_setting(name), ', ' ORDER BY name)
        FROM pg_catalog.pg_settings WHERE setting <> '0' AND name IN ('statement_timeout', 'lock_timeout',
          'idle_in_transaction_session_timeout', 'transaction_timeout', 'idle_session_timeout')";
    const WHAT: &str = "reading the role's limits of time";
    let set: Option<String> = row(session, sql, WHAT)
        .await?
        .get(0)
        .context(|| WHAT.to_owned())?;
    if let Some(set) = set {
        report.ok(format!("{set} for the role; a dump's sessions switch that off"));
    }
    Ok(())
}
