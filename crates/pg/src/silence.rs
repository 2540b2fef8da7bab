//! Is a server that says nothing still there?
//!
//! Keepalives don't tell: the kernel answers them for a server that is paused, stopped, or waits for its disk. Nor does
//! silence: an index build, a count, or a scan of what was deleted says nothing for hours. So who has waited long asks, by
//! a connection of its own, and goes on waiting if the server answers.
//!
//! A server whose disk hangs may answer from what it has in memory. That is only noticed when silence has lasted longer
//! than anything that is at work.

use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::conninfo::Target;
use crate::{ConnectReason, PgError, Session};

/// Between two attempts to reach a server that refuses: it may be taking up many connections just now.
const ATTEMPT_INTERVAL: Duration = Duration::from_secs(1);

/// How long a server may be silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silence {
    /// Not a byte for so long, and it is asked whether it's there.
    pub max: Duration,
    /// How long it has for the answer: a busy machine may take its time for a new connection.
    pub answer_max: Duration,
    /// Not a byte for so long is the end, whatever it answers. Building indexes takes hours; a week is a hang.
    pub total_max: Duration,
}

impl Default for Silence {
    fn default() -> Self {
        Self {
            max: Duration::from_secs(30 * 60),
            answer_max: Duration::from_secs(5 * 60),
            total_max: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

impl Target {
    /// The same, with other limits to the server's silence.
    #[must_use]
    pub fn with_silence(&self, silence: Silence) -> Self {
        Self {
            silence,
            ..self.clone()
        }
    }

    /// Asks the server again and again, after each [`Silence::max`], whether it is still there; ends when it doesn't
    /// answer, or has said nothing else for too long. To be waited for beside what comes from the server, directly or by
    /// a program.
    pub async fn until_unreachable(&self) -> PgError {
        let begun = Instant::now();
        loop {
            sleep(self.silence.max).await;
            let silent = |reason| PgError::Silent {
                endpoint: self.endpoint(),
                after: begun.elapsed(),
                reason,
            };
            let asked = begun.elapsed();
            if let Err(reason) = self.ask().await {
                return silent(format!("nor did it answer a new connection: {reason}"));
            }
            if asked >= self.silence.total_max {
                return silent("though it answers a new connection".to_owned());
            }
            tracing::debug!(
                endpoint = self.endpoint(),
                "the server says nothing, but answers a new connection"
            );
        }
    }

    /// Whether it answers a new connection, be it by a refusal. Boxed: connecting is waited for in the same way.
    fn ask(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        let asked = Self {
            connect_timeout: self.silence.answer_max,
            ..self.clone()
        };
        Box::pin(async move {
            let deadline = Instant::now() + self.silence.answer_max;
            loop {
                let reason = match timeout_at(deadline, Session::connect(&asked)).await {
                    Ok(Ok(session)) => {
                        session.close().await;
                        return Ok(());
                    }
                    Ok(Err(error)) if is_answer(&error) => return Ok(()),
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => format!("no answer within {} s", self.silence.answer_max.as_secs_f64()),
                };
                let next = Instant::now() + ATTEMPT_INTERVAL;
                if next >= deadline {
                    return Err(reason);
                }
                sleep_until(next).await;
            }
        })
    }
}

/// Somebody there has read what was sent.
fn is_answer(error: &PgError) -> bool {
    match error {
        PgError::Connect { reason, .. } => match reason.as_ref() {
            ConnectReason::Server(_) | ConnectReason::SessionAttributes(_) => true,
            ConnectReason::SeveralHosts(reasons) => reasons
                .iter()
                .any(|(_, reason)| matches!(reason.as_ref(), ConnectReason::Server(_))),
            _ => false,
        },
        PgError::Closed | PgError::Io(_) | PgError::Deadline { .. } | PgError::Silent { .. } => false,
        _ => true,
    }
}
