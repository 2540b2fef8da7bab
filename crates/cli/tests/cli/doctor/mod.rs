//! The doctor: each fault is made on a real server or store, found, mended by the command that is printed, and gone.

mod pooler;
mod server;
mod surroundings;

use std::process::{Command, Stdio};

use pgkeep_testkit::Cluster;
use serde_json::Value;

use crate::support::Place;

/// One finding that needs something.
#[derive(Debug)]
pub struct Problem {
    pub severity: String,
    pub what: String,
    pub mend: String,
}

/// What the doctor finds that needs something. Its exit code agrees.
#[track_caller]
pub fn problems(place: &Place, args: &[&str]) -> Vec<Problem> {
    let done = place.run(&[&["doctor", "--json"], args].concat());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let found: Vec<Problem> = done
        .json_lines()
        .iter()
        .map(|finding| Problem {
            severity: text(&finding["severity"]),
            what: text(&finding["what"]),
            mend: text(&finding["mend"]),
        })
        .filter(|problem| matches!(problem.severity.as_str(), "warning" | "error"))
        .collect();
    let is = |severity: &str| found.iter().any(|problem| problem.severity == severity);
    let code = match (is("error"), is("warning")) {
        (true, _) => 1,
        (false, true) => 3,
        (false, false) => 0,
    };
    assert_eq!(done.code, code, "{found:?}\n{}", done.stderr);
    found
}

/// The one problem whose text holds `says`, of the severity.
#[track_caller]
pub fn problem(place: &Place, args: &[&str], severity: &str, says: &str) -> Problem {
    let mut found = problems(place, args);
    let Some(index) = found.iter().position(|problem| problem.what.contains(says)) else {
        panic!("nothing says '{says}': {found:#?}");
    };
    let problem = found.swap_remove(index);
    assert_eq!(problem.severity, severity, "{problem:?}");
    problem
}

/// That nothing says so any more.
#[track_caller]
pub fn is_gone(place: &Place, args: &[&str], says: &str) {
    let found = problems(place, args);
    assert!(
        !found.iter().any(|problem| problem.what.contains(says)),
        "still there: {found:#?}"
    );
}

/// Runs a mend as it is printed, where PostgreSQL's programs and this one are in the PATH.
#[track_caller]
pub fn run_mend(place: &Place, cluster: &Cluster, mend: &str) {
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_pgkeep"));
    let path = format!(
        "{}:{}:/usr/bin:/bin",
        cluster.pg_bin().display(),
        binary.parent().unwrap().display()
    );
    let done = Command::new("sh")
        .args(["-c", mend])
        .current_dir(place.folder.path())
        .env_clear()
        .env("HOME", place.folder.path())
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{mend}\n{}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
}
