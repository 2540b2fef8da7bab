//! `pgkeep verify`: whether dumps are what was written.

use std::sync::Arc;

use pgkeep_base::{BackupId, BackupKind, ByteCount, Classified, RetryClass};
use pgkeep_config::Overrides;
use pgkeep_dump::verify::{Sample, VerifyDepth, VerifyOptions, VerifyReport, verify};
use pgkeep_dump::{Progress, memory};
use pgkeep_repository::Repository;
use serde_json::{Value, json};

use super::several::{self, Opened};
use super::{base, latest};
use crate::args::VerifyArgs;
use crate::context::{Context, KeyUse, Settings};
use crate::exit::{Failure, Outcome};
use crate::output::{ACCENT, count, counted, duration, styled};
use crate::printable;
use crate::progress::Display;

/// `pgkeep verify [ID|all]`
pub async fn run(context: &Context, args: VerifyArgs) -> Result<Outcome, Failure> {
    let settings = context.settings(Overrides {
        jobs: args.jobs,
        ..Overrides::default()
    })?;
    let keys = if args.stored_only {
        // Not for the verification: it tells which dump is the latest.
        KeyUse::IfThere
    } else {
        KeyUse::Needed
    };
    if base::is_meant(context, &settings, &args.backup).await? {
        return base::verify_named(context, &settings, &args).await;
    }
    if args.backup == "all" {
        return several::in_each(context, &settings, async |settings| {
            let repository = context.repository(settings, keys).await?;
            let others = latest::all_of(&repository, BackupKind::Base).await?;
            let dumps = repository.backups(BackupKind::Dump).await?;
            let any = dumps
                .iter()
                .any(|entry| entry.state.is_there() || entry.has_lost_manifest);
            let dumps = match any || others.is_empty() {
                true => {
                    let (ids, outcome) = latest::all(context, &repository, dumps)?;
                    outcome.and(in_one(context, settings, &repository, &ids, &args, false).await?)
                }
                false => Outcome::Done,
            };
            if args.stored_only || args.sample.is_some() {
                let left = others.iter().map(|id| {
                    format!("{id} is a base backup, which is verified as a whole only: 'pgkeep verify {id}'")
                });
                return Ok(dumps.and(super::attention(context, &left.collect::<Vec<_>>())));
            }
            Ok(dumps.and(base::verify_each(context, settings, &repository, &others).await?))
        })
        .await;
    }
    let (id, having, mut outcome) = several::find(context, &settings, keys, &args.backup, "verify").await?;
    let (mut sound, mut damaged) = (None, Vec::new());
    for opened in &having {
        let Opened { settings, repository } = opened;
        let ids = std::slice::from_ref(&id);
        match in_one(context, settings, repository, ids, &args, having.len() > 1).await {
            Ok(of_one) => {
                match of_one {
                    Outcome::Failed => damaged.push(opened),
                    _ => sound = sound.or(Some(opened.url())),
                }
                outcome = outcome.and(of_one);
            }
            Err(failure) if having.len() == 1 => return Err(failure),
            Err(failure) => {
                failure.at(opened.url()).tell(&context.output);
                outcome = Outcome::Failed;
            }
        }
    }
    if having.len() > 1 {
        for opened in damaged {
            several::tell_damaged(context, &settings, opened.url(), &id, sound);
        }
    }
    Ok(outcome)
}

async fn in_one(
    context: &Context,
    settings: &Settings,
    repository: &Repository,
    ids: &[BackupId],
    args: &VerifyArgs,
    names_repository: bool,
) -> Result<Outcome, Failure> {
    let depth = if args.stored_only {
        VerifyDepth::Stored
    } else {
        VerifyDepth::Contents
    };
    let sample = args.sample.map(|fraction| Sample {
        fraction,
        seed: args.seed.unwrap_or_else(rand::random),
    });
    let options = VerifyOptions {
        depth,
        sample,
        jobs: settings.jobs_in_memory(&context.output, memory::load_jobs_max),
    };
    let mut outcome = Outcome::Done;
    let (mut removed, mut locked) = (0, 0);
    for id in ids {
        let progress = Arc::new(Progress::default());
        let display = Display::start(context.shown, &progress);
        let report = verify(repository, id, &options, &progress).await;
        drop(display);
        outcome = outcome.and(match report {
            Ok(report) => tell(context, &report, sample, repository.store().url(), names_repository),
            // All that are there: this one isn't any more.
            Err(error) if ids.len() > 1 && error.is_removed() => {
                context.output.note(error.to_string());
                removed += 1;
                Outcome::Done
            }
            // One of a later version, say: the others can be verified all the same.
            Err(error) if ids.len() > 1 && error.retry_class() == RetryClass::Permanent => {
                Failure::from(error).tell(&context.output);
                Outcome::Failed
            }
            // One for another key says nothing of the others. The last of them, if none could be opened, says it for all.
            Err(error) if error.is_locked() && locked + removed + 1 < ids.len() => {
                context.output.attention(format!("{id} is not verified: {error}"));
                locked += 1;
                Outcome::Attention
            }
            Err(error) if error.is_locked() => {
                return Err(Failure::from(error).or_else_do(
                    "without the secret key, 'pgkeep verify --stored-only' compares what is stored with its hashes",
                ));
            }
            Err(error) => return Err(error.into()),
        });
    }
    if removed == ids.len() {
        return Err(repository.no_backup().into());
    }
    Ok(outcome)
}

fn tell(
    context: &Context,
    report: &VerifyReport,
    sample: Option<Sample>,
    url: &str,
    names_repository: bool,
) -> Outcome {
    let output = &context.output;
    output.json(&report_json(report, sample, url));
    let id = styled(ACCENT, &report.id);
    let place = match names_repository {
        true => format!(" at {url}"),
        false => String::new(),
    };
    if report.passed() {
        output.prose_summary(format!("{id}{place} is good: {}", what_was_read(report)));
    } else {
        output.prose(format!("{id}{place} is damaged: {}", what_was_read(report)));
        for failure in &report.failures {
            output.line(format!("  {}", printable::one_line(failure)));
        }
        let more = report.failures_total.saturating_sub(report.failures.len() as u64);
        if more > 0 {
            output.line(format!("  and {} more", count(more)));
        }
    }
    if let Some(sample) = sample {
        output.summary(format!(
            "  chosen at random; --seed {} chooses the same",
            sample.seed
        ));
    }
    if !report.passed() {
        let hint = "restore from another backup, take a new one now (pgkeep dump --full), and find out what happened to the store";
        output.error(&format!("backup {} is damaged", report.id), &[], Some(hint));
        return Outcome::Failed;
    }
    if report.recorded {
        return Outcome::Done;
    }
    output.note("the outcome is not recorded in the repository: these credentials may not write there");
    Outcome::Done
}

fn what_was_read(report: &VerifyReport) -> String {
    let objects = if report.objects == report.objects_total {
        format!("all {}", counted(report.objects_total, "object", "objects"))
    } else {
        format!(
            "{} of {} objects",
            count(report.objects),
            count(report.objects_total)
        )
    };
    let size = ByteCount(report.stored_bytes);
    let took = duration(report.elapsed);
    match report.depth {
        VerifyDepth::Stored => format!("{objects}, {size}, by their hashes, in {took}"),
        VerifyDepth::Contents => {
            let tables = if report.relations == report.relations_total {
                counted(report.relations_total, "table", "tables")
            } else {
                format!(
                    "{} of {} tables",
                    count(report.relations),
                    count(report.relations_total)
                )
            };
            format!(
                "{objects}, {size}, {} in {tables} counted and hashed, in {took}",
                counted(report.rows, "row", "rows")
            )
        }
    }
}

fn report_json(report: &VerifyReport, sample: Option<Sample>, url: &str) -> Value {
    json!({
        "id": report.id.to_string(),
        "repository": url,
        "passed": report.passed(),
        "depth": report.depth.name(),
        "objects": report.objects,
        "objects_total": report.objects_total,
        "stored_bytes": report.stored_bytes,
        "rows": report.rows,
        "tables": report.relations,
        "tables_total": report.relations_total,
        "failures": report.failures,
        "failures_total": report.failures_total,
        "recorded": report.recorded,
        "sample": sample.map(|sample| json!({ "fraction": sample.fraction, "seed": sample.seed })),
        "elapsed_seconds": report.elapsed.as_secs_f64(),
    })
}
