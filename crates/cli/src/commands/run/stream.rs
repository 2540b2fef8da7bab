//! WAL as the server writes it, received beside the jobs of `pgkeep run`.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use pgkeep_base::ByteCount;
use pgkeep_wal::{Phase, Receiver, ReceiverOptions, StreamState};
use serde_json::json;
use tokio::sync::watch;

use super::events::Events;
use super::job::{END_MAX, End};
use super::service::Service;
use crate::commands::wal;
use crate::context::{Context, KeyUse, Settings};
use crate::exit::{Failure, Outcome};

/// The pause after a failure that doesn't pass by itself; it doubles with each, as that of the jobs.
const PAUSE_MIN: Duration = Duration::from_secs(60);
const PAUSE_MAX: Duration = Duration::from_secs(3600);
/// How often it is told how far all is stored, for `systemctl status`.
const STATUS_INTERVAL: Duration = Duration::from_secs(30);

/// One cluster's WAL.
pub struct Streaming<'a> {
    pub context: &'a Context,
    pub settings: &'a Settings,
    pub events: Events<'a>,
    pub service: &'a Service,
    /// How many pieces were found to be lost.
    pub gaps: watch::Sender<u64>,
}

impl Streaming<'_> {
    /// Receives until the user wants it to end.
    pub async fn run(&self) -> End {
        let cancellation = &self.context.cancellation;
        let mut pause = PAUSE_MIN;
        while !cancellation.is_cancelled() {
            let failure = match self.receive(&mut pause).await {
                Ok(()) => break,
                Err(failure) if cancellation.is_cancelled() => {
                    // The server keeps what isn't confirmed.
                    self.events.interrupted(&failure.text());
                    break;
                }
                Err(failure) => failure,
            };
            let again = Timestamp::now().saturating_add(SignedDuration::try_from(pause).unwrap_or_default());
            self.events
                .failed("receiving WAL", &failure, None, again.ok(), None);
            self.status("trying again".to_owned());
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = cancellation.cancelled() => {}
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
        End::Outcome(Outcome::Done)
    }

    fn status(&self, text: String) {
        let name = format!("{} (WAL)", self.settings.name);
        self.service.status(&name, text);
    }

    async fn receive(&self, pause: &mut Duration) -> Result<(), Failure> {
        let cancellation = &self.context.cancellation;
        let target = self
            .settings
            .target()?
            .with_application_name(wal::stream::application_name(self.settings));
        let opening = self.settings.repository_to_write(KeyUse::None);
        let repository = cancellation.or(opening).await?;
        let options = ReceiverOptions {
            stop_max: END_MAX,
            ..wal::stream::options(self.settings)
        };
        let (receiver, mut state) = Receiver::new(target, repository, options);
        let (stop, told) = watch::channel(false);
        let mut receiving = std::pin::pin!(receiver.run(told));
        let mut before = StreamState::default();
        let mut ticks = tokio::time::interval(STATUS_INTERVAL);
        let mut changes = true;
        let result = loop {
            tokio::select! {
                result = &mut receiving => break result,
                changed = state.changed(), if changes => {
                    changes = changed.is_ok();
                    let now = state.borrow_and_update().clone();
                    if now.phase == Phase::Streaming {
                        *pause = PAUSE_MIN;
                    }
                    self.tell(&before, &now);
                    before = now;
                }
                _ = ticks.tick() => self.tell_status(&before),
                () = cancellation.cancelled(), if !*stop.borrow() => {
                    stop.send_replace(true);
                }
            }
        };
        let now = state.borrow().clone();
        self.tell(&before, &now);
        Ok(result?)
    }

    fn tell_status(&self, state: &StreamState) {
        self.status(match (&state.server_trouble, &state.store_trouble) {
            (Some(trouble), _) | (_, Some(trouble)) => trouble.clone(),
            _ if state.phase == Phase::Streaming => format!("stored up to {}", state.durable),
            _ => "connecting".to_owned(),
        });
    }

    /// Tells what is new, once.
    fn tell(&self, before: &StreamState, now: &StreamState) {
        let (phase, timeline) = (now.phase, now.timeline);
        if phase == Phase::Streaming && (before.phase != phase || before.timeline != timeline) {
            let number = timeline.map_or_else(|| "?".to_owned(), |timeline| timeline.to_string());
            let text = format!("receiving timeline {number}, stored up to {}", now.durable);
            let details = json!({
                "timeline": timeline.map(|timeline| timeline.as_u32()),
                "durable": now.durable.to_string(),
            });
            self.events.streaming(&text, details);
        }
        if let Some(text) = wal::stream::told_of_slot(before, now) {
            self.events.attention(&text);
        }
        for gap in now.gaps.iter().filter(|gap| !before.gaps.contains(gap)) {
            self.events.attention(&format!(
                "WAL from {} to {} of timeline {} is lost ({}): no restore can go over it; it takes a new base backup",
                gap.start,
                gap.end,
                gap.timeline,
                ByteCount(gap.end.bytes_since(gap.start).unwrap_or(0))
            ));
            self.gaps.send_modify(|number| *number += 1);
        }
        for (name, before, now) in [
            ("server", &before.server_trouble, &now.server_trouble),
            ("store", &before.store_trouble, &now.store_trouble),
        ] {
            match (before, now) {
                (None, Some(trouble)) => self
                    .events
                    .attention(&format!("WAL waits for the {name}: {trouble}")),
                (Some(_), None) => self
                    .events
                    .note(&format!("the {name} is back, and WAL comes again")),
                _ => {}
            }
        }
    }
}
