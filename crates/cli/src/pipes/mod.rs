//! Dagster Pipes: started by Dagster, the program reports to it what it says to people, what it made, and how it ended.
//!
//! Dagster names two places in the environment: where it says what it wants, and where it reads JSON lines. Both are read
//! before anything else, and whatever is wrong with them ends the program before it has begun: a dump of which Dagster
//! never hears is worth less than an error at once. Outside Dagster every function here does nothing.
//!
//! The crate `dagster_pipes_rust` isn't used: it panics where it doesn't understand the places, can't tell why the
//! program failed, nor log, nor name a version of the data; and the protocol is five kinds of lines.

mod channel;
mod message;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use channel::{Channel, Invitation};
pub use message::{Level, Metadata};
use serde_json::{Value, json};

use crate::exit::{self, Failure};

static REPORTER: OnceLock<Reporter> = OnceLock::new();

struct Reporter {
    channel: Mutex<Channel>,
    /// The assets that Dagster wants from this process.
    asset_keys: Vec<String>,
    /// What went wrong, for the last message.
    errors: Mutex<Vec<String>>,
    /// A message could not be written.
    failed: AtomicBool,
}

/// Opens the channel to Dagster, where it has started this process.
pub fn open() -> Result<(), Failure> {
    let Some(invitation) = Invitation::read(&|name| std::env::var_os(name))? else {
        return Ok(());
    };
    let reporter = Reporter {
        channel: Mutex::new(invitation.channel),
        asset_keys: invitation.asset_keys,
        errors: Mutex::default(),
        failed: AtomicBool::new(false),
    };
    let opened = json!({ "extras": { "pgkeep_version": env!("CARGO_PKG_VERSION") } });
    reporter
        .channel
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .write(&message::message("opened", &opened))
        .map_err(|error| Failure::failed("cannot report to Dagster", &error))?;
    // Only the first call comes here.
    let _ = REPORTER.set(reporter);
    Ok(())
}

/// Whether Dagster listens.
pub fn is_open() -> bool {
    REPORTER.get().is_some()
}

/// A line of the run's log.
pub fn log(level: Level, text: &str) {
    if let Some(reporter) = REPORTER.get() {
        reporter.send("log", &message::log(level, text));
    }
}

/// A JSON document as `--json` has it, for whoever started the process.
pub fn document(document: &Value) {
    if let Some(reporter) = REPORTER.get() {
        reporter.send("report_custom_message", &json!({ "payload": document }));
    }
}

/// An error, kept for the last message.
pub fn error(text: &str) {
    if let Some(reporter) = REPORTER.get() {
        let mut errors = reporter.errors.lock().unwrap_or_else(PoisonError::into_inner);
        errors.push(message::plain(text));
    }
}

/// The asset was made. A process that was started for several, or for none, can't know which one to name: it says so.
pub fn materialization(data_version: Option<&str>, metadata: &Metadata) {
    let Some(reporter) = REPORTER.get() else {
        return;
    };
    match reporter.asset_keys.as_slice() {
        [asset_key] => reporter.send(
            "report_asset_materialization",
            &json!({ "asset_key": asset_key, "data_version": data_version, "metadata": metadata.value() }),
        ),
        several => log(
            Level::Info,
            &format!(
                "no asset is reported as materialized: the step is for {} assets, not for one",
                several.len()
            ),
        ),
    }
}

/// The last messages; the exit code, which tells when Dagster could not be told. Dagster shows why it was closed, and hands
/// it to nobody: so whoever started the process gets it as a document, too.
pub fn close(code: u8) -> u8 {
    let Some(reporter) = REPORTER.get() else {
        return code;
    };
    let errors = reporter.errors.lock().unwrap_or_else(PoisonError::into_inner);
    let closed = match code {
        exit::DONE | exit::ATTENTION => Value::Null,
        _ => {
            let exception = message::exception(code, &errors);
            document(&json!({ "failure": { "exit_code": code, "message": exception["message"] } }));
            json!({ "exception": exception })
        }
    };
    reporter.send("closed", &closed);
    drop(errors);
    if code == exit::DONE && reporter.failed.load(Ordering::Relaxed) {
        return exit::FAILED;
    }
    code
}

impl Reporter {
    fn send(&self, method: &str, params: &Value) {
        let line = message::message(method, params);
        let written = self
            .channel
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(&line);
        // Told once, for it comes back here; the exit code tells it, too.
        if let Err(error) = written
            && !self.failed.swap(true, Ordering::Relaxed)
        {
            tracing::error!("cannot report to Dagster: {error}");
        }
    }
}
