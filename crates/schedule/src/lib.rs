//! When dumps are due, and what to do about it: cron expressions in a time zone, and the state machine of the scheduler.
//! Pure: it reads no clock, does no I/O and waits for nothing, so that a month passes in a test within milliseconds.
//!
//! [`Schedule`] says when something is due. [`Planner`] is told the time and what happened, and says what to do next.
//! `docs/design-run.md` has the why.

mod planner;
mod schedule;

pub use planner::{Action, LATE, Missed, Planner, Reason, Run};
pub use schedule::{EXAMPLE, Schedule, ScheduleError};
