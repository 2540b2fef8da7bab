//! Ctrl-C and SIGTERM: the first asks the work to end cleanly, the second ends it at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::exit::{FAILED, Failure};

/// Tells whether the user wants the work to end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cancellation(watch::Receiver<bool>);

impl Cancellation {
    /// Begins to listen.
    pub fn listen() -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::failed("cannot listen for signals", &error);
        let interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let (sender, receiver) = watch::channel(false);
        tokio::spawn(watch_signals(interrupt, terminate, sender));
        Ok(Self(receiver))
    }

    /// Ends when the user wants the work to end.
    pub async fn cancelled(&self) {
        let mut receiver = self.0.clone();
        if receiver.wait_for(|cancelled| *cancelled).await.is_err() {
            // Nobody listens for signals any more: so nobody cancels.
            std::future::pending::<()>().await;
        }
    }

    /// Whether the user wants the work to end.
    pub fn is_cancelled(&self) -> bool {
        *self.0.borrow()
    }

    /// Does work that needs no farewell: it is dropped when the user wants it to end.
    pub async fn or<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        tokio::select! {
            done = work => done,
            () = self.cancelled() => Err(Failure::interrupted()),
        }
    }
}

async fn watch_signals(mut interrupt: Signal, mut terminate: Signal, cancelled: watch::Sender<bool>) {
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if cancelled.send_replace(true) {
            // The second time. What is left behind is what a crash leaves: the next run sweeps it.
            std::process::exit(i32::from(FAILED));
        }
        tracing::warn!("ending cleanly; once more ends at once");
    }
}
