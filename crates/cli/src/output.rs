//! What the user reads: plain lines, aligned columns, JSON. Results go to standard output, everything else to standard
//! error. One accent colour; without colours it reads the same.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anstyle::{AnsiColor, Color, Effects, Style};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;
use unicode_width::UnicodeWidthStr;

use crate::pipes::{self, Level};
use crate::printable;
use crate::table::Table;

/// The one colour.
pub const ACCENT: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Cyan)));
/// What matters in a line.
pub const BOLD: Style = Style::new().effects(Effects::BOLD);
/// What matters less.
pub const DIM: Style = Style::new().effects(Effects::DIMMED);

/// Text in a style, in one line.
pub fn styled(style: Style, text: impl std::fmt::Display) -> String {
    let text = text.to_string();
    format!("{style}{}{style:#}", printable::one_line(&text))
}

/// Where everything is told.
#[derive(Debug)]
pub struct Output {
    json: bool,
    quiet: bool,
    failed: AtomicBool,
}

impl Output {
    /// As `--json` and `--quiet` have it.
    pub fn new(json: bool, quiet: bool) -> Self {
        Self {
            json,
            quiet,
            failed: AtomicBool::new(false),
        }
    }

    /// Whether results are JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Whether summaries and notes are left out.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Whether something could not be written: then the command hasn't done what it was asked for.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// A result, for people.
    pub fn line(&self, text: impl AsRef<str>) {
        if !self.json {
            self.write(&printable::lines(text.as_ref()));
        }
    }

    /// The same, where `--quiet` leaves it out.
    pub fn summary(&self, text: impl AsRef<str>) {
        if !self.quiet {
            self.line(text);
        }
    }

    /// A result for a shell, as it is.
    pub fn script(&self, text: &str) {
        if !self.json {
            self.write(text);
        }
    }

    /// A result in plain words; on a terminal too narrow for it, folded between words.
    pub fn prose(&self, text: impl AsRef<str>) {
        fold(text.as_ref(), terminal_width(), PROSE_INDENT)
            .iter()
            .for_each(|line| self.line(line));
    }

    /// The same, where `--quiet` leaves it out.
    pub fn prose_summary(&self, text: impl AsRef<str>) {
        if !self.quiet {
            self.prose(text);
        }
    }

    /// A table, as wide as the terminal permits.
    pub fn table(&self, table: &Table) {
        table
            .lines(terminal_width())
            .iter()
            .for_each(|line| self.line(line));
    }

    /// A result, for programs: one line. Dagster gets it in any case.
    pub fn json(&self, value: &Value) {
        pipes::document(value);
        if self.json {
            self.write(&value.to_string());
        }
    }

    /// Something that is good to know.
    pub fn note(&self, text: impl AsRef<str>) {
        pipes::log(Level::Info, text.as_ref());
        if !self.quiet {
            self.tell(&format!("{} {}", styled(DIM, "note:"), indented(text.as_ref())));
        }
    }

    /// Something that needs attention.
    pub fn attention(&self, text: impl AsRef<str>) {
        pipes::log(Level::Warning, text.as_ref());
        self.tell(&format!(
            "{} {}",
            styled(BOLD, "attention:"),
            indented(text.as_ref())
        ));
    }

    /// One of the events of a program that goes on; with `--json` it is told by [`Output::json`] alone.
    pub fn event(&self, line: impl AsRef<str>) {
        if !self.json {
            self.tell(line.as_ref());
        }
    }

    /// An error, told once.
    pub fn error(&self, message: &str, causes: &[String], hint: Option<&str>) {
        let mut text = format!("{} {}", styled(BOLD, "error:"), indented(message));
        for cause in causes {
            // Writing to a String can't fail, here and below.
            let _ = write!(text, "\n  {}", indented(cause));
        }
        if let Some(hint) = hint {
            let _ = write!(text, "\n  {} {}", styled(ACCENT, "hint:"), indented(hint));
        }
        pipes::error(&text);
        self.tell(&text);
    }

    fn tell(&self, text: &str) {
        crate::progress::suspended(|| {
            // Nobody can be told that nobody can be told.
            let _ = writeln!(anstream::stderr().lock(), "{}", printable::lines(text));
        });
    }

    fn write(&self, text: &str) {
        let written = crate::progress::suspended(|| {
            let mut stdout = anstream::stdout().lock();
            writeln!(stdout, "{text}").and_then(|()| stdout.flush())
        });
        match written {
            Ok(()) => {}
            // The reader has seen enough: `pgkeep list | head -1`.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => {
                if !self.failed.swap(true, Ordering::Relaxed) {
                    self.error("cannot write to standard output", &[error.to_string()], None);
                }
            }
        }
    }

    /// Labels and values in two columns, empty values left out.
    pub fn facts(&self, facts: &[(&str, String)]) {
        let width = facts.iter().map(|(label, _)| label.width()).max().unwrap_or(0);
        for (label, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
            let pad = " ".repeat(width - label.width());
            let value = value.replace('\n', "\\n");
            self.line(format!("  {}{pad}   {value}", styled(DIM, label)));
        }
    }
}

/// Further lines of folded prose.
const PROSE_INDENT: usize = 2;

/// How wide standard output is, where it is a terminal.
pub fn terminal_width() -> Option<usize> {
    terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| usize::from(width.0))
}

/// What is seen of a text: styles take no room.
pub fn seen_width(text: &str) -> usize {
    anstream::adapter::strip_str(text).to_string().width()
}

/// Folds a text between words so that no line is wider than `width`, where that is possible. Lines after the first are
/// indented.
pub fn fold(text: &str, width: Option<usize>, indent: usize) -> Vec<String> {
    let Some(width) = width.filter(|width| seen_width(text) > *width) else {
        return vec![text.to_owned()];
    };
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if seen_width(line) + 1 + seen_width(word) <= width => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) => lines.push(format!("{}{word}", " ".repeat(indent))),
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Further lines of a text stand under its first, so that a name with a line feed in it makes no message of its own.
fn indented(text: &str) -> String {
    text.trim_end().replace('\n', "\n  ")
}

/// `12,345,678`
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 table`, `12 tables`
pub fn counted(number: u64, singular: &str, plural: &str) -> String {
    format!(
        "{} {}",
        count(number),
        if number == 1 { singular } else { plural }
    )
}

/// `840 ms`, `54.1 s`, `3 min 12 s`, `2 h 05 min`
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..=99 => format!("{:.1} s", duration.as_secs_f64()),
        100..=3599 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// In the local time zone, with its offset: `2026-11-22 03:00:00 +01:00`.
pub fn time(timestamp: Timestamp) -> String {
    time_in(timestamp, TimeZone::system())
}

/// For columns: to the minute, with the offset as PostgreSQL writes it, `2026-11-22 03:00+01`.
pub fn time_short(timestamp: Timestamp) -> String {
    time_short_in(timestamp, TimeZone::system())
}

fn time_short_in(timestamp: Timestamp, zone: TimeZone) -> String {
    let text = timestamp.to_zoned(zone).strftime("%Y-%m-%d %H:%M%:z").to_string();
    text.strip_suffix(":00").map_or(text.clone(), str::to_owned)
}

/// In a time zone, with its offset: `2026-11-22 03:00:00 +01:00`.
pub fn time_in(timestamp: Timestamp, zone: TimeZone) -> String {
    timestamp
        .to_zoned(zone)
        .strftime("%Y-%m-%d %H:%M:%S %:z")
        .to_string()
}

/// `12.3 to 1`, or nothing where it says nothing.
pub fn ratio(plain_bytes: u64, stored_bytes: u64) -> String {
    if plain_bytes == 0 || stored_bytes == 0 {
        return String::new();
    }
    format!("{:.1} to 1", plain_bytes as f64 / stored_bytes as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_durations_read_well() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1000), "1,000");
        assert_eq!(count(12_345_678), "12,345,678");
        assert_eq!(counted(1, "table", "tables"), "1 table");
        assert_eq!(duration(Duration::from_millis(840)), "840 ms");
        assert_eq!(duration(Duration::from_millis(54_120)), "54.1 s");
        assert_eq!(duration(Duration::from_secs(192)), "3 min 12 s");
        assert_eq!(duration(Duration::from_secs(7500)), "2 h 05 min");
        assert_eq!(ratio(1230, 100), "12.3 to 1");
        assert_eq!(ratio(0, 100), "");
    }

    #[test]
    fn times_are_told_with_their_offset() {
        let zone = TimeZone::get("Europe/Zurich").unwrap();
        let winter = "2026-11-22T02:00:00Z".parse().unwrap();
        assert_eq!(time_in(winter, zone.clone()), "2026-11-22 03:00:00 +01:00");
        assert_eq!(time_short_in(winter, zone), "2026-11-22 03:00+01");
        let zone = TimeZone::get("Asia/Kolkata").unwrap();
        assert_eq!(time_short_in(winter, zone), "2026-11-22 07:30+05:30");
    }

    #[test]
    fn prose_is_folded_between_words() {
        let text = format!("{} is good: all of it", styled(ACCENT, "d1"));
        let folded = |width| -> Vec<String> {
            let lines = fold(&text, width, 2);
            lines
                .iter()
                .map(|line| anstream::adapter::strip_str(line).to_string())
                .collect()
        };
        assert_eq!(folded(None), ["d1 is good: all of it"]);
        assert_eq!(folded(Some(21)), ["d1 is good: all of it"]);
        assert_eq!(folded(Some(12)), ["d1 is good:", "  all of it"]);
        assert_eq!(
            folded(Some(1)),
            ["d1", "  is", "  good:", "  all", "  of", "  it"]
        );
    }
}
