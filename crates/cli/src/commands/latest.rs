//! The dumps that an argument names, and what is said of `latest`.

use pgkeep_base::{BackupId, BackupKind};
use pgkeep_dump::{Found, Skipped};
use pgkeep_repository::Repository;
use pgkeep_repository::backups::BackupEntry;
use serde_json::{Value, json};

use super::list;
use crate::context::Context;
use crate::exit::{Failure, Outcome};
use crate::output::Output;

/// Says of the one that was found what should be known before it is used.
pub fn tell_found(context: &Context, found: &Found) {
    let Found { id, skipped, unknown } = found;
    tell_skipped(&context.output, skipped);
    match unknown {
        None => {}
        Some(error) if error.is_locked() => context.output.note(format!(
            "latest is taken to be {id}: without its key it can't be told whether that is a part of what is dumped as a rule"
        )),
        Some(error) => context.output.note(format!(
            "latest is taken to be {id}: whether that is a part of what is dumped as a rule can't be told: {error}"
        )),
    }
}

/// Of the dumps that are listed, all that are there: at least one, so that whoever goes through them has done something. One that has lost its manifest is
/// told, and is a failure.
pub fn all(
    context: &Context,
    repository: &Repository,
    entries: Vec<BackupEntry>,
) -> Result<(Vec<BackupId>, Outcome), Failure> {
    let mut outcome = Outcome::Done;
    for entry in entries.iter().filter(|entry| entry.has_lost_manifest) {
        let (cluster, url) = (repository.cluster(), repository.store().url());
        context
            .output
            .error(&list::manifest_gone(&entry.id, cluster, url), &[], None);
        outcome = Outcome::Failed;
    }
    let there = entries.into_iter().filter(|entry| entry.state.is_there());
    let ids: Vec<BackupId> = there.map(|entry| entry.id).collect();
    if ids.is_empty() {
        return Err(repository.no_backup().into());
    }
    Ok((ids, outcome))
}

/// All of a kind that are there, oldest first; there may be none.
pub async fn all_of(repository: &Repository, kind: BackupKind) -> Result<Vec<BackupId>, Failure> {
    let mut there = Vec::new();
    for id in repository.ids(kind).await?.into_iter().rev() {
        if repository.state(&id).await?.is_there() {
            there.push(id);
        }
    }
    Ok(there)
}

/// Says which dumps `latest` passed over, and why.
pub fn tell_skipped(output: &Output, skipped: &[Skipped]) {
    for Skipped { id, reason } in skipped {
        output.note(format!("latest is not {id}, which {reason}"));
    }
}

/// The same for programs.
pub fn skipped_json(skipped: &[Skipped]) -> Value {
    let entries = skipped
        .iter()
        .map(|skipped| json!({ "id": skipped.id.to_string(), "reason": skipped.reason }));
    entries.collect()
}

/// Says what a dump doesn't hold, before it is used.
pub fn tell_omissions(output: &Output, omissions: &[String]) {
    for omission in omissions {
        output.note(format!("not in the dump: {omission}"));
    }
}
