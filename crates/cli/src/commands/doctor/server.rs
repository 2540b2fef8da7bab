//! The server and PostgreSQL's programs.

use pgkeep_base::Severity;
use pgkeep_dump::check::{self, CheckOptions};
use pgkeep_pg::programs;

use super::{Findings, MAJOR_MIN};
use crate::args::DumpArgs;
use crate::commands::dump;
use crate::context::Settings;

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
        }
    }
    let major = findings.server.as_ref().map_or(MAJOR_MIN, |facts| facts.major);
    client_programs(settings, major, findings).await;
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
