use std::fmt;

use croner::Cron;
use croner::errors::CronError;
use jiff::civil::{DateTime, date};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp};
use pgkeep_base::{Classified, Hint, RetryClass};

/// What a schedule looks like, for messages.
pub const EXAMPLE: &str = "\"0 2 * * *\" (every day at two), \"30 1 * * SUN\" or \"@daily\"";

const NICKNAMES: [&str; 6] = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@hourly"];

/// No calendar is followed further back than this for the last due time: 29 February may be eight years away.
const LOOK_BACK_MAX: SignedDuration = SignedDuration::from_hours(24 * 366 * 30);

/// A cron expression in a time zone.
///
/// One that names its hours and minutes means local times, and each is due once for each day that it fits, whatever is
/// done to the clock: right after a skip that swallowed it, and the first time of two. One with a `*` in minute or hour
/// follows the clock.
#[derive(Debug, Clone)]
pub struct Schedule {
    text: String,
    cron: Cron,
    zone: TimeZone,
    follows_clock: bool,
}

/// What can't be a schedule.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ScheduleError {
    /// It can't be read.
    #[error("'{text}' is no cron expression: {reason}")]
    Unreadable {
        /// As it was given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It can be read, and no day of the calendar fits.
    #[error("'{text}' never comes: no time of any year fits it")]
    Never {
        /// As it was given.
        text: String,
    },
}

impl Classified for ScheduleError {
    fn retry_class(&self) -> RetryClass {
        RetryClass::Usage
    }

    fn hint(&self) -> Option<Hint> {
        Some(Hint::new(format!("write for example {EXAMPLE}")))
    }
}

impl Schedule {
    /// Reads a cron expression of five fields (minute, hour, day of the month, month, day of the week), six with seconds
    /// in front, or a name such as `@daily`.
    ///
    /// # Errors
    /// It can't be read, or is never due.
    pub fn parse(text: &str, zone: TimeZone) -> Result<Self, ScheduleError> {
        let text = text.trim().to_owned();
        let unreadable = |reason: String| ScheduleError::Unreadable {
            text: text.clone(),
            reason,
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let nickname = text.starts_with('@');
        if nickname && !NICKNAMES.iter().any(|name| text.eq_ignore_ascii_case(name)) {
            return Err(unreadable(format!("the names are {}", NICKNAMES.join(", "))));
        }
        if !nickname && !(5..=6).contains(&fields.len()) {
            return Err(unreadable(format!(
                "it has {} fields, and needs minute, hour, day of the month, month and day of the week",
                fields.len()
            )));
        }
        // croner passes over items that aren't there, and then looks for a time that fits for a very long time.
        if let Some(list) = fields.iter().find(|field| field.split(',').any(str::is_empty)) {
            return Err(unreadable(format!("an item of '{list}' is empty")));
        }
        let cron: Cron = text.parse().map_err(|error| unreadable(in_words(&error)))?;
        let follows_clock = match nickname {
            true => text.eq_ignore_ascii_case("@hourly"),
            // All fields but days, months and weekdays.
            false => fields.iter().rev().skip(3).any(|field| field.contains('*')),
        };
        let schedule = Self {
            text: text.clone(),
            cron,
            zone,
            follows_clock,
        };
        // Any day will do to begin with: there are no years in an expression.
        match schedule
            .cron
            .find_next_occurrence(&date(2024, 1, 1).at(0, 0, 0, 0), true)
        {
            Ok(_) => Ok(schedule),
            Err(_) => Err(ScheduleError::Never { text }),
        }
    }

    /// The expression.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The time zone in which it is meant.
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// The first due time after a moment. There is none only at the end of the calendar.
    pub fn next_after(&self, moment: Timestamp) -> Option<Timestamp> {
        let local = moment.to_zoned(self.zone.clone());
        if self.follows_clock {
            let next = self.cron.find_next_occurrence(&local, false).ok()?;
            return Some(next.timestamp());
        }
        // The moments of local times never go back, so what comes before this one on the calendar came before it.
        let mut civil = local.datetime();
        loop {
            civil = self.cron.find_next_occurrence(&civil, false).ok()?;
            let due = self.moment_of(civil)?;
            if due > moment {
                return Some(due);
            }
        }
    }

    /// The last due time at or before a moment, if there was one within thirty years.
    pub fn last_at(&self, moment: Timestamp) -> Option<Timestamp> {
        let mut back = SignedDuration::from_secs(1);
        // Further and further back, until something was due since; only then from one due time to the next.
        let mut last = loop {
            let from = moment.checked_sub(back).ok()?;
            match self.next_after(from) {
                Some(due) if due <= moment => break due,
                _ if back > LOOK_BACK_MAX => return None,
                _ => back = back.checked_mul(2)?,
            }
        };
        while let Some(due) = self.next_after(last).filter(|due| *due <= moment) {
            last = due;
        }
        Some(last)
    }

    /// Due times after a moment, one after the other.
    pub fn upcoming(&self, moment: Timestamp) -> impl Iterator<Item = Timestamp> + '_ {
        std::iter::successors(self.next_after(moment), |due| self.next_after(*due))
    }

    /// Which moment a local time is: the first of two; where it is skipped, the end of the skip.
    fn moment_of(&self, civil: DateTime) -> Option<Timestamp> {
        let ambiguous = self.zone.to_ambiguous_timestamp(civil);
        match ambiguous.offset() {
            AmbiguousOffset::Gap { .. } => {
                // As if the clock had gone on: an hour or so before the skip, so the next change is the skip itself.
                let before = ambiguous.earlier().ok()?;
                let change = self.zone.following(before).next();
                change.map(|change| change.timestamp())
            }
            _ => ambiguous.earlier().ok(),
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let zone = self.zone.iana_name().unwrap_or("local time");
        write!(f, "{}, {zone}", self.text)
    }
}

/// croner's own words name its types.
fn in_words(error: &CronError) -> String {
    match error {
        CronError::InvalidPattern(what)
        | CronError::IllegalCharacters(what)
        | CronError::ComponentError(what) => {
            what.replace("CronPattern", "it").trim_end_matches('.').to_owned()
        }
        CronError::EmptyPattern => "it is empty".to_owned(),
        other => other.to_string().trim_end_matches('.').to_owned(),
    }
}
