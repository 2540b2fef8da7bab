//! Finds out what a store can do by trying it.

mod bucket;

use bytes::Bytes;
use jiff::Timestamp;
use pgkeep_base::{Classified, Severity};
use rand::Rng;

use crate::error::{StoreError, StoreErrorKind};
use crate::store::{ObjectInfo, PutOutcome, Store};

/// One thing the probe looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Stable name of the check, such as `create-only-put`.
    pub check: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What was found, in a sentence.
    pub what: String,
    /// Why it matters.
    pub why: String,
    /// What to do about it, where something is to be done.
    pub mend: Option<String>,
}

/// What the store can do; none where it couldn't be found out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// A put of a name that's taken is refused, also when two race.
    pub create_only_put: Option<bool>,
    /// What was written can be read at once.
    pub read_after_write: Option<bool>,
    /// What was written is listed at once.
    pub list_after_write: Option<bool>,
    /// The credentials may write.
    pub write_allowed: Option<bool>,
    /// The credentials may read.
    pub read_allowed: Option<bool>,
    /// The credentials may list.
    pub list_allowed: Option<bool>,
    /// The credentials may delete.
    pub delete_allowed: Option<bool>,
    /// The store's clock minus this machine's, in seconds.
    pub clock_ahead_seconds: Option<i64>,
    /// The bucket keeps old versions (S3).
    pub versioning: Option<bool>,
    /// Object Lock is on (S3).
    pub object_lock: Option<bool>,
}

/// What the probe found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbeReport {
    /// In the order of the checks.
    pub findings: Vec<Finding>,
    /// The same for programs.
    pub capabilities: Capabilities,
}

impl ProbeReport {
    /// The worst of the findings.
    pub fn severity(&self) -> Severity {
        self.findings
            .iter()
            .map(|finding| finding.severity)
            .max()
            .unwrap_or(Severity::Ok)
    }

    fn add(
        &mut self,
        check: &'static str,
        severity: Severity,
        what: impl Into<String>,
        why: &str,
    ) -> &mut Finding {
        let (what, why) = (what.into(), why.to_owned());
        self.findings.push(Finding {
            check,
            severity,
            what,
            why,
            mend: None,
        });
        let last = self.findings.len() - 1;
        &mut self.findings[last]
    }

    fn add_error(&mut self, check: &'static str, severity: Severity, error: &StoreError, why: &str) {
        let mend = error.hint().map(|hint| hint.as_str().to_owned());
        self.add(check, severity, error.to_string(), why).mend = mend;
    }
}

impl Finding {
    fn mend(&mut self, text: impl Into<String>) {
        self.mend = Some(text.into());
    }
}

/// How far clocks may be apart before it's worth a word. S3 refuses requests at 15 minutes.
const CLOCK_SKEW_SECONDS_MAX: i64 = 60;
/// What the names of the probe's own directories begin with.
pub const DIRECTORY_PREFIX: &str = "pgkeep-probe-";
/// Writers in a race, and races.
const RACERS: usize = 6;
const RACES: usize = 3;

impl Store {
    /// Tries what a repository needs, below the directory `prefix` (empty: at the top), and removes its traces as far as
    /// the credentials permit. Some twenty small requests.
    ///
    /// # Errors
    /// The store can't be reached, doesn't accept the credentials, or isn't there: nothing can be said about it then.
    pub async fn probe(&self, prefix: &str) -> Result<ProbeReport, StoreError> {
        let directory = format!("{DIRECTORY_PREFIX}{:016x}", rand::rng().random::<u64>());
        let directory = match prefix.trim_end_matches('/') {
            "" => directory,
            prefix => format!("{prefix}/{directory}"),
        };
        let mut report = ProbeReport::default();
        let key = format!("{directory}/object");
        let written = self.probe_writing(&key, &mut report).await?;
        let mut leftovers = Vec::new();
        if written {
            let listed = self.probe_listing(&directory, &key, &mut report).await;
            self.probe_clock(listed.as_ref(), &mut report);
            // Before the races: where nothing can be deleted, they should leave little.
            let deletes = self.probe_deleting(&key, &mut report).await;
            leftovers.extend((!deletes).then_some(key));
            self.probe_races(
                &directory,
                if deletes { RACES } else { 1 },
                &mut leftovers,
                &mut report,
            )
            .await;
        }
        bucket::probe(self, &mut report).await;
        if !leftovers.is_empty() {
            let what = format!("the probe's own objects stay below '{directory}'");
            report.add(
                "leftovers",
                Severity::Info,
                what,
                "They are a few bytes, and not permitted to be deleted.",
            );
        }
        Ok(report)
    }

    /// Writes an object, writes it again, reads it. False if nothing could be written.
    async fn probe_writing(&self, key: &str, report: &mut ProbeReport) -> Result<bool, StoreError> {
        let (ours, theirs) = (
            Bytes::from_static(b"pgkeep probe: the first"),
            Bytes::from_static(b"pgkeep probe: the second"),
        );
        match self.put_new(key, ours.clone()).await {
            Ok(_) => {
                report.capabilities.write_allowed = Some(true);
                report.add(
                    "write",
                    Severity::Ok,
                    "objects can be written",
                    "Backups are objects.",
                );
            }
            Err(error) => match error.kind() {
                StoreErrorKind::PermissionDenied => {
                    report.capabilities.write_allowed = Some(false);
                    let why = "Without it nothing can be backed up to here; restores may still work.";
                    report.add_error("write", Severity::Error, &error, why);
                    return Ok(false);
                }
                StoreErrorKind::Unsupported => {
                    self.not_create_only(report, error.to_string());
                    return Ok(false);
                }
                _ => return Err(error),
            },
        }
        let again = self.put_new(key, theirs).await;
        let read = self.get(key, 1024).await;
        let kept = match &read {
            Ok(bytes) => Some(*bytes == ours),
            Err(_) => None,
        };
        match again {
            Ok(PutOutcome::AlreadyExists) if kept != Some(false) => {}
            Ok(_) => self.not_create_only(
                report,
                "a put of a name that was taken replaced the object".to_owned(),
            ),
            Err(error) if error.kind() == StoreErrorKind::Unconfirmed => {}
            Err(error) => self.not_create_only(report, error.to_string()),
        }
        probe_reading(&read, report);
        Ok(true)
    }

    fn not_create_only(&self, report: &mut ProbeReport, what: String) {
        if report.capabilities.create_only_put == Some(false) {
            return;
        }
        report.capabilities.create_only_put = Some(false);
        let why = "Two pgkeep at once could destroy each other's backups: what makes one of them fail is a put with \
                   'If-None-Match: *' that is refused when the object exists, and this store ignores it.";
        report
            .add("create-only-put", Severity::Error, what, why)
            .mend("use a store that has conditional writes: AWS S3, Cloudflare R2, MinIO, SeaweedFS, Ceph, Google, Azure, or a directory");
    }

    /// The object's entry in the listing, if it is there.
    async fn probe_listing(
        &self,
        directory: &str,
        key: &str,
        report: &mut ProbeReport,
    ) -> Option<ObjectInfo> {
        match self.list(directory).await {
            Ok(objects) => {
                report.capabilities.list_allowed = Some(true);
                let found = objects.into_iter().find(|object| object.key == key);
                report.capabilities.list_after_write = Some(found.is_some());
                match &found {
                    Some(_) => report.add("list", Severity::Ok, "what was written is listed at once", "Backups are found by listing."),
                    None => report.add(
                        "list",
                        Severity::Error,
                        "an object that was just written isn't listed",
                        "A backup that isn't listed isn't found, and what belongs to it may be taken for debris.",
                    ),
                };
                found
            }
            Err(error) => {
                report.capabilities.list_allowed =
                    (error.kind() == StoreErrorKind::PermissionDenied).then_some(false);
                let why = "Backups are found by listing: status, retention and restore need it.";
                report.add_error("list", Severity::Warning, &error, why);
                None
            }
        }
    }

    fn probe_clock(&self, written: Option<&ObjectInfo>, report: &mut ProbeReport) {
        let by_header = self.inner.opened.clock.ahead_ms().map(|ahead_ms| ahead_ms / 1000);
        let by_object =
            || written.map(|object| object.modified_at.as_second() - Timestamp::now().as_second());
        let Some(ahead) = by_header.or_else(by_object) else {
            return;
        };
        report.capabilities.clock_ahead_seconds = Some(ahead);
        let why = "Names and retention of backups follow this machine's clock, and S3 refuses requests at 15 minutes.";
        if ahead.abs() <= CLOCK_SKEW_SECONDS_MAX {
            report.add(
                "clock",
                Severity::Ok,
                "this machine's clock agrees with the store's",
                why,
            );
            return;
        }
        let direction = if ahead > 0 { "behind" } else { "ahead of" };
        let what = format!(
            "this machine's clock is {} s {direction} the store's",
            ahead.abs()
        );
        report
            .add("clock", Severity::Warning, what, why)
            .mend("set the clock: timedatectl set-ntp true");
    }

    /// True if the object is gone.
    async fn probe_deleting(&self, key: &str, report: &mut ProbeReport) -> bool {
        match self.delete(key).await {
            Ok(()) => {
                let gone = !matches!(self.head(key).await, Ok(Some(_)));
                report.capabilities.delete_allowed = Some(gone);
                match gone {
                    true => report.add(
                        "delete",
                        Severity::Ok,
                        "objects can be deleted",
                        "Retention deletes old backups.",
                    ),
                    false => report.add(
                        "delete",
                        Severity::Warning,
                        "a delete succeeded, and the object is still there",
                        "Retention would delete for ever and free nothing.",
                    ),
                };
                gone
            }
            Err(error) if error.kind() == StoreErrorKind::PermissionDenied => {
                report.capabilities.delete_allowed = Some(false);
                let why = "Good on the machine that is backed up: who breaks into it can't delete backups. Retention has \
                           to run elsewhere.";
                report.add(
                    "delete",
                    Severity::Info,
                    "objects can't be deleted with these credentials",
                    why,
                );
                false
            }
            Err(error) => {
                report.add_error(
                    "delete",
                    Severity::Warning,
                    &error,
                    "Retention deletes old backups.",
                );
                false
            }
        }
    }

    /// Several writers of one name at once: exactly one may win, and what is there must be its bytes.
    async fn probe_races(
        &self,
        directory: &str,
        races: usize,
        leftovers: &mut Vec<String>,
        report: &mut ProbeReport,
    ) {
        for race in 0..races {
            let key = format!("{directory}/race-{race}");
            let body = |racer: usize| Bytes::from(format!("pgkeep probe: racer {racer} ").repeat(1 + racer));
            let puts = (0..RACERS).map(|racer| self.put_new(&key, body(racer)));
            let outcomes = futures::future::join_all(puts).await;
            let winners: Vec<usize> = outcomes
                .iter()
                .enumerate()
                .filter_map(|(racer, outcome)| matches!(outcome, Ok(PutOutcome::Created)).then_some(racer))
                .collect();
            let uncertain = outcomes.iter().any(Result::is_err);
            let found = self.get(&key, 1024).await.ok();
            if self.delete(&key).await.is_err() {
                leftovers.push(key);
            }
            match (winners.as_slice(), found) {
                ([winner], Some(found)) if found != body(*winner) => {
                    self.not_create_only(
                        report,
                        "of two racing puts, the loser's bytes were kept".to_owned(),
                    );
                }
                ([_], _) => {}
                ([], _) if uncertain => return,
                (winners, _) => {
                    let what = format!(
                        "{} of {RACERS} racing puts of one name were told that they had won",
                        winners.len()
                    );
                    self.not_create_only(report, what);
                }
            }
        }
        if report.capabilities.create_only_put.is_none() {
            report.capabilities.create_only_put = Some(true);
            let what = "of several racing puts of one name exactly one wins";
            report.add(
                "create-only-put",
                Severity::Ok,
                what,
                "It keeps two pgkeep at once from destroying each other's backups.",
            );
        }
    }
}

fn probe_reading(read: &Result<Bytes, StoreError>, report: &mut ProbeReport) {
    match read {
        Ok(_) => {
            report.capabilities.read_allowed = Some(true);
            report.capabilities.read_after_write = Some(true);
            report.add(
                "read",
                Severity::Ok,
                "what was written can be read at once",
                "Backups are verified and restored by reading.",
            );
        }
        Err(error) if error.kind() == StoreErrorKind::PermissionDenied => {
            report.capabilities.read_allowed = Some(false);
            let why = "Good on the machine that is backed up: who breaks into it can't read backups. Verifying and \
                       restoring has to be done elsewhere.";
            report.add(
                "read",
                Severity::Info,
                "objects can't be read with these credentials",
                why,
            );
        }
        Err(error) if error.kind() == StoreErrorKind::NotFound => {
            report.capabilities.read_after_write = Some(false);
            let why = "What is written must be there at once: a backup is checked before it counts.";
            report.add(
                "read",
                Severity::Error,
                "an object that was just written isn't found",
                why,
            );
        }
        Err(error) => report.add_error(
            "read",
            Severity::Error,
            error,
            "Backups are verified and restored by reading.",
        ),
    }
}
