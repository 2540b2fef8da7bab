//! The server and PostgreSQL's programs.

use std::time::Duration;

use pgkeep_base::Severity;
use pgkeep_dump::check::{self, CheckOptions};
use pgkeep_pg::{Target, programs};
use pgkeep_wal::Synchronous;

use super::{Findings, MAJOR_MIN};
use crate::args::DumpArgs;
use crate::commands::dump;
use crate::context::Settings;

/// A server that says nothing for so long is asked no further.
const ASK_MAX: Duration = Duration::from_secs(10);

/// What `dump` and `restore` call.
const PROGRAMS: [&str; 3] = ["pg_dump", "pg_dumpall", "pg_restore"];

pub(super) async fn check(settings: &Settings, findings: &mut Findings) {
    const AREA: &str = "server";
    match settings.target() {
        Err(failure) => findings.failure(AREA, &failure),
        Ok(target) => {
            if let Some(ignored) = target.passfile_ignored() {
                let what = format!(
                    "the password file {} is not used: {}",
                    ignored.path.display(),
                    ignored.reason
                );
                findings.add(
                    AREA,
                    Severity::Warning,
                    what,
                    "psql does the same",
                    ignored.mend.clone(),
                );
            }
            let (databases, filters) = dump::chosen(settings, &DumpArgs::scheduled());
            let options = CheckOptions {
                databases,
                filters,
                jobs: settings.jobs(),
            };
            let report = check::check(&target, &options).await;
            for finding in report.findings {
                findings.add(AREA, finding.severity, finding.what, finding.why, finding.mend);
            }
            findings.server = report.facts;
            if settings.cluster.wal.synchronous {
                synchronous(settings, &target, findings).await;
            }
        }
    }
    let major = findings.server.as_ref().map_or(MAJOR_MIN, |facts| facts.major);
    client_programs(settings, major, findings).await;
}

/// Whether a server that is to wait for its WAL's receiver does, and not for ever.
async fn synchronous(settings: &Settings, target: &Target, findings: &mut Findings) {
    const AREA: &str = "WAL";
    let slot = &settings.cluster.wal.slot;
    let waits = match tokio::time::timeout(ASK_MAX, Synchronous::ask(target)).await {
        Ok(Ok(waits)) => waits,
        Ok(Err(error)) => return findings.error(AREA, &error),
        // That the server doesn't answer is told already.
        Err(_) => return,
    };
    if waits.waits_for_ever() {
        findings.add(
            AREA,
            Severity::Warning,
            "synchronous_commit is remote_apply: a commit that waits for pgkeep alone waits for ever"
                .to_owned(),
            "A receiver stores WAL, and applies nothing.",
            Some("psql: ALTER SYSTEM SET synchronous_commit = 'on'; SELECT pg_reload_conf();".to_owned()),
        );
    }
    if !waits.names(slot) {
        findings.add(
            AREA,
            Severity::Warning,
            format!(
                "wal.synchronous is set, and the server doesn't wait: synchronous_standby_names lacks {slot}"
            ),
            "WAL is stored at once all the same, which costs requests.",
            Some(format!(
                "psql: ALTER SYSTEM SET synchronous_standby_names = '{slot}'; SELECT pg_reload_conf();"
            )),
        );
    }
}

async fn client_programs(settings: &Settings, major: u32, findings: &mut Findings) {
    let search = settings.programs();
    for name in PROGRAMS {
        match programs::find(name, major, &search).await {
            Ok(program) => findings.ok(
                "programs",
                format!(
                    "{name} {} ({})",
                    short_version(&program.version_text),
                    program.path.display()
                ),
            ),
            Err(error) => findings.error("programs", &error),
        }
    }
}

/// `17.12` of `pg_dump (PostgreSQL) 17.12 (Debian 17.12-0+deb13u1)`
fn short_version(text: &str) -> &str {
    let after = text
        .split_once("(PostgreSQL) ")
        .map_or(text, |(_, version)| version);
    after.split(' ').next().unwrap_or(after)
}
