//! Log lines of the libraries on standard error: warnings always, more with `-v` and `-vv`.

use std::fmt::{self, Write as _};
use std::io;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

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
    let format = Plain { with_time: verbose > 0 };
    let layer = tracing_subscriber::fmt::layer().event_format(format).with_writer(Stderr);
    // It fails only where there is a subscriber already, in tests.
    let _ = tracing_subscriber::registry().with(filter).with(layer).try_init();
}

/// `warning: the lease stays until it runs out: connection refused`
struct Plain {
    with_time: bool,
}

impl<S, N> FormatEvent<S, N> for Plain
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        if self.with_time {
            write!(writer, "{:.3} ", jiff::Timestamp::now())?;
        }
        let label = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        writeln!(writer, "{label}: {}{}{}", fields.message, fields.others, fields.error)
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
