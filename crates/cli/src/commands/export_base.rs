//! `pgkeep export --format basebackup`: a base backup as `pg_basebackup` makes one.

use std::path::PathBuf;
use std::sync::Arc;

use pgkeep_base::{ByteCount, Progress, quote_for_shell};
use pgkeep_config::Overrides;
use pgkeep_physical::export::export;
use pgkeep_physical::memory;
use pgkeep_physical::restore::{Existing, RecoveryTarget, RestoreOptions, plan};
use serde_json::json;

use crate::args::ExportArgs;
use crate::context::{Context, KeyUse};
use crate::exit::{Failure, Outcome};
use crate::output::{ACCENT, counted, duration, styled};
use crate::progress::Display;

/// `pgkeep export --format basebackup`
pub async fn run(context: &Context, args: ExportArgs) -> Result<Outcome, Failure> {
    if !args.databases.is_empty() {
        return Err(Failure::usage(
            "a base backup is exported as a whole, and --database names a part",
            "leave --database out, or export a dump: d...",
        ));
    }
    let settings = context
        .settings(Overrides::default())?
        .of_base_backups(None, None);
    let options = RestoreOptions {
        directory: PathBuf::from(&args.output),
        tablespaces: args.tablespaces.places(),
        target: RecoveryTarget::BackupEnd,
        jobs: settings
            .jobs()
            .min(memory::restore_jobs_max(settings.memory_limit())),
        existing: Existing::Refuse,
    };
    let planning = async {
        let repository = context.repository(&settings, KeyUse::Needed).await?;
        let plan = plan(&repository, &args.backup, &options).await?;
        Ok((repository, plan))
    };
    let (repository, plan) = context.cancellation.or(planning).await?;
    let progress = Arc::new(Progress::default());
    let display = Display::start(context.shown, &progress);
    let exported = export(&repository, &plan, &progress, context.cancellation.cancelled()).await;
    drop(display);
    let report = exported?;
    let output = &context.output;
    let directory = report.directory.display().to_string();
    let quoted = quote_for_shell(&directory);
    output.summary(format!(
        "Base backup {} is written to {directory}: {}, {}, {} of WAL, in {}.",
        styled(ACCENT, &plan.id),
        counted(report.files, "file", "files"),
        ByteCount(report.bytes),
        counted(report.segments, "segment", "segments"),
        duration(report.elapsed)
    ));
    output.summary(format!(
        "\nCheck it with    pg_verifybackup {quoted}\nStart it with    pg_ctl -D {quoted} start     # of PostgreSQL {}",
        plan.manifest.server_version_num / 10_000
    ));
    output.json(&json!({
        "id": plan.id.to_string(),
        "kind": "base",
        "output": directory,
        "files": report.files,
        "bytes": report.bytes,
        "segments": report.segments,
        "attention": report.attention,
        "elapsed_seconds": report.elapsed.as_secs_f64(),
    }));
    Ok(super::attention(context, &report.attention))
}
