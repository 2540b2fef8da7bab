//! `pgkeep backup`: a base backup into the repository.

use std::sync::Arc;

use pgkeep_base::{ByteCount, Progress};
use pgkeep_config::{BackupReader, Overrides};
use pgkeep_pg::replication::Checkpoint;
use pgkeep_physical::{BackupOptions, BackupReport, ReaderChoice, memory};
use serde_json::json;

use crate::args::BackupArgs;
use crate::context::{Context, KeyUse, LEASE_DURATION, Settings};
use crate::exit::{Failure, Outcome};
use crate::output::{ACCENT, Output, counted, duration, ratio, styled};
use crate::progress::Display;

/// `pgkeep backup`
pub async fn run(context: &Context, args: BackupArgs) -> Result<Outcome, Failure> {
    let settings = context.settings(Overrides {
        upload_limit: args.upload_limit.clone(),
        ..Overrides::default()
    })?;
    let (report, url) = into_repository(context, &settings, args).await?;
    Ok(tell(context, &report, &url))
}

/// Takes one. Returns also the URL of the repository that it is in.
pub async fn into_repository(
    context: &Context,
    settings: &Settings,
    args: BackupArgs,
) -> Result<(BackupReport, String), Failure> {
    let settings = settings
        .clone()
        .of_base_backups(args.jobs, args.compression_level);
    let target = settings.target()?;
    check_repository(&settings)?;
    // Where there is a key, the backup before can be read with it.
    let opening = settings.repository_to_write(match args.full {
        true => KeyUse::None,
        false => KeyUse::IfThere,
    });
    let repository = context.cancellation.or(opening).await?;
    let level = settings.compression_level();
    let options = BackupOptions {
        reader: args
            .reader
            .map_or_else(|| reader(settings.cluster.backup.reader), Into::into),
        data_directory: settings.cluster.backup.data_directory.clone(),
        strict: args.strict,
        jobs: settings.jobs_in_memory(&context.output, |limit| memory::backup_jobs_max(limit, level)),
        checkpoint: match args.fast_checkpoint {
            true => Checkpoint::Fast,
            false => Checkpoint::Spread,
        },
        full: args.full,
        cache_directory: settings.cache_directory(),
        rate_kib_max: None,
        annotations: args.annotations.into_iter().collect(),
        accept_new_identity: args.accept_new_identity,
        lease_duration: LEASE_DURATION,
    };
    let progress = Arc::new(Progress::default());
    let display = Display::start(context.shown, &progress);
    let cancelled = context.cancellation.cancelled();
    let report = pgkeep_physical::backup(&repository, &target, &options, &progress, cancelled).await;
    drop(display);
    Ok((report?, repository.store().url().to_owned()))
}

/// The setting `backup.reader`.
fn reader(setting: BackupReader) -> ReaderChoice {
    match setting {
        BackupReader::Auto => ReaderChoice::Auto,
        BackupReader::Local => ReaderChoice::Local,
        BackupReader::Replication => ReaderChoice::Replication,
    }
}

/// Several repositories aren't written from one read yet.
pub fn check_repository(settings: &Settings) -> Result<(), Failure> {
    match settings.cluster.repositories()? {
        [_] => Ok(()),
        several => Err(Failure::usage(
            format!(
                "the setting 'repository' names {} places, and a base backup goes into one in this version",
                several.len()
            ),
            "name one with --repository URL",
        )),
    }
}

/// What was done, for a person.
fn facts(output: &Output, report: &BackupReport, url: &str) {
    let manifest = &report.manifest;
    let totals = manifest.totals;
    let (plain, stored) = (totals.plain_bytes, totals.stored_bytes);
    output.line(format!(
        "Base backup {} is complete.\n",
        styled(ACCENT, &report.id)
    ));
    let ratio = ratio(plain, stored);
    let ratio = if ratio.is_empty() {
        ratio
    } else {
        format!(" ({ratio})")
    };
    output.facts(&[
        ("server", format!("PostgreSQL {}", manifest.server_version)),
        (
            "files",
            format!(
                "{}, read {}",
                counted(totals.files, "file", "files"),
                match manifest.reader.as_str() {
                    "local" => "from the data directory",
                    _ => "by replication",
                }
            ),
        ),
        (
            "size",
            format!("{}, {} compressed{ratio}", ByteCount(plain), ByteCount(stored)),
        ),
        ("stored", super::base::stored(&totals)),
        (
            "WAL",
            format!(
                "{} to {} on timeline {}",
                manifest.start_lsn, manifest.stop_lsn, manifest.start_timeline
            ),
        ),
        ("time", duration(report.elapsed)),
        ("repository", url.to_owned()),
    ]);
    output.line(format!(
        "\nCheck it with    pgkeep verify {id}\nRestore it with  pgkeep restore {id} --into DIRECTORY",
        id = report.id
    ));
}

fn tell(context: &Context, report: &BackupReport, url: &str) -> Outcome {
    let output = &context.output;
    let manifest = &report.manifest;
    if output.is_quiet() {
        output.line(report.id.to_string());
    } else {
        facts(output, report, url);
    }
    output.json(&json!({
        "id": report.id.to_string(),
        "kind": "base",
        "repository": url,
        "server_version": manifest.server_version,
        "system_identifier": manifest.system_identifier,
        "started_at": manifest.started_at,
        "finished_at": manifest.finished_at,
        "start_lsn": manifest.start_lsn.to_string(),
        "stop_lsn": manifest.stop_lsn.to_string(),
        "timeline": manifest.start_timeline.as_u32(),
        "reader": manifest.reader,
        "fallback": report.fallback,
        "elapsed_seconds": report.elapsed.as_secs_f64(),
        "totals": manifest.totals,
        "attention": report.attention,
        "notes": report.notes,
        "swept": report.swept.backups.iter().map(ToString::to_string).collect::<Vec<_>>(),
    }));
    if let Some(reason) = &report.fallback {
        output.note(format!("read by replication: {reason}"));
    }
    if !report.swept.backups.is_empty() {
        let number = report.swept.backups.len() as u64;
        output.note(format!(
            "cleaned up after {} unfinished",
            counted(number, "backup", "backups")
        ));
    }
    report.notes.iter().for_each(|note| output.note(note.clone()));
    super::attention(context, &report.attention)
}
