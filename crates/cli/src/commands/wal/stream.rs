//! `pgkeep wal stream`: the receiver, in the foreground.

use std::time::Duration;

use pgkeep_base::ByteCount;
use pgkeep_config::Overrides;
use pgkeep_wal::{AtLimit, FillLevel, GuardOptions, Phase, Receiver, ReceiverOptions, StreamState};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::args::StreamArgs;
use crate::context::{Context, KeyUse, Settings};
use crate::exit::{Failure, Outcome};

/// `pgkeep wal stream`
pub async fn run(context: &Context, args: &StreamArgs) -> Result<Outcome, Failure> {
    let settings = context.settings(Overrides::default())?;
    let name = application_name(&settings);
    let target = settings.target()?.with_application_name(name);
    let repository = context
        .cancellation
        .or(settings.repository_to_write(KeyUse::None))
        .await?;
    let options = ReceiverOptions {
        accept_new_identity: args.accept_new_identity,
        ..options(&settings)
    };
    let (receiver, state) = Receiver::new(target, repository, options);
    let (stop, told) = watch::channel(false);
    let mut receiving = Box::pin(receiver.run(told));
    let mut telling = Telling::new(context, state.clone());
    let result = loop {
        tokio::select! {
            result = &mut receiving => break result,
            () = telling.next() => {}
            () = context.cancellation.cancelled(), if !*stop.borrow() => {
                stop.send_replace(true);
            }
        }
    };
    telling.tell_news();
    let state = state.borrow().clone();
    context.output.json(&event("ended", &state));
    result?;
    context.output.summary(format!(
        "All WAL that came is stored, up to {} of timeline {}.",
        state.durable,
        state
            .timeline
            .map_or_else(|| "?".to_owned(), |timeline| timeline.to_string())
    ));
    Ok(match state.gaps.is_empty() {
        true => Outcome::Done,
        false => Outcome::Attention,
    })
}

/// How WAL is received, by the settings.
pub fn options(settings: &Settings) -> ReceiverOptions {
    ReceiverOptions {
        slot: settings.cluster.wal.slot.clone(),
        flush_after: flush_after(settings),
        synchronous: settings.cluster.wal.synchronous,
        guard: GuardOptions {
            slot_bytes_max: settings.cluster.wal.slot_bytes_max.map(|bytes| bytes.0),
            at_limit: match settings.cluster.wal.at_limit {
                pgkeep_config::AtLimit::Release => AtLimit::Release,
                pgkeep_config::AtLimit::Hold => AtLimit::Hold,
            },
            ..GuardOptions::default()
        },
        ..ReceiverOptions::default()
    }
}

/// By which name the server knows the receiver. One that waits for it names the slot in `synchronous_standby_names`.
pub fn application_name(settings: &Settings) -> &str {
    match settings.cluster.wal.synchronous {
        true => &settings.cluster.wal.slot,
        false => "pgkeep wal stream",
    }
}

/// What is to be said of the WAL that the server keeps, if it is more than it was, or the slot was just given up.
pub fn told_of_slot(before: &StreamState, now: &StreamState) -> Option<String> {
    if now.releases > before.releases {
        return Some(
            "the server kept more WAL than wal.slot_bytes_max allows, so the slot was dropped: what it removes before it is stored \
             is lost; mend: see why the store was away, or raise wal.slot_bytes_max"
                .to_owned(),
        );
    }
    let level = |state: &StreamState| state.slot_fill.map_or(FillLevel::Low, |fill| fill.level);
    let fill = now.slot_fill.filter(|fill| fill.level > level(before))?;
    let (kept, limit) = (ByteCount(fill.kept_bytes), ByteCount(fill.limit_bytes));
    Some(format!(
        "the server keeps {kept} of WAL that isn't stored yet; at {limit} wal.at_limit counts"
    ))
}

fn flush_after(settings: &Settings) -> Duration {
    let duration = settings.cluster.wal.flush_after;
    // Checked when it was read: never negative.
    Duration::try_from(duration).unwrap_or(Duration::ZERO)
}

/// Tells what changes, once.
struct Telling<'a> {
    context: &'a Context,
    state: watch::Receiver<StreamState>,
    told: StreamState,
    ended: bool,
}

impl<'a> Telling<'a> {
    fn new(context: &'a Context, state: watch::Receiver<StreamState>) -> Self {
        Self {
            context,
            state,
            told: StreamState::default(),
            ended: false,
        }
    }

    async fn next(&mut self) {
        if self.ended || self.state.changed().await.is_err() {
            self.ended = true;
            std::future::pending::<()>().await;
        }
        self.tell_news();
    }

    fn tell_news(&mut self) {
        let state = self.state.borrow_and_update().clone();
        let output = &self.context.output;
        let (phase, timeline) = (state.phase, state.timeline);
        if phase == Phase::Streaming && (self.told.phase != phase || self.told.timeline != timeline) {
            output.event(format!(
                "Receiving WAL of timeline {}; stored up to {}.",
                timeline.map_or_else(|| "?".to_owned(), |timeline| timeline.to_string()),
                state.durable
            ));
            output.json(&event("streaming", &state));
        }
        if let Some(text) = told_of_slot(&self.told, &state) {
            output.attention(text);
            output.json(&event("slot", &state));
        }
        for gap in state.gaps.iter().filter(|gap| !self.told.gaps.contains(gap)) {
            output.attention(format!(
                "WAL from {} to {} of timeline {} is lost: take a base backup now",
                gap.start, gap.end, gap.timeline
            ));
            output.json(&event("gap", &state));
        }
        for (name, before, now) in [
            ("server", &self.told.server_trouble, &state.server_trouble),
            ("store", &self.told.store_trouble, &state.store_trouble),
        ] {
            if before == now {
                continue;
            }
            // The text of a trouble is in the log; its end is told here.
            if now.is_none() {
                output.event(format!("The {name} is back."));
            }
            output.json(&event(&format!("{name} trouble"), &state));
        }
        self.told = state;
    }
}

fn event(name: &str, state: &StreamState) -> Value {
    json!({
        "event": name,
        "phase": match state.phase {
            Phase::Starting => "starting",
            Phase::Waiting => "waiting",
            Phase::Connecting => "connecting",
            Phase::Streaming => "streaming",
            Phase::Stopping => "stopping",
        },
        "timeline": state.timeline.map(|timeline| timeline.as_u32()),
        "received": state.received.to_string(),
        "durable": state.durable.to_string(),
        "server_end": state.server_end.to_string(),
        "server_trouble": state.server_trouble,
        "store_trouble": state.store_trouble,
        "reconnects": state.reconnects,
        "objects": state.objects,
        "slot_kept_bytes": state.slot_fill.map(|fill| fill.kept_bytes),
        "slot_bytes_max": state.slot_fill.map(|fill| fill.limit_bytes),
        "slot_releases": state.releases,
        "gaps": state.gaps.iter().map(|gap| json!({
            "timeline": gap.timeline.as_u32(),
            "start": gap.start.to_string(),
            "end": gap.end.to_string(),
        })).collect::<Vec<_>>(),
    })
}
