//! `pgkeep prune`: the retention settings, carried out and explained.

mod input;
mod wal;

use pgkeep_base::{BackupId, Classified, Hint};
use pgkeep_config::{Cluster, EncryptionMode, Overrides};
use pgkeep_repository::prune::{self, PruneReport};
use pgkeep_repository::retention::{Decision, Plan, Policy, Reason};
use serde_json::{Value, json};

use super::list::manifest_gone;
use super::several;
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
    several::in_each(context, &settings, async |settings| {
        in_one(context, settings, args.dry_run).await
    })
    .await
}

async fn in_one(context: &Context, settings: &Settings, dry_run: bool) -> Result<Outcome, Failure> {
    if !is_configured(settings) {
        context
            .output
            .note("no retention is configured, so every backup is kept: set keep.window, keep.daily, ...");
    }
    let url = settings.repository_url()?;
    if dry_run {
        let planning = async {
            let repository = context.repository(settings, KeyUse::IfConfigured).await?;
            let input = input::input(&repository).await?;
            let (policy, now) = (policy(&settings.cluster), repository.now());
            let plan = prune::plan(&repository, &policy, &input, now).await?;
            let wal = prune::plan_wal(&repository, &policy, &input, &plan, now).await?;
            Ok((plan, wal))
        };
        let (plan, wal) = context.cancellation.or(planning).await?;
        tell_plan(context, &plan, None, url);
        wal::tell(context, &wal, true, url);
        return tell_lost(context, settings, &plan);
    }
    let report = execute(context, settings).await?;
    tell_plan(context, &report.plan, Some(&report), url);
    wal::tell(context, &report.wal, false, url);
    let lost = tell_lost(context, settings, &report.plan)?;
    Ok(tell_report(context, &report).and(lost))
}

fn tell_lost(context: &Context, settings: &Settings, plan: &Plan) -> Result<Outcome, Failure> {
    let lost = lost(settings, plan)?;
    lost.iter().for_each(|line| context.output.attention(line));
    Ok(match lost.is_empty() {
        true => Outcome::Done,
        false => Outcome::Attention,
    })
}

/// Names the backups whose manifest somebody else deleted, with what mends it.
pub fn lost(settings: &Settings, plan: &Plan) -> Result<Vec<String>, Failure> {
    let url = settings.repository_url()?;
    let is_lost = |decision: &&Decision| decision.reasons.contains(&Reason::ManifestGone);
    let lost = plan.decisions.iter().filter(is_lost);
    Ok(lost
        .map(|decision| manifest_gone(&decision.id, &settings.name, url))
        .collect())
}

/// Whether the settings let anything go at all.
pub fn is_configured(settings: &Settings) -> bool {
    !policy(&settings.cluster).keeps_everything()
}

/// Whether dumps of a part can be told from whole ones here, without which nothing may be pruned. A key that is
/// configured and can't be read is an error, or nothing would ever be pruned for a mistyped path.
pub fn is_possible(settings: &Settings) -> Result<bool, Failure> {
    let has_key = !settings.identities()?.is_empty();
    Ok(has_key || settings.cluster.encryption == EncryptionMode::None)
}

/// Carries the retention settings out, and tells nobody.
pub async fn execute(context: &Context, settings: &Settings) -> Result<PruneReport, Failure> {
    let opening = context.repository(settings, KeyUse::IfConfigured);
    let repository = context.cancellation.or(opening).await?;
    let removing = |id: &BackupId| tracing::info!("removing {id}");
    let cancelled = context.cancellation.cancelled();
    let policy = policy(&settings.cluster);
    let input = input::input(&repository);
    prune::execute(&repository, &policy, input, LEASE_DURATION, removing, cancelled).await
}

/// What is kept.
pub fn policy(cluster: &Cluster) -> Policy {
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

/// What stays and what goes; without a report of what was done, what would.
fn tell_plan(context: &Context, plan: &Plan, report: Option<&PruneReport>, url: &str) {
    let output = &context.output;
    let mut table = Table::new(&[
        ("ID", Align::Left),
        ("STARTED", Align::Left),
        ("", Align::Left),
        ("WHY", Align::Fold),
    ]);
    for decision in &plan.decisions {
        let word = word(decision, report);
        output.json(&decision_json(decision, word, url));
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
        let (word, why) = (word_of_unfinished(id, report), "unfinished");
        output.json(&json!({
            "id": id.to_string(),
            "repository": url,
            "keep": word == STAYS,
            "state": word.to_lowercase(),
            "reasons": [{ "code": why, "text": why }],
        }));
        table.row(vec![
            id.to_string(),
            time_short(id.started_at()),
            word.to_owned(),
            why.to_owned(),
        ]);
    }
    // What would be done is what was asked for; what was done is a summary.
    let is_wanted = report.is_none() || !output.is_quiet();
    if plan.decisions.is_empty() && plan.incomplete.is_empty() {
        output.summary("There is no backup to prune.");
    } else if is_wanted {
        output.table(&table);
    }
    if report.is_none() {
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

const STAYS: &str = "stays";
const GOES: &str = "goes";
const REMOVED: &str = "removed";
const FAILED: &str = "FAILED";

fn word(decision: &Decision, report: Option<&PruneReport>) -> &'static str {
    let has_failed = |report: &PruneReport| report.failed.iter().any(|(id, _)| *id == decision.id);
    match report {
        _ if decision.keep => STAYS,
        None => GOES,
        Some(report) if has_failed(report) => FAILED,
        Some(_) => REMOVED,
    }
}

/// An unfinished one goes with the sweep, which may fail, and which leaves alone what was finished meanwhile.
fn word_of_unfinished(id: &BackupId, report: Option<&PruneReport>) -> &'static str {
    match report {
        None => GOES,
        Some(report) if report.swept.backups.contains(id) => REMOVED,
        Some(report) if report.sweep_failure.is_some() => FAILED,
        Some(_) => STAYS,
    }
}

fn decision_json(decision: &Decision, word: &str, url: &str) -> Value {
    let reason = |reason: &Reason| json!({ "code": reason.code(), "text": reason.to_string() });
    json!({
        "id": decision.id.to_string(),
        "repository": url,
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
    if let Some(error) = &report.wal_failure {
        let hint = error.hint();
        output.error(
            "cannot remove WAL that is not needed",
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

#[cfg(test)]
mod tests {
    use pgkeep_repository::RepositoryError;

    use super::*;

    #[test]
    fn an_unfinished_backup_is_removed_only_if_it_was_swept() {
        let ids: Vec<BackupId> = ["d20261122T020000Z-7f3a9c", "d20261123T020000Z-7f3a9c"]
            .map(|id| id.parse().unwrap())
            .into();
        let mut report = PruneReport::default();
        report.swept.backups.push(ids[0].clone());
        let words =
            |report: Option<&PruneReport>| [0, 1].map(|place| word_of_unfinished(&ids[place], report));
        assert_eq!(words(None), [GOES, GOES]);
        assert_eq!(words(Some(&report)), [REMOVED, STAYS]);
        report.sweep_failure = Some(RepositoryError::Internal("x".to_owned()));
        assert_eq!(words(Some(&report)), [REMOVED, FAILED]);
    }
}
