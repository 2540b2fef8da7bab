//! How far long work is: a bar on a terminal; elsewhere nothing, or with `-v` a line now and then, as in Dagster's log.

use std::io::{IsTerminal, Write};
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use pgkeep_base::ByteCount;
use pgkeep_dump::Progress;
use tokio::task::JoinHandle;

use crate::output::count;
use crate::pipes;
use crate::printable;

const REFRESH_INTERVAL: Duration = Duration::from_millis(100);
const LINE_INTERVAL: Duration = Duration::from_secs(30);

const SPINNER: &str = "{spinner:.cyan} {msg}";
const BAR: &str =
    "{spinner:.cyan} {msg}  {bar:24.cyan/dim} {percent:>3}%  {done} of {total}, {rate}/s, {eta} left";
/// Where there is less room than the other takes with its texts; what is going on is cut if need be.
const BAR_NARROW: &str =
    "{spinner:.cyan} {wide_msg}  {bar:10.cyan/dim} {percent:>3}%  {done} of {total}, {eta} left";
const BAR_COLUMNS_MIN: u16 = 110;

static BARS: LazyLock<MultiProgress> =
    LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));

/// Does something to the terminal while no bar is there.
pub fn suspended<T>(act: impl FnOnce() -> T) -> T {
    BARS.suspend(act)
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// Not at all.
    Nothing,
    /// A bar that moves.
    Bar,
    /// A line now and then.
    Lines,
    /// The same, for Dagster alone.
    Reported,
}

impl Shown {
    /// As the flags and standard error have it.
    pub fn by(quiet: bool, verbose: u8) -> Self {
        match (quiet, std::io::stderr().is_terminal(), verbose) {
            (false, false, 0) if pipes::is_open() => Self::Reported,
            (true, _, _) | (false, false, 0) => Self::Nothing,
            (false, true, _) => Self::Bar,
            (false, false, _) => Self::Lines,
        }
    }
}

/// Shows counters until it is dropped.
pub struct Display {
    task: Option<JoinHandle<()>>,
    bar: Option<ProgressBar>,
}

impl Display {
    /// Begins to show them.
    pub fn start(shown: Shown, progress: &Arc<Progress>) -> Self {
        let progress = Arc::clone(progress);
        match shown {
            Shown::Nothing => Self {
                task: None,
                bar: None,
            },
            Shown::Lines | Shown::Reported => Self {
                task: Some(tokio::spawn(print_lines(progress, shown))),
                bar: None,
            },
            Shown::Bar => {
                let bar = BARS.add(ProgressBar::no_length());
                Self {
                    task: Some(tokio::spawn(move_bar(progress, bar.clone()))),
                    bar: Some(bar),
                }
            }
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            BARS.remove(bar);
        }
    }
}

async fn move_bar(progress: Arc<Progress>, bar: ProgressBar) {
    // The templates are constants; should one be wrong, the bar is plain.
    let style =
        |template| ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let (spinner, full) = (style(SPINNER), with_sizes(style(bar_template())));
    let mut ticks = tokio::time::interval(REFRESH_INTERVAL);
    let mut measurable = None;
    loop {
        ticks.tick().await;
        let total = progress.bytes_total.load(Ordering::Relaxed);
        // Sizes are estimates: more may be done than there was to do.
        let done = progress.bytes_done.load(Ordering::Relaxed).min(total);
        // Before the first byte and after the last there is no rate to tell a time from.
        let now_measurable = done > 0 && done < total;
        if measurable != Some(now_measurable) {
            measurable = Some(now_measurable);
            bar.set_style(if now_measurable {
                full.clone()
            } else {
                spinner.clone()
            });
        }
        bar.set_length(total);
        bar.set_position(done);
        bar.set_message(printable::one_line(&progress.phase()).into_owned());
        bar.tick();
    }
}

fn bar_template() -> &'static str {
    match terminal_size::terminal_size_of(std::io::stderr()) {
        Some((width, _)) if width.0 < BAR_COLUMNS_MIN => BAR_NARROW,
        _ => BAR,
    }
}

/// Sizes as everywhere else.
fn with_sizes(style: ProgressStyle) -> ProgressStyle {
    let key = |bytes: fn(&ProgressState) -> u64| {
        move |state: &ProgressState, text: &mut dyn std::fmt::Write| {
            // The bar is drawn again at once.
            let _ = write!(text, "{}", ByteCount(bytes(state)));
        }
    };
    style
        .progress_chars("━━╌")
        .with_key("done", key(ProgressState::pos))
        .with_key("total", key(|state| state.len().unwrap_or(0)))
        .with_key("rate", key(|state| state.per_sec() as u64))
}

async fn print_lines(progress: Arc<Progress>, shown: Shown) {
    let mut ticks = tokio::time::interval(LINE_INTERVAL);
    // The first tick comes at once, when there is nothing to tell.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let line = line(&progress);
        pipes::log(pipes::Level::Info, &line);
        if shown == Shown::Lines {
            // Nobody reads it any more: no reason to stop working.
            let _ = writeln!(std::io::stderr().lock(), "{line}");
        }
    }
}

fn line(progress: &Progress) -> String {
    let total = progress.bytes_total.load(Ordering::Relaxed);
    let done = progress.bytes_done.load(Ordering::Relaxed).min(total);
    let rows = progress.rows.load(Ordering::Relaxed);
    let phase = progress.phase();
    let phase = printable::one_line(&phase);
    if total == 0 {
        return phase.into_owned();
    }
    let percent = u128::from(done) * 100 / u128::from(total);
    let rows = if rows > 0 {
        format!(", {} rows", count(rows))
    } else {
        String::new()
    };
    format!(
        "{phase}: {percent}%, {} of {}{rows}",
        ByteCount(done),
        ByteCount(total)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_phase_and_share() {
        let progress = Progress::default();
        progress.set_phase("app: locking tables");
        assert_eq!(line(&progress), "app: locking tables");
        progress.set_phase("a\n\u{1b}[2J: locking tables");
        assert_eq!(line(&progress), "a\\n\\x1b[2J: locking tables");
        progress.set_phase("app: locking tables");
        progress.bytes_total.store(4 << 20, Ordering::Relaxed);
        progress.bytes_done.store(1 << 20, Ordering::Relaxed);
        progress.rows.store(1234, Ordering::Relaxed);
        assert_eq!(
            line(&progress),
            "app: locking tables: 25%, 1.0 MiB of 4.0 MiB, 1,234 rows"
        );
    }

    #[test]
    fn the_templates_are_right() {
        for template in [SPINNER, BAR, BAR_NARROW] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
