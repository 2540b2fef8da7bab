//! To which points one can go back, told.

use pgkeep_wal::{Window, Windows};
use serde_json::{Value, json};

use crate::context::Context;
use crate::output::time;

/// So many of the newest windows are shown; older ones are mostly single backups.
const SHOWN_MAX: usize = 5;

/// A line for each window, the newest last.
pub fn tell(context: &Context, windows: Option<&Windows>) {
    let Some(windows) = windows.filter(|windows| !windows.windows.is_empty()) else {
        return;
    };
    let output = &context.output;
    output.line("\nOne can go back to:");
    let older = windows.windows.len().saturating_sub(SHOWN_MAX);
    if older > 0 {
        output.line(format!("  {older} older windows"));
    }
    for window in windows.windows.iter().skip(older) {
        output.line(format!("  {}", in_words(window)));
    }
    for id in &windows.unusable {
        output.line(format!("  not to {id}, whose own WAL isn't all there any more"));
    }
}

/// `2026-11-22 02:10 to 2026-11-23 10:00 (0/3000100 to 0/9000000 of timeline 1)`
pub fn in_words(window: &Window) -> String {
    let to = match window.to_at {
        Some(at) => format!("about {}", time(at)),
        None => window.to.to_string(),
    };
    format!(
        "{} to {to} ({} to {} of timeline {})",
        time(window.from_at),
        window.from,
        window.to,
        window.timeline
    )
}

pub fn document(window: &Window) -> Value {
    json!({
        "timeline": window.timeline.as_u32(),
        "from_lsn": window.from.to_string(),
        "from_at": window.from_at,
        "to_lsn": window.to.to_string(),
        "to_at": window.to_at,
        "backups": window.backups.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}
