//! `pgkeep restore` of a base backup.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgkeep_base::{BackupKind, ByteCount, Progress, quote_for_shell};
use pgkeep_config::Overrides;
use pgkeep_physical::memory;
use pgkeep_physical::restore::{self, Existing, RecoveryTarget, RestoreOptions, RestorePlan, RestoreReport};
use serde_json::json;

use crate::args::RestoreArgs;
use crate::context::{Context, KeyUse, Settings};
use crate::exit::{Failure, Outcome};
use crate::output::{ACCENT, counted, duration, styled, time};
use crate::printable;
use crate::progress::Display;

/// Whether a base backup is meant: by the id's letter; else by a directory as the target, or by what only recovery has.
pub fn is_meant(args: &RestoreArgs) -> bool {
    match BackupKind::of_beginning(&args.backup) {
        Some(kind) => kind == BackupKind::Base,
        None => directory(args).is_some() || args.recovery.any(),
    }
}

/// A target that is a path.
fn directory(args: &RestoreArgs) -> Option<PathBuf> {
    let text = args.into.as_deref()?;
    let is_path = text.starts_with(['/', '.', '~'])
        || (text.contains('/') && !text.contains("://") && !text.contains(['=', ':']));
    is_path.then(|| PathBuf::from(text))
}

/// Refuses of a dump what only a base backup has.
pub fn refuse_for_dump(args: &RestoreArgs) -> Result<(), Failure> {
    match directory(args) {
        _ if args.recovery.any() => Err(Failure::usage(
            format!("{} is a dump, which has no WAL to recover by", args.backup),
            "leave --to-... and --tablespace out, or name a base backup: b...",
        )),
        Some(path) => Err(Failure::usage(
            format!("{} is a dump, which goes into a server", args.backup),
            format!(
                "write --into server:{path} for a new server there, or --into files:{path}",
                path = quote_for_shell(&path.display().to_string())
            ),
        )),
        None => Ok(()),
    }
}

/// Refuses of a base backup what only a dump has.
fn refuse_for_base(args: &RestoreArgs) -> Result<(), Failure> {
    let flags = [
        ("--database", !args.databases.is_empty()),
        ("--table", !args.tables.is_empty()),
        ("--hypertable", args.hypertable.is_some()),
        ("--target-database", args.target_database.is_some()),
        ("--container", args.container.is_some()),
        ("--port", args.port.is_some()),
        ("--overwrite", args.overwrite),
        ("--no-roles", args.no_roles),
        ("--all-roles", args.all_roles),
        ("--no-owner", args.no_owner),
        ("--no-privileges", args.no_privileges),
        ("--no-analyze", args.no_analyze),
        ("--enable-jobs", args.enable_jobs),
        ("--update-extensions", args.update_extensions),
    ];
    match flags.iter().find(|(_, given)| *given) {
        Some((flag, _)) => Err(Failure::usage(
            format!("{flag} is for dumps, and a base backup is restored as a whole"),
            format!("leave {flag} out, or restore a dump: 'pgkeep list' shows them"),
        )),
        None => Ok(()),
    }
}

fn options(settings: &Settings, args: &RestoreArgs, jobs: usize) -> Result<RestoreOptions, Failure> {
    let directory = directory(args).ok_or_else(|| {
        Failure::usage(
            "a base backup is restored into a directory",
            "write --into DIRECTORY, such as --into /srv/restored (a new or empty one)",
        )
    })?;
    let recovery = &args.recovery;
    let target = match (&recovery.to_lsn, &recovery.to_time) {
        (Some(lsn), _) => RecoveryTarget::Lsn(*lsn),
        (_, Some(text)) => RecoveryTarget::Time(restore::parse_time(text, &settings.cluster.timezone)?),
        _ if recovery.to_backup_end => RecoveryTarget::BackupEnd,
        _ => RecoveryTarget::End,
    };
    Ok(RestoreOptions {
        directory,
        tablespaces: recovery.tablespaces.places(),
        target,
        jobs,
        existing: match (recovery.delta, args.resume) {
            (true, _) => Existing::Replace,
            (false, true) => Existing::Resume,
            (false, false) => Existing::Refuse,
        },
    })
}

/// `pgkeep restore`
pub async fn run(context: &Context, args: RestoreArgs) -> Result<Outcome, Failure> {
    refuse_for_base(&args)?;
    let settings = context
        .settings(Overrides::default())?
        .of_base_backups(args.jobs, None);
    let jobs = settings
        .jobs()
        .min(memory::restore_jobs_max(settings.memory_limit()));
    let options = options(&settings, &args, jobs)?;
    let planning = async {
        let repository = context.repository(&settings, KeyUse::Needed).await?;
        let plan = restore::plan(&repository, &args.backup, &options).await?;
        Ok((repository, plan))
    };
    let (repository, plan) = context.cancellation.or(planning).await?;
    tell_plan(context, &plan, args.dry_run);
    if args.dry_run {
        return Ok(super::attention(context, &plan.attention));
    }
    let progress = Arc::new(Progress::default());
    let display = Display::start(context.shown, &progress);
    let cancelled = context.cancellation.cancelled();
    let report = restore::restore(&repository, &plan, &progress, cancelled).await;
    drop(display);
    Ok(tell(context, &plan, &report?))
}

fn tell_plan(context: &Context, plan: &RestorePlan, only_planned: bool) {
    let output = &context.output;
    let manifest = &plan.manifest;
    output.summary(format!("Base backup {}\n", styled(ACCENT, &plan.id)));
    if !output.is_quiet() {
        output.facts(&[
            ("server", format!("PostgreSQL {}", manifest.server_version)),
            ("finished", time(manifest.finished_at)),
            ("into", plan.options.directory.display().to_string()),
            (
                "size",
                format!(
                    "{}, {}",
                    counted(manifest.totals.files, "file", "files"),
                    ByteCount(plan.bytes())
                ),
            ),
            ("recovery", format!("to {}", plan.options.target)),
            (
                "WAL",
                format!("{} to {}, without a gap", manifest.start_lsn, plan.covered_to),
            ),
        ]);
    }
    let (removed, count) = &plan.removed;
    if *count > 0 {
        output.summary(format!(
            "\nWhat is there and isn't in the backup {}: {}",
            if only_planned {
                "would be removed"
            } else {
                "is removed"
            },
            counted(*count as u64, "entry", "entries")
        ));
        removed.iter().for_each(|path| {
            output.summary(format!("  {}", printable::one_line(&path.display().to_string())))
        });
        if removed.len() < *count {
            output.summary(format!("  and {} more", count - removed.len()));
        }
    }
    if only_planned {
        output.json(&json!({
            "id": plan.id.to_string(),
            "kind": "base",
            "directory": plan.options.directory,
            "bytes": plan.bytes(),
            "target": plan.options.target.to_string(),
            "wal_from": manifest.start_lsn.to_string(),
            "wal_to": plan.covered_to.to_string(),
            "removed": count,
            "attention": plan.attention,
        }));
        output.summary("\nNothing was done.");
    }
}

fn tell(context: &Context, plan: &RestorePlan, report: &RestoreReport) -> Outcome {
    let output = &context.output;
    let directory = report.directory.display().to_string();
    output.summary(format!(
        "\nBase backup {} is restored in {directory}.\n",
        styled(ACCENT, &plan.id)
    ));
    if !output.is_quiet() {
        output.facts(&[
            (
                "files",
                format!(
                    "{}, {}",
                    counted(report.files, "file", "files"),
                    ByteCount(report.bytes)
                ),
            ),
            (
                "WAL",
                counted(report.segments, "segment lies ready", "segments lie ready"),
            ),
            (
                "last transaction",
                report.last_transaction_at.map(time).unwrap_or_default(),
            ),
            ("time", duration(report.elapsed)),
        ]);
    }
    output.summary(format!(
        "\nStart it with    {}\nIt recovers to {} by itself, and then takes writes. When it is what you wanted, take the block \
         'pgkeep restore' out of postgresql.auto.conf, which also keeps it from archiving, and remove {}.",
        start_command(&report.directory, plan.manifest.server_version_num),
        plan.options.target,
        quote_for_shell(&report.directory.join("pgkeep_wal").display().to_string()),
    ));
    output.json(&json!({
        "id": plan.id.to_string(),
        "kind": "base",
        "directory": directory,
        "files": report.files,
        "bytes": report.bytes,
        "removed": report.removed,
        "segments": report.segments,
        "target": plan.options.target.to_string(),
        "last_transaction_at": report.last_transaction_at,
        "attention": report.attention,
        "elapsed_seconds": report.elapsed.as_secs_f64(),
    }));
    super::attention(context, &report.attention)
}

/// By a server of the same major version.
fn start_command(directory: &Path, server_version_num: u32) -> String {
    format!(
        "pg_ctl -D {} start     # of PostgreSQL {}",
        quote_for_shell(&directory.display().to_string()),
        server_version_num / 10_000
    )
}
