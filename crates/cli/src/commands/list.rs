//! `pgkeep list`: what is in the repository.

use std::collections::BTreeMap;

use pgkeep_base::{BackupId, BackupKind, ByteCount, quote_for_shell};
use pgkeep_config::Overrides;
use pgkeep_dump::manifest::DumpSummary;
use pgkeep_physical::manifest::BaseSummary;
use pgkeep_repository::Repository;
use pgkeep_repository::backups::{BackupEntry, BackupState};
use pgkeep_repository::records::Evidence;
use pgkeep_wal::{Beginning, Windows};
use serde_json::{Value, json};

use super::base;
use super::recoverable;
use super::several;
use super::summaries::{self, Summaries};
use crate::args::ListArgs;
use crate::context::{Context, KeyUse, Settings};
use crate::exit::{Failure, Outcome};
use crate::output::time_short;
use crate::table::{Align, Table};

/// More names than this make a column too wide.
const DATABASES_SHOWN_MAX: usize = 3;
/// In the place of a base backup's databases.
const WHOLE: &str = "(base backup)";
/// In the place of what a verification found.
const DAMAGED: &str = "DAMAGED";

/// `pgkeep list`
pub async fn run(context: &Context, args: ListArgs) -> Result<Outcome, Failure> {
    let settings = context.settings(Overrides::default())?;
    several::in_each(context, &settings, async |settings| {
        in_one(context, settings, &args).await
    })
    .await
}

async fn in_one(context: &Context, settings: &Settings, args: &ListArgs) -> Result<Outcome, Failure> {
    let repository = context.repository_soon(settings, KeyUse::IfThere).await?;
    let all = repository.backups_of(&BackupKind::ALL).await?;
    let unfinished = all.iter().filter(|entry| entry.is_unfinished()).count();
    let there = all.iter().filter(|entry| entry.state.is_there());
    let ids: Vec<BackupId> = there.map(|entry| entry.id.clone()).collect();
    let summaries = summaries::read(&repository, &ids).await?;
    let entries: Vec<&BackupEntry> = all
        .iter()
        .filter(|entry| args.all || entry.state.is_there() || entry.has_lost_manifest)
        .filter(|entry| !summaries.gone.contains(&entry.id))
        .collect();
    let windows = windows(&repository, &summaries).await?;
    for entry in &entries {
        let mut document = entry_json(entry, &summaries, repository.store().url());
        if let Some(window) = windows.iter().find_map(|windows| windows.of_backup(&entry.id)) {
            document["recoverable"] = recoverable::document(window);
        }
        context.output.json(&document);
    }
    if entries.is_empty() {
        let (cluster, url) = (repository.cluster(), repository.store().url());
        context.output.line(format!(
            "There is no backup of '{cluster}' at {url} yet. Take one with 'pgkeep dump' or 'pgkeep backup'."
        ));
    } else {
        context.output.table(&table(&entries, &summaries));
    }
    for windows in &windows {
        recoverable::tell(context, Some(windows));
    }
    if !args.all && unfinished > 0 && !context.output.is_json() {
        context.output.note(format!(
            "{unfinished} unfinished: being written, or left by a run that died; 'pgkeep list --all' shows them"
        ));
    }
    if let Some(locked) = &summaries.locked
        && !context.output.is_json()
    {
        context
            .output
            .note(match repository.access().identities.as_slice() {
                [] => "databases and sizes are encrypted: --identity FILE shows them".to_owned(),
                _ => format!("some databases and sizes are not shown: {locked}"),
            });
    }
    let damaged = damaged(settings, &entries, &summaries, &repository);
    damaged
        .iter()
        .for_each(|damaged| context.output.attention(damaged));
    Ok(if damaged.is_empty() {
        Outcome::Done
    } else {
        Outcome::Attention
    })
}

/// To which points the base backups and the WAL lead back: one for each database system.
async fn windows(repository: &Repository, summaries: &Summaries) -> Result<Vec<Windows>, Failure> {
    let mut by_system: BTreeMap<u64, Vec<Beginning>> = BTreeMap::new();
    for (id, summary) in &summaries.bases {
        if let Ok(system) = summary.system_identifier.parse() {
            let beginning = pgkeep_physical::beginning(id, summary);
            by_system.entry(system).or_default().push(beginning);
        }
    }
    let mut all = Vec::new();
    for (system, backups) in by_system {
        let stored = pgkeep_wal::stored_wal(repository, system).await?;
        all.push(Windows::of(&backups, &stored));
    }
    Ok(all)
}

/// What keeps a listed dump from being read.
fn damaged(
    settings: &Settings,
    entries: &[&BackupEntry],
    summaries: &Summaries,
    repository: &Repository,
) -> Vec<String> {
    let manifests = entries
        .iter()
        .filter(|entry| entry.state == BackupState::Damaged)
        .map(|entry| {
            let id = &entry.id;
            let mend = settings.repair_command(&id.to_string());
            let mend = mend.map(|mend| format!("; if it is sound there: {mend}"));
            let mend = mend.unwrap_or_default();
            format!("{id}: its manifest is damaged: nothing can be restored from it{mend}")
        });
    let gone = entries
        .iter()
        .filter(|entry| entry.has_lost_manifest)
        .map(|entry| manifest_gone(&entry.id, repository.cluster(), repository.store().url()));
    let by_evidence = entries
        .iter()
        .filter(|entry| entry.state == BackupState::Complete && !summaries.damaged.contains_key(&entry.id))
        .filter(|entry| entry.evidence.as_ref().is_some_and(|evidence| !evidence.passed))
        .map(|entry| {
            let id = entry.id.to_string();
            let mend = settings.repair_command(&id);
            let mend = mend.map(|mend| format!("; if it is sound there: {mend}"));
            let verify = settings.command(&format!("verify {id}"));
            format!(
                "{id}: its last verification found damage, of which this tells: {verify}{}",
                mend.unwrap_or_default()
            )
        });
    manifests
        .chain(gone)
        .chain(by_evidence)
        .chain(summaries.damaged.values().cloned())
        .collect()
}

/// What is said of a backup whose manifest somebody else deleted. Its folder isn't to be removed by hand: other backups may
/// need what is in it, which only a sweep knows.
pub fn manifest_gone(id: &BackupId, cluster: &str, url: &str) -> String {
    let to = quote_for_shell(url);
    if id.kind() == BackupKind::Base {
        return format!(
            "{id}: its manifest is gone, which pgkeep did not delete (somebody did by hand, or a lifecycle rule is removing \
             the backup), so nothing can be restored from it: bring the object {cluster}/base/{id}/manifest back from the \
             store's versions; or give it up: remove what says that it was a backup, {cluster}/verify/{id} and \
             {cluster}/pin/{id}, and the next 'pgkeep prune' removes what is left of it"
        );
    }
    format!(
        "{id}: its manifest is gone, which pgkeep did not delete (somebody did by hand, or a lifecycle rule is removing the \
         dump), so nothing can be restored from it: bring the object {cluster}/dump/{id}/manifest back from the store's \
         versions, or the dump by 'pgkeep copy {id} --repository OTHER --to {to}'; or give it up: remove what says that it was \
         a dump, {cluster}/verify/{id} and {cluster}/pin/{id}, and the next 'pgkeep prune' removes what no other dump needs"
    )
}

fn table(entries: &[&BackupEntry], summaries: &Summaries) -> Table {
    let mut table = Table::new(&[
        ("ID", Align::Left),
        ("STARTED", Align::Left),
        ("DATABASES", Align::Fold),
        ("SIZE", Align::Right),
        ("STORED", Align::Right),
        ("VERIFIED", Align::Left),
        ("NOTE", Align::Fold),
    ])
    .dispensable("SIZE");
    for entry in entries {
        let summary = summaries.by_id.get(&entry.id);
        let of_base = summaries.bases.get(&entry.id);
        let bytes = summary
            .map(|summary| (summary.totals.plain_bytes, summary.totals.stored_bytes))
            .or_else(|| of_base.map(|base| (base.totals.plain_bytes, base.totals.stored_bytes)));
        let holds = match entry.id.kind() {
            BackupKind::Dump => summary.map(|summary| databases(&summary.databases)),
            BackupKind::Base => Some(WHOLE.to_owned()),
        };
        table.row(vec![
            entry.id.to_string(),
            time_short(entry.id.started_at()),
            holds.unwrap_or_default(),
            bytes
                .map(|(plain, _)| ByteCount(plain).to_string())
                .unwrap_or_default(),
            bytes
                .map(|(_, stored)| ByteCount(stored).to_string())
                .unwrap_or_default(),
            verified(entry),
            notes(entry, summary, of_base).join(", "),
        ]);
    }
    table
}

fn databases(names: &[String]) -> String {
    let shown = names
        .iter()
        .take(DATABASES_SHOWN_MAX)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    match names.len().saturating_sub(DATABASES_SHOWN_MAX) {
        0 => shown,
        more => format!("{shown}, {more} more"),
    }
}

fn verified(entry: &BackupEntry) -> String {
    match (&entry.evidence, entry.state) {
        _ if entry.has_lost_manifest => DAMAGED.to_owned(),
        (_, BackupState::Incomplete | BackupState::Swept) => String::new(),
        (_, BackupState::Damaged) => DAMAGED.to_owned(),
        (None, _) => "never".to_owned(),
        (Some(evidence), _) => in_words(evidence),
    }
}

/// `contents`, `contents 12%`, `DAMAGED`
pub fn in_words(evidence: &Evidence) -> String {
    if !evidence.passed {
        return DAMAGED.to_owned();
    }
    let percent = u128::from(evidence.objects) * 100 / u128::from(evidence.objects_total.max(1));
    if evidence.objects < evidence.objects_total {
        format!("{} {percent}%", evidence.depth)
    } else {
        evidence.depth.clone()
    }
}

fn notes(entry: &BackupEntry, summary: Option<&DumpSummary>, of_base: Option<&BaseSummary>) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(summary) = of_base.filter(|summary| summary.totals.reused_objects > 0) {
        notes.push(format!("{} new", ByteCount(base::new_bytes(&summary.totals))));
    }
    match entry.state {
        BackupState::Complete => {}
        BackupState::Incomplete if entry.has_lost_manifest => notes.push("its manifest is gone".to_owned()),
        BackupState::Incomplete => notes.push("unfinished".to_owned()),
        BackupState::Swept => notes.push("given up".to_owned()),
        BackupState::Damaged => notes.push("its manifest is damaged".to_owned()),
    }
    if let Some(pin) = &entry.pin {
        notes.push(if pin.reason.is_empty() {
            "pinned".to_owned()
        } else {
            format!("pinned: {}", pin.reason)
        });
    }
    if summary.is_some_and(|summary| summary.partial) {
        notes.push("part of the cluster".to_owned());
    }
    notes
}

/// One backup for programs.
fn entry_json(entry: &BackupEntry, summaries: &Summaries, url: &str) -> Value {
    let (kind, summary) = match entry.id.kind() {
        BackupKind::Dump => ("dump", json!(summaries.by_id.get(&entry.id))),
        BackupKind::Base => ("base", json!(summaries.bases.get(&entry.id))),
    };
    let state = match entry.state {
        BackupState::Complete => "complete",
        BackupState::Incomplete if entry.has_lost_manifest => "manifest_gone",
        BackupState::Incomplete => "unfinished",
        BackupState::Swept => "given_up",
        BackupState::Damaged => "damaged",
    };
    json!({
        "id": entry.id.to_string(),
        "kind": kind,
        "repository": url,
        "state": state,
        "started_at": entry.id.started_at(),
        "pin": entry.pin.as_ref().map(|pin| json!({ "reason": pin.reason, "at": pin.at })),
        "verification": entry.evidence,
        "summary": summary,
    })
}
