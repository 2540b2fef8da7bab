//! `pgkeep copy`: backups to another repository.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use pgkeep_base::{BackupId, BackupKind, ByteCount, quote_for_shell};
use pgkeep_config::Overrides;
use pgkeep_dump::Progress;
use pgkeep_repository::copy::{self, CopyError, CopyReport, Original};
use pgkeep_repository::encryption::Encryption;
use pgkeep_repository::lease::Lease;
use pgkeep_repository::{Access, Repository};
use serde_json::json;

use super::several::{self, Opened};
use super::{base, latest};
use crate::args::CopyArgs;
use crate::context::{Context, KeyUse, LEASE_DURATION, Settings};
use crate::exit::{Failure, Outcome};
use crate::output::{ACCENT, Output, counted, duration, styled};
use crate::progress::Display;

/// A key isn't needed to copy: where there is one, it tells which dump is the latest.
const KEYS: KeyUse = KeyUse::IfThere;

/// `pgkeep copy ID|all --to URL`
pub async fn run(context: &Context, args: CopyArgs) -> Result<Outcome, Failure> {
    base::refuse(&args.backup, "copy")?;
    let settings = context.settings(Overrides::default())?;
    // What is at the destination needn't come from there.
    let sources = settings.beside(&args.to);
    let to = settings.in_repository(&args.to)?;
    if args.backup != "all" {
        let find = several::find(context, &sources, KEYS, &args.backup, "copy");
        let (id, having, asked) = context.cancellation.or(find).await?;
        let mut outcome = asked;
        for Opened { repository, .. } in having.iter().take(1) {
            let ids = vec![id.clone()];
            outcome = outcome.and(from_one(context, repository, ids, &to, &args.to).await?);
        }
        return Ok(outcome);
    }
    several::in_each(context, &sources, async |settings| {
        let opening = context.repository(settings, KEYS);
        let repository = context.cancellation.or(opening).await?;
        let asking = async {
            let others = latest::all_of(&repository, BackupKind::Base).await?;
            Ok((latest::all(&repository).await?, others))
        };
        let (ids, others) = context.cancellation.or(asking).await?;
        let copied = from_one(context, &repository, ids, &to, &args.to).await?;
        let left = others
            .iter()
            .map(|id| format!("{id} is a base backup, which this version can't copy"));
        Ok(copied.and(super::attention(context, &left.collect::<Vec<_>>())))
    })
    .await
}

async fn from_one(
    context: &Context,
    source: &Repository,
    ids: Vec<BackupId>,
    to: &Settings,
    url: &str,
) -> Result<Outcome, Failure> {
    let prepare = async {
        let destination = destination(to, url).await?;
        copy::check_different(source, &destination)?;
        Ok(destination)
    };
    let destination = context.cancellation.or(prepare).await?;
    let lease = Lease::acquire(&destination, "pgkeep copy", LEASE_DURATION).await?;
    let unfinished = Unfinished::default();
    let copying = all(context, source, &destination, &lease, &ids, &unfinished);
    let result = context.cancellation.or(copying).await;
    unfinished.tell(&context.output, destination.store().url());
    if let Err(error) = lease.release().await {
        tracing::warn!(%error, "the lease stays until it runs out");
    }
    result
}

/// The backups of which the destination has objects, and no manifest.
#[derive(Default)]
struct Unfinished(Mutex<BTreeSet<BackupId>>);

impl Unfinished {
    fn change(&self, change: impl FnOnce(&mut BTreeSet<BackupId>)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// An interrupted copy isn't taken back: it may be gone on with.
    fn tell(&self, output: &Output, url: &str) {
        self.change(|ids| {
            for id in ids.iter() {
                output.note(format!(
                    "a part of {id} is at {url}, where it is no backup: the same 'pgkeep copy' goes on with it, and \
                     'pgkeep prune --repository {}' removes it",
                    quote_for_shell(url)
                ));
            }
        });
    }
}

/// One after another. One that can't be copied doesn't keep the others from it, and is told once more at the end.
async fn all(
    context: &Context,
    source: &Repository,
    destination: &Repository,
    lease: &Lease,
    ids: &[BackupId],
    unfinished: &Unfinished,
) -> Result<Outcome, Failure> {
    let mut failed = Vec::new();
    let mut removed = 0;
    for id in ids {
        match one(context, source, destination, lease, id, unfinished).await {
            Ok(()) => {}
            Err(error) if ids.len() == 1 || !error.concerns_one_backup() => return Err(error.into()),
            Err(error) if error.is_removed() => {
                context.output.note(error.to_string());
                removed += 1;
            }
            Err(error) => {
                Failure::from(error).tell(&context.output);
                failed.push(id.to_string());
            }
        }
    }
    if removed == ids.len() {
        return Err(source.no_backup().into());
    }
    if failed.is_empty() {
        return Ok(Outcome::Done);
    }
    let number = counted(failed.len() as u64, "backup", "backups");
    let message = format!("{number} of {} could not be copied", ids.len());
    context.output.error(&message, &failed, None);
    Ok(Outcome::Failed)
}

/// Opens the destination or makes it. Nothing is sealed there, so it takes no recipients.
async fn destination(settings: &Settings, url: &str) -> Result<Repository, Failure> {
    let store = settings.store(url).await?;
    let access = Access {
        encryption: Encryption::None,
        ..settings.access(KeyUse::None)?
    };
    Ok(Repository::open_or_create(store, &settings.name, access).await?)
}

async fn one(
    context: &Context,
    source: &Repository,
    destination: &Repository,
    lease: &Lease,
    id: &BackupId,
    unfinished: &Unfinished,
) -> Result<(), CopyError> {
    let begun = Instant::now();
    let progress = Arc::new(Progress::default());
    progress.set_phase(format!("copying {id}"));
    let original = Original::read(source, id).await?;
    progress.bytes_total.store(original.bytes(), Ordering::Relaxed);
    let display = Display::start(context.shown, &progress);
    let done = |bytes| {
        progress.bytes_done.fetch_add(bytes, Ordering::Relaxed);
        unfinished.change(|ids| _ = ids.insert(id.clone()));
    };
    let report = copy::copy(&original, destination, lease, done).await;
    drop(display);
    let report = report?;
    unfinished.change(|ids| _ = ids.remove(id));
    context.output.json(&json!({
        "id": id.to_string(),
        "to": destination.store().url(),
        "was_complete": report.was_complete,
        "objects_copied": report.objects_copied,
        "objects_present": report.objects_present,
        "bytes_copied": report.bytes_copied,
        "elapsed_seconds": begun.elapsed().as_secs_f64(),
    }));
    let url = destination.store().url();
    context.output.prose_summary(format!(
        "{} {} {url}{}",
        styled(ACCENT, id),
        what_was_done(&report),
        took(&report, begun)
    ));
    Ok(())
}

fn took(report: &CopyReport, begun: Instant) -> String {
    if report.was_complete {
        String::new()
    } else {
        format!(", in {}", duration(begun.elapsed()))
    }
}

fn what_was_done(report: &CopyReport) -> String {
    if report.was_complete {
        return "is there already, at".to_owned();
    }
    let present = match report.objects_present {
        0 => String::new(),
        number => format!(" ({} had been there)", number),
    };
    let objects = counted(report.objects_copied, "object", "objects");
    format!(
        "copied: {objects}, {}{present}, to",
        ByteCount(report.bytes_copied)
    )
}
