//! `pgkeep restore`: a plan first, then the work, into a running server, a new one, or files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgkeep_base::{BackupId, nearest, quote_for_shell};
use pgkeep_config::Overrides;
use pgkeep_docker::ImageName;
use pgkeep_dump::manifest::DumpManifest;
use pgkeep_dump::memory;
use pgkeep_dump::restore::{self, HypertableRange, RestoreOptions, RestorePlan, RestoreReport};
use pgkeep_dump::{Chosen, DumpError, ExportFormat, ExportOptions, Progress, Skipped, Wanted};
use pgkeep_pg::Target;
use pgkeep_repository::Repository;
use pgkeep_repository::encryption::Encryption;
use serde_json::{Value, json};

use super::new_server::{self, NewServer};
use super::restore_plan::{ROLES_LEFT_OUT, tell_plan, tell_target_plan};
use super::{export, in_container, latest, new_container, restore_base, several};
use crate::args::RestoreArgs;
use crate::context::{self, Context, Settings};
use crate::exit::{Failure, Outcome};
use crate::output::{ACCENT, count, counted, duration, styled};
use crate::progress::Display;

/// Where a restore goes.
enum Into {
    /// A running server.
    Server(Box<Target>),
    /// A new one, in a directory.
    NewServer(PathBuf),
    /// A new one, in a container.
    Image(ImageName),
    /// Plain files, in a directory.
    Files(PathBuf),
}

impl Into {
    fn parse(text: &str) -> Result<Self, Failure> {
        if let Some(path) = text.strip_prefix("server:") {
            return Ok(Self::NewServer(directory(path, "server")?));
        }
        if let Some(name) = text.strip_prefix("image:") {
            return Ok(Self::Image(ImageName::parse(name)?));
        }
        if let Some(path) = text.strip_prefix("files:") {
            return Ok(Self::Files(directory(path, "files")?));
        }
        if let Some(failure) = mistyped(text) {
            return Err(failure);
        }
        Ok(Self::Server(Box::new(context::target(text)?)))
    }
}

/// What a target begins with, and what follows.
const TARGETS: [(&str, &str); 5] = [
    ("server", "server:DIRECTORY"),
    ("image", "image:NAME[:TAG]"),
    ("files", "files:DIRECTORY"),
    ("postgres", "postgres://user@host/database"),
    ("postgresql", "postgresql://user@host/database"),
];

/// A target whose first word is nearly one of those.
fn mistyped(text: &str) -> Option<Failure> {
    let (word, rest) = text.split_once(':')?;
    let is_uri = word.starts_with("postgres") && rest.starts_with("//");
    // In keywords and values an equals sign comes first.
    if word.contains(|c: char| !c.is_ascii_alphanumeric() && c != '-')
        || (is_uri && TARGETS.iter().any(|(known, _)| *known == word))
    {
        return None;
    }
    let meant = nearest(word, TARGETS.map(|(known, _)| known))?;
    let (_, form) = TARGETS.iter().find(|(known, _)| *known == meant)?;
    Some(Failure::usage(
        format!("--into begins with '{word}:', which is no kind of target"),
        format!("did you mean '{form}'?"),
    ))
}

fn directory(path: &str, word: &str) -> Result<PathBuf, Failure> {
    if path.is_empty() {
        return Err(Failure::usage(
            format!("--into {word}: names no directory"),
            format!("write --into {word}:DIRECTORY"),
        ));
    }
    Ok(PathBuf::from(path))
}

#[derive(Clone)]
pub(super) struct Work {
    pub settings: Settings,
    pub repository: Repository,
    pub id: BackupId,
    pub manifest: DumpManifest,
    /// Newer dumps that don't hold what is asked for.
    pub(super) skipped: Vec<Skipped>,
    /// What came of asking the repositories.
    asked: Outcome,
    /// The other repositories that have the dump.
    elsewhere: Vec<String>,
    pub options: RestoreOptions,
    pub(super) plan: RestorePlan,
}

impl Work {
    /// What a dry run that looks into no target says that needs attention.
    pub(super) fn foreseen(&self, context: &Context) -> Outcome {
        super::attention(context, &self.plan.attention)
    }

    /// A failure of the restore, on its way to the user.
    pub(super) fn failed(&self, error: DumpError) -> Failure {
        several::failed_to_read(error, &self.id, &self.elsewhere)
    }
}

/// `pgkeep restore`
pub async fn run(context: &Context, args: RestoreArgs) -> Result<Outcome, Failure> {
    restore_base::refuse_for_dump(&args)?;
    let into = into(&args)?;
    let work = context.cancellation.or(prepare(context, &args)).await?;
    Ok(work.asked.and(carry_out(context, args, into, &work).await?))
}

/// Where to, and whether the other flags go with it.
fn into(args: &RestoreArgs) -> Result<Option<Into>, Failure> {
    let into = args.into.as_deref().map(Into::parse).transpose()?;
    let part = !args.databases.is_empty() || !args.tables.is_empty() || args.hypertable.is_some();
    if part && matches!(into, Some(Into::Files(_))) {
        return Err(Failure::usage(
            "files hold the whole dump, and a part was asked for",
            "leave --database, --table and --hypertable out, or restore into a server",
        ));
    }
    if !matches!(into, Some(Into::Image(_))) && (args.container.is_some() || args.port.is_some()) {
        return Err(Failure::usage(
            "--container and --port are for a server made from an image",
            "write --into image:NAME[:TAG], or leave them out",
        ));
    }
    Ok(into)
}

async fn carry_out(
    context: &Context,
    args: RestoreArgs,
    into: Option<Into>,
    work: &Work,
) -> Result<Outcome, Failure> {
    // With a server to look into, there is more to say.
    let into_server = matches!(into, Some(Into::Server(_)));
    let work = &with_programs(context, work, into.as_ref()).await?;
    tell_plan(context, work, args.dry_run && !into_server);
    if !args.dry_run {
        // The restore says it again at its end; here it can still be stopped.
        work.plan
            .attention
            .iter()
            .for_each(|text| context.output.note(text));
    }
    match into {
        None => Ok(work.foreseen(context)),
        Some(Into::Files(path)) if args.dry_run => {
            context.output.summary(format!(
                "\nIt would be written to {}. Nothing was done.",
                path.display()
            ));
            Ok(work.foreseen(context))
        }
        Some(Into::Files(path)) => {
            let options = ExportOptions {
                format: ExportFormat::Files,
                output: path.display().to_string(),
                databases: Vec::new(),
                encryption: Encryption::None,
                store: work.settings.store_options(),
                programs: work.settings.programs(),
            };
            let written = export::write(context, &work.repository, &work.id, &work.manifest, &options).await;
            written.map_err(|error| work.failed(error))
        }
        Some(Into::Server(target)) if args.dry_run => check(context, work, &target).await,
        Some(Into::NewServer(path)) if args.dry_run => {
            new_server::programs(&work.settings, &work.manifest).await?;
            context.output.summary(format!(
                "\nA new server would be made in {}. Nothing was done.",
                path.display()
            ));
            Ok(work.foreseen(context))
        }
        Some(Into::Server(target)) => {
            let restored = restore(context, work, &target).await;
            let report = restored.map_err(|error| work.failed(error))?;
            Ok(tell(
                context,
                work,
                &report,
                &format!("at {}", target.endpoint()),
                None,
            ))
        }
        Some(Into::NewServer(path)) => into_new_server(context, work, &path, args.resume).await,
        Some(Into::Image(image)) => new_container::restore(context, work, image, &args).await,
    }
}

/// With programs that reach the server it goes into.
async fn with_programs(context: &Context, work: &Work, into: Option<&Into>) -> Result<Work, Failure> {
    let mut work = work.clone();
    if let Some(Into::Server(target)) = into {
        let major_min = work.manifest.server_version_num / 10_000;
        let finding = in_container::programs_for(context, &work.settings, major_min, target);
        work.options.programs = context.cancellation.or(finding).await?;
    }
    Ok(work)
}

async fn prepare(context: &Context, args: &RestoreArgs) -> Result<Work, Failure> {
    let range = |pattern| HypertableRange::new(pattern, args.from, args.to);
    let hypertable = args.hypertable.clone().map(range).transpose()?;
    let settings = context.settings(Overrides {
        jobs: args.jobs,
        ..Overrides::default()
    })?;
    let tables: Vec<String> = args.tables.iter().chain(&args.hypertable).cloned().collect();
    let wanted = Wanted {
        command: "restore",
        databases: &args.databases,
        tables: &tables,
    };
    let choice = several::choose(context, &settings, &args.backup, &wanted).await?;
    let Chosen {
        id,
        manifest,
        skipped,
    } = choice.chosen;
    let options = options(context, &settings, args, hypertable);
    let plan = restore::plan(&id, &manifest, &options)?;
    Ok(Work {
        settings,
        repository: choice.repository,
        id,
        manifest,
        skipped,
        asked: choice.outcome,
        elsewhere: choice.elsewhere,
        options,
        plan,
    })
}

fn options(
    context: &Context,
    settings: &Settings,
    args: &RestoreArgs,
    hypertable: Option<HypertableRange>,
) -> RestoreOptions {
    RestoreOptions {
        databases: args.databases.clone(),
        tables: args.tables.clone(),
        hypertable,
        target_database: args.target_database.clone(),
        overwrite: args.overwrite,
        resume: args.resume,
        jobs: settings.jobs_in_memory(&context.output, memory::load_jobs_max),
        roles: !args.no_roles,
        all_roles: args.all_roles,
        owners: !args.no_owner,
        privileges: !args.no_privileges,
        analyze: !args.no_analyze,
        enable_jobs: args.enable_jobs,
        update_extensions: args.update_extensions,
        programs: settings.programs(),
        work_directory: None,
    }
}

async fn check(context: &Context, work: &Work, target: &Target) -> Result<Outcome, Failure> {
    let (repository, id, manifest) = (&work.repository, &work.id, &work.manifest);
    let checking = async { Ok(restore::check(repository, id, manifest, target, &work.options).await?) };
    let planned = context.cancellation.or(checking).await?;
    tell_target_plan(context, work, &planned);
    context.output.summary(format!(
        "\n{} would take it. Nothing was done.",
        target.endpoint()
    ));
    planned.notes.iter().for_each(|text| context.output.note(text));
    let attention = [&work.plan.attention[..], &planned.attention].concat();
    Ok(super::attention(context, &attention))
}

/// The work itself, with its progress shown.
pub(super) async fn restore(
    context: &Context,
    work: &Work,
    target: &Target,
) -> Result<RestoreReport, DumpError> {
    let progress = Arc::new(Progress::default());
    let display = Display::start(context.shown, &progress);
    let cancelled = context.cancellation.cancelled();
    let (repository, manifest, options) = (&work.repository, &work.manifest, &work.options);
    let restored = restore::restore(
        repository, &work.id, manifest, target, options, &progress, cancelled,
    )
    .await;
    drop(display);
    restored
}

async fn into_new_server(
    context: &Context,
    work: &Work,
    path: &Path,
    resume: bool,
) -> Result<Outcome, Failure> {
    let mut work = work.clone();
    let programs = new_server::programs(&work.settings, &work.manifest).await?;
    work.options.programs = programs.clone();
    let work = &work;
    let starting = NewServer::start(path, &work.manifest, &programs, resume);
    let server = context.cancellation.or(starting).await?;
    let restored = restore(context, work, &server.target()).await;
    let command = server.start_command();
    let stopped = server.stop().await;
    let report = match (restored, stopped.err()) {
        (Ok(report), None) => report,
        (Ok(report), Some(failure)) => still_stopping(report, path, &failure),
        (Err(error), of_stop) => {
            if let Some(of_stop) = of_stop {
                context.output.note(not_stopped(path, &of_stop));
            }
            if error.is_damage() {
                context.output.note(format!(
                    "another dump takes another directory, or this one removed first: rm -r {}",
                    quote_for_shell(&path.display().to_string())
                ));
            }
            return Err(work.failed(error));
        }
    };
    let outcome = tell(context, work, &report, &format!("in {}", path.display()), None);
    context.output.summary(format!(
        "\nStart it with    {command}\nIt lets the users of this machine in by its socket; for the network, edit pg_hba.conf."
    ));
    Ok(outcome)
}

/// The restore is done, whatever becomes of the shutdown.
fn still_stopping(mut report: RestoreReport, path: &Path, failure: &Failure) -> RestoreReport {
    let not_stopped = not_stopped(path, failure);
    report
        .attention
        .push(format!("the restore is complete, but {not_stopped}"));
    report
}

fn not_stopped(path: &Path, failure: &Failure) -> String {
    format!(
        "the server in {} has not shut down yet: {}; it is ready to be started when {} is gone",
        path.display(),
        failure.text(),
        path.join("postmaster.pid").display()
    )
}

/// The summary; `server` is what `--json` says of a server that was made.
pub(super) fn tell(
    context: &Context,
    work: &Work,
    report: &RestoreReport,
    place: &str,
    server: Option<Value>,
) -> Outcome {
    let output = &context.output;
    let rows: u64 = report.databases.iter().map(|database| database.rows).sum();
    let relations: u64 = report.databases.iter().map(|database| database.relations).sum();
    let counted_again: u64 = report.databases.iter().map(|database| database.counted).sum();
    let names: Vec<&str> = report
        .databases
        .iter()
        .map(|database| database.target_name.as_str())
        .collect();
    output.summary(format!(
        "\nDump {} is restored {place}.\n",
        styled(ACCENT, &report.id)
    ));
    if !output.is_quiet() {
        output.facts(&[
            ("databases", names.join(", ")),
            (
                "rows",
                format!("{} in {}", count(rows), counted(relations, "table", "tables")),
            ),
            (
                "checked",
                format!(
                    "{} counted again{}, all as in the dump",
                    counted(counted_again, "table", "tables"),
                    // Chunks are tables above.
                    if counted_again == relations {
                        ""
                    } else {
                        " (hypertables as a whole)"
                    }
                ),
            ),
            ("roles", report.roles_created.join(", ")),
            ("time", duration(report.elapsed)),
        ]);
        if !report.roles_left_out.is_empty() {
            output.prose(format!("{ROLES_LEFT_OUT}: {}", report.roles_left_out.join(", ")));
        }
    }
    report.notes.iter().for_each(|text| output.note(text));
    let databases = report.databases.iter().map(|database| {
        json!({
            "name": database.name,
            "target_name": database.target_name,
            "tables": database.relations,
            "rows": database.rows,
            "tables_counted": database.counted,
        })
    });
    output.json(&json!({
        "id": report.id.to_string(),
        "skipped": latest::skipped_json(&work.skipped),
        "databases": databases.collect::<Vec<_>>(),
        "roles_created": report.roles_created,
        "roles_left_out": report.roles_left_out,
        "attention": report.attention,
        "notes": report.notes,
        "elapsed_seconds": report.elapsed.as_secs_f64(),
        "server": server,
    }));
    super::attention(context, &report.attention)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pgkeep_pg::server::TemporaryServerError;

    use super::*;

    #[test]
    fn a_shutdown_that_takes_long_does_not_make_a_restore_fail() {
        let report = RestoreReport {
            id: "d20261122T020000Z-7f3a9c".parse().unwrap(),
            databases: Vec::new(),
            roles_created: Vec::new(),
            roles_left_out: Vec::new(),
            attention: Vec::new(),
            notes: Vec::new(),
            elapsed: Duration::ZERO,
        };
        let failure = Failure::from(TemporaryServerError::StopDeadline(Duration::from_secs(600)));
        let report = still_stopping(report, Path::new("/srv/pg"), &failure);
        let told = report.attention.join("\n");
        for part in [
            "the restore is complete",
            "did not stop within 600 s",
            "/srv/pg/postmaster.pid is gone",
        ] {
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn a_mistyped_target_is_told_with_what_was_meant() {
        for (text, meant) in [
            ("fils:/srv/x", "files:DIRECTORY"),
            ("flie:///srv/x", "files:DIRECTORY"),
            ("file:///srv/x", "files:DIRECTORY"),
            ("sever:/srv/pg", "server:DIRECTORY"),
            ("imgae:postgres:17", "image:NAME"),
            ("postgress://u@h/d", "postgres://"),
            ("postgresql:u@h/d", "postgresql://"),
        ] {
            let hint = mistyped(text).and_then(|failure| failure.hint().map(str::to_owned));
            let hint = hint.unwrap_or_default();
            assert!(hint.contains(meant), "{text}: {hint}");
        }
        for text in [
            "postgres://u:p@h/d",
            "postgresql://h",
            "host=h password=files:x",
            "mysql://h",
            "",
            "dbname=x",
        ] {
            assert!(mistyped(text).is_none(), "{text}");
        }
    }
}
