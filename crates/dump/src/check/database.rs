//! What holds for one database.

use pgkeep_base::{Classified, Severity, quote_identifier};
use pgkeep_pg::{PgError, Session};

use super::server::LockCapacity;
use super::{CheckOptions, CheckReport, DatabaseFacts, Mender, rights};
use crate::databases::{self, Closed};
use crate::error::{Context, DumpError};
use crate::restore::{MARK_SCHEMA, read_mark};
use crate::snapshot;

/// `undefined_file`: the library of an extension isn't there.
const SQLSTATE_UNDEFINED_FILE: &str = "58P01";

/// The databases to look into.
pub(super) async fn choose(
    mender: &Mender,
    session: &mut Session,
    options: &CheckOptions,
    report: &mut CheckReport,
) -> Result<Vec<String>, DumpError> {
    let listed = databases::list(session).await?;
    let named = |name: &String| options.databases.is_empty() || options.databases.contains(name);
    for name in &options.databases {
        if !listed.iter().any(|database| database.name == *name) {
            let there: Vec<&str> = listed.iter().map(|database| database.name.as_str()).collect();
            report.add(
                Severity::Error,
                format!("there is no database '{name}' in the cluster"),
                "dump.databases names it",
                Some(format!("set dump.databases to some of: {}", there.join(", "))),
            );
        }
    }
    let mut names = Vec::new();
    for database in listed.into_iter().filter(|database| named(&database.name)) {
        match database.closed {
            None => names.push(database.name),
            Some(closed) => tell_closed(&database.name, closed, mender, options, report),
        }
    }
    if options.databases.is_empty()
        && let Some(contents) = databases::in_template1(&mender.target).await
    {
        report.add(
            Severity::Warning,
            contents,
            "no dump holds it",
            Some("pg_dump --dbname=template1 --file=template1.sql".to_owned()),
        );
    }
    Ok(names)
}

/// Where everything is dumped, what can't be is left out with exit code 3; what was named makes the dump fail.
fn missing_severity(options: &CheckOptions) -> (Severity, &'static str) {
    match options.databases.is_empty() {
        true => (Severity::Warning, "dumps leave it out"),
        false => (Severity::Error, "dump.databases names it"),
    }
}

fn tell_closed(
    name: &str,
    closed: Closed,
    mender: &Mender,
    options: &CheckOptions,
    report: &mut CheckReport,
) {
    let quoted = quote_identifier(name);
    let statement = match closed {
        Closed::HalfDropped => format!("DROP DATABASE {quoted}"),
        Closed::NoConnections => format!("ALTER DATABASE {quoted} ALLOW_CONNECTIONS true"),
    };
    let (severity, why) = missing_severity(options);
    let what = format!("database '{name}' {}", closed.reason());
    report.add(severity, what, why, Some(mender.anywhere(&[&statement])));
}

/// Looks into one; what it is, if that could be found out.
pub(super) async fn check(
    mender: &Mender,
    name: &str,
    options: &CheckOptions,
    capacity: &LockCapacity,
    report: &mut CheckReport,
) -> Option<DatabaseFacts> {
    let target = mender.target.with_database(name);
    // The settings of a dump: otherwise limits of time that a dump doesn't mind would end what follows.
    let mut session = match snapshot::reading_session(&target).await {
        Ok(session) => session,
        Err(DumpError::Pg { source, .. }) => {
            tell_unconnected(name, &source, mender, report);
            return None;
        }
        Err(error) => {
            report.error(&error);
            return None;
        }
    };
    let mut facts = DatabaseFacts {
        name: name.to_owned(),
        bytes: size(&mut session).await,
        tables: 0,
        timescaledb: None,
    };
    let sound = restores(&mut session, name, mender, options, report).await;
    let sound = match sound {
        Ok(true) => timescaledb(&mut session, &mut facts, mender, options, report).await,
        Ok(false) => Ok(false),
        Err(error) => Err(error),
    };
    let looked = match sound {
        Ok(true) => tables(&mut session, &mut facts, mender, options, capacity, report).await,
        Ok(false) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = looked {
        let mend = error.hint().map(|hint| hint.to_string());
        report.add(Severity::Error, format!("database '{name}': {error}"), "", mend);
    }
    session.close().await;
    Some(facts)
}

async fn size(session: &mut Session) -> Option<u64> {
    let sql = "SELECT pg_catalog.pg_database_size(pg_catalog.current_database())";
    session.query(sql).await.ok()?.first()?.get(0).ok()
}

fn tell_unconnected(name: &str, error: &PgError, mender: &Mender, report: &mut CheckReport) {
    let quoted = quote_identifier(name);
    // The loader looks for it at a session's first statement.
    if error.sqlstate() == Some(SQLSTATE_UNDEFINED_FILE) && error.to_string().contains("/timescaledb-") {
        let update = mender.in_database(name, &["ALTER EXTENSION timescaledb UPDATE"]);
        let what =
            format!("database '{name}': TimescaleDB's library of its version isn't on the server: {error}");
        let why = "nothing in this database can be read without it";
        let mend = format!("{update}   # or install the package of that version");
        report.add(Severity::Error, what, why, Some(mend));
        return;
    }
    let mend = match error.sqlstate() {
        Some("42501") => {
            let statement = format!("GRANT CONNECT ON DATABASE {quoted} TO {}", mender.role());
            Some(mender.anywhere(&[&statement]))
        }
        Some("53300") if error.to_string().contains("for database") => {
            let statement = format!("ALTER DATABASE {quoted} CONNECTION LIMIT -1");
            Some(mender.anywhere(&[&statement]))
        }
        _ => error.hint().map(|hint| hint.to_string()),
    };
    let what = format!("database '{name}': {error}");
    let why = "all that is chosen is dumped, or nothing";
    report.add(Severity::Error, what, why, mend);
}

/// False where a restore is under way, or stopped half-way.
async fn restores(
    session: &mut Session,
    name: &str,
    mender: &Mender,
    options: &CheckOptions,
    report: &mut CheckReport,
) -> Result<bool, DumpError> {
    let Some(mark) = read_mark(session).await? else {
        return Ok(true);
    };
    let mend = match mark.whole {
        _ if mark.is_complete() => format!(
            "pgkeep restore {} --resume --into ...   # finishes it; this database itself is complete",
            mark.dump
        ),
        true => format!(
            "{}   # or finish it: pgkeep restore {} --resume --into ...",
            mender.in_database(
                "postgres",
                &[&format!("DROP DATABASE {}", quote_identifier(name))]
            ),
            mark.dump
        ),
        false => format!(
            "{}   # gives it up; or repeat that restore with --overwrite",
            mender.in_database(name, &[&format!("DROP SCHEMA {MARK_SCHEMA} CASCADE")])
        ),
    };
    let what = format!(
        "database '{name}' holds an unfinished restore of dump {}",
        mark.dump
    );
    let (severity, why) = missing_severity(options);
    report.add(severity, what, why, Some(mend));
    Ok(false)
}

/// False where the extension can't be relied upon.
async fn timescaledb(
    session: &mut Session,
    facts: &mut DatabaseFacts,
    mender: &Mender,
    options: &CheckOptions,
    report: &mut CheckReport,
) -> Result<bool, DumpError> {
    let name = facts.name.clone();
    let extension = match pgkeep_timescale::detect(session).await {
        Ok(None) => return Ok(true),
        Ok(Some(extension)) => extension,
        Err(source) => {
            return Err(DumpError::Timescale {
                database: name,
                source,
            });
        }
    };
    facts.timescaledb = Some(extension.version.clone());
    let version = extension.version.clone();
    if extension.restoring {
        let (severity, why) = missing_severity(options);
        let end = format!(
            "SELECT {}.timescaledb_post_restore()",
            quote_identifier(&extension.schema)
        );
        report.add(
            severity,
            format!("database '{name}' is in TimescaleDB's restore mode (it is being restored, or a restore stopped)"),
            format!("in that mode compressed rows can't be seen, so {why}"),
            Some(mender.in_database(&name, &[&end])),
        );
        return Ok(false);
    }
    if !extension.preloaded {
        let sql = "SELECT coalesce((SELECT setting FROM pg_catalog.pg_settings WHERE name = 'shared_preload_libraries'), '')";
        let rows = session
            .query(sql)
            .await
            .context(|| "reading the preloaded libraries".to_owned())?;
        let others: String = rows.first().and_then(|row| row.get(0).ok()).unwrap_or_default();
        // Where it is in the setting already, a restart is all it takes.
        let statement = pgkeep_timescale::preload_statement(&others);
        let mend = statement.map(|statement| mender.anywhere(&[&statement]));
        report.add(
            Severity::Error,
            format!("database '{name}' has TimescaleDB {version}, and the server doesn't load it"),
            "hypertables would look like empty tables",
            Some(match mend {
                Some(mend) => format!("{mend}   # then restart the server"),
                None => "restart the server, and see its log for timescaledb".to_owned(),
            }),
        );
        return Ok(false);
    }
    match extension.usable() {
        Ok(_) => {
            report.ok(format!("TimescaleDB {version} in database '{name}'"));
            Ok(true)
        }
        Err(source) => Err(DumpError::Timescale {
            database: name,
            source,
        }),
    }
}

async fn tables(
    session: &mut Session,
    facts: &mut DatabaseFacts,
    mender: &Mender,
    options: &CheckOptions,
    capacity: &LockCapacity,
    report: &mut CheckReport,
) -> Result<(), DumpError> {
    let name = facts.name.clone();
    let relations = snapshot::list(session, &options.filters, &name).await?;
    facts.tables = relations.len() as u64;
    let before = report.findings.len();
    let known = rights::Known {
        database: &name,
        relations: &relations,
        with_large_objects: !options.filters.selects_a_part(),
    };
    rights::check(session, &known, mender, report).await?;
    locks(&name, facts.tables, capacity, mender, report);
    if report.findings.len() == before {
        report.ok(format!(
            "everything in database '{name}' can be read ({} tables)",
            facts.tables
        ));
    }
    Ok(())
}

/// A dump locks every table, twice: for pg_dump, and for what reads the rows. Both of one table are one entry.
fn locks(name: &str, tables: u64, capacity: &LockCapacity, mender: &Mender, report: &mut CheckReport) {
    let locks = capacity.locks();
    // Other sessions lock, too.
    let needed = tables.saturating_add(tables / 4);
    if needed <= locks {
        return;
    }
    // Shared memory has some to spare, which isn't promised.
    let severity = match tables > locks.saturating_add(locks / 2) {
        true => Severity::Error,
        false => Severity::Warning,
    };
    let per_transaction = needed.div_ceil(capacity.transactions.max(1)).next_multiple_of(64);
    let statement = format!("ALTER SYSTEM SET max_locks_per_transaction = {per_transaction}");
    report.add(
        severity,
        format!(
            "database '{name}' has {tables} tables, and the server has room for {locks} locks (max_locks_per_transaction × \
             connections)"
        ),
        "a dump locks every table: \"out of shared memory\"",
        Some(format!("{}   # then restart the server", mender.anywhere(&[&statement]))),
    );
}
