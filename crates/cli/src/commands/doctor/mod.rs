//! `pgkeep doctor`: what is in place, what isn't, and what to do about it.

mod configuration;
mod encryption;
mod print;
mod repository;
mod server;

use pgkeep_base::{Classified, Severity};
use pgkeep_config::Overrides;
use pgkeep_dump::check::ServerFacts;
use serde_json::Value;

use crate::context::{Context, Settings};
use crate::exit::{Failure, Outcome};

/// The oldest server that is supported.
const MAJOR_MIN: u32 = 15;

/// One check.
struct Finding {
    area: &'static str,
    severity: Severity,
    what: String,
    why: String,
    mend: Option<String>,
}

/// Who wants to know: what mends something depends on it.
#[derive(Debug, Clone, Copy, Default)]
pub enum AskedBy {
    /// `pgkeep doctor`
    #[default]
    Doctor,
    /// `pgkeep init`, of which nothing stays while something is wrong.
    Init {
        /// Whether the cluster's name may go over to this server.
        accepts_new_identity: bool,
    },
}

/// All checks.
#[derive(Default)]
pub struct Findings {
    asked_by: AskedBy,
    all: Vec<Finding>,
    /// What the server is, where it could be reached.
    pub server: Option<ServerFacts>,
}

impl Findings {
    fn add(
        &mut self,
        area: &'static str,
        severity: Severity,
        what: impl Into<String>,
        why: impl Into<String>,
        mend: Option<String>,
    ) {
        self.all.push(Finding {
            area,
            severity,
            what: what.into(),
            why: why.into(),
            mend,
        });
    }

    fn ok(&mut self, area: &'static str, what: impl Into<String>) {
        self.add(area, Severity::Ok, what, "", None);
    }

    fn error(&mut self, area: &'static str, error: &dyn Classified) {
        let mend = error.hint().map(|hint| hint.to_string());
        self.add(area, Severity::Error, error.to_string(), "", mend);
    }

    fn failure(&mut self, area: &'static str, failure: &Failure) {
        let mend = failure.hint().map(str::to_owned);
        self.add(area, Severity::Error, failure.text(), "", mend);
    }

    fn number_of(&self, severity: Severity) -> u64 {
        self.all
            .iter()
            .filter(|finding| finding.severity == severity)
            .count() as u64
    }

    /// What a dump would do without, or may be lost.
    pub fn warnings(&self) -> u64 {
        self.number_of(Severity::Warning)
    }

    /// What is to be done before a dump can be made.
    pub fn errors(&self) -> u64 {
        self.number_of(Severity::Error)
    }
}

/// `pgkeep doctor`
pub async fn run(context: &Context) -> Result<Outcome, Failure> {
    let settings = context.settings(Overrides::default())?;
    let findings = examine(&settings, AskedBy::Doctor).await;
    print::tell(context, &findings);
    Ok(match (findings.errors(), findings.warnings()) {
        (0, 0) => Outcome::Done,
        (0, _) => Outcome::Attention,
        _ => Outcome::Failed,
    })
}

/// Every check.
pub async fn examine(settings: &Settings, asked_by: AskedBy) -> Findings {
    let mut findings = Findings {
        asked_by,
        ..Findings::default()
    };
    configuration::check(settings, &mut findings);
    encryption::check(settings, &mut findings);
    server::check(settings, &mut findings).await;
    repository::check(settings, &mut findings).await;
    findings
}

/// Tells people what needs something, with its mends.
pub fn tell_problems(context: &Context, findings: &Findings) {
    if print::problems(&context.output, findings) {
        context.output.line("");
    }
}

/// What needs something, for programs.
pub fn problems_json(findings: &Findings) -> Vec<Value> {
    let problems = findings
        .all
        .iter()
        .filter(|finding| finding.severity.needs_something());
    problems.map(Finding::json).collect()
}
