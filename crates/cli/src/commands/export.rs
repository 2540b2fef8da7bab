//! `pgkeep export`, and `pgkeep restore --into files:DIRECTORY`: a dump as files.

use std::sync::Arc;

use pgkeep_base::{BackupId, ByteCount};
use pgkeep_config::Overrides;
use pgkeep_dump::manifest::DumpManifest;
use pgkeep_dump::{DumpError, ExportFormat, ExportOptions, Progress, Wanted};
use pgkeep_repository::Repository;
use pgkeep_repository::encryption::Encryption;
use serde_json::json;

use super::several::{self, Choice};
use super::{base, latest};
use crate::args::{ExportArgs, ExportAs};
use crate::context::Context;
use crate::exit::{Failure, Outcome};
use crate::output::{ACCENT, styled};
use crate::progress::Display;

/// `pgkeep export ID`
pub async fn run(context: &Context, args: ExportArgs) -> Result<Outcome, Failure> {
    base::refuse(&args.backup, "export")?;
    let settings = context.settings(Overrides::default())?;
    let format = match args.format {
        ExportAs::Files => ExportFormat::Files,
        ExportAs::Plain => ExportFormat::Plain,
    };
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
