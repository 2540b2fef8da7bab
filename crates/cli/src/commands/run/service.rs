use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use sd_notify::NotifyState;

/// What systemd is told, where it is there and listens (`Type=notify`).
pub struct Service {
    /// What each cluster is doing.
    status: Mutex<BTreeMap<String, String>>,
}

impl Service {
    /// Tells that the configuration is read and the scheduler runs.
    pub fn start() -> Self {
        notify(&[NotifyState::Ready]);
        Self {
            status: Mutex::default(),
        }
    }

    /// Tells what a cluster's scheduler is doing, for `systemctl status`.
    pub fn status(&self, cluster: &str, text: String) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.insert(cluster.to_owned(), text);
        let line = status.iter().map(|(name, text)| format!("{name}: {text}"));
        notify(&[NotifyState::Status(&line.collect::<Vec<_>>().join("; "))]);
    }

    /// Tells again and again that the program still turns, twice in the time that systemd gives. Never ends.
    pub async fn watchdog(&self) {
        let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()) else {
            return std::future::pending().await;
        };
        let mut ticks = tokio::time::interval(limit / 2);
        loop {
            ticks.tick().await;
            notify(&[NotifyState::Watchdog]);
        }
    }

    /// Tells that it ends.
    pub fn stopping(&self) {
        notify(&[NotifyState::Stopping]);
    }
}

fn notify(states: &[NotifyState<'_>]) {
    // Without systemd there is nobody to tell, and no error either.
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd can't be told");
    }
}
