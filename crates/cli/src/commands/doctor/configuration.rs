//! The configuration file, the environment, the schedule.

use jiff::Timestamp;
use pgkeep_base::Severity;

use super::Findings;
use crate::commands::{dump, run as scheduler};
use crate::context::Settings;
use crate::output::time_in;

const AREA: &str = "configuration";

pub(super) fn check(settings: &Settings, findings: &mut Findings) {
    match &settings.loaded.path {
        Some(path) => findings.ok(AREA, format!("read from {}", path.display())),
        None => {
            let mend = format!(
                "settings can stand in one of: {}",
                pgkeep_config::SEARCH_PATHS.join(", ")
            );
            let what = "no file: environment and flags decide";
            findings.add(AREA, Severity::Info, what, "", Some(mend));
        }
    }
    findings.ok(AREA, format!("cluster '{}'", settings.name));
    warnings(settings, findings);
    if let Err(failure) = dump::check_databases(settings) {
        findings.failure(AREA, &failure);
    }
    let keep = &settings.cluster.keep;
    if keep.window.is_none() && [keep.daily, keep.weekly, keep.monthly, keep.yearly] == [0; 4] {
        let mend = "set keep = { window = \"30d\", daily = 7, weekly = 4, monthly = 6 }, or whatever suits";
        findings.add(
            AREA,
            Severity::Info,
            "no retention: every backup is kept for ever",
            "",
            Some(mend.to_owned()),
        );
    }
    schedule(settings, findings);
}

fn warnings(settings: &Settings, findings: &mut Findings) {
    let names: Vec<String> = std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .collect();
    let unknown = pgkeep_config::unknown_variables(names.iter().map(String::as_str), &[]);
    for warning in settings.loaded.warnings.iter().chain(&unknown) {
        findings.add(AREA, Severity::Warning, warning.to_string(), "", warning.mend());
    }
}

/// Due times that are shown.
const DUE_SHOWN: usize = 3;

fn schedule(settings: &Settings, findings: &mut Findings) {
    let area = "schedule";
    match scheduler::schedule(settings) {
        Ok(Some(schedule)) => {
            let due = schedule.upcoming(Timestamp::now()).take(DUE_SHOWN);
            let due: Vec<String> = due.map(|due| time_in(due, schedule.zone().clone())).collect();
            findings.ok(
                area,
                format!("'pgkeep run' dumps at {} ({schedule})", due.join(", ")),
            );
        }
        Ok(None) => {
            let mend =
                "for 'pgkeep run' set dump = { schedule = \"0 2 * * *\" }; cron or a timer will do as well";
            findings.add(
                area,
                Severity::Info,
                "no dump.schedule",
                "",
                Some(mend.to_owned()),
            );
        }
        Err(failure) => findings.failure(area, &failure),
    }
    match scheduler::base_schedule(settings) {
        Ok(Some(schedule)) => {
            let due = schedule.upcoming(Timestamp::now()).take(DUE_SHOWN);
            let due: Vec<String> = due.map(|due| time_in(due, schedule.zone().clone())).collect();
            let due = due.join(", ");
            findings.ok(
                area,
                format!("'pgkeep run' takes base backups at {due} ({schedule})"),
            );
        }
        // Nobody needs them who doesn't want them.
        Ok(None) => {}
        Err(failure) => findings.failure(area, &failure),
    }
    for name in settings.without_effect() {
        let what = format!("'{name}' is set, and does nothing yet");
        let mend = format!("take {name} out of the configuration");
        findings.add(area, Severity::Warning, what, "", Some(mend));
    }
}
