//! What a prune says of the WAL.

use pgkeep_base::ByteCount;
use pgkeep_repository::prune::{SystemWal, TimelinePruned, WalPlan, WalReason};
use pgkeep_repository::wal::Covered;
use serde_json::{Value, json};

use crate::context::Context;
use crate::output::counted;

/// Says by what it is decided over each server's WAL, and what goes.
pub fn tell(context: &Context, plan: &WalPlan, is_planned: bool, url: &str) {
    let output = &context.output;
    for system in &plan.systems {
        output.json(&document(system, is_planned, url));
        let needs_eyes = matches!(system.reason, WalReason::Unknown { .. });
        // What would be done is what was asked for; what was done is a summary.
        if output.is_quiet() && !is_planned && !needs_eyes {
            continue;
        }
        output.prose(format!(
            "\nWAL of server {}: {}.",
            system.system_identifier, system.reason
        ));
        for timeline in &system.timelines {
            for line in lines(timeline, is_planned) {
                output.line(format!("  {line}"));
            }
        }
    }
}

fn lines(timeline: &TimelinePruned, is_planned: bool) -> Vec<String> {
    let verb = if is_planned { "would go" } else { "removed" };
    let mut lines = Vec::new();
    let number = timeline.timeline;
    if timeline.objects > 0 {
        let size = ByteCount(timeline.stored_bytes);
        let objects = counted(timeline.objects, "object", "objects");
        let ranges = ranges(&timeline.removed);
        lines.push(format!("timeline {number}: {ranges} {verb}: {objects}, {size}"));
    }
    if timeline.parts > 0 {
        let size = ByteCount(timeline.part_bytes);
        let parts = counted(timeline.parts, "part", "parts");
        lines.push(format!(
            "timeline {number}: {parts} of whole segments {verb}: {size}"
        ));
    }
    if !timeline.kept.is_empty() {
        let verb = if is_planned { "would stay" } else { "left" };
        lines.push(format!("timeline {number}: {} {verb}", ranges(&timeline.kept)));
    }
    lines
}

/// More of them make a line too long.
const RANGES_SHOWN_MAX: usize = 4;

/// `0/3000000 to 0/9000000, 1/0 to 1/4000000`
fn ranges(ranges: &[Covered]) -> String {
    let all = ranges.iter();
    let mut shown: Vec<String> = all
        .take(RANGES_SHOWN_MAX)
        .map(|range| format!("{} to {}", range.start, range.end))
        .collect();
    if let Some(more) = ranges
        .len()
        .checked_sub(RANGES_SHOWN_MAX)
        .filter(|more| *more > 0)
    {
        shown.push(format!("{more} more"));
    }
    shown.join(", ")
}

fn document(system: &SystemWal, is_planned: bool, url: &str) -> Value {
    let in_ranges = |ranges: &[Covered]| -> Vec<Value> {
        let one = |range: &Covered| json!({ "start": range.start.to_string(), "end": range.end.to_string() });
        ranges.iter().map(one).collect()
    };
    let timelines = system.timelines.iter().map(|timeline| {
        json!({
            "timeline": timeline.timeline.as_u32(),
            "removed": in_ranges(&timeline.removed),
            "kept": in_ranges(&timeline.kept),
            "objects": timeline.objects,
            "stored_bytes": timeline.stored_bytes,
            "parts": timeline.parts,
            "part_bytes": timeline.part_bytes,
        })
    });
    json!({
        "wal": system.system_identifier.to_string(),
        "repository": url,
        "state": if is_planned { "planned" } else { "done" },
        "reason": { "code": system.reason.code(), "text": system.reason.to_string() },
        "timelines": timelines.collect::<Vec<_>>(),
    })
}
