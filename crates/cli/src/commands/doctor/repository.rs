//! The store, the repository in it, and the dumps in that.

use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use pgkeep_base::{BackupKind, ByteCount, Severity, quote_for_shell};
use pgkeep_repository::backups::{BackupEntry, BackupState};
use pgkeep_repository::bucket::lifecycle_findings;
use pgkeep_repository::{Repository, RepositoryError};
use pgkeep_store::{Disk, Store};

use super::{AskedBy, Findings};
use crate::commands::summaries::{self, Summaries};
use crate::commands::{bucket, run as scheduler, several};
use crate::context::{KeyUse, Settings};
use crate::output::{counted, time};

const AREA: &str = "repository";
/// So long after it was due a dump may still be on its way: the scheduler tries again, and large ones take time.
const LATE_AFTER: SignedDuration = SignedDuration::from_hours(2);
/// Dumps that nobody has verified for so long are more than new.
const UNVERIFIED_MAX: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Rows take less room in a dump than in the database: text and numbers a fourth, as a rule.
const DUMP_SHARE: u64 = 4;
/// A disk with less than this part free is nearly full.
const FREE_SHARE_MIN: u64 = 20;

pub(super) async fn check(settings: &Settings, findings: &mut Findings) {
    match settings.in_each_repository() {
        Ok(each) => {
            let (mut empty, mut made) = (Vec::new(), 0);
            for settings in &each {
                let before = findings.all.len();
                let found = check_one(settings, findings).await;
                if each.len() > 1 {
                    let url = settings.repository_url().unwrap_or_default();
                    for finding in findings.all.iter_mut().skip(before) {
                        if !finding.what.contains(url.trim_end_matches('/')) {
                            finding.what = format!("{url}: {}", finding.what);
                        }
                    }
                }
                match found {
                    Some(Found::Repository) => made += 1,
                    Some(Found::Empty(place)) => empty.push((settings, place)),
                    None => {}
                }
            }
            // Of several, one that isn't there may have been lost.
            for (settings, finding) in empty.into_iter().filter(|_| made > 0) {
                if let Some(finding) = findings.all.get_mut(finding) {
                    finding.severity = Severity::Warning;
                    finding.why = format!(
                        "another repository of the cluster's is there: {}",
                        several::WHERE_IS_IT
                    );
                    let copy = settings.copy_command("all", settings.repository_url().unwrap_or_default());
                    finding.mend = Some(format!("{copy}   # brings the earlier dumps to a new one"));
                }
            }
        }
        Err(failure) => findings.failure(AREA, &failure),
    }
}

/// What there is at a URL.
enum Found {
    Repository,
    /// None, which is the finding of this number.
    Empty(usize),
}

async fn check_one(settings: &Settings, findings: &mut Findings) -> Option<Found> {
    let store = match settings.repository_url() {
        Ok(url) => settings.store_soon(url).await,
        Err(failure) => Err(failure),
    };
    let store = match store {
        Ok(store) => store,
        Err(failure) => {
            findings.failure(AREA, &failure);
            return None;
        }
    };
    if let Some(directory) = store.directory() {
        disk(&directory, findings);
    }
    let missing = store.directory().map(missing_directories).unwrap_or_default();
    let is_reachable = probe(settings, &store, findings).await;
    // The probe made them. A disk that isn't mounted would look like one that is.
    for directory in missing {
        if std::fs::remove_dir(&directory).is_err() {
            break;
        }
    }
    // Keys that can't be read are told among the keys.
    let access = settings.access(KeyUse::None).ok().filter(|_| is_reachable)?;
    match Repository::open(store, &settings.name, access).await {
        Ok(repository) => {
            identity(&repository, findings).await;
            backups(settings, &repository, findings).await;
            Some(Found::Repository)
        }
        Err(RepositoryError::NotARepository { .. }) => {
            let what = "empty: the first 'pgkeep dump' makes the repository";
            findings.add(AREA, Severity::Info, what, "", None);
            Some(Found::Empty(findings.all.len() - 1))
        }
        Err(error) => {
            findings.error(AREA, &error);
            None
        }
    }
}

/// Those of a path that aren't there, the innermost first.
fn missing_directories(path: PathBuf) -> Vec<PathBuf> {
    let ancestors = path.ancestors().map(Path::to_path_buf);
    ancestors
        .take_while(|path| !path.as_os_str().is_empty() && !path.exists())
        .collect()
}

fn disk(directory: &Path, findings: &mut Findings) {
    let Some(disk) = Disk::of(directory) else { return };
    let databases = findings.server.iter().flat_map(|facts| &facts.databases);
    let bytes: u64 = databases.filter_map(|database| database.bytes).sum();
    let needed = bytes / DUMP_SHARE;
    if disk.free_bytes < needed.max(disk.total_bytes / FREE_SHARE_MIN) {
        let what = format!(
            "the repository's disk has {} of {} left",
            ByteCount(disk.free_bytes),
            ByteCount(disk.total_bytes)
        );
        let why = format!(
            "the databases have {}, so a dump may take some {}",
            ByteCount(bytes),
            ByteCount(needed)
        );
        let mend = format!(
            "pgkeep prune   # lets go what keep doesn't hold; else a larger disk: df -h {}",
            quote_for_shell(&directory.display().to_string())
        );
        findings.add(AREA, Severity::Warning, what, why, Some(mend));
    }
    let data = findings
        .server
        .as_ref()
        .and_then(|facts| facts.data_directory.clone());
    // A container's directory is another one, even where this machine has one of that name.
    let Some(data) = data.filter(|data| Path::new(data).join("PG_VERSION").exists()) else {
        return;
    };
    if Disk::of(Path::new(&data)).is_some_and(|of_data| of_data.device == disk.device) {
        findings.add(
            AREA,
            Severity::Warning,
            "the repository is on the same disk as the server's data",
            "if that disk dies, both are gone",
            Some(
                "pgkeep copy all --to s3://BUCKET/PREFIX   # or another disk, after every dump; or set repository there"
                    .to_owned(),
            ),
        );
    }
}

async fn probe(settings: &Settings, store: &Store, findings: &mut Findings) -> bool {
    match store.probe("").await {
        Ok(report) => {
            findings.ok(AREA, format!("{} is reachable", store.url()));
            let setup = format!(
                "pgkeep bucket setup --cluster {} --repository {}",
                quote_for_shell(&settings.name),
                quote_for_shell(settings.repository_url().unwrap_or_default())
            );
            let rules = lifecycle_findings(store, &[bucket::kept(settings)], &setup).await;
            for finding in report.findings.into_iter().chain(rules) {
                findings.add(AREA, finding.severity, finding.what, finding.why, finding.mend);
            }
            true
        }
        Err(error) => {
            findings.error(AREA, &error);
            false
        }
    }
}

async fn identity(repository: &Repository, findings: &mut Findings) {
    let identifier = findings.server.as_ref().and_then(|facts| facts.system_identifier);
    let Some(identifier) = identifier else { return };
    let accept_new = matches!(
        findings.asked_by,
        AskedBy::Init {
            accepts_new_identity: true
        }
    );
    match repository.check_identity(identifier, accept_new).await {
        Ok(_) => {}
        Err(RepositoryError::OtherIdentity { cluster, found, .. }) => findings.add(
            AREA,
            Severity::Error,
            format!(
                "the dumps of '{cluster}' are of another database cluster (system identifier {found}, this one has {identifier})"
            ),
            "two clusters under one name would prune each other's dumps",
            Some(match findings.asked_by {
                AskedBy::Doctor => {
                    "pgkeep dump --accept-new-identity   # if it is the same data after a restore or pg_upgrade; else rename \
                     the cluster in the configuration"
                }
                AskedBy::Init { .. } => {
                    "pgkeep init --cluster NAME ...   # the same under another name; or, if it is the same data after a \
                     restore or pg_upgrade, the same with --accept-new-identity"
                }
            }
            .to_owned()),
        ),
        Err(error) => findings.error(AREA, &error),
    }
}

async fn backups(settings: &Settings, repository: &Repository, findings: &mut Findings) {
    let entries = match repository.backups(BackupKind::Dump).await {
        Ok(entries) => entries,
        Err(error) => return findings.error(AREA, &error),
    };
    for entry in entries.iter().filter(|entry| entry.state == BackupState::Damaged) {
        findings.add(
            AREA,
            Severity::Error,
            format!("the manifest of {} is damaged", entry.id),
            "it can't be restored",
            Some(match settings.repair_command(&entry.id.to_string()) {
                Some(repair) => {
                    format!("{repair}   # if it is sound there; and find out what happened to the store")
                }
                None => "pgkeep dump   # a new one; and find out what happened to the store".to_owned(),
            }),
        );
    }
    for entry in entries.iter().filter(|entry| entry.has_lost_manifest) {
        findings.add(
            AREA,
            Severity::Error,
            format!(
                "the manifest of {} is gone, which pgkeep did not delete",
                entry.id
            ),
            "it can't be restored, and whatever deleted it may go on",
            Some(
                "pgkeep list   # says how to bring it back; and look for a rule that deletes by age"
                    .to_owned(),
            ),
        );
    }
    let complete: Vec<&BackupEntry> = entries
        .iter()
        .filter(|entry| entry.state == BackupState::Complete)
        .collect();
    let Some(newest) = complete.last() else {
        findings.add(
            AREA,
            Severity::Info,
            "no backup yet",
            "",
            Some("pgkeep dump".to_owned()),
        );
        return;
    };
    let number = counted(complete.len() as u64, "backup", "backups");
    findings.ok(
        AREA,
        format!("{number}, the newest of {}", time(newest.id.started_at())),
    );
    key(settings, repository, newest, findings).await;
    late(settings, &entries, newest, findings);
    verified(settings, &complete, findings);
}

/// Whether the key that is here opens what is there. One that is nowhere else opens nothing when it is needed.
async fn key(settings: &Settings, repository: &Repository, newest: &BackupEntry, findings: &mut Findings) {
    // What is wrong with the key itself is told among the keys.
    let Ok(access) = settings.access(KeyUse::IfConfigured) else {
        return;
    };
    if access.identities.is_empty() {
        return;
    }
    let store = repository.store().clone();
    let summaries = async {
        let repository = Repository::open(store, repository.cluster(), access).await?;
        summaries::read(&repository, std::slice::from_ref(&newest.id)).await
    };
    if let Ok(Summaries {
        locked: Some(reason), ..
    }) = summaries.await
    {
        findings.add(
            AREA,
            Severity::Warning,
            format!("the secret key here doesn't open the newest dump, {}", newest.id),
            reason,
            Some(
                "cat OTHER.key >> pgkeep.key   # if its key is at hand: a key file may hold several, a line each".to_owned(),
            ),
        );
    }
}

/// Dumps that were due and aren't there.
fn late(settings: &Settings, entries: &[BackupEntry], newest: &BackupEntry, findings: &mut Findings) {
    let Ok(Some(schedule)) = scheduler::schedule(settings) else {
        return;
    };
    let now = Timestamp::now();
    let last_due = now
        .checked_sub(LATE_AFTER)
        .ok()
        .and_then(|moment| schedule.last_at(moment));
    let Some(last_due) = last_due.filter(|due| *due > newest.id.started_at()) else {
        return;
    };
    // One that is being written.
    let underway = |entry: &BackupEntry| entry.is_unfinished() && entry.id.started_at() >= last_due;
    if entries.iter().any(underway) {
        return;
    }
    const COUNTED_MAX: usize = 1000;
    let missed = schedule
        .upcoming(newest.id.started_at())
        .take(COUNTED_MAX)
        .take_while(|due| *due <= last_due)
        .count();
    findings.add(
        AREA,
        Severity::Warning,
        format!(
            "the newest dump is of {}, and {} due since (dump.schedule: {schedule})",
            time(newest.id.started_at()),
            match missed {
                1 => "another was".to_owned(),
                missed => format!("{missed} others were"),
            }
        ),
        "what was written since is in no backup",
        Some("pgkeep dump   # then see why 'pgkeep run' doesn't: systemctl status pgkeep".to_owned()),
    );
}

/// Whether anybody has looked at what was written.
fn verified(settings: &Settings, complete: &[&BackupEntry], findings: &mut Findings) {
    let failed = complete
        .iter()
        .filter(|entry| entry.evidence.as_ref().is_some_and(|evidence| !evidence.passed));
    for entry in failed {
        findings.add(
            AREA,
            Severity::Error,
            format!("the last verification of {} found damage", entry.id),
            "it may not be restorable",
            Some(match settings.repair_command(&entry.id.to_string()) {
                Some(repair) => {
                    format!("{repair}   # if it is sound there; else take a new one: pgkeep dump")
                }
                None => format!(
                    "pgkeep verify {}   # says what is damaged; then take a new one: pgkeep dump",
                    entry.id
                ),
            }),
        );
    }
    if complete.iter().any(|entry| entry.evidence.is_some()) {
        return;
    }
    let oldest = complete.first().map(|entry| entry.id.started_at());
    let is_old = oldest.is_some_and(|oldest| Timestamp::now().duration_since(oldest) > UNVERIFIED_MAX);
    findings.add(
        AREA,
        if is_old { Severity::Warning } else { Severity::Info },
        "no dump was ever verified",
        "a backup that nobody has read back is a hope",
        Some("pgkeep verify latest   # where the secret key is; --stored-only elsewhere".to_owned()),
    );
}
