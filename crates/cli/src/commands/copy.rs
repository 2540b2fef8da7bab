//! `pgkeep copy`: backups to another repository.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use pgkeep_base::{BackupId, BackupKind, ByteCount, quote_for_shell};
use pgkeep_config::Overrides;
use pgkeep_dump::Progress;
use pgkeep_repository::copy::{self, CopyError, CopyReport, Original, RepairReport};
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
            outcome = outcome.and(from_one(context, repository, ids, &to, &args).await?);
        }
        return Ok(outcome);
    }
    several::in_each(context, &sources, async |settings| {
        let opening = context.repository(settings, KEYS);
        let repository = context.cancellation.or(opening).await?;
        let asking = async {
            let others = latest::all_of(&repository, BackupKind::Base).await?;
            let dumps = repository.backups(BackupKind::Dump).await?;
            Ok((latest::all(context, &repository, dumps)?, others))
        };
        let ((ids, outcome), others) = context.cancellation.or(asking).await?;
        let copied = from_one(context, &repository, ids, &to, &args).await?;
        let left = others
            .iter()
            .map(|id| format!("{id} is a base backup, which this version can't copy"));
        let left = super::attention(context, &left.collect::<Vec<_>>());
        Ok(outcome.and(copied).and(left))
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
        settings: to,
        unfinished: &unfinished,
    };
    let copying = copying.all(&ids);
    let result = context.cancellation.or(copying).await;
    unfinished.tell(&context.output, destination.store().url());
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
    fn tell(&self, output: &Output, url: &str) {
        self.change(|ids| {
            for id in ids.iter() {
                output.note(format!(
                    "a part of {id} may be at {url}, where it is no backup: the same 'pgkeep copy' goes on with it, and \
                     'pgkeep prune --repository {}' removes it",
                    quote_for_shell(url)
                ));
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
    /// The destination's.
    settings: &'a Settings,
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
        };
        if self.repair && copy::is_repairable(self.destination, id).await? {
            let repaired = copy::repair(&original, self.destination, self.lease, done).await;
            drop(display);
            return Ok(self.tell_repaired(id, &repaired?, begun));
        }
        let done = |bytes| {
            done(bytes);
            self.unfinished.change(|ids| _ = ids.insert(id.clone()));
        };
        let copied = copy::copy(&original, self.destination, self.lease, done).await;
        drop(display);
        let report = copied?;
        self.unfinished.change(|ids| _ = ids.remove(id));
        self.tell(id, &report, begun);
        Ok(match report.was_complete {
            true => self.tell_damage(id).await,
            false => Outcome::Done,
        })
    }

    fn url(&self) -> &str {
        self.destination.store().url()
    }

    fn tell(&self, id: &BackupId, report: &CopyReport, begun: Instant) {
        let url = self.url();
        self.context.output.json(&json!({
            "id": id.to_string(),
            "to": url,
            "was_complete": report.was_complete,
            "objects_copied": report.objects_copied,
            "objects_present": report.objects_present,
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

    fn tell_repaired(&self, id: &BackupId, report: &RepairReport, begun: Instant) -> Outcome {
        let url = self.url();
        let output = &self.context.output;
        output.json(&json!({
            "id": id.to_string(),
            "to": url,
            "was_complete": true,
            "objects_present": report.objects_sound,
            "objects_repaired": report.objects_repaired,
            "bytes_copied": report.bytes_written,
            "elapsed_seconds": begun.elapsed().as_secs_f64(),
        }));
        let all = counted(
            report.objects_sound + report.objects_repaired,
            "object",
            "objects",
        );
        let what = match report.objects_repaired {
            0 => format!("{all} compared, none is damaged"),
            number => format!(
                "{all} compared, {number} written anew ({})",
                ByteCount(report.bytes_written)
            ),
        };
        output.prose_summary(format!(
            "{} is whole at {url}: {what}, in {}",
            styled(ACCENT, id),
            duration(begun.elapsed())
        ));
        if !report.evidence_remains {
            return Outcome::Done;
        }
        output.attention(format!(
            "it counts as damaged until its contents are verified, where the secret key is: {}",
            self.settings
                .command(&format!("verify {id} --repository {}", quote_for_shell(url)))
        ));
        Outcome::Attention
    }

    /// One that is there already may be known to be damaged.
    async fn tell_damage(&self, id: &BackupId) -> Outcome {
        // Where that may not be read, nothing is known.
        let evidence = self.destination.evidence_of(id).await.ok().flatten();
        if evidence.is_none_or(|evidence| evidence.passed) {
            return Outcome::Done;
        }
        let sound = self.source.store().url();
        several::tell_damaged(self.context, self.settings, self.url(), id, Some(sound));
        Outcome::Attention
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
