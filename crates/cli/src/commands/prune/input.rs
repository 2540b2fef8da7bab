//! What the planner of retention has to know of the backups: read from their summaries and manifests.

use std::collections::{BTreeMap, BTreeSet};

use pgkeep_base::{BackupId, BackupKind};
use pgkeep_dump::DumpError;
use pgkeep_dump::manifest::{DumpManifest, DumpSummary};
use pgkeep_physical::manifest::{BaseManifest, BaseSummary};
use pgkeep_repository::Repository;
use pgkeep_repository::integrity::names;
use pgkeep_repository::prune::{Known, PruneInput};
use pgkeep_repository::retention::wal::BaseExtent;

use crate::commands::summaries::{self, Summaries};
use crate::exit::Failure;

/// Reads what the planner has to know.
pub async fn input(repository: &Repository) -> Result<PruneInput, Failure> {
    let entries = repository.backups_of(&BackupKind::ALL).await?;
    let ids: Vec<BackupId> = entries
        .into_iter()
        // A base backup that lost its manifest may get it back, and then needs its WAL.
        .filter(|entry| {
            entry.state.is_there() || (entry.id.kind() == BackupKind::Base && entry.has_lost_manifest)
        })
        .map(|entry| entry.id)
        .collect();
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
                base: None,
            },
        )
    };
    let mut known: BTreeMap<BackupId, Known> = summaries.by_id.iter().map(known).collect();
    let mut damaged: BTreeSet<BackupId> = summaries.damaged.keys().cloned().collect();
    let mut unread = BTreeMap::new();
    for id in ids.iter().filter(|id| id.kind() == BackupKind::Base) {
        match of_base(repository, id, &summaries).await? {
            Base::Good(of_it) => _ = known.insert(id.clone(), of_it),
            Base::Damaged(of_it) => {
                known.insert(id.clone(), of_it);
                damaged.insert(id.clone());
            }
            Base::Unread(why) => _ = unread.insert(id.clone(), why),
        }
    }
    for id in ids.iter().filter(|id| id.kind() == BackupKind::Dump) {
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
            Err(error) if error.is_damage() => {
                damaged.insert(id.clone());
            }
            // Whether it is good can't be told just now: nothing may be removed for its sake, nor in its stead.
            Err(error) => return Err(error.into()),
        }
    }
    Ok(PruneInput {
        known,
        damaged,
        unread,
    })
}

async fn manifest_of_whole(repository: &Repository, id: &BackupId) -> Result<DumpManifest, DumpError> {
    let manifest = pgkeep_dump::read_manifest(repository, id).await?;
    pgkeep_dump::presence::require_all(repository, id, &manifest).await?;
    Ok(manifest)
}

/// What is known of a base backup.
enum Base {
    Good(Known),
    /// It says what it needs, and nothing can be restored from it.
    Damaged(Known),
    /// It says nothing, and why.
    Unread(String),
}

async fn of_base(repository: &Repository, id: &BackupId, summaries: &Summaries) -> Result<Base, Failure> {
    let manifest = match pgkeep_physical::read_manifest(repository, id).await {
        Ok(manifest) => Ok(manifest),
        // Its manifest is lost, or it was removed meanwhile: its summary, as far as that is there, says what it needs.
        Err(error) if error.is_removed() || error.is_of_one_backup() => Err(error.to_string()),
        Err(error) => return Err(error.into()),
    };
    let of_summary = summaries.bases.get(id).and_then(known_base);
    Ok(match (manifest, of_summary) {
        (Ok(manifest), _) => match known_base(&manifest.summary()).map(|known| Known {
            scope: scope_of(&manifest),
            ..known
        }) {
            Some(known) if is_whole(repository, id).await? => Base::Good(known),
            Some(known) => Base::Damaged(known),
            None => Base::Unread("its system identifier is none".to_owned()),
        },
        (Err(_), Some(known)) => Base::Damaged(known),
        (Err(why), None) => Base::Unread(why),
    })
}

/// One that lacks files of the server, or has damaged pages, never stands for one that has all and none.
fn scope_of(manifest: &BaseManifest) -> String {
    let lacks = manifest.lacks().cloned();
    let damaged = (manifest.damaged_pages.reports_total > 0).then(|| "damaged pages".to_owned());
    lacks.chain(damaged).collect::<Vec<_>>().join("\n")
}

fn known_base(summary: &BaseSummary) -> Option<Known> {
    Some(Known {
        system_identifier: Some(summary.system_identifier.parse().ok()?),
        scope: String::new(),
        base: Some(BaseExtent {
            ended_at: summary.finished_at,
            timeline: summary.timeline,
            start: summary.start_lsn,
            stop: summary.stop_lsn,
        }),
    })
}

/// Whether all objects are there that its list names; their contents aren't looked at. Without the list nobody can tell, and
/// then it isn't held against it.
async fn is_whole(repository: &Repository, id: &BackupId) -> Result<bool, Failure> {
    let checksums = match repository.checksums(id).await {
        Ok(checksums) => checksums,
        Err(error) if error.is_damage() => return Ok(true),
        Err(error) => return Err(error.into()),
    };
    let sizes = repository.stored_sizes(id, names(&checksums)).await?;
    Ok(names(&checksums).all(|name| sizes.contains_key(name)))
}
