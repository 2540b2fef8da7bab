//! Whether a server can be dumped as the settings want it, before it is tried: what is there, what would fail, what would be
//! missing from the dump, and the command that mends each. Nothing is changed.

mod database;
mod pooler;
mod rights;
mod server;

use pgkeep_base::{Classified, Severity, quote_identifier};
use pgkeep_pg::{PgError, Session, Target};

use crate::DumpError;
use crate::manifest::Filters;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What was found.
    pub what: String,
    /// What comes of it; empty where that goes without saying.
    pub why: String,
    /// A shell's command that mends it, or, where there is none, what to do.
    pub mend: Option<String>,
}

/// What is to be dumped.
#[derive(Debug, Clone, Default)]
pub struct CheckOptions {
    /// The databases' names; empty for all.
    pub databases: Vec<String>,
    /// Parts of them.
    pub filters: Filters,
    /// Tables read at once.
    pub jobs: usize,
}

/// One database.
#[derive(Debug, Clone)]
pub struct DatabaseFacts {
    /// Its name.
    pub name: String,
    /// Its size on disk, where the role may see it.
    pub bytes: Option<u64>,
    /// Tables and partitions to dump.
    pub tables: u64,
    /// TimescaleDB's version in it.
    pub timescaledb: Option<String>,
}

/// What the server is.
#[derive(Debug, Clone)]
pub struct ServerFacts {
    /// Its version in words.
    pub version: String,
    /// Its major version.
    pub major: u32,
    /// What tells the database cluster from all others, where it can be read.
    pub system_identifier: Option<u64>,
    /// Where its data is, where the role may see it.
    pub data_directory: Option<String>,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// Whether the role is a superuser.
    pub is_superuser: bool,
    /// Whether the role may stream WAL and base backups.
    pub may_replicate: bool,
    /// The databases that can be read.
    pub databases: Vec<DatabaseFacts>,
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct CheckReport {
    /// In the order of the checks.
    pub findings: Vec<Finding>,
    /// What the server is, where it could be reached.
    pub facts: Option<ServerFacts>,
}

impl CheckReport {
    fn add(
        &mut self,
        severity: Severity,
        what: impl Into<String>,
        why: impl Into<String>,
        mend: Option<String>,
    ) {
        self.findings.push(Finding {
            severity,
            what: what.into(),
            why: why.into(),
            mend,
        });
    }

    fn ok(&mut self, what: impl Into<String>) {
        self.add(Severity::Ok, what, "", None);
    }

    fn error(&mut self, error: &dyn Classified) {
        let mend = error.hint().map(|hint| hint.to_string());
        self.add(Severity::Error, error.to_string(), "", mend);
    }
}

/// How mends are written: who runs them, against which server.
struct Mender {
    target: Target,
    /// A role that may do what the dumping one perhaps may not.
    administrator: String,
}

impl Mender {
    /// Statements in a database, run by an administrator.
    fn in_database(&self, database: &str, statements: &[&str]) -> String {
        self.target.psql(&self.administrator, database, statements)
    }

    /// Statements for the whole server.
    fn anywhere(&self, statements: &[&str]) -> String {
        self.in_database(self.target.database(), statements)
    }

    /// The dumping role, quoted.
    fn role(&self) -> String {
        quote_identifier(self.target.user())
    }
}

/// Looks at the server and its databases. What can't be looked at is a finding.
pub async fn check(target: &Target, options: &CheckOptions) -> CheckReport {
    let mut report = CheckReport::default();
    let mut session = match Session::connect(target).await {
        Ok(session) => session,
        Err(error) => {
            cannot_connect(target, &error, &mut report);
            return report;
        }
    };
    // Of several hosts, the one that answered.
    let target = session.target().clone();
    if let Err(error) = server_and_databases(&target, &mut session, options, &mut report).await {
        report.error(&error);
    }
    session.close().await;
    report
}

async fn server_and_databases(
    target: &Target,
    session: &mut Session,
    options: &CheckOptions,
    report: &mut CheckReport,
) -> Result<(), DumpError> {
    if !pooler::check(target, session, report).await? {
        return Ok(());
    }
    let (mut facts, mender) = server::check(target, session, options, report).await?;
    if facts.major < server::MAJOR_MIN {
        report.facts = Some(facts);
        return Ok(());
    }
    let names = database::choose(&mender, session, options, report).await?;
    let capacity = server::lock_capacity(session).await?;
    for name in &names {
        let checked = database::check(&mender, name, options, &capacity, report).await;
        facts.databases.extend(checked);
    }
    report.facts = Some(facts);
    Ok(())
}

/// The reason of a failed connection, with what can be said about it beyond the error's own hint.
fn cannot_connect(target: &Target, error: &PgError, report: &mut CheckReport) {
    let mend = match error.sqlstate() {
        Some("3D000") => {
            let list = target.psql(
                target.user(),
                "postgres",
                &["SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate"],
            );
            format!("{list}   # then name one of these in the connection: dbname=NAME")
        }
        Some("42501") if error.to_string().contains("for database") => format!(
            "{}   # as the database's owner or a superuser",
            target.psql(
                "postgres",
                "postgres",
                &[&format!(
                    "GRANT CONNECT ON DATABASE {} TO {}",
                    quote_identifier(target.database()),
                    quote_identifier(target.user())
                )]
            )
        ),
        _ => return report.error(error),
    };
    report.add(Severity::Error, error.to_string(), "", Some(mend));
}
