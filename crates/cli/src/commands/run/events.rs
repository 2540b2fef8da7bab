use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use pgkeep_base::{BackupId, ByteCount, Classified, Hint};
use pgkeep_repository::prune::PruneReport;
use pgkeep_schedule::{Missed, Run};
use serde_json::{Value, json};

use crate::exit::Failure;
use crate::output::{DIM, Output, count, counted, duration, styled, time_in};

/// The longest of the words that lines begin with.
const WORD_WIDTH: usize = "interrupted".len();

/// What a scheduler does with a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Dumps.
    Dump,
    /// Base backups.
    Base,
    /// Receives its WAL.
    Wal,
}

impl What {
    /// In words; for programs with [`What::code`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Dump => "dump",
            Self::Base => "base backup",
            Self::Wal => "WAL",
        }
    }

    fn code(self) -> &'static str {
        match self {
            Self::Dump => "dump",
            Self::Base => "base",
            Self::Wal => "wal",
        }
    }
}

/// Tells what happens to one cluster: a line on standard error for each event, or with `--json` one on standard output.
pub struct Events<'a> {
    output: &'a Output,
    cluster: &'a str,
    /// What it is about.
    what: What,
    /// Of the column of clusters.
    width: usize,
    zone: &'a TimeZone,
}

impl<'a> Events<'a> {
    /// Times are told in the schedule's zone; `width` is that of the longest cluster's name.
    pub fn new(
        output: &'a Output,
        (cluster, what): (&'a str, What),
        width: usize,
        zone: &'a TimeZone,
    ) -> Self {
        Self {
            output,
            cluster,
            what,
            width,
            zone,
        }
    }

    /// What it is about.
    pub fn what(&self) -> &'static str {
        self.what.name()
    }

    /// A time as it's told here.
    pub fn time(&self, moment: Timestamp) -> String {
        time_in(moment, self.zone.clone())
    }

    /// Something that `--quiet` leaves out.
    fn calm(&self, word: &str, text: &str, details: Value) {
        if self.output.is_json() || !self.output.is_quiet() {
            self.tell(word, text, details);
        }
    }

    fn tell(&self, word: &str, text: &str, details: Value) {
        let now = Timestamp::now();
        let mut value =
            json!({ "at": now, "cluster": self.cluster, "kind": self.what.code(), "event": word });
        if let (Value::Object(value), Value::Object(details)) = (&mut value, details) {
            value.extend(details);
        }
        self.output.json(&value);
        // One event is one line, whatever a server's message holds.
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        self.output.event(format!(
            "{}  {:width$}  {word:WORD_WIDTH$}  {text}",
            styled(DIM, self.time(now)),
            self.cluster,
            width = self.width
        ));
    }

    pub fn started(&self, run: &Run) {
        let details = json!({ "due": run.due, "attempt": run.attempt, "catches_up": run.catches_up });
        self.calm("started", &self.of(run), details);
    }

    /// Which run it is, in words.
    fn of(&self, run: &Run) -> String {
        let Some(due) = run.due else {
            return format!("the first {}{}", self.what(), attempt(run));
        };
        let missed = if run.catches_up { ", which was missed" } else { "" };
        let what = self.what();
        format!("the {what} due at {}{missed}{}", self.time(due), attempt(run))
    }

    pub fn done(&self, done: &Done) {
        let text = format!(
            "{}, {}, stored in {}, {}",
            done.id,
            ByteCount(done.plain_bytes),
            ByteCount(done.stored_bytes),
            duration(done.elapsed)
        );
        let details = json!({
            "id": done.id.to_string(),
            "repositories": done.stored_in,
            "totals": done.totals,
            "elapsed_seconds": done.elapsed.as_secs_f64(),
        });
        self.calm("done", &text, details);
    }

    /// WAL comes.
    pub fn streaming(&self, text: &str, details: Value) {
        self.calm("streaming", text, details);
    }

    /// `again`: when it's tried again; `next`: or else, when the next one is due.
    pub fn failed(
        &self,
        what: &str,
        failure: &Failure,
        run: Option<&Run>,
        again: Option<Timestamp>,
        next: Option<Timestamp>,
    ) {
        let mut text = match run {
            Some(run) => format!("{}: {}", self.of(run), failure.text()),
            None => format!("{what}: {}", failure.text()),
        };
        if let Some(hint) = failure.hint() {
            text.push_str(&format!("; mend: {hint}"));
        }
        match (again, next) {
            (Some(again), _) => text.push_str(&format!("; again at {}", self.time(again))),
            (None, Some(next)) => text.push_str(&format!("; the next is due at {}", self.time(next))),
            (None, None) => {}
        }
        let details = json!({
            "due": run.and_then(|run| run.due),
            "attempt": run.map(|run| run.attempt),
            "message": failure.text(),
            "hint": failure.hint(),
            "exit_code": failure.code(),
            "again_at": again,
        });
        self.tell("failed", &text, details);
    }

    pub fn missed(&self, missed: &Missed) {
        let what = self.what();
        let text = match missed.count {
            1 => format!("the {what} due at {}: {}", self.time(missed.first), missed.reason),
            number => format!(
                "{} {what}s, due from {} to {}: {}",
                count(number),
                self.time(missed.first),
                self.time(missed.last),
                missed.reason
            ),
        };
        let details = json!({
            "first": missed.first,
            "last": missed.last,
            "count": missed.count,
            "reason": missed.reason.code(),
        });
        self.tell("missed", &text, details);
    }

    pub fn clock_went_back(&self, by: SignedDuration) {
        let text = format!(
            "it went back by {}; the schedule counts from now",
            duration(by.unsigned_abs())
        );
        self.tell("clock", &text, json!({ "back_seconds": by.as_secs() }));
    }

    /// `lost`: what is said of backups that were found without their manifest. Returns whether somebody has to look at it.
    pub fn pruned(&self, report: &PruneReport, lost: &[String]) -> bool {
        let removed = report.removed.len();
        if removed > 0 {
            let text = format!("{} removed", counted(removed as u64, "backup", "backups"));
            let ids: Vec<String> = report.removed.iter().map(|(id, _)| id.to_string()).collect();
            self.calm("pruned", &text, json!({ "removed": ids }));
        }
        let (objects, bytes) = (report.wal.objects(), report.wal.stored_bytes());
        if objects > 0 {
            let text = format!(
                "{} of WAL removed, {}",
                counted(objects, "object", "objects"),
                ByteCount(bytes)
            );
            self.calm(
                "pruned",
                &text,
                json!({ "wal_objects": objects, "wal_bytes": bytes }),
            );
        }
        lost.iter().for_each(|line| self.attention(line));
        let mut needs_attention = !lost.is_empty();
        for error in report.failures() {
            needs_attention = true;
            self.prune_problem(&error.to_string(), error.hint().as_ref().map(Hint::as_str));
        }
        needs_attention
    }

    pub fn prune_failed(&self, failure: &Failure) {
        self.prune_problem(&failure.text(), failure.hint());
    }

    fn prune_problem(&self, message: &str, hint: Option<&str>) {
        let mend = hint.map(|hint| format!("; mend: {hint}")).unwrap_or_default();
        let what = self.what();
        let text = format!("the {what} is complete, and pruning failed: {message}{mend}");
        self.tell("attention", &text, json!({ "message": message, "hint": hint }));
    }

    pub fn attention(&self, text: &str) {
        self.tell("attention", text, json!({ "message": text }));
    }

    pub fn note(&self, text: &str) {
        self.calm("note", text, json!({ "message": text }));
    }

    pub fn interrupted(&self, text: &str) {
        self.tell("interrupted", text, json!({ "message": text }));
    }

    pub fn next(&self, due: Timestamp) {
        self.calm(
            "next",
            &format!("{} at {}", self.what(), self.time(due)),
            json!({ "due": due }),
        );
    }
}

/// What was made.
pub struct Done {
    pub id: BackupId,
    pub plain_bytes: u64,
    pub stored_bytes: u64,
    /// Of the manifest.
    pub totals: Value,
    pub elapsed: std::time::Duration,
    /// The repositories that have it, by their URLs.
    pub stored_in: Vec<String>,
    /// What needs attention.
    pub attention: Vec<String>,
}

fn attempt(run: &Run) -> String {
    match run.attempt {
        0 | 1 => String::new(),
        number => format!(", attempt {number}"),
    }
}
