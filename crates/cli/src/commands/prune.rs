//! `pgkeep prune`: the retention settings, carried out and explained.

use std::collections::{BTreeMap, BTreeSet};

use pgkeep_base::{BackupId, BackupKind, Classified, Hint};
use pgkeep_config::{Cluster, EncryptionMode, Overrides};
use pgkeep_dump::DumpError;
use pgkeep_dump::manifest::{DumpManifest, DumpSummary};
use pgkeep_repository::Repository;
use pgkeep_repository::prune::{self, Known, PruneInput, PruneReport};
use pgkeep_repository::retention::{Decision, Plan, Policy};
use serde_json::{Value, json};

use super::summaries;
use crate::args::PruneArgs;
use crate::context::{Context, KeyUse, LEASE_DURATION, Settings};
use crate::exit::{Failure, Outcome};
use crate::output::{counted, time_short};
use crate::table::{Align, Table};

/// `pgkeep prune`
pub async fn run(context: &Context, args: PruneArgs) -> Result<Outcome, Failure> {
    let settings = context.settings(Overrides {
        keep_window: args.keep_window.clone(),
        keep_daily: args.keep_daily,
        keep_weekly: args.keep_weekly,
        keep_monthly: args.keep_monthly,
        keep_yearly: args.keep_yearly,
        ..Overrides::default()
    })?;
    let policy = policy(&settings.cluster);
    let opened = context.repository(&settings, KeyUse::IfThere);
    let repository = context.cancellation.or(opened).await?;
    if policy.keeps_everything() {
        context
            .output
            .note("no retention is configured, so every backup is kept: set keep.window, keep.daily, ...");
    }
    if args.dry_run {
        let plan = async {
            let input = input(&repository).await?;
            Ok(prune::plan(&repository, &policy, &input, repository.now()).await?)
        };
        let plan = context.cancellation.or(plan).await?;
        tell_plan(context, &plan, &BTreeMap::new(), true);
        return Ok(Outcome::Done);
    }
    let removing = |id: &BackupId| tracing::info!("removing {id}");
    let cancelled = context.cancellation.cancelled();
    let input = input(&repository);
    let report: PruneReport =
        prune::execute::<Failure>(&repository, &policy, input, LEASE_DURATION, removing, cancelled).await?;
    let failed = report
        .failed
        .iter()
        .map(|(id, error)| (id.clone(), error.to_string()))
        .collect();
    tell_plan(context, &report.plan, &failed, false);
    Ok(tell_report(context, &report))
}

/// Whether the settings let anything go at all.
pub fn is_configured(settings: &Settings) -> bool {
    !policy(&settings.cluster).keeps_everything()
}

/// Whether dumps of a part can be told from whole ones here, without which nothing may be pruned.
pub fn is_possible(settings: &Settings) -> bool {
    let has_key = || {
        settings
            .identities()
            .is_ok_and(|identities| !identities.is_empty())
    };
    settings.cluster.encryption == EncryptionMode::None || has_key()
}

/// Carries the retention settings out, and tells nobody.
pub async fn after_dump(context: &Context, settings: &Settings) -> Result<PruneReport, Failure> {
    let opened = context.repository(settings, KeyUse::IfThere);
    let repository = context.cancellation.or(opened).await?;
    let removing = |id: &BackupId| tracing::info!("removing {id}");
    let cancelled = context.cancellation.cancelled();
    let policy = policy(&settings.cluster);
    let input = input(&repository);
    prune::execute(&repository, &policy, input, LEASE_DURATION, removing, cancelled).await
}

fn policy(cluster: &Cluster) -> Policy {
    let keep = &cluster.keep;
    Policy {
        window: keep.window,
        daily: keep.daily,
        weekly: keep.weekly,
        monthly: keep.monthly,
        yearly: keep.yearly,
        time_zone: cluster.timezone.clone(),
    }
}

async fn input(repository: &Repository) -> Result<PruneInput, Failure> {
    let entries = repository.backups(BackupKind::Dump).await?;
    let there = entries.into_iter().filter(|entry| entry.state.is_there());
    let ids: Vec<BackupId> = there.map(|entry| entry.id).collect();
    let summaries = summaries::read(repository, &ids).await?;
    if let Some(reason) = &summaries.locked {
        // A dump of one table would pass for one of the whole cluster, and push it out.
        return Err(Failure::usage(
            format!("without their key, dumps of a part can't be told from whole ones: {reason}"),
            "prune where the private key is: --identity FILE or PGKEEP_IDENTITY_FILE=FILE",
        ));
    }
    let known = |(id, summary): (&BackupId, &DumpSummary)| {
        let scope = if summary.partial {
            // A dump of some tables never stands for one of others, or of the whole database.
            format!("{:?} {:?}", summary.databases, summary.filters)
        } else {
            String::new()
        };
        (
            id.clone(),
            Known {
                system_identifier: summary.system_identifier.parse().ok(),
                scope,
            },
        )
    };
    let mut known: BTreeMap<BackupId, Known> = summaries.by_id.iter().map(known).collect();
    let mut damaged: BTreeSet<BackupId> = summaries.damaged.into_keys().collect();
    for id in &ids {
        match manifest_of_whole(repository, id).await {
            // Without its summary, it knows at least whose it is: the database system's other backups may stand for it.
            Ok(manifest) if damaged.contains(id) => {
                let system_identifier = manifest.system_identifier.parse().ok();
                known.insert(
                    id.clone(),
                    Known {
                        system_identifier,
                        ..Known::default()
                    },
                );
            }
            Ok(_) => {}
            Err(error) if error.is_removed() => {}
            // A dump whose manifest can't be opened restores nothing, nor does one without its rows.
            Err(error) if error.is_of_one_dump() && !error.is_locked() => {
                damaged.insert(id.clone());
            }
            // Whether it is good can't be told just now: nothing may be removed for its sake, nor in its stead.
            Err(error) => return Err(error.into()),
        }
    }
    Ok(PruneInput { known, damaged })
}

async fn manifest_of_whole(repository: &Repository, id: &BackupId) -> Result<DumpManifest, DumpError> {
    let manifest = pgkeep_dump::read_manifest(repository, id).await?;
    pgkeep_dump::presence::require_all(repository, id, &manifest).await?;
    Ok(manifest)
}

fn tell_plan(context: &Context, plan: &Plan, failed: &BTreeMap<BackupId, String>, dry_run: bool) {
    let output = &context.output;
    let mut table = Table::new(&[
        ("ID", Align::Left),
        ("STARTED", Align::Left),
        ("", Align::Left),
        ("WHY", Align::Fold),
    ]);
    for decision in &plan.decisions {
        let word = word(decision, failed, dry_run);
        output.json(&decision_json(decision, word));
        let reasons = decision
            .reasons
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("; ");
        table.row(vec![
            decision.id.to_string(),
            time_short(decision.id.started_at()),
            word.to_owned(),
            reasons,
        ]);
    }
    for id in &plan.incomplete {
        let (word, why) = if dry_run {
            ("goes", "unfinished")
        } else {
            ("removed", "unfinished")
        };
        output.json(&json!({ "id": id.to_string(), "keep": false, "state": word, "reasons": [{ "code": why, "text": why }] }));
        table.row(vec![
            id.to_string(),
            time_short(id.started_at()),
            word.to_owned(),
            why.to_owned(),
        ]);
    }
    if plan.decisions.is_empty() && plan.incomplete.is_empty() {
        output.line("There is no backup to prune.");
    } else {
        output.table(&table);
    }
    if dry_run {
        let number = plan.removed().count() + plan.incomplete.len();
        output.summary(match number {
            0 => "\nNothing would be removed.".to_owned(),
            _ => format!("\n{} would be removed; nothing was.", backups(number)),
        });
    }
}

fn backups(number: usize) -> String {
    counted(number as u64, "backup", "backups")
}

fn word(decision: &Decision, failed: &BTreeMap<BackupId, String>, dry_run: bool) -> &'static str {
    match (decision.keep, dry_run, failed.contains_key(&decision.id)) {
        (true, _, _) => "stays",
        (false, true, _) => "goes",
        (false, false, false) => "removed",
        (false, false, true) => "FAILED",
    }
}

fn decision_json(decision: &Decision, word: &str) -> Value {
    let reason = |reason: &pgkeep_repository::retention::Reason| json!({ "code": reason.code(), "text": reason.to_string() });
    json!({
        "id": decision.id.to_string(),
        "started_at": decision.id.started_at(),
        "keep": decision.keep,
        "state": word.to_lowercase(),
        "reasons": decision.reasons.iter().map(reason).collect::<Vec<_>>(),
    })
}

fn tell_report(context: &Context, report: &PruneReport) -> Outcome {
    let output = &context.output;
    let objects: u64 = report.removed.iter().map(|(_, objects)| objects).sum();
    let mut done = match report.removed.len() {
        0 => "\nNo backup was to be removed.".to_owned(),
        number => format!(
            "\nRemoved {} ({}).",
            backups(number),
            counted(objects, "object", "objects")
        ),
    };
    if !report.swept.backups.is_empty() {
        done.push_str(&format!(" Cleaned up {} unfinished.", report.swept.backups.len()));
    }
    if report.leftovers > 0 {
        done.push_str(&format!(
            " Removed {} of interrupted writes.",
            counted(report.leftovers, "file", "files")
        ));
    }
    output.summary(done);
    for (id, error) in &report.failed {
        let hint = error.hint();
        output.error(
            &format!("cannot remove {id}"),
            &[error.to_string()],
            hint.as_ref().map(Hint::as_str),
        );
    }
    if let Some(error) = &report.sweep_failure {
        let hint = error.hint();
        output.error(
            "cannot clean up after unfinished backups",
            &[error.to_string()],
            hint.as_ref().map(Hint::as_str),
        );
    }
    if report.failures().next().is_some() {
        Outcome::Failed
    } else {
        Outcome::Done
    }
}
