//! `pgkeep wal status`: what WAL is stored, and what is missing.

use std::time::Duration;

use pgkeep_base::ByteCount;
use pgkeep_config::Overrides;
use pgkeep_pgformat::{Timeline, TimelineHistory};
use pgkeep_repository::{Repository, RepositoryError, lease};
use pgkeep_wal::{Gap, SlotLag, StoredTimeline, WalError, Windows};
use serde_json::{Value, json};

use super::super::{attention, recoverable, several};
use crate::context::{Context, KeyUse, Settings};
use crate::exit::{Failure, Outcome};
use crate::output::{counted, time};
use crate::table::{Align, Table};

/// The server is asked for what it adds; its silence must not keep the rest from being told.
const SERVER_MAX: Duration = Duration::from_secs(10);

/// `pgkeep wal status`
pub async fn run(context: &Context) -> Result<Outcome, Failure> {
    let settings = context.settings(Overrides::default())?;
    let lag = slot_lag(&settings).await;
    several::in_each(context, &settings, async |settings| {
        in_one(context, settings, &lag).await
    })
    .await
}

async fn slot_lag(settings: &Settings) -> Result<SlotLag, String> {
    let target = settings.target().map_err(|failure| failure.text())?;
    let slot = &settings.cluster.wal.slot;
    match tokio::time::timeout(SERVER_MAX, SlotLag::ask(&target, slot)).await {
        Ok(Ok(lag)) => Ok(lag),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", SERVER_MAX.as_secs())),
    }
}

async fn in_one(
    context: &Context,
    settings: &Settings,
    lag: &Result<SlotLag, String>,
) -> Result<Outcome, Failure> {
    let repository = context.repository(settings, KeyUse::IfThere).await?;
    let receiver = lease::wal_receiver(&repository).await?;
    let mut lines = Vec::new();
    let systems = repository.wal_systems().await?;
    for system in &systems {
        let stored = pgkeep_wal::stored_wal(&repository, *system).await?;
        let (gaps, unread) = gaps(&repository, *system, &stored).await?;
        let windows = windows(&repository, *system, &stored).await?;
        let lag = lag.as_ref().ok().filter(|lag| lag.system_identifier == *system);
        tell(context, *system, &stored, lag, receiver.as_ref());
        recoverable::tell(context, windows.as_ref());
        // What lies before a backup is history, or was pruned.
        let is_open = |gap: &&Gap| windows.as_ref().is_none_or(|windows| windows.is_open(gap));
        lines.extend(gaps.iter().filter(is_open).map(|gap| {
            format!(
                "WAL from {} to {} of timeline {} is missing: no restore can go over it; the next base backup begins a new \
                 window",
                gap.start, gap.end, gap.timeline
            )
        }));
        if let Some(unread) = unread {
            context.output.note(format!(
                "whether WAL is missing between timelines isn't known: {unread}"
            ));
        }
        context.output.json(&document(
            *system,
            &stored,
            (&gaps, windows.as_ref()),
            lag,
            receiver.as_ref(),
        ));
    }
    if systems.is_empty() {
        let (cluster, url) = (repository.cluster(), repository.store().url());
        context.output.line(format!(
            "There is no WAL of '{cluster}' at {url} yet. Receive it with 'pgkeep wal stream'."
        ));
    }
    if let Err(error) = lag {
        context
            .output
            .note(format!("the server can't be asked how far it is: {error}"));
    }
    Ok(attention(context, &lines))
}

/// All gaps, and why those between timelines can't be told if they can't.
async fn gaps(
    repository: &Repository,
    system: u64,
    stored: &[StoredTimeline],
) -> Result<(Vec<Gap>, Option<String>), Failure> {
    let mut gaps: Vec<Gap> = stored.iter().flat_map(|stored| stored.gaps.clone()).collect();
    let later = stored
        .iter()
        .map(|stored| stored.timeline)
        .filter(|timeline| *timeline > Timeline::FIRST);
    for timeline in later {
        let contents = match repository.fetch_wal_history(system, timeline).await {
            Ok(contents) => contents,
            // Without the secret key.
            Err(error @ RepositoryError::Open { .. }) => return Ok((gaps, Some(error.to_string()))),
            Err(error) => return Err(error.into()),
        };
        let Some(contents) = contents else { continue };
        let history = TimelineHistory::parse(timeline, &contents).map_err(WalError::from)?;
        gaps.extend(pgkeep_wal::gap_at_switch(&history, stored));
    }
    gaps.sort_unstable_by_key(|gap| (gap.timeline, gap.start));
    Ok((gaps, None))
}

/// To which points one can go back; `None` without the secret key.
async fn windows(
    repository: &Repository,
    system: u64,
    stored: &[StoredTimeline],
) -> Result<Option<Windows>, Failure> {
    match pgkeep_physical::windows(repository, system, stored).await {
        Ok(windows) => Ok(Some(windows)),
        Err(error) if error.is_locked() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn tell(
    context: &Context,
    system: u64,
    stored: &[StoredTimeline],
    lag: Option<&SlotLag>,
    receiver: Option<&RepositoryError>,
) {
    let output = &context.output;
    let newest = stored.iter().filter_map(|stored| stored.newest_at).max();
    let slot = lag.map(|lag| match lag.bytes() {
        Some(bytes) => format!("{} behind {}", ByteCount(bytes), lag.flushed),
        None => "none".to_owned(),
    });
    output.facts(&[
        ("System identifier", system.to_string()),
        (
            "Receiver",
            receiver.map_or_else(|| "none".to_owned(), ToString::to_string),
        ),
        ("Newest stored", newest.map(time).unwrap_or_default()),
        ("Slot", slot.unwrap_or_default()),
    ]);
    let mut table = Table::new(&[
        ("TIMELINE", Align::Right),
        ("FROM", Align::Left),
        ("TO", Align::Left),
        ("STORED", Align::Left),
    ]);
    for timeline in stored {
        let size = format!(
            "{} in {}",
            ByteCount(timeline.stored_bytes),
            counted(timeline.objects, "object", "objects")
        );
        for (number, range) in timeline.covered.iter().enumerate() {
            table.row(vec![
                timeline.timeline.to_string(),
                range.start.to_string(),
                range.end.to_string(),
                if number == 0 { size.clone() } else { String::new() },
            ]);
        }
    }
    output.table(&table);
}

fn document(
    system: u64,
    stored: &[StoredTimeline],
    (gaps, windows): (&[Gap], Option<&Windows>),
    lag: Option<&SlotLag>,
    receiver: Option<&RepositoryError>,
) -> Value {
    json!({
        "windows": windows.map(|windows| windows.windows.iter().map(recoverable::document).collect::<Vec<_>>()),
        "system_identifier": system.to_string(),
        "receiver": receiver.map(ToString::to_string),
        "newest_at": stored.iter().filter_map(|stored| stored.newest_at).max().map(|at| at.to_string()),
        "slot": lag.map(|lag| json!({
            "flushed": lag.flushed.to_string(),
            "restart": lag.restart.map(|lsn| lsn.to_string()),
            "lag_bytes": lag.bytes(),
        })),
        "timelines": stored.iter().map(|timeline| json!({
            "timeline": timeline.timeline.as_u32(),
            "ranges": timeline.covered.iter().map(|range| json!({
                "start": range.start.to_string(),
                "end": range.end.to_string(),
            })).collect::<Vec<_>>(),
            "objects": timeline.objects,
            "stored_bytes": timeline.stored_bytes,
        })).collect::<Vec<_>>(),
        "gaps": gaps.iter().map(|gap| json!({
            "timeline": gap.timeline.as_u32(),
            "start": gap.start.to_string(),
            "end": gap.end.to_string(),
        })).collect::<Vec<_>>(),
    })
}
