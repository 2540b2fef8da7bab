use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// What kind of backup an id names; the first letter of the id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BackupKind {
    /// A logical backup: letter `d`.
    Dump,
    /// A base backup, the files of a cluster: letter `b`.
    Base,
}

impl BackupKind {
    /// Every kind there is.
    pub const ALL: [Self; 2] = [Self::Dump, Self::Base];

    fn letter(self) -> char {
        match self {
            Self::Dump => 'd',
            Self::Base => 'b',
        }
    }

    /// What a text that may be the beginning of an id names: `b2026` can only be a base backup. `None` for what isn't the
    /// beginning of any id.
    pub fn of_beginning(text: &str) -> Option<Self> {
        let (letter, rest) = text.split_at_checked(1)?;
        let fits = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_lowercase() || b"TZ-".contains(&byte);
        let is_id = rest.bytes().next().is_none_or(|byte| byte.is_ascii_digit()) && rest.bytes().all(fits);
        Self::ALL
            .into_iter()
            .find(|kind| is_id && letter.chars().eq([kind.letter()]))
    }
}

/// The name of one backup: `d20261122T020000Z-7f3a9c`. It sorts by the time the backup was started, and reads as it.
///
/// The random suffix keeps two backups that start in the same second apart (24 bits; the manifest's create-only put
/// catches the rest).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupId {
    started_at_second: i64,
    suffix: u32,
    kind: BackupKind,
}

const TIME_FORMAT: &str = "%Y%m%dT%H%M%SZ";
/// Letter, 16 characters of time, a dash, six hexadecimal digits.
const ID_LENGTH: usize = 1 + 16 + 1 + 6;

impl BackupId {
    /// A new id for a backup that starts at `now`.
    ///
    /// # Errors
    /// The operating system's random source failed.
    pub fn new(kind: BackupKind, now: Timestamp) -> Result<Self, getrandom::Error> {
        let mut random = [0_u8; 4];
        getrandom::fill(&mut random)?;
        let suffix = u32::from_le_bytes(random) & 0x00ff_ffff;
        Ok(Self {
            started_at_second: now.as_second(),
            suffix,
            kind,
        })
    }

    /// When the backup was started, to the second.
    pub fn started_at(&self) -> Timestamp {
        Timestamp::from_second(self.started_at_second).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// What kind of backup it names.
    pub fn kind(&self) -> BackupKind {
        self.kind
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self.started_at().strftime(TIME_FORMAT);
        f.pad(&format!("{}{}-{:06x}", self.kind.letter(), time, self.suffix))
    }
}

/// The text is not a backup id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a backup id: one looks like d20261122T020000Z-7f3a9c")]
pub struct ParseBackupIdError(String);

impl FromStr for BackupId {
    type Err = ParseBackupIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || -> Option<Self> {
            if text.len() != ID_LENGTH || !text.is_ascii() {
                return None;
            }
            let kind = BackupKind::of_beginning(text)?;
            let (time, suffix) = text.get(1..)?.split_once('-')?;
            let started = DateTime::strptime(TIME_FORMAT, time)
                .ok()?
                .to_zoned(TimeZone::UTC)
                .ok()?
                .timestamp();
            let suffix = u32::from_str_radix(suffix, 16).ok()?;
            let id = Self {
                started_at_second: started.as_second(),
                suffix,
                kind,
            };
            // Upper-case digits, signs and the like would give one backup two names.
            (id.to_string() == text).then_some(id)
        };
        parse().ok_or_else(|| ParseBackupIdError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time_and_survive_a_round_trip() {
        let early = BackupId::new(BackupKind::Dump, "2026-11-22T02:00:00Z".parse().unwrap()).unwrap();
        let late = BackupId::new(BackupKind::Dump, "2026-11-22T02:00:01Z".parse().unwrap()).unwrap();
        assert!(early < late && early.to_string() < late.to_string());
        assert_eq!(early.to_string().parse(), Ok(early.clone()));
        assert_eq!(early.started_at().to_string(), "2026-11-22T02:00:00Z");
        assert!(early.to_string().starts_with("d20261122T020000Z-"));
    }

    #[test]
    fn the_letter_tells_the_kind() {
        let now = "2026-11-22T02:00:00Z".parse().unwrap();
        for kind in BackupKind::ALL {
            let id = BackupId::new(kind, now).unwrap();
            assert_eq!(id.to_string().parse(), Ok(id.clone()));
            for length in 1..ID_LENGTH {
                assert_eq!(BackupKind::of_beginning(&id.to_string()[..length]), Some(kind));
            }
        }
        for other in ["", "latest", "all", "base", "dump", "x2026", "b2026/..", "é"] {
            assert_eq!(BackupKind::of_beginning(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_not_an_id_is_refused() {
        for bad in [
            "",
            "d",
            "d20261122T020000Z-7F3A9C",
            "x20261122T020000Z-7f3a9c",
            "d20261322T020000Z-7f3a9c",
            "d20261122T020000Z-+f3a9c",
            "d20261122T020000Z-7f3a9c0",
            "é20261122T020000Z-7f3a9",
        ] {
            assert!(bad.parse::<BackupId>().is_err(), "{bad}");
        }
    }
}
