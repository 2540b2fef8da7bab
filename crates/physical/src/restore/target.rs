//! The moments that one can go back to, as people write them.

use std::fmt;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};
use pgkeep_pgformat::Lsn;

use crate::error::PhysicalError;

/// Where recovery ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecoveryTarget {
    /// As early as the backup is consistent.
    BackupEnd,
    /// Before the first record that begins at or behind this position.
    Lsn(Lsn),
    /// After the last transaction that ended at this time or before.
    Time(Timestamp),
    /// With the end of this transaction, committed or not: as `pg_current_xact_id` tells it.
    Transaction(u64),
    /// At the point that `pg_create_restore_point` gave this name.
    Name(String),
    /// At the end of all WAL that is stored without a gap.
    End,
}

impl fmt::Display for RecoveryTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BackupEnd => f.write_str("the backup's end"),
            Self::Lsn(lsn) => write!(f, "{lsn}"),
            Self::Time(time) => write!(f, "{time}"),
            Self::Transaction(id) => write!(f, "the end of transaction {id}"),
            Self::Name(name) => write!(f, "restore point '{}'", name.escape_debug()),
            Self::End => f.write_str("the end of the stored WAL"),
        }
    }
}

const HOW: &str = "write 2026-11-22T14:05:00Z, '2026-11-22 14:05' or '2026-11-22 14:05:30+01:00'";
/// Date and hour, which every time has.
const DATE_LENGTH: usize = 10;

/// Reads a time: as RFC 3339 has it, or `YYYY-MM-DD HH:MM[:SS]` with or without a zone (`Z`, `UTC`, `+01`, `+01:00`,
/// `Europe/Berlin`). Without one, it is meant in `time_zone`.
///
/// # Errors
/// It is none, or its hour comes twice, or not at all, in its zone.
pub fn parse_time(text: &str, time_zone: &TimeZone) -> Result<Timestamp, PhysicalError> {
    let text = text.trim();
    let wrong = || PhysicalError::Usage {
        message: format!("'{}' is no time that can be gone back to", text.escape_debug()),
        hint: HOW.to_owned(),
    };
    let (local, zone) = split_zone(text).ok_or_else(wrong)?;
    let zone = match zone {
        "" => time_zone.clone(),
        zone => parse_zone(zone).ok_or_else(wrong)?,
    };
    // A date alone would be midnight, which nobody may have meant.
    if !local.contains(':') {
        return Err(wrong());
    }
    let local: DateTime = local.parse().map_err(|_| wrong())?;
    let ambiguous = zone.to_ambiguous_timestamp(local);
    if !ambiguous.is_ambiguous() {
        return ambiguous.compatible().map_err(|_| wrong());
    }
    let (earlier, later) = (
        ambiguous.earlier().map_err(|_| wrong())?,
        ambiguous.later().map_err(|_| wrong())?,
    );
    Err(PhysicalError::Usage {
        message: format!("{local} comes twice, or not at all, in its time zone, because clocks change"),
        hint: format!("say which moment is meant: {earlier} or {later}"),
    })
}

/// Date and time of day, and what follows: a zone, if anything.
fn split_zone(text: &str) -> Option<(&str, &str)> {
    let time = text.get(DATE_LENGTH + 1..)?;
    let end = time.find(|c: char| !(c.is_ascii_digit() || ":.".contains(c)));
    let (local, zone) = text.split_at(DATE_LENGTH + 1 + end.unwrap_or(time.len()));
    Some((local, zone.trim()))
}

fn parse_zone(text: &str) -> Option<TimeZone> {
    if matches!(text, "Z" | "z" | "UTC") {
        return Some(TimeZone::UTC);
    }
    let sign = match text.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return TimeZone::get(text).ok(),
    };
    let digits: String = text.get(1..)?.chars().filter(|c| *c != ':').collect();
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = |range: std::ops::Range<usize>| digits.get(range)?.parse::<i32>().ok();
    let (hours, minutes) = match digits.len() {
        2 => (number(0..2)?, 0),
        4 => (number(0..2)?, number(2..4)?),
        _ => return None,
    };
    let offset = Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).ok()?;
    (hours < 24 && minutes < 60).then(|| TimeZone::fixed(offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        for (text, expected) in [
            ("2026-11-22T14:05:00Z", "2026-11-22T14:05:00Z"),
            ("2026-11-22T14:05:00.123456+01:00", "2026-11-22T13:05:00.123456Z"),
            ("2026-11-22 14:05", "2026-11-22T13:05:00Z"),
            ("2026-11-22 14:05:30", "2026-11-22T13:05:30Z"),
            ("2026-07-22 14:05", "2026-07-22T12:05:00Z"),
            ("2026-11-22 14:05 UTC", "2026-11-22T14:05:00Z"),
            ("2026-11-22 14:05-0330", "2026-11-22T17:35:00Z"),
            ("2026-11-22 14:05:30+01", "2026-11-22T13:05:30Z"),
            ("2026-11-22 14:05 America/New_York", "2026-11-22T19:05:00Z"),
            // The hour that comes twice, with its zone told.
            ("2026-10-25 02:30+02:00", "2026-10-25T00:30:00Z"),
        ] {
            let expected: Timestamp = expected.parse().unwrap();
            assert_eq!(parse_time(text, &berlin).unwrap(), expected, "{text}");
        }
        for wrong in [
            "",
            "now",
            "2026-11-22",
            "22.11.2026 14:05",
            "2026-13-22 14:05",
            "2026-11-22 14:05+99",
            "2026-11-22 14:05 Nowhere/X",
            "2026-11-22é14:05",
            "2026-11-22 14:05+1:2:3",
        ] {
            assert!(parse_time(wrong, &berlin).is_err(), "{wrong}");
        }
        let twice = parse_time("2026-10-25 02:30", &berlin).unwrap_err();
        let hint = pgkeep_base::Classified::hint(&twice).unwrap().to_string();
        assert!(
            hint.contains("2026-10-25T00:30:00Z") && hint.contains("2026-10-25T01:30:00Z"),
            "{hint}"
        );
        assert!(parse_time("2026-03-29 02:30", &berlin).is_err());
    }
}
