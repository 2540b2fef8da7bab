//! Which dump is meant by `latest`: the newest that holds what is asked for. One that can't be read is never passed over
//! in silence: whatever is older may lack what was written since.

use pgkeep_base::{BackupId, BackupKind, one_line, shown_name};
use pgkeep_repository::backups::BackupState;
use pgkeep_repository::{Repository, RepositoryError, layout};

use crate::error::DumpError;
use crate::manifest::{Asked, DumpManifest, Filters};
use crate::pattern::Pattern;
use crate::read::{read_manifest, read_summary};
use crate::restore::{choose_databases, select};

/// After so many dumps that can't be read, a sound one is looked for no more: the key is the wrong one, or all is lost.
const UNREADABLE_MAX: usize = 50;

/// What a dump has to hold.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// The command that asks, for what it is advised to.
    pub command: &'a str,
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

/// The dump that is meant, whatever can be read of it.
#[derive(Debug)]
pub struct Found {
    /// The dump.
    pub id: BackupId,
    /// Newer ones that were passed over, the newest first.
    pub skipped: Vec<Skipped>,
    /// Why it can't be told whether it, too, holds less than the others.
    pub unknown: Option<DumpError>,
}

const LATEST: &str = "latest";

/// Finds the dump that `text` names, to read from it: by its id, or the beginning of it, whatever it holds; or the latest
/// that holds what is wanted.
///
/// # Errors
/// There is none; the store's; a missing or wrong key; [`DumpError::Manifest`]; [`DumpError::NewerUnreadable`].
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
    let mut unreadable: Vec<(BackupId, DumpError)> = Vec::new();
    for id in repository.ids(BackupKind::Dump).await? {
        let state = repository.state(&id).await?;
        if !state.is_there() {
            if let Some(error) = lost(repository, &id, state).await? {
                unreadable.push((id, error));
            }
            continue;
        }
        match judge(repository, &id, state, wanted).await {
            Ok(Verdict::Holds(manifest)) if unreadable.is_empty() => {
                return Ok(Chosen {
                    id,
                    manifest: *manifest,
                    skipped,
                });
            }
            Ok(Verdict::Holds(_)) => return Err(newer_unreadable(unreadable, &id, wanted)),
            Ok(Verdict::Lacks(reason)) => skipped.push(Skipped { id, reason }),
            Err(error) if error.is_removed() => {}
            Err(error) if !error.is_of_one_dump() => return Err(error),
            Err(error) => {
                unreadable.push((id, error));
                if unreadable.len() == UNREADABLE_MAX {
                    break;
                }
            }
        }
    }
    match unreadable.into_iter().next() {
        Some((_, error)) => Err(error),
        None => Err(nothing(repository, &skipped, wanted).await),
    }
}

/// Finds the dump that `text` names, to do something with it as a whole: `latest` is the newest that isn't known to hold
/// less than the others, and may be damaged. It takes no key; without one, less is known.
///
/// # Errors
/// There is none; the store's.
pub async fn find(repository: &Repository, text: &str, command: &str) -> Result<Found, DumpError> {
    let mut skipped = Vec::new();
    if text != LATEST {
        let id = repository.find(BackupKind::Dump, text).await?;
        return Ok(Found {
            id,
            skipped,
            unknown: None,
        });
    }
    let wanted = Wanted {
        command,
        ..Wanted::default()
    };
    for id in repository.ids(BackupKind::Dump).await? {
        let state = repository.state(&id).await?;
        if !state.is_there() {
            match lost(repository, &id, state).await? {
                Some(error) => return Err(error),
                None => continue,
            }
        }
        let unknown = match know(repository, &id, state).await {
            Ok(known) => match known.lacks(&wanted) {
                Some(reason) => {
                    skipped.push(Skipped { id, reason });
                    continue;
                }
                None => None,
            },
            Err(error) if error.is_removed() => continue,
            Err(error) if error.is_of_one_dump() => Some(error),
            Err(error) => return Err(error),
        };
        return Ok(Found { id, skipped, unknown });
    }
    Err(nothing(repository, &skipped, &wanted).await)
}

/// What is wrong with a dump whose manifest somebody else deleted: it isn't one that never was.
async fn lost(
    repository: &Repository,
    id: &BackupId,
    state: BackupState,
) -> Result<Option<DumpError>, DumpError> {
    if state != BackupState::Incomplete || !repository.has_lost_manifest(id).await? {
        return Ok(None);
    }
    let key = layout::backup_object(repository.cluster(), id, layout::MANIFEST);
    let reason =
        "it is gone, and pgkeep did not delete it ('pgkeep list' says how to bring it back)".to_owned();
    Ok(Some(RepositoryError::Malformed { key, reason }.into()))
}

async fn nothing(repository: &Repository, skipped: &[Skipped], wanted: &Wanted<'_>) -> DumpError {
    if skipped.is_empty() {
        // It knows best what to say of an empty repository.
        return match repository.find(BackupKind::Dump, LATEST).await {
            Err(error) => error.into(),
            Ok(id) => DumpError::Internal(format!("dump {id} came while it was looked for")),
        };
    }
    let narrower = match wanted.command {
        "restore" => ", or choose with --database and --table",
        "export" => ", or choose with --database",
        _ => "",
    };
    DumpError::Usage {
        message: format!("no dump holds what is asked for: {}", looked_at(skipped)),
        hint: Some(format!(
            "name the dump by its id in place of 'latest'{narrower}; 'pgkeep list' shows them"
        )),
    }
}

/// Which dumps were looked at, the newest first, and what each of them lacks.
fn looked_at(skipped: &[Skipped]) -> String {
    const SHOWN_MAX: usize = 3;
    let shown = skipped.iter().take(SHOWN_MAX);
    let mut told: Vec<String> = shown
        .map(|skipped| format!("{} {}", skipped.id, skipped.reason))
        .collect();
    match (skipped.len().saturating_sub(SHOWN_MAX), skipped.last()) {
        (0, _) | (_, None) => {}
        (1, Some(oldest)) => told.push(format!("{} {}", oldest.id, oldest.reason)),
        (more, Some(oldest)) => told.push(format!(
            "nor does one of the {more} before them, down to {}",
            oldest.id
        )),
    }
    told.join("; ")
}

fn newer_unreadable(
    unreadable: Vec<(BackupId, DumpError)>,
    sound: &BackupId,
    wanted: &Wanted<'_>,
) -> DumpError {
    let ids = unreadable.iter().map(|(id, _)| id.to_string()).collect();
    match unreadable.into_iter().next() {
        Some((_, source)) => DumpError::NewerUnreadable {
            unreadable: ids,
            sound: sound.to_string(),
            command: wanted.command.to_owned(),
            source: Box::new(source),
        },
        None => DumpError::Internal("no dump is unreadable".to_owned()),
    }
}

/// What is known of a dump: by its summary, which is small, or by its manifest where that is lost.
struct Known {
    databases: Vec<String>,
    asked: Asked,
    manifest: Option<DumpManifest>,
}

async fn know(repository: &Repository, id: &BackupId, state: BackupState) -> Result<Known, DumpError> {
    let error = match read_summary(repository, id).await {
        Ok(summary) => {
            return Ok(Known {
                asked: summary.asked(),
                databases: summary.databases,
                manifest: None,
            });
        }
        Err(error) if error.is_of_one_dump() && !error.is_locked() => error,
        Err(error) => return Err(error),
    };
    let manifest = read_manifest_of(repository, id, state).await?;
    let Some(asked) = manifest.asked.clone() else {
        return Err(DumpError::PartUnknown {
            id: id.to_string(),
            source: Box::new(error),
        });
    };
    tracing::warn!(%error, "the summary of dump {id} can't be read; its manifest says as much");
    let databases = manifest.databases.iter().map(|database| database.name.clone());
    Ok(Known {
        databases: databases.collect(),
        asked,
        manifest: Some(manifest),
    })
}

async fn read_manifest_of(
    repository: &Repository,
    id: &BackupId,
    state: BackupState,
) -> Result<DumpManifest, DumpError> {
    if state == BackupState::Damaged {
        let key = layout::backup_object(repository.cluster(), id, layout::MANIFEST);
        let reason = "it is no manifest".to_owned();
        return Err(RepositoryError::Malformed { key, reason }.into());
    }
    read_manifest(repository, id).await
}

/// What a dump is to somebody who wants something.
enum Verdict {
    /// It holds that.
    Holds(Box<DumpManifest>),
    /// It doesn't, and why.
    Lacks(String),
}

/// A dump that by its summary is a part of something else isn't the latest, whether its manifest is damaged or not.
async fn judge(
    repository: &Repository,
    id: &BackupId,
    state: BackupState,
    wanted: &Wanted<'_>,
) -> Result<Verdict, DumpError> {
    let mut known = know(repository, id, state).await?;
    if let Some(reason) = known.lacks(wanted) {
        return Ok(Verdict::Lacks(reason));
    }
    let manifest = match known.manifest.take() {
        Some(manifest) => manifest,
        None => read_manifest_of(repository, id, state).await?,
    };
    Ok(match known.lacks_tables(&manifest, wanted)? {
        Some(reason) => Verdict::Lacks(reason),
        None => Verdict::Holds(Box::new(manifest)),
    })
}

impl Known {
    /// The options that made a dump what it is.
    fn options(&self) -> String {
        let Filters {
            tables,
            exclude_tables,
            schemas,
            exclude_schemas,
            exclude_table_data,
        } = &self.asked.filters;
        let mut options = Vec::new();
        if self.asked.narrowed.databases {
            let databases = self.databases.iter();
            options.extend(databases.map(|name| format!("--database {}", shown_name(name))));
        }
        for (option, patterns) in [
            ("--table", tables),
            ("--schema", schemas),
            ("--exclude-table", exclude_tables),
            ("--exclude-schema", exclude_schemas),
            ("--exclude-table-data", exclude_table_data),
        ] {
            let patterns = patterns.iter();
            options.extend(patterns.map(|pattern| format!("{option} {}", shown_name(pattern))));
        }
        options.join(" ")
    }

    /// What can be told without looking for tables.
    fn lacks(&self, wanted: &Wanted<'_>) -> Option<String> {
        let has = |name: &String| self.databases.contains(name);
        if let Some(missing) = wanted.databases.iter().find(|name| !has(name)) {
            return Some(format!("has no database '{}'", one_line(missing)));
        }
        let narrowed = self.asked.narrowed;
        let part = || Some(format!("was made with {}", self.options()));
        if wanted.tables.is_empty()
            && (narrowed.tables || (narrowed.databases && wanted.databases.is_empty()))
        {
            return part();
        }
        None
    }

    /// Whether the tables are in it, and all that the patterns can mean.
    fn lacks_tables(
        &self,
        manifest: &DumpManifest,
        wanted: &Wanted<'_>,
    ) -> Result<Option<String>, DumpError> {
        if wanted.tables.is_empty() {
            return Ok(None);
        }
        if self.asked.narrowed.tables {
            for text in wanted.tables {
                let pattern =
                    Pattern::relation(text).map_err(|message| DumpError::Usage { message, hint: None })?;
                // Of tables that aren't in the dump nothing is known, so the pattern may mean some of them.
                if !pattern.is_exact() && !self.asked.filters.tables.contains(text) {
                    return Ok(Some(format!("was made with {}", self.options())));
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_looked_at_is_told_with_odd_names_in_one_line() {
        let asked = Asked {
            partial: true,
            filters: Filters {
                tables: vec!["s.a b".to_owned()],
                ..Filters::default()
            },
            narrowed: crate::manifest::Narrowed {
                databases: true,
                tables: true,
            },
        };
        let known = Known {
            databases: vec!["no\nsuch".to_owned(), "app".to_owned()],
            asked,
            manifest: None,
        };
        let reason = known.lacks(&Wanted::default()).unwrap();
        assert_eq!(
            reason,
            "was made with --database 'no\\nsuch' --database app --table 's.a b'"
        );
        let named = ["x\ty".to_owned()];
        let wanted = Wanted {
            databases: &named,
            ..Wanted::default()
        };
        assert_eq!(known.lacks(&wanted).unwrap(), "has no database 'x\\ty'");

        let skipped: Vec<Skipped> = (1..=6)
            .map(|day| Skipped {
                id: format!("d2026110{day}T020000Z-7f3a9c").parse().unwrap(),
                reason: format!("lacks {day}"),
            })
            .collect();
        assert_eq!(looked_at(&skipped[..1]), "d20261101T020000Z-7f3a9c lacks 1");
        assert!(looked_at(&skipped[..4]).ends_with("lacks 3; d20261104T020000Z-7f3a9c lacks 4"));
        assert!(
            looked_at(&skipped)
                .ends_with("lacks 3; nor does one of the 3 before them, down to d20261106T020000Z-7f3a9c")
        );
    }
}
