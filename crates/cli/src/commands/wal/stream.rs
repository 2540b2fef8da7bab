//! `pgkeep wal stream`: the receiver, in the foreground.

use std::time::Duration;

use pgkeep_config::Overrides;
use pgkeep_wal::{Phase, Receiver, ReceiverOptions, StreamState};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::args::StreamArgs;
use crate::context::{Context, KeyUse, Settings};
use crate::exit::{Failure, Outcome};

/// `pgkeep wal stream`
pub async fn run(context: &Context, args: &StreamArgs) -> Result<Outcome, Failure> {
    let settings = context.settings(Overrides::default())?;
    let target = settings.target()?.with_application_name("pgkeep wal stream");
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
        ..ReceiverOptions::default()
    }
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
        "gaps": state.gaps.iter().map(|gap| json!({
            "timeline": gap.timeline.as_u32(),
            "start": gap.start.to_string(),
            "end": gap.end.to_string(),
        })).collect::<Vec<_>>(),
    })
}
