//! `pgkeep doctor`: what is in place, what isn't, and what to do about it.

use jiff::Timestamp;
use pgkeep_base::{BackupKind, Classified};
use pgkeep_config::{EncryptionMode, Overrides};
use pgkeep_pg::programs::{self, ProgramSearch};
use pgkeep_pg::{Session, Target};
use pgkeep_repository::backups::BackupState;
use pgkeep_repository::{Repository, RepositoryError, keys, layout};
use pgkeep_store::{Severity, Store};
use serde_json::json;

use super::run as scheduler;
use crate::context::{Context, KeyUse, Settings};
use crate::exit::{Failure, Outcome};
use crate::output::{ACCENT, BOLD, DIM, counted, fold, styled, terminal_width, time, time_in};

/// The oldest server that is supported.
const MAJOR_MIN: u32 = 15;
/// What `dump` and `restore` call.
const PROGRAMS: [&str; 3] = ["pg_dump", "pg_dumpall", "pg_restore"];

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Ok,
    Info,
    Warning,
    Error,
}

impl Mark {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One check.
struct Finding {
    area: &'static str,
    mark: Mark,
    what: String,
    mend: Option<String>,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, area: &'static str, mark: Mark, what: impl Into<String>, mend: Option<String>) {
        self.0.push(Finding {
            area,
            mark,
            what: what.into(),
            mend,
        });
    }

    fn ok(&mut self, area: &'static str, what: impl Into<String>) {
        self.add(area, Mark::Ok, what, None);
    }

    fn error(&mut self, area: &'static str, error: &dyn Classified) {
        self.add(
            area,
            Mark::Error,
            error.to_string(),
            error.hint().map(|hint| hint.to_string()),
        );
    }
}

/// `pgkeep doctor`
pub async fn run(context: &Context) -> Result<Outcome, Failure> {
    let settings = context.settings(Overrides::default())?;
    let mut findings = Findings::default();
    configuration(&settings, &mut findings);
    schedules(&settings, &mut findings);
    encryption(&settings, &mut findings);
    repository(&settings, &mut findings).await;
    let major = match settings.target() {
        Ok(target) => server(&target, &mut findings).await,
        Err(failure) => {
            findings.0.push(of_failure("server", &failure));
            None
        }
    };
    client_programs(&settings.programs(), major.unwrap_or(MAJOR_MIN), &mut findings).await;
    Ok(tell(context, &findings))
}

fn of_failure(area: &'static str, failure: &Failure) -> Finding {
    Finding {
        area,
        mark: Mark::Error,
        what: failure.text(),
        mend: failure.hint().map(str::to_owned),
    }
}

fn configuration(settings: &Settings, findings: &mut Findings) {
    let area = "configuration";
    match &settings.loaded.path {
        Some(path) => findings.ok(area, format!("read from {}", path.display())),
        None => {
            let mend = format!(
                "settings can stand in one of: {}",
                pgkeep_config::SEARCH_PATHS.join(", ")
            );
            findings.add(
                area,
                Mark::Info,
                "no file: environment and flags decide",
                Some(mend),
            );
        }
    }
    findings.ok(area, format!("cluster '{}'", settings.name));
    for warning in &settings.loaded.warnings {
        findings.add(area, Mark::Warning, warning.to_string(), None);
    }
    let keep = &settings.cluster.keep;
    if keep.window.is_none() && [keep.daily, keep.weekly, keep.monthly, keep.yearly] == [0; 4] {
        let mend = "set keep = { window = \"30d\", daily = 7, weekly = 4, monthly = 6 }, or whatever suits"
            .to_owned();
        findings.add(
            area,
            Mark::Info,
            "no retention: every backup is kept for ever",
            Some(mend),
        );
    }
}

/// Due times that are shown.
const DUE_SHOWN: usize = 3;

fn schedules(settings: &Settings, findings: &mut Findings) {
    let area = "schedule";
    match scheduler::schedule(settings) {
        Ok(Some(schedule)) => {
            let due = schedule.upcoming(Timestamp::now()).take(DUE_SHOWN);
            let due: Vec<String> = due.map(|due| time_in(due, schedule.zone().clone())).collect();
            findings.ok(
                area,
                format!("'pgkeep run' dumps at {} ({schedule})", due.join(", ")),
            );
        }
        Ok(None) => {
            let mend =
                "for 'pgkeep run' set dump = { schedule = \"0 2 * * *\" }; cron or a timer will do as well";
            findings.add(area, Mark::Info, "no dump.schedule", Some(mend.to_owned()));
        }
        Err(failure) => findings.0.push(of_failure(area, &failure)),
    }
    for name in settings.without_effect() {
        let what = format!("'{name}' is set, and does nothing yet: only dumps are made");
        findings.add(area, Mark::Warning, what, None);
    }
}

fn encryption(settings: &Settings, findings: &mut Findings) {
    let area = "encryption";
    let cluster = &settings.cluster;
    let mut recipients = Vec::new();
    if cluster.encryption == EncryptionMode::None {
        let what = "off: who reaches the repository can read the backups";
        findings.add(
            area,
            Mark::Warning,
            what,
            Some("make a key with 'pgkeep key new' and set recipients".to_owned()),
        );
    } else {
        match keys::parse_recipients(&cluster.recipients) {
            Ok(parsed) => {
                findings.ok(
                    area,
                    format!(
                        "on, for {}",
                        counted(parsed.len() as u64, "public key", "public keys")
                    ),
                );
                recipients = parsed;
            }
            Err(error) => findings.error(area, &error),
        }
    }
    if let Some(path) = &cluster.identity_file {
        match keys::read_identity_file(path) {
            Ok(file) => {
                findings.ok(area, format!("secret key in {}", path.display()));
                for warning in &file.warnings {
                    findings.add(area, Mark::Warning, warning.to_string(), None);
                }
                let fits = file
                    .identities
                    .iter()
                    .any(|identity| recipients.contains(&identity.to_recipient()));
                if !recipients.is_empty() && !fits {
                    let mend =
                        "add its public key ('pgkeep key show FILE') to recipients, or name another file"
                            .to_owned();
                    findings.add(
                        area,
                        Mark::Warning,
                        "the secret key belongs to none of the recipients",
                        Some(mend),
                    );
                }
            }
            Err(error) => findings.error(area, &error),
        }
    } else if cluster.identity.is_some() {
        findings.ok(area, "secret key in PGKEEP_IDENTITY");
    } else if cluster.encryption == EncryptionMode::Age {
        let mend = "good on a host that only takes backups; --identity FILE reads them".to_owned();
        findings.add(
            area,
            Mark::Info,
            "no secret key here: backups can be taken, not read",
            Some(mend),
        );
    }
}

async fn repository(settings: &Settings, findings: &mut Findings) {
    let area = "repository";
    let store = match settings.repository_url() {
        Ok(url) => settings.store(url).await,
        Err(failure) => Err(failure),
    };
    let store = match store {
        Ok(store) => store,
        Err(failure) => return findings.0.push(of_failure(area, &failure)),
    };
    let probed = probe(&store, findings).await;
    if !probed {
        return;
    }
    let access = match settings.access(KeyUse::None) {
        Ok(access) => access,
        Err(failure) => return findings.0.push(of_failure(area, &failure)),
    };
    match Repository::open(store, &settings.name, access).await {
        Ok(repository) => backups(&repository, findings).await,
        Err(RepositoryError::NotARepository { .. }) => {
            findings.add(
                area,
                Mark::Info,
                "empty: the first 'pgkeep dump' makes the repository",
                None,
            );
        }
        Err(error) => findings.error(area, &error),
    }
}

async fn probe(store: &Store, findings: &mut Findings) -> bool {
    let area = "repository";
    match store.probe("", layout::is_disposable).await {
        Ok(report) => {
            findings.ok(area, format!("{} is reachable", store.url()));
            for finding in report.findings {
                let mark = match finding.severity {
                    Severity::Ok => Mark::Ok,
                    Severity::Info => Mark::Info,
                    Severity::Warning => Mark::Warning,
                    Severity::Error => Mark::Error,
                };
                findings.add(area, mark, finding.what, finding.mend);
            }
            true
        }
        Err(error) => {
            findings.error(area, &error);
            false
        }
    }
}

async fn backups(repository: &Repository, findings: &mut Findings) {
    let area = "repository";
    match repository.backups(BackupKind::Dump).await {
        Ok(entries) => {
            let damaged = entries.iter().filter(|entry| entry.state == BackupState::Damaged);
            for entry in damaged {
                findings.add(
                    area,
                    Mark::Error,
                    format!("the manifest of {} is damaged", entry.id),
                    Some("restore from another backup, and find out what happened to the store".to_owned()),
                );
            }
            let complete: Vec<_> = entries
                .iter()
                .filter(|entry| entry.state == BackupState::Complete)
                .collect();
            match complete.last() {
                None => findings.add(
                    area,
                    Mark::Info,
                    "no backup yet",
                    Some("take one with 'pgkeep dump'".to_owned()),
                ),
                Some(last) => {
                    let number = counted(complete.len() as u64, "backup", "backups");
                    findings.ok(
                        area,
                        format!("{number}, the newest of {}", time(last.id.started_at())),
                    );
                }
            }
        }
        Err(error) => findings.error(area, &error),
    }
}

/// The server's major version, when it can be reached.
async fn server(target: &Target, findings: &mut Findings) -> Option<u32> {
    let area = "server";
    let mut session = match Session::connect(target).await {
        Ok(session) => session,
        Err(error) => {
            findings.error(area, &error);
            return None;
        }
    };
    let version = session.parameter("server_version").unwrap_or("?").to_owned();
    let major = session.server_version_num() / 10_000;
    let what = format!(
        "PostgreSQL {version} at {}, as {}",
        target.endpoint(),
        target.user()
    );
    if major < MAJOR_MIN {
        let mend = format!("PostgreSQL {MAJOR_MIN} and later are supported: upgrade the server");
        findings.add(area, Mark::Error, what, Some(mend));
    } else {
        findings.ok(area, what);
    }
    match pgkeep_timescale::detect(&mut session).await {
        Ok(None) => {}
        Ok(Some(extension)) => {
            let what = format!(
                "TimescaleDB {} in database {}",
                extension.version,
                target.database()
            );
            match extension.usable() {
                Ok(_) => findings.ok(area, what),
                Err(error) => findings.error(area, &error),
            }
        }
        Err(error) => findings.error(area, &error),
    }
    session.close().await;
    Some(major)
}

async fn client_programs(search: &ProgramSearch, major: u32, findings: &mut Findings) {
    for name in PROGRAMS {
        match programs::find(name, major, search).await {
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

/// Where the texts of findings begin.
const FINDING_INDENT: usize = 12;

fn tell(context: &Context, findings: &Findings) -> Outcome {
    let output = &context.output;
    let mut area = "";
    for finding in &findings.0 {
        output.json(&json!({
            "area": finding.area,
            "severity": finding.mark.word(),
            "what": finding.what,
            "mend": finding.mend,
        }));
        if finding.area != area {
            output.line(format!(
                "{}{}",
                if area.is_empty() { "" } else { "\n" },
                styled(BOLD, finding.area)
            ));
            area = finding.area;
        }
        let style = match finding.mark {
            Mark::Ok => ACCENT,
            Mark::Info => DIM,
            Mark::Warning | Mark::Error => BOLD,
        };
        let pad = " ".repeat("warning".len() - finding.mark.word().len());
        let text = format!("  {}{pad}   {}", styled(style, finding.mark.word()), finding.what);
        fold(&text, terminal_width(), FINDING_INDENT)
            .iter()
            .for_each(|line| output.line(line));
        if let Some(mend) = finding.mend.as_ref().filter(|_| finding.mark != Mark::Ok) {
            output.line(format!("            {}", styled(DIM, mend)));
        }
    }
    let with = |mark| findings.0.iter().filter(|finding| finding.mark == mark).count() as u64;
    let (errors, warnings) = (with(Mark::Error), with(Mark::Warning));
    match (errors, warnings) {
        (0, 0) => output.summary("\nEverything is in place."),
        (0, _) => output.summary(format!(
            "\nIt works, with {}.",
            counted(warnings, "warning", "warnings")
        )),
        _ => output.summary(format!("\n{} to mend.", counted(errors, "error", "errors"))),
    }
    match (errors, warnings) {
        (0, 0) => Outcome::Done,
        (0, _) => Outcome::Attention,
        _ => Outcome::Failed,
    }
}
