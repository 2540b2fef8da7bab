//! Base backups in the commands that dumps have, too: which kind is meant, showing, verifying, pinning.

use std::sync::Arc;

use pgkeep_base::{BackupId, BackupKind, ByteCount, Progress};
use pgkeep_physical::manifest::{BaseManifest, BaseTotals};
use pgkeep_physical::memory;
use pgkeep_physical::verify::{VerifyReport, verify};
use pgkeep_repository::backups::BackupEntry;
use pgkeep_repository::{Repository, RepositoryError};
use serde_json::json;

use super::{list, recoverable};
use crate::args::VerifyArgs;
use crate::context::{Context, KeyUse, Settings};
use crate::exit::{Failure, Outcome};
use crate::output::{ACCENT, counted, styled, time};
use crate::printable;
use crate::progress::Display;

const LATEST: &str = "latest";

/// Whether a text names a base backup. `latest` is a dump wherever there is one.
pub async fn is_meant(context: &Context, settings: &Settings, text: &str) -> Result<bool, Failure> {
    if text != LATEST || settings.cluster.repositories()?.len() > 1 {
        return Ok(BackupKind::of_beginning(text) == Some(BackupKind::Base));
    }
    let Some(repository) = context.repository_if_there(settings, KeyUse::None).await? else {
        return Ok(false);
    };
    let is_there = async |kind| match repository.find(kind, text).await {
        Ok(_) => Ok::<_, Failure>(true),
        Err(RepositoryError::NoBackup { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    };
    Ok(!is_there(BackupKind::Dump).await? && is_there(BackupKind::Base).await?)
}

/// Refuses what can't be done with base backups yet.
pub fn refuse(text: &str, what: &str) -> Result<(), Failure> {
    match BackupKind::of_beginning(text) {
        Some(BackupKind::Base) => Err(Failure::usage(
            format!("{text} is a base backup, which this version can't {what}"),
            format!("name a dump: 'pgkeep {what} d...'; 'pgkeep list' shows them"),
        )),
        _ => Ok(()),
    }
}

/// `pgkeep show ID`
pub async fn show(context: &Context, settings: &Settings, text: &str) -> Result<Outcome, Failure> {
    let repository = context.repository(settings, KeyUse::Needed).await?;
    let suits = async |_: &BaseManifest| Ok(Ok(()));
    let (manifest, ()) = pgkeep_physical::choose(&repository, text, suits).await?;
    let entries = repository.backups(BackupKind::Base).await?;
    let entry = entries.iter().find(|entry| entry.id.to_string() == manifest.id);
    let shown =
        serde_json::to_value(&manifest).map_err(|error| Failure::failed("cannot write JSON", &error))?;
    let id: BackupId = manifest
        .id
        .parse()
        .map_err(|error| Failure::failed("cannot read the id", &error))?;
    let system = manifest.system_identifier.parse().unwrap_or_default();
    let windows = pgkeep_physical::windows_of(&repository, system).await?;
    context.output.json(&json!({
        "id": manifest.id,
        "kind": "base",
        "recoverable": windows.of_backup(&id).map(recoverable::document),
        "repository": repository.store().url(),
        "pin": entry.and_then(|entry| entry.pin.clone()),
        "verification": entry.and_then(|entry| entry.evidence.clone()),
        "manifest": shown,
    }));
    facts(context, &manifest, entry, repository.store().url());
    if let Some(window) = windows.of_backup(&id) {
        let words = recoverable::in_words(window);
        context.output.facts(&[("recoverable", words)]);
    }
    for omission in &manifest.omissions {
        context.output.note(format!("not in the backup: {omission}"));
    }
    for report in &manifest.damaged_pages.reports {
        context.output.note(format!("damaged at the server: {report}"));
    }
    Ok(Outcome::Done)
}

fn facts(context: &Context, manifest: &BaseManifest, entry: Option<&BackupEntry>, url: &str) {
    let totals = manifest.totals;
    let annotations = manifest.annotations.iter();
    let annotations: Vec<String> = annotations
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let tablespaces = manifest.tablespaces.iter();
    let tablespaces: Vec<String> = tablespaces
        .map(|space| format!("{} ({})", space.oid, space.path))
        .collect();
    let pin = entry.and_then(|entry| entry.pin.as_ref());
    let pinned = pin.map(|pin| format!("since {} {}", time(pin.at), pin.reason));
    let verified = entry.and_then(|entry| entry.evidence.as_ref());
    let verified = verified.map(|evidence| format!("{} ({})", list::in_words(evidence), time(evidence.at)));
    let checksums = match (manifest.data_checksums, manifest.damaged_pages.reports_total) {
        (false, _) => "none: pages were not checked".to_owned(),
        (true, 0) => "all right".to_owned(),
        (true, reports) => counted(reports, "report of damage", "reports of damage"),
    };
    let output = &context.output;
    output.line(format!("Base backup {}\n", styled(ACCENT, &manifest.id)));
    output.facts(&[
        ("cluster", manifest.cluster.clone()),
        ("server", format!("PostgreSQL {}", manifest.server_version)),
        ("system", manifest.system_identifier.clone()),
        ("started", time(manifest.started_at)),
        ("finished", time(manifest.finished_at)),
        (
            "WAL",
            format!(
                "{} to {} on timeline {}",
                manifest.start_lsn, manifest.stop_lsn, manifest.start_timeline
            ),
        ),
        ("files", counted(totals.files, "file", "files")),
        (
            "size",
            format!(
                "{}, stored in {}",
                ByteCount(totals.plain_bytes),
                ByteCount(totals.stored_bytes)
            ),
        ),
        ("stored", stored(&totals)),
        ("tablespaces", tablespaces.join(", ")),
        ("checksums", checksums),
        ("verified", verified.unwrap_or_else(|| "never".to_owned())),
        ("pinned", pinned.unwrap_or_default()),
        ("notes", annotations.join(", ")),
        ("repository", url.to_owned()),
        ("pgkeep", manifest.pgkeep_version.clone()),
    ]);
}

/// How much a base backup stored, and how much of what it needs was there already.
pub fn stored(totals: &BaseTotals) -> String {
    let new = format!(
        "{} in {}",
        ByteCount(new_bytes(totals)),
        counted(
            totals.objects.saturating_sub(totals.reused_objects),
            "object",
            "objects"
        )
    );
    match totals.reused_objects {
        0 => new,
        packs => format!(
            "{new}; {} in {} of earlier backups",
            ByteCount(totals.reused_bytes),
            counted(packs, "pack", "packs")
        ),
    }
}

/// What a base backup stored itself, in bytes.
pub fn new_bytes(totals: &BaseTotals) -> u64 {
    totals.stored_bytes.saturating_sub(totals.reused_bytes)
}

/// `pgkeep verify ID`, in each repository that has it.
pub async fn verify_named(
    context: &Context,
    settings: &Settings,
    args: &VerifyArgs,
) -> Result<Outcome, Failure> {
    if args.stored_only || args.sample.is_some() {
        return Err(Failure::usage(
            "a base backup is verified as a whole in this version",
            "leave --stored-only and --sample out",
        ));
    }
    let repository = context.repository(settings, KeyUse::Needed).await?;
    let id = pgkeep_physical::find(&repository, &args.backup).await?;
    verify_each(context, settings, &repository, &[id]).await
}

/// Verifies them one after another.
pub async fn verify_each(
    context: &Context,
    settings: &Settings,
    repository: &Repository,
    ids: &[BackupId],
) -> Result<Outcome, Failure> {
    let jobs = settings
        .jobs()
        .min(memory::restore_jobs_max(settings.memory_limit()));
    let mut outcome = Outcome::Done;
    for id in ids {
        let progress = Arc::new(Progress::default());
        let display = Display::start(context.shown, &progress);
        let report = verify(repository, id, jobs, &progress).await;
        drop(display);
        outcome = outcome.and(match report {
            Ok(report) => tell_verified(context, &report, repository.store().url()),
            Err(error) if ids.len() > 1 && error.is_removed() => {
                context.output.note(error.to_string());
                Outcome::Done
            }
            Err(error) => return Err(error.into()),
        });
    }
    Ok(outcome)
}

fn tell_verified(context: &Context, report: &VerifyReport, url: &str) -> Outcome {
    let output = &context.output;
    let passed = report.failures.is_empty();
    output.json(&json!({
        "id": report.id.to_string(),
        "kind": "base",
        "repository": url,
        "passed": passed,
        "depth": "contents",
        "objects": report.objects,
        "stored_bytes": report.stored_bytes,
        "failures": report.failures,
        "lacks": report.lacks,
    }));
    let id = styled(ACCENT, &report.id);
    let read = format!(
        "{}, {}, every block of it opened and hashed",
        counted(report.objects, "object", "objects"),
        ByteCount(report.stored_bytes)
    );
    if passed {
        output.prose_summary(format!("{id} is good: {read}"));
        return super::attention(context, &report.lacks);
    }
    output.prose(format!("{id} is damaged: {read}"));
    for failure in &report.failures {
        output.line(format!("  {}", printable::one_line(failure)));
    }
    let hint = "restore from another backup, take a new one now (pgkeep backup), and find out what happened to the store";
    output.error(&format!("backup {} is damaged", report.id), &[], Some(hint));
    Outcome::Failed
}
