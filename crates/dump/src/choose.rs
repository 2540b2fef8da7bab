//! Which dump is meant by `latest`: the newest that holds what is asked for.

use pgkeep_base::{BackupId, BackupKind};
use pgkeep_repository::Repository;
use pgkeep_repository::backups::BackupState;

use crate::error::DumpError;
use crate::manifest::{DumpManifest, DumpSummary, Filters};
use crate::pattern::Pattern;
use crate::read::{read_manifest, read_summary};
use crate::restore::{choose_databases, select};

/// What a dump has to hold.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// Databases; empty for all that are dumped as a rule.
    pub databases: &'a [String],
    /// Patterns of tables; empty for all of them.
    pub tables: &'a [String],
}

/// A newer dump that doesn't hold what is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The dump.
    pub id: BackupId,
    /// What it lacks.
    pub reason: String,
}

/// The dump that is meant.
#[derive(Debug)]
pub struct Chosen {
    /// The dump.
    pub id: BackupId,
    /// Its manifest.
    pub manifest: DumpManifest,
    /// Newer ones that were passed over, the newest first.
    pub skipped: Vec<Skipped>,
}

const LATEST: &str = "latest";

/// Finds the dump that `text` names: by its id, or the beginning of it, whatever it holds; or the latest that holds what
/// is wanted.
///
/// # Errors
/// There is none; the store's; a missing or wrong key; [`DumpError::Manifest`].
pub async fn choose(repository: &Repository, text: &str, wanted: &Wanted<'_>) -> Result<Chosen, DumpError> {
    if text != LATEST {
        let id = repository.find(BackupKind::Dump, text).await?;
        let manifest = read_manifest(repository, &id).await?;
        return Ok(Chosen {
            id,
            manifest,
            skipped: Vec::new(),
        });
    }
    let mut skipped = Vec::new();
    for id in repository.ids(BackupKind::Dump).await? {
        if repository.state(&id).await? != BackupState::Complete {
            continue;
        }
        let summary = read_summary(repository, &id).await?;
        let mut reason = lacks_by_summary(&summary, wanted);
        if reason.is_none() {
            let manifest = read_manifest(repository, &id).await?;
            reason = lacks_tables(&manifest, &summary, wanted)?;
            if reason.is_none() {
                return Ok(Chosen {
                    id,
                    manifest,
                    skipped,
                });
            }
        }
        let reason = reason.unwrap_or_default();
        skipped.push(Skipped { id, reason });
    }
    Err(nothing(repository, &skipped).await)
}

async fn nothing(repository: &Repository, skipped: &[Skipped]) -> DumpError {
    let Some(newest) = skipped.first() else {
        // It knows best what to say of an empty repository.
        return match repository.find(BackupKind::Dump, LATEST).await {
            Err(error) => error.into(),
            Ok(id) => DumpError::Internal(format!("dump {id} came while it was looked for")),
        };
    };
    DumpError::Usage {
        message: format!(
            "no dump holds what is asked for: the newest, {}, {}",
            newest.id, newest.reason
        ),
        hint: Some(
            "name a dump to restore what it holds, or choose with --database and --table; 'pgkeep list' shows them"
                .to_owned(),
        ),
    }
}

/// The options that made a dump what it is.
fn options(summary: &DumpSummary) -> String {
    let Filters {
        tables,
        exclude_tables,
        schemas,
        exclude_schemas,
        exclude_table_data,
    } = &summary.filters;
    let mut options = Vec::new();
    if summary.narrowed().databases {
        options.extend(summary.databases.iter().map(|name| format!("--database {name}")));
    }
    for (option, patterns) in [
        ("--table", tables),
        ("--schema", schemas),
        ("--exclude-table", exclude_tables),
        ("--exclude-schema", exclude_schemas),
        ("--exclude-table-data", exclude_table_data),
    ] {
        options.extend(patterns.iter().map(|pattern| format!("{option} {pattern}")));
    }
    options.join(" ")
}

/// What can be told without reading the whole manifest.
fn lacks_by_summary(summary: &DumpSummary, wanted: &Wanted<'_>) -> Option<String> {
    let has = |name: &String| summary.databases.contains(name);
    if let Some(missing) = wanted.databases.iter().find(|name| !has(name)) {
        return Some(format!("has no database '{missing}'"));
    }
    let narrowed = summary.narrowed();
    let part = || Some(format!("was made with {}", options(summary)));
    if wanted.tables.is_empty() && (narrowed.tables || (narrowed.databases && wanted.databases.is_empty())) {
        return part();
    }
    None
}

/// Whether the tables are in it, and all that the patterns can mean.
fn lacks_tables(
    manifest: &DumpManifest,
    summary: &DumpSummary,
    wanted: &Wanted<'_>,
) -> Result<Option<String>, DumpError> {
    if wanted.tables.is_empty() {
        return Ok(None);
    }
    if summary.narrowed().tables {
        for text in wanted.tables {
            let pattern =
                Pattern::relation(text).map_err(|message| DumpError::Usage { message, hint: None })?;
            // Of tables that aren't in the dump nothing is known, so the pattern may mean some of them.
            if !pattern.is_exact() && !summary.filters.tables.contains(text) {
                return Ok(Some(format!("was made with {}", options(summary))));
            }
        }
    }
    let mut lacking = None;
    for database in choose_databases(manifest, wanted.databases)? {
        match select(database, wanted.tables) {
            Ok(selection) => {
                let Some(without_rows) = selection.first_without_rows(database) else {
                    return Ok(None);
                };
                lacking = Some(format!("has no rows of {without_rows}"));
            }
            Err(error) => {
                lacking.get_or_insert_with(|| error.to_string());
            }
        }
    }
    Ok(lacking)
}
