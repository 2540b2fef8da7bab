//! `pgkeep copy`: backups to another repository.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use pgkeep_base::{BackupId, ByteCount, quote_for_shell};
use pgkeep_config::Overrides;
use pgkeep_dump::Progress;
use pgkeep_repository::copy::{self, CopyError, CopyReport, Original};
use pgkeep_repository::encryption::Encryption;
use pgkeep_repository::lease::Lease;
use pgkeep_repository::{Access, Repository};
use serde_json::json;

use super::latest;
use super::several::{self, Opened};
use crate::args::CopyArgs;
use crate::context::{Context, KeyUse, LEASE_DURATION, Settings};
use crate::exit::{Failure, Outcome};
use crate::output::{ACCENT, Output, counted, duration, styled};
use crate::progress::Display;

/// A key isn't needed to copy: where there is one, it tells which dump is the latest.
const KEYS: KeyUse = KeyUse::IfThere;

/// `pgkeep copy ID|all --to URL`
pub async fn run(context: &Context, args: CopyArgs) -> Result<Outcome, Failure> {
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
            outcome = outcome.and(from_one(context, repository, ids, &to, &args).await?);
        }
        return Ok(outcome);
    }
    several::in_each(context, &sources, async |settings| {
        let opening = context.repository(settings, KEYS);
        let repository = context.cancellation.or(opening).await?;
        let ids = context.cancellation.or(latest::all(&repository)).await?;
        from_one(context, &repository, ids, &to, &args).await
    })
    .await
}

async fn from_one(
    context: &Context,
    source: &Repository,
    ids: Vec<BackupId>,
    to: &Settings,
    args: &CopyArgs,
) -> Result<Outcome, Failure> {
    let prepare = async {
        let destination = destination(to, &args.to).await?;
        copy::check_different(source, &destination)?;
        Ok(destination)
    };
    let destination = context.cancellation.or(prepare).await?;
    let lease = Lease::acquire(&destination, "pgkeep copy", LEASE_DURATION).await?;
    let unfinished = Unfinished::default();
    let copying = Copying {
        context,
        source,
        destination: &destination,
        lease: &lease,
        repair: args.repair,
        unfinished: &unfinished,
    };
    let copying = copying.all(&ids);
    let result = context.cancellation.or(copying).await;
    unfinished.tell(&context.output, destination.store().url(), args.repair);
    if let Err(error) = lease.release().await {
        tracing::warn!(%error, "the lease stays until it runs out");
    }
    result
}

/// The backups of which the destination may have objects, and no manifest.
#[derive(Default)]
struct Unfinished(Mutex<BTreeSet<BackupId>>);

impl Unfinished {
    fn change(&self, change: impl FnOnce(&mut BTreeSet<BackupId>)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// An interrupted copy isn't taken back: it may be gone on with.
    fn tell(&self, output: &Output, url: &str, repair: bool) {
        self.change(|ids| {
            for id in ids.iter() {
                output.note(match repair {
                    true => format!("{id} at {url} is not repaired yet: the same 'pgkeep copy' goes on with it"),
                    false => format!(
                        "a part of {id} may be at {url}, where it is no backup: the same 'pgkeep copy' goes on with it, and \
                         'pgkeep prune --repository {}' removes it",
                        quote_for_shell(url)
                    ),
                });
            }
        });
    }
}

/// What copying takes.
struct Copying<'a> {
    context: &'a Context,
    source: &'a Repository,
    destination: &'a Repository,
    lease: &'a Lease,
    repair: bool,
    unfinished: &'a Unfinished,
}

impl Copying<'_> {
    /// One after another. One that can't be copied doesn't keep the others from it, and is told once more at the end.
    async fn all(&self, ids: &[BackupId]) -> Result<Outcome, Failure> {
        let output = &self.context.output;
        let mut failed = Vec::new();
        let mut removed = 0;
        let mut outcome = Outcome::Done;
        for id in ids {
            match self.one(id).await {
                Ok(of_one) => outcome = outcome.and(of_one),
                Err(error) if ids.len() == 1 || !error.concerns_one_backup() => return Err(error.into()),
                Err(error) if error.is_removed() => {
                    output.note(error.to_string());
                    removed += 1;
                }
                Err(error) => {
                    Failure::from(error).tell(output);
                    failed.push(id.to_string());
                }
            }
        }
        if removed == ids.len() {
            return Err(self.source.no_backup().into());
        }
        if failed.is_empty() {
            return Ok(outcome);
        }
        let number = counted(failed.len() as u64, "backup", "backups");
        let message = format!("{number} of {} could not be copied", ids.len());
        output.error(&message, &failed, None);
        Ok(Outcome::Failed)
    }

    async fn one(&self, id: &BackupId) -> Result<Outcome, CopyError> {
        let begun = Instant::now();
        let progress = Arc::new(Progress::default());
        progress.set_phase(format!("copying {id}"));
        let original = Original::read(self.source, id).await?;
        progress.bytes_total.store(original.bytes(), Ordering::Relaxed);
        let display = Display::start(self.context.shown, &progress);
        let done = |bytes| {
            progress.bytes_done.fetch_add(bytes, Ordering::Relaxed);
            self.unfinished.change(|ids| _ = ids.insert(id.clone()));
        };
        let copied = copy::copy(&original, self.destination, self.lease, self.repair, done).await;
        drop(display);
        let report = copied?;
        self.unfinished.change(|ids| _ = ids.remove(id));
        self.tell(id, &report, begun);
        if report.was_complete {
            self.tell_damage(id).await
        } else {
            Ok(Outcome::Done)
        }
    }

    fn tell(&self, id: &BackupId, report: &CopyReport, begun: Instant) {
        let url = self.destination.store().url();
        self.context.output.json(&json!({
            "id": id.to_string(),
            "to": url,
            "was_complete": report.was_complete,
            "objects_copied": report.objects_copied,
            "objects_present": report.objects_present,
            "objects_repaired": report.objects_repaired,
            "bytes_copied": report.bytes_copied,
            "elapsed_seconds": begun.elapsed().as_secs_f64(),
        }));
        self.context.output.prose_summary(format!(
            "{} {} {url}{}",
            styled(ACCENT, id),
            what_was_done(report),
            took(report, begun)
        ));
    }

    /// One that is there already may be known to be damaged.
    async fn tell_damage(&self, id: &BackupId) -> Result<Outcome, CopyError> {
        let url = self.destination.store().url();
        let evidence = self.destination.evidence_of(id).await;
        let evidence = evidence.map_err(|source| CopyError::Destination {
            url: url.to_owned(),
            source: Box::new(source),
        })?;
        if evidence.is_none_or(|evidence| evidence.passed) {
            return Ok(Outcome::Done);
        }
        self.context.output.attention(format!(
            "the last verification of {id} at {url} found damage: 'pgkeep copy {id} --to {} --repair' writes anew what is damaged",
            quote_for_shell(url)
        ));
        Ok(Outcome::Attention)
    }
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
    if report.objects_copied == 0 {
        let objects = counted(report.objects_present, "object", "objects");
        return format!("is whole: {objects} compared with their hashes, at");
    }
    let repaired = match report.objects_repaired {
        0 => String::new(),
        number => format!(", of which {number} had been damaged there"),
    };
    let present = match report.objects_present {
        0 => String::new(),
        number => format!(" ({} had been there)", number),
    };
    let objects = counted(report.objects_copied, "object", "objects");
    format!(
        "copied: {objects}, {}{repaired}{present}, to",
        ByteCount(report.bytes_copied)
    )
}
