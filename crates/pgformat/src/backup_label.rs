use pgkeep_base::{Classified, Hint, RetryClass};

use crate::{Lsn, Timeline};

/// How a backup was begun (`BACKUP METHOD`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupMethod {
    /// By `pg_backup_start` or BASE_BACKUP: recovery has to find the backup's end.
    Streamed,
    /// By `pg_rewind`.
    Rewound,
}

/// Where a backup comes from (`BACKUP FROM`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupSource {
    /// A server that wrote.
    Primary,
    /// A server in recovery.
    Standby,
}

/// What `backup_label` says, as `build_backup_content` (`access/transam/xlogbackup.c`; up to 15 in `xlog.c`) writes and
/// `read_backup_label` (`access/transam/xlogrecovery.c`) reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLabel {
    /// Where recovery begins (`START WAL LOCATION`).
    pub start_lsn: Lsn,
    /// The name of the segment that this lies in, as the server wrote it.
    pub start_segment: String,
    /// The timeline of that segment.
    pub start_segment_timeline: Timeline,
    /// The record of the backup's checkpoint (`CHECKPOINT LOCATION`).
    pub checkpoint_lsn: Lsn,
    /// How the backup was begun.
    pub method: BackupMethod,
    /// From what.
    pub source: BackupSource,
    /// When, in the server's `log_timezone`: `2026-11-22 14:05:00 UTC`.
    pub start_time: String,
    /// What it was called. It may have several lines.
    pub label: String,
    /// The timeline that the backup was begun on (`START TIMELINE`).
    pub start_timeline: Timeline,
    /// Of an incremental backup, from 17 on: where the one before began. Such files can't be started as they are.
    pub incremental_from: Option<(Lsn, Timeline)>,
}

/// The contents are none of a `backup_label`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("backup_label is damaged: its field \"{field}\" {reason}")]
pub struct BackupLabelError {
    /// The field, as it is called in the file.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl Classified for BackupLabelError {
    fn retry_class(&self) -> RetryClass {
        RetryClass::Permanent
    }

    fn hint(&self) -> Option<Hint> {
        Some(Hint::new(
            "take another backup: without its label, this one can't be restored",
        ))
    }
}

const START_WAL_LOCATION: &str = "START WAL LOCATION";
const CHECKPOINT_LOCATION: &str = "CHECKPOINT LOCATION";
const BACKUP_METHOD: &str = "BACKUP METHOD";
const BACKUP_FROM: &str = "BACKUP FROM";
const START_TIME: &str = "START TIME";
const LABEL: &str = "LABEL";
const START_TIMELINE: &str = "START TIMELINE";
const INCREMENTAL_LSN: &str = "INCREMENTAL FROM LSN";
const INCREMENTAL_TIMELINE: &str = "INCREMENTAL FROM TLI";

impl BackupLabel {
    /// Reads the contents of the file. Its fields are in the order in which the server writes them.
    ///
    /// # Errors
    /// A field is missing, or isn't what it should be.
    pub fn parse(contents: &[u8]) -> Result<Self, BackupLabelError> {
        // Only the label may hold anything that isn't ASCII.
        let contents = String::from_utf8_lossy(contents);
        let mut head = Head(&contents);
        let start = head.field(START_WAL_LOCATION)?;
        let (start_lsn, start_segment) = start
            .strip_suffix(')')
            .and_then(|text| text.split_once(" (file "))
            .ok_or(wrong(START_WAL_LOCATION))?;
        let checkpoint_lsn = lsn(head.field(CHECKPOINT_LOCATION)?, CHECKPOINT_LOCATION)?;
        let method = match head.field(BACKUP_METHOD)? {
            "streamed" => BackupMethod::Streamed,
            "pg_rewind" => BackupMethod::Rewound,
            _ => return Err(wrong(BACKUP_METHOD)),
        };
        let source = match head.field(BACKUP_FROM)? {
            "primary" => BackupSource::Primary,
            "standby" => BackupSource::Standby,
            _ => return Err(wrong(BACKUP_FROM)),
        };
        let start_time = head.field(START_TIME)?.to_owned();
        // pg_rewind writes neither label nor timeline; the segment's name has the timeline.
        let (label, tail) = match head.0.rfind("START TIMELINE: ") {
            Some(at) => head.0.split_at(at),
            None => (head.0, ""),
        };
        let segment_timeline = segment_timeline(start_segment)?;
        let mut tail = Tail(tail);
        let start_timeline = match tail.field(START_TIMELINE) {
            Some(text) => timeline(text, START_TIMELINE)?,
            None if method == BackupMethod::Rewound => segment_timeline,
            None => return Err(missing(START_TIMELINE)),
        };
        let incremental_from = match tail.field(INCREMENTAL_LSN) {
            None => None,
            Some(text) => {
                let from = tail
                    .field(INCREMENTAL_TIMELINE)
                    .ok_or(missing(INCREMENTAL_TIMELINE))?;
                Some((lsn(text, INCREMENTAL_LSN)?, timeline(from, INCREMENTAL_TIMELINE)?))
            }
        };
        let label = label.strip_suffix('\n').unwrap_or(label);
        let label = match label.strip_prefix("LABEL: ") {
            Some(label) => label,
            None if method == BackupMethod::Rewound => "",
            None => return Err(missing(LABEL)),
        };
        Ok(Self {
            start_lsn: lsn(start_lsn, START_WAL_LOCATION)?,
            start_segment: start_segment.to_owned(),
            start_segment_timeline: segment_timeline,
            checkpoint_lsn,
            method,
            source,
            start_time,
            label: label.to_owned(),
            start_timeline,
            incremental_from,
        })
    }
}

const fn wrong(field: &'static str) -> BackupLabelError {
    BackupLabelError {
        field,
        reason: "is not as PostgreSQL writes it",
    }
}

const fn missing(field: &'static str) -> BackupLabelError {
    BackupLabelError {
        field,
        reason: "is missing",
    }
}

fn lsn(text: &str, field: &'static str) -> Result<Lsn, BackupLabelError> {
    text.parse().map_err(|_| wrong(field))
}

fn timeline(text: &str, field: &'static str) -> Result<Timeline, BackupLabelError> {
    text.parse().map_err(|_| wrong(field))
}

/// The first 8 of a segment's 24 hexadecimal digits.
fn segment_timeline(name: &str) -> Result<Timeline, BackupLabelError> {
    let digits = name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = name.get(..8).filter(|_| digits);
    number
        .and_then(|text| u32::from_str_radix(text, 16).ok())
        .and_then(Timeline::new)
        .ok_or(wrong(START_WAL_LOCATION))
}

/// The lines that must be there.
struct Head<'a>(&'a str);

impl<'a> Head<'a> {
    fn field(&mut self, name: &'static str) -> Result<&'a str, BackupLabelError> {
        let mut tail = Tail(self.0);
        let value = tail.field(name).ok_or(missing(name))?;
        self.0 = tail.0;
        Ok(value)
    }
}

/// The lines that may be there.
struct Tail<'a>(&'a str);

impl<'a> Tail<'a> {
    fn field(&mut self, name: &str) -> Option<&'a str> {
        let (line, rest) = self.0.split_once('\n').unwrap_or((self.0, ""));
        let value = line.strip_prefix(name)?.strip_prefix(": ")?;
        self.0 = rest;
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nCHECKPOINT LOCATION: 0/2000080\n\
        BACKUP METHOD: streamed\nBACKUP FROM: primary\nSTART TIME: 2026-11-22 14:05:00 UTC\nLABEL: nightly\nSTART TIMELINE: 3\n";

    #[test]
    fn a_label_is_read() {
        let label = BackupLabel::parse(FULL.as_bytes()).unwrap();
        assert_eq!(label.start_lsn.to_string(), "0/2000028");
        assert_eq!(label.start_segment, "000000010000000000000002");
        assert_eq!(label.start_segment_timeline, Timeline::FIRST);
        assert_eq!(label.checkpoint_lsn.to_string(), "0/2000080");
        assert_eq!(
            (label.method, label.source),
            (BackupMethod::Streamed, BackupSource::Primary)
        );
        assert_eq!(
            (label.start_time.as_str(), label.label.as_str()),
            ("2026-11-22 14:05:00 UTC", "nightly")
        );
        assert_eq!((label.start_timeline.as_u32(), label.incremental_from), (3, None));
    }

    #[test]
    fn a_label_of_several_lines_does_not_pose_as_a_field() {
        let text = FULL.replace("nightly", "a\nSTART TIMELINE: 9\nb");
        let label = BackupLabel::parse(text.as_bytes()).unwrap();
        assert_eq!(
            (label.label.as_str(), label.start_timeline.as_u32()),
            ("a\nSTART TIMELINE: 9\nb", 3)
        );
    }

    #[test]
    fn incremental_backups_tell_where_they_come_from() {
        let text = format!("{FULL}INCREMENTAL FROM LSN: 0/1000028\nINCREMENTAL FROM TLI: 2\n");
        let (from, timeline) = BackupLabel::parse(text.as_bytes())
            .unwrap()
            .incremental_from
            .unwrap();
        assert_eq!((from.to_string().as_str(), timeline.as_u32()), ("0/1000028", 2));
    }

    /// `createBackupLabel` in `bin/pg_rewind/pg_rewind.c`.
    #[test]
    fn pg_rewind_writes_no_name_and_no_timeline() {
        let text = "START WAL LOCATION: 0/2000028 (file 000000050000000000000002)\nCHECKPOINT LOCATION: 0/2000080\n\
            BACKUP METHOD: pg_rewind\nBACKUP FROM: standby\nSTART TIME: 2026-11-22 14:05:00 UTC\n";
        let label = BackupLabel::parse(text.as_bytes()).unwrap();
        assert_eq!(
            (label.method, label.start_timeline.as_u32()),
            (BackupMethod::Rewound, 5)
        );
        assert_eq!(label.label, "");
    }

    #[test]
    fn a_field_that_is_missing_or_wrong_is_named() {
        for (from, to, field) in [
            ("START WAL", "START", START_WAL_LOCATION),
            ("0/2000028", "0-2000028", START_WAL_LOCATION),
            ("000000010000000000000002", "2", START_WAL_LOCATION),
            ("0/2000080", "", CHECKPOINT_LOCATION),
            ("streamed", "guessed", BACKUP_METHOD),
            ("primary", "nobody", BACKUP_FROM),
            ("START TIME: ", "TIME: ", START_TIME),
            ("LABEL", "NAME", LABEL),
            ("START TIMELINE: 3", "START TIMELINE: 0", START_TIMELINE),
            ("START TIMELINE: 3\n", "", START_TIMELINE),
            (
                "TIMELINE: 3\n",
                "TIMELINE: 3\nINCREMENTAL FROM LSN: 0/1\n",
                INCREMENTAL_TIMELINE,
            ),
        ] {
            assert!(FULL.contains(from), "{from}");
            let error = BackupLabel::parse(FULL.replace(from, to).as_bytes()).unwrap_err();
            assert_eq!(error.field, field, "{from} -> {to}: {error}");
        }
    }
}
