//! `pgkeep export`, and `pgkeep restore --into files:DIRECTORY`: a dump as files.

use std::sync::Arc;

use pgkeep_base::{BackupId, BackupKind, ByteCount};
use pgkeep_config::Overrides;
use pgkeep_dump::manifest::DumpManifest;
use pgkeep_dump::{DumpError, ExportFormat, ExportOptions, Progress, Wanted};
use pgkeep_repository::Repository;
use pgkeep_repository::encryption::Encryption;
use serde_json::json;

use super::several::{self, Choice};
use super::{export_base, latest};
use crate::args::{ExportArgs, ExportAs, TablespaceArgs};
use crate::context::Context;
use crate::exit::{Failure, Outcome};
use crate::output::{ACCENT, styled};
use crate::progress::Display;

/// `pgkeep export ID`
pub async fn run(context: &Context, args: ExportArgs) -> Result<Outcome, Failure> {
    let kind = BackupKind::of_beginning(&args.backup);
    let format = match (args.format, kind) {
        (Some(ExportAs::Basebackup), Some(BackupKind::Dump)) => {
            return Err(Failure::usage(
                format!(
                    "{} is a dump, and a base backup is made of base backups alone",
                    args.backup
                ),
                "leave --format basebackup out, or name a base backup: b...",
            ));
        }
        (Some(ExportAs::Basebackup), _) | (None, Some(BackupKind::Base)) => {
            return export_base::run(context, args).await;
        }
        (Some(ExportAs::Files) | None, _) => ExportFormat::Files,
        (Some(ExportAs::Plain), _) => ExportFormat::Plain,
    };
    if kind == Some(BackupKind::Base) {
        return Err(Failure::usage(
            format!("{} is a base backup, which holds files and no rows", args.backup),
            "write --format basebackup, or name a dump: d...",
        ));
    }
    if args.tablespaces != TablespaceArgs::default() {
        return Err(Failure::usage(
            "--tablespace is for base backups",
            "leave it out, or add --format basebackup",
        ));
    }
    let settings = context.settings(Overrides::default())?;
    if format == ExportFormat::Files && !args.databases.is_empty() {
        return Err(Failure::usage(
            "a folder holds the whole dump, and --database names a part",
            "add --format plain, or leave --database out",
        ));
    }
    let wanted = Wanted {
        command: "export",
        databases: &args.databases,
        tables: &[],
    };
    let choosing = several::choose(context, &settings, &args.backup, &wanted);
    let Choice {
        repository,
        chosen,
        outcome,
        elsewhere,
    } = context.cancellation.or(choosing).await?;
    latest::tell_omissions(&context.output, &chosen.manifest.omissions);
    let encryption = match format {
        ExportFormat::Files => Encryption::None,
        ExportFormat::Plain => settings.file_encryption(&args.output)?,
    };
    let options = ExportOptions {
        format,
        output: args.output,
        databases: args.databases,
        encryption,
        store: settings.store_options(),
        programs: settings.programs(),
    };
    let written = write(context, &repository, &chosen.id, &chosen.manifest, &options).await;
    let written = written.map_err(|error| several::failed_to_read(error, &chosen.id, &elsewhere))?;
    Ok(outcome.and(written))
}

/// Writes it and tells.
pub async fn write(
    context: &Context,
    repository: &Repository,
    id: &BackupId,
    manifest: &DumpManifest,
    options: &ExportOptions,
) -> Result<Outcome, DumpError> {
    let progress = Arc::new(Progress::default());
    let display = Display::start(context.shown, &progress);
    let cancelled = context.cancellation.cancelled();
    let bytes = pgkeep_dump::export(repository, id, manifest, options, &progress, cancelled).await;
    drop(display);
    let bytes = bytes?;
    let output = &context.output;
    output.summary(format!(
        "Dump {} is written to {} ({}).",
        styled(ACCENT, id),
        options.output,
        ByteCount(bytes)
    ));
    output.summary(match options.format {
        ExportFormat::Files => format!("\nRestore it with  sh {}/restore.sh", options.output),
        ExportFormat::Plain if options.encryption.is_encrypted() => "\nIt is encrypted.".to_owned(),
        ExportFormat::Plain => "\nIt is not encrypted; psql reads it.".to_owned(),
    });
    output.json(&json!({ "id": id.to_string(), "output": options.output, "bytes": bytes }));
    Ok(Outcome::Done)
}
