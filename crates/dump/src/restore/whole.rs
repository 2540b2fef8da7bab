//! A restore of several databases as a whole, over however many attempts. A database that is done keeps its mark, which says
//! so, until all are: so the next attempt knows for sure which it may leave as they are. Marks are taken away one after the
//! other, each database has its own; so first the last of them is told all that are done.

use std::collections::{BTreeMap, BTreeSet};

use pgkeep_base::{BackupId, quote_for_shell};
use pgkeep_pg::{Session, Target};

use crate::error::DumpError;
use crate::manifest::DatabaseManifest;
use crate::restore::mark;
use crate::restore::options::RestoreOptions;
use crate::restore::{connect, prepare};

/// Databases with the names they have in the target.
pub(crate) type Chosen<'a> = [(&'a DatabaseManifest, String)];

/// Databases that earlier attempts of this same restore have completed, by their names in the target; with whether they
/// still have their mark. None where nothing is gone on with.
///
/// # Errors
/// PostgreSQL's.
pub(crate) async fn completed(
    outside: &mut Session,
    target: &Target,
    id: &BackupId,
    chosen: &Chosen<'_>,
    options: &RestoreOptions,
) -> Result<BTreeMap<String, bool>, DumpError> {
    let mut completed = BTreeMap::new();
    if !options.resume {
        return Ok(completed);
    }
    let mut without_mark: Vec<(String, String)> = Vec::new();
    let mut told: BTreeSet<(String, String)> = BTreeSet::new();
    for (database, target_name) in chosen {
        // One that isn't there is made, one that is closed is refused: by the rest of the restore.
        let Some(None) = prepare::openness(outside, target_name).await? else {
            continue;
        };
        let mut inside = connect(&target.with_database(target_name)).await?;
        let found = mark::read(&mut inside).await?;
        inside.close().await;
        match found {
            None => without_mark.push((database.name.clone(), target_name.clone())),
            Some(found) if found.dump == id.to_string() && found.database == database.name => {
                if found.is_complete() {
                    completed.insert(target_name.clone(), true);
                }
                told.extend(found.completed);
            }
            Some(_) => {}
        }
    }
    let removed = without_mark.into_iter().filter(|names| told.contains(names));
    completed.extend(removed.map(|(_, target_name)| (target_name, false)));
    Ok(completed)
}

/// Takes the marks away: all databases are complete. `marked` are those that have one.
///
/// # Errors
/// PostgreSQL's.
pub(crate) async fn finish(
    target: &Target,
    chosen: &Chosen<'_>,
    marked: &[String],
    mut tell: impl FnMut(&String),
) -> Result<(), DumpError> {
    let Some((last, others)) = marked.split_last() else {
        return Ok(());
    };
    tell(last);
    if !others.is_empty() {
        let mut session = connect(&target.with_database(last)).await?;
        let names = chosen
            .iter()
            .map(|(database, target_name)| (database.name.as_str(), target_name.as_str()));
        mark::note_completed(&mut session, names).await?;
        session.close().await;
    }
    for name in others.iter().chain([last]) {
        tell(name);
        let mut session = connect(&target.with_database(name)).await?;
        mark::remove(&mut session).await?;
        session.close().await;
    }
    Ok(())
}

/// What the user is told of a database that is left as it is.
pub(crate) fn note(target_name: &str) -> String {
    format!("database '{target_name}' is left as it is: an earlier attempt of this restore completed it")
}

/// How to go on where a database is in the way of which nobody knows whether this restore made it.
pub(crate) fn without(id: &BackupId, chosen: &Chosen<'_>, target_name: &str) -> String {
    let others: Vec<String> = chosen
        .iter()
        .filter(|(_, other)| other != target_name)
        .map(|(database, _)| format!(" --database {}", quote_for_shell(&database.name)))
        .collect();
    let replace = "restore beside it with --target-database NAME, or give --overwrite in place of --resume to drop and replace it";
    if others.is_empty() {
        return format!("no unfinished restore is in it, so there is nothing to go on with: {replace}");
    }
    format!(
        "no unfinished restore is in it; if it is as it should be, leave it out: 'pgkeep restore {id} --resume{} ...'; otherwise \
         choose it with --database, and {replace}",
        others.concat()
    )
}
