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

/// The one colour.
pub const ACCENT: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Cyan)));
/// What matters in a line.
pub const BOLD: Style = Style::new().effects(Effects::BOLD);
/// What matters less.
pub const DIM: Style = Style::new().effects(Effects::DIMMED);

/// Text in a style.
pub fn styled(style: Style, text: impl std::fmt::Display) -> String {
    format!("{style}{text}{style:#}")
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
            self.write(text.as_ref());
        }
    }

    /// The same, where `--quiet` leaves it out.
    pub fn summary(&self, text: impl AsRef<str>) {
        if !self.quiet {
            self.line(text);
        }
    }

    /// A result, for programs: one line.
    pub fn json(&self, value: &Value) {
        if self.json {
            self.write(&value.to_string());
        }
    }

    /// Something that is good to know.
    pub fn note(&self, text: impl AsRef<str>) {
        if !self.quiet {
            self.tell(&format!("{} {}", styled(DIM, "note:"), text.as_ref()));
        }
    }

    /// Something that needs attention.
    pub fn attention(&self, text: impl AsRef<str>) {
        self.tell(&format!("{} {}", styled(BOLD, "attention:"), text.as_ref()));
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
        self.tell(&text);
    }

    fn tell(&self, text: &str) {
        crate::progress::suspended(|| {
            // Nobody can be told that nobody can be told.
            let _ = writeln!(anstream::stderr().lock(), "{text}");
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
            self.line(format!("  {}{pad}   {value}", styled(DIM, label)));
        }
    }
}

/// Further lines of a text stand under its first.
fn indented(text: &str) -> String {
    text.trim_end().replace('\n', "\n  ")
}

/// To which side a column's texts are pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Texts.
    Left,
    /// Numbers.
    Right,
}

/// Aligned columns under dim headings.
#[derive(Debug)]
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

/// Between two columns.
const GAP: &str = "  ";

impl Table {
    /// A table without rows.
    pub fn new(columns: &[(&'static str, Align)]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row, a text for each column. The first column is the accent's.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The lines. Columns in which no row has anything are left out.
    pub fn lines(&self) -> Vec<String> {
        let columns: Vec<(usize, &'static str, Align, usize)> = self
            .columns
            .iter()
            .enumerate()
            .filter_map(|(place, (title, align))| {
                let width = self
                    .rows
                    .iter()
                    .filter_map(|row| row.get(place))
                    .map(|cell| cell.width())
                    .max()?;
                (width > 0).then_some((place, *title, *align, width.max(title.width())))
            })
            .collect();
        let line = |cell: &dyn Fn(usize, &'static str) -> String, style: &dyn Fn(usize) -> Style| {
            let mut text = String::new();
            for (number, (place, title, align, width)) in columns.iter().enumerate() {
                let cell = cell(*place, title);
                let pad = " ".repeat(width.saturating_sub(cell.width()));
                let cell = if cell.is_empty() {
                    cell
                } else {
                    styled(style(*place), cell)
                };
                let (before, after) = if *align == Align::Right {
                    (pad, String::new())
                } else {
                    (String::new(), pad)
                };
                let gap = if number == 0 { "" } else { GAP };
                let _ = write!(text, "{gap}{before}{cell}{after}");
            }
            text.trim_end().to_owned()
        };
        let heading = line(&|_, title| title.to_owned(), &|_| DIM);
        let body = self.rows.iter().map(|row| {
            let cell = |place: usize, _: &'static str| row.get(place).cloned().unwrap_or_default();
            line(&cell, &|place| if place == 0 { ACCENT } else { Style::new() })
        });
        std::iter::once(heading).chain(body).collect()
    }
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

/// For columns: to the minute, `2026-11-22 03:00 +01`.
pub fn time_short(timestamp: Timestamp) -> String {
    time_short_in(timestamp, TimeZone::system())
}

fn time_short_in(timestamp: Timestamp, zone: TimeZone) -> String {
    let text = timestamp
        .to_zoned(zone)
        .strftime("%Y-%m-%d %H:%M %:z")
        .to_string();
    text.strip_suffix(":00").map_or(text.clone(), str::to_owned)
}

fn time_in(timestamp: Timestamp, zone: TimeZone) -> String {
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
        assert_eq!(time_short_in(winter, zone), "2026-11-22 03:00 +01");
        let zone = TimeZone::get("Asia/Kolkata").unwrap();
        assert_eq!(time_short_in(winter, zone), "2026-11-22 07:30 +05:30");
    }

    #[test]
    fn columns_are_aligned_by_what_is_seen_and_empty_ones_left_out() {
        let mut table = Table::new(&[
            ("NAME", Align::Left),
            ("ROWS", Align::Right),
            ("NOTE", Align::Left),
        ]);
        table.row(vec!["größe".to_owned(), "12".to_owned(), String::new()]);
        table.row(vec!["日本".to_owned(), "1,234,567".to_owned(), String::new()]);
        let lines: Vec<String> = table
            .lines()
            .iter()
            .map(|line| anstream::adapter::strip_str(line).to_string())
            .collect();
        assert_eq!(
            lines,
            ["NAME        ROWS", "größe         12", "日本   1,234,567"]
        );
    }
}
