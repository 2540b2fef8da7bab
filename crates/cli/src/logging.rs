//! Log lines of the libraries on standard error: warnings always, more with `-v` and `-vv`.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::pipes;
use crate::printable;

/// Begins to print what is logged. Our own crates say more than those of others.
pub fn start(quiet: bool, verbose: u8) {
    let (ours, others) = match (quiet, verbose) {
        (true, _) => (LevelFilter::ERROR, LevelFilter::OFF),
        (false, 0) => (LevelFilter::WARN, LevelFilter::OFF),
        (false, 1) => (LevelFilter::INFO, LevelFilter::WARN),
        (false, 2) => (LevelFilter::DEBUG, LevelFilter::WARN),
        (false, _) => (LevelFilter::TRACE, LevelFilter::INFO),
    };
    let filter = Targets::new().with_default(others).with_target("pgkeep", ours);
    let format = Plain {
        verbose: verbose > 0,
        told: Mutex::default(),
    };
    let layer = tracing_subscriber::fmt::layer()
        .event_format(format)
        .with_writer(Stderr);
    // It fails only where there is a subscriber already, in tests.
    let _ = tracing_subscriber::registry().with(filter).with(layer).try_init();
}

/// `warning: the lease stays until it runs out: connection refused`
struct Plain {
    verbose: bool,
    /// When a line of the store was told last, by its place in the source.
    told: Mutex<HashMap<Identifier, Instant>>,
}

/// A store that is away is tried again and again; that is told now and then, not each time.
const REPETITION_INTERVAL: Duration = Duration::from_secs(30);
const REPETITIVE_TARGET: &str = "pgkeep_store";

impl Plain {
    fn is_repetition(&self, metadata: &Metadata<'_>) -> bool {
        if self.verbose || !metadata.target().starts_with(REPETITIVE_TARGET) {
            return false;
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let last = told.get(&metadata.callsite()).copied();
        if last.is_some_and(|last| now.duration_since(last) < REPETITION_INTERVAL) {
            return true;
        }
        told.insert(metadata.callsite(), now);
        false
    }
}

impl<S, N> FormatEvent<S, N> for Plain
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if self.is_repetition(event.metadata()) {
            return Ok(());
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        if self.verbose {
            write!(writer, "{:.3} ", jiff::Timestamp::now())?;
        } else {
            fields.others.clear();
        }
        let label = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        let text = format!("{}{}{}", fields.message, fields.others, fields.error);
        if let Some(level) = pipes_level(*event.metadata().level()) {
            pipes::log(level, &text);
        }
        let line = format!("{label}: {text}");
        writeln!(writer, "{}", printable::lines(&line))
    }
}

/// What `-vv` adds is for whoever looks for a fault, not for the log of a run.
fn pipes_level(level: Level) -> Option<pipes::Level> {
    match level {
        Level::ERROR => Some(pipes::Level::Error),
        Level::WARN => Some(pipes::Level::Warning),
        Level::INFO => Some(pipes::Level::Info),
        _ => None,
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    error: String,
    others: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String can't fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            "error" => write!(self.error, ": {value:?}"),
            name => write!(self.others, " {name}={value:?}"),
        };
    }
}

/// Standard error, with the progress bar out of the way.
struct Stderr;

impl io::Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        crate::progress::suspended(|| io::stderr().lock().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

impl MakeWriter<'_> for Stderr {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}
